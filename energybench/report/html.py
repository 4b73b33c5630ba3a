"""The report as one page without a network: tables that sort and filter, pictures, curves and power to zoom, records.

With scripts, curves and power are drawn to zoom; without them the same pictures stand still in their place.

Everything is inside the file, under 2 MB: what does not fit is left out with a word, records first, and the links to
the files beside the page stay. jinja2 escapes every text; scripts run by their hash alone (Content-Security-Policy), so
that even a text which escaped nothing could not run, and the page can ask nothing of any network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from energybench.meter import combine
from energybench.records.record import Trial
from energybench.report import axes, figures_power, figures_trials, page_tables, power_traces, run_lines
from energybench.report.album import Album
from energybench.report.canvas import distinct
from energybench.report.figures import album
from energybench.report.palette import PAPER
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
from energybench.report.templates import ASSETS, template
from energybench.verdict import pairing, wording
from energybench.verdict.examination import Examination, ExaminedTrial
from energybench.verdict.figures import Check, Summary

LIMIT_B = 2_000_000
PICTURES_B, CHARTS_B, TRIALS = 900_000, 250_000, 1_500  # of pictures, of figures to zoom, rows of trials
POINTS = 1_500  # of a power trace to zoom
LABEL = 60  # characters of a cell's name in a legend
CODE = ("uPlot.iife.min.js", "page.js")


@dataclass(slots=True)
class Parts:
    """What a page of limited size may hold; `left_out` says what it does not."""

    pictures: Album
    charts: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    records: list[Any]  # one for each line of `trials`, None where it does not fit
    left_out: list[str] = field(default_factory=list)


def page(summary: Summary, trials: Sequence[Trial], folder: Path, *, beside: bool = True) -> str:
    """The whole page. The same records give the same text.

    beside: whether records and documents lie where a run's folder has them; without them nothing links there
    """
    parts = _parts(summary, trials, folder)
    room = LIMIT_B - _size(_render(summary, parts, beside)) - 1000
    for number, trial in enumerate(pairing.order(trials)[: len(parts.trials)]):
        record = json.loads(trial.model_dump_json(by_alias=True))
        size = _size(_json(record))
        if size <= room:
            room -= size
            parts.records[number] = record
    if missing := len(trials) - sum(record is not None for record in parts.records):
        parts.left_out.append(f"{missing} of {len(trials)} records are not in this page; all lie in records/.")
    return _render(summary, parts, beside)


def _parts(summary: Summary, trials: Sequence[Trial], folder: Path) -> Parts:
    examination = Examination(trials)
    drawn = album(summary, trials, folder, examination=examination)
    left_out = [f"{each.kind}, {each.workload}: {each.reason}" for each in drawn.left_out]
    pictures = list(_within(drawn.pictures, PICTURES_B, lambda picture: len(picture.svg)))
    if gone := len(drawn.pictures) - len(pictures):
        left_out.append(f"{gone} pictures do not fit into one page; they lie in figures/.")
    every = _charts(summary, trials, folder, examination)
    charts = list(_within(every, CHARTS_B, lambda chart: len(_json(chart))))
    if gone := len(every) - len(charts):
        left_out.append(f"{gone} figures to zoom do not fit into one page.")
    rows = [_trial(examination[trial], summary) for trial in pairing.order(trials)]
    if len(rows) > TRIALS:
        left_out.append(f"The first {TRIALS} of {len(rows)} trials are listed; all lie in records/.")
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


def _rounded(values: Iterable[float]) -> list[float]:
    """Six figures are more than a screen shows."""
    return [float(f"{value:.6g}") for value in values]


def _charts(summary: Summary, trials: Sequence[Trial], folder: Path, examination: Examination) -> list[dict[str, Any]]:
    """Curves and power traces, workload by workload."""
    charts: list[dict[str, Any]] = []
    for workload in summary.workloads:
        of_workload = [trial for trial in trials if trial.workload == workload.name]
        style_of = figures_trials.styles(figures_trials.cells(of_workload))
        usable = examination.usable(of_workload)
        for over, title in figures_trials.OVER:
            curves = [curve for curve in figures_trials.curves(usable, over, folder) if len(curve.x) > 1]
            if curves:
                series = [_series(style_of[curve.label], curve.x, curve.y) for curve in curves]
                chart = _chart(workload.name, "curves", f"Training loss over {title}", (title, "loss"), series)
                logs = axes.logarithms([(curve.x, curve.y) for curve in curves])
                charts.append(
                    chart | {"integer": over == "epoch", "log_x": logs[0] and over != "epoch", "log": logs[1]}
                )
        charts += _power_charts(workload.name, of_workload, folder, style_of)
    return charts


def _power_charts(
    workload: str, trials: Sequence[Trial], folder: Path, style_of: dict[str, figures_trials.CellStyle]
) -> list[dict[str, Any]]:
    block, _ = figures_power.traced_block(trials, folder)
    charts = []
    for device in figures_power.devices_of(block):
        series = [
            _series(style_of[label], *power_traces.thin(*traces[device], POINTS))
            for label, (_, traces) in block.items()
            if device in traces
        ]
        number = next(iter(block.values()))[0].block
        title = f"Power of {wording.clean(device)}, block {number}"
        charts.append(_chart(workload, "power", title, ("seconds", "watts"), series))
    return charts


def _chart(
    workload: str, kind: str, title: str, names: tuple[str, str], series: list[dict[str, Any]]
) -> dict[str, Any]:
    """kind: of the picture that shows the same without a script; names: of the two axes."""
    labels = distinct([line["label"] for line in series], LABEL)
    named = [line | {"label": label} for line, label in zip(series, labels, strict=True)]
    return {"workload": workload, "kind": kind, "title": title, "x": names[0], "y": names[1], "series": named}


def _series(style: figures_trials.CellStyle, x: Iterable[float], y: Iterable[float]) -> dict[str, Any]:
    return {
        "label": wording.clean(style.label),
        "color": style.color,
        "mark": style.marker,
        "hollow": style.face == PAPER,
        "dash": [] if isinstance(style.line, str) else [2 * length for length in style.line[1]],
        "width": style.width,
        "x": _rounded(x),
        "y": _rounded(y),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _trial(examined: ExaminedTrial, summary: Summary) -> dict[str, Any]:
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
        "href": f"records/{quote(trial.trial, safe='')}.json",
    }


@cache
def _assets() -> dict[str, str]:
    assets = {
        name: (ASSETS / name).read_text(encoding="utf-8").strip()
        for name in (*CODE, "page.css", "uPlot.min.css", "uPlot.LICENSE")
    }
    assets[CODE[0]] = f"/*! uPlot\n{assets['uPlot.LICENSE']}\n*/\n{assets[CODE[0]]}"
    return assets


def _check(check: Check) -> list[str]:
    result = check.severity if check.result == "raised" else check.result
    return [check.code, result, check.where, check.sentence, check.detail]


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


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


def policy_of(scripts: Iterable[str]) -> str:
    """A Content-Security-Policy under which these scripts run and nothing is asked of any network."""
    rules = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join([*rules, f"script-src {' '.join(map(_digest, scripts))}"])


def _render(summary: Summary, parts: Parts, beside: bool) -> str:
    import markupsafe

    assets = _assets()
    scripts = [assets[name] for name in CODE]
    text = template("page.html.j2", keep_trailing_newline=True).render(
        summary=summary,
        policy=policy_of(scripts),
        contents=_contents(summary, parts),
        several=len(summary.workloads) > 1,
        beside=beside,
        parts=parts,
        words=wording,
        commands=commands,
        glossary=GLOSSARY if beside else "",
        carbon_note=carbon_note(summary),
        styles=markupsafe.Markup(f"{assets['uPlot.min.css']}\n{assets['page.css']}"),
        scripts=[markupsafe.Markup(script) for script in scripts],
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
        checks=[_check(check) for check in summary.checks if check.result != "clear"],
        clear=[_check(check) for check in summary.checks if check.result == "clear"],
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
