"""Pictures of power traces: watts over the training window of one block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energybench.meter import trace
from energybench.records.record import Trial
from energybench.report.canvas import SERIES, WIDTH_IN, Drawn, legend, listed, sheet, short, svg
from energybench.report.figures_trials import GAP_IN, RIGHT_IN, cells, looks
from energybench.report.power_traces import NO_TRACE, Powers, power, thin
from energybench.verdict import wording

TRACED, DEVICES = 6, 4  # cells, and devices of each, whose power is drawn
POINTS = 600  # of a power trace in a picture: the least and the greatest of every bin


def traced_block(trials: Sequence[Trial], folder: Path) -> tuple[dict[str, tuple[Trial, Powers]], str]:
    """The first block with a readable trace, its cells; or why there is none."""
    reasons: dict[str, int] = {}
    by_block: dict[int, dict[str, tuple[Trial, Powers]]] = {}
    for label, ours in cells(trials).items():
        for trial in ours:
            if by_block and trial.block > min(by_block):
                continue  # one block is enough: the rest need not be read
            found = power(trial, folder)
            if isinstance(found, str):
                reasons[found] = reasons.get(found, 0) + 1
            else:
                by_block.setdefault(trial.block, {})[label] = (trial, found)
    if not by_block:
        return {}, max(reasons, key=lambda reason: reasons[reason], default=NO_TRACE)
    return by_block[min(by_block)], ""


def powers(workload: str, trials: Sequence[Trial], folder: Path, name: str) -> Drawn | str:
    """Watts over the training window of one block, a panel for each device."""
    block, reason = traced_block(trials, folder)
    if not block:
        return reason
    how = looks(cells(trials))
    every = list(dict.fromkeys(device for _, found in block.values() for device in found))
    devices, shown = every[:DEVICES], list(block.items())[:TRACED]
    number = shown[0][1][0].block
    told = []
    for label, (trial, found) in shown:
        if trial.train and trial.train.wall_s > 0:
            mean_w = math.fsum(
                trace.integrate(t, w, t[0], t[-1])[0] / (t[-1] - t[0]) for t, w in found.values() if t[-1] > t[0]
            )
            told.append(
                f"{how[label].label} {wording.plain(wording.si(mean_w, 'W'))} for "
                f"{wording.plain(wording.duration(trial.train.wall_s))}"
            )
    alt = f"Power over the training window on {workload}, block {number}; on the mean {listed(told)}."
    if len(every) > len(devices):
        alt += f" The first {len(devices)} of {len(every)} devices."
    if len(block) > len(shown):
        alt += f" The first {len(shown)} of {len(block)} cells."
    lines = [
        (label, device, *thin(*found[device], POINTS))
        for label, (_, found) in shown
        for device in devices
        if device in found
    ]
    longest = max(times[-1] for _, _, times, _ in lines) or 1.0
    most = max(max(watts) for _, _, _, watts in lines) or 1.0
    each_in = 0.75
    with sheet(0.6 + len(shown) * (each_in + GAP_IN)) as page:
        entries: dict[str, Any] = {}
        top = None
        for row, (label, _) in enumerate(shown):
            bottom = 0.5 + (len(shown) - 1 - row) * (each_in + GAP_IN)
            axes = page.axes(0.65, bottom, WIDTH_IN - 0.65 - RIGHT_IN, each_in)
            axes.grid(axis="y")
            for whose, device, times, watts in lines:
                if whose == label:
                    color = SERIES[devices.index(device) % len(SERIES)]
                    (entries[device],) = axes.plot(times, watts, color=color, linewidth=0.9)
            axes.set_xlim(0, longest)
            axes.set_ylim(0, 1.05 * most)
            axes.locator_params(axis="y", nbins=3)
            axes.set_title(f"watts, {short(how[label].label, 44)}")
            top = top or axes
        assert top is not None
        legend(page, top, [(line, device) for device, line in entries.items()], RIGHT_IN)
        axes.set_xlabel(f"seconds from the start of the window, block {number}", loc="left")
        drawing = svg(page, name, alt)
    return Drawn(drawing, f"Power over the training window, block {number}", alt)
