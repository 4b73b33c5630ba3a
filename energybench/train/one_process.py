"""What a method may ask of a run about other ranks, where one process trains alone. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from energybench.train.batch import Batch


class OneProcess:
    """Base of a run; `rank_run.py` answers for several. What the members mean stands in `interface.py`."""

    world: int = 1
    rank_key: tuple[int, ...] = ()

    def all_rows(self, own: Tensor, batch: Batch) -> Tensor:
        return own

    def all_mean(self, value: Tensor, batch: Batch) -> Tensor:
        return value
