"""Each trial's flags and whether a comparison may use it, determined once and handed down.

A report asks for them in many places: pairs, flags of rows, the list of checks, what failed. `summary.py` examines
every trial once; whoever has a single trial asks `examine`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from energybench.records.record import Flag, Trial
from energybench.verdict import flag_codes, flags


@dataclass(frozen=True, slots=True)
class ExaminedTrial:
    """A trial, its flags, and whether comparisons may use it."""

    trial: Trial
    flags: tuple[Flag, ...]
    reason_unusable: str | None  # None where comparisons may use it


def examine(trial: Trial) -> ExaminedTrial:
    """A trial's flags, and why it enters no comparison; never because of its value."""
    raised = tuple(flags.check_trial(trial))
    return ExaminedTrial(trial, raised, _reason_unusable(trial, raised))


def _reason_unusable(trial: Trial, raised: Iterable[Flag]) -> str | None:
    if trial.status != "ok":
        return trial.reason or trial.status
    for flag in raised:
        kind = flag_codes.kind(flag.code)
        if kind.severity == "invalid":
            return f"{kind.sentence} {flag.detail}".strip()
    if trial.train is None or not trial.train.wall_s > 0:
        return "the record holds no training window"
    return None


class Examination:
    """The flags and the use of each of a run's trials; a trial is examined when it is handed in, and never again.

    Trials are told apart by identity: two folders may hold trials of one name.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._examined = {id(trial): examine(trial) for trial in trials}

    def __getitem__(self, trial: Trial) -> ExaminedTrial:
        """Raises KeyError for a trial that was not handed in."""
        return self._examined[id(trial)]

    def flags(self, trial: Trial) -> tuple[Flag, ...]:
        return self[trial].flags

    def reason_unusable(self, trial: Trial) -> str | None:
        return self[trial].reason_unusable

    def usable(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those of the trials that comparisons may use, in their order."""
        return [trial for trial in trials if self[trial].reason_unusable is None]
