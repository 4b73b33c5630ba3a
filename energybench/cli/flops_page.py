"""`energybench flops`: what each cell of a suite computes, before anything is metered. Imports no torch.

    baseline    plain training, from the ledger that the plan's child traces
    estimated   what the methods' own formulas make of it after a run
    counted     what the independent counter saw in that run

Estimate and count need a run of the cell: one child each, unmetered, as long as one training. Without it, and where the
data is not on this machine, the ledger alone is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from energybench.cli.show import printable_text
from energybench.common.escaping import printable
from energybench.common.units import format_flop, format_ratio, format_seconds
from energybench.flops.intensity import groups
from energybench.flops.unpriced import matrix_operators
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, Line, Work
from energybench.process.forkserver import Launcher
from energybench.records.record import Cell
from energybench.records.scratch_folder import scratch
from energybench.runner.plan_request import Planned, plan
from energybench.runner.plan_spec import Purpose
from energybench.suite.suite import Suite
from energybench.verdict.flags import check_workload
from energybench.workloads.description import DataDescription
from energybench.workloads.stand_in import KIND as STAND_IN

PHASES = {FORWARD: "forward", WEIGHT_GRADIENT: "dW", INPUT_GRADIENT: "dX"}
NOTHING, NB = "–", "\N{NO-BREAK SPACE}"
SHOWS = 0.0005  # of a count: less is 0.0 % of it


def examine(
    suite: Suite, *, device: str | None, count: bool, by_module: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything that is printed. `say` hears what is being counted, and about how long it takes."""
    with scratch() as place:
        launcher = Launcher()
        if suite.trains:
            launcher.warm()
        purpose: Purpose = "count" if count else "trace"
        planned = plan(suite, launcher, place, device=device, download=False, purpose=purpose)
        counts = _counts(planned, launcher, place, say) if count else {}
    plain = {name: known.work(planned.workload(name)[0]) for name, known in planned.workloads.items()}
    commands = [
        f"{workload.name} is a command outside energybench's loop: its FLOPs are not known here"
        for _, workload in planned.spec.commands
    ]
    cells = [
        _cell(cell, planned, plain[cell.workload], counts.get((cell.workload, cell.method)), by_module)
        for cell in planned.cells
        if cell.role != "twin"
        and not cell.command
        and (cell.role != "control" or cell.epochs)  # its budget is declared
    ]
    return {
        "suite": suite.suite,
        "path": str(suite.path),
        "stamp": suite.stamp,
        "device": planned.device,
        "seed": suite.trials.seed,
        "torch": planned.machine.get("torch"),
        "counted": count,
        "notes": [*planned.notes, *commands, *_differences(cells)],
        "workloads": {name: _workload(planned, name, work) for name, work in plain.items()},
        "cells": cells,
    }


def _batch(planned: Planned, name: str) -> float:
    """Samples of one pass: what reads the parameters once."""
    workload, _ = planned.workload(name)
    return workload.data.batch / workload.train.accumulate


def _counts(
    planned: Planned, launcher: Launcher, place: Path, say: Callable[[str], None]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Each cell whose steps are its own, run once under the counter."""
    counts = {}
    countable = [cell for cell in planned.counting_runs if _description(planned, cell.workload).kind != STAND_IN]
    if countable:
        total = sum((cell.expected_s or 0.0) * 1.5 + 1 for cell in countable)
        say(f"counting {len(countable)} runs without a meter, about {format_seconds(total)}; --no-count leaves it out")
    for number, cell in enumerate(countable, 1):
        say(f"[{number}/{len(countable)}] {cell.workload} · {cell.method}")
        counts[cell.workload, cell.method] = _count(cell, planned, launcher, place)
    return counts


def _count(cell: Cell, planned: Planned, launcher: Launcher, place: Path) -> dict[str, Any]:
    in_path, out_path = place / "count.in.json", place / "count.out.json"
    planned.counting_spec(cell).write(in_path)
    out_path.unlink(missing_ok=True)
    outcome = launcher.call("energybench.trial.count_cell:main", in_path, out_path)
    if not out_path.exists():
        return {"status": "failed", "reason": outcome.reason or "it ended without a result"}
    result: dict[str, Any] = json.loads(out_path.read_text(encoding="utf-8"))
    return result


def _workload(planned: Planned, name: str, work: Work) -> dict[str, Any]:
    batch = _batch(planned, name)
    return {
        "data": _description(planned, name).source,
        "parameters": planned.workloads[name].parameters,
        "epochs": work.epochs,
        "samples": work.samples,
        "batch": batch,
        "plain_flop": work.flop if work.lines else None,
        "plain_b": work.moved_b(batch) if work.lines else None,
        "plain_by_phase": work.by_phase(),
        "plain_by_op": work.flop_by(_op),
        "plain_b_by_op": work.moved_b_by(batch, _op),
    }


def _description(planned: Planned, name: str) -> DataDescription:
    """Of the data of a workload that is trained."""
    return planned.workloads[name].data


def _op(line: Line) -> str:
    return line.op


def _cell(cell: Cell, planned: Planned, plain: Work, count: dict[str, Any] | None, by_module: bool) -> dict[str, Any]:
    batch = _batch(planned, cell.workload)
    work, reason = _estimated(cell, plain, count)
    facts: dict[str, Any] = {
        "workload": cell.workload,
        "method": cell.method,
        "role": cell.role,
        "skipped": cell.skipped,
        "not_in_ledger": cell.not_in_ledger,
        "status": count["status"] if count else None,
        "baseline_flop": plain.flop if plain.lines else None,
        "estimated_flop": work.flop if work else None,
        "estimated_b": work.moved_b(batch) if work else None,
        "estimated_by_phase": work.by_phase() if work else {},
        "estimated_by_op": work.flop_by(_op) if work else {},
        "counted_flop": count.get("counted_flop") if count else None,
        "counted_error_flop": count.get("counted_error_flop", 0.0) if count else 0.0,
        "outside_steps_flop": count.get("outside_steps_flop", 0.0) if count else 0.0,
        "counted_by_op": count.get("counted_by_op", {}) if count else {},
        "uncounted_calls": count.get("uncounted_calls", {}) if count else {},
        "unpriced_matrix": matrix_operators(count.get("uncounted_calls", {})) if count else [],
        "passes": count.get("passes") if count else None,
        "reason": reason,
    }
    if by_module and work:
        facts["modules"] = [
            {
                "name": group.name,
                "plain_flop": group.plain_flop,
                "estimated_flop": group.estimated_flop,
                "plain_b": group.plain_b,
                "estimated_b": group.estimated_b,
            }
            for group in groups(plain, work, batch)
        ]
    return facts


def _estimated(cell: Cell, plain: Work, count: dict[str, Any] | None) -> tuple[Work | None, str | None]:
    """The ledger after the methods' formulas, and why there is none or no count."""
    if cell.skipped:
        return None, cell.skipped
    if not plain.lines:
        return None, "no ledger"
    if cell.role == "baseline":
        return plain, count.get("reason") if count else None
    if cell.epochs:  # a control: plain training for the epochs that its method declares to keep
        return plain.trained(sum(cell.epochs) / len(cell.epochs)), None
    if count is None or "lines" not in count:
        return None, count.get("reason") if count else "not counted"
    lines = tuple(Line(**line) for line in count["lines"])
    run = {key: count[key] for key in ("epochs", "samples", "batch", "accumulate")}
    return Work(lines, **run, sizes=tuple(map(tuple, count["sizes"]))), count.get("reason")


def _differences(cells: list[dict[str, Any]]) -> list[str]:
    """Where plain training's ledger and the counter differ: then neither says anything."""
    differences = []
    for cell in cells:
        if cell["role"] == "baseline":
            figures = {"plain_flop": cell["baseline_flop"], "counted_flop": cell["counted_flop"]}
            figures["counted_error_flop"] = cell["counted_error_flop"] or 0.0
            flags = check_workload(twin=None, margin=0.0, not_in_ledger=cell["not_in_ledger"], **figures)
            differences += [f"{cell['workload']}: ledger and counter are {flag.detail}" for flag in flags]
    return differences


def _uncounted(cells: list[dict[str, Any]]) -> list[str]:
    """What each counted cell called and nobody prices, and which of it may hide products."""
    said = []
    for cell in cells:
        calls = cell["uncounted_calls"]
        if calls:
            listed = ", ".join(f"{name} × {calls[name]:,}" for name in sorted(calls))
            hidden = ", ".join(cell["unpriced_matrix"])
            more = f"; may hide products, so the count is not the whole: {hidden}" if hidden else ""
            said.append(f"{cell['workload']} · {cell['method']}: without a FLOP count: {listed}{more}")
    return said


# ── printing ──────────────────────────────────────────────────────────────────────────────────────────────────


def print_flops(facts: dict[str, Any], console: Console) -> None:
    title = " · ".join([f"{facts['suite']}: {facts['path']}", *facts["stamp"]])
    console.print(printable_text(title, "bold"), soft_wrap=True)
    for name, known in facts["workloads"].items():
        cells = [cell for cell in facts["cells"] if cell["workload"] == name]
        console.print()
        console.print(printable_text(name, "bold"), soft_wrap=True)
        size = f"{known['epochs']:g} epochs of {known['samples']:,} samples, batch {known['batch']:g}"
        console.print(printable_text(f"{size}; {known['data']}"), soft_wrap=True)
        _totals(cells, facts["counted"], console)
        _shares(cells, console)
        for cell in cells:
            if cell.get("modules") and cell["role"] != "control":  # a control is the baseline, for fewer epochs
                console.print()
                console.print(printable_text(f"{name} · {cell['method']}, layer by layer"), soft_wrap=True)
                _modules(cell["modules"], cell["role"] == "baseline", console)
            elif cell["reason"] and (cell["skipped"] or cell["reason"] != "not counted"):
                console.print(printable_text(f"{cell['method']}: {cell['reason']}", "yellow"), soft_wrap=True)
    for note in [*facts["notes"], *_uncounted(facts["cells"])]:
        console.print(printable_text(f"note: {note}", "yellow"), soft_wrap=True)
    if not facts["counted"]:
        console.print(
            printable_text("Not counted, so methods have no estimate: theirs depends on what a run does.", "dim")
        )


def _show(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], ranks: Sequence[int]) -> None:
    """ranks: of each column but the first, what a narrow terminal loses first; 0 stays."""
    from energybench.report import terminal

    columns = [
        terminal.Column(_title(title), tuple(Text(row[place]) for row in rows), ranks[place - 1])
        for place, title in enumerate(head)
        if place
    ]
    console.print()
    terminal.show(console, [row[0] for row in rows], columns, head[0])


def _title(text: str) -> str:
    """Phases and operators are named by methods."""
    return "\n".join(map(printable, text.split("\n")))


def _flop(value: float | None) -> str:
    return NOTHING if value is None else format_flop(value)


def _sampled(value: float | None, error: float | None) -> str:
    """A count, and half of its 95 % interval where sampling some of the steps leaves a share of it open that shows."""
    if value is None or not error or error < SHOWS * value:
        return _flop(value)
    return f"{_flop(value)}\n±{NB}{_flop(error)}"


def _rel(value: float, total: float | None, digits: int = 1) -> str:
    return format_ratio(value / total, digits) if total else NOTHING


def _saved(value: float | None, plain: float | None) -> str:
    return NOTHING if value is None or not plain else format_ratio(1 - value / plain)


def _totals(cells: list[dict[str, Any]], counted: bool, console: Console) -> None:
    """Each method's three figures; what it saves is relative to the baseline's same figure."""
    base, rows = next((cell for cell in cells if cell["role"] == "baseline"), cells[0]), []
    for cell in cells:
        first = cell["role"] == "baseline"
        row = [cell["method"], _flop(cell["baseline_flop"])]
        for kind in ("estimated_flop", *(["counted_flop"] if counted else [])):
            error = cell["counted_error_flop"] if kind == "counted_flop" else None
            row += [_sampled(cell[kind], error), NOTHING if first else _saved(cell[kind], base[kind])]
        rows.append(row)
    more = ("counted", "saved,\ncounted") if counted else ()
    _show(console, ("method", "baseline", "estimated", "saved,\nestimated", *more), rows, (3, 2, 0, 1, 0))


def _shares(cells: list[dict[str, Any]], console: Console) -> None:
    """How each estimate divides into phases and into operators."""
    phases = list(dict.fromkeys([*PHASES, *(p for cell in cells for p in cell["estimated_by_phase"])]))
    ops = list(dict.fromkeys(op for cell in cells for op in cell["estimated_by_op"]))
    rows = []
    for cell in cells:
        total = cell["estimated_flop"]
        if total:
            parts = [cell["estimated_by_phase"].get(phase, 0.0) for phase in phases]
            parts += [cell["estimated_by_op"].get(op, 0.0) for op in ops]
            rows.append([cell["method"], *(_rel(part, total) for part in parts)])
    head = ("share of", *(PHASES.get(phase, phase) for phase in phases), *ops)
    if rows:
        _show(console, head, rows, range(len(phases) + len(ops)))


def _modules(modules: list[dict[str, Any]], plain: bool, console: Console) -> None:
    """Layers with FLOPs, and in one row those that only move bytes; what is saved, unless this is plain training."""
    keys = ("plain_flop", "estimated_flop", "plain_b", "estimated_b")
    total = {key: sum(module[key] for module in modules) for key in keys}
    moving = [module for module in modules if not module["plain_flop"] and not module["estimated_flop"]]
    rest = {"name": "all that only moves bytes"} | {key: sum(module[key] for module in moving) for key in keys}
    rows = []
    for module in [*(module for module in modules if module not in moving), *([rest] if moving else [])]:
        flop, moved_b = module["plain_flop"], module["plain_b"]
        saved = [_saved(module["estimated_flop"], flop), _saved(module["estimated_b"], moved_b)]
        rows.append(
            [
                module["name"],
                _flop(flop),
                _rel(flop, total["plain_flop"]),
                _rel(moved_b, total["plain_b"]),
                f"{flop / moved_b:.1f}" if moved_b else NOTHING,
                *([] if plain else saved),
            ]
        )
    more = () if plain else ("saved", "bytes saved")
    _show(console, ("layer", "baseline", "FLOPs", "bytes", "FLOP/B", *more), rows, (3, 0, 1, 4, 0, 2))
