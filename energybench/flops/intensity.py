"""Whether a saved FLOP can be a saved second: FLOPs against bytes, layer by layer. Imports no torch.

A kernel takes at least the time of its FLOPs at the machine's peak, and at least the time of its bytes at the memory's
bandwidth (Williams et al. 2009, the roofline). Peak / bandwidth is the machine's balance in FLOP/B: a line whose
intensity is below it waits for memory, and there only a saved byte is a saved second.

The balance has to be measured on the machine, for the kernels' precision. Where nobody has, nothing here guesses one:
a group says its intensity, which is the balance from which on it waits for memory, and how many FLOPs and bytes it
saves; which of the two the clock will see stays open.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from energybench.flops.work import Line, Work


@dataclass(frozen=True, slots=True)
class Group:
    """Some lines before and after a method: FLOPs and bytes of the whole run."""

    name: str
    plain_flop: float
    estimated_flop: float
    plain_b: float
    estimated_b: float

    @property
    def flop_saved_rel(self) -> float | None:
        """0.8: 80 % fewer FLOPs. None where plain training has none; negative where the method adds some."""
        return _saved(self.plain_flop, self.estimated_flop)

    @property
    def bytes_saved_rel(self) -> float | None:
        return _saved(self.plain_b, self.estimated_b)

    @property
    def intensity(self) -> float:
        """FLOP/B in plain training: on a machine whose balance is larger these lines wait for memory."""
        return _ratio(self.plain_flop, self.plain_b)

    def bound(self, balance_flop_b: float) -> Literal["memory", "compute"]:
        """What plain training waits for here, on a machine of this balance in FLOP/B."""
        return "memory" if self.intensity < balance_flop_b else "compute"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a method saves in FLOPs, in bytes, and in time on a roofline.

    balance_flop_b:   the machine's, or None where it is not known; then the last two are None as well
    time_saved_rel:   of a training in which every line takes the longer of its two times: no promise, a ceiling on
                      what these lines can save while every kernel runs as well as before
    memory_bound_rel: share of plain training's roofline time in lines that wait for memory
    groups:           those that the method changes, most FLOPs saved first
    """

    flop_saved_rel: float | None
    bytes_saved_rel: float | None
    balance_flop_b: float | None
    time_saved_rel: float | None
    memory_bound_rel: float | None
    groups: tuple[Group, ...]


def layer(line: Line) -> str:
    """ "conv layer1.0.conv1": one group for all phases of a module's operator."""
    return f"{line.op} {line.module}".strip()


def groups(plain: Work, estimated: Work, batch: float, by: Callable[[Line], str] = layer) -> tuple[Group, ...]:
    """Every group of lines in either, in the order of plain training. `batch`: samples of one step."""
    before, after = plain.flop_by(by), estimated.flop_by(by)
    before_b, after_b = plain.moved_b_by(batch, by), estimated.moved_b_by(batch, by)
    names = dict.fromkeys([by(line) for work in (plain, estimated) for line in work.lines])
    return tuple(
        Group(name, before.get(name, 0.0), after.get(name, 0.0), before_b.get(name, 0.0), after_b.get(name, 0.0))
        for name in names
    )


def explain(
    plain: Work, estimated: Work, batch: float, balance_flop_b: float | None = None, by: Callable[[Line], str] = layer
) -> Explanation:
    """Plain training against what a method's formulas make of it.

    Args:
        plain:          the work of plain training.
        estimated:      the work of the method, as its `estimate` gives it.
        batch:          samples of one step.
        balance_flop_b: the machine's balance in FLOP/B, as `balance` measures it; None where it is not known.
        by:             line → the name of its group.

    Returns:
        Ratios of what is saved in FLOPs, bytes and roofline time, and the groups that the method changes.
    """
    changed = [
        group
        for group in groups(plain, estimated, batch, by)
        if (group.plain_flop, group.plain_b) != (group.estimated_flop, group.estimated_b)
    ]
    changed.sort(key=lambda group: (group.estimated_flop - group.plain_flop, group.estimated_b - group.plain_b))
    time_saved = waiting = None
    if balance_flop_b is not None:
        before = roofline_flop(plain, batch, balance_flop_b)
        time_saved = _saved(before, roofline_flop(estimated, batch, balance_flop_b))
        waits = [line for line in plain.lines if line.intensity(batch) < balance_flop_b]
        waiting = (
            min(1.0, sum(plain.line_b(line, batch) for line in waits) * balance_flop_b / before) if before else None
        )
    return Explanation(
        flop_saved_rel=_saved(plain.flop, estimated.flop),
        bytes_saved_rel=_saved(plain.moved_b(batch), estimated.moved_b(batch)),
        balance_flop_b=balance_flop_b,
        time_saved_rel=time_saved,
        memory_bound_rel=waiting,
        groups=tuple(changed),
    )


def roofline_flop(work: Work, batch: float, balance_flop_b: float) -> float:
    """The least time of a run, in the FLOPs that the machine could do meanwhile: each line its longer time."""
    return sum(max(work.line_flop(line), work.line_b(line, batch) * balance_flop_b) for line in work.lines)


def _saved(before: float, after: float) -> float | None:
    return 1 - after / before if before else None


def _ratio(flop: float, moved_b: float) -> float:
    return flop / moved_b if moved_b else math.inf
