"""Evaluation: the task's word on some data, inside every layer's `eval_context`.

A trial asks with the task and the methods that it built itself, with the task's `evaluate` as it was before any method
ran, and opens the test set only when every context has been entered (`trial/judge.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from energybench.train.data import Data
from energybench.train.method import Method
from energybench.train.results import checked

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun
    from energybench.train.recipe import Recipe

Evaluate = Callable[[Any, Data], dict[str, float]]  # (run, data) → quality by name


class Evaluated(Protocol):
    """What is asked of a run that is evaluated."""

    recipe: Recipe
    device: torch.device

    def set_mode(self, mode: str) -> None: ...

    def prepared(self, data: Data) -> Data: ...


def evaluate(
    run: Evaluated,
    methods: Sequence[Method],
    judge: Evaluate,
    data: Callable[[], Data],
    entering: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Quality by name, without grad.

    Args:
        methods:  outermost first; each one's `eval_context` is entered, the outermost first
        judge:    the task's evaluate
        data:     opens what is evaluated on, when all contexts have been entered
        entering: gives a context that is held while they are entered, to watch them
    """
    # Contexts are left as they are entered, without grad: weights that were swapped in are swapped back.
    with torch.no_grad(), run.recipe.autocast(run.device), ExitStack() as stack:
        with ExitStack() as watching:
            if entering is not None:
                watching.enter_context(entering())
            for layer in methods:
                stack.enter_context(checked(layer.name, "eval_context", layer.eval_context(cast("TrainingRun", run))))
        run.set_mode("eval")
        return judge(run, run.prepared(data()))
