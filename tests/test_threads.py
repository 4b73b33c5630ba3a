"""How many threads a run computes with: how many may be used, and what short timings decide."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.common import processors
from energybench.runner.plan_spec import PlannedWorkload
from energybench.runner.threads import GAIN, candidates, choice, choose, together
from energybench.workloads.description import DataDescription

Seconds = st.floats(1e-4, 10.0)


@given(usable=st.integers(1, 512))
def test_powers_of_two_and_all_that_may_be_used_are_tried(usable: int) -> None:
    tried = candidates(usable)
    assert tried[0] == 1
    assert tried[-1] == usable
    assert sorted(set(tried)) == list(tried)
    assert all(count & (count - 1) == 0 for count in tried[:-1])


def simulated(work_s: float, count: int, taken_rel: float, chance: random.Random) -> float:
    """A step of perfectly parallel work; every core but the first is taken by others with that chance, and the barrier
    then waits for a slice of theirs."""
    held_up = any(chance.random() < taken_rel for _ in range(count - 1))
    return work_s / count + (0.2 if held_up else 0.0)


@pytest.mark.parametrize(("taken", "wanted"), [(0.0, 2), (0.3, 1), (0.9, 1)])
def test_a_barrier_that_waits_for_a_taken_core_costs_its_number_the_choice(taken: float, wanted: int) -> None:
    chance = random.Random(3)
    timed = {count: [simulated(0.006, count, taken, chance) for _ in range(21)] for count in (1, 2)}
    assert choose(timed) == wanted


def test_a_gain_that_is_not_worth_a_core_takes_none() -> None:
    assert choose({1: [1.0] * 5, 2: [1 - GAIN / 2] * 5}) == 1
    assert choose({1: [1.0] * 5, 2: [1 - 2 * GAIN] * 5}) == 2


def test_one_slow_moment_on_one_thread_decides_nothing() -> None:
    assert choose({1: [0.006] * 6 + [0.5], 2: [0.006] * 7}) == 1


def test_more_threads_are_held_against_the_best_so_far() -> None:
    assert choose({1: [8.0] * 5, 2: [4.0] * 5, 4: [4.0] * 5, 8: [2.0] * 5}) == 8
    assert choose({1: [8.0] * 5, 2: [4.0] * 5, 4: [3.9] * 5, 8: [6.0] * 5}) == 2


@given(timed=st.dictionaries(st.integers(1, 64), st.lists(Seconds, min_size=3, max_size=3), min_size=1))
def test_what_is_chosen_was_timed_and_no_smaller_number_is_faster_on_average(timed: dict[int, list[float]]) -> None:
    chosen = choose(timed)
    assert chosen in timed
    assert all(sum(timed[chosen]) <= sum(timed[count]) for count in timed if count < chosen)


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        choose({})


def test_workloads_weigh_by_what_they_train() -> None:
    """One number for all cells: many short steps beside few long ones."""
    short, long = {1: [0.001] * 3, 2: [0.002] * 3}, {1: [1.0] * 3, 2: [0.6] * 3}
    assert together([(1000.0, short), (1.0, long)]) == {1: pytest.approx([2.0] * 3), 2: pytest.approx([2.6] * 3)}
    assert choose(together([(1000.0, short), (1.0, long)])) == 1
    assert choose(together([(1000.0, short), (10.0, long)])) == 2
    assert together([]) == {}


def workload(threads_s: dict[int, tuple[float, ...]]) -> PlannedWorkload:
    data = DataDescription(kind="none", sha256="d", train=64, test=32)
    return PlannedWorkload(
        data=data, ledger=(), parameters=1, steps=4, epochs=2, samples=64, step_s=9.0, threads_s=threads_s
    )


def test_the_choice_is_told_with_its_reason_and_times_the_steps() -> None:
    made = choice({"w": workload({1: (0.01, 0.01, 0.02), 2: (0.1, 0.1, 0.1)})}, (1, 2))
    assert made is not None
    assert made.threads == 1
    assert "threads: 1" in made.notes[0]
    assert made.facts["usable"] == 2
    assert made.facts["trainings_s"]["2"] == pytest.approx(8 * 0.1)
    assert made.timed(workload({1: (0.01, 0.01, 0.02)})).step_s == 0.01
    assert made.timed(workload({})).step_s == 9.0


def test_where_nothing_could_be_timed_one_thread_holds_nobody_up() -> None:
    made = choice({"w": workload({})}, (1, 2, 4))
    assert made is not None
    assert made.threads == 1
    assert choice({"w": workload({1: (0.1,)})}, ()) is None


# ── what may be used ──────────────────────────────────────────────────────────────────────────────────────────────────


def group(place: Path, **files: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text)


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("350000 100000", 3), ("9900000 100000", 8)],
)
def test_a_containers_quota_limits_what_its_affinity_allows(
    eight: None, tmp_path: Path, limit: str, cores: int
) -> None:
    group(tmp_path, cpu__max=f"{limit}\n")
    assert processors.usable(tmp_path, tmp_path / "none") == cores


def test_the_tightest_group_around_this_process_counts(eight: None, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/user/session\n")
    group(tmp_path / "user", cpu__max="400000 100000\n")
    group(tmp_path / "user" / "session", cpu__max="max 100000\n")
    group(tmp_path / "other", cpu__max="100000 100000\n")
    assert processors.usable(tmp_path, own) == 4


def test_version_one_has_its_quota_in_two_files(eight: None, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n")
    group(tmp_path / "cpu,cpuacct" / "docker" / "x", cpu__cfs_quota_us="300000\n", cpu__cfs_period_us="100000\n")
    group(tmp_path / "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert processors.usable(tmp_path, own) == 3


@pytest.mark.parametrize("text", ["", "nonsense", "100000", "0 0", "x y", "-1 100000"])
def test_a_quota_that_cannot_be_read_is_none(eight: None, tmp_path: Path, text: str) -> None:
    group(tmp_path, cpu__max=text)
    assert processors.quota(tmp_path, tmp_path / "none") is None
    assert processors.usable(tmp_path, tmp_path / "none") == 8
