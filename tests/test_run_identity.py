"""Whose record it is: by the identity that each record of a run carries, and without one by time and digest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs_on_disk import put, written
from synthetic import Run

from energybench.common.errors import UsageError
from energybench.records.reader import read_folder
from energybench.records.record import Trial
from energybench.records.run_identity import CLOCK_MOVES, digests_of, new_identity, stranger_reason
from energybench.verdict import run_parts

BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
ENDED = BEGAN + timedelta(hours=1)


def synthetic(identity: str | None = None, ended: datetime | None = ENDED):
    run, trials, counting_runs = Run().method("half", time=0.7).records()
    call = run.invocations[0].model_copy(
        update={"started_at": BEGAN.isoformat(), "ended_at": ended.isoformat() if ended else None}
    )
    run = run.model_copy(update={"run_identity": identity, "invocations": [call]})
    update = {"run_identity": identity, "started_at": BEGAN.isoformat()}
    return (
        run,
        [trial.model_copy(update=update) for trial in trials],
        [each.model_copy(update={"run_identity": identity}) for each in counting_runs],
    )


def reason(run, trial: Trial, **changes) -> str:
    return stranger_reason(run, digests_of(run), trial.model_copy(update=changes))


def test_identities_are_drawn_anew() -> None:
    drawn = {new_identity() for _ in range(100)}
    assert len(drawn) == 100
    assert {len(each) for each in drawn} == {32}


@given(
    own=st.none() | st.text("0123456789abcdef", min_size=32, max_size=32),
    other=st.none() | st.text("0123456789abcdef", min_size=32, max_size=32),
)
def test_a_record_is_of_the_run_whose_identity_it_carries_alone(own: str | None, other: str | None) -> None:
    run, trials, counting_runs = synthetic(own)
    for record in (trials[0], counting_runs[0]):
        found = stranger_reason(run, digests_of(run), record.model_copy(update={"run_identity": other}))
        assert (found == "") == (own == other)


@given(seconds=st.integers(-200_000, 200_000))
def test_without_an_identity_a_trial_of_another_time_is_another_run_s(seconds: int) -> None:
    run, trials, _ = synthetic()
    began = BEGAN + timedelta(seconds=seconds)
    inside = BEGAN - CLOCK_MOVES <= began <= ENDED + CLOCK_MOVES
    assert (reason(run, trials[0], started_at=began.isoformat()) == "") == inside


def test_a_run_that_was_killed_has_no_end_and_one_that_goes_on_takes_what_came_since() -> None:
    run, trials, _ = synthetic(ended=None)
    later = (ENDED + timedelta(days=3)).isoformat()
    assert reason(run, trials[0], started_at=later) == ""
    assert reason(run, trials[0], started_at=(BEGAN - timedelta(days=3)).isoformat()) != ""


@pytest.mark.parametrize("identity", [None, "a" * 32])
def test_a_record_of_other_settings_is_another_run_s(identity: str | None) -> None:
    run, trials, _ = synthetic(identity)
    cells = [cell.model_copy(update={"digest": "d1"}) for cell in run.cells]
    run = run.model_copy(update={"cells": cells})
    assert reason(run, trials[0], digest="d1") == ""
    assert "settings" in reason(run, trials[0], digest="d2")


def test_an_invocation_that_run_json_does_not_know_is_of_a_copy_that_was_continued_elsewhere() -> None:
    run, trials, _ = synthetic("a" * 32)
    assert reason(run, trials[0], invocation=0) == ""
    assert "invocation 7" in reason(run, trials[0], invocation=7)


@pytest.mark.parametrize("part", ["records", "witness"])
def test_a_file_of_another_run_is_named_with_what_to_type(part: str, tmp_path) -> None:
    mine, other = (put(tmp_path / name, *synthetic(name * 8)) for name in ("mine", "othe"))
    name = next((other / part).iterdir()).name
    (mine / part / name).write_bytes((other / part / name).read_bytes())
    with pytest.raises(UsageError) as caught:
        read_folder(mine)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("E625", str(mine / part / name))
    assert f"mv {mine / part / name}" in problem.hint


def test_two_runs_of_one_suite_are_not_pooled_even_where_each_trained_other_blocks(tmp_path) -> None:
    """Copies of one run's blocks are merged; the same blocks of two runs are two runs'."""
    folders = []
    for identity, at in (("a" * 32, 0), ("a" * 32, 1), ("b" * 32, 1)):
        run, trials, counting_runs = synthetic(identity)
        some = [trial for trial in trials if (trial.block < 2) == (at == 0)]
        folders.append(put(tmp_path / f"{identity[0]}{at}", run, some, counting_runs))
    one = run_parts.read(folders[:2])
    assert len(one) == 1
    two = run_parts.read([folders[0], folders[2]])
    assert [bool(part.apart) for part in two] == [False, True]
    assert "another run" in two[1].apart


def test_records_of_earlier_versions_stay_readable(tmp_path) -> None:
    folder = written(tmp_path / "run", Run().method("half", time=0.7))
    assert read_folder(folder)[1]
