"""A run in several folders: its plan in one, and its blocks in shards below it, each by a job of its own.

    FOLDER/run.json, FOLDER/witness/     the plan and the counting runs, made once: energybench run SUITE --plan-only
    FOLDER/shards/b3/                    block 3, a run's folder with a lock, records and a run.json of its own

A shard takes order, seeds, threads, counts and the identity of the run from the plan, so that the records of all shards
are those of one run. Where several are read as one run: `energybench report FOLDER` takes `shards_of(FOLDER)`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from energybench.common.outputs import JOBS_FILE, RUN_FILE
from energybench.common.safe_read import list_folder

SHARDS = "shards"


def shards_of(folder: Path) -> list[Path]:
    """The folders of a run's shards that have begun, in the order of their blocks; none where it has none."""
    there = [each for each in list_folder(folder / SHARDS) if os.path.isfile(each / RUN_FILE)]
    return sorted(there, key=lambda each: (_numbers(each.name), each.name))


def is_in_parts(folder: Path) -> bool:
    """Whether the blocks of a run lie in shards, or will: the jobs of an engine were submitted for it."""
    return os.path.lexists(folder / JOBS_FILE) or bool(shards_of(folder))


def plan_of(shard: Path) -> Path | None:
    """The folder of the plan of FOLDER/shards/NAME, where there is one."""
    home = Path(os.path.abspath(shard)).parent
    return home.parent if home.name == SHARDS and os.path.isfile(home.parent / RUN_FILE) else None


def named(blocks: Iterable[int]) -> str:
    """What a shard is called by convention: "b3", "b3-5", "b1,4". blocks: from 0, as records count them."""
    return f"b{ranges(blocks)}"


def ranges(blocks: Iterable[int]) -> str:
    """Blocks as people count them, from 1: "3", "3-5", "1,4-6"."""
    spans: list[list[int]] = []
    for block in sorted(set(blocks)):
        if spans and block == spans[-1][1] + 1:
            spans[-1][1] = block
        else:
            spans.append([block, block])
    return ",".join(f"{first + 1}" if first == last else f"{first + 1}-{last + 1}" for first, last in spans)


def _numbers(name: str) -> list[int]:
    """So that b10 comes after b9."""
    words = "".join(sign if sign.isascii() and sign.isdigit() else " " for sign in name).split()
    return [int(word) for word in words if len(word) < 10]
