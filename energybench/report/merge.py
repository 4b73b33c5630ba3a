"""Several runs of one suite side by side, never averaged; `verdict/run_parts.py` says which folders are one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from energybench.report import grid, run_lines
from energybench.verdict import summary, wording
from energybench.verdict.figures import Row, Summary
from energybench.verdict.run_parts import Part


def to_json(parts: Sequence[Part], summaries: Sequence[Summary] | None = None) -> dict[str, Any]:
    """Each part's own report, and why it stands apart. summaries: of the parts, where they are made already"""
    return {
        "schema": 1,
        "runs": [
            {
                "folders": list(part.folders),
                "device": part.device,
                "apart": part.apart or None,
                "report": summary.to_json(each),
            }
            for part, each in zip(parts, summaries or [part.summary() for part in parts], strict=True)
        ],
    }


def side_by_side(parts: Sequence[Part], console: Console, summaries: Sequence[Summary] | None = None) -> None:
    """Who the parts are, then one table per workload with a column for each. summaries: as of `to_json`"""
    summaries = summaries or [part.summary() for part in parts]
    grid.say(console, f"{summaries[0].suite} · {len(parts)} runs side by side, never averaged", "bold")
    for number, (part, each) in enumerate(zip(parts, summaries, strict=True), 1):
        stamps = [*each.stamp, *([] if each.finished else ["unfinished"])]
        apart = f" Apart: {part.apart}." if part.apart else ""
        grid.say(console, f"{number}: {' · '.join([part.described, *stamps])}.{apart}")
        for line in (each.headline, each.energy_note, each.device_note, each.look_note):
            if line:
                grid.say(console, line, "dim", "   ")
        for line, style in run_lines.requirements(each):
            grid.say(console, f"§ {line}", style, "   ")
    head = ["Method", *map(str, range(1, len(parts) + 1))]
    for name in dict.fromkeys(w.name for each in summaries for w in each.workloads):
        rows = _rows(summaries, name)
        if rows:
            console.print()
            grid.say(console, name, "bold underline")
            grid.grid(console, head, rows)
    console.print()
    grid.say(console, _whole(parts), "dim")


def _whole(parts: Sequence[Part]) -> str:
    """Where each one's whole report is."""
    folders = [folder for part in parts for folder in part.folders]
    if len(set(folders)) == len(folders):
        return "Each run's whole report: energybench report FOLDER"
    return "Each one's whole report: energybench report --all FOLDER --html site"  # one folder holds several


def _rows(summaries: Sequence[Summary], name: str) -> list[list[str]]:
    """One workload: each method's figure and verdict in each part."""
    by_part = [{row.method: row for w in each.workloads if w.name == name for row in w.rows} for each in summaries]
    labels = dict.fromkeys(label for rows in by_part for label in rows)
    return [[label, *(_cell(rows.get(label)) for rows in by_part)] for label in labels]


def _cell(row: Row | None) -> str:
    if row is None or row.measured is None:
        return wording.NOTHING
    what = wording.what(row.measured.quantity, row.measured.scope)
    struck = "struck, " if row.verdict_forbidden else ""
    return f"{wording.measured(row.measured)} {what}, {struck}{row.verdict}"
