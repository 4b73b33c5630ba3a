"""Matched controls as they can be planned: what methods declare of them, and which would be plain training itself.

What a control trains is known when its method has trained: what that one's own tally paid for (`trial/budget.py`). So
every method of the loop has a control in the plan, which is run in those blocks in which the method trained less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import torch

from energybench.common.errors import Problem
from energybench.common.hashing import digest, stable_seed
from energybench.records.record import Cell, Control
from energybench.runner.plan_spec import PlanSpec
from energybench.suite.tables import WorkloadTable
from energybench.suite.variants import Variant
from energybench.train.interface import TrainingRun
from energybench.train.method import HOOKS, Method, overrides


def planned_control(of: Cell, methods: Sequence[Method], asked: str, epochs: int, seeds: Sequence[int]) -> Cell:
    """The control of a method's cell. Its time is the method's: what the methods declare, else plain training's.

    Args:
        asked:  the suite's word: "auto" or "matched"
        epochs: of plain training
        seeds:  of all blocks
    """
    kept = declared_epochs(methods, epochs, seeds)
    why: Control = "possible" if may_train_less(methods, epochs, seeds) else "unlikely"
    if any(each < epochs for each in kept):
        why = "declared"
    if asked == "matched":
        why = "asked"
    return Cell(
        workload=of.workload,
        method=f"{of.method} matched",
        role="control",
        of=of.method,
        control=why,
        epochs=kept if why in ("declared", "asked") else [],
        digest=digest([of.digest, "control"]),
        expected_s=of.expected_s,
        plain_flop=of.plain_flop,
    )


def kept_share(methods: Sequence[Method], epochs: int, seeds: Sequence[int]) -> float:
    """Of plain training's epochs, as far as a stack declares it; over all blocks."""
    kept = declared_epochs(methods, epochs, seeds)
    return sum(kept) / (len(kept) * epochs) if kept else 1.0


def declared_epochs(methods: Sequence[Method], epochs: int, seeds: Sequence[int]) -> list[int]:
    """The epochs that a stack declares to keep, block by block; empty where no method declares any."""
    kept = []
    for seed in seeds:
        declared = [answer for answer in _answers(methods, epochs, seed) if answer is not None]
        if not declared:
            return []
        kept.append(max(1, min(declared)))
    return kept


def may_train_less(methods: Sequence[Method], epochs: int, seeds: Sequence[int]) -> bool:
    """Whether a stack may take fewer steps or samples than plain training, as far as it can be told before it runs."""
    if any(kept < epochs for kept in declared_epochs(methods, epochs, seeds)):
        return True
    answers = _answers(methods, epochs, seeds[0])
    return any(_may(method) for method, answer in zip(methods, answers, strict=True) if answer is None)


def _answers(methods: Sequence[Method], epochs: int, seed: int) -> list[int | None]:
    """What each method's `kept_epochs` says, which before there is a run may ask for its `epochs` and `rng` alone."""
    run = SimpleNamespace(epochs=epochs, rng=lambda *key: torch.Generator().manual_seed(stable_seed(seed, *key)))
    return [method.kept_epochs(cast(TrainingRun, run)) for method in methods]


def _may(method: Method) -> bool:
    """One that declares no epochs: by its own word, else by whether it overrides a hook by which it could."""
    if method.trains_less is not None:
        return method.trains_less
    return any(overrides(method, hook) for hook in HOOKS)


def useless_controls(
    spec: PlanSpec, methods: Mapping[str, Sequence[Method]], seeds: Sequence[int]
) -> Iterator[Problem]:
    """Controls that the suite asks for by name, and that would be plain training itself on every workload.

    methods: variant's label → its stack as it was built
    """
    for variant in spec.variants:
        stack = methods.get(variant.label)
        if variant.control != "matched" or not stack:
            continue
        beside = [workload.train.epochs for _, workload in spec.trainings if _stands_beside(spec, workload, variant)]
        if beside and not any(may_train_less(stack, epochs, seeds) for epochs in beside):
            message = f"a matched control of '{variant.label}' would be plain training itself"
            hint = 'take out control = "matched": whatever trains less has one by itself'
            where = spec.where(*variant.loc, "control")
            yield Problem("E324", f"{message}: it leaves out no step and no sample", where, hint)


def _stands_beside(spec: PlanSpec, workload: WorkloadTable, variant: Variant) -> bool:
    pairs = spec.pairs_of(workload.name, commands=False)
    return any(each.label == variant.label and not pair.skipped for pair, each in pairs)
