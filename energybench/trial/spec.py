"""What a trial is handed, as one frozen model each: a training, its count, a command.

The runner writes one to IN.json and the trial's process reads it. The suite's own tables are fields of it, resolved, so
that a suite's value keeps its name and its type from the file to the loop. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from energybench.common.held_folder import FolderIdentity
from energybench.common.metrics import Metric
from energybench.common.sealed_files import write_text
from energybench.common.units import RESOLVED, Quantity
from energybench.flops.work import Line
from energybench.meter.sensors import MeterSelection
from energybench.records.record import Budget, Claim, Placement, Role
from energybench.suite.command_tables import CommandWorkloadTable, RunTable
from energybench.suite.tables import MeasureTable, WorkloadTable
from energybench.workloads.description import DataDescription, StartWeights

REHEARSED_STEPS = 2  # before each part: the first finds what is cold, and the second is as those of the part will be


class Spec(BaseModel):
    """A frozen model that crosses a process border as JSON. A key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), ser_json_inf_nan="constants")

    def write(self, path: Path) -> None:
        """Whole or not at all. Raises CannotWrite E620."""
        write_text(path, self.to_json())

    def to_json(self) -> str:
        """By `json`, which takes what pydantic's own writer refuses: paths that are no UTF-8, infinite parameters."""
        return json.dumps(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Raises OSError, or pydantic's ValidationError for what is none."""
        return cls.model_validate(json.loads(Path(path).read_text(encoding="utf-8")), context=RESOLVED)


class MethodSpec(Spec):
    """One method of a stack, with all that rebuilds it: the file that was found, and the parameters as written.

    origin:     "given", "./methods", "entry point" or "shipped"
    sha256:     of the file
    parameters: as the suite has them
    resolved:   all of them, defaults included
    """

    use: str
    name: str
    path: str
    origin: str
    class_name: str | None = None
    sha256: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    resolved: dict[str, Any] = Field(default_factory=dict)


class CellHeader(Spec):
    """Which cell it is, as its record says."""

    run_identity: str | None = None  # None: of no run
    workload: str
    method: str  # the variant's label; "baseline" and "twin" are labels too
    role: Role
    digest: str
    seed: int


class TrialHeader(CellHeader):
    """Which trial it is, as its record says."""

    trial: str  # the record's file stem
    of: str | None = None  # a control's method
    block: int
    invocation: int
    position: int  # in the block's random order
    started_at: str  # ISO 8601, UTC
    device: str = "cpu"  # or a GPU's UUID
    placement: Placement | None = None
    claim: Claim | None = None


class MeasureSpec(MeasureTable):
    """The suite's [measure], and what this machine's sensors are known to need.

    model:       parameters of the model that stands in where nothing measures
    tick_s:      seconds between two updates of the slowest card's counter
    below_c:     UUID → °C that the card cools down to before a trial
    cooldown_s:  the longest wait for that
    of_children: what is metered are processes that the trial will start
    """

    model_config = ConfigDict(protected_namespaces=())

    model: dict[str, Any] | None = None
    tick_s: float = 0.0
    below_c: dict[str, float] = Field(default_factory=dict)
    cooldown_s: float = 0.0
    of_children: bool = False

    def selection(self) -> MeterSelection:
        """Which meters a trial opens."""
        return MeterSelection(self.energy, self.gpus, self.meters, self.model, self.of_children)


class TrainingSpec(Spec):
    """A run of the loop: model, data, recipe, stack and seed, without anything that measures it.

    base:   the suite's folder, which paths of user files start from
    stack:  outermost first
    budget: of a control: its steps, in place of the recipe's epochs
    weights: that the model starts from, as they were when the suite was checked
    """

    base: Path
    workload: WorkloadTable
    data: DataDescription
    stack: tuple[MethodSpec, ...] = ()
    seed: int
    budget: Budget | None = None
    weights: StartWeights | None = None


class CountingSpec(TrainingSpec):
    """The same, once under the counter of FLOPs, unmetered.

    ledger:         of one plain training sample; empty where the model could not be traced
    balance_flop_b: FLOP per byte that this machine was timed at
    device:         as torch names it
    """

    mode: Literal["counting run"] = "counting run"
    header: CellHeader
    ledger: tuple[Line, ...] = ()
    balance_flop_b: float | None = None
    threads: int | None = None
    device: str


class TrialSpec(TrainingSpec):
    """The same, metered: one trial.

    device_name: "cpu", or the UUID of the card that trains
    trace:       file for what the meters sampled, in a folder called traces; None keeps none, nor the methods' tensors,
                 which go into a folder called state beside it
    siblings:    UUID → processes on the card that rest while this one runs
    """

    mode: Literal["trial"] = "trial"
    header: TrialHeader
    ledger: tuple[Line, ...] = ()
    balance_flop_b: float | None = None
    threads: int | None = None
    device: str
    device_name: str
    warmup: Quantity
    measure: MeasureSpec
    trace: Path | None = None
    siblings: dict[str, list[int]] = Field(default_factory=dict)


class CommandTrialSpec(Spec):
    """A trial that is a command.

    command: its words, with {seed} and the like as the suite has them; how: in which folder, environment, input
    metric:  under which its quality is kept; also: further ones, read where it is under their own names
    metrics: what is declared of them; range_declared: whether the suite itself says in which range it lies
    ranks:   that the command starts, as far as its words say
    limit_s: seconds after which it is ended
    windows: file into which the command's own windows report
    folder:  the run's, which the log stands in: no link below it is followed
    own:     a folder for what is this trial's alone; it is made, and whoever asked for the trial removes it
    not_copied: folders that no copy of the suite's folder needs
    """

    mode: Literal["command"] = "command"
    header: TrialHeader
    base: Path
    command: tuple[str, ...]
    workload: CommandWorkloadTable
    how: RunTable = RunTable()
    metric: str
    also: tuple[str, ...] = ()
    metrics: dict[str, Metric] = Field(default_factory=dict)
    range_declared: bool = False
    ranks: int | None = None
    measure: MeasureSpec
    threads: int | None = None
    device_name: str
    limit_s: float
    windows: Path
    own: Path | None = None
    not_copied: tuple[Path, ...] = ()
    trace: Path | None = None
    log: Path
    folder: FolderIdentity | None = None


class CalibrationSpec(Spec):
    """What `energybench doctor --calibrate` asks of its child.

    until_s:      when to end, by time.monotonic
    fewest_pairs: however long they take
    shortest_s:   of one training
    cache:        a folder for data
    meters:       of other packages, by name
    """

    until_s: float
    fewest_pairs: int
    shortest_s: float
    cache: Path
    meters: tuple[str, ...] = ()


def stack_of(entries: Iterable[Mapping[str, Any]]) -> tuple[MethodSpec, ...]:
    """A planned cell's stack, which its record keeps as plain tables."""
    return tuple(MethodSpec.model_validate(entry) for entry in entries)
