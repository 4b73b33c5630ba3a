"""A synthetic run whose blocks lie in shards, each made on a device of its own kind and its own truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthetic import GPU, Run

from energybench.records.record import CountingRun, RunFile, Trial, write_json

IDENTITY = "ab" * 16
CARD: dict[str, Any] = {"name": "Card 700", "driver": "550.54", "power_limit_w": 700.0}
HOST: dict[str, Any] = {"cpu": "EPYC", "cores": 8, "memory_mt_s": None}
Records = tuple[RunFile, list[Trial], list[CountingRun]]


def card(number: int, **facts: Any) -> dict[str, Any]:
    """Fields of a trial on a GPU."""
    return {"device": f"GPU-{number}", "environment": {"torch": "2.13", "gpus": {f"GPU-{number}": CARD | facts}}}


def host(number: int, called: str = "", boot: str = "", **facts: Any) -> dict[str, Any]:
    """Fields of a trial on a processor."""
    machine = HOST | {"host": called or f"h{number}", "boot": boot or f"b{number}"} | facts
    return {"device": "cpu", "environment": {"torch": "2.13", "threads": 2, "machine": machine}}


def spread(
    devices: Sequence[Mapping[str, Any]],
    blocks: int = 12,
    effects: Sequence[float] = (),
    energy: float = 0.8,
    noise: float = 0.005,
    identity: str | None = IDENTITY,
    seed: int = 0,
    build: Callable[[Run], Run] = lambda run: run,
    **run_file: Any,
) -> Records:
    """Block b runs on devices[b % len(devices)], where the method's cost is multiplied by exp(its effect)."""
    run = build(Run(blocks=blocks, sensors=(GPU,), noise=noise, seed=seed)).method("half", energy=energy, time=energy)
    meta, trials, counting_runs = run.records()
    fields = {"run_identity": identity, "finished": False} | run_file
    placed = []
    for trial in trials:
        at = trial.block % len(devices)
        factor = math.exp(effects[at]) if effects and trial.role == "method" else 1.0
        placed.append(trial.model_copy(update=dict(devices[at]) | {"run_identity": identity} | scaled(trial, factor)))
    return (
        meta.model_copy(update=fields),
        placed,
        [each.model_copy(update={"run_identity": identity}) for each in counting_runs],
    )


def scaled(trial: Trial, factor: float) -> dict[str, Any]:
    if trial.train is None or factor == 1.0:
        return {}
    energy = [each.model_copy(update={"energy_j": (each.energy_j or 0) * factor}) for each in trial.train.energy]
    return {
        "phases": {"train": trial.train.model_copy(update={"wall_s": trial.train.wall_s * factor, "energy": energy})}
    }


def put(folder: Path, records: Records) -> Path:
    meta, trials, counting_runs = records
    write_json(folder / "run.json", meta)
    for trial in trials:
        write_json(folder / "records" / f"{trial.trial}.json", trial)
    for each in counting_runs:
        write_json(folder / "witness" / f"{each.workload}.{each.method}.json", each)
    return folder


def put_shards(folder: Path, records: Records, plan: bool = True) -> Path:
    """FOLDER/run.json with the counting runs, and a shard for each block."""
    meta, trials, counting_runs = records
    if plan:
        put(folder, (meta, [], counting_runs))
    for block in sorted({trial.block for trial in trials}):
        of_block = [trial for trial in trials if trial.block == block]
        put(folder / "shards" / f"b{block + 1}", (meta, of_block, [] if plan else counting_runs))
    return folder
