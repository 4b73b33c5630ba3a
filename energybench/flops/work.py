"""The ledger of work: how many FLOPs each part of a training run costs, and how many bytes it moves, phase by phase.

One multiply-add is 2 FLOPs, everywhere. Only what an independent counter can also see has FLOPs: convolutions and
matrix products of every kind. Bytes are entered for everything that moves whole tensors, as a kernel moves them that
reads each operand once and writes each result once. No kernel moves less, so they are a lower bound, and what a
roofline divides by. Work is immutable; a method's `estimate` returns a changed copy, so combinations are function
composition and no method needs to know another.

Work grows with the batch in three ways, and a line holds each: FLOPs of every sample, FLOPs of every step however many
samples it has (weights made from weights: a merged LoRA, a hypernetwork, tables of positions), and FLOPs of every pair
of a step's samples (similarities across the batch).

Phases: `forward`; `weight_gradient` (dW), `input_gradient` (dX); `recompute`, the forward that checkpointing runs again
in the backward; a method may add others. Of those three are forward passes of the model in evaluation, which choose
what is trained on: `presample` and `look` within a step, of the batch as layers further out have left it, and `probe`
outside of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT = "forward", "weight_gradient", "input_gradient"
RECOMPUTE = "recompute"
PRESAMPLE, LOOK, PROBE = "presample", "look", "probe"
IN_EVALUATION = frozenset({PRESAMPLE, LOOK, PROBE})
BACKWARD = frozenset({WEIGHT_GRADIENT, INPUT_GRADIENT})
_AFTER_LOSS = BACKWARD | {RECOMPUTE}


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
    step_flop: FLOPs once per step, whatever its batch
    pair_flop: FLOPs per pair of samples in a step, of which a batch of B has B²
    pair_b:    bytes moved per pair of samples

    Operands are named as in the formulas: x, w, bias, y; a gradient is dx, dw, dbias, dy.
    """

    phase: str
    module: str
    op: str
    flop: float
    shape: dict[str, Any] = field(default_factory=dict, hash=False)
    sample_b: dict[str, float] = field(default_factory=dict, hash=False)
    step_b: dict[str, float] = field(default_factory=dict, hash=False)
    step_flop: float = 0.0
    pair_flop: float = 0.0
    pair_b: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def activation_b(self) -> float:
        """Bytes per sample."""
        return sum(self.sample_b.values())

    @property
    def parameter_b(self) -> float:
        """Bytes per step."""
        return sum(self.step_b.values())

    @property
    def has_flop(self) -> bool:
        return bool(self.flop or self.step_flop or self.pair_flop)

    def flop_in(self, batch: float) -> float:
        """FLOPs of one step of `batch` samples."""
        return self.step_flop + batch * self.flop + batch**2 * self.pair_flop

    def moved_b(self, batch: float) -> float:
        """Bytes of one step of `batch` samples. Accumulated micro-batches are steps of their own here."""
        return batch * self.activation_b + self.parameter_b + batch**2 * sum(self.pair_b.values())

    def intensity(self, batch: float) -> float:
        """FLOP per byte in a step of `batch` samples; infinite where nothing is known to move."""
        moved_b = self.moved_b(batch)
        return self.flop_in(batch) / moved_b if moved_b else math.inf

    def plus(self, other: Line) -> Line:
        """The work of both, which are of one operation."""

        def added(one: dict[str, float], more: dict[str, float]) -> dict[str, float]:
            return {operand: one.get(operand, 0.0) + more.get(operand, 0.0) for operand in {**one, **more}}

        return replace(
            self,
            flop=self.flop + other.flop,
            sample_b=added(self.sample_b, other.sample_b),
            step_b=added(self.step_b, other.step_b),
            step_flop=self.step_flop + other.step_flop,
            pair_flop=self.pair_flop + other.pair_flop,
            pair_b=added(self.pair_b, other.pair_b),
        )

    def times(self, ratio: float, steps: float | None = None, pairs: float | None = None) -> Line:
        """The same line for so many times the samples, in so many times the steps, with so many times their pairs.

        steps: None: in steps of the same size
        pairs: None: as steps have that are all of one size, ratio² / steps
        """
        steps = ratio if steps is None else steps
        pairs = (ratio**2 / steps if steps else 0.0) if pairs is None else pairs
        return replace(
            self,
            flop=self.flop * ratio,
            sample_b={operand: moved * ratio for operand, moved in self.sample_b.items()},
            step_b={operand: moved * steps for operand, moved in self.step_b.items()},
            step_flop=self.step_flop * steps,
            pair_flop=self.pair_flop * pairs,
            pair_b={operand: moved * pairs for operand, moved in self.pair_b.items()},
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What a run computes: `lines`, in steps of `batch` samples, over `epochs` × `samples` samples.

    lines:      FLOPs and bytes, operation by operation
    epochs:     how often the data are passed through; a fraction where a method leaves samples out
    samples:    of one epoch
    batch:      of a step; an epoch's last step has what is left. None: an epoch is one step
    accumulate: micro-batches that a step is cut into, each of which reads the parameters again
    sizes:      (samples of a step, passes of that size in an epoch), where an epoch is no single pass over the data;
                empty: as `samples` and `batch` have it
    plain:      the lines that it began with, as plain training has them: what a pass in evaluation costs, whatever
                methods have made of those that train. One that changes the model changes these too
    of_epochs:  the numbers of the epochs whose work it is; None: the run's
    """

    lines: tuple[Line, ...]
    epochs: float
    samples: float
    batch: float | None = None
    accumulate: int = 1
    sizes: tuple[tuple[float, float], ...] = ()
    plain: tuple[Line, ...] = field(default=(), repr=False, compare=False)
    of_epochs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.plain:
            object.__setattr__(self, "plain", self.lines)

    @classmethod
    def of_rounds(
        cls,
        lines: tuple[Line, ...],
        epochs: float,
        sizes: tuple[tuple[float, float], ...],
        backward_rel: float,
        batch: float,
        accumulate: int,
    ) -> Work:
        """Of epochs that are no single pass over the data. backward_rel: samples that go backward over those that go
        forward."""
        scaled = tuple(line.times(backward_rel) if line.phase in _AFTER_LOSS else line for line in lines)
        samples = math.fsum(size * times for size, times in sizes)
        return cls(lines if backward_rel == 1 else scaled, epochs, samples, batch, accumulate, sizes)

    @classmethod
    def together(cls, parts: Sequence[Work]) -> Work:
        """The work of all of these, whose epochs may differ in lines, samples and steps, as that of epochs like the
        first part's: every line is as much larger or smaller."""
        first = parts[0]
        epochs = math.fsum(part.epochs for part in parts)
        samples, (passes, pairs) = first.samples, first.passes()
        lines: dict[tuple[str, str, str], Line] = {}
        for part in parts:
            has_passes, has_pairs = part.passes()
            ratios = ((part.samples, samples), (has_passes, passes), (has_pairs, pairs))
            shares = [part.epochs * one / (epochs * all_) if epochs and all_ else 0.0 for one, all_ in ratios]
            for line in part.lines:
                key, scaled = (line.phase, line.module, line.op), line.times(*shares)
                lines[key] = lines[key].plus(scaled) if key in lines else scaled
        return replace(first, lines=tuple(lines.values()), epochs=epochs, of_epochs=None)

    @property
    def flop(self) -> float:
        """FLOPs of the whole run."""
        return sum(map(self.line_flop, self.lines))

    def flop_per_sample(self, phases: frozenset[str] | None = None) -> float:
        """FLOPs of the run over its samples, in these phases; None: in all."""
        trained = self.epochs * self.samples
        lines = [line for line in self.lines if phases is None or line.phase in phases]
        if not trained:
            return sum(line.flop for line in lines)
        return sum(map(self.line_flop, lines)) / trained

    def line_flop(self, line: Line) -> float:
        """FLOPs of one line in the whole run."""
        if not (line.step_flop or line.pair_flop):
            return line.flop * self.epochs * self.samples
        passes, pairs = self.passes()
        return self.epochs * (line.flop * self.samples + line.step_flop * passes + line.pair_flop * pairs)

    def passes(self) -> tuple[float, float]:
        """Forward passes of one epoch, and the sum of the squares of their numbers of samples."""
        whole = self.batch or self.samples
        full, rest = divmod(self.samples, whole) if whole else (0, 0)
        passes = pairs = 0.0
        for size, times in self.sizes or ((whole, full), (rest, 1)):
            if size and times:
                pieces = micro_batches(size, self.accumulate)
                passes += times * len(pieces)
                pairs += times * sum(piece**2 for piece in pieces)
        return passes, pairs

    def flop_by(self, key: Callable[[Line], str]) -> dict[str, float]:
        """FLOPs of the whole run, summed by `key(line)`; what has none is left out."""
        totals: dict[str, float] = {}
        for line in self.lines:
            if line.has_flop:
                totals[key(line)] = totals.get(key(line), 0.0) + self.line_flop(line)
        return totals

    def by_phase(self) -> dict[str, float]:
        """FLOPs of the whole run, phase by phase."""
        return self.flop_by(lambda line: line.phase)

    def steps(self, batch: float) -> float:
        """How many steps of `batch` samples the run takes; an epoch's last may be smaller, as a step of `sizes` may."""
        if self.sizes:
            return self.epochs * math.fsum(times * math.ceil(size / batch) for size, times in self.sizes)
        return self.epochs * math.ceil(self.samples / batch)

    def line_b(self, line: Line, batch: float) -> float:
        """Bytes that one line moves in the whole run, in steps of `batch` samples."""
        moved_b = line.activation_b * self.epochs * self.samples + line.parameter_b * self.steps(batch)
        if line.pair_b:
            moved_b += self.epochs * sum(line.pair_b.values()) * replace(self, batch=batch, accumulate=1).passes()[1]
        return moved_b

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
            rule:       line → the ratio of its FLOPs, per sample, step and pair; 1.0 for a line that stays.
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

            def scaled(moved_b: dict[str, float]) -> dict[str, float]:
                return {operand: moved * bytes_ratio(line, operand) for operand, moved in moved_b.items()}

            return replace(
                line.times(ratio),
                sample_b=scaled(line.sample_b),
                step_b=scaled(line.step_b),
                pair_b=scaled(line.pair_b),
            )

        return replace(self, lines=tuple(changed(line) for line in self.lines))

    def trained(self, epochs: float) -> Work:
        """The same work over another number of epochs."""
        return replace(self, epochs=epochs)

    def add(self, *lines: Line) -> Work:
        """The same work and these lines, such as those of a method's probe."""
        return replace(self, lines=(*self.lines, *lines))


def micro_batches(size: float, accumulate: int) -> list[float]:
    """The sizes of a step's micro-batches, as training cuts them: nearly equal, fewer where one would be empty."""
    if accumulate == 1:
        return [size]
    count = max(1, min(accumulate, int(size)))
    return [(number + 1) * size // count - number * size // count for number in range(count)]
