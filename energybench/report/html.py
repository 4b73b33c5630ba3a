"""The report as one page without a network: tables that sort and filter, pictures, curves and power to zoom, records.

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
from energybench.report import figures_power, figures_trials, power_traces, run_lines
from energybench.report.album import Album
from energybench.report.figures import album
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
from energybench.verdict import pairing, sentences, wording
from energybench.verdict.examination import Examination, ExaminedTrial
from energybench.verdict.figures import Row, Summary, Workload

LIMIT_B = 2_000_000
PICTURES_B, CHARTS_B, TRIALS = 900_000, 250_000, 1_500  # of pictures, of figures to zoom, rows of trials
POINTS = 1_500  # of a power trace to zoom
CODE = ("uPlot.iife.min.js", "page.js")


@dataclass(slots=True)
class Parts:
    """What a page of limited size may hold; `left_out` says what it does not."""

    pictures: Album
    charts: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    records: list[Any]  # one for each line of `trials`, None where it does not fit
    left_out: list[str] = field(default_factory=list)


def page(summary: Summary, trials: Sequence[Trial], folder: Path) -> str:
    """The whole page. The same records give the same text."""
    parts = _parts(summary, trials, folder)
    room = LIMIT_B - _size(_render(summary, parts)) - 1000
    for number, trial in enumerate(pairing.order(trials)[: len(parts.trials)]):
        record = json.loads(trial.model_dump_json(by_alias=True))
        size = _size(_json(record))
        if size <= room:
            room -= size
            parts.records[number] = record
    if missing := len(trials) - sum(record is not None for record in parts.records):
        parts.left_out.append(f"{missing} of {len(trials)} records are not in this page; all lie in records/.")
    return _render(summary, parts)


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
    charts = []
    for workload in summary.workloads:
        of_workload = [trial for trial in trials if trial.workload == workload.name]
        style_of = figures_trials.styles(figures_trials.cells(of_workload))
        usable = examination.usable(of_workload)
        for over, title in figures_trials.OVER:
            curves = [curve for curve in figures_trials.curves(usable, over, folder) if len(curve.x) > 1]
            series = [_series(style_of[curve.label], curve.x, curve.y) for curve in curves]
            if series:
                charts.append(_chart(workload.name, f"Training loss over {title}", title, "loss", series))
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
        charts.append(_chart(workload, title, "seconds", "watts", series))
    return charts


def _chart(workload: str, title: str, x: str, y: str, series: list[dict[str, Any]]) -> dict[str, Any]:
    return {"workload": workload, "title": title, "x": x, "y": y, "series": series}


def _series(style: figures_trials.CellStyle, x: Iterable[float], y: Iterable[float]) -> dict[str, Any]:
    return {"label": wording.clean(style.label), "color": style.color, "x": _rounded(x), "y": _rounded(y)}


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


def _row(row: Row, workload: Workload) -> dict[str, Any]:
    figure = row.measured
    return {
        "workload": workload.name,
        "method": row.method,
        "row": row,
        "estimated_text": wording.nominal(row.estimated_rel, row),
        "counted_text": wording.counted(row),
        "claimed": row.claimed_rel,
        "estimated": row.estimated_rel,
        "counted": row.counted_rel,
        "measured": None if figure is None else figure.saving_rel,
        "measured_text": wording.measured(figure),
        "of": wording.what(figure.quantity, figure.scope) if figure else "–",
        "quality": row.quality.change if row.quality else None,
        "quality_text": wording.quality_change(row.quality),
        "quality_word": wording.quality_word(row),
        "realised_text": wording.realised(row.realised_rel),
        "notes": sentences.notes(row, workload.metric or "quality"),
    }


@cache
def _assets() -> dict[str, str]:
    assets = {
        name: (ASSETS / name).read_text(encoding="utf-8").strip()
        for name in (*CODE, "page.css", "uPlot.min.css", "uPlot.LICENSE")
    }
    assets[CODE[0]] = f"/*! uPlot\n{assets['uPlot.LICENSE']}\n*/\n{assets[CODE[0]]}"
    return assets


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _render(summary: Summary, parts: Parts) -> str:
    import markupsafe

    assets = _assets()
    scripts = [assets[name] for name in CODE]
    policy = "; ".join(
        [
            "default-src 'none'",
            "style-src 'unsafe-inline'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            f"script-src {' '.join(map(_digest, scripts))}",
        ]
    )
    text = template("page.html.j2", keep_trailing_newline=True).render(
        summary=summary,
        policy=policy,
        parts=parts,
        sentences=sentences,
        commands=commands,
        glossary=GLOSSARY,
        carbon_note=carbon_note(summary),
        styles=markupsafe.Markup(f"{assets['uPlot.min.css']}\n{assets['page.css']}"),
        scripts=[markupsafe.Markup(script) for script in scripts],
        stamps=[*summary.stamp, *([] if summary.finished else ["unfinished"])],
        rows=[_row(row, workload) for workload in summary.workloads for row in workload.rows],
        extra=[
            *(line for line, _ in run_lines.requirements(summary)),
            *run_lines.overall(summary),
            *run_lines.added_blocks(summary),
        ],
        energy_head=ENERGY_HEAD,
        energy=energy_rows(summary),
        energy_about=CARBON_ABOUT.replace("*", ""),
        machine=machine_rows(summary),
        checks=[
            [c.code, c.severity if c.result == "raised" else c.result, c.where, c.sentence, c.detail]
            for c in summary.checks
        ],
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
