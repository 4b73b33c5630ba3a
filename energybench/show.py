"""Printing what is not a report: a plan, a run's trials, one record, the doctor's findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energybench.record import Trial, Witness, read, read_folder
from energybench.units import format_bytes, format_flop, format_seconds


def print_plan(facts: dict[str, Any], console: Console) -> None:
    title = " · ".join([f"{facts['suite']}: {facts['path']}", *facts["stamp"]])
    console.print(Text(title, "bold"), soft_wrap=True)
    for name, known in facts["workloads"].items():
        cells = [cell for cell in facts["cells"] if cell["workload"] == name]
        console.print()
        console.print(Text(name, "bold"), soft_wrap=True)
        data, steps = known["data"], known["steps_per_epoch"]
        samples = f"{data['train']:,} + {data['test']:,} samples of {data['source']}"
        pace = f"{steps} steps an epoch of {format_seconds(known['step_s'])}"
        console.print(Text(f"{known['parameters']:,} parameters; {samples}; {pace}"))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("method", overflow="fold")
        table.add_column("plain FLOPs", justify="right")
        table.add_column("about", justify="right")
        table.add_column("", overflow="fold")
        for cell in cells:
            note = f"{_range(cell['epochs'])} epochs" if cell["epochs"] else ""
            flop = format_flop(cell["plain_flop"]) if cell["plain_flop"] else "–"
            about = "not run" if cell["skipped"] else format_seconds(cell["expected_s"])
            table.add_row(Text(cell["method"]), flop, about, Text(cell["skipped"] or note))
        console.print(table)
    for note in facts["notes"]:
        console.print(Text(f"note: {note}", "yellow"))
    methods = {name: path for cell in facts["cells"] for name, path in cell["methods"].items()}
    for name, path in sorted(methods.items()):
        console.print(Text(f"{name}: {path}", "dim"), soft_wrap=True)
    console.print(
        f"{facts['blocks']} blocks, {facts['trials']} trials and {facts['witnesses']} counted runs "
        f"on {facts['device']}, about {format_seconds(facts['expected_s'])}. No mistake found."
    )


def print_run(folder: Path, console: Console) -> None:
    run, trials, _ = read_folder(folder)
    console.print(
        Text(
            " · ".join(
                [f"{run.suite} · run {run.run}", *run.stamp, *([] if run.finished else ["unfinished"])]
            ),
            "bold",
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("record", "status", "train", "quality", "reason"):
        table.add_column(heading, overflow="fold")
    for trial in sorted(trials, key=lambda t: (t.block, t.invocation, t.position)):
        quality = ", ".join(f"{key} {value:.4g}" for key, value in trial.quality.items())
        table.add_row(Text(trial.trial), trial.status, format_seconds(trial.train.wall_s) if trial.train else "–",
                      quality, Text(trial.reason or ""))  # fmt: skip
    console.print(table)


def print_record(path: Path, console: Console) -> None:
    """The record's own JSON, with the figures that people look for first."""
    kind: type[Trial] | type[Witness] = Witness if path.parent.name == "witness" else Trial
    record = read(path, kind)
    console.print(
        Text(
            f"{record.workload} · {record.method} · {record.status}"
            + (f": {record.reason}" if record.reason else ""),
            "bold",
        )
    )
    if isinstance(record, Trial):
        for name, reading in record.phases.items():
            energy = ", ".join(
                f"{e.energy_j:.4g} J {e.scope} from {e.source}"
                if e.energy_j is not None
                else f"{e.scope}: {e.reason}"
                for e in reading.energy
            )
            times = f"{format_seconds(reading.wall_s)} wall, {format_seconds(reading.cpu_s or 0)} CPU"
            console.print(Text(f"  {name}: {times}" + (f", {energy}" if energy else "")))
        if record.memory_resident_b:
            console.print(f"  memory: {format_bytes(record.memory_resident_b)} resident at most")
    console.print_json(json.dumps(record.model_dump(mode="json", by_alias=True)))


def print_doctor(facts: dict[str, Any], console: Console) -> None:
    machine = facts["machine"]
    console.print(Text(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}", "bold"))
    for sensor in facts["sensors"]:
        word = "usable" if sensor["usable"] else "not usable"
        style = "green" if sensor["usable"] and sensor["measured"] else "yellow"
        console.print(Text(f"{sensor['name']}: {word}: {sensor['why']}", style), soft_wrap=True)
        if sensor["remedy"]:
            console.print(Text(f"  remedy: {sensor['remedy']}", "dim"), soft_wrap=True)
    measured = "Energy can be measured here."
    modelled = (
        "Energy cannot be measured here: time and FLOPs are real, joules are modelled and never a saving."
    )
    console.print(Text(measured if facts["energy"] == "measured" else modelled, "bold"))
    data = facts["data"]
    sets = f"{data['folder']}: {', '.join(data['sets'])}" if "sets" in data else data["why"]
    console.print(Text(f"data: {sets}"), soft_wrap=True)
    console.print(
        Text("versions: " + ", ".join(f"{k} {v or 'missing'}" for k, v in facts["versions"].items())),
        soft_wrap=True,
    )
    console.print(f"disk: {format_bytes(facts['disk_free_b'])} free here")


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"
