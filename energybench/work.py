"""The ledger of work: how many FLOPs each part of a training run costs, phase by phase.

One multiply-add is 2 FLOPs, everywhere. Only what an independent counter can also see is entered: convolutions and
matrix products of every kind. Work is immutable; a method's `estimate` returns a changed copy, so combinations
are function composition and no method needs to know another.

Phases: `forward`; `weight_gradient` (dW), `input_gradient` (dX); a method may add its own, such as `probe`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT = "forward", "weight_gradient", "input_gradient"
BACKWARD = frozenset({WEIGHT_GRADIENT, INPUT_GRADIENT})


@dataclass(frozen=True, slots=True)
class Line:
    """One operation of one module in one phase.

    flop:  FLOPs per sample
    shape: what formulas need, e.g. conv: {"in": 64, "out": 128, "kernel": 9, "groups": 1, "positions": 256}
    """

    phase: str
    module: str
    op: str
    flop: float
    shape: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Work:
    """What a run computes: `lines` per sample, over `epochs` × `samples` samples."""

    lines: tuple[Line, ...]
    epochs: float
    samples: float

    @property
    def flop(self) -> float:
        """FLOPs of the whole run."""
        return self.flop_per_sample() * self.epochs * self.samples

    def flop_per_sample(self, phases: frozenset[str] | None = None) -> float:
        return sum(line.flop for line in self.lines if phases is None or line.phase in phases)

    def by_phase(self) -> dict[str, float]:
        """FLOPs of the whole run, phase by phase."""
        totals: dict[str, float] = {}
        for line in self.lines:
            totals[line.phase] = totals.get(line.phase, 0.0) + line.flop * self.epochs * self.samples
        return totals

    def change(self, rule: Callable[[Line], float]) -> Work:
        """Each line's FLOPs multiplied by `rule(line)`."""
        return replace(self, lines=tuple(replace(line, flop=line.flop * rule(line)) for line in self.lines))

    def trained(self, epochs: float) -> Work:
        """The same work over another number of epochs."""
        return replace(self, epochs=epochs)

    def add(self, *lines: Line) -> Work:
        return replace(self, lines=(*self.lines, *lines))
