"""Cells whose methods set something of the card that trains: refused before the run where it cannot be set, set around
their trials, and held to afterwards. What a method declares: `Method.card_settings`. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from energybench.common.errors import Problem, UsageError
from energybench.meter.card_settings import CLOCK_HZ, IN_RECORD, WITHIN_REL, WORDS, AdjustableCard, CannotSet
from energybench.meter.nvml import open_gpus
from energybench.meter.unavailable import Unavailable
from energybench.process.card_keeper import Held, held
from energybench.records.record import Cell, Trial
from energybench.runner.plan_request import Planned
from energybench.runner.progress import Progress


def cards_of(planned: Planned) -> list[str]:
    """The cards that a trial computes on: those that train, and those that [measure] names beside them."""
    device, named = planned.device_name, planned.measure.gpus
    training = [] if device == "cpu" else device.split("+")
    return list(dict.fromkeys([*training, *(named if not isinstance(named, str) else ())]))


def refuse_cards(planned: Planned) -> None:
    """Before anything trains. Raises UsageError E505 where a card cannot be set as a cell asks, with the remedy:
    what it asks is outside of what can be set, or not permitted, or somebody else uses the card, or there is none."""
    problems: dict[str, Problem] = {}
    for cell in planned.cells:
        if not cell.card_settings or cell.skipped:
            continue
        try:
            for card in _opened(planned, cell):
                card.resolved(cell.card_settings)
                card.refuse_use()
                card.refuse_permission()
        except CannotSet as error:
            message = f"'{cell.method}' sets the {_words(cell)}, and that cannot be: {error}"
            problems[str(error)] = Problem("E505", message, str(planned.suite.path), error.remedy)
    if problems:
        raise UsageError(list(problems.values()))


def reason_alone(cells: list[Cell]) -> str:
    """Why the trials of these cells take no turns: what one sets of the card would be set for all. "": none does."""
    setting = next((cell for cell in cells if cell.card_settings and not cell.skipped), None)
    return "" if setting is None else f"{setting.method} sets the card's {_words(setting)}"


@contextmanager
def cards_set(planned: Planned, cell: Cell, progress: Progress) -> Iterator[Held]:
    """The cards as a cell asks for them, from before its trial's process starts until after it has ended."""
    try:
        settings = {
            card.gpu.uuid: card.resolved(cell.card_settings)
            for card in (_opened(planned, cell) if cell.card_settings else ())
        }
    except CannotSet as error:
        yield Held({}, problem=f"the card's {_words(cell)} cannot be set: {error}")
        return
    found = Held(settings)
    try:
        with held(settings) as found:
            if found.problem:
                found.problem = f"the card's {_words(cell)} cannot be set: {found.problem}"
            yield found
    finally:
        if found.left:
            progress.warn(f"the card's {_words(cell)} could not be put back: {found.left}")


def kept(record: Trial, found: Held) -> Trial:
    """The record with what was set and what was there before; invalid where it did not hold."""
    if not found.settings:
        return record
    told: dict[str, Any] = {
        uuid: {"set": dict(settings), "before": found.before.get(uuid, {})} for uuid, settings in found.settings.items()
    }
    changed: dict[str, Any] = {"environment": {**record.environment, IN_RECORD: told}}
    reason = found.changed or _faster(record, found)
    if reason and record.status == "ok":
        changed |= {"status": "invalid", "reason": f"what was set of the card did not hold: {reason}"}
    return record.model_copy(update=changed)


def _faster(record: Trial, found: Held) -> str:
    """A card whose mean clock in the window lies above its limit: NVML tells no lock, so it is read back by this."""
    for uuid, settings in found.settings.items():
        card = record.train.cards.get(uuid) if record.train else None
        limit_hz, mean_mhz = settings.get(CLOCK_HZ), card.sm_clock_mhz if card else None
        if limit_hz and mean_mhz and mean_mhz * 1e6 > limit_hz * (1 + WITHIN_REL):
            return f"{uuid}: its mean clock was {mean_mhz:g} MHz, above the limit of {limit_hz / 1e6:g} MHz"
    return ""


def _opened(planned: Planned, cell: Cell) -> list[AdjustableCard]:
    """Raises CannotSet."""
    uuids = cards_of(planned)
    if not uuids:
        raise CannotSet("no card trains here", f"leave '{cell.method}' out")
    try:
        return [AdjustableCard(gpu) for gpu in open_gpus(uuids)]
    except Unavailable as error:
        raise CannotSet(error.reason, error.remedy) from None


def _words(cell: Cell) -> str:
    return " and ".join(dict.fromkeys(WORDS.get(key, key) for key in cell.card_settings))
