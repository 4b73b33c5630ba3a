"""A plain step outside the window before each part of a trial that takes turns.

Behind another process's part the caches are another's and this one's threads asleep: the first step then took up to
twice its time, so that a short training could take no turns without paying for them. Every cell rehearses the same,
plain training's gradient on one batch, with a model and a task of its own; what that takes is in no window.
"""

from __future__ import annotations

import torch

from energybench.train.data import Data
from energybench.train.first_steps import of_first_batch
from energybench.train.run import Run
from energybench.trial.build import build
from energybench.trial.spec import REHEARSED_STEPS, TrialSpec
from energybench.workloads.tasks import task_named

OF_A_KIND = frozenset({"epoch", "step", "gradients"})  # hooks with which a task has steps of its own kind


class Rehearsal:
    """Called, it computes gradients that nobody uses. run: of plain training, for this alone."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._batch = of_first_batch(run, None, lambda batch: batch)

    def __call__(self) -> None:
        with torch.random.fork_rng(devices=[]):  # a model's dropout draws from the stream that the trial draws from
            for _ in range(REHEARSED_STEPS):
                self._run.gradients(self._batch)


def rehearsal(spec: TrialSpec, train: Data, device: torch.device) -> Rehearsal | None:
    """None on a card, whose steps the host does not wait for, and for a task that has steps of its own kind."""
    if device.type != "cpu" or task_named(spec.workload.task, spec.base).replaces & OF_A_KIND:
        return None
    return Rehearsal(build(spec.model_copy(update={"stack": (), "budget": None}), train, device))
