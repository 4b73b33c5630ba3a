"""The analytic promise of a run that took place: plain training's ledger, and what the stack's formulas make of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from energybench.flops.intensity import explain
from energybench.flops.work import Line, Work
from energybench.records.record import Estimate, Layer
from energybench.train.method import HOOKS, Method, overrides
from energybench.train.passes import mean_epoch
from energybench.train.plain_epochs import every_epoch
from energybench.train.run import Run
from energybench.trial.spec import CountingSpec, TrialSpec

LAYERS = 3  # of an estimate, named in the record
PARTS = 32  # of a run at most, of which each has an estimate of its own where several methods change with the epochs


def works(ledger: tuple[Line, ...], run: Run) -> tuple[Work, Work]:
    """The ledger of plain training, and what the stack's formulas make of it."""
    plain, trained = plain_work(ledger, run), run.epochs_with_steps
    if len(trained) < 2 or sum(method.by_epoch for method in run.methods) < 2:
        # Rounds differ: the stack's formulas start from those in which it trained.
        return plain, _estimated(plain_work(ledger, run, trained).trained(run.epochs_of_work), run)
    # One method's mean over the run times another's is not the mean of what both do in the same epochs.
    size = math.ceil(len(trained) / PARTS)
    parts = [trained[first : first + size] for first in range(0, len(trained), size)]
    weight = run.epochs_of_work / len(trained)
    works = [plain_work(ledger, run, part).trained(len(part) * weight) for part in parts]
    whole = (replace(work, of_epochs=tuple(part)) for work, part in zip(works, parts, strict=True))
    return plain, Work.together([_estimated(work, run) for work in whole])


def _estimated(work: Work, run: Run) -> Work:
    """What changes the model or acts within steps comes first, then what chooses steps, then what chooses data: each is
    told what runs inside of it, wherever in the stack it stands. Of two that act alike the inner one comes first; what
    has batches and steps of its own pays for them in its steps."""

    def depth(method: Method) -> int:
        hooks = ("epoch", "step", "batches", "gradients", "update")
        return next((HOOKS.index(hook) for hook in hooks if overrides(method, hook)), len(HOOKS))

    places = sorted(range(len(run.methods)), key=lambda place: (depth(run.methods[place]), place))
    for place in reversed(places):
        work = run.methods[place].estimate(work)
    return work


def plain_work(ledger: tuple[Line, ...], run: Run, of: Sequence[int] = ()) -> Work:
    """Plain training, whose every epoch is as the mean of these; of none: of all."""
    recipe = run.recipe
    rounds = every_epoch(run, of or range(1, recipe.epochs + 1))
    if not rounds:
        # Where a batch has fewer samples than there are ranks, some sample stands on several.
        samples = sum(max(size, run.world) for size in run.data.sizes(recipe.batch))
        return Work(ledger, recipe.epochs, samples, recipe.batch, passes_per_step(run))
    mean = mean_epoch(rounds)
    return Work.of_rounds(ledger, recipe.epochs, mean.sizes, mean.backward_rel, recipe.batch, recipe.accumulate)


def passes_per_step(run: Run) -> int:
    """Into how many forward passes the samples of a whole batch go: micro-batches, on each rank."""
    return run.recipe.accumulate * run.world


def estimate(spec: TrialSpec | CountingSpec, run: Run) -> Estimate | None:
    """Both in figures, with the layers that save most; None where the model could not be traced."""
    if not spec.ledger:
        return None
    plain, work = works(spec.ledger, run)
    per_step = run.recipe.batch / passes_per_step(run)
    roofline = explain(plain, work, per_step, spec.balance_flop_b)
    layers = [
        Layer(
            name=group.name,
            flop_saved_rel=group.flop_saved_rel,
            bytes_saved_rel=group.bytes_saved_rel,
            intensity_flop_b=group.intensity if math.isfinite(group.intensity) else None,
        )
        for group in roofline.groups
        if group.estimated_flop < group.plain_flop
    ]
    return Estimate(
        plain_flop=plain.flop,
        estimated_flop=work.flop,
        plain_by_phase=plain.by_phase(),
        estimated_by_phase=work.by_phase(),
        plain_b=plain.moved_b(per_step),
        estimated_b=work.moved_b(per_step),
        balance_flop_b=roofline.balance_flop_b,
        memory_bound_rel=roofline.memory_bound_rel,
        roofline_saved_rel=roofline.time_saved_rel,
        layers=layers[:LAYERS],
    )
