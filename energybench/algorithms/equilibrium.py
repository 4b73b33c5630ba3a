"""Neurons at equilibrium: how alike a neuron's outputs on fixed inputs are epoch by epoch, and how fast that moves.

    φ_e = ŷ_e · ŷ_{e−1}            ŷ: a neuron's outputs over the probe as one vector of length 1     (similarity)
    Δφ_e = φ_e − φ_{e−1}           φ₋₁ = 1
    v_e = Δφ_e − μ·v_{e−1}         v₋₁ = 0; a neuron with |v| ≤ ε is at equilibrium                  (velocity)

Bragagnolo, Tartaglione and Grangetto 2022, Eq. 1–5. Their code has v_e = Δφ_e − Δφ_{e−1} + μ·v_{e−1} with Δφ₋₁ = 0, and
for φ the mean over samples of each sample's own cosine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from energybench.algorithms.neurons import Neurons

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

RECURSIONS, SIMILARITIES = ("paper", "reference"), ("concat", "per_sample")
LEAST_PROBE = 32  # samples, where a share of the training data would be fewer


def similarity(previous: Tensor, current: Tensor, kind: str = "concat") -> Tensor:
    """φ of each neuron, (C,) in double precision; outputs are (samples, C) or (samples, C, positions).

    concat:     cosine of all outputs of the neuron as one vector
    per_sample: mean over samples of the cosine of that sample's outputs; with one position a sample it would be a sign,
                so there it is concat, as the authors' code has it

    Both vectors zero: 1. One of them zero: 0.
    """
    sums = _Sums(kind)
    sums.add(previous, current)
    return sums.similarity()


class Motion:
    """The recursion of the velocity, one epoch at a time."""

    def __init__(self, momentum: float, recursion: str = "paper") -> None:
        if recursion not in RECURSIONS:
            raise ValueError(f"recursion is one of {', '.join(RECURSIONS)}, not '{recursion}'")
        self.momentum, self.recursion = momentum, recursion
        self._phi: Tensor | float = 1.0
        self._change: Tensor | float = 0.0
        self._velocity: Tensor | float = 0.0

    def add(self, phi: Tensor) -> Tensor:
        """v after one more epoch."""
        change = phi - self._phi
        if self.recursion == "paper":
            velocity = change - self.momentum * self._velocity
        else:
            velocity = change - self._change + self.momentum * self._velocity
        self._phi, self._change, self._velocity = phi, change, velocity
        return velocity


class _Sums:
    """Similarities of outputs that come batch by batch."""

    def __init__(self, kind: str) -> None:
        if kind not in SIMILARITIES:
            raise ValueError(f"similarity is one of {', '.join(SIMILARITIES)}, not '{kind}'")
        self.kind = kind
        self._whole: list[Any] = [0.0, 0.0, 0.0]  # ⟨previous, current⟩, ‖previous‖², ‖current‖² of each neuron
        self._alone: Any = 0.0  # Σ over samples of their own cosines
        self._samples = 0

    def add(self, previous: Tensor, current: Tensor) -> None:
        previous, current = (t[:, :, None] if t.dim() == 2 else t for t in (previous, current))
        if current.dtype in (torch.bfloat16, torch.float16):
            previous, current = previous.float(), current.float()
        each = self.kind == "per_sample" and current.shape[2] > 1
        summed = (2,) if each else (0, 2)
        pairs = ((previous, current), (previous, previous), (current, current))
        sums = [(a * b).sum(summed, dtype=torch.float64) for a, b in pairs]
        if each:
            self._alone = self._alone + _cosine(*sums).sum(0)
            self._samples += len(current)
        else:
            self._whole = [total + part for total, part in zip(self._whole, sums, strict=True)]

    def similarity(self) -> Tensor:
        similarity: Tensor = self._alone / self._samples if self._samples else _cosine(*self._whole)
        return similarity


def _cosine(product: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """From ⟨a, b⟩, ‖a‖², ‖b‖²."""
    lengths = (one * other).sqrt()
    both_zero = ((one == 0) & (other == 0)).to(product.dtype)
    return torch.where(lengths > 0, product / lengths, both_zero)


class Probe:
    """Looks at every neuron's outputs on the probe, and remembers them for the next look.

    It runs forward passes in evaluation mode through `run.forward`, so that they are counted, move no statistic and
    draw nothing. What it remembers is every output of every layer: `memory_b`. A layer that is not called as a module,
    such as attention's fused projection, is not seen.
    """

    def __init__(self, neurons: Iterable[Neurons], kind: str) -> None:
        self.neurons, self.kind = {n.name: n for n in neurons}, kind
        self.observations = self.samples = self.batches = 0
        self.operations: dict[str, float] = {}  # of one sample's forward
        self._seen: dict[str, list[Tensor]] = {}

    @property
    def memory_b(self) -> int:
        return sum(y.numel() * y.element_size() for calls in self._seen.values() for y in calls)

    @torch.no_grad()
    def observe(self, run: TrainingRun, data: Data) -> dict[str, Tensor]:
        """φ by layer, of those that were called; nothing at the first look."""
        sums: dict[str, _Sums] = {}
        calls: dict[str, int] = {}
        totals: dict[str, float] = {}

        def hook_of(neurons: Neurons) -> Any:
            def hook(module: Any, inputs: Any, y: Tensor) -> None:
                name, current = neurons.name, neurons.outputs(y)
                before, number = self._seen.setdefault(name, []), calls.get(name, 0)
                calls[name], totals[name] = number + 1, totals.get(name, 0.0) + neurons.operations(y)
                if number < len(before):
                    sums.setdefault(name, _Sums(self.kind)).add(before[number], current)
                    before[number] = current
                else:
                    before.append(current)

            return hook

        hooks = [n.module.register_forward_hook(hook_of(n)) for n in self.neurons.values()]
        try:
            for batch in data.in_order():
                run.forward(batch, "eval", grad=False)
                self.batches += 1
        finally:
            for hook in hooks:
                hook.remove()
        self.observations, self.samples = self.observations + 1, self.samples + len(data)
        self.operations = {name: total / max(1, len(data)) for name, total in totals.items()}
        return {name: added.similarity() for name, added in sums.items()}
