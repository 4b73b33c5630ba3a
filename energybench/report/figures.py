"""Every picture of a report, from its figures and its records. The same records give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from energybench.records.record import Trial
from energybench.report import (
    figures_diagnostics,
    figures_grid,
    figures_power,
    figures_savings,
    figures_trade_off,
    figures_trials,
)
from energybench.report.album import Album, LeftOut, Picture
from energybench.report.canvas import Drawn
from energybench.suite.suite import slug
from energybench.verdict import wording
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Summary, Workload

KINDS = ("ladder", "where", "trade-off", "quality-curves", "blocks", "curves", "power", "diagnostics")
OF_RUN = ("grid",)  # of several workloads
OPTIONAL = ("diagnostics", "quality-curves")  # most methods, and most suites, have none and need none
MISTAKE = "our mistake, it could not be drawn"
DIAGNOSED = 8  # cells of a workload whose diagnostics are drawn


def album(
    summary: Summary,
    trials: Sequence[Trial],
    folder: Path,
    kinds: Sequence[str] = (*KINDS, *OF_RUN),
    examination: Examination | None = None,
) -> Album:
    """All of these kinds that can be drawn, workload by workload.

    Args:
        summary: of the run
        trials: all of the run's
        folder: the run's, where its power traces lie
        kinds: what to draw
        examination: of these trials; by default they are examined here
    """
    examination = examination or Examination(trials)
    pictures: list[Picture] = []
    left_out: list[LeftOut] = []
    drawers: list[tuple[str, str, str, Draw]] = []
    for workload in summary.workloads:
        of_workload = [trial for trial in trials if trial.workload == workload.name]
        of_it = _drawers(workload, of_workload, summary.accept.margin, folder, examination)
        drawers += [(workload.name, *each) for each in of_it]
    for grid in figures_grid.grids(summary.workloads):
        stem = f"grid-{grid.name}-{grid.row}-{grid.column}"
        drawers.append((grid.name, "grid", stem, partial(figures_grid.draw, grid, trials, examination)))
    for of, kind, stem, draw in drawers:
        if kind not in kinds:
            continue
        name = slug(stem).replace("+", "-").replace("=", "-")
        while any(picture.file == f"{name}.svg" for picture in pictures):
            name += "-"
        drawn = _attempt(draw, name)
        if isinstance(drawn, Drawn):
            caption, alt = (wording.clean(wording.plain(part)) for part in (drawn.caption, drawn.alt))
            pictures.append(Picture(kind, of, f"{name}.svg", caption, alt, drawn.svg))
        elif kind not in OPTIONAL or drawn.startswith(MISTAKE):
            left_out.append(LeftOut(kind, of, drawn))
    return Album(tuple(pictures), tuple(left_out))


Draw = Callable[[str], Drawn | str]  # the ids' prefix → the drawing, or why there is none


def _drawers(
    workload: Workload, trials: Sequence[Trial], margin: float, folder: Path, examination: Examination
) -> list[tuple[str, str, Draw]]:
    """(kind, stem of the file's name, what draws it), in the order of the page."""
    name = workload.name
    drawers: list[tuple[str, str, Draw]] = [
        ("ladder", f"ladder-{name}", partial(figures_savings.ladder, workload, margin)),
        ("where", f"where-{name}", partial(figures_savings.where, workload, margin)),
        ("trade-off", f"trade-off-{name}", partial(figures_trade_off.trade_off, workload, trials, margin, examination)),
        ("quality-curves", f"quality-{name}", partial(figures_trials.quality, workload, trials, folder, examination)),
        ("blocks", f"blocks-{name}", partial(figures_trials.blocks, name, trials, examination)),
        ("curves", f"curves-{name}", partial(figures_trials.training, name, trials, folder, examination)),
        ("power", f"power-{name}", partial(figures_power.powers, name, trials, folder)),
    ]
    for row in workload.rows[:DIAGNOSED]:
        draw = partial(figures_diagnostics.diagnostics, name, row.method, trials, examination)
        drawers.append(("diagnostics", f"diagnostics-{name}-{row.method}", draw))
    return drawers


def _attempt(draw: Callable[[str], Drawn | str], name: str) -> Drawn | str:
    """A mistake of ours in one picture must not cost the report of a whole run; it is said on the page."""
    try:
        return draw(name)
    except Exception as error:  # whatever a library raises
        return f"{MISTAKE}: {type(error).__name__}: {wording.clean(str(error))[:120]}"
