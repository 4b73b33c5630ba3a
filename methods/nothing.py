"""nothing: passes every hook on and changes nothing; what it costs is what the harness costs.

Promises 0 %. Composes with everything. The weights after training are bit-identical to the baseline's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from energybench import Batch, Data, Forward, Method, TrainingRun


class Nothing(Method):
    trains_less: ClassVar[bool | None] = False

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        inner(data)

    def batches(self, run: TrainingRun, data: Data, inner: Callable[[Data], Iterable[Batch]]) -> Iterable[Batch]:
        return inner(data)

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        inner(batch)

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        return inner(batch)

    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        inner(part)
