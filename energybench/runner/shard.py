"""A part of a run: some of its blocks in a folder of their own, by the plan in the folder above.

Every job of a cluster runs one, whatever engine started it: `energybench run SUITE --block 3 --out FOLDER/shards/b3`.
Nothing is looked at here: only the report of all shards draws verdicts, after the numbers of blocks that were declared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from energybench.common.errors import Problem, UsageError, typed
from energybench.common.limits import MOST_TRIALS
from energybench.records.reader import COUNTING_RUNS
from energybench.records.record import RunFile, Trial, json_of
from energybench.records.run_folder import Folder
from energybench.records.shards import SHARDS, is_in_parts, plan_of, ranges, shards_of
from energybench.runner import schedule
from energybench.runner.plan_request import Planned
from energybench.suite.suite import Suite, cell_name

SPAN = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")


def blocks_of(option: str, text: str) -> tuple[int, ...]:
    """ "3", "3-5" or "1,4-6", counted from 1 → each once, from 0, in order. Raises UsageError E204."""
    found = set[int]()
    for part in text.split(","):
        span = SPAN.fullmatch(part)
        first, last = (int(span[1]), int(span[2] or span[1])) if span and part.isascii() else (0, 0)
        if not 1 <= first <= last <= MOST_TRIALS:
            message = f"{option}: '{text}' names no blocks"
            hint = "blocks count from 1, as a run prints them: 3, or 3-5, or 1,4-6"
            raise UsageError(Problem("E204", message, hint=hint))
        found.update(range(first - 1, last))
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class Shard:
    """blocks: from 0; out: its folder; home: of the plan, and plan: its run.json; None where it plans for itself"""

    blocks: tuple[int, ...]
    out: Path
    home: Path | None = None
    plan: RunFile | None = None

    @classmethod
    def opened(cls, suite: Suite, blocks: tuple[int, ...], out: Path) -> Shard:
        """Raises UsageError E204 for a block that the suite has not, E603 where the plan is another suite's."""
        home = plan_of(out)
        plan = Folder(home).run_file() if home is not None else None
        most = suite.trials.blocks if plan is None else plan.blocks
        if plan is not None and plan.suite != suite.suite:
            message = f"the plan there is of suite '{plan.suite}', and this is '{suite.suite}'"
            hint = f"a plan of its own: energybench run {suite.suite} --plan-only"
            raise UsageError(Problem("E603", message, str(home), hint))
        if blocks[-1] >= most:
            message = f"--block {ranges(blocks)}: the suite has {most} block{'s' * (most != 1)}"
            raise UsageError(Problem("E204", message, suite.where(("trials", "blocks")), f"1 to {most}"))
        return cls(blocks, out, home, plan)

    @property
    def until_decided(self) -> bool:
        """Whether looks were declared: they are in the digest, and taken by whoever reads all shards."""
        return self.plan is not None and self.plan.looks is not None

    @property
    def told(self) -> str:
        """ "block 3", "blocks 3-5"."""
        return f"block{'s' * (len(self.blocks) != 1)} {ranges(self.blocks)}"

    def folder(self, planned: Planned, differs: Callable[[RunFile], str]) -> Folder:
        """Its own. Raises UsageError E603 where the plan, or what is in it, is of other settings, methods or versions;
        E629 where it holds other blocks; E625 where it was made by another plan."""
        if self.home is not None:
            Folder(self.home).admit(planned.digest, differs, finished=True)
        folder = Folder(self.out)
        self.admit(folder, planned, differs)
        return folder

    def admit(self, folder: Folder, planned: Planned, differs: Callable[[RunFile], str]) -> None:
        """Raises as `folder`."""
        folder.admit(planned.digest, differs, finished=True)
        run = folder.run_file()
        if run is None:
            return
        if run.shard is None or tuple(run.shard) != self.blocks:
            there = "a whole run" if run.shard is None else f"block {ranges(run.shard)} of the run"
            hint = "each part of a run has a folder of its own: name another one with --out"
            raise UsageError(Problem("E629", f"this folder holds {there}, not {self.told}", str(folder.path), hint))
        if self.plan is not None and run.run_identity != self.plan.run_identity:
            message = "it was not run by the plan in the folder above, so its blocks are another run's"
            away = typed("mv", folder.path, f"{folder.path}.stranger")
            hint = f"{away} — then the same command runs them by that plan"
            raise UsageError(Problem("E625", message, str(folder.path), hint))

    def run_file(self, new: RunFile) -> RunFile:
        """run.json of a shard that begins. new: as a run of its own would have it."""
        mine: dict[str, object] = {"shard": list(self.blocks)}
        if self.plan is not None:
            same = ("run_identity", "order_seed", "blocks", "looks")
            mine |= {name: getattr(self.plan, name) for name in same}
            threads = {name: self.plan.machine[name] for name in ("threads",) if name in self.plan.machine}
            mine["machine"] = new.machine | (threads if "threads" in new.machine else {})
        return new.model_copy(update=mine)

    def take_counts(self, folder: Folder) -> None:
        """The plan's counting runs, copied into the shard's own folder where they are not there yet."""
        there = {(each.workload, each.method) for each in folder.read_counting_runs()}
        for each in Folder(self.home).read_counting_runs() if self.home is not None else ():
            if (each.workload, each.method) not in there:
                name = f"{COUNTING_RUNS}/{cell_name(each.workload, each.method)}.json"
                folder.held.write_bytes(name, json_of(each).encode())

    def is_complete(self, run: RunFile, planned: Planned, trials: list[Trial]) -> bool:
        """Whether it was ended, and nothing of its blocks is missing since."""
        seed = planned.suite.trials.seed if run.order_seed is None else run.order_seed
        return run.complete and not schedule.missing(planned.cells, self.blocks, seed, trials, 0)


def refuse_sharded(folder: Path) -> None:
    """Raises UsageError E629 where the blocks of a run lie in shards: a run of all of them beside would repeat them."""
    if is_in_parts(folder):
        number = len(shards_of(folder))
        message = f"the blocks of this run are in {number} shard{'s' * (number != 1)} below it"
        message = message if number else "the blocks of this run were submitted as jobs"
        hint = f"go on with --block, one after the other; read them with {typed('energybench', 'report', folder)}; "
        hint += "a run of its own: --new, or another --out"
        raise UsageError(Problem("E629", message, str(folder), hint))


def command_of_block(argv: Sequence[str], home: Path) -> str:
    """What to type for a block of a plan that was made by this command line."""
    words, left = ["energybench", *argv[1:]], list[str]()
    while words:
        word = words.pop(0)
        if word == "--out":
            words = words[1:]
        elif word not in ("--plan-only", "--until-decided", "--new") and not word.startswith("--out="):
            left.append(word)
    return typed(*left, "--block", "1", "--out", home / SHARDS / "b1")
