"""What the sensors of this machine are, before anything is measured: for the plan of a run and for `doctor`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from energybench.meter import ranks, rapl
from energybench.meter.clock import REAL_TIME, Time
from energybench.meter.counter import SensorError, infer_tick
from energybench.meter.kernel_sensors import look
from energybench.meter.nvml import Cards, open_gpus
from energybench.meter.nvml_gpu import Gpu
from energybench.meter.sensors import MeterSelection, divide, find_cards, kernel_sensors, of_cards_alone, offered, told
from energybench.meter.shared_node import shared_reason
from energybench.meter.unavailable import Unavailable


def gpus(time: Time = REAL_TIME) -> tuple[list[dict[str, Any]], Unavailable | None]:
    """(facts of every card that can be opened, with its counter's tick; why there is none). About a second per card."""
    try:
        return [facts(gpu, time) for gpu in open_gpus()], None
    except Unavailable as unavailable:
        return [], unavailable


def facts(gpu: Gpu, time: Time = REAL_TIME) -> dict[str, Any]:
    """One card: what a comparison must keep equal, its sensors, and `tick` of its counter or `tick_reason`."""
    card: dict[str, Any] = gpu.facts() | {"pci_address": gpu.pci_address(), "tick": None}
    if gpu.counter_reason is None:
        try:
            card["tick"] = asdict(infer_tick(gpu.energy_j, time))
        except SensorError as error:
            card["tick_reason"] = str(error)
    return card


def sensors(wanted: MeterSelection, device: str) -> dict[str, Any]:
    """What a trial on this device will be metered by.

    Args:
        wanted: which meters it asks for
        device: "cpu", or the UUID of the card that trains

    Returns:
        {gpus: facts of each card, measured: names of sensors, missing: {name: reason}, unmetered: those of the devices
        that no sensor sees}
    """
    measured, missing = list[str](), dict[str, str]()
    cards: list[dict[str, Any]] = []
    machine, found = look(), Cards((), {})
    nvidia, nvidia_device, kernel_cards = divide(wanted, device, machine)
    try:
        found = find_cards(replace(wanted, gpus=nvidia), nvidia_device)
    except Unavailable as unavailable:
        missing["gpu"] = told(unavailable)
    else:
        cards = [facts(gpu) for gpu in found.opened]
        missing |= {name: told(why) for name, why in found.refused.items()}
    for card in cards:
        if (card["counter"] and card["tick"]) or card["power"]:
            measured.append(f"{card['name']} {card['uuid']}")
        else:
            missing[card["uuid"]] = card["counter_reason"] or card["tick_reason"]
    measured += [name for name in wanted.meters if name in offered() and ranks.reads_node()]
    if not ranks.reads_node():
        missing["cpu"] = ranks.READ_BY_THE_FIRST
        return {"gpus": cards, "measured": measured, "missing": missing, "unmetered": []}
    shared = shared_reason()
    ways = [] if shared else rapl.survey()
    usable = next((way for way in ways if way["usable"]), None)
    if usable:
        measured += [f"RAPL {domain}" for domain in usable["domains"]]
    else:
        missing["cpu"] = f"RAPL: {shared or '; '.join(dict.fromkeys(way['reason'] for way in ways))}"
    places = [*(gpu.pci_address() for gpu in found.opened), *("" for _ in found.refused)]
    kernel = kernel_sensors(wanted, kernel_cards, machine, places, processor=not usable and not shared)
    if shared:
        kernel = of_cards_alone(kernel)
    measured += [f"{channel.source} {channel.device}".rstrip() for channel in kernel.channels]
    missing |= {energy.device: energy.reason or "" for energy in kernel.silent}
    seen = {card["uuid"] for card in cards if card["uuid"] not in missing}
    if kernel_cards:  # the device is one of another maker, which NVML does not know
        seen |= {device} if {channel.device for channel in kernel.channels} & set(kernel_cards) else set()
    unmetered = [uuid for uuid in device.split("+") if uuid not in {"cpu", *seen}]
    return {"gpus": cards, "measured": measured, "missing": missing, "unmetered": unmetered}
