"""`energybench reread`: the quality of a finished run's commands, taken again from the logs that were kept.

For a run whose suite said wrongly where its quality is read. Nothing runs again; what was metered stays as it is, and
so do the margins, which were declared before the first trial.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.hashing import digest
from energybench.common.metrics import Metric
from energybench.process.output_log import LEFT_OUT, Lines, of_stream
from energybench.records.kept import whole
from energybench.records.reader import RECORDS
from energybench.records.record import RunFile, Trial
from energybench.records.run_folder import Folder
from energybench.runner import plan_metrics
from energybench.runner.prepare import load_suite
from energybench.suite.command_tables import CommandWorkloadTable
from energybench.suite.quality_tables import QualityTable
from energybench.suite.suite import Suite
from energybench.trial.command_quality import STREAMS, NoQuality, QualityReaders
from energybench.trial.command_scale import DeclaredScale
from energybench.trial.command_trial import ENDED, REFUSED, Unusable, judge
from energybench.trial.record_draft import TrialDraft
from energybench.verdict.accept import Accept

STAMP = "quality read again"
LOG_B = 1 << 22  # a log holds less
_CUT = re.compile(re.escape(LEFT_OUT).replace(r"\{\}", r"\d+").encode())


@dataclass
class Reread:
    """What has become of a run's trials: how many were read, and why not the others, trial → reason."""

    read: int
    left: dict[str, str]


def reread(path: Path, suite_path: str | None, overrides: tuple[str, ...]) -> Reread:
    """Take quality again in a run's folder, and write its records and run.json.

    Args:
        path: the run's folder
        suite_path: the suite with the place where quality is read; None: the one that the run keeps
        overrides: as after --set

    Raises:
        UsageError: E652 where the suite is another one, or says another margin; E601 for what is no run's folder
    """
    folder = Folder(path)
    with folder.lock():
        run = folder.run_file()
        if run is None:
            raise UsageError(Problem("E601", "there is no run.json in it", str(path), "energybench reread FOLDER"))
        suite = _suite(run, suite_path, overrides)
        tables = _workloads(run, suite)
        metrics = _metrics(run, suite, tables)
        done = Reread(0, {})
        for kept in folder.trials():
            trial, table = whole(kept), tables.get(kept.workload)
            if table is None or "command" not in trial.settings:
                continue
            try:
                again = _again(folder, trial, table, suite.quality_of(table), metrics[table.name])
            except UsageError as error:
                done.left[trial.trial] = error.problems[0].message
                continue
            folder.write_record(f"{RECORDS}/{trial.trial}.json", again)
            done.read += 1
        if done.read:
            folder.save(_noted(run, suite, metrics))
    return done


def _suite(run: RunFile, path: str | None, overrides: tuple[str, ...]) -> Suite:
    quick = "quick" in run.stamp
    if path is not None:
        return load_suite(path, quick, overrides, None)
    kept = tuple(word.removeprefix("--set ") for word in run.stamp if word.startswith("--set "))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / run.suite_path
        file.write_text(run.suite_text, encoding="utf-8")
        return load_suite(str(file), quick, (*kept, *overrides), None)


def _workloads(run: RunFile, suite: Suite) -> dict[str, CommandWorkloadTable]:
    """The suite's commands by name. Raises UsageError E652 where it is not the run's suite."""
    if suite.suite != run.suite:
        raise UsageError(Problem("E652", f"this run is of '{run.suite}', and the suite is '{suite.suite}'"))
    tables = {each.name: each for each in suite.workloads if isinstance(each, CommandWorkloadTable)}
    for name in dict.fromkeys(cell.workload for cell in run.cells if cell.command):
        if name not in tables:
            raise UsageError(Problem("E652", f"the suite has no command called '{name}'", hint=nearest(name, tables)))
        before, now = Accept.of(run, name), suite.quality_of(tables[name])
        declared = {"margin": before.loses_at_most, "metric that decides": before.metric}
        for what, new in {"margin": now.loses_at_most, "metric that decides": now.metric}.items():
            if declared[what] not in (None, new):
                hint = 'scale = "percent" reads 94.8 as 94.8 %, and key = "acc" what is printed so; else run it anew'
                message = f"the {what} of '{name}' was declared before the first trial, and the suite says another now"
                raise UsageError(Problem("E652", message, suite.where(("accept", "quality")), hint))
    return tables


def _metrics(run: RunFile, suite: Suite, tables: Mapping[str, CommandWorkloadTable]) -> dict[str, dict[str, Metric]]:
    """What the suite declares of the metrics of its commands. Raises UsageError for what nobody declares, or for
    another direction than the run's."""
    found, problems = {}, []
    for number, table in enumerate(suite.workloads):
        if tables.get(table.name) is table and isinstance(table, CommandWorkloadTable):
            found[table.name], wrong = plan_metrics.of_command(suite, number, table, lambda *loc: suite.where(loc))
            problems += wrong
            for name, metric in run.metrics.get(table.name, {}).items():
                if (now := found[table.name].get(name, metric)).better != metric.better:
                    message = f"'{name}' was declared better when {metric.better}, and the suite says {now.better} now"
                    problems.append(
                        Problem("E652", message, hint="what is better is no matter of reading: run it anew")
                    )
    if problems:
        raise UsageError(*problems)
    return found


def _again(
    folder: Folder, trial: Trial, table: CommandWorkloadTable, quality: QualityTable, metrics: Mapping[str, Metric]
) -> Trial:
    """The trial with its quality taken again. Raises UsageError where that cannot be."""
    reason = trial.reason or trial.status
    if trial.environment.get(ENDED) != "well":
        raise _no(f"its command did not end well, or it is of an earlier version: {reason}")
    if trial.environment.get(REFUSED) == "windows":
        raise _no(f"its windows were refused, and they are no part of a log: {reason}")
    sources = table.quality.sources(quality.metric, quality.also)
    if elsewhere := next((each.where for each in sources.values() if each.where in ("file", "window")), None):
        raise _no(f"a quality from a {elsewhere} is no part of a log")
    readers = QualityReaders.of(sources, folder.path, {}, metrics)
    heard = {stream: _log(folder, trial, stream) for stream in STREAMS}
    whole = not any(_CUT.search(content) for content in heard.values())
    for reader in readers.readers:
        for stream, content in heard.items():
            for line in _lines(content, reader.which):
                reader.hear(stream, line)
        if not whole and reader.which == "best":
            raise _no("its log is cut in the middle, where the best figure may have stood")
    environment = {key: value for key, value in trial.environment.items() if key not in (REFUSED, "no_quality")}
    environment["reread"] = {"status": trial.status, "reason": trial.reason, "quality": trial.quality}
    settings = {**trial.settings, "workload": {**trial.settings["workload"], "quality": table.settings()["quality"]}}
    kept: Callable[..., Any] = trial.model_dump
    draft = TrialDraft.model_validate(kept(by_alias=True) | {"environment": environment, "settings": settings})
    before = trial.status
    draft.status, draft.reason, draft.quality = ("invalid", reason, {}) if before == "invalid" else ("ok", None, {})
    try:
        judge(readers, [], draft, DeclaredScale(metrics.get(quality.metric), quality.range is not None))
    except (Unusable, NoQuality) as unusable:
        if not whole:
            raise _no("its log is cut in the middle, and the rest of it has no such figure") from None
        draft.status = unusable.status if isinstance(unusable, Unusable) else "failed"
        draft.reason = str(unusable)
    return draft.finished()


def _log(folder: Folder, trial: Trial, stream: str) -> bytes:
    """What a stream of a command wrote, as far as it is kept."""
    both = Path("logs") / f"{trial.trial}.log"
    for name in (of_stream(both, stream), both if trial.environment.get("stream") == stream else None):
        if name is not None and folder.held.has(str(name)):
            try:
                return folder.held.read_bytes(str(name), LOG_B)
            except OSError as error:
                raise UsageError(
                    Problem("E601", f"cannot be read: {error.strerror}", str(folder.path / name))
                ) from None
    return b""


def _lines(content: bytes, which: str) -> Iterator[str]:
    """Line by line, as they were heard; of a log that is cut the part in which the figure is certain."""
    if cut := _CUT.search(content):
        content = content[: cut.start()] if which == "first" else content[cut.end() :]
    lines = Lines()
    yield from lines.feed(content)
    yield from lines.rest()


def _no(message: str) -> UsageError:
    return UsageError(Problem("E652", message))


def _noted(run: RunFile, suite: Suite, metrics: Mapping[str, Mapping[str, Metric]]) -> RunFile:
    """run.json with where quality was read in the end; no other call continues such a run."""
    settings = suite.digest_source()
    old, new = run.resolved.get("accept", {}), settings["accept"]
    quality = {**old.get("quality", {}), **new["quality"]}
    by_name = {table["name"]: {key: table.get(key) for key in ("quality", "accept")} for table in settings["workload"]}
    workloads = [
        {**table, **by_name[table["name"]]} if "command" in table and table.get("name") in by_name else table
        for table in run.resolved.get("workload", [])
    ]
    resolved = {**run.resolved, "accept": {**old, "quality": quality}, "workload": workloads}
    return run.model_copy(
        update={
            "resolved": resolved,
            "metrics": {**run.metrics, **metrics},
            "stamp": list(dict.fromkeys([*run.stamp, STAMP])),
            "digest": digest([run.digest, quality, workloads]),
        }
    )
