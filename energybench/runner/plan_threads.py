"""How many threads a suite's trainings compute with: what `threads.py` chooses from, and what is timed with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from energybench.common import processors
from energybench.flops.balance import balance
from energybench.runner import threads
from energybench.runner.plan_spec import PlannedWorkload, PlanSpec
from energybench.runner.threads import Choice

Workloads = dict[str, PlannedWorkload | None]  # None: something failed, and its problem is collected


def candidates(spec: PlanSpec, device: torch.device) -> tuple[int, ...]:
    """Numbers of threads among which is chosen; none where the suite names one, or a card trains."""
    wanted = spec.purpose in ("run", "check") and spec.suite.trials.threads == "auto" and device.type == "cpu"
    if not wanted:
        return ()
    ranks = spec.suite.trials.devices  # which share them evenly
    counts = tuple(count for count in threads.candidates(processors.usable()) if count % ranks == 0)
    return counts or (ranks,)


def chosen(
    spec: PlanSpec, device: torch.device, workloads: Mapping[str, PlannedWorkload | None]
) -> tuple[Choice | None, Workloads]:
    """The number for all of them, with which torch computes from now on, and what depends on it of each workload."""
    choice = threads.choice({name: known for name, known in workloads.items() if known}, candidates(spec, device))
    known = dict(workloads)
    if choice:
        torch.set_num_threads(choice.threads)
        known = {name: each and choice.timed(each) for name, each in workloads.items()}
    if spec.purpose == "run":
        for _, workload in spec.trainings:
            if each := known.get(workload.name):
                measured = balance(device, workload.train.precision)
                known[workload.name] = each.model_copy(update={"balance_flop_b": measured})
    return choice, known
