"""What the runs below a folder measured: each method on each workload, of the newest run of each suite and device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energybench.common.errors import EnergybenchError
from energybench.records.record import Cell
from energybench.verdict import run_parts, wording
from energybench.verdict.figures import Row, Summary, Workload
from energybench.verdict.pairing import EnergyFigure
from energybench.verdict.run_parts import Part


@dataclass(frozen=True, slots=True)
class Run:
    """One run, with its shards, and the folder that its report lies in."""

    folder: Path
    part: Part
    summary: Summary

    @property
    def began(self) -> str:
        """When its newest call began, as it was recorded."""
        return max((call.started_at for call in self.part.records[0].invocations), default="")

    @property
    def marks(self) -> str:
        """What keeps its verdicts from being results: a smoke test, a changed setting, an unfinished run."""
        return ", ".join([*self.summary.stamp, *([] if self.summary.finished else ["unfinished"])])

    def table(self, workload: str) -> Mapping[str, Any]:
        """What its suite says of a workload; empty where the record does not hold it."""
        found: Sequence[Mapping[str, Any]] = self.part.records[0].resolved.get("workload") or ()
        return next((each for each in found if each.get("name") == workload), {})

    def cell(self, workload: str, method: str) -> Cell | None:
        """As it was planned."""
        cells = self.part.records[0].cells
        return next((each for each in cells if (each.workload, each.method) == (workload, method)), None)


@dataclass(frozen=True, slots=True)
class Measured:
    """A method at one setting on one workload."""

    run: Run
    workload: Workload
    row: Row

    @property
    def alone(self) -> str:
        """The method whose doing it is; empty of a stack, which is no one method's, and of a command."""
        return self.row.stack[0] if len(self.row.stack) == 1 else ""

    @property
    def label(self) -> str:
        """As the report calls it, with what it is made of or set to where that does not say so."""
        cell = self.run.cell(self.workload.name, self.row.method)
        layers = cell.stack if cell is not None else []
        told = " + ".join(map(_layer, layers))
        if "[" in self.row.method or told in ("", self.row.method):
            return self.row.method
        if len(layers) == 1 and self.row.method == self.alone:
            return told
        return f"{self.row.method}: {told}"


def _layer(layer: Mapping[str, Any]) -> str:
    """ "mine[rate=0.1]", as the label of a sweep is written"""
    settings = ",".join(f"{key}={value}" for key, value in (layer.get("parameters") or {}).items())
    name = str(layer.get("name") or layer.get("use"))
    return f"{name}[{settings}]" if settings else name


def read(folders: Iterable[Path], say: Callable[[str], None]) -> list[Run]:
    """The newest run of each suite on each device, by suite; one with marks only where there is no other.

    Args:
        folders: of runs
        say: is told each that cannot be read
    """
    newest: dict[tuple[str, str], Run] = {}
    for folder in sorted(folders):
        try:
            part = run_parts.whole_run(folder)
        except EnergybenchError as error:
            say(f"note: left out: {folder}: {error.problems[0].message}")
            continue
        found = Run(folder, part, part.summary())
        key = (found.summary.suite, part.device)
        known = newest.get(key)
        if known is None or _age(found) >= _age(known):
            newest[key] = found
    return [newest[key] for key in sorted(newest)]


def _age(run: Run) -> tuple[bool, str]:
    return not run.marks, run.began


def measured(runs: Iterable[Run]) -> list[Measured]:
    """Every comparison of these runs, in their order."""
    return [Measured(run, workload, row) for run in runs for workload in run.summary.workloads for row in workload.rows]


def energy_of(workload: Workload) -> str:
    """What is known of a workload's energy: "measured: gpu", "modelled", or that nothing is."""
    energies: list[EnergyFigure] = [*workload.baseline.energies]
    energies += [energy for each in workload.baseline.on_devices for energy in each.energies]
    known = [energy for energy in energies if energy.energy_j is not None]
    scopes = dict.fromkeys(energy.scope for energy in known if energy.measured)
    if scopes:
        return f"measured: {' + '.join(scopes)}"
    return "modelled" if known else wording.NOTHING
