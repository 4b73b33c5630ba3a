"""Where this run's trials are made: on which host, in which job, and whether an earlier trial was made there too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from energybench.common.hosts import host
from energybench.records.record import Placement, Trial
from energybench.records.run_folder import SUPERSEDED, Folder
from energybench.runner import schedule
from energybench.runner.plan_request import Planned

LONGEST = 100  # characters of a job's name
RESTARTS = "ENERGYBENCH_RESTARTS"  # how often a job was tried before, where its engine does not say so itself


def placement(environ: Mapping[str, str] | None = None) -> Placement:
    """Of what is run by a process with this environment; None: this one's."""
    known = os.environ if environ is None else environ
    job, restarts = None, None
    if name := known.get("RAY_JOB_ID"):  # of a worker, which may lie inside an allocation of Slurm's
        job, restarts = f"ray {name}", _count(known.get(RESTARTS, ""))
    elif name := known.get("SLURM_ARRAY_JOB_ID"):
        job = f"slurm {name}_{known.get('SLURM_ARRAY_TASK_ID', '?')}"
    elif name := known.get("SLURM_JOB_ID"):
        job = f"slurm {name}"
    if job is not None and job.startswith("slurm "):  # which says nothing before the first requeue
        restarts = _count(known.get("SLURM_RESTART_COUNT", "0"))
    return Placement(host=host(), job=None if job is None else _printable(job), restarts=restarts)


def made_here(planned: Planned, trial: Trial) -> bool:
    """Whether a trial was made on the device that this run would make it on: the card, or the processor of this host.

    Of a trial that names no host it is taken for granted.
    """
    command = any(cell.command for cell in planned.cells if cell.workload == trial.workload)
    device = planned.result.command_device if command else planned.device_name
    if trial.device != device:
        return False
    return device != "cpu" or trial.placement is None or trial.placement.host == host()


def set_superseded_apart(
    planned: Planned,
    folder: Folder,
    blocks: Sequence[int],
    seed: int,
    done: Sequence[Trial],
    say: Callable[[str], None],
) -> bool:
    """What a block has of another device that it was begun on: those records are kept apart, and told.

    Returns whether there was any. Raises CannotWrite E620, E626.
    """
    gone = schedule.superseded(planned.cells, blocks, seed, done, partial(made_here, planned))
    told = []
    for block in dict.fromkeys(trial.block for trial in gone):
        there = [trial for trial in gone if trial.block == block]
        of = ", ".join(dict.fromkeys(trial.made_on for trial in there))
        trials = f"{len(there)} trial{'s' * (len(there) != 1)} of another device ({of})"
        told.append(f"note: block {block + 1}: {trials} set apart in {SUPERSEDED}/; it starts anew on this one")
    for trial in gone:
        folder.set_apart(trial.trial)
    for each in told:
        say(each)
    return bool(gone)


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)[:LONGEST]


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
