"""Every picture of a report, from its figures and its records. The same records give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from energybench.common.errors import EnergybenchError
from energybench.records.kept import at_hand
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
    artist = Artist(summary, trials, folder, kinds, examination or Examination(trials))
    every = [each for workload in summary.workloads for each in artist.of_workload(workload)]
    every += artist.of_run()
    pictures = tuple(each for each in every if isinstance(each, Picture))
    return Album(pictures, tuple(each for each in every if isinstance(each, LeftOut)))


class Artist:
    """Draws the pictures of a run, those of one workload at a time: only its curves are in memory then.

    Args: those of `album`.
    """

    def __init__(
        self, summary: Summary, trials: Sequence[Trial], folder: Path, kinds: Sequence[str], examination: Examination
    ) -> None:
        self._summary, self._trials, self._folder, self._kinds = summary, trials, folder, kinds
        self._examination = examination
        self._names: set[str] = set()
        self._by_workload: dict[str, list[Trial]] = {}
        for trial in trials:
            self._by_workload.setdefault(trial.workload, []).append(trial)

    def trials(self, workload: str) -> list[Trial]:
        return self._by_workload.get(workload, [])

    def of_workload(self, workload: Workload) -> Iterator[Picture | LeftOut]:
        """Each as it is drawn."""
        trials, margin = self.trials(workload.name), self._summary.accept.margin
        drawers = _drawers(workload, trials, margin, self._folder, self._examination)
        with at_hand(trials):
            for kind, stem, draw in drawers:
                yield from self._drawn(workload.name, kind, stem, draw)

    def of_run(self) -> Iterator[Picture | LeftOut]:
        """Those of several workloads."""
        for grid in figures_grid.grids(self._summary.workloads):
            stem = f"grid-{grid.name}-{grid.row}-{grid.column}"
            draw = partial(figures_grid.draw, grid, self._trials, self._examination)
            yield from self._drawn(grid.name, "grid", stem, draw)

    def _drawn(self, of: str, kind: str, stem: str, draw: Draw) -> Iterator[Picture | LeftOut]:
        """The picture; what is missing with its reason; nothing for what was not asked for, or need not be there."""
        if kind not in self._kinds:
            return
        name = slug(stem).replace("+", "-").replace("=", "-")
        while name in self._names:
            name += "-"
        drawn = _attempt(draw, name)
        if isinstance(drawn, Drawn):
            self._names.add(name)
            caption, alt = (wording.clean(wording.plain(part)) for part in (drawn.caption, drawn.alt))
            yield Picture(kind, of, f"{name}.svg", caption, alt, drawn.svg)
        elif kind not in OPTIONAL or drawn.startswith(MISTAKE):
            yield LeftOut(kind, of, drawn)


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
    except EnergybenchError:  # a record that was changed while it is drawn from
        raise
    except Exception as error:  # whatever a library raises
        return f"{MISTAKE}: {type(error).__name__}: {wording.clean(str(error))[:120]}"
