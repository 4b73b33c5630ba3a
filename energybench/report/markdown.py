"""The report as a Markdown page beside its records. The same records give the same bytes.

Names come from suites and packages that others wrote: every one is escaped, so none can add a cell, a tag,
a link, a mention or a code span.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from urllib.parse import quote

from energybench.report import markdown_sections
from energybench.report.album import FOLDER, Album
from energybench.report.markdown_syntax import brackets, details, escape, fence, table
from energybench.report.places import RecordPath, beside
from energybench.report.rows import (
    CARBON_ABOUT,
    ENERGY_HEAD,
    SEE_GLOSSARY,
    UNCOUNTED_ABOUT,
    UNCOUNTED_HEAD,
    calls,
    carbon_note,
    commands,
    energy_rows,
    machine_rows,
    uncounted_rows,
)
from energybench.verdict import briefly, sentences, wording
from energybench.verdict.figures import Check, RaisedFlag, Row, Summary, Workload

NO_PICTURES = Album()


def _folder_of(row: Row, path: RecordPath) -> str:
    """Where a row's records lie, all of them."""
    folders = {path(record).rpartition("/")[0] for record in row.records}
    return (os.path.commonpath(folders) or ".") if folders else "records"


def _saving(row: Row) -> str:
    text = brackets(wording.plain(wording.measured(row.measured)))
    return f"~~{text}~~" if row.verdict_forbidden and row.measured else text


def _results(workloads: Sequence[Workload], path: RecordPath) -> str:
    """One table: verdict, measured and quality first; what was promised, in one column where that agrees."""
    placed = [(workload.name, row) for workload in workloads for row in workload.rows]
    rows = [row for _, row in placed]
    common, rest = wording.without_common_prefix(list(dict.fromkeys(row.method for row in rows)))
    short = dict(zip(dict.fromkeys(row.method for row in rows), rest, strict=True))
    metrics = {workload.metric for workload in workloads}
    metric = (metrics.pop() if len(metrics) == 1 else None) or "quality"
    quantities = {row.measured.quantity for row in rows if row.measured}
    of = f" {next(iter(quantities))}" if len(quantities) == 1 else ""
    columns: list[tuple[str, list[str], bool]] = []  # head, cells, whether they are figures
    if len(workloads) > 1:
        columns.append(("workload", [escape(name) for name, _ in placed], False))
    columns += [
        (
            escape(common) or "Method",
            [f"[{escape(short[row.method])}]({_folder_of(row, path)}/)" for row in rows],
            False,
        ),
        ("verdict", [f"**{row.verdict}**" for row in rows], False),
        (f"measured{of} \\[95 %\\]", [_saving(row) for row in rows], True),
    ]
    if not of:
        columns.append(("of", [row.measured.quantity if row.measured else wording.NOTHING for row in rows], False))
    columns += [
        ("quality", [_quality_word(row) for row in rows], False),
        (f"{escape(metric)} Δ", [wording.quality_change(row.quality) for row in rows], True),
        *((" = ".join(titles), cells, True) for titles, cells in wording.nominal_columns(rows)),
    ]
    realised = [wording.realised(row) for row in rows]
    if any(cell != wording.NOTHING for cell in realised):
        columns.append(("realised", realised, True))
    figures = {place for place, (_, _, figure) in enumerate(columns) if figure}
    return table([head for head, _, _ in columns], zip(*(cells for _, cells, _ in columns), strict=True), figures)


def _quality_word(row: Row) -> str:
    word = wording.quality_word(row)
    return f"**{word}**" if row.quality_verdict == "lost" else word


def _first_screen(summary: Summary, path: RecordPath) -> list[str]:
    """The table, a sentence for each method, what fired."""
    compared = [workload for workload in summary.workloads if workload.rows]
    page = []
    if compared:
        told = [f"- **{escape(m)}**: {escape(briefly.method(p))}" for m, p in briefly.by_method(summary).items()]
        page += [_results(compared, path), "\n".join(told)]
        if summary.decide:
            page.append(f"To decide what is open: {escape(summary.decide)}")
    fired: dict[str, list[RaisedFlag]] = {}
    for flag in (f for w in summary.workloads for f in (*w.flags, *(f for row in w.rows for f in row.flags))):
        fired.setdefault(flag.code, []).append(flag)
    for flags in fired.values():
        more = f", and {len(flags) - 1} more" if len(flags) > 1 else ""
        page.append(escape(f"{flags[0].severity}: {flags[0].sentence} {flags[0].where}{more}"))
    if summary.checks:
        page.append(f"{briefly.checks(summary)}; all of them stand below.")
    return page


def _behind(row: Row, metric: str, path: RecordPath = beside) -> str:
    """What stands behind a method's figures on one workload, folded away."""
    told = [note for note in sentences.notes(row, metric) if note != sentences.phases(row.phases)]
    parts = ["\n".join(f"- {escape(note)}" for note in told)]
    if row.phases:
        shares = [
            [
                escape(sentences.PHASE.get(phase.name, phase.name)),
                wording.percent(phase.baseline_rel),
                wording.percent(phase.method_rel),
            ]
            for phase in row.phases
        ]
        head = ["of a profiled step, in plain training's time", "before", "after"]
        parts.append(table(head, shares, right={1, 2}))
    links = " ".join(f"[{block}]({path(record)})" for block, record in zip(row.blocks, row.records, strict=True))
    if links:
        parts.append(f"Blocks: {links}")
    return details(f"{row.method}: {row.verdict}, {wording.measured(row.measured)}", parts)


def _pictures(album: Album, workload: Workload, *kinds: str) -> list[str]:
    return [f"![{escape(p.alt)}]({FOLDER}/{quote(p.file)})" for p in album.of(workload.name, *kinds)]


def _workload(workload: Workload, album: Album, path: RecordPath) -> list[str]:
    page = [f"## {escape(workload.name)}"]
    metric = workload.metric or "quality"
    if not workload.rows:
        return [*page, "No method was compared on this workload.", *_over_the_run(workload, album)]
    page.append(escape(sentences.baseline(workload)))
    page += _commands(workload)
    page += _pictures(album, workload, "ladder")
    page.append("### Where the saving went")
    page += _pictures(album, workload, "where")
    page += [_behind(row, metric, path) for row in workload.rows]
    page.append("### Quality")
    page += _pictures(album, workload, "trade-off", "quality-curves")
    page.append(_quality(workload))
    return page + _target(workload) + _over_the_run(workload, album)


def _over_the_run(workload: Workload, album: Album) -> list[str]:
    """Trials in time: whatever could be drawn."""
    pictures = _pictures(album, workload, "blocks", "curves", "power", "diagnostics")
    return ["### Over the run", *pictures] if pictures else []


def _grids(album: Album) -> list[str]:
    """Pictures of sweeps over two keys."""
    pictures = [f"![{escape(p.alt)}]({FOLDER}/{quote(p.file)})" for p in album.pictures if p.kind == "grid"]
    return ["## Grids", *pictures] if pictures else []


def _commands(workload: Workload) -> list[str]:
    """What ran instead of energybench's loop."""
    rows = [[escape(method), escape(command)] for method, command in commands(workload)]
    if not rows:
        return []
    about = (
        "Each trial is one of these commands in a process group of its own, metered from its start to its end or by "
        "the windows that it marks itself; seed and trial are in its environment. What a command keeps of its budget "
        "is not known, so there is no matched control."
    )
    return [table(["method", "command"], rows), about]


def _left_out(album: Album) -> list[str]:
    """One row for each reason."""
    places: dict[tuple[str, str], list[str]] = {}
    for each in album.left_out:
        places.setdefault((each.kind, each.reason), []).append(each.workload)
    rows = [[kind, escape(because), escape(", ".join(names))] for (kind, because), names in places.items()]
    return ["## Pictures left out, and why", table(["picture", "why", "workloads"], rows)] if rows else []


def _target(workload: Workload) -> list[str]:
    """What it took to reach the target quality, where the workload names one."""
    targets = [(row, row.to_target) for row in workload.rows if row.to_target is not None]
    if not targets:
        return []
    rows = []
    for row, target in targets:
        rows.append(
            [
                escape(row.method),
                escape(sentences.side_to_target(target.method, target.n)),
                escape(sentences.side_to_target(target.baseline, target.n)),
                brackets(wording.measured(target.steps)),
                brackets(wording.measured(target.cost)),
                target.cost.quantity if target.cost else wording.NOTHING,
                f"**{target.verdict}**",
                escape(target.reason or wording.NOTHING),
            ]
        )
    head = [
        "Method",
        "reaches it",
        "plain training",
        "steps saved \\[95 %\\]",
        "cost saved \\[95 %\\]",
        "of",
        "verdict",
        "why",
    ]
    return [
        f"### To {escape(sentences.goal(targets[0][1]))}",
        "What it took to the end of the epoch that first reached the target; evaluations are not in it. A side that "
        "missed the target in a block leaves the saving unknown: no block is dropped for it.",
        table(head, rows, right="345"),
    ]


def _quality(workload: Workload) -> str:
    rows = []
    for row in workload.rows:
        for quality in filter(None, (row.quality, *row.also)):
            ends = [
                wording.NOTHING if end is None else wording.points(end, quality.fraction, unit=quality.unit)
                for end in (quality.bound, quality.best)
            ]
            limit = wording.NOTHING
            if quality.limit is not None:
                limit = wording.accepted(quality.limit, quality.fraction, quality.unit)
            figures = (wording.number(value, 4) for value in (quality.baseline, quality.method))
            decides = wording.quality_word(row) if quality is row.quality else "decides nothing"
            cells = [escape(row.method), escape(quality.metric), *figures, wording.quality_change(quality), *ends]
            rows.append([*map(wording.plain, cells), wording.plain(limit), decides])
    spread = [
        f"{escape(name)} {wording.number(figure.mean, 4)}"
        + ("" if figure.sd is None else f" ± {wording.number(figure.sd, 4)}")
        + f" ({wording.blocks(figure.n)})"
        for name, figure in workload.baseline.quality.items()
    ]
    if any(row.unjudged for row in workload.rows):
        return sentences.UNJUDGED
    text = f"{workload.baseline_name.capitalize()} reaches {', '.join(spread) or 'no recorded quality'}."
    if not rows:
        return text
    head = ["Method", "metric", "baseline", "method", "change", "may be as bad as", "as good as", "accepted", "quality"]
    return f"{text}\n\n{table(head, rows, right='234567')}"


def _check(check: Check) -> list[str]:
    return [
        f"`{check.code}`" if re.fullmatch(r"\w+", check.code) else escape(check.code),
        f"**{check.severity}**" if check.result == "raised" else check.result,
        escape(check.where),
        escape(check.sentence),
        escape(check.detail),
    ]


def _trust(summary: Summary) -> list[str]:
    fired = [_check(check) for check in summary.checks if check.result == "raised"]
    others = [_check(check) for check in summary.checks if check.result != "raised"]
    head = ["check", "result", "where", "means", "found"]
    text = (
        "Every reason to doubt a number, applied to this run. *invalid*: not used. *struck*: no verdict. "
        "*marked*: read the sentence. *not checked*: the evidence is missing, so nothing is promised."
    )
    page = ["## Can these numbers be trusted?", text]
    if fired:
        page.append(table(head, fired))
    return [*page, details(briefly.checks(summary), [table(head, others)])] if others else page


def _energy(summary: Summary) -> list[str]:
    page = ["## Energy and carbon"]
    if summary.energy_note:
        page.append(f"**{escape(summary.energy_note)}**")
    rows = [[escape(cell) for cell in row] for row in energy_rows(summary)]
    if not rows:
        return [*page, "No energy figure was recorded."]
    page.append(table(ENERGY_HEAD, rows, right="5678"))
    page.append(CARBON_ABOUT)
    if note := carbon_note(summary):
        page.append(escape(note))
    return page


def _machine(summary: Summary) -> str:
    rows = [[escape(name), escape(text)] for name, text in machine_rows(summary)]
    return table(["machine", ""], rows) if rows else "The machine was not recorded."


def _again(summary: Summary) -> list[str]:
    typed = "\n".join(calls(summary))
    page = ["## How to get these numbers again", fence(typed or "not recorded")]
    page.append(f"Run {escape(summary.run)}, digest {escape(summary.digest)}.")
    if summary.sources:
        rows = [[escape(name), escape(path)] for name, path in summary.sources.items()]
        page.append(table(["used", "from"], rows))
    return [*page, _machine(summary)]


def markdown(summary: Summary, album: Album = NO_PICTURES, path: RecordPath = beside) -> str:
    """The whole page, ending in one newline. The album's files lie in figures/ beside it. path: of a record, from it"""
    stamps = [*summary.stamp, *([] if summary.finished else ["unfinished"])]
    stamp = f" ({escape(', '.join(stamps))})" if stamps else ""
    page = [f"# {escape(summary.suite)}{stamp}", f"**{escape(summary.headline)}**"]
    if summary.energy_note:
        page.append(escape(summary.energy_note))
    page += [escape(note) for note in (summary.device_note, summary.look_note) if note]
    page += [escape(flag.sentence) for flag in summary.flags if flag.code != "modelled_energy"]
    page += _first_screen(summary, path)
    if baselines := dict.fromkeys(workload.baseline_name for workload in summary.workloads if workload.rows):
        page.append(
            f"Savings relative to {' or '.join(baselines)} in the same block; a negative saving is a cost. "
            "*realised* is measured / estimated, where something was saved."
        )
    if summary.about:
        page.append(escape(summary.about))
    page.append(SEE_GLOSSARY)
    for workload in summary.workloads:
        page += _workload(workload, album, path)
    page += _grids(album)
    page += markdown_sections.requirements(summary)
    page += markdown_sections.over_all_workloads(summary)
    page += markdown_sections.added_blocks(summary)
    page += _trust(summary)
    page += _energy(summary)
    if summary.failures:
        rows = [
            [f"[{escape(f.trial)}]({path(f.trial)})", f.status, escape(f.reason), "yes" if f.repeated else "no"]
            for f in summary.failures
        ]
        page += ["## What failed", table(["trial", "status", "why", "repeated since"], rows)]
    if summary.not_run:
        rows = [[escape(n.workload), escape(n.method), escape(n.reason)] for n in summary.not_run]
        page += ["## Not run or not counted, and why", table(["workload", "method", "why"], rows)]
    if uncounted := uncounted_rows(summary):
        rows = [[escape(cell) for cell in row] for row in uncounted]
        page += ["## Work without a FLOP count", UNCOUNTED_ABOUT, table(UNCOUNTED_HEAD, rows)]
    page += _left_out(album)
    page += _again(summary)
    return wording.plain("\n\n".join(page)) + "\n"
