"""What the harness set of a card for a trial is a part of its cell: no difference between the sides of a pair, no other
device, and no doubt where the card throttles by it. What was set, and what was there before, stands in its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from energybench.meter.card_settings import CAPPED, ENFORCED_W, IN_RECORD, POWER_W
from energybench.meter.reading import Reading
from energybench.records.record import Trial


def _of(trial: Trial) -> Mapping[str, Any]:
    """UUID → {"set": …, "before": …}, tables all; whatever else a record may hold there is none."""
    told = trial.environment.get(IN_RECORD)
    every = told if isinstance(told, dict) else {}
    return {uuid: each for uuid, each in every.items() if isinstance(each, dict) and _are_tables(each)}


def _are_tables(told: Mapping[str, Any]) -> bool:
    return all(isinstance(told.get(name), dict) for name in ("set", "before"))


def cards_before(trial: Trial) -> dict[str, Any]:
    """UUID → the card's facts, with the power limit that was in force before the trial's own was set."""
    cards: dict[str, Any] = dict(trial.environment.get("gpus") or {})
    for uuid, told in _of(trial).items():
        if uuid in cards and ENFORCED_W in told["before"]:
            cards[uuid] = {**cards[uuid], POWER_W: told["before"][ENFORCED_W]}
    return cards


def without_asked_throttling(trial: Trial, window: Reading) -> Reading:
    """The window, on whose cards a power limit of the trial's own does not count as throttling."""
    limited = {uuid for uuid, told in _of(trial).items() if POWER_W in told["set"]}
    if not any(CAPPED in card.throttled_s for uuid, card in window.cards.items() if uuid in limited):
        return window
    cards = {
        uuid: card.model_copy(update={"throttled_s": {k: s for k, s in card.throttled_s.items() if k != CAPPED}})
        if uuid in limited
        else card
        for uuid, card in window.cards.items()
    }
    return window.model_copy(update={"cards": cards})
