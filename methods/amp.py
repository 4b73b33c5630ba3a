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

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from energybench import Line, Method, TrainingRun, Work
from energybench.algorithms.traced_calls import SeenCall
from energybench.flops.autocast import NARROW

CAST = "cast"
Key = tuple[str, str, str, str]  # phase, module, op, operand


@dataclass
class AMP(Method):
    """precision: "bf16": the range of fp32 with 8 bits of mantissa | "fp16": 11 bits of mantissa, and a scaled loss

    The estimate's bytes are those of the ledger in this precision, as of the model's first call. Left out are tensors
    outside the model, such as the loss's own, and what other methods add.
    """

    trains_less: ClassVar[bool | None] = False

    precision: Literal["bf16", "fp16"] = "bf16"

    def __post_init__(self) -> None:
        if self.precision not in NARROW:
            raise ValueError(f"precision is {' or '.join(NARROW)}, not '{self.precision}'")
        self.trains_in = self.precision

    def incompatible_recipe(self, train: Mapping[str, Any]) -> str | None:
        precision = train.get("precision", "fp32")
        return None if precision == "fp32" else f"its precision is {precision} already"

    def incompatible_run(self, run: TrainingRun) -> str | None:
        kinds = {p.dtype for p in run.model.parameters() if p.is_floating_point()} - {torch.float32}
        if not kinds:
            return None
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        return f"autocast is for weights in float32, and this model has some in {named}"

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._run = run
        self._dtype = getattr(torch, NARROW[self.precision])
        self._call: SeenCall | None = None
        self._ledgers: tuple[tuple[Line, ...], tuple[Line, ...]] | None = None
        self._hook = run.model.register_forward_pre_hook(self._seen, with_kwargs=True)

    def _seen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model's first call in training says of what shapes it is."""
        if module.training:
            self._call = SeenCall(args, kwargs)
            self._hook.remove()

    def forward_context(self, run: TrainingRun, mode: str) -> AbstractContextManager[Any]:
        kind = run.device.type
        if not self.acted and torch.is_autocast_enabled(kind):
            self.acted = torch.get_autocast_dtype(kind) == self._dtype
        return nullcontext()

    def finish(self, run: TrainingRun) -> None:
        self._hook.remove()

    def estimate(self, work: Work) -> Work:
        """The same lines with the bytes that they move in this precision, and the casts."""
        if not self.acted or self._call is None:
            return work
        plain, narrow = self._traced(self._call)
        before, after = _bytes(plain, self._call.samples), _bytes(narrow, self._call.samples)
        flop_before, flop_after = _flop(plain), _flop(narrow)

        def ratio(line: Line) -> float:
            """Of FLOPs: 1, where attention has no other kernel for narrow operands."""
            key = line.phase, line.module, line.op
            return flop_after.get(key, 0.0) / flop_before[key] if flop_before.get(key) else 1.0

        def bytes_ratio(line: Line, operand: str) -> float:
            key = line.phase, line.module, line.op, operand
            if not before.get(key):
                return 0.5 if line.has_flop else 1.0  # of a layer that another method has put there, or of the loss
            return after.get(key, 0.0) / before[key]

        known = {(line.phase, line.module) for line in plain if line.op == CAST}
        casts = [line for line in narrow if line.op == CAST and (line.phase, line.module) not in known]
        return work.change(ratio, bytes_ratio).add(*casts)

    def _traced(self, call: SeenCall) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
        """In fp32 and in this precision."""
        if self._ledgers is None:
            model, device = self._run.model, self._run.device
            self._ledgers = call.lines(model, device), call.lines(model, device, self.precision)
        return self._ledgers

    def diagnostics(self) -> dict[str, Any]:
        return {"precision": self.precision}


def _bytes(lines: Iterable[Line], samples: int) -> dict[Key, float]:
    """In one call of so many samples."""
    found: dict[Key, float] = defaultdict(float)
    for line in lines:
        for moved, times in ((line.sample_b, samples), (line.step_b, 1), (line.pair_b, samples**2)):
            for operand, amount in moved.items():
                found[line.phase, line.module, line.op, operand] += amount * times
    return found


def _flop(lines: Iterable[Line]) -> dict[tuple[str, str, str], float]:
    found: dict[tuple[str, str, str], float] = defaultdict(float)
    for line in lines:
        found[line.phase, line.module, line.op] += line.flop + line.step_flop + line.pair_flop
    return found
