"""FOLDER/jobs.json: which jobs were submitted for which blocks. Written before a submission and after it, so that a
command that was killed between the two, or whose answer was lost, submits nothing twice."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from energybench.common.errors import Problem, UsageError
from energybench.common.outputs import JOBS_FILE
from energybench.common.sealed_files import read_sealed, write_text
from energybench.records.record import json_of

JOBS = "jobs"  # the folder of scripts, logs and notes in the run's
SCHEMA = 1
JobId = Annotated[int, Field(ge=1)]
Block = Annotated[int, Field(ge=0, le=1_000_000)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Job(Part):
    """One submission: the plan, an array of blocks, or the report.

    name:  unique in the queue, by which it is found where its number never came back
    id:    as the engine gave it; None: not known yet
    tasks: of an array: the blocks of each task, by its index
    """

    name: str
    id: JobId | None = None
    tasks: list[list[Block]] = Field(default_factory=list)


class Jobs(Part):
    """What was submitted for one run.

    asked:     identity of the command that asked for it
    token:     in the names of its jobs, which no other run's have
    serial:    of the last array
    cancelled: blocks whose job the user ended, which the same command submits again and nothing else does
    again:     block → how often its job was submitted again, because it was lost
    told:      the command that waited has shown the report: the same command begins a new run
    """

    schema_: int = Field(default=SCHEMA, alias="schema")
    engine: str
    asked: str
    token: str
    serial: int = 0
    plan: Job | None = None
    arrays: list[Job] = Field(default_factory=list)
    report: Job | None = None
    cancelled: list[Block] = Field(default_factory=list)
    again: dict[str, int] = Field(default_factory=dict)
    told: bool = False

    @property
    def submitted(self) -> list[Job]:
        return [job for job in (self.plan, *self.arrays, self.report) if job is not None]

    def job_name(self, suite: str, what: str) -> str:
        """ "eb-cifar-3f2a91c0-blocks1" """
        return f"eb-{suite[:40]}-{self.token}-{what}"


def new_jobs(engine: str, asked: str) -> Jobs:
    return Jobs(engine=engine, asked=asked, token=secrets.token_hex(4))


def read_jobs(folder: Path) -> Jobs | None:
    """None where nothing was submitted. Raises UsageError E601, E621, E622."""
    path = folder / JOBS_FILE
    if not path.exists():
        return None
    hint = "put it back from a copy; or see that no job of this run is queued, and move it away"
    content = read_sealed(path, (SCHEMA,), "jobs", hint)
    try:
        return Jobs.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            Problem("E601", f"not a whole jobs record: {place}: {first['msg']}", str(path), hint)
        ) from None


def write_jobs(folder: Path, jobs: Jobs) -> None:
    """Raises CannotWrite E620."""
    write_text(folder / JOBS_FILE, json_of(jobs))
