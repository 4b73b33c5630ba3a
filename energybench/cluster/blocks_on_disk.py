"""Which blocks of a run are complete, and how many trials of the others are recorded, as the disk has it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from energybench.cluster.block_commands import block_folder
from energybench.common.errors import EnergybenchError
from energybench.common.outputs import RUN_FILE
from energybench.records.reader import RECORDS, read
from energybench.records.record import RunFile


def is_complete(folder: Path, block: int) -> bool:
    """Whether a block has run to its end. One that cannot be read is not complete: its own job says what is wrong."""
    path = block_folder(folder, block) / RUN_FILE
    if not path.is_file():
        return False
    try:
        return read(path, RunFile).complete
    except EnergybenchError:
        return False


def recorded(folder: Path, block: int) -> int:
    """So many trials of a block have a record, those too that a later call repeats."""
    try:
        return sum(name.endswith(".json") for name in os.listdir(block_folder(folder, block) / RECORDS))
    except OSError:
        return 0


@dataclass
class BlocksOnDisk:
    """Looked at again and again: what is complete stays so, and is not read twice."""

    folder: Path
    blocks: int
    complete: set[int] = field(default_factory=set)
    _recorded: dict[int, int] = field(default_factory=dict)

    def look(self) -> None:
        for block in range(self.blocks):
            if block not in self.complete:
                if is_complete(self.folder, block):
                    self.complete.add(block)
                self._recorded[block] = recorded(self.folder, block)

    @property
    def missing(self) -> list[int]:
        return [block for block in range(self.blocks) if block not in self.complete]

    @property
    def trials(self) -> int:
        """Records of all blocks."""
        return sum(self._recorded.values())

    def __str__(self) -> str:
        trials = f", {self.trials} trial{'s' * (self.trials != 1)} recorded" if self.trials else ""
        return f"{len(self.complete)} of {self.blocks} blocks complete{trials}"
