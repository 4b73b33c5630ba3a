"""The schema of a run on disk: one JSON file per trial, written atomically, and one `run.json` that explains them.

    reports/<suite>/<run>/run.json               the suite as written and as resolved, the cells, the machine
    reports/<suite>/<run>/records/*.json         one Trial each
    reports/<suite>/<run>/witness/*.json         one CountingRun per cell
    reports/<suite>/<run>/report.md

SI units in the field names (_s _j _w _kg _flop _b, `_rel` for ratios); a missing figure is null, never 0.
Each of these files ends with a `seal`, a checksum of everything else in it, which is verified when it is read.
Imports no torch, so that records can be read on machines without it.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from energybench.common.limits import MOST_TRIALS
from energybench.common.metrics import Metric
from energybench.common.open_tables import DataFacts, Environment, Machine, Open, Resolved
from energybench.common.quantities import (
    Amount,
    Blocks,
    Byte,
    Count,
    Epochs,
    Figure,
    Flop,
    Part,
    Place,
    Point,
    Qualities,
    Seconds,
    Seed,
    Share,
    Text,
    Tunings,
    WindowSeconds,
)
from energybench.common.renamed import renamed
from energybench.common.sealed_files import with_seal, write_text
from energybench.meter.reading import Energy, Reading, RecordModel

SCHEMA = 4  # what is written
# What is read. 2 adds suspended_s, other_cpu_s and trackers to a reading; 3 adds what holds a trial against its
# counting run and its process: hashes of weights and samples, weights_moved, process, the price by samples forwarded;
# 4 adds run_identity to run.json and to each of its records, the metrics that were declared, targets from above, turns,
# the rests of a process, the seed of a run's order, the host and the job of a trial, and the blocks of a shard.
SCHEMAS = (1, 2, 3, 4)

FINISHED = "finished"  # the outcome of an invocation that left nothing missing
Status = Literal["ok", "failed", "diverged", "timeout", "out_of_memory", "invalid"]
Role = Literal["baseline", "twin", "method", "control"]
# Why a control is planned, which is run where its method's tally shows that it trained less: the suite asks for it; a
# method says before that it will train less; it may; it says that it will not, or overrides no hook by which it could.
Control = Literal["asked", "declared", "possible", "unlikely"]


class Warmup(RecordModel):
    """Steps before the metered window, billed to nobody."""

    steps: Count
    settled: bool | None = None  # whether the time of a step came to rest; null when a number of steps was asked for
    step_s: Seconds | None = None  # median of the last rounds


class Flag(RecordModel):
    """One reason to trust a number less; `verdict/flag_codes.py` holds the list of codes."""

    code: Text
    detail: str = ""


class Claim(RecordModel):
    """What the paper or author promises: a saving relative to plain training, of all of it or of its backward."""

    saving_rel: Share
    of: Literal["training", "backward"] = "training"
    source: str = ""


class Passes(RecordModel):
    """The loop's own tally. `keys` says what the steps did: {"plain": {"steps": 90, "samples": 11520}, ...}, and since
    schema 3 how many samples they forwarded: "forwarded"."""

    forwards: Count = 0
    backwards: Count = 0
    updates: Count = 0
    samples_forward: Count = 0
    epochs_trained: Epochs = 0
    keys: dict[str, dict[str, Count]] = Field(default_factory=dict)


class Layer(RecordModel):
    """What the stack's formulas save in one operator of one module, all phases together."""

    name: str  # "conv layer1.0.conv1"
    flop_saved_rel: Share | None = None
    bytes_saved_rel: Share | None = None
    intensity_flop_b: Amount | None = None  # FLOP per byte in plain training


class Estimate(RecordModel):
    """The ledger of plain training and what the stack's own formulas make of it, for the whole run.

    Bytes are those of kernels that read each operand once and write each result once: a lower bound.
    """

    plain_flop: Flop
    estimated_flop: Flop
    plain_by_phase: dict[str, Flop] = Field(default_factory=dict)
    estimated_by_phase: dict[str, Flop] = Field(default_factory=dict)
    plain_b: Byte | None = None
    estimated_b: Byte | None = None
    balance_flop_b: Amount | None = None  # FLOP/B that the machine was timed at: flops/balance.py
    memory_bound_rel: Part | None = None  # of plain training's time on that roofline, what waits for memory
    roofline_saved_rel: Share | None = None  # of that time, by the formulas' FLOPs and bytes
    layers: list[Layer] = Field(default_factory=list)  # those that save most FLOPs, most first


class Target(RecordModel):
    """When the target quality was first reached; null when it was not. One of at_least and at_most is set."""

    metric: Text
    at_least: Figure | None = None
    at_most: Figure | None = None
    epoch: Count | None = None
    steps: Count | None = None
    wall_s: WindowSeconds | None = None
    energy: list[Energy] = Field(default_factory=list)


class ProcessUse(RecordModel):
    """What a trial's guard saw of its process, from outside, from its start to its end: no clock of the trial's own."""

    wall_s: Seconds
    cpu_s: Seconds  # of the process and of every child of its that somebody waited for
    rested_s: Seconds = 0.0  # of wall_s: stopped, while siblings of its group had their turns


class Excess(RecordModel):
    """What the first step of a part costs more than its others, after another process had the caches."""

    parts: Count  # that were seen
    share_rel: Figure  # (first step − median of the part's others) / the part's seconds; the median over the parts


class Turns(RecordModel):
    """How a trial shared its block's time with others of its group: one at a time, part by part of its progress."""

    group: Place = 0  # of the block and workload; each has plain training of its own, and pairs are of one group
    cells: list[Text] = Field(default_factory=list)  # methods' labels, this trial's too, in the order of their set-up
    parts: Count | None = None  # that the planned steps were cut into; null: it ran alone, and `reason` says why
    reason: str | None = None
    after: dict[str, Excess] = Field(default_factory=dict)  # whose part came before → what that cost


class Placement(RecordModel):
    """Where a trial ran, beside its device: on which host, in which job of a cluster's engine."""

    host: Text  # a checksum that tells it from others and says nothing of it: common/hosts.py
    job: Text | None = None  # "slurm 4711_3", "ray 02000000"; null outside of any
    restarts: Count | None = None  # of the job, before this trial: it was requeued so often


class Budget(RecordModel):
    """What a method's own tally paid for, in steps of plain training: those of its matched control."""

    steps: Count  # whole steps
    planned_steps: Count  # of plain training
    paid_rel: Amount  # of plain training's work, as passes are paid by their samples: trial/budget.py


class Trial(RecordModel):
    """One cell in one block, metered."""

    schema_: Literal[1, 2, 3, 4] = Field(default=4, alias="schema")
    run_identity: str | None = None  # run.json's; null before schema 4, and of what no run measured
    trial: Text  # file stem: "b0-i0-cnn-digits.mine"
    workload: Text
    method: Text  # the variant's label; "baseline" and "twin" are labels too
    role: Role
    of: Text | None = None  # a control's method label
    block: Place
    seed: Seed
    invocation: Place
    position: Place  # place in the block's random order
    status: Status
    reason: str | None = None
    digest: str
    started_at: str  # ISO 8601, UTC
    device: Text = "cpu"  # "cpu" or a GPU's UUID; several in alphabetical order, joined by "+"
    placement: Placement | None = None  # null in records of before
    settings: Open = Field(default_factory=dict)
    environment: Environment = Field(default_factory=dict)

    epochs: Count | None = None
    steps: Count | None = None
    samples: Count | None = None  # size of the training set
    phases: dict[str, Reading] = Field(default_factory=dict)  # setup, build, idle_before, train, evaluate, finish, ...
    warmup: Warmup | None = None
    trace: str | None = None  # the power trace's file, from the run's folder
    data_wait_s: Seconds | None = None
    memory_device_b: Count | None = None
    memory_resident_b: Count | None = None
    passes: Passes | None = None
    quality: Qualities = Field(default_factory=dict)
    curve: list[Point] = Field(default_factory=list)  # epoch, loss, wall_s
    target: Target | None = None
    estimate: Estimate | None = None
    flop: dict[str, Flop] = Field(default_factory=dict)  # estimated, counted: by a command's own word
    claim: Claim | None = None
    budget: Budget | None = None  # of a method, and the same of its control, which trained it
    diagnostics: Open = Field(default_factory=dict)
    flags: list[Flag] = Field(default_factory=list)
    trained_sha256: str | None = None  # of every tensor of the model when the window was closed
    judged_sha256: str | None = None  # the same after the evaluation
    weights_sha256: str | None = None  # the same at the very end, when the methods have left a plain model behind
    weights_moved: Amount | None = None  # ‖end − start‖₂ over the plain model's tensors of real numbers
    samples_sha256: str | None = None  # of the samples that went forward in training, in order
    process: ProcessUse | None = None
    turns: Turns | None = None  # null where every trial runs alone
    world: Count | None = None  # ranks that trained it together, a device each; null: one process

    @property
    def group(self) -> int:
        """Which of its block's groups it belongs to; trials that ran one after the other are all of group 0."""
        return self.turns.group if self.turns else 0

    @property
    def made_on(self) -> str:
        """Its device, which only another block may change: the card, or the processor of one host."""
        return self.device if self.device != "cpu" or self.placement is None else f"cpu of {self.placement.host}"

    @property
    def train(self) -> Reading | None:
        return self.phases.get("train")

    @property
    def trained_less(self) -> bool:
        """Whether a method's tally paid for fewer steps than plain training's, so that it has a matched control."""
        return self.status == "ok" and self.budget is not None and self.budget.steps < self.budget.planned_steps


class Counted(RecordModel):
    """What the independent counter saw of the steps of one kind."""

    steps: Count
    samples: Count
    counted_steps: Count
    flop_per_sample: Flop
    flop_per_sample_sd: Amount = 0.0
    forwarded: Count | None = None  # samples that went forward in all of them
    flop_per_forwarded: Flop | None = None  # the price of such a step, where each of them forwards any


class ProfilingRun(RecordModel):
    """Where the time of a whole run goes, from timed steps of plain training and of the stack, in turns.

    Phases: forward, backward, update, data, own (what the methods do themselves) and loop. Each border between two
    waits for the device, so the sums are longer than a run that is left alone; their differences are what is meant.
    """

    steps: Count = 0
    plain_s: dict[str, WindowSeconds] = Field(default_factory=dict)
    method_s: dict[str, WindowSeconds] = Field(default_factory=dict)
    reason: str | None = None  # why there is none


class CountingRun(RecordModel):
    """One cell run once, unmetered, under the FLOP counter: block 0's seed."""

    schema_: Literal[1, 2, 3, 4] = Field(default=4, alias="schema")
    run_identity: str | None = None
    workload: Text
    method: Text
    role: Role
    seed: Seed
    digest: str
    status: Status
    reason: str | None = None
    counted_flop: Flop | None = None
    counted_error_flop: Amount = 0.0  # half width of a 95 % interval; 0 when every step was counted
    outside_steps_flop: Amount = 0.0  # counted in an epoch but outside any step: probes, rounds
    keys: dict[str, Counted] = Field(default_factory=dict)
    by_op: dict[str, Flop] = Field(default_factory=dict)
    uncounted_calls: dict[str, Count] = Field(default_factory=dict)  # operations that neither counts
    passes: Passes | None = None
    weights_sha256: str | None = None  # these three as of a trial
    weights_moved: Amount | None = None
    samples_sha256: str | None = None
    estimate: Estimate | None = None
    profiling_run: ProfilingRun | None = Field(default=None, alias="shadow")  # of a method's cell
    world: Count | None = None  # as of a trial; its counts are the sums over all ranks
    wall_s: Seconds | None = None


class Cell(RecordModel):
    """One workload × method variant, as planned."""

    workload: Text
    method: Text
    role: Role
    of: Text | None = None
    stack: list[Open] = Field(default_factory=list)  # [{use, parameters, source, sha256}], outermost first
    command: list[str] = Field(default_factory=list)  # what runs instead of our loop; {seed} as written
    claim: Claim | None = None
    tuned_trials: Tunings | None = None  # full trainings that choosing the method's parameters took
    epochs: list[Count] = Field(default_factory=list)  # what a control's method says to keep, block by block
    control: Control | None = None  # of a control; null in records of before, whose epochs were its budget
    digest: str = ""
    expected_s: Seconds | None = None
    plain_flop: Flop | None = None
    not_in_ledger: list[Text] = Field(default_factory=list)  # operators of plain training without a formula there
    skipped: str | None = None  # why this cell is not run
    card_settings: dict[Text, Amount] = Field(
        default_factory=dict
    )  # of the card, around its trials, as methods declare

    @property
    def name(self) -> str:
        return f"{self.workload}.{self.method}"


class Invocation(RecordModel):
    """One call of `energybench run` on this folder."""

    number: Place
    argv: list[str]
    started_at: str
    ended_at: str | None = None
    outcome: str | None = None
    host: Text | None = None  # by whose clock the times are; null in records of before


class Looks(RecordModel):
    """When verdicts may be looked at: numbers of blocks, rising, declared before the first block."""

    at: list[Blocks] = Field(min_length=1)  # the last is the most blocks there will be
    taken: list[Blocks] = Field(default_factory=list)  # looks that were taken, those of a --max-time too

    @model_validator(mode="after")
    def _rise(self) -> Looks:
        if any(after <= before for before, after in pairwise(self.at)):
            raise ValueError("looks do not rise")
        return self


@renamed(counted="verdict_blocks")
class RunFile(RecordModel):
    """Everything that explains the records beside it."""

    schema_: Literal[1, 2, 3, 4] = Field(default=4, alias="schema")
    suite: Text
    about: str = ""
    run: Text
    run_identity: str | None = None  # random, drawn when the run was made: each record has it too; since schema 4
    digest: str
    stamp: list[str] = Field(default_factory=list)  # "quick", "--set ...": on every page's title
    suite_path: str
    suite_text: str
    resolved: Resolved
    cells: list[Cell] = Field(default_factory=list)
    blocks: Blocks  # declared before the first: with `looks` the most there will be
    looks: Looks | None = None  # None: one look, when all blocks are there
    closed: Blocks | None = None  # blocks after which every comparison was decided, before the last look
    added: Place = 0  # blocks that were added to the finished run: exploratory, in no verdict
    shard: list[Place] | None = None  # the blocks that are run in this folder, of all; null where all of them are
    order_seed: Seed | None = None  # of the order of trials, drawn by each run; null before schema 4
    machine: Machine = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)  # name → path used
    data: DataFacts = Field(default_factory=dict)  # name → {source, sha256, train, test, ...}
    metrics: dict[Text, dict[Text, Metric]] = Field(default_factory=dict)  # workload → metric → what it was declared
    invocations: list[Invocation] = Field(default_factory=list)
    finished: bool = False

    @model_validator(mode="after")
    def _can_be_reported(self) -> RunFile:
        trials = len(self.cells) * (self.blocks + self.added)
        if trials > MOST_TRIALS:
            raise ValueError(f"{trials:,} trials are declared; at most {MOST_TRIALS:,} can be reported")
        if max(self.closed or 0, *(self.looks.at if self.looks else [0])) > self.blocks:
            raise ValueError(f"a look lies beyond the {self.blocks} blocks that are declared")
        return self

    @property
    def complete(self) -> bool:
        """Whether nothing is missing of what is run in this folder: of a shard, which is never `finished` by itself,
        since a run is when all of its blocks are there, those that it holds."""
        last = self.invocations[-1].outcome if self.invocations else None
        return self.finished or (self.shard is not None and last == FINISHED)

    @property
    def verdict_blocks(self) -> int:
        """Blocks that a verdict may use."""
        return self.blocks if self.closed is None else self.closed


def write_json(path: Path, model: BaseModel | dict[str, Any]) -> None:
    """Write atomically; a record with its seal. Raises CannotWrite E620."""
    write_text(path, json_of(model))


def json_of(model: BaseModel | dict[str, Any]) -> str:
    """The text of its file; a record with its seal."""
    return sealed_json(model)[0] if isinstance(model, BaseModel) else _json(model)


def sealed_json(model: BaseModel) -> tuple[str, bytes]:
    """The text of a record's file, and its seal."""
    payload = with_seal(model.model_dump(mode="json", by_alias=True))
    return _json(payload), bytes.fromhex(payload["seal"])


def _json(payload: dict[str, Any]) -> str:
    return json.dumps(payload, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
