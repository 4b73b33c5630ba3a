"""Every reason a number may not be trusted, in one list.

Severity says what happens to the number:
    invalid   it is not printed and enters no comparison
    struck    it is printed struck through and gets no verdict
    marked    it is printed with a mark, and the sentence stands below the table

A flag is raised by the trial itself while it runs, or by a test of `flags.py` when the records are read; `raised`
says by which. A code that this list does not know (a newer record) is marked and never dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from energybench.meter.doubts import DOUBTS, Severity
from energybench.records.record import Flag

Scope = Literal["trial", "cell", "workload", "run"]


class Raised(Protocol):
    """A flag with its severity, as reports hold it."""

    @property
    def code(self) -> str: ...

    @property
    def severity(self) -> Severity: ...


@dataclass(frozen=True, slots=True)
class FlagKind:
    """One reason: what it is about, what it does to the number, and the sentence for it.

    before_3: what it did to a number in reports of records of before schema 3, which say what they said
    """

    code: str
    severity: Severity
    of: Scope
    raised: str  # "in the trial" or the test's name in flags.py
    sentence: str
    before_3: Severity | None = None
    said_before_4: str = ""  # where the sentence was another before schema 4

    def of_schema(self, schema: int) -> Severity:
        """What it does to a number of records of this schema."""
        return self.severity if schema >= 3 or self.before_3 is None else self.before_3

    def said_of(self, schema: int) -> str:
        """Its sentence for records of this schema."""
        return self.sentence if schema >= 4 else self.said_before_4 or self.sentence


IN_TRIAL = "in the trial"


def _of_a_window(code: str) -> FlagKind:
    """What the sensors of any window may raise: see meter/doubts.py."""
    doubt = next(doubt for doubt in DOUBTS if doubt.code == code)
    return FlagKind(code, doubt.severity, "trial", "check_trial", doubt.sentence)


REGISTRY: tuple[FlagKind, ...] = (
    FlagKind(
        "dead_layer",
        "invalid",
        "trial",
        IN_TRIAL,
        "A method's override was never entered: what ran was not the method.",
    ),
    FlagKind(
        "weights_changed",
        "invalid",
        "trial",
        IN_TRIAL,
        "The model was trained or changed while it was evaluated: what was judged is not what the window trained.",
    ),
    FlagKind(
        "patched",
        "invalid",
        "trial",
        IN_TRIAL,
        "A function that measures or judges was replaced while the trial ran, so that none of its figures counts.",
    ),
    FlagKind(
        "clock_differs",
        "invalid",
        "trial",
        "check_trial",
        "The trial's own clock does not account for the time that its process took by the clock of its guard.",
    ),
    _of_a_window("sensor_lost"),
    _of_a_window("implausible"),
    FlagKind("diverged", "invalid", "trial", "check_trial", "Training diverged: there is no trained model to compare."),
    FlagKind(
        "witness_differs",
        "struck",
        "cell",
        "check_cell",
        "The metered trial did not do the work that the counted run did.",
    ),
    FlagKind(
        "same_weights",
        "struck",
        "cell",
        "check_cell",
        "It ended with plain training's very weights, and fewer FLOPs were counted: the count is not of this training.",
    ),
    FlagKind(
        "outside_work",
        "struck",
        "cell",
        "check_outside",
        "More than plain training's was done outside the window, by more than the margin: work that no figure bills.",
    ),
    FlagKind(
        "aa_failed",
        "struck",
        "workload",
        "check_workload",
        "Plain training differs from itself: this machine was too unsteady to compare; run it quiet.",
    ),
    FlagKind(
        "devices_mixed",
        "struck",
        "workload",
        "check_workload",
        "Blocks of one folder ran on different devices, whose figures are never averaged: energybench report FOLDER.",
    ),
    FlagKind(
        "too_few_blocks",
        "marked",
        "cell",
        "check_cell",
        "Fewer than 3 blocks: an interval needs at least 3, so there is no verdict.",
    ),
    FlagKind("inert", "marked", "trial", IN_TRIAL, "The method never acted: nothing was skipped, dropped or changed."),
    FlagKind(
        "untrained",
        "marked",
        "trial",
        IN_TRIAL,
        "Parameters got a gradient and were never moved: they stood still at the full price of learning.",
    ),
    FlagKind(
        "updates_skipped",
        "marked",
        "trial",
        IN_TRIAL,
        "Over 5 % of the updates were left out, as a gradient overflowed in fp16: less was learned than was paid for.",
    ),
    FlagKind(
        "estimate_gap",
        "struck",
        "cell",
        "check_cell",
        "The method's own formula and the independent counter disagree by more than the suite allows.",
        before_3="marked",
    ),
    FlagKind(
        "uncounted_steps",
        "marked",
        "cell",
        "check_cell",
        "Some kinds of steps were never met by the counted run, so their FLOPs are not known.",
    ),
    FlagKind(
        "unpriced_work",
        "marked",
        "cell",
        "check_cell",
        "Operators that may hide matrix work have no price: what was counted is not the whole.",
    ),
    FlagKind(
        "ledger_differs",
        "marked",
        "workload",
        "check_workload",
        "On plain training the ledger and the independent counter differ by more than 0.1 %.",
    ),
    FlagKind(
        "data_wait",
        "marked",
        "trial",
        "check_trial",
        "More than 5 % of the time was spent waiting for data: the model was not what was measured.",
    ),
    _of_a_window("channels_contradict"),
    _of_a_window("channels_apart"),
    _of_a_window("suspended"),
    _of_a_window("mig"),
    _of_a_window("mps"),
    _of_a_window("foreign_process"),
    FlagKind(
        "left_behind",
        "struck",
        "trial",
        IN_TRIAL,
        "Processes of the command outlived it, and were ended: what they did after its end is in no figure.",
    ),
    FlagKind(
        "files_found",
        "struck",
        "trial",
        IN_TRIAL,
        "An earlier trial's files lay there for this one, which may have gone on from them: {scratch} or cwd = 'copy'.",
    ),
    FlagKind(
        "cliff",
        "struck",
        "workload",
        "check_cliff",
        "Later trials did less than half of the first ones' work: they may have gone on from what these had left.",
    ),
    FlagKind(
        "unlike",
        "struck",
        "cell",
        "check_pair",
        "The two sides did not run alike: their joules and seconds cannot be compared.",
    ),
    _of_a_window("window_short"),
    FlagKind(
        "sensor_error",
        "struck",
        "cell",
        "check_cell",
        "The sensor's own error budget is wider than the margin that the suite accepts: no verdict.",
    ),
    _of_a_window("throttled"),
    FlagKind(
        "temperature",
        "marked",
        "trial",
        "check_pair",
        "The card did not start as cool as it should: a hot card draws more for the same work.",
    ),
    _of_a_window("aliasing"),
    _of_a_window("reads_missed"),
    _of_a_window("harness_overhead"),
    FlagKind(
        "not_settled", "marked", "trial", "check_trial", "The time of a step had not settled when the warm-up ended."
    ),
    _of_a_window("host_contention"),
    _of_a_window("other_load"),
    _of_a_window("second_tracker"),
    FlagKind(
        "control_differs",
        "marked",
        "cell",
        "check_cell",
        "The control did not train what the method's tally paid for, so they are not at one budget.",
        said_before_4="The control did not train the epochs that the method kept, so they are not at one budget.",
    ),
    FlagKind(
        "quick",
        "marked",
        "run",
        "check_run",
        "A smoke test: small data, few epochs. It shows that everything works, not what a method saves.",
    ),
    FlagKind(
        "modelled_energy",
        "marked",
        "run",
        "check_run",
        "No energy sensor: energy is modelled from time and load, and is never a saving.",
    ),
)
KINDS: dict[str, FlagKind] = {kind.code: kind for kind in REGISTRY}


def kind(code: str) -> FlagKind:
    """The kind of a code; one unknown to this version is marked, so that it is seen."""
    return KINDS.get(code) or FlagKind(
        code, "marked", "trial", IN_TRIAL, f"Flagged '{code}' by another version of energybench."
    )


# Struck for what was metered or counted: what was trained, and how good it is, stands.
OF_COST_ALONE = frozenset({"aa_failed", "sensor_error", "estimate_gap", *(doubt.code for doubt in DOUBTS)})


def concerns_training(flag: Raised) -> bool:
    """Whether a flag leaves no verdict on quality either: what was trained may not be what the row says."""
    return flag.severity in ("struck", "invalid") and flag.code not in OF_COST_ALONE


def worst(flags: Iterable[Flag], schema: int = 3) -> Severity | None:
    """The gravest severity among the flags of records of this schema."""
    severities = {kind(flag.code).of_schema(schema) for flag in flags}
    return next((each for each in ("invalid", "struck", "marked") if each in severities), None)
