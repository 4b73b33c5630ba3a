"""What the sensors of this machine are, before anything is measured: for the plan of a run and for `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from energybench.meter import ranks, rapl
from energybench.meter.clock import REAL_TIME, Time
from energybench.meter.counter import SensorError, infer_tick
from energybench.meter.nvml import Gpu, open_gpus
from energybench.meter.sensors import MeterSelection, offered, open_cards
from energybench.meter.unavailable import Unavailable


def gpus(time: Time = REAL_TIME) -> tuple[list[dict[str, Any]], Unavailable | None]:
    """(facts of every card, with its counter's tick; why there is none). Takes about a second per card."""
    try:
        return [facts(gpu, time) for gpu in open_gpus()], None
    except Unavailable as unavailable:
        return [], unavailable


def facts(gpu: Gpu, time: Time = REAL_TIME) -> dict[str, Any]:
    """One card: what a comparison must keep equal, its sensors, and `tick` of its counter or `tick_reason`."""
    card: dict[str, Any] = gpu.facts()
    if gpu.counter_reason is None:
        try:
            card["tick"] = asdict(infer_tick(gpu.energy_j, time))
        except SensorError as error:
            card["tick"], card["tick_reason"] = None, str(error)
    return card


def sensors(wanted: MeterSelection, device: str) -> dict[str, Any]:
    """What a trial on this device will be metered by.

    Args:
        wanted: which meters it asks for
        device: "cpu", or the UUID of the card that trains

    Returns:
        {gpus: facts of each card, measured: names of sensors, missing: {name: reason}}
    """
    measured, missing = list[str](), dict[str, str]()
    cards: list[dict[str, Any]] = []
    try:
        cards = [facts(gpu) for gpu in open_cards(wanted.gpus, device)]
    except Unavailable as unavailable:
        missing["gpu"] = unavailable.reason
    for card in cards:
        if card["counter"] or card["power"]:
            measured.append(f"{card['name']} {card['uuid']}")
        else:
            missing[card["uuid"]] = card["counter_reason"]
    measured += [name for name in wanted.meters if name in offered() and ranks.reads_node()]
    if not ranks.reads_node():
        missing["cpu"] = ranks.READ_BY_THE_FIRST
        return {"gpus": cards, "measured": measured, "missing": missing}
    ways = rapl.survey()
    usable = next((way for way in ways if way["usable"]), None)
    if usable:
        measured += [f"RAPL {domain}" for domain in usable["domains"]]
    else:
        missing["cpu"] = f"RAPL: {'; '.join(dict.fromkeys(way['reason'] for way in ways))}"
    return {"gpus": cards, "measured": measured, "missing": missing}
