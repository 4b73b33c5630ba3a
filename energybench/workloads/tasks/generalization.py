"""Domain generalization: learn classes from several domains, be judged on one that was never seen.

Targets are {"class": (B,), "domain": (B,)}, and facts.extra["domains"] says how many domains there are. They are mixed
in one training set, so that a batch has about as much of each as the set has, and methods that choose samples choose
among all of them.

The risk of a domain is the mean loss of its samples in the batch. `vrex` and `group_dro` learn from these risks, which
no sample has a share of: methods that weigh samples are refused for them (E312). Under `accumulate` the risks are those
of a micro-batch, as BatchNorm's statistics are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from energybench.common.errors import Problem, UsageError
from energybench.train.batch import Batch, Forward
from energybench.workloads.tasks.classification import Classification

if TYPE_CHECKING:
    from collections.abc import Callable

    from energybench.train.interface import TrainingRun

WHOLE = frozenset({"forward", "backward"})  # what a task provides whose samples have no loss of their own


NEEDS_WHOLE_BATCH = "its loss is one of the domains in a whole batch, of which a rank has a part"


class RiskMinimization(Classification):
    """ERM: the mean loss of all samples, whatever their domain; what the others are held against.

    inputs (B, ...), targets {"class": (B,), "domain": (B,)} or (B,); the model returns logits (B, classes).
    """

    name = "erm"

    def labels(self, batch: Batch) -> Tensor:
        labels: Tensor = batch.targets["class"] if isinstance(batch.targets, Mapping) else batch.targets
        return labels


@dataclass
class RiskExtrapolation(RiskMinimization):
    """V-REx (Krueger et al. 2021): the mean loss, and β times the variance of the domains' risks.

    inputs (B, ...), targets {"class": (B,), "domain": (B,)}; the model returns logits (B, classes).

    With β = 0 it is `erm`. The variance is that of the domains which the batch has.

    beta:         β
    anneal_steps: before so many steps it is 1, or β where that is less. Steps are those of the schedule, so that epochs
                  which are left out advance it
    """

    beta: Annotated[float, Field(ge=0)] = 3.0
    anneal_steps: Annotated[int, Field(ge=0)] = 500

    name = "vrex"
    provides: ClassVar[frozenset[str]] = WHOLE

    def incompatible_devices(self, devices: int) -> str | None:
        return NEEDS_WHOLE_BATCH

    def __post_init__(self) -> None:
        if self.beta < 0 or self.anneal_steps < 0:
            raise ValueError(f"beta and anneal_steps are 0 at least, not {self.beta} and {self.anneal_steps}")

    def setup(self, run: TrainingRun) -> None:
        self._domains = domains_of(run, self.name)

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        logits = self.logits(run.model(batch.inputs))
        each = self.losses(run, logits, batch)
        step = (run.epoch_number - 1) * run.steps_per_epoch + run.step_in_epoch
        weight = self.beta if step >= self.anneal_steps else min(1.0, self.beta)
        sums, counts = by_domain(each, domain_of(batch, self.name), self._domains)
        return Forward(each.mean() + weight * variance_of_risks(sums, counts), None, logits)


@dataclass
class GroupRobustness(RiskMinimization):
    """Group DRO (Sagawa et al. 2020, algorithm 1): Σ q·risk over the domains, whose weights q follow their risks.

    inputs (B, ...), targets {"class": (B,), "domain": (B,)}; the model returns logits (B, classes).

    At every step q of a domain is multiplied by exp(η·risk), and all are normalised, before the loss is taken. With
    η = 0 it is the mean of the domains' risks.

    eta: η
    """

    eta: Annotated[float, Field(ge=0)] = 0.01

    name = "group_dro"
    provides: ClassVar[frozenset[str]] = WHOLE

    def incompatible_devices(self, devices: int) -> str | None:
        return NEEDS_WHOLE_BATCH

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise ValueError(f"eta is 0 at least, not {self.eta}")

    def setup(self, run: TrainingRun) -> None:
        domains = domains_of(run, self.name)
        self._log_weights = torch.full((domains,), -math.log(domains), device=run.device)
        self._seen: list[tuple[Tensor, Tensor]] | None = None  # of the passes of the step that is taken
        self._names = str(run.data.facts.extra.get("domain_names", "")).split(", ")

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        """A pass outside of a step, such as a trace's, moves no weight; a step's passes move them once."""
        self._seen = []
        try:
            inner(batch)
            if self._seen:
                sums, counts = (torch.stack(parts).sum(0) for parts in zip(*self._seen, strict=True))
                self._log_weights = moved_weights(self._log_weights, risks_of(sums, counts), self.eta)
        finally:
            self._seen = None

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        logits = self.logits(run.model(batch.inputs))
        each = self.losses(run, logits, batch)
        sums, counts = by_domain(each, domain_of(batch, self.name), len(self._log_weights))
        if self._seen is not None:
            self._seen.append((sums.detach(), counts))
        risks = risks_of(sums, counts)
        weights = moved_weights(self._log_weights.to(risks), risks.detach(), self.eta)
        return Forward((weights.exp() * risks).sum(), None, logits)

    def diagnostics(self) -> dict[str, Any]:
        """The weights as they are in the end, by domain."""
        weights = self._log_weights.exp().tolist()
        names = self._names if len(self._names) == len(weights) else list(map(str, range(len(weights))))
        return {"domain_weights": dict(zip(names, weights, strict=True))}


def domains_of(run: TrainingRun, task: str) -> int:
    """How many there are. Raises UsageError E403 where the data do not say, or have one."""
    domains = run.data.facts.extra.get("domains")
    if not isinstance(domains, int) or domains < 2:
        has = "does not say which domain a sample is of" if domains is None else f"has {domains!r}"
        hint = 'targets {"class": (N,), "domain": (N,)} and "facts": {"extra": {"domains": 3}}; or use = "pacs"'
        raise UsageError(Problem("E403", f"'{task}' needs two domains or more, and the data set {has}", hint=hint))
    return domains


def domain_of(batch: Batch, task: str) -> Tensor:
    """The number of each sample's domain (B,). Raises UsageError E403 where there is none."""
    if not isinstance(batch.targets, Mapping) or "domain" not in batch.targets:
        hint = 'targets {"class": (N,), "domain": (N,)}'
        raise UsageError(Problem("E403", f"'{task}' needs the domain of each sample, and targets have none", hint=hint))
    domain: Tensor = batch.targets["domain"]
    return domain


def by_domain(each: Tensor, domain: Tensor, domains: int) -> tuple[Tensor, Tensor]:
    """The sum of losses (domains,) of each domain, and how many samples it has."""
    empty = each.new_zeros(domains)
    return empty.scatter_add(0, domain, each), empty.scatter_add(0, domain, torch.ones_like(each))


def risks_of(sums: Tensor, counts: Tensor) -> Tensor:
    """The mean loss of each domain; 0 where it has no sample."""
    return sums / counts.clamp(min=1)


def variance_of_risks(sums: Tensor, counts: Tensor) -> Tensor:
    """The mean squared distance () of the domains' risks from their mean, over those that have a sample."""
    risks, there = risks_of(sums, counts), (counts > 0).to(sums.dtype)
    mean = (risks * there).sum() / there.sum()
    return ((risks - mean).square() * there).sum() / there.sum()


def moved_weights(log_weights: Tensor, risks: Tensor, eta: float) -> Tensor:
    """The logarithm of q·exp(η·risk), normalised: one step of the exponentiated gradient. By logarithms, no weight ever
    becomes 0, from which it could not return. A domain without a sample has a risk of 0."""
    return (log_weights + eta * risks).log_softmax(0)
