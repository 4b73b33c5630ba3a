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
        data = known["data"]
        console.print(Text(
            f"{name}: {known['parameters']:,} parameters, {data['train']:,} + {data['test']:,} samples "
            f"({data['source']}), {known['steps_per_epoch']} steps an epoch, {format_seconds(known['step_s'])} a step"
        ))  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, right in (
        ("workload", False),
        ("method", False),
        ("FLOPs, plain", True),
        ("about", True),
        ("note", False),
    ):
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for cell in facts["cells"]:
        note = cell["skipped"] or (f"{_range(cell['epochs'])} epochs" if cell["epochs"] else "")
        table.add_row(Text(cell["workload"]), Text(cell["method"]), format_flop(cell["plain_flop"]) if cell["plain_flop"] else "–",
                      "–" if cell["skipped"] else format_seconds(cell["expected_s"]), Text(note))  # fmt: skip
    console.print(table)
    for note in facts["notes"]:
        console.print(Text(f"note: {note}", "yellow"))
    methods = {name: path for cell in facts["cells"] for name, path in cell["methods"].items()}
    for name, path in sorted(methods.items()):
        console.print(Text(f"{name}: {path}", "dim"), soft_wrap=True)
    console.print(
        f"{facts['blocks']} blocks, {facts['trials']} trials and {facts['witnesses']} counted runs on {facts['device']}, "
        f"about {format_seconds(facts['expected_s'])}. No mistake found."
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
            console.print(Text(f"  {name}: {format_seconds(reading.wall_s)} wall, {format_seconds(reading.cpu_s or 0)} CPU"
                               + (f", {energy}" if energy else "")))  # fmt: skip
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
    words = {"measured": "Energy can be measured here.",
             "modelled": "Energy cannot be measured here: time and FLOPs are real, joules are modelled and never a saving."}  # fmt: skip
    console.print(Text(words[facts["energy"]], "bold"))
    data = facts["data"]
    console.print(Text(f"data: {data['folder'] or ''}{', '.join(data.get('sets', [])) and ': ' + ', '.join(data['sets'])}"
                       f"{data.get('why', '')}"), soft_wrap=True)  # fmt: skip
    console.print(
        Text("versions: " + ", ".join(f"{k} {v or 'missing'}" for k, v in facts["versions"].items())),
        soft_wrap=True,
    )
    console.print(f"disk: {format_bytes(facts['disk_free_b'])} free here")


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"
