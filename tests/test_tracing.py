"""How long a step takes, before anything is measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fakes.replay import VirtualTime

from energybench.runner import tracing
from tests.support import digits, make_run


def timed(pauses: list[float], monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[float, int]:
    """(seconds, steps taken) of a run whose steps take so long."""
    run = make_run(data=digits(64))
    left, clock = iter(pauses), VirtualTime()
    taken: list[int] = []

    def gradients(batch: Any) -> None:
        taken.append(len(batch))
        clock.sleep(next(left))

    monkeypatch.setattr(run, "gradients", gradients)
    monkeypatch.setattr(tracing, "time", SimpleNamespace(perf_counter=lambda: clock.now_ns() / 1e9))
    return tracing.time_step(run, **options), len(taken)


def test_starting_up_is_no_step_and_the_smallest_of_the_others_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timed([0.01, 0.03, 0.02, 0.05], monkeypatch) == (pytest.approx(0.02), 4)


def test_long_steps_are_not_repeated_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing.LONGEST_S == 10.0
    assert timed([6.0, 5.0, 9.0], monkeypatch) == (pytest.approx(5.0), 2)
    assert timed([12.0, 9.0], monkeypatch) == (pytest.approx(12.0), 1)


def test_a_part_of_a_batch_is_timed_and_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, _ = timed([0.02] * 4, monkeypatch, most=8)
    assert seconds == pytest.approx(4 * 0.02)  # a batch of 32
