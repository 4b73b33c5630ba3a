"""Sections of the Markdown page about the run as a whole: blocks added later, all workloads together, requirements.

Each is a list of paragraphs, empty where there is nothing to say.
"""

from __future__ import annotations

from energybench.report import run_lines
from energybench.report.markdown_syntax import brackets, escape, table
from energybench.verdict import interim_notes, wording
from energybench.verdict.figures import Added, Summary


def added_blocks(summary: Summary) -> list[str]:
    """The exploratory part of a page; nothing where no block was added."""
    if not summary.added:
        return []
    rows = [
        [escape(row.workload), escape(row.method), wording.blocks(row.measured.n), _figure(row), row.measured.quantity]
        for row in summary.added
    ]
    head = ["workload", "method", "of all", "saving \\[95 %\\]", "of"]
    return [
        "## Exploratory: with the blocks added later",
        escape(interim_notes.about(summary)),
        table(head, rows, right="23"),
    ]


def _figure(row: Added) -> str:
    return brackets(wording.measured(row.measured))


def over_all_workloads(summary: Summary) -> list[str]:
    """The small table of a page; nothing where no method ran on two workloads."""
    if not summary.overall:
        return []
    head = [
        "Method",
        "saving",
        "of",
        "range over workloads",
        "95 % for workloads like these",
        "quality within the margin",
    ]
    rows = [[escape(each.method), *map(brackets, run_lines.overall_cells(each))] for each in summary.overall]
    notes = [escape(text) for text in run_lines.overall_left_out(summary)]
    return ["## Over all workloads", run_lines.OVERALL_ABOUT, table(head, rows, right="1345"), *notes]


def requirements(summary: Summary) -> list[str]:
    """The table of a page; nothing where the suite requires nothing."""
    if not summary.required:
        return []
    rows = [
        [escape(each.workload), escape(each.method), escape(each.asks), f"**{each.outcome}**", escape(each.reason)]
        for each in summary.required
    ]
    return ["## What the suite requires", table(["workload", "method", "must", "outcome", "why"], rows)]
