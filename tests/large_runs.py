"""Runs of many thousand trials: a run of a few, multiplied over workloads and blocks.

Every trial is a whole record, sealed; its seconds and joules differ from its model's by a factor of its own, and its
quality by a little, so that there is something to compute. Models are a metered training on a card, of 20 kB without
a space, and what is usual: a committed run of a processor, of 6 kB (10 kB as it is written).

    python tests/large_runs.py FOLDER 56 10          # 56 workloads, 10 blocks: 10,080 trials of the usual kind
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from energybench.common.sealed_files import with_seal

ON_A_CARD = Path(__file__).parent / "old_records" / "schema-3" / "trained"
USUAL = max((Path(__file__).parents[1] / "reports" / "ssprop").iterdir())  # 18 trials in a block
NOISE, QUALITY_NOISE = 0.02, 0.003


def made(folder: Path, workloads: int, blocks: int, frozen: Path = ON_A_CARD) -> int:
    """A run's folder with so many workloads and blocks. Returns how many trials are in it."""
    run = _content(frozen / "run.json")
    (name,) = {cell["workload"] for cell in run["cells"]}
    names = [f"{name}-{number:03}" for number in range(workloads)]
    by_block: dict[int, list[dict[str, Any]]] = {}
    for file in sorted((frozen / "records").iterdir()):
        trial = _content(file)
        by_block.setdefault(trial["block"], []).append(trial)
    for part in ("records", "witness"):
        (folder / part).mkdir(parents=True)
    if (frozen / "traces").is_dir():
        shutil.copytree(frozen / "traces", folder / "traces")
    _write(folder / "run.json", _run(run, name, names, blocks))
    for file in sorted((frozen / "witness").iterdir()):
        counting_run = _content(file)
        for each in names:
            _write(folder / "witness" / file.name.replace(name, each, 1), counting_run | {"workload": each})
    count = 0
    for each in names:
        for block in range(blocks):
            for trial in by_block[block % len(by_block)]:
                again = _trial(trial, each, block)
                _write(folder / "records" / f"{again['trial']}.json", again)
                count += 1
    return count


def _run(run: dict[str, Any], name: str, names: list[str], blocks: int) -> dict[str, Any]:
    """run.json with the cells and tables of every workload."""
    resolved = run["resolved"]
    tables = [{**resolved["workload"][0], "name": each} for each in names]
    return run | {
        "cells": [cell | {"workload": each} for each in names for cell in run["cells"]],
        "blocks": blocks,
        "looks": None,
        "finished": True,
        "resolved": {**resolved, "workload": tables, "require": []},
        "data": {each: run["data"].get(name) for each in names},
        "metrics": {each: table for each in names if (table := run.get("metrics", {}).get(name))},
    }


def _trial(trial: dict[str, Any], workload: str, block: int) -> dict[str, Any]:
    chance = random.Random(f"{workload} {block} {trial['method']}")
    factor = math.exp(chance.gauss(0, NOISE))
    quality = {key: value + chance.gauss(0, QUALITY_NOISE) for key, value in trial["quality"].items()}
    return trial | {
        "trial": f"b{block}-i{trial['invocation']}-{workload}.{trial['method']}",
        "workload": workload,
        "block": block,
        "seed": trial["seed"] + block - trial["block"],
        "phases": {**trial["phases"], "train": _times(trial["phases"]["train"], factor)},
        "quality": {key: min(value, 1.0) for key, value in quality.items()},
    }


def _times(reading: dict[str, Any], factor: float) -> dict[str, Any]:
    """Its seconds and joules."""
    energy = [
        each | {"energy_j": None if each["energy_j"] is None else each["energy_j"] * factor}
        for each in reading["energy"]
    ]
    return reading | {"wall_s": reading["wall_s"] * factor, "cpu_s": reading["cpu_s"] * factor, "energy": energy}


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    content.pop("seal")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(with_seal(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(made(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), USUAL))
