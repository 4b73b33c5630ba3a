"""Rows that more than one page prints: plain text, escaped by whoever prints it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from energybench.meter.grid import J_PER_KWH
from energybench.meter.zones import OWN
from energybench.verdict import wording
from energybench.verdict.figures import OnDevice, Summary, Workload
from energybench.verdict.pairing import EnergyFigure

GLOSSARY = "../../../docs/glossary.md"  # from reports/SUITE/RUN, where a run lies by default
SEE_GLOSSARY = f"The [glossary]({GLOSSARY}), docs/glossary.md of energybench, explains every term of this page."
ENERGY_HEAD = ["workload", "method", "kind", "source", "scope", "energy", "sensor error", "net of idle", "CO₂e"]
UNCOUNTED_HEAD = ["workload", "method", "operators × calls", "may hide products"]
UNCOUNTED_ABOUT = (
    "Operators that the counted run called, in the steps that it counted, and that have no FLOP count: they sort, "
    "gather, scatter or draw, or nobody knows what they do. They cost time and energy, which the meter sees."
)
CARBON_ABOUT = (
    "Means of one training window and their spread over the blocks. Sources are listed apart and not added: two "
    "may watch one device. *sensor error*: the widest budget of a trial's sensors. *net of idle*: less what the "
    "same sensors read while the process waited, before and after; the savings above are gross. Only what was "
    "measured is given as CO₂e."
)


def _intensity(summary: Summary) -> tuple[dict[str, Any], float | None]:
    """What is known of the grid, and its kg CO₂e per kWh."""
    carbon = summary.machine.get("carbon") or {}
    intensity = carbon.get("intensity_kg_per_kwh")
    if intensity is None and carbon.get("intensity_kg_per_j") is not None:
        intensity = carbon["intensity_kg_per_j"] * J_PER_KWH
    return carbon, intensity


def commands(workload: Workload) -> list[tuple[str, str]]:
    """(method, what it runs) of a workload that is a command."""
    ran = [("baseline", workload.command), *((row.method, row.command) for row in workload.rows)]
    return [(method, command) for method, command in ran if command]


def machine_rows(summary: Summary) -> list[tuple[str, str]]:
    """(name, value) of what was recorded of the machine."""
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True))
        for name, value in sorted(summary.machine.items())
    ]


def calls(summary: Summary) -> list[str]:
    """Each call of energybench that made the run, as one would type it."""
    return [_typed(argv) for argv in summary.invocations]


def _typed(argv: Sequence[str]) -> str:
    named = bool(argv) and argv[0].rsplit("/", 1)[-1] in ("energybench", "__main__.py")
    return "energybench " + shlex.join(map(wording.clean, argv[1:] if named else argv))


def uncounted_rows(summary: Summary) -> list[list[str]]:
    """A row for each counted cell: operators without a FLOP count, their calls, those that may hide products."""
    return [
        [
            each.workload,
            each.method,
            ", ".join(f"{name} × {calls:,}" for name, calls in each.calls.items()),
            "not looked for" if each.may_hide_products is None else ", ".join(each.may_hide_products) or "none",
        ]
        for each in summary.uncounted
    ]


def energy_rows(summary: Summary) -> list[list[str]]:
    """Each source of each cell by itself: measured, modelled or missing with its reason; columns as in ENERGY_HEAD."""
    _, intensity = _intensity(summary)
    rows = []
    for workload in summary.workloads:
        cells = [(workload.baseline_name, workload.baseline.energies)]
        cells += _on_each(workload.baseline_name, workload.baseline.on_devices)
        for row in workload.rows:
            cells += [(row.method, row.energies), *_on_each(row.method, row.on_devices)]
        rows += [
            [workload.name, label, *_energy_row(energy, intensity)] for label, energies in cells for energy in energies
        ]
    return rows


def _on_each(label: str, figures: Sequence[OnDevice]) -> list[tuple[str, tuple[EnergyFigure, ...]]]:
    """A cell's joules on each of several devices, where none are averaged."""
    return [(f"{label}, {each.device}", each.energies) for each in figures]


def _energy_row(energy: EnergyFigure, intensity: float | None) -> list[str]:
    figure, co2 = energy.energy_j, wording.NOTHING
    joules = energy.reason or "no figure"
    if figure is not None:
        spread = "" if figure.sd is None else f" ± {wording.si(figure.sd, 'J')}"
        joules = f"{wording.si(figure.mean, 'J')}{spread}"
    error = wording.NOTHING if energy.error_j is None else f"±{wording.NB}{wording.si(energy.error_j, 'J')}"
    net = wording.NOTHING if energy.net_j is None else wording.si(energy.net_j.mean, "J")
    if figure is not None and intensity is not None and energy.measured:
        co2 = wording.si(1000 * figure.mean / J_PER_KWH * intensity, "g")
    kind = "measured" if energy.measured else "modelled" if figure else "missing"
    scope = f"{energy.scope}, {of_what}" if (of_what := wording.modelled_of(energy)) else energy.scope
    return [kind, energy.source, scope, joules, error, net, co2]


def carbon_note(summary: Summary) -> str:
    """The grid's intensity with its source and year; empty where none is known."""
    carbon, intensity = _intensity(summary)
    if intensity is None:
        return ""
    grid = f"{carbon.get('zone') or 'unknown zone'}, {wording.number(1000 * intensity, 2)} g/kWh"
    grid += f", {basis}" if (basis := carbon.get("basis")) else ""
    year = None if carbon.get("zone") == OWN else carbon.get("year") or "no year"
    grid += f" ({', '.join(str(part) for part in (carbon.get('source') or 'no source', year) if part)})"
    return f"Carbon intensity: {grid}. PUE {carbon.get('pue', 1.0)}, not included above."
