"""Curves and power traces that a reader zooms, as data for the page's script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from energybench.records.curve import key_of
from energybench.records.record import Trial
from energybench.report import axes, figures_power, figures_trials, power_traces
from energybench.report.canvas import distinct
from energybench.report.palette import PAPER
from energybench.verdict import wording
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Summary

POINTS = 1_500  # of a power trace
LABEL = 60  # characters of a cell's name in a legend


def _rounded(values: Iterable[float]) -> list[float]:
    """Six figures are more than a screen shows."""
    return [float(f"{value:.6g}") for value in values]


def charts(summary: Summary, trials: Sequence[Trial], folder: Path, examination: Examination) -> list[dict[str, Any]]:
    """Curves and power traces, workload by workload."""
    found: list[dict[str, Any]] = []
    for workload in summary.workloads:
        of_workload = [trial for trial in trials if trial.workload == workload.name]
        style_of = figures_trials.styles(figures_trials.cells(of_workload))
        usable = examination.usable(of_workload)
        if workload.metric is not None:
            key, metric = key_of(workload.metric), wording.clean(workload.metric)
            found += _curve_charts(workload.name, usable, folder, style_of, ("quality-curves", key, metric))
        found += _curve_charts(
            workload.name, usable, folder, style_of, ("curves", figures_trials.LOSS, "Training loss")
        )
        found += _power_charts(workload.name, of_workload, folder, style_of)
    return found


def _curve_charts(
    workload: str,
    usable: Sequence[Trial],
    folder: Path,
    style_of: dict[str, figures_trials.CellStyle],
    told: tuple[str, str, str],
) -> list[dict[str, Any]]:
    """Of one figure over epochs, seconds and joules. told: kind of picture, the figure's key in a curve, its name"""
    kind, key, name = told
    charts = []
    for over, title in figures_trials.over(usable):
        curves = [curve for curve in figures_trials.curves(usable, over, folder, key) if len(curve.x) > 1]
        if curves:
            series = [_series(style_of[curve.label], curve.x, curve.y) for curve in curves]
            loss = key == figures_trials.LOSS
            chart = _chart(workload, kind, f"{name} over {title}", (title, "loss" if loss else name), series)
            logs = axes.logarithms([(curve.x, curve.y) for curve in curves])
            charts.append(chart | {"integer": over == "epoch", "log_x": logs[0] and over != "epoch"})
            charts[-1]["log"] = loss and logs[1]
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
