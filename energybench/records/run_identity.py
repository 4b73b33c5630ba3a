"""Whose record it is: each carries the identity of its run, 128 random bits that were drawn when the run was made.

What an earlier energybench wrote has none. There the run's time and the digest of the cell decide: a record that began
before the run or after its end, or of other settings, is another run's.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from energybench.records.record import CountingRun, RunFile, Trial

CLOCK_MOVES = timedelta(minutes=1)  # by which a clock may be set while a run works


def new_identity() -> str:
    """Of a run that is about to be made."""
    return secrets.token_hex(16)


Cell = tuple[str, str]  # workload, method


def digests_of(run: RunFile) -> dict[Cell, str]:
    """Of each cell of the run, where it is known."""
    return {(cell.workload, cell.method): cell.digest for cell in run.cells if cell.digest}


def stranger_reason(run: RunFile, digests: Mapping[Cell, str], record: Trial | CountingRun) -> str:
    """Why this run did not make this record; empty where it may have. digests: as `digests_of` gives them."""
    if run.run_identity != record.run_identity:
        if run.run_identity is None:
            return "it carries the identity of a run, and this run has none: an earlier energybench made it"
        if record.run_identity is None:
            return "it carries no identity, and each record of this run carries the run's"
        return f"it carries the identity {record.run_identity[:8]}…, and this run has {run.run_identity[:8]}…"
    if digests.get((record.workload, record.method), record.digest) != record.digest:
        return "its settings, methods or versions are not this one's"
    if not isinstance(record, Trial):
        return ""
    if run.run_identity is None:
        return _outside_its_time(run, record)
    if record.invocation not in (each.number for each in run.invocations):  # of a copy that was continued elsewhere
        return f"it is of invocation {record.invocation}, of which run.json knows nothing"
    return ""


def _outside_its_time(run: RunFile, trial: Trial) -> str:
    """Of a run without an identity: whether the trial began before its first invocation or after its last one ended.

    A clock that was set while a run worked is allowed for by CLOCK_MOVES. Where the last invocation has not ended, or
    was killed, there is no end.
    """
    began = _time(trial.started_at)
    known = [_time(text) for each in run.invocations for text in (each.started_at, each.ended_at) if text]
    times = [time for time in known if time is not None]
    if began is None or not times:
        return ""
    if began < min(times) - CLOCK_MOVES:
        return f"it began {trial.started_at}, before this run did"
    if run.invocations[-1].ended_at is not None and began > max(times) + CLOCK_MOVES:
        return f"it began {trial.started_at}, after this run had ended"
    return ""


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
