"""Named stretches of a trial: idle power, cooling down, readings that add up."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from energybench.meter.facts import gpu_facts, keep_trace
from energybench.meter.reading import Energy, Reading
from energybench.meter.sensors import UnavailableMeter
from energybench.trial import phases
from energybench.trial.phases import Phases


class Card:
    """A meter of one card that cools by 1 °C a second on a clock that sleeping moves; it draws 50 W."""

    def __init__(self, heat_c: float) -> None:
        self.heat_c, self.now_s = heat_c, 0.0
        self._start_s = 0.0

    def temperatures(self) -> dict[str, float]:
        return {"GPU-1": self.heat_c - self.now_s}

    def facts(self) -> dict[str, Any]:
        return {"GPU-1": {"driver": "1"}}

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def start(self) -> None:
        self._start_s = self.now_s

    def stop(self) -> Reading:
        seconds = self.now_s - self._start_s
        return Reading(
            wall_s=seconds, energy=[Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=50 * seconds)]
        )


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card(60.0)
    clock = SimpleNamespace(sleep=card.sleep, monotonic=lambda: card.now_s, perf_counter=time.perf_counter)
    monkeypatch.setattr(phases, "time", clock)
    return card


def fresh() -> Phases:
    return Phases({}, lambda: None)


def test_a_trial_waits_until_its_card_is_cool(card: Card) -> None:
    found = fresh()
    assert found.cool_down([card], {"GPU-1": 45.0}, 60.0) == []
    assert card.now_s == pytest.approx(15.0, abs=1.0)
    assert "cooldown" in found.readings


def test_a_card_that_stays_hot_past_the_longest_wait_is_flagged_and_the_trial_goes_on(card: Card) -> None:
    (flag,) = fresh().cool_down([card], {"GPU-1": 45.0}, 5.0)
    assert card.now_s == pytest.approx(5.0)
    assert (flag.code, flag.detail) == ("temperature", "GPU-1: 55 °C before the trial, 45 °C wanted")


def test_a_few_degrees_too_many_are_not_worth_a_flag(card: Card) -> None:
    assert fresh().cool_down([card], {"GPU-1": 45.0}, 11.0) == []
    assert card.now_s == pytest.approx(11.0)


@pytest.mark.parametrize(("below_c", "longest_s"), [({}, 60.0), ({"GPU-1": 45.0}, 0.0)])
def test_nothing_waits_for_nothing(card: Card, below_c: dict[str, float], longest_s: float) -> None:
    assert fresh().cool_down([card], below_c, longest_s) == []
    assert card.now_s == 0


def test_idle_power_is_read_for_more_ticks_than_a_figure_needs(card: Card) -> None:
    found = fresh()
    found.idle("idle_before", [card], 0.1)
    (energy,) = found.readings["idle_before"].energy
    assert energy.energy_j == pytest.approx(50 * 1.2)


def test_where_nothing_is_measured_nothing_waits(card: Card) -> None:
    found = fresh()
    found.idle("idle_before", [UnavailableMeter("gpu", "none")], 0.1)
    assert found.readings == {}
    assert card.now_s == 0


def test_a_phase_that_comes_again_adds_to_itself(card: Card) -> None:
    found = fresh()
    for seconds in (2.0, 3.0):
        with found.phase("evaluate", [card]):
            card.sleep(seconds)
    (energy,) = found.readings["evaluate"].energy
    assert energy.energy_j == pytest.approx(250)
    assert found.readings["evaluate"].pieces == 2


def test_a_phase_that_fails_keeps_its_reading_and_its_error(card: Card) -> None:
    found = fresh()
    with pytest.raises(RuntimeError, match="mine"), found.phase("build"):
        raise RuntimeError("mine")
    assert "build" in found.readings


def test_facts_of_cards_come_from_the_meters_that_have_them(card: Card) -> None:
    assert gpu_facts([UnavailableMeter("cpu", "none"), card]) == {"GPU-1": {"driver": "1"}}


def test_no_samples_leave_no_trace(tmp_path: Any, card: Card) -> None:
    window = phases.Window([card], lambda: None)
    assert keep_trace(window, str(tmp_path / "traces" / "t.csv.gz")) is None
    assert list(tmp_path.iterdir()) == []
