"""`energybench doctor`: what this machine can measure, what it cannot, what would change that, how well it repeats.

Plain data, printed by `show.print_doctor` or as JSON. What is unknown is null, with its reason beside it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

from energybench.cli import script_imports
from energybench.common.machine import cpu_name, platform_name
from energybench.common.safe_read import list_folder
from energybench.meter import kernel_sensors, rapl, survey
from energybench.meter.clock import REAL_TIME, Time
from energybench.meter.devices import visible_uuids
from energybench.meter.gpu import PERIOD_S
from energybench.meter.nvml import held_open, refused_gpus
from energybench.meter.sensors import ThirdParty, offered
from energybench.meter.shared_node import REMEDY, shared_reason
from energybench.meter.trackers import running
from energybench.meter.unavailable import Unavailable
from energybench.meter.visible import VISIBLE
from energybench.process.forkserver import Launcher
from energybench.records.scratch_folder import scratch

PACKAGES = ("torch", "torchvision", "fvcore", "codecarbon", "nvidia-ml-py", "scipy", "numpy")
LOOK_S = 1.0  # at another package's meter, to see whether it answers

CALIBRATE_S = 30.0
FEWEST_PAIRS = 5  # a spread from fewer could be several times too small
SHORTEST_S, TICKS = 1.0, 50  # of one training: shorter ones would get no verdict either
UNCALIBRATED = "not calibrated; energybench doctor --calibrate finds them, in about half a minute"

# What mends a card's sensor, by what NVML says of it.
CARD_REMEDIES = {
    "Not Supported": "no command mends it: counters need Volta or newer, and virtual GPUs have none",
    "Insufficient Permissions": "run as root, or ask whoever runs the host to let guests read it",
    "more than it can draw": "update the driver: it answers powers that no card has",
    "stood still": "update the driver; nvidia-smi -q -d POWER shows whether it reads the card at all",
}
CARD_WARNINGS = {
    "mig": ("MIG is on, or not told: the sensors see the whole card, not a slice", "sudo nvidia-smi -i {uuid} -mig 0"),
    "mps": ("MPS is on: the energy is that of all processes on the card", "echo quit | nvidia-cuda-mps-control"),
}


def examine(time: Time = REAL_TIME) -> dict[str, Any]:
    """Sensors, versions, folders; `calibration` is null. Takes about a second per card and per meter of others.

    sensors: [{name, scope, measured: whether it is a sensor and no model, usable, why, remedy: "" or what to type}],
             and what is known of each kind beside it; energy: what a run will do; energy_by: scope → sensors that it
             will read; energy_missing: scope → why there are none
    scripts: [{name, why, remedy}] of packages that a script of yours cannot import
    machine: what it is, and trackers: others that read energy sensors now
    """
    cards, processor = _cards(time), _rapl(time)
    builtin = [*cards, *processor, *_kernel(time, cards, processor)]
    others = [_third_party(name, point, time) for name, point in sorted(offered().items())]
    sensors = [*builtin, *others, _model()]
    usable = [sensor for sensor in sensors if sensor["usable"] and sensor["measured"]]
    sensors_by_scope: dict[str, list[str]] = {}
    for sensor in usable:
        if "way" not in sensor or "cpu" not in sensors_by_scope:  # RAPL is read one way, the first that works
            sensors_by_scope.setdefault(sensor["scope"], []).extend(sensor.get("domains", [sensor["name"]]))
    lacks = {s["scope"]: [t["why"] for t in builtin if t["scope"] == s["scope"]] for s in builtin}
    return {
        "machine": {
            "platform": platform_name(),
            "python": platform.python_version(),
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "trackers": sorted(running()),
        },
        "versions": {name: _version(name) for name in PACKAGES},
        "sensors": sensors,
        "scripts": script_imports.problems(),
        "data": _data(),
        "disk_free_b": shutil.disk_usage(".").free,
        "energy": "measured" if usable else "modelled",
        "energy_by": sensors_by_scope,
        "energy_missing": {
            scope: "; ".join(reasons) for scope, reasons in lacks.items() if scope not in sensors_by_scope
        },
        "calibration": None,
        "calibration_reason": UNCALIBRATED,
    }


# ── sensors ───────────────────────────────────────────────────────────────────────────────────────────────────


def _sensor(
    name: str, scope: str, reason: str, remedy: str | None = None, *, measured: bool = True, **facts: Any
) -> dict[str, Any]:
    """One that works has no remedy, not even an empty one."""
    usable, remedy = remedy is None, remedy or ""
    return {
        "name": name,
        "scope": scope,
        "measured": measured,
        "usable": usable,
        "why": reason,
        "remedy": remedy,
    } | facts


def _cards(time: Time) -> list[dict[str, Any]]:
    cards, missing = survey.gpus(time=time)
    refused = refused_gpus() if missing is None else {"NVML": missing}
    rows = [_sensor(name, "gpu", why.reason.removeprefix("NVML: "), why.remedy) for name, why in refused.items()]
    return [*map(_card, cards), *rows, *(_visible() if cards else [])]


def _visible() -> list[dict[str, Any]]:
    """Where it cannot be told which cards a program here would use."""
    try:
        visible_uuids()
    except Unavailable as unavailable:
        return [
            _sensor(VISIBLE, "gpu", unavailable.reason.partition(": ")[2] or unavailable.reason, unavailable.remedy)
        ]
    return []


def _card(card: dict[str, Any]) -> dict[str, Any]:
    """A card is usable by its counter, or by its power, which is then integrated."""
    lacks = card["counter_reason"] or card.get("tick_reason")
    card |= {"counter": lacks is None, "counter_reason": lacks, "tick": card.get("tick")}
    card["warnings"] = [
        {"warning": text, "remedy": remedy.format(uuid=card["uuid"])}
        for key, (text, remedy) in CARD_WARNINGS.items()
        if card[key] is not False
    ]
    scope = card.pop("scope")
    of = " of the whole module, its processor included" * (scope == "module")
    if lacks is None:
        checked = ", and power to check it" * bool(card["power"])
        return _sensor(scope=scope, reason=f"energy counter{of}{checked}", **card)
    mends = card["counter_remedy"] = _card_remedy(lacks, "update the driver until nvidia-smi shows its power")
    if card["power"]:
        return _sensor(scope="gpu", reason="power, integrated, for want of a counter", **card)
    return _sensor(scope="gpu", reason=f"counter: {lacks}; power: {card['power_reason']}", remedy=mends, **card)


def _card_remedy(reason: str, otherwise: str) -> str:
    return next((remedy for word, remedy in CARD_REMEDIES.items() if word in reason), otherwise)


def _rapl(time: Time) -> list[dict[str, Any]]:
    shared = shared_reason()  # of a node that others use too, no run reads it
    return [
        _sensor(
            f"RAPL by {row['way']}",
            "cpu",
            row["reason"] or shared or ", ".join(row["domains"]),
            REMEDY if shared and row["usable"] else row["remedy"],
            **{key: row[key] for key in ("way", "kind", "domains", "left_out")},
        )
        for row in rapl.survey(time=time)
    ]


def _kernel(time: Time, cards: Sequence[dict[str, Any]], processor: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """hwmon's sensors, and every accelerator that nothing meters; nothing of a machine that has neither."""
    machine = kernel_sensors.look()
    nvidia = [card["pci_address"] for card in cards if "pci_address" in card]
    counted = any(sensor["usable"] for sensor in processor) or bool(shared_reason())
    found = kernel_sensors.select(machine, None, nvidia, processor=not counted, time=time)
    rows = [
        _sensor(
            f"{channel.source} {channel.device}".rstrip(),
            channel.scope,
            "energy counter" if channel.way == "energy" else "power, integrated",
        )
        for channel in found.channels
    ]
    by_device = {each.device: each for each in machine.there}
    for energy in found.silent:
        each = by_device.get(energy.device)
        if each is None:  # a rail, a socket
            refused = machine.found.refused[energy.scope, energy.device]
            rows.append(_sensor(f"hwmon {energy.device}", energy.scope, refused.reason, refused.remedy))
            continue
        why = (energy.reason or "").partition(" is there and ")[2]
        if nvidia and each.driver == "nvidia":
            why = "it is there, and NVML does not list it"
        rows.append(_sensor(each.name, energy.scope, why, kernel_sensors.remedy(each, machine.found)))
    return rows


def _third_party(name: str, point: EntryPoint, time: Time) -> dict[str, Any]:
    """Another package's meter, after a short look through it."""
    title = f"meter {name}"
    remedy = f"see the documentation of {point.dist.name if point.dist else point.value}"
    try:
        meter = ThirdParty(name, point.load()())
    except Unavailable as missing:
        return _sensor(title, "machine", missing.reason, missing.remedy or remedy)
    except Exception as error:  # whatever another package raises
        return _sensor(title, "machine", f"{type(error).__name__}: {error}", remedy)
    meter.start()
    time.sleep(LOOK_S)
    energy = meter.stop().energy
    with_figure = [e for e in energy if e.energy_j is not None]
    if not with_figure:
        reasons = (e.reason for e in energy if e.reason)
        return _sensor(title, "machine", next(reasons, "it gave no figure"), remedy)
    sources = ", ".join(dict.fromkeys(f"{e.source} of {e.scope}" for e in with_figure))
    reason, measured = f'{sources}; read where a suite has meters = ["{name}"]', any(e.measured for e in with_figure)
    return _sensor(title, with_figure[0].scope, reason, measured=measured, meter=name)


def _model() -> dict[str, Any]:
    from energybench.meter.carbon import model_parameters

    facts = model_parameters()
    memory = f"{facts['ram_w']:g} W memory" if facts["ram_w"] else "memory of a size that is not known"
    power = f"{facts['tdp_w']:g} W CPU ({facts['tdp_source']}) × load, {memory}"
    reason = f"{power}: an estimate, never a saving"
    return _sensor("codecarbon's model", "machine", reason, measured=False, parameters=facts)


def _data() -> dict[str, Any]:
    place = os.environ.get("ENERGYBENCH_DATA")
    if not place:
        return {"folder": None, "why": "ENERGYBENCH_DATA is not set; shipped data sets work without it"}
    folder = Path(os.path.expanduser(place))  # the one of pathlib raises for a user that is not there
    if not os.path.isdir(folder):
        return {"folder": str(folder), "why": "ENERGYBENCH_DATA names no folder"}
    return {"folder": str(folder), "sets": [path.name for path in list_folder(folder) if os.path.isdir(path)]}


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


# ── calibration ───────────────────────────────────────────────────────────────────────────────────────────────


def shortest_s(facts: dict[str, Any]) -> float:
    """How long a training must be for every sensor of this machine: 50 ticks of a counter or samples of power."""
    cards = [sensor for sensor in facts["sensors"] if sensor["usable"] and "uuid" in sensor]
    return max([SHORTEST_S, *(TICKS * (c["tick"]["seconds"] if c["tick"] else PERIOD_S) for c in cards)])


def expected_s(facts: dict[str, Any], seconds: float) -> float:
    """About how long a calibration takes: slow sensors need more than was asked for."""
    return max(seconds, 2.5 * (FEWEST_PAIRS + 1) * shortest_s(facts))


def calibrate(facts: dict[str, Any], seconds: float, tick: Callable[[float], None]) -> dict[str, Any]:
    """`facts` with what an A/A run in a child process found, or why it failed. tick: called with the seconds so far."""
    sensors = [sensor for sensor in facts["sensors"] if sensor["usable"] and sensor["measured"]]
    meters = [sensor["meter"] for sensor in sensors if "meter" in sensor]
    if len(meters) < len(sensors):
        meters = []  # beside our own sensors a suite has to ask for others
    with scratch() as place, held_open():
        in_path, out_path, log = (place / name for name in ("in.json", "out.json", "log"))
        from energybench.trial.spec import CalibrationSpec  # a doctor without it starts at once

        CalibrationSpec(
            until_s=monotonic() + seconds,
            shortest_s=shortest_s(facts),
            fewest_pairs=FEWEST_PAIRS,
            meters=tuple(meters),
            cache=place,
        ).write(in_path)
        outcome = Launcher().call(
            "energybench.trial.calibrate:main",
            in_path,
            out_path,
            log=log,
            tick=tick,
            limit_s=60 + 10 * expected_s(facts, seconds),
        )
        if out_path.exists():
            result = json.loads(out_path.read_text(encoding="utf-8"))
        else:
            output = log.read_text(encoding="utf-8", errors="replace").strip() if log.exists() else ""
            last = f"; its last words: {output.splitlines()[-1]}" if output else ""
            result = {"reason": f"{outcome.reason or 'it left no result'}{last}"}
    if reason := result.get("reason"):
        return facts | {"calibration_reason": f"the calibration failed: {reason}"}
    return facts | {"calibration": result, "calibration_reason": None}
