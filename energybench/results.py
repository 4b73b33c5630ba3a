"""A run in Python: `energybench.run(suite)` trains and `energybench.load(folder)` reads; both give `Results`.

    results = energybench.load("reports/quick/2026-11-21-170504")
    results.verdict("wide-digits", "mine")          # "inconclusive"
    results.frame().groupby("method").train_s.mean()

A notebook shows the table and the pictures; `rich.print` and a terminal the table. Every figure and every verdict is
that of the report: nothing is computed here.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from energybench.common.errors import EXIT_INTERRUPTED, Problem, UsageError, nearest
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.report import merge
from energybench.verdict import run_parts
from energybench.verdict.figures import Row, Summary
from energybench.verdict.summary import summarise, to_json

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult

    from energybench.suite.suite import Suite

AnyPath = str | os.PathLike[str]


class Results:
    """One run, or several of one suite side by side; the latter are never averaged.

    runs:    each run by itself; of a single one, itself
    summary: every figure of the report, as typed values
    trials:  the records
    """

    def __init__(self, parts: Sequence[run_parts.Part]) -> None:
        self._parts = list(parts)

    @property
    def runs(self) -> list[Results]:
        return [Results([part]) for part in self._parts]

    @property
    def folders(self) -> list[Path]:
        return [Path(folder) for part in self._parts for folder in part.folders]

    @property
    def run(self) -> RunFile:
        """run.json: the suite as written and as resolved, the cells, the machine."""
        return self._one.records[0]

    @property
    def trials(self) -> list[Trial]:
        return [trial for part in self._parts for trial in part.records[1]]

    @property
    def counting_runs(self) -> list[CountingRun]:
        return [counting_run for part in self._parts for counting_run in part.records[2]]

    @property
    def witnesses(self) -> list[CountingRun]:
        """The name of `counting_runs` before."""
        warnings.warn("Results.witnesses is called counting_runs now", DeprecationWarning, stacklevel=2)
        return self.counting_runs

    @cached_property
    def summary(self) -> Summary:
        return summarise(*self._one.records)

    @cached_property
    def comparisons(self) -> dict[tuple[str, str], Row]:
        """(workload, method) → its line of the report: claimed, estimated, counted, measured, verdict and why."""
        return {(workload.name, row.method): row for workload in self.summary.workloads for row in workload.rows}

    def verdict(self, workload: str, method: str) -> str:
        """The report's word. Raises UsageError E642 for a pair that was not compared."""
        if (workload, method) not in self.comparisons:
            known = [f"{w}, {m}" for w, m in self.comparisons]
            message = f"'{method}' on '{workload}' is no comparison of this run"
            raise UsageError(Problem("E642", message, hint=nearest(f"{workload}, {method}", known)))
        return self.comparisons[workload, method].verdict

    def rows(self) -> list[dict[str, Any]]:
        """One row per trial, as `energybench export --to csv` has them: for any library of data frames."""
        from energybench.report.export import Folder, rows

        return [row for part in self._parts for row in rows(Folder(part.records))]

    def frame(self) -> pandas.DataFrame:
        """The same rows in pandas."""
        import pandas

        return pandas.DataFrame(self.rows())

    def to_json(self) -> dict[str, Any]:
        """What `energybench report --json` prints."""
        return to_json(self.summary) if len(self._parts) == 1 else merge.to_json(self._parts)

    def table(self, width: int | None = None, color: bool = False) -> str:
        """The report as a terminal shows it. width: in columns, by default the terminal's."""
        from rich.console import Console

        file = io.StringIO()
        colors: Literal["standard"] | None = "standard" if color else None
        console = Console(
            file=file, width=width, force_terminal=color, color_system=colors, highlight=False, force_jupyter=False
        )  # a notebook's would write past its file
        if len(self._parts) == 1:
            from energybench.report.terminal import render

            render(self.summary, console)
        else:
            merge.side_by_side(self._parts, console)
        return file.getvalue()

    @property
    def _one(self) -> run_parts.Part:
        if len(self._parts) == 1:
            return self._parts[0]
        told = "; ".join(part.described for part in self._parts)
        hint = "take one of them: results.runs[0]"
        raise UsageError(Problem("E642", f"these are {len(self._parts)} runs side by side: {told}", hint=hint))

    def __repr__(self) -> str:
        if len(self._parts) != 1:
            return f"<{len(self._parts)} runs of {self._parts[0].records[0].suite} side by side, see .runs>"
        return f"<{self.summary.suite} · {self.summary.run}: {self.summary.headline}>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        table = self.table(options.max_width, console.is_terminal and not console.no_color)
        yield Text.from_ansi(table.rstrip("\n"))

    def _repr_html_(self) -> str:
        return self._html

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows where there is no HTML. (A bundle of both would draw pictures for a terminal.)"""
        printer.text(self.table().rstrip())

    @cached_property
    def _html(self) -> str:
        from energybench.report.notebook import html

        return "\n".join(html(summarise(*part.records), part) for part in self._parts)


def load(*folders: AnyPath) -> Results:
    """The results in one run's folder, or in several folders of one suite: copies of one run are merged.

    Raises UsageError E601 for what is no run's folder, E608 for folders of different suites.
    """
    if not folders:
        raise UsageError(Problem("E642", "no folder is named", hint='energybench.load("reports/quick/...")'))
    return Results(run_parts.read([Path(folder) for folder in folders]))


def run(
    suite: AnyPath | Suite,
    *,
    out: AnyPath | None = None,
    fresh: bool = False,
    quick: bool = False,
    overrides: Iterable[str] = (),
    device: str | None = None,
    until_decided: bool = False,
    max_time: str | None = None,
    add_blocks: int = 0,
    quiet: bool = False,
) -> Results:
    """Train every cell of a suite, a file or a shipped one's name, and return what came; `energybench run` in Python.

    overrides: as after --set: ["workload.train.epochs=2"]
    out:       the run's folder, by default reports/<suite>/<time>; an interrupted run is continued, unless `fresh`
    quiet:     say nothing on the way

    Trials that failed are in `.summary.failures`. Raises EnergybenchError with every mistake of the suite, and
    KeyboardInterrupt on Ctrl-C, when what is finished is on disk and the same call continues.
    """
    from rich.console import Console

    from energybench.runner import runner
    from energybench.runner.prepare import load_suite, seconds_of
    from energybench.runner.progress import Progress
    from energybench.suite.suite import Suite

    chosen = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    max_s = None if max_time is None else seconds_of("max_time", max_time)
    known = suite if isinstance(suite, Suite) else load_suite(os.fspath(suite), quick, chosen, device)
    if isinstance(suite, Suite) and (quick or chosen):
        hint = "energybench.suite.suite.load(path, quick=True, overrides=[...])"
        raise UsageError(Problem("E642", "a suite that is loaded already takes no quick and no overrides", hint=hint))
    console, nowhere = (
        Console(file=file, highlight=False, force_jupyter=False) for file in (sys.stderr, io.StringIO())
    )
    progress = Progress(console, nowhere, quiet)
    word = known.path.name if isinstance(suite, Suite) else os.fspath(suite)
    code, folder = runner.run(
        known,
        out=None if out is None else Path(out),
        fresh=fresh,
        device=device,
        progress=progress,
        max_s=max_s,
        argv=_argv(word, out, fresh, quick, chosen, device, until_decided, max_time, add_blocks),
        until_decided=until_decided,
        add_blocks=add_blocks,
    )
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    progress.say(f"report: {folder / 'report.md'}")
    return load(folder)


def _argv(
    suite: str,
    out: AnyPath | None,
    fresh: bool,
    quick: bool,
    overrides: Sequence[str],
    device: str | None,
    until_decided: bool,
    max_time: str | None,
    add_blocks: int,
) -> list[str]:
    """The same call on the command line: how to reproduce it, whatever process it came from."""
    found = ["energybench", "run", suite]
    given = {
        "--out": None if out is None else os.fspath(out),
        "--device": device,
        "--max-time": max_time,
        "--add-blocks": str(add_blocks) if add_blocks else None,
    }
    found += [word for option in overrides for word in ("--set", option)]
    found += [word for option, value in given.items() if value is not None for word in (option, value)]
    flags = {"--quick": quick, "--new": fresh, "--until-decided": until_decided}
    return found + [option for option, set_ in flags.items() if set_]
