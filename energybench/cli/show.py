"""Printing what is not a report: a plan, a run's trials, one record, the doctor's findings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.table import Table
from rich.text import Text

from energybench.cli.show_rounds import print_rounds
from energybench.common.escaping import json_text, printable, wrapped
from energybench.common.limits import RECORD_B
from energybench.common.safe_read import read_bytes
from energybench.common.units import format_bytes, format_flop, format_ratio, format_seconds
from energybench.records.curve import metrics_of
from energybench.records.reader import read_record
from energybench.records.record import CountingRun, Trial
from energybench.runner.progress import redraws
from energybench.suite.command_tables import written
from energybench.suite.variants import toml
from energybench.windows import file as windows_file

SENSORS = {
    "gpu": "GPU",
    "cpu": "RAPL",
    "accelerator": "accelerator",
    "module": "board",
}  # scope → what it lacks where nothing measures it
POWERS = {
    "NVML_FI_DEV_POWER_INSTANT": "of the moment; some cards look only a quarter of the time",
    "NVML_FI_DEV_POWER_AVERAGE": "the mean of the last second",
}
MOST_EPOCHS = 30  # of a record's curve, that are printed
PARTS = {
    "gpu": "the GPU that trains",
    "cpu": "the processor",
    "dram": "the memory",
    "module": "the module",
    "machine": "the machine",
}


FRESH_SHOWN = 4  # tensors without a start in a file of weights


def printable_text(text: str, style: str = "", **options: Any) -> Text:
    """Names come from files that others wrote."""
    return Text(printable(text), style, **options)


def print_plan(facts: dict[str, Any], console: Console) -> None:
    title = " · ".join([f"{facts['suite']}: {facts['path']}", *facts["stamp"]])
    console.print(printable_text(title, "bold"), soft_wrap=True)
    for name in dict.fromkeys(cell["workload"] for cell in facts["cells"]):
        known = facts["workloads"].get(name)
        cells = [cell for cell in facts["cells"] if cell["workload"] == name]
        console.print()
        console.print(printable_text(name, "bold"), soft_wrap=True)
        if known is None:
            _print_commands(cells, console)
            continue
        data, steps = known["data"], known["steps_per_epoch"]
        samples = f"{data['train']:,} + {data['test']:,} samples of {data['source']}"
        pace = f"{steps} steps an epoch of {format_seconds(known['step_s'])}"
        console.print(printable_text(f"{known['parameters']:,} parameters; {samples}; {pace}"))
        for line in _start_of(known):
            console.print(printable_text(line))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("method", overflow="fold")
        table.add_column("plain FLOPs", justify="right")
        table.add_column("about", justify="right")
        table.add_column("", overflow="fold")
        for cell in cells:
            if cell["control"] in ("possible", "unlikely"):
                continue  # said below, once for all
            note = f"{_range(cell['epochs'])} epochs" if cell["epochs"] else ""
            if cell["control"] == "asked":
                note = note or "where its method's tally shows that it trained less"
            flop = format_flop(cell["plain_flop"]) if cell["plain_flop"] else "–"
            about = "not run" if cell["skipped"] else format_seconds(cell["expected_s"])
            table.add_row(printable_text(cell["method"]), flop, about, printable_text(cell["skipped"] or note))
        console.print(table)
    for note in facts["notes"]:
        console.print(printable_text(f"note: {note}", "yellow"))
    if energy := _sensors(facts["machine"]):
        console.print(printable_text(energy, "dim"))
    if facts.get("sees"):
        from energybench.runner.foresight import sentence

        console.print(printable_text(f"{sentence(facts['sees']).capitalize()}.", "dim"))
    methods = {name: path for cell in facts["cells"] for name, path in cell["methods"].items()}
    for name, path in sorted(methods.items()):
        console.print(printable_text(f"{name}: {path}", "dim"), soft_wrap=True)
    about = ""
    if facts["expected_s"] is not None:
        from energybench.runner.expected_time import ExpectedTime

        about = f", {ExpectedTime(facts['expected_s'], facts['expected_most_s'])}"
    console.print(
        f"{facts['blocks']} blocks, {facts['trials']} trials and {facts['counting_runs']} counted runs "
        f"on {facts['device']}{about}{_possible(facts['possible_controls'])}. No mistake found."
    )


def _start_of(known: dict[str, Any]) -> Iterator[str]:
    """The task's parameters, and the weights that training starts from."""
    if task := known.get("task"):
        yield f"task: {', '.join(f'{key} = {toml(value)}' for key, value in task.items())}"
    if weights := known.get("weights"):
        fresh = weights["fresh"]
        left = f"; fresh: {', '.join(fresh[:FRESH_SHOWN])}" if fresh else ""
        more = f" and {len(fresh) - FRESH_SHOWN} more" if len(fresh) > FRESH_SHOWN else ""
        tensors = f"{weights['tensors']} tensors from {weights['file']} (SHA-256 {weights['sha256'][:12]}…)"
        yield f"weights: {tensors}{left}{more}"


def _possible(controls: int) -> str:
    """Trials that depend on what methods do."""
    if not controls:
        return ""
    plural = "s" * (controls != 1)
    return f"; up to {controls} matched control{plural} more, where a method's own tally shows that it trained less"


def _print_commands(cells: list[dict[str, Any]], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold")
    table.add_column("command", overflow="fold")
    for cell in cells:
        text = f"not run: {cell['skipped']}" if cell["skipped"] else written(cell["command"])
        table.add_row(printable_text(cell["method"]), printable_text(text))
    console.print(table)


def print_run(folder: Path, console: Console) -> None:
    from energybench.report import terminal
    from energybench.verdict.run_parts import read

    parts = read([folder])
    run, trials = parts[0].records[0], [trial for part in parts for trial in part.records[1]]
    console.print(
        printable_text(
            " · ".join([f"{run.suite} · run {run.run}", *run.stamp, *([] if run.finished else ["unfinished"])]), "bold"
        )
    )
    trials = sorted(trials, key=lambda t: (t.block, t.invocation, t.position))
    cells = [
        (
            t.status,
            format_seconds(t.train.wall_s) if t.train else "–",
            "\n".join(printable(f"{key} {value:.4g}") for key, value in t.quality.items()),
        )
        for t in trials
    ]
    columns = [
        terminal.Column(title, tuple(Text(row[place]) for row in cells), rank, "left")
        for place, (title, rank) in enumerate((("status", 1), ("train", 0), ("quality", 0)))
    ]
    terminal.show(console, [trial.trial for trial in trials], columns, "record")
    for trial in trials:
        if trial.reason:
            console.print(printable_text(f"{trial.trial}: {trial.reason}"))


def print_record(path: Path, console: Console) -> None:
    """The record's own JSON, with the figures that people look for first."""
    if (measured := windows_file.record(path)) is not None:
        for window in measured.windows:
            console.print(
                printable_text(f"{'  ' * window.path.count('/')}{windows_file.sentence(window)}"), soft_wrap=True
            )
        console.print(JSONHighlighter()(json_text(json.loads(read_bytes(path, RECORD_B)))), soft_wrap=True)
        return
    if path.name == "run.json":
        print_run(path.parent, console)
        return
    record = read_record(path, _kind(path))
    console.print(
        printable_text(
            f"{record.workload} · {record.method} · {record.status}" + (f": {record.reason}" if record.reason else ""),
            "bold",
        )
    )
    if isinstance(record, Trial):
        for name, reading in record.phases.items():
            energy = ", ".join(
                f"{e.energy_j:.4g} J {e.scope} from {e.source}" if e.energy_j is not None else f"{e.scope}: {e.reason}"
                for e in reading.energy
            )
            times = f"{format_seconds(reading.wall_s)} wall"
            if reading.cpu_s is not None:
                times += f", {format_seconds(reading.cpu_s)} CPU"
            console.print(printable_text(f"  {name}: {times}" + (f", {energy}" if energy else "")))
        _print_curve(record, console)
        _print_summaries(record, console)
        print_rounds(record, console)
        if record.memory_resident_b:
            console.print(f"  memory: {format_bytes(record.memory_resident_b)} resident at most")
    text = json_text(json.loads(read_bytes(path, RECORD_B)))
    console.print(JSONHighlighter()(text), soft_wrap=True)


def _print_curve(trial: Trial, console: Console) -> None:
    """The epochs whose metrics were looked at, at most so many of them, the last among them."""
    looked = [(point, metrics) for point in trial.curve if (metrics := metrics_of(point))]
    every = -(-len(looked) // MOST_EPOCHS)
    shown = looked[::-1][:: max(1, every)][::-1]
    for point, metrics in shown:
        figures = {"training loss": point.get("loss")} | metrics
        told = ", ".join(f"{name} {'–' if value is None else f'{value:.4g}'}" for name, value in figures.items())
        console.print(printable_text(f"  epoch {point.get('epoch') or 0:g}: {told}"))
    if len(shown) < len(looked):
        console.print(f"  ({len(shown)} of {len(looked)} epochs; all of them: energybench export FOLDER --to curves)")


def _print_summaries(trial: Trial, console: Console) -> None:
    """Figures that a task, or a method, has summed up in its diagnostics; bytes as such."""
    for name, told in trial.diagnostics.items():
        summary = told.get("summary") if isinstance(told, dict) else None
        if isinstance(summary, dict):
            figures = ", ".join(_figure(str(key), value) for key, value in summary.items())
            console.print(printable_text(f"  {name}: {figures}"))


def _figure(key: str, value: Any) -> str:
    words = key.removesuffix("_b").replace("_", " ")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{words} {value}"
    return f"{words} {format_bytes(value) if key.endswith('_b') else f'{value:,}'}"


def _kind(path: Path) -> type[Trial] | type[CountingRun]:
    """By its place in a run's folder; elsewhere by a key that only one of them has."""
    keys: dict[str, Any] = {}
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_bytes(path, RECORD_B))
        keys = content if isinstance(content, dict) else {}
    if "trial" not in keys and (path.parent.name == "witness" or "counted_flop" in keys):
        return CountingRun
    return Trial


def _sensors(machine: dict[str, Any]) -> str:
    """What a trial's energy will come from; empty where the suite wants none."""
    measured, missing = machine.get("measured"), machine.get("missing") or {}
    if measured is None:
        return ""
    reasons = "; ".join(f"{scope}: {reason}" for scope, reason in missing.items())
    energy = f"measured by {', '.join(measured)}" if measured else "modelled by codecarbon, never a saving"
    return f"energy: {energy}" + (f" ({reasons})" if reasons else "")


def print_doctor(facts: dict[str, Any], console: Console) -> None:
    machine = facts["machine"]
    _say(console, f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}", "bold")
    for sensor in facts["sensors"]:
        word = "usable" if sensor["usable"] else "not usable"
        style = "green" if sensor["usable"] and sensor["measured"] else "yellow"
        _say(console, f"{sensor['name']}: {word}: {sensor['why']}", style)
        _remedy(console, sensor["remedy"])
        if "uuid" in sensor:
            _print_card(sensor, console)
        for domain, reason in sensor.get("left_out", {}).items():
            _say(console, f"left out: {domain}: {reason}", indent="  ")
    for tracker in machine["trackers"]:
        text = f"warning: another tracker of energy runs now: {tracker}; its own work is in every figure"
        _say(console, text, "yellow")
    console.print()
    if facts["calibration"]:
        _print_calibration(facts["calibration"], console)
    else:
        _say(console, f"noise floor and smallest saving: {facts['calibration_reason']}", "yellow")
    console.print()
    data = facts["data"]
    sets = f"{data['folder']}: {', '.join(data['sets'])}" if "sets" in data else data["why"]
    _say(console, f"data: {sets}")
    for met in facts["scripts"]:
        _say(console, f"a script of yours that imports {met['name']} will fail: {met['why']}", "yellow")
        _remedy(console, met["remedy"])
    versions = (f"{name} {known or 'missing'}".replace(" ", "\u00a0") for name, known in facts["versions"].items())
    _say(console, f"versions: {', '.join(versions)}")
    _say(console, f"disk: {format_bytes(facts['disk_free_b'])} free here")
    _say(console, _verdict(facts), "bold")


def _print_card(card: dict[str, Any], console: Console) -> None:
    """What only a card has: its counter, what its power means, what may bend them."""
    _say(console, f"{card['uuid']}, driver {card['driver']}", indent="  ")
    if tick := card["tick"]:
        usual, least, most = (format_seconds(tick[key]) for key in ("seconds", "least_s", "most_s"))
        _say(console, f"counter: yes, moves every {usual} ({least} to {most})", indent="  ")
    else:
        _say(console, f"counter: no: {card['counter_reason']}", indent="  ")
        _remedy(console, card["counter_remedy"] if card["usable"] else "", "    ")
    if power := card["power"]:
        meaning = POWERS.get(power["field"], "its averaging time depends on card and driver")
        _say(console, f"power: {power['field']}, scope {power['scope']}: {meaning}", indent="  ")
        seen, every = format_seconds(power["seen_s"]), format_seconds(max(power["every_s"], power["seen_s"]))
        _say(console, f"it sees {seen} of every {every} ({power['look']})", indent="  ")
    else:
        _say(console, f"power: no: {card['power_reason']}", indent="  ")
    for warned in card["warnings"]:
        _say(console, f"warning: {warned['warning']}", "yellow", indent="  ")
        _remedy(console, warned["remedy"], "    ")


def _print_calibration(calibration: dict[str, Any], console: Console) -> None:
    model, pairs = calibration["workload"]["model"]["use"], calibration["pairs"]
    what = f"{model} on {calibration['workload']['data'].partition(',')[0]}, {calibration['device']}"
    runs = f"{pairs} pairs of identical trainings of {format_seconds(calibration['window_s'])}"
    _say(console, f"A/A calibration: {runs}; {what}", "bold")
    known = {name: calibration[name] for name in ("time", "energy") if calibration[name]}
    for name, floor in known.items():
        low, high = (format_ratio(value) for value in floor["bias_interval_rel"])
        sensors = f" ({', '.join(floor['sensors'])})" if "sensors" in floor else ""
        bias = f"bias {format_ratio(floor['bias_rel'])} [{low} to {high}]"
        noise = format_ratio(math.expm1(floor["sd_log"]))
        _say(console, f"{name}{sensors}: noise floor {noise} between two identical trainings, {bias}")
        if floor["biased"]:
            text = "identical trainings differ: find what else runs here before you trust a comparison"
            _say(console, f"warning: {text}", "yellow", indent="  ")
    if calibration["energy"] is None:
        _say(console, f"energy: {calibration['energy_reason']}")
    margin, chance = format_ratio(calibration["noise_rel"], 0), format_ratio(calibration["chance_rel"], 0)
    _say(console, f"Smallest saving that shows, with a chance of {chance} and a margin of {margin}:")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("in", overflow="fold")
    for name in known:
        table.add_column(name, justify="right", overflow="fold")
    for rows in zip(*(floor["detectable"] for floor in known.values()), strict=True):
        cells = ("–" if row["reason"] else format_ratio(row["saving_rel"]) for row in rows)
        table.add_row(f"{rows[0]['within_s'] / 60:g} min, {rows[0]['pairs']} pairs", *cells)
    console.print(table)
    reasons = [row["reason"] for floor in known.values() for row in floor["detectable"] if row["reason"]]
    for reason in dict.fromkeys(reasons):
        _say(console, f"–: {reason}")


def _verdict(facts: dict[str, Any]) -> str:
    """Which energy a run on this machine will have, and of what parts."""
    missing = "; ".join(f"no {SENSORS.get(scope, scope)}: {why}" for scope, why in facts["energy_missing"].items())
    if facts["energy"] == "modelled":
        real = "time and FLOPs are real, joules are modelled and never a saving"
        return f"Energy cannot be measured here: {real} ({missing})."
    parts = "; ".join(
        f"{PARTS.get(scope, scope)}: {(' or ' if scope == 'gpu' else ', ').join(names)}"
        for scope, names in facts["energy_by"].items()
    )
    return f"Energy can be measured here. A run will measure {parts}" + (f" ({missing})." if missing else ".")


def _remedy(console: Console, remedy: str, indent: str = "  ") -> None:
    """A command stays on one line, however narrow the terminal, so that it can be copied whole."""
    if remedy:
        console.print(printable_text(f"{indent}remedy: {remedy}", "dim"), soft_wrap=True)


def _say(console: Console, text: str, style: str = "", indent: str = "") -> None:
    """A sentence, broken between words; a longer word, such as a path, stays whole."""
    for line in wrapped(text, console.width, indent):
        console.print(printable_text(line, style), soft_wrap=True)


@contextmanager
def waiting(console: Console, what: str) -> Iterator[Callable[[float], None]]:
    """One line while a child works. What is yielded redraws it, on a terminal, with the seconds so far."""

    live = redraws(console)

    def tick(elapsed_s: float) -> None:
        if live:
            line = printable_text(f"{what}: {elapsed_s:.0f} s", "dim", no_wrap=True)
            line.truncate(max(10, console.width - 1), overflow="ellipsis")
            console.file.write("\r\x1b[2K")
            console.print(line, end="")

    if live:
        tick(0.0)
    else:
        console.print(printable_text(what), soft_wrap=True)
    try:
        yield tick
    finally:
        if live:
            console.file.write("\r\x1b[2K")
            console.file.flush()


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"
