"""The ledger of work: how many FLOPs each part of a training run costs, and how many bytes it moves, phase by phase.

One multiply-add is 2 FLOPs, everywhere. Only what an independent counter can also see has FLOPs: convolutions and
matrix products of every kind. Bytes are entered for everything that moves whole tensors, as a kernel moves them that
reads each operand once and writes each result once. No kernel moves less, so they are a lower bound, and what a
roofline divides by. Work is immutable; a method's `estimate` returns a changed copy, so combinations are function
composition and no method needs to know another.

Phases: `forward`; `weight_gradient` (dW), `input_gradient` (dX); a method may add others, such as `probe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT = "forward", "weight_gradient", "input_gradient"
BACKWARD = frozenset({WEIGHT_GRADIENT, INPUT_GRADIENT})


@dataclass(frozen=True, slots=True)
class Line:
    """One operation of one module in one phase.

    phase:    FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT, or a method's, such as "probe"
    module:   its name in `named_modules()`
    op:       "conv", "linear", "matmul", "attention", "recurrent"; without FLOPs "normalisation", "elementwise", ...
    flop:     FLOPs per sample
    shape:    what formulas need, e.g. conv: {"in": 64, "out": 128, "kernel": 9, "groups": 1, "positions": 256}
    sample_b: bytes moved per sample, operand by operand: {"x": 65536.0, "y": 131072.0}
    step_b:   bytes moved once per step, whatever its batch: parameters and their gradients: {"w": 294912.0}

    Operands are named as in the formulas: x, w, bias, y; a gradient is dx, dw, dbias, dy.
    """

    phase: str
    module: str
    op: str
    flop: float
    shape: dict[str, Any] = field(default_factory=dict, hash=False)
    sample_b: dict[str, float] = field(default_factory=dict, hash=False)
    step_b: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def activation_b(self) -> float:
        """Bytes per sample."""
        return sum(self.sample_b.values())

    @property
    def parameter_b(self) -> float:
        """Bytes per step."""
        return sum(self.step_b.values())

    def moved_b(self, batch: float) -> float:
        """Bytes of one step of `batch` samples. Accumulated micro-batches are steps of their own here."""
        return batch * self.activation_b + self.parameter_b

    def intensity(self, batch: float) -> float:
        """FLOP per byte in a step of `batch` samples; infinite where nothing is known to move."""
        moved_b = self.moved_b(batch)
        return batch * self.flop / moved_b if moved_b else math.inf


@dataclass(frozen=True, slots=True)
class Work:
    """What a run computes: `lines` per sample, over `epochs` × `samples` samples.

    lines:   FLOPs and bytes of one sample, operation by operation
    epochs:  how often the data are passed through; a fraction where a method leaves samples out
    samples: of one epoch
    """

    lines: tuple[Line, ...]
    epochs: float
    samples: float

    @property
    def flop(self) -> float:
        """FLOPs of the whole run."""
        return self.flop_per_sample() * self.epochs * self.samples

    def flop_per_sample(self, phases: frozenset[str] | None = None) -> float:
        """FLOPs of one sample in these phases; None: in all."""
        return sum(line.flop for line in self.lines if phases is None or line.phase in phases)

    def flop_by(self, key: Callable[[Line], str]) -> dict[str, float]:
        """FLOPs of the whole run, summed by `key(line)`; what has none is left out."""
        totals: dict[str, float] = {}
        for line in self.lines:
            if line.flop:
                totals[key(line)] = totals.get(key(line), 0.0) + line.flop * self.epochs * self.samples
        return totals

    def by_phase(self) -> dict[str, float]:
        """FLOPs of the whole run, phase by phase."""
        return self.flop_by(lambda line: line.phase)

    def steps(self, batch: float) -> float:
        """How many steps of `batch` samples the run takes; an epoch's last may be smaller."""
        return self.epochs * math.ceil(self.samples / batch)

    def line_b(self, line: Line, batch: float) -> float:
        """Bytes that one line moves in the whole run, in steps of `batch` samples."""
        return line.activation_b * self.epochs * self.samples + line.parameter_b * self.steps(batch)

    def moved_b(self, batch: float, phases: frozenset[str] | None = None) -> float:
        """Bytes of the whole run in steps of `batch` samples, in these phases; None: in all."""
        return sum(self.line_b(line, batch) for line in self.lines if phases is None or line.phase in phases)

    def moved_b_by(self, batch: float, key: Callable[[Line], str]) -> dict[str, float]:
        """Bytes of the whole run in steps of `batch` samples, summed by `key(line)`."""
        totals: dict[str, float] = {}
        for line in self.lines:
            totals[key(line)] = totals.get(key(line), 0.0) + self.line_b(line, batch)
        return totals

    def change(self, rule: Callable[[Line], float], bytes_rule: Callable[[Line, str], float] | None = None) -> Work:
        """The same work with every line's FLOPs and bytes multiplied by a ratio.

        Args:
            rule:       line → the ratio of its FLOPs, 1.0 for a line that stays.
            bytes_rule: line and operand → the ratio of that operand's bytes. None: bytes follow the FLOPs, which is
                        right for a method that runs an operation less often. One that makes the operation itself
                        smaller reads some operands whole all the same, so it gives a rule: a product with a tenth of
                        dY still reads all of x.

        Returns:
            A copy; a Work is never changed in place.
        """

        def changed(line: Line) -> Line:
            ratio = rule(line)
            bytes_ratio = bytes_rule or (lambda line, operand: ratio)
            return replace(
                line,
                flop=line.flop * ratio,
                sample_b={operand: moved * bytes_ratio(line, operand) for operand, moved in line.sample_b.items()},
                step_b={operand: moved * bytes_ratio(line, operand) for operand, moved in line.step_b.items()},
            )

        return replace(self, lines=tuple(changed(line) for line in self.lines))

    def trained(self, epochs: float) -> Work:
        """The same work over another number of epochs."""
        return replace(self, epochs=epochs)

    def add(self, *lines: Line) -> Work:
        """The same work and these lines, such as those of a method's probe."""
        return replace(self, lines=(*self.lines, *lines))
