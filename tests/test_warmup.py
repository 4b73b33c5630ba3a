"""Warm-up: exactly as many steps as asked for, or until the time of a step comes to rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.common.units import Quantity
from energybench.train.method import Task
from energybench.trial import warmup
from energybench.trial.warmup import ROUNDS, at_rest, warm_up


class Paced:
    """A run whose steps take scripted times on a clock of their own; batches end after `epoch` steps."""

    def __init__(self, durations_s: list[float], epochs: int = 6, epoch: int = 7) -> None:
        self.durations_s, self.epochs, self._epoch = durations_s, epochs, epoch
        self.now_s, self.steps = 100.0, 0
        self.seen: list[int] = []
        self.epoch_number = self.step_in_epoch = 0
        self.data = None
        self.task = Task()

    def batches(self, data: Any) -> list[int]:
        return list(range(self._epoch))

    def step(self, batch: int) -> None:
        self.now_s += self.durations_s[min(self.steps, len(self.durations_s) - 1)]
        self.seen.append(self.epoch_number)
        self.steps += 1


def go(monkeypatch: pytest.MonkeyPatch, run: Paced, unit: str, count: float) -> tuple[Any, int]:
    waits: list[float] = []
    monkeypatch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: run.now_s))
    return warm_up(run, Quantity(count, unit), lambda: waits.append(run.now_s)), len(waits)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_a_number_of_steps_is_exactly_that_number(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    run = Paced([0.01])
    found, _ = go(monkeypatch, run, "steps", count)
    assert (found.steps, run.steps, found.settled) == (count, count, None)


def test_steps_are_spread_over_the_schedule_so_that_every_kind_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Paced([0.01], epochs=6)
    go(monkeypatch, run, "steps", 8)
    assert run.seen == [1, 2, 4, 6] * 2


def test_it_ends_once_steps_take_as_long_as_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cold = [0.1] * 30 + [0.01]
    found, waits = go(monkeypatch, run := Paced(cold), "s", 60.0)
    assert found.settled is True
    assert found.step_s == pytest.approx(0.01)
    assert 30 + 4 * 2 * ROUNDS - 8 <= run.steps <= 30 + 4 * 2 * ROUNDS + 8  # the cold rounds had to leave the view
    assert waits == run.steps // 4  # the device is waited for once a round, or its times would be a queue's


def test_it_ends_at_its_limit_if_steps_never_settle_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = [0.01 * 1.01**i for i in range(2000)]
    run = Paced(growing)
    found, _ = go(monkeypatch, run, "s", 5.0)
    assert found.settled is False
    assert 5.0 <= run.now_s - 100.0 < 5.2


def test_a_method_that_gives_no_batch_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = go(monkeypatch, Paced([0.01], epoch=0), "s", 60.0)
    assert found.steps == 0


@given(st.lists(st.floats(0.001, 1), max_size=2 * ROUNDS - 1))
def test_fewer_than_two_groups_of_rounds_say_nothing(rounds: list[float]) -> None:
    assert not at_rest(rounds)


@given(st.floats(0.001, 1), st.floats(0.5, 2))
def test_at_rest_means_within_five_percent_of_the_rounds_before(step_s: float, ratio: float) -> None:
    rounds = [step_s] * ROUNDS + [step_s * ratio] * ROUNDS
    assert at_rest(rounds) == (abs(ratio - 1) <= 0.05) or abs(abs(ratio - 1) - 0.05) < 1e-9
