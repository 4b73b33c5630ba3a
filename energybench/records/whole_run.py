"""Which run folders hold one run: a folder, and its shards below it."""

from __future__ import annotations

import os
from pathlib import Path

from energybench.common.held_folder import HeldFolder
from energybench.common.outputs import RUN_FILE
from energybench.records.shards import SHARDS, shards_of


def folders_of(folder: Path) -> list[Path]:
    """The folder itself, where it has a run.json, and its shards that have begun, in the order of their blocks.

    A folder without either is itself: whoever reads it says what it lacks. Raises UsageError E612 where the shards, or
    one of them, are a link: no link below a run's folder is followed.
    """
    shards = shards_of(folder)
    if shards:
        with HeldFolder(folder) as held:
            for name in (SHARDS, *(f"{SHARDS}/{shard.name}" for shard in shards)):
                held.refuse_link(name)
    return [*([folder] if not shards or os.path.isfile(folder / RUN_FILE) else []), *shards]
