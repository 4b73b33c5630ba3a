"""What the check of a suite is handed, and what it answers, as one frozen model each. Imports no torch."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from energybench.common.errors import Problem
from energybench.common.metrics import Metric
from energybench.flops.work import Line, Work
from energybench.records.record import Cell
from energybench.suite.command_tables import CommandMethodTable, CommandWorkloadTable, RunTable
from energybench.suite.suite import Suite
from energybench.suite.tables import WorkloadTable
from energybench.suite.toml_positions import Loc
from energybench.suite.variants import Variant
from energybench.train.passes import MeanEpoch
from energybench.trial.spec import Spec
from energybench.workloads.description import DataDescription, StartWeights

Purpose = Literal["run", "check", "count", "trace"]


class PairSpec(Spec):
    """A method beside a workload; `skipped` says why it is not run."""

    workload: str
    variant: str  # its label
    skipped: str | None = None


class PlanSpec(Spec):
    """A suite with everything in it resolved, and what a plan of it is for.

    purpose: "run" trains, so everything must be there; "check" looks only, and data that is known by its name may be
             missing; "count" is not metered, so sensors do not matter; "trace" does not train either
    base:    the suite's folder; cache: where data sets are decoded
    places:  where each key of the suite was written, for messages
    stamp:   what sets the run apart from the suite's file
    blocks:  the most there will be; looks: after how many of them; empty: one, when all are there
    added:   blocks beyond those, which change no digest
    device:  as torch names it; None: the first card, else the processor
    metered_elsewhere: no trial runs on this machine, whose sensors do not matter then
    """

    purpose: Purpose
    base: Path
    cache: Path
    suite: Suite
    variants: tuple[Variant, ...]
    pairs: tuple[PairSpec, ...]
    places: tuple[tuple[Loc, str], ...]
    stamp: tuple[str, ...] = ()
    blocks: int
    looks: tuple[int, ...] = ()
    added: int = 0
    device: str | None = None
    download: bool = True
    metered_elsewhere: bool = False

    @cached_property
    def _place(self) -> dict[Loc, str]:
        return dict(self.places)

    def where(self, *loc: str | int) -> str:
        """The place of a key, or of its nearest ancestor: as `Suite.where` says it."""
        return next((self._place[loc[:end]] for end in range(len(loc), -1, -1) if loc[:end] in self._place), "")

    @property
    def trainings(self) -> list[tuple[int, WorkloadTable]]:
        """(number in the suite, workload) of those that are trained in our loop."""
        numbered = enumerate(self.suite.workloads)
        return [(number, each) for number, each in numbered if isinstance(each, WorkloadTable)]

    @property
    def commands(self) -> list[tuple[int, CommandWorkloadTable]]:
        """(number in the suite, workload) of those that are commands."""
        numbered = enumerate(self.suite.workloads)
        return [(number, each) for number, each in numbered if isinstance(each, CommandWorkloadTable)]

    def pairs_of(self, workload: str, *, commands: bool) -> list[tuple[PairSpec, Variant]]:
        """What stands beside a workload: methods of the loop, or commands."""
        variants = {variant.label: variant for variant in self.variants if (variant.command is not None) == commands}
        pairs = [pair for pair in self.pairs if pair.workload == workload and pair.variant in variants]
        return [(pair, variants[pair.variant]) for pair in pairs]

    def how(self, workload: CommandWorkloadTable, variant: Variant | None) -> RunTable:
        """In which folder, environment and input a command runs: the workload's own, or a method's in its place; with
        options and swept values filled in."""
        method = None if variant is None else self.suite.methods[int(variant.loc[1])]
        how = method.over(workload) if isinstance(method, CommandMethodTable) else workload.how
        return how.filled({**workload.options, **(variant.values if variant else {})}, last=False)

    def declared(self) -> list[Any]:
        """What was declared before the first block and belongs to a run's digest."""
        settings = self.suite.digest_source()
        trials = self.suite.trials
        required = [settings["require"]] if settings["require"] else []
        return [self.blocks, self.looks, trials.seed, trials.twin, self.stamp, settings["accept"], *required]


class PlannedWorkload(Spec):
    """What is known of a workload that is trained, once it was built and traced.

    ledger:     of one plain training sample; empty where the model could not be traced
    not_in_ledger: operators that may hide products and of which it has no FLOPs
    parameters: how many numbers the model has
    steps:      of one epoch; samples: that one epoch uses, forward; of rounds that differ, the mean
    sizes:      (samples of a step, passes of that size in an epoch) where an epoch is no single pass over the data
    backward_rel: samples that go backward over those that go forward
    step_s:     seconds of a plain step, about; None where none was taken
    threads_s:  number of threads → seconds of a plain step, as often as it was timed
    weights:    that its model starts from; None: from the seed alone
    task:       its parameters, defaults included; empty where it has none
    """

    data: DataDescription
    ledger: tuple[Line, ...]
    not_in_ledger: tuple[str, ...] = ()
    balance_flop_b: float | None = None
    parameters: int
    steps: int
    epochs: int
    samples: int
    sizes: tuple[tuple[float, float], ...] = ()
    backward_rel: float = 1.0
    step_s: float | None = None
    threads_s: dict[int, tuple[float, ...]] = Field(default_factory=dict)
    weights: StartWeights | None = None
    task: dict[str, Any] = Field(default_factory=dict)

    def in_rounds(self, epoch: MeanEpoch) -> Self:
        """The same where an epoch is no single pass over the data."""
        samples = round(sum(size * times for size, times in epoch.sizes))
        known = {"sizes": epoch.sizes, "backward_rel": epoch.backward_rel, "samples": samples}
        return self.model_copy(update=known | {"steps": max(1, round(epoch.updates))})

    def work(self, workload: WorkloadTable) -> Work:
        """Of plain training."""
        batch, accumulate = workload.data.batch, workload.train.accumulate
        if self.sizes:
            return Work.of_rounds(self.ledger, self.epochs, self.sizes, self.backward_rel, batch, accumulate)
        return Work(self.ledger, self.epochs, self.samples, batch, accumulate)


class PlanResult(Spec):
    """The answer: every mistake, or everything that the trials need.

    device:      as torch names it; device_name: "cpu", or the UUID of the card that trains
    machine:     facts for the record
    workloads:   those that are trained, by name
    sources:     programs and files that commands name, and what installed packages offer → what they were
    metrics:     of each workload, what is declared of its metrics
    cards:       that are metered while a command runs: "used", "all" or UUIDs
    threads:     that trainings compute with; None: torch's own number
    """

    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    device: str
    device_name: str
    command_device: str = "cpu"
    workloads: dict[str, PlannedWorkload] = Field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    machine: dict[str, Any] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, dict[str, Metric]] = Field(default_factory=dict)
    cards: str | tuple[str, ...] = "used"
    threads: int | None = None
    digest: str
