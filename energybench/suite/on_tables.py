"""[on]: which engine runs a suite's blocks on other machines, and what each job asks of it. Enters no digest: where a
block ran is in its records, and asking for another partition is no other run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from energybench.common.units import Seconds
from energybench.suite.messages import KeyedError
from energybench.suite.table import Name, Several, SuiteTable
from energybench.suite.variants import toml

LEAST_S, LONGEST_S = 60.0, 3.2e7  # Slurm counts minutes; a year
MOST_AT_ONCE = 100_000
# Options of sbatch that a job of ours needs as they are, or that are keys of [on] slurm: long → short, and the key.
TAKEN: dict[str, tuple[str, str]] = {
    "--array": ("-a", ""),
    "--chdir": ("-D", ""),
    "--dependency": ("-d", ""),
    "--error": ("-e", ""),
    "--hold": ("-H", ""),
    "--input": ("-i", ""),
    "--job-name": ("-J", ""),
    "--kill-on-invalid-dep": ("", ""),
    "--no-requeue": ("", ""),
    "--nodes": ("-N", ""),
    "--ntasks": ("-n", ""),
    "--open-mode": ("", ""),
    "--output": ("-o", ""),
    "--parsable": ("", ""),
    "--requeue": ("", ""),
    "--signal": ("", ""),
    "--test-only": ("", ""),
    "--wait": ("-W", ""),
    "--wrap": ("", ""),
    "--partition": ("-p", "partition"),
    "--gres": ("", "gres"),
    "--cpus-per-task": ("-c", "cpus"),
    "--time": ("-t", "time"),
    "--exclusive": ("", "exclusive"),
}


def _one_word(text: str) -> str:
    """What stands behind an option's "=": a word that cannot be taken for another option."""
    if re.search(r"\s", text) or text.startswith("-"):
        raise KeyedError(f"expected one word, not {toml(text)}", "", "as sbatch has it, without blanks")
    return text


def _options(words: Sequence[str]) -> Sequence[str]:
    for word in words:
        name = word.partition("=")[0]
        if not re.fullmatch(r"--[A-Za-z][A-Za-z-]*(=.*)?|-[A-Za-z].*", word):
            hint = 'each option with its value as one text: extra = ["--account=physics", "--qos=low"]'
            raise KeyedError(f"{toml(word)} is no option of sbatch", "", hint)
        for long, (short, key) in TAKEN.items():
            shortened = name.startswith("--") and len(name) > 4 and long.startswith(name)  # getopt takes it
            if name == long or shortened or (short and not word.startswith("--") and word.startswith(short)):
                hint = f"write {key} = ... beside it" if key else "leave it out"
                why = "is a key of this table" if key else "is set by energybench itself"
                raise KeyedError(f"{toml(word)}: {long} {why}", "", hint)
    return words


Word = Annotated[Name, AfterValidator(_one_word)]


class SlurmTable(SuiteTable):
    """What `energybench run SUITE --on slurm` asks of Slurm for each job; what is left out is the cluster's own
    default."""

    partition: Word | None = Field(default=None, examples=["gpu"], description="of all jobs")
    gres: Word | None = Field(
        default=None, examples=["gpu:a100:1"], description="what a job needs beside processors; not of the report"
    )
    cpus: int | None = Field(default=None, ge=1, le=4096, examples=[8], description="of each job")
    time: Seconds | None = Field(
        default=None, ge=LEAST_S, le=LONGEST_S, description="of each job with all its blocks; Slurm counts minutes"
    )
    exclusive: bool = Field(
        default=False, description="whole nodes: a processor's energy is measured for all that runs on it"
    )
    at_once: int | None = Field(
        default=None, ge=1, le=MOST_AT_ONCE, examples=[32], description="the most jobs that run at once"
    )
    blocks_per_job: int = Field(default=1, ge=1, le=1000, description="one after the other, on one device")
    extra: Annotated[Several[Name], AfterValidator(_options)] = Field(
        default=(), examples=[["--account=physics", "--qos=low"]], description="other options of sbatch"
    )


class RayTable(SuiteTable):
    """What `energybench run SUITE --on ray` asks of Ray for each task."""

    address: Word | None = Field(
        default=None, examples=["auto"], description="of the cluster; else $RAY_ADDRESS, else one on this machine"
    )
    gpus: int = Field(default=0, ge=0, le=1, description="1: a task has a card of its own")
    cpus: int = Field(default=1, ge=1, le=4096, description="of each task")
    retries: int = Field(default=3, ge=0, le=1000, description="of a block whose node or process was lost")
    at_once: int | None = Field(default=None, ge=1, le=MOST_AT_ONCE, description="the most tasks that run at once")


class OnTable(SuiteTable):
    """Where `energybench run SUITE --on ENGINE` runs the blocks. It is no setting of the comparison."""

    slurm: SlurmTable | None = None
    ray: RayTable | None = None

    @model_validator(mode="after")
    def _names_an_engine(self) -> OnTable:
        if self.slurm is None and self.ray is None:
            hint = 'slurm = { partition = "gpu", gres = "gpu:1", time = "4 h" }; or ray = { gpus = 1 }'
            raise KeyedError("it names no engine", "", hint)
        return self
