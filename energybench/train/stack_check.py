"""What can be said against a stack of methods before anything runs. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence

from energybench.common.errors import Problem
from energybench.train.method import Method, Task, overrides
from energybench.train.method_check import check_method

# What the default of each hook enters: the tree drawn above.
ENTERS = {
    "epoch": frozenset({"batches", "step"}),
    "step": frozenset({"gradients", "update"}),
    "batches": frozenset[str](),
    "gradients": frozenset[str](),
    "update": frozenset[str](),
}


def check_stack(methods: Sequence[Method], task: Task, where: str = "") -> list[Problem]:
    """What can be said against a stack (outermost first) before anything runs: of each method, then of their order."""
    problems = [problem for layer in [*methods, task] for problem in check_method(layer, where, task.provides)]
    if problems:  # what they declare cannot be relied on
        return problems
    for position, owner in enumerate(methods):
        for hook in sorted(owner.replaces):
            hidden = [layer for layer in [*methods[position + 1 :], task] if overrides(layer, hook)]
            if hidden:
                problems.append(_hidden(methods, task, owner, hook, hidden, where))
            lost = _unreachable(hook, owner)
            for layer in [layer for layer in [*methods, task] if layer is not owner]:
                for inside in sorted(v for v in lost if overrides(layer, v)):
                    problems.append(
                        Problem(
                            "E311",
                            f"'{owner.name}' replaces `{hook}` and never enters `{inside}`, "
                            f"so '{layer.name}' could not act there",
                            where,
                            _separately(owner, layer),
                        )
                    )
    problems += _unmet_needs(methods, task, where)
    return problems + _swapped_twice(methods, where)


def _unreachable(hook: str, owner: Method) -> set[str]:
    """Hooks nested in `hook` that nobody enters once `owner` replaces it."""
    entered, frontier = set(owner.enters), set(owner.enters)
    while frontier:
        frontier = {inner for v in frontier for inner in ENTERS[v]} - entered
        entered |= frontier
    nested, frontier = set(ENTERS[hook]), set(ENTERS[hook])
    while frontier:
        frontier = {inner for v in frontier for inner in ENTERS[v]} - nested
        nested |= frontier
    return nested - entered - set(owner.replaces)


def _hidden(
    methods: Sequence[Method], task: Task, owner: Method, hook: str, hidden: list[Method], where: str
) -> Problem:
    names = " and ".join(f"'{layer.name}'" for layer in hidden)
    message = f"'{owner.name}' replaces `{hook}`, so {names} inside it would never act"
    order = _working_order(methods, task)
    if order is None:
        return Problem("E310", message, where, f"no order works: {_separately(owner, hidden[-1])}")
    return Problem("E310", message, where, f"this order works: use = {json.dumps(order)}")


def _working_order(methods: Sequence[Method], task: Task) -> list[str] | None:
    """Names, outermost first, in an order in which no replaced hook hides a layer; None if there is none."""
    left, order = list(methods), list[str]()
    while left:
        for layer in left:
            inside = [other for other in [*left, task] if other is not layer]
            if not any(overrides(other, hook) for hook in layer.replaces for other in inside):
                break
        else:
            return None
        left = [other for other in left if other is not layer]
        order.append(layer.name)
    return order


def _separately(owner: Method, layer: Method) -> str:
    for method, task in ((owner, layer), (layer, owner)):
        if isinstance(task, Task):
            return f"'{method.name}' cannot train the task '{task.name}'"
    return f"run '{owner.name}' and '{layer.name}' as two methods"


def _unmet_needs(methods: Sequence[Method], task: Task, where: str) -> list[Problem]:
    problems = []
    for layer in methods:
        for need in sorted(layer.needs - task.provides):
            problems.append(Problem("E312", f"'{layer.name}' needs {need}, which the task does not provide", where))
    for layer in [*methods, task]:  # a task may act on a pass too: one in which a gradient turns round
        for owner in methods:
            if owner is layer or owner.runs is None:
                continue
            for need in sorted((layer.needs & {"forward", "backward"}) - owner.runs):
                problems.append(
                    Problem(
                        "E313",
                        f"'{layer.name}' acts on the {need} pass, but '{owner.name}' leaves only: "
                        f"{', '.join(sorted(owner.runs)) or 'none'}",
                        where,
                        _separately(layer, owner),
                    )
                )
    return problems


def _swapped_twice(methods: Sequence[Method], where: str) -> list[Problem]:
    problems = []
    for position, outer in enumerate(methods):
        for inner in methods[position + 1 :]:
            if both := sorted(outer.swaps & inner.swaps):
                without = [f"give '{m.name}' {m.swaps_unless}" for m in (outer, inner) if m.swaps_unless]
                message = f"'{outer.name}' and '{inner.name}' each put a layer of their own in place of every {both[0]}"
                problems.append(
                    Problem("E314", message, where, ", or ".join([*without[:1], _separately(outer, inner)]))
                )
    return problems
