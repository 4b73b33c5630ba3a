"""The ledger of a changed model or of changed batches, traced anew, and what that makes of another ledger.

For methods that change what a layer is or is given, and with it operators that no rule of a line's own would find: how
many positions a convolution has at another size of the images, what gets a gradient once a layer no longer learns.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from energybench.common.errors import EnergybenchError
from energybench.flops.ledger import copy_on
from energybench.flops.work import FORWARD, Line, Work
from energybench.train.batch import Batch
from energybench.train.first_steps import shorter
from energybench.train.interface import TrainingRun
from energybench.train.traced_task import trace_batch, traced_run

META = torch.device("meta")
SAMPLES = 11  # an odd prime, so that what has no room for the batch can be told from what has
Lines = tuple[Line, ...]


def on_meta(batch: Batch) -> Batch:
    """The same sizes without the numbers."""

    def moved(leaf: Any) -> Any:
        return leaf.to(META) if isinstance(leaf, Tensor) else leaf

    return replace(
        batch,
        inputs=tree_map(moved, batch.inputs),
        targets=tree_map(moved, batch.targets),
        index=moved(batch.index),
        weights=moved(batch.weights),
        also={name: on_meta(other) for name, other in batch.also.items()},
    )


class PlainTwin:
    """A run's model as it is before any method changes it, and some samples of its first batch: sizes without numbers.

    To be made in `incompatible_run`, when no layer has been set up.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.model = copy_on(run.model, META)
        self._batch: Batch | None = None

    def see(self, batch: Batch) -> None:
        """Remember the first batch's sizes; called in every step, inside the task's epoch."""
        if self._batch is None:
            self._batch = on_meta(shorter(batch, SAMPLES) if len(batch) > SAMPLES else batch)

    def lines(
        self,
        run: TrainingRun,
        model: Callable[[nn.Module], None] = lambda model: None,
        batch: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> Lines | None:
        """The ledger of a changed copy of the model on changed batches; None where it cannot be traced.

        Args:
            model: changes the copy, in place
            batch: gives another batch of as many samples
        """
        if self._batch is None:
            return None
        other: Any = copy.copy(run)
        other.model = copy_on(self.model, META)
        model(other.model)
        try:
            return trace_batch(other, batch(self._batch), run.device).lines
        except EnergybenchError:
            return None


def failure(run: TrainingRun, model: nn.Module, batch: Batch) -> Exception | None:
    """What a forward pass of a model in training raises, on the device of the batch; nothing of the run is changed.

    Args:
        model: a copy of the run's
    """
    other = traced_run(run, model.train(), batch.index.device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run.task.forward(other, batch)
        except Exception as error:  # a model may refuse in its own way
            return error
    return None


def in_a_line(error: Exception) -> str:
    """An error as a part of a sentence."""
    first = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@dataclass(frozen=True)
class Variant:
    """What some of a run's steps computed in place of plain training's.

    samples: their share of the run's samples
    steps:   their share of its steps
    """

    samples: float
    steps: float
    lines: Lines


_Key = tuple[str, str, str]
_Part = tuple[str, str]  # a field of Line, and an operand
_FLOP = ("flop", "step_flop", "pair_flop")
_BYTES = ("sample_b", "step_b", "pair_b")
_PER_SAMPLE = ("flop", "sample_b")
_Table = dict[_Key, dict[_Part, float]]


def remade_model(work: Work, plain: Lines, changed: Lines) -> Work:
    """`remade` for another model, which passes in evaluation run, too."""
    variants = [Variant(1.0, 1.0, changed)]
    also = remade(replace(work, lines=work.plain), plain, variants)
    return replace(remade(work, plain, variants), plain=also.lines)


def remade(work: Work, plain: Lines, variants: Sequence[Variant], unchanged: str = "") -> Work:
    """A ledger in which every line is as much larger or smaller as it is from the plain trace to the variants' mean.

    Lines are found by module, operator and phase; those of a phase that no trace has, such as a look's, change as the
    forward does. What the variants have and the plain trace has not is added.

    Args:
        plain: of plain training
        variants: whose shares add up to one
        unchanged: a phase whose lines stay
    """
    before = _table([(1.0, 1.0, plain)])
    after = _table([(each.samples, each.steps, each.lines) for each in variants])
    phases = {phase for _, _, phase in before}

    def changed(line: Line) -> Line:
        if line.phase == unchanged:
            return line
        key = (line.module, line.op, line.phase if line.phase in phases else FORWARD)

        def scaled(part: _Part, value: float) -> float:
            old = before.get(key, {}).get(part, 0.0)
            return value * after.get(key, {}).get(part, 0.0) / old if old else value

        numbers: dict[str, Any] = {name: scaled((name, ""), getattr(line, name)) for name in _FLOP}
        for name in _BYTES:
            moved_b = getattr(line, name).items()
            numbers[name] = {operand: scaled((name, operand), moved) for operand, moved in moved_b}
        return replace(line, **numbers)

    added = [
        _line(key, {part: value for part, value in parts.items() if not before.get(key, {}).get(part)})
        for key, parts in after.items()
    ]
    return replace(work, lines=tuple(map(changed, work.lines))).add(*(line for line in added if _has_any(line)))


def _table(traces: Sequence[tuple[float, float, Lines]]) -> _Table:
    sums: _Table = defaultdict(lambda: defaultdict(float))
    for samples, steps, lines in traces:
        for line in lines:
            parts = sums[line.module, line.op, line.phase]
            for name in _FLOP:
                parts[name, ""] += getattr(line, name) * (samples if name in _PER_SAMPLE else steps)
            for name in _BYTES:
                for operand, moved in getattr(line, name).items():
                    parts[name, operand] += moved * (samples if name in _PER_SAMPLE else steps)
    return sums


def _line(key: _Key, parts: dict[_Part, float]) -> Line:
    module, op, phase = key
    flops: dict[str, Any] = {"flop": 0.0, **{name: value for (name, operand), value in parts.items() if not operand}}
    line = Line(phase, module, op, **flops)
    for (name, operand), value in parts.items():
        if operand and value:
            getattr(line, name)[operand] = value
    return line


def _has_any(line: Line) -> bool:
    return line.has_flop or any(getattr(line, name) for name in _BYTES)
