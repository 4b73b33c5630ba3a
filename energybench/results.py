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

from energybench.common.build_logs import InertFile
from energybench.common.errors import EXIT_INTERRUPTED, Problem, UsageError, nearest
from energybench.common.renamed import RenamedNameWarning
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.report import merge
from energybench.verdict import run_parts
from energybench.verdict.figures import Row, Summary
from energybench.verdict.summary import to_json

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult

    from energybench.suite.suite import Suite

AnyPath = str | os.PathLike[str]


class Results:
    """One run, on one device or pooled over several; or several runs of one suite side by side, never averaged.

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
        warnings.warn("Results.witnesses is called counting_runs now", RenamedNameWarning, stacklevel=2)
        return self.counting_runs

    @cached_property
    def summary(self) -> Summary:
        return self._one.summary()

    @cached_property
    def comparisons(self) -> dict[tuple[str, str], Row]:
        """(workload, method) → its line of the report: claimed, estimated, counted, measured, verdict, reason."""
        return {(workload.name, row.method): row for workload in self.summary.workloads for row in workload.rows}

    def verdict(self, workload: str, method: str) -> str:
        """The report's word. Raises UsageError E642 for a pair that was not compared."""
        if (workload, method) not in self.comparisons:
            compared = [f"{each_workload}, {each_method}" for each_workload, each_method in self.comparisons]
            message = f"'{method}' on '{workload}' is no comparison of this run"
            raise UsageError(Problem("E642", message, hint=nearest(f"{workload}, {method}", compared)))
        return self.comparisons[workload, method].verdict

    def rows(self) -> list[dict[str, Any]]:
        """One row per trial, as `energybench export --to csv` has them: for any library of data frames."""
        from energybench.report.export import ExportedRun, rows

        return rows(*(ExportedRun(part.records, part.pooling) for part in self._parts))

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
        described = "; ".join(part.described for part in self._parts)
        hint = "take one of them: results.runs[0]"
        raise UsageError(Problem("E642", f"these are {len(self._parts)} runs side by side: {described}", hint=hint))

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

        return "\n".join(html(part.summary(), part) for part in self._parts)


def load(*folders: AnyPath) -> Results:
    """The results of a run that is on disk.

    Args:
        folders: one run's folder, or several of one suite: copies, shards and parts of one run are merged.

    Returns:
        One run, or several side by side.

    Raises:
        UsageError: E601 for what is no run's folder, E608 for folders of different suites, E642 for none.
    """
    if not folders:
        raise UsageError(Problem("E642", "no folder is named", hint='energybench.load("reports/quick/...")'))
    return Results(run_parts.read([Path(folder) for folder in folders]))


def run(
    suite: AnyPath | Suite,
    *,
    out: AnyPath | None = None,
    new: bool = False,
    quick: bool = False,
    overrides: Iterable[str] = (),
    device: str | None = None,
    until_decided: bool = False,
    max_time: str | None = None,
    add_blocks: int = 0,
    keep_going: bool = False,
    quiet: bool = False,
    fresh: bool | None = None,
) -> Results:
    """Train every cell of a suite: `energybench run` in Python.

    Args:
        suite:         a file, the name of a shipped suite, or a suite that is loaded.
        out:           the run's folder, by default reports/<suite>/<time>; an interrupted run in it is continued.
        new:           start anew instead of continuing.
        quick:         with the suite's overlay for a smoke test.
        overrides:     as after --set: ["workload.train.epochs=2"].
        device:        "cpu", "cuda", "cuda:1"; by default the suite's.
        until_decided: up to the suite's blocks_max, until every comparison is decided, with the interim analyses
                       that the suite declares.
        max_time:      end after the block in progress past it: "4h", "30min".
        add_blocks:    blocks beyond a finished run's: exploratory, in no verdict.
        keep_going:    on past a command whose quality or windows cannot be used; else the first one ends the run.
        quiet:         print nothing on the way.
        fresh:         the old name of new, taken for one version more.

    Returns:
        The results of the run; trials that failed are in `.summary.failures`.

    Raises:
        EnergybenchError:  with every mistake of the suite.
        KeyboardInterrupt: on Ctrl-C, when what is finished is on disk and the same call continues.
    """
    from rich.console import Console

    from energybench.runner import runner
    from energybench.runner.prepare import load_suite, seconds_of
    from energybench.runner.progress import Progress
    from energybench.suite.suite import Suite

    if fresh is not None:
        warnings.warn("run(fresh=...) is called new now, as --new on the command line", RenamedNameWarning, 2)
        new = new or fresh
    chosen = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    max_s = None if max_time is None else seconds_of("max_time", max_time)
    loaded = suite if isinstance(suite, Suite) else load_suite(os.fspath(suite), quick, chosen, device)
    if isinstance(suite, Suite) and (quick or chosen):
        hint = "energybench.suite.suite.load(path, quick=True, overrides=[...])"
        raise UsageError(Problem("E642", "a suite that is loaded already takes no quick and no overrides", hint=hint))
    told: Any = InertFile(sys.stderr)
    console, nowhere = (Console(file=file, highlight=False, force_jupyter=False) for file in (told, io.StringIO()))
    progress = Progress(console, nowhere, quiet)
    word = loaded.path.name if isinstance(suite, Suite) else os.fspath(suite)
    code, folder = runner.run(
        loaded,
        out=None if out is None else Path(out),
        fresh=new,
        device=device,
        progress=progress,
        max_s=max_s,
        argv=_argv(word, out, new, quick, chosen, device, until_decided, max_time, add_blocks, keep_going),
        until_decided=until_decided,
        add_blocks=add_blocks,
        keep_going=keep_going,
    )
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    progress.say(f"report: {folder / 'report.md'}")
    return load(folder)


def _argv(
    suite: str,
    out: AnyPath | None,
    new: bool,
    quick: bool,
    overrides: Sequence[str],
    device: str | None,
    until_decided: bool,
    max_time: str | None,
    add_blocks: int,
    keep_going: bool,
) -> list[str]:
    """The same call on the command line: how to reproduce it, whatever process it came from."""
    values = {
        "--out": None if out is None else os.fspath(out),
        "--device": device,
        "--max-time": max_time,
        "--add-blocks": str(add_blocks) if add_blocks else None,
    }
    flags = {"--quick": quick, "--new": new, "--until-decided": until_decided, "--keep-going": keep_going}
    words = ["energybench", "run", suite]
    words += [word for override in overrides for word in ("--set", override)]
    words += [word for option, value in values.items() if value is not None for word in (option, value)]
    return words + [option for option, is_set in flags.items() if is_set]
