"""with_replacement: draw every batch uniformly with replacement: in an epoch some samples come twice, others never.

The control of all methods that draw: what they have beyond it is their importance. Weights are 1, as 1/(N·p) is for
p = 1/N. Promises 0 %. Owns `batches`. Composes with everything that leaves them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch

from energybench import Batch, Data, Method, TrainingRun
from energybench.algorithms.weighted_sampling import pass_key


class WithReplacement(Method):
    replaces: ClassVar[frozenset[str]] = frozenset({"batches"})
    trains_less: ClassVar[bool | None] = False

    def setup(self, run: TrainingRun) -> None:
        self._drawn = 0

    def batches(self, run: TrainingRun, data: Data, inner: Callable[[Data], Iterable[Batch]]) -> Iterable[Batch]:
        generator = run.rng(self.name, "draw", *pass_key(run))
        sizes = data.sizes(run.recipe.batch)
        self._drawn += sum(sizes)
        return run.load(data, (torch.randint(len(data), (size,), generator=generator) for size in sizes))

    def diagnostics(self) -> dict[str, Any]:
        return {"samples_drawn": self._drawn}
