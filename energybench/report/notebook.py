"""A run's results as a notebook shows them: the sentence, the tables, the pictures that explain them.

A fragment of HTML that asks no network and runs no script. Every text is escaped; pictures are images, so that two
cells of a notebook share no name and a picture cannot reach the page. A picture's colours follow the browser's scheme,
and so does the paper under it, whatever the notebook's own theme.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from energybench.report.figures import album
from energybench.report.places import with_traces
from energybench.report.rows import GLOSSARY
from energybench.report.templates import template
from energybench.verdict import sentences, wording
from energybench.verdict.figures import Row, Summary, Workload
from energybench.verdict.run_parts import Part

KINDS = ("ladder", "where", "trade-off", "quality-curves", "blocks", "curves")
HEAD = (
    "Method",
    "claimed",
    "estimated",
    "counted",
    "measured [95 %]",
    "of",
    "realised",
    "quality Δ",
    "quality",
    "verdict",
)
MEASURED = 3  # of the cells: struck out where a flag forbids a verdict


def html(summary: Summary, part: Part) -> str:
    """The same records give the same text."""
    stamps = [*summary.stamp, *([] if summary.finished else ["unfinished"])]
    title = " · ".join([summary.suite, f"run {summary.run}", *([part.described] if part.apart else []), *stamps])
    notes = [summary.energy_note, summary.device_note, summary.look_note, f"Apart: {part.apart}." if part.apart else ""]
    notes += [flag.sentence for flag in summary.flags if flag.code != "modelled_energy"]
    home = Path(part.folders[0])
    drawn = album(summary, with_traces(part.records[1], home, part.homes), home, KINDS)
    text = template("notebook.html.j2").render(
        summary=summary,
        title=title,
        notes=[note for note in notes if note],
        sentences=sentences,
        head=HEAD,
        cells=_cells,
        remarks=_remarks,
        lost=[failure for failure in summary.failures if not failure.repeated],
        measured=MEASURED,
        pictures=drawn.pictures,
        encoded=_encoded,
        place=f"{part.folders[0]}/report.md",
        glossary=os.path.normpath(f"{part.folders[0]}/{GLOSSARY}"),
    )
    return str(text).encode("utf-8", "replace").decode()


def _cells(row: Row) -> list[str]:
    what = wording.what(row.measured.quantity, row.measured.scope) if row.measured else wording.NOTHING
    return [
        wording.percent(row.claimed_rel),
        wording.percent(row.estimated_rel),
        wording.counted(row),
        wording.measured(row.measured),
        what,
        wording.realised(row),
        wording.quality_change(row.quality),
        wording.quality_word(row),
    ]


def _remarks(workload: Workload) -> list[str]:
    """Why a figure may not be trusted, each once."""
    raised = [*workload.flags, *(flag for row in workload.rows for flag in row.flags)]
    return list(
        dict.fromkeys(f"{f.severity}: {f.sentence} {f.where}{f' ({f.detail})' if f.detail else ''}" for f in raised)
    )


def _encoded(svg: str) -> str:
    return base64.b64encode(svg.encode()).decode()
