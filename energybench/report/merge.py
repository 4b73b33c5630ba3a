"""Several runs of one suite side by side, never averaged; `verdict/run_parts.py` says which folders are one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from energybench.report import grid
from energybench.verdict import summary, wording
from energybench.verdict.figures import Row, Summary
from energybench.verdict.run_parts import Part


def to_json(parts: Sequence[Part]) -> dict[str, Any]:
    """Each part's own report, and why it stands apart."""
    return {
        "schema": 1,
        "runs": [
            {
                "folders": list(part.folders),
                "device": part.device,
                "apart": part.apart or None,
                "report": summary.to_json(summary.summarise(*part.records)),
            }
            for part in parts
        ],
    }


def side_by_side(parts: Sequence[Part], console: Console) -> None:
    """Who the parts are, then one table per workload with a column for each."""
    summaries = [summary.summarise(*part.records) for part in parts]
    grid.say(console, f"{summaries[0].suite} · {len(parts)} runs side by side, never averaged", "bold")
    for number, (part, each) in enumerate(zip(parts, summaries, strict=True), 1):
        stamps = [*each.stamp, *([] if each.finished else ["unfinished"])]
        apart = f" Apart: {part.apart}." if part.apart else ""
        grid.say(console, f"{number}: {' · '.join([part.described, *stamps])}.{apart}")
        for line in (each.headline, each.energy_note, each.look_note):
            if line:
                grid.say(console, line, "dim", "   ")
    head = ["Method", *map(str, range(1, len(parts) + 1))]
    for name in dict.fromkeys(w.name for each in summaries for w in each.workloads):
        rows = _rows(summaries, name)
        if rows:
            console.print()
            grid.say(console, name, "bold underline")
            grid.grid(console, head, rows)
    console.print()
    grid.say(console, "Each run's whole report: energybench report FOLDER", "dim")


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
