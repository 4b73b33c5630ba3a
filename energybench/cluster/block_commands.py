"""What a job runs, as words: the plan once, one block, the report of all. Every engine runs the same."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from energybench.common.errors import EXIT_AT_WORK, EXIT_FINE, EXIT_INTERRUPTED, EXIT_TRIALS_FAILED
from energybench.common.hashing import digest
from energybench.records.shards import SHARDS, named
from energybench.suite.suite import Suite

ENERGYBENCH = (sys.executable, "-m", "energybench")


@dataclass(frozen=True)
class Asked:
    """A run as the command line asks for it.

    suite:     loaded, with its --quick and --set
    options:   words of the command line that each job is given as they are
    device:    as --device names it
    """

    suite: Suite
    options: tuple[str, ...] = ()
    device: str | None = None

    @property
    def blocks(self) -> int:
        return self.suite.trials.blocks

    @property
    def identity(self) -> str:
        """Of two commands that ask for the same run. [on] is not in it, nor are files beside the suite, which the
        jobs themselves look at."""
        return digest([self.suite.digest_source(), self.suite.stamp, self.device, sorted(self.options)])

    @property
    def run(self) -> tuple[str, ...]:
        """The beginning of what a job runs."""
        return (*ENERGYBENCH, "run", str(self.suite.path), *self.options)


def block_folder(folder: Path, block: int) -> Path:
    """block: from 0, as everywhere in this room; what people and commands read counts from 1."""
    return folder / SHARDS / named([block])


def plan_words(asked: Asked, folder: Path) -> list[str]:
    """Plans and counts once, and writes FOLDER/run.json."""
    of_trials = ("--keep-going",)
    run = [word for word in asked.run if word not in of_trials]
    return [*run, "--plan-only", "--out", str(folder)]


def block_words(asked: Asked, folder: Path, block: int) -> list[str]:
    """Runs what is missing of one block; its codes are those of BlockEnd."""
    return [*asked.run, "--block", str(block + 1), "--out", str(block_folder(folder, block))]


def report_words(folder: Path) -> list[str]:
    return [*ENERGYBENCH, "report", str(folder), "--write"]


class BlockEnd:
    """Exit codes of one block's command.

    COMPLETE:    all its trials are there, whether they were before or not
    FAILED:      likewise, and some of them failed: their records say why
    ELSEWHERE:   another process works on it
    INTERRUPTED: the same command goes on where it ended
    """

    COMPLETE, FAILED, ELSEWHERE, INTERRUPTED = EXIT_FINE, EXIT_TRIALS_FAILED, EXIT_AT_WORK, EXIT_INTERRUPTED
