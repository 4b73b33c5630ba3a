"""How long a step takes, before anything is measured."""

from __future__ import annotations

import time
from typing import Any

import pytest

from energybench import tracing
from tests.support import digits, make_run


def timed(pauses: list[float], monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[float, int]:
    """(seconds, steps taken) of a run whose steps take so long."""
    run = make_run(data=digits(64))
    left = iter(pauses)
    taken: list[int] = []

    def gradients(batch: Any) -> None:
        taken.append(len(batch))
        time.sleep(next(left))

    monkeypatch.setattr(run, "gradients", gradients)
    return tracing.time_step(run, **options), len(taken)


def test_starting_up_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, steps = timed([0.3, 0.02, 0.04, 0.05], monkeypatch)
    assert 0.02 <= seconds < 0.04
    assert steps == 4


def test_long_steps_are_not_repeated_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "LONGEST_S", 0.1)
    assert timed([0.06, 0.05, 9.0], monkeypatch)[1] == 2
    seconds, steps = timed([0.12, 9.0], monkeypatch)
    assert seconds >= 0.12
    assert steps == 1


def test_a_part_of_a_batch_is_timed_and_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, _ = timed([0.02] * 4, monkeypatch, most=8)
    assert 4 * 0.02 <= seconds < 4 * 0.06  # a batch of 32
