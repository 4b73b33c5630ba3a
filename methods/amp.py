"""amp: compute products in bf16 or fp16, keep weights in fp32: torch.autocast, and for fp16 a scaled loss.

Each forward pass casts the operands of convolutions and matrix products down, y = bf16(x)·bf16(w), and what must not
lose digits up (softmax, losses), by torch's own lists. Weights, their gradients and the optimizer stay fp32. In fp16
the loss is multiplied by S before the backward pass and gradients by 1/S after it; an update with an overflow is left
out.

Paper: Micikevicius et al. 2018, Mixed Precision Training, §3.1 and §3.2; documentation: torch.autocast. Promises no
FLOP: half the bytes of activations and products, and products at the rate that the hardware has for narrow operands;
each weight is cast once a forward pass. Where a processor emulates the precision it is 8–25× slower, and is refused.
Composes with every method: passes that others ask for are narrow too. A recipe that is narrow already is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from energybench import Batch, Method, TrainingRun, Work
from energybench.algorithms.retraced import Lines, PlainTwin, remade_model
from energybench.flops.autocast import NARROW


@dataclass
class AMP(Method):
    """precision: "bf16": the range of fp32 with 8 bits of mantissa | "fp16": 11 bits of mantissa, and a scaled loss

    The estimate's bytes are those of the ledger in this precision. Left out are those of layers that other methods add.
    """

    trains_less: ClassVar[bool | None] = False

    precision: Literal["bf16", "fp16"] = "bf16"

    def __post_init__(self) -> None:
        if self.precision not in NARROW:
            raise ValueError(f"precision is {' or '.join(NARROW)}, not '{self.precision}'")
        self.trains_in = self.precision
        self._twin: PlainTwin | None = None

    def incompatible_recipe(self, train: Mapping[str, Any]) -> str | None:
        precision = train.get("precision", "fp32")
        return None if precision == "fp32" else f"its precision is {precision} already"

    def incompatible_run(self, run: TrainingRun) -> str | None:
        self._twin = PlainTwin(run)
        kinds = {p.dtype for p in run.model.parameters() if p.is_floating_point()} - {torch.float32}
        if not kinds:
            return None
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        return f"autocast is for weights in float32, and this model has some in {named}"

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._run = run
        self._ledgers: tuple[Lines | None, Lines | None] | None = None

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        if self._twin is not None:
            self._twin.see(batch)
        before = run.tally.forwards
        inner(batch)
        if run.tally.forwards > before:  # each of them inside the autocast of the run's recipe
            self.acted = self.acted or run.recipe.precision == self.precision

    def estimate(self, work: Work) -> Work:
        """The same lines with the bytes that they move in this precision, and the casts: by two traces. FLOPs change
        where attention has another kernel for narrow operands."""
        if not self.acted or self._twin is None:
            return work
        if self._ledgers is None:
            self._ledgers = self._traced(self._twin, "fp32"), self._traced(self._twin, self.precision)
        plain, narrow = self._ledgers
        return work if plain is None or narrow is None else remade_model(work, plain, narrow)

    def _traced(self, twin: PlainTwin, precision: str) -> Lines | None:
        other: Any = copy.copy(self._run)
        other.recipe = self._run.recipe.in_precision(precision)
        return twin.lines(other)

    def diagnostics(self) -> dict[str, Any]:
        return {"precision": self.precision}
