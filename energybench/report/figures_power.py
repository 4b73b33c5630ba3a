"""Pictures of power traces: watts over the training window of one block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energybench.meter import trace
from energybench.records.record import Trial
from energybench.report.canvas import WIDTH_IN, Drawn, legend, listed, sheet, short, svg
from energybench.report.figures_trials import GAP_IN, RIGHT_IN, CellStyle, cells, styles
from energybench.report.palette import SERIES
from energybench.report.power_traces import NO_TRACE, Powers, power, thin
from energybench.verdict import wording

TRACED, DEVICES = 6, 4  # cells, and devices of each, whose power is drawn
POINTS = 600  # of a power trace in a picture: the least and the greatest of every bin


Traced = dict[str, tuple[Trial, Powers]]  # a cell's label → its trial of the block, and its power


def traced_block(trials: Sequence[Trial], folder: Path) -> tuple[Traced, str]:
    """The first block with a readable trace, its cells; or why there is none."""
    reasons: dict[str, int] = {}
    by_block: dict[int, Traced] = {}
    for label, of_cell in cells(trials).items():
        for trial in of_cell:
            if by_block and trial.block > min(by_block):
                continue  # one block is enough: the rest need not be read
            traces = power(trial, folder)
            if isinstance(traces, str):
                reasons[traces] = reasons.get(traces, 0) + 1
            else:
                by_block.setdefault(trial.block, {})[label] = (trial, traces)
    if not by_block:
        return {}, max(reasons, key=lambda reason: reasons[reason], default=NO_TRACE)
    return by_block[min(by_block)], ""


def devices_of(block: Traced) -> list[str]:
    return list(dict.fromkeys(device for _, traces in block.values() for device in traces))


def powers(workload: str, trials: Sequence[Trial], folder: Path, name: str) -> Drawn | str:
    """Watts over the training window of one block, a panel for each cell."""
    block, reason = traced_block(trials, folder)
    if not block:
        return reason
    style_of = styles(cells(trials))
    shown = dict(list(block.items())[:TRACED])
    devices = devices_of(block)[:DEVICES]
    number = next(iter(shown.values()))[0].block
    alt = _alt(workload, block, style_of)
    lines = {
        label: {device: thin(*traces[device], POINTS) for device in devices if device in traces}
        for label, (_, traces) in shown.items()
    }
    drawn = [line for of_cell in lines.values() for line in of_cell.values()]
    longest = max(times[-1] for times, _ in drawn) or 1.0
    most = max(max(watts) for _, watts in drawn) or 1.0
    each_in = 0.75
    with sheet(0.6 + len(shown) * (each_in + GAP_IN)) as page:
        entries: dict[str, Any] = {}
        for row, label in enumerate(shown):
            bottom = 0.5 + (len(shown) - 1 - row) * (each_in + GAP_IN)
            axes = page.axes(0.65, bottom, WIDTH_IN - 0.65 - RIGHT_IN, each_in)
            axes.grid(axis="y")
            for device, (times, watts) in lines[label].items():
                color = SERIES[devices.index(device) % len(SERIES)]
                (entries[device],) = axes.plot(times, watts, color=color, linewidth=0.9)
            axes.set_xlim(0, longest)
            axes.set_ylim(0, 1.05 * most)
            axes.locator_params(axis="y", nbins=3)
            axes.set_title(f"watts, {short(style_of[label].label, 44)}")
        legend(page, page.used[0], [(line, device) for device, line in entries.items()], RIGHT_IN)
        axes.set_xlabel(f"seconds from the start of the window, block {number}", loc="left")
        drawing = svg(page, name, alt)
    return Drawn(drawing, f"Power over the training window, block {number}", alt)


def _alt(workload: str, block: Traced, style_of: dict[str, CellStyle]) -> str:
    """Each cell's mean power and time, and what the picture leaves out."""
    shown = list(block.items())[:TRACED]
    means = [
        f"{style_of[label].label} {wording.plain(wording.si(_mean_w(traces), 'W'))} for "
        f"{wording.plain(wording.duration(trial.train.wall_s))}"
        for label, (trial, traces) in shown
        if trial.train and trial.train.wall_s > 0
    ]
    number, devices = shown[0][1][0].block, len(devices_of(block))
    alt = f"Power over the training window on {workload}, block {number}; on the mean {listed(means)}."
    if devices > DEVICES:
        alt += f" The first {DEVICES} of {devices} devices."
    if len(block) > len(shown):
        alt += f" The first {len(shown)} of {len(block)} cells."
    return alt


def _mean_w(traces: Powers) -> float:
    """Over all devices, each from its first sample to its last."""
    return math.fsum(
        trace.integrate(times, watts, times[0], times[-1])[0] / (times[-1] - times[0])
        for times, watts in traces.values()
        if times[-1] > times[0]
    )
