"""What a trained model is judged by, kept out of reach of the methods that trained it.

Made before any method is loaded. It holds the task's `evaluate` as it was then, opens the test set only when a model is
evaluated, and says what a trial did that no evaluation may: train while it is evaluated, or replace what judges.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from energybench.common.quantities import is_figure
from energybench.records.record import Flag
from energybench.train import evaluation
from energybench.train.data import Data
from energybench.train.fingerprint import raw_fingerprint
from energybench.train.method import Task
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.trial.integrity import Picture


class Judge:
    """One trial's.

    Args:
        task:      of the run that is judged
        recipe:    likewise
        open_test: opens the test set anew
    """

    def __init__(self, task: Task, recipe: Recipe, open_test: Callable[[], Data]) -> None:
        self._task, self._open_test = task, open_test
        self._evaluate, self._evaluation = type(task).evaluate, evaluation.evaluate
        self._fingerprint, self._is_figure = raw_fingerprint, is_figure
        self._picture = Picture(task, recipe)
        self._trained: list[str] = []  # what was done in an evaluation and may not be

    def watch(self, run: Run) -> None:
        """Before the window: the run and its layers as they were set up."""
        self._model, self._methods = run.model, list(run.methods)

    def weights(self) -> str:
        """Of the model as it stands now."""
        return self._fingerprint(self._model)

    def quality(self, run: Run) -> dict[str, float]:
        """By name, what a record can hold.

        Where training goes on behind it, it does so as if nobody had looked: torch's own streams are set back, and
        tensors of the model that are others now are noted for `flags`.
        """
        before, weights = _trained(run), self.weights() if run.continues else ""
        cards = [run.device] if run.device.type == "cuda" else []
        with torch.random.fork_rng(cards), self._watched_optimizers(), run.aside():
            quality = self._evaluation(run, self._methods, self._ask, self._open_test, self._watched_graphs)
        if weights and weights != self.weights():
            self._trained.append(f"the model's tensors are others after the evaluation of epoch {run.epoch_number}")
        if _trained(run) != before:
            self._trained.append("backward passes, steps or updates of the run in an evaluation")
        return {key: value for key, value in quality.items() if self._is_figure(value, key)}

    def _ask(self, run: Run, data: Data) -> dict[str, float]:
        return self._evaluate(self._task, run, data)

    @contextlib.contextmanager
    def _watched_optimizers(self) -> Iterator[None]:
        def stepped(optimizer: object, *_: object) -> None:
            self._trained.append(f"a step of {type(optimizer).__name__} in an evaluation")

        hook = register_optimizer_step_post_hook(stepped)
        try:
            yield
        finally:
            hook.remove()

    @contextlib.contextmanager
    def _watched_graphs(self) -> Iterator[None]:
        """While contexts are entered: what keeps tensors for a backward pass is about to train."""

        def kept(tensor: Tensor) -> Tensor:
            self._trained.append("a graph for a backward pass was kept in `eval_context`")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            yield

    def flags(self, run: Run, trained: str, judged: str) -> Iterator[Flag]:
        """What makes the evaluation worth nothing.

        Args:
            trained, judged: `weights` when the window was closed, and after the evaluation
        """
        reasons = ["the model's tensors are others after the evaluation"] if trained != judged else []
        if run.model is not self._model:
            reasons.append("run.model is another model")
        if reasons := [*reasons, *dict.fromkeys(self._trained)]:
            yield Flag(code="weights_changed", detail="; ".join(reasons))
        replaced = list(self._picture.replaced())
        replaced += ["run.task"] if run.task is not self._task else []
        if replaced:
            more = f" and {len(replaced) - 5} more" if len(replaced) > 5 else ""
            yield Flag(code="patched", detail=", ".join(replaced[:5]) + more)


def _trained(run: Run) -> tuple[int, int, int]:
    """What a run does to train; a task may evaluate by its forward passes."""
    return run.tally.backwards, run.tally.updates, run.tally.steps
