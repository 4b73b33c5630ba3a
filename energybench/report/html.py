"""The report as one page without a network: tables that sort and filter, pictures, curves and power to zoom, records.

With scripts, curves and power are drawn to zoom; without them the same pictures stand still in their place.

Everything is inside the file, under 2 MB: what does not fit is left out with a word, records first, and the links to
the files beside the page stay. jinja2 escapes every text; scripts run by their hash alone (Content-Security-Policy), so
that even a text which escaped nothing could not run, and the page can ask nothing of any network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from energybench.meter import combine
from energybench.records.record import Trial
from energybench.report import page_charts, page_tables, run_lines
from energybench.report.album import Album
from energybench.report.figures import album
from energybench.report.places import Homes, RecordPath, record_path, with_traces
from energybench.report.rows import (
    CARBON_ABOUT,
    ENERGY_HEAD,
    GLOSSARY,
    UNCOUNTED_ABOUT,
    UNCOUNTED_HEAD,
    calls,
    carbon_note,
    commands,
    energy_rows,
    machine_rows,
    uncounted_rows,
)
from energybench.report.templates import template, whole_page
from energybench.verdict import pairing, sentences, wording
from energybench.verdict.examination import Examination, ExaminedTrial
from energybench.verdict.figures import Result, Summary

LIMIT_B = 2_000_000
PICTURES_B, CHARTS_B, TRIALS = 900_000, 250_000, 1_500  # of pictures, of figures to zoom, rows of trials
CODE = ("uPlot.iife.min.js", "page.js")


@dataclass(slots=True)
class Parts:
    """What a page of limited size may hold; `left_out` says what it does not."""

    pictures: Album
    charts: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    records: list[Any]  # one for each line of `trials`, None where it does not fit
    left_out: list[str] = field(default_factory=list)


def page(
    summary: Summary, trials: Sequence[Trial], folder: Path, *, home: str = "", homes: Homes = MappingProxyType({})
) -> str:
    """The whole page. The same records give the same text.

    home: the index of the site that the page is part of. There are no records and documents beside it then, and nothing
        links to them.
    homes: of the records that lie in other folders than the page
    """
    trials = with_traces(trials, folder, homes)
    parts = _parts(summary, trials, folder, record_path(folder, homes))
    room = LIMIT_B - _size(_render(summary, parts, home)) - 1000
    for number, trial in enumerate(pairing.order(trials)[: len(parts.trials)]):
        record = json.loads(trial.model_dump_json(by_alias=True))
        size = _size(_json(record))
        if size <= room:
            room -= size
            parts.records[number] = record
    if missing := len(trials) - sum(record is not None for record in parts.records):
        parts.left_out.append(
            f"{missing} of {len(trials)} records are not in this page; all lie in records/ of its folder."
        )
    return _render(summary, parts, home)


def _parts(summary: Summary, trials: Sequence[Trial], folder: Path, path: RecordPath) -> Parts:
    examination = Examination(trials)
    drawn = album(summary, trials, folder, examination=examination)
    left_out = [f"{each.kind}, {each.workload}: {each.reason}" for each in drawn.left_out]
    pictures = list(_within(drawn.pictures, PICTURES_B, lambda picture: len(picture.svg)))
    if gone := len(drawn.pictures) - len(pictures):
        left_out.append(f"{gone} pictures do not fit into one page; they lie in figures/.")
    every = page_charts.charts(summary, trials, folder, examination)
    charts = list(_within(every, CHARTS_B, lambda chart: len(_json(chart))))
    if gone := len(every) - len(charts):
        left_out.append(f"{gone} figures to zoom do not fit into one page.")
    rows = [_trial(examination[trial], summary, path) for trial in pairing.order(trials)]
    if len(rows) > TRIALS:
        left_out.append(f"The first {TRIALS} of {len(rows)} trials are listed; all lie in records/ of its folder.")
    return Parts(Album(tuple(pictures), drawn.left_out), charts, rows[:TRIALS], [None] * len(rows[:TRIALS]), left_out)


def _within(items: Iterable[Any], most: int, size: Any) -> Iterable[Any]:
    """In order, each that still fits."""
    for item in items:
        most -= size(item)
        if most < 0:
            most += size(item)
        else:
            yield item


def _size(text: str) -> int:
    return len(text.encode())


def _json(value: Any) -> str:
    """For a data block: no `<` in it, so that nothing inside can end it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _trial(examined: ExaminedTrial, summary: Summary, path: RecordPath) -> dict[str, Any]:
    """One line of the table of trials. Energy says by which kind of source; nothing measured is never 0."""
    trial, reason = examined.trial, examined.reason_unusable
    seconds = _finite(trial.train.wall_s if trial.train else None)
    metered = combine.metered(trial.train)
    metric = next((w.metric for w in summary.workloads if w.name == trial.workload), None)
    quality = _finite(trial.quality.get(metric) if metric else None)
    return {
        "trial": trial.trial,
        "workload": trial.workload,
        "method": trial.method,
        "block": trial.block,
        "state": "used" if reason is None else f"set aside: {reason}",
        "device": trial.device,
        "seconds": seconds,
        "seconds_text": wording.NOTHING if seconds is None else wording.duration(seconds),
        "joules": metered.joules if metered.sensors else None,
        "joules_text": wording.si(metered.joules, "J") if metered.sensors else wording.NOTHING,
        "quality": quality,
        "quality_text": wording.NOTHING if quality is None else wording.number(quality, 4),
        "flags": ", ".join(dict.fromkeys(flag.code for flag in trial.flags)) or wording.NOTHING,
        "href": path(trial.trial),
    }


def _checks(summary: Summary, result: Result) -> list[list[str]]:
    """Rows of the checks that ended so."""
    return [
        [check.code, check.severity if result == "raised" else result, check.where, check.sentence, check.detail]
        for check in summary.checks
        if check.result == result
    ]


def _contents(summary: Summary, parts: Parts) -> list[tuple[str, str]]:
    """(anchor, name) of each section that is on the page."""
    sections = [
        ("results", "Results", True),
        *((f"w{number}", workload.name, True) for number, workload in enumerate(summary.workloads)),
        ("trials-section", "Trials", True),
        ("trust", "Checks", True),
        ("energy-section", "Energy", True),
        ("failed", "Failed", bool(summary.failures)),
        ("not-run-section", "Not run", bool(summary.not_run)),
        ("uncounted-section", "Not counted", bool(summary.uncounted)),
        ("left-out", "Left out", bool(parts.left_out)),
        ("again", "Again", True),
    ]
    return [(anchor, name) for anchor, name, there in sections if there]


def _render(summary: Summary, parts: Parts, home: str) -> str:
    import markupsafe

    text = template("page.html.j2", keep_trailing_newline=True).render(
        summary=summary,
        **whole_page(CODE, ("uPlot.min.css", "page.css")),
        contents=_contents(summary, parts),
        several=len(summary.workloads) > 1,
        home=home,
        parts=parts,
        sentences=sentences,
        commands=commands,
        glossary="" if home else GLOSSARY,
        carbon_note=carbon_note(summary),
        stamps=[*summary.stamp, *([] if summary.finished else ["unfinished"])],
        results=page_tables.results(summary),
        trials=page_tables.trials(parts.trials),
        texts=page_tables.texts,
        zoomed={(chart["workload"], chart["kind"]) for chart in parts.charts},
        extra=[
            *(line for line, _ in run_lines.requirements(summary)),
            *run_lines.overall(summary),
            *run_lines.added_blocks(summary),
        ],
        energy_head=ENERGY_HEAD,
        energy=energy_rows(summary),
        energy_about=CARBON_ABOUT.replace("*", ""),
        machine=machine_rows(summary),
        **{result.replace(" ", "_"): _checks(summary, result) for result in get_args(Result)},
        failures=[[f.trial, f.status, f.reason, "yes" if f.repeated else "no"] for f in summary.failures],
        not_run=[[n.workload, n.method, n.reason] for n in summary.not_run],
        uncounted=uncounted_rows(summary),
        uncounted_head=UNCOUNTED_HEAD,
        uncounted_about=UNCOUNTED_ABOUT,
        sources=list(summary.sources.items()),
        calls=calls(summary),
        svg=markupsafe.Markup,
        data=markupsafe.Markup(_json({"charts": parts.charts, "records": parts.records})),
    )
    return str(text).encode("utf-8", "replace").decode()


def index_page(verdicts: page_tables.Listed, runs: page_tables.Listed, left_out: Sequence[tuple[str, str]]) -> str:
    """The index of a site of all runs: every verdict, every run, and (folder, why) of what is not in it."""
    text = template("index.html.j2", keep_trailing_newline=True).render(
        **whole_page(CODE[1:], ("page.css",)), verdicts=verdicts, runs=runs, left_out=left_out, texts=page_tables.texts
    )
    return str(text).encode("utf-8", "replace").decode()
