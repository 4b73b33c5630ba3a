"""A run whose blocks were made by several jobs: FOLDER/shards/b0, b1, … are run folders of their own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from energybench.common.held_folder import HeldFolder
from energybench.common.outputs import RUN_FILE

SHARDS = "shards"  # the folder of a run's shards


def folders_of(folder: Path) -> list[Path]:
    """The run folders that hold one run: the folder itself, where it has a run.json, and its shards by their number.

    A shard without a run.json has not begun. A folder without either is itself: whoever reads it says what it lacks.
    Raises UsageError E612 where the shards are a link: they would lie outside of the folder.
    """
    try:
        held = HeldFolder(folder)
    except OSError:
        return [folder]
    with held:
        try:
            names = held.names(SHARDS)
        except OSError:  # it is no folder
            names = []
        for name in names:
            held.refuse_link(name)
    shards = [folder / name for name in sorted(names, key=_number) if _is_run(folder / name)]
    return [*([folder] if _is_run(folder) or not shards else []), *shards]


def _is_run(folder: Path) -> bool:
    return os.path.isfile(folder / RUN_FILE)


def _number(name: str) -> tuple[int, str]:
    """b10 comes after b9."""
    digits = re.search(r"\d{1,9}$", name)
    return (int(digits.group()) if digits else 0), name
