"""Which metrics judge each workload, and what is declared of them; what nobody declares is refused before it trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from energybench.common import metrics
from energybench.common.errors import Problem
from energybench.common.metrics import Metric
from energybench.suite.command_tables import CommandWorkloadTable
from energybench.suite.quality_tables import QualityTable
from energybench.suite.suite import Suite
from energybench.suite.tables import WorkloadTable

Where = Callable[..., str]  # (*keys from the suite's root) → their place


def of_training(
    suite: Suite, number: int, workload: WorkloadTable, task: Mapping[str, Any], reported: Collection[str], where: Where
) -> tuple[dict[str, Metric], list[Problem]]:
    """The metrics of a workload that is trained.

    Args:
        number: of the workload in the suite
        task: what its task declares, as it was written
        reported: names of what the task's evaluation gives

    Returns:
        Every metric of which something is declared, and what is wrong: E403 for a task that declares it wrongly, E406
        for a metric that it does not report, E409 for one that nobody declared, or for a target on its wrong side.
    """
    try:
        declared = metrics.declared(task)
    except (ValueError, AttributeError) as error:
        return {}, [Problem("E403", str(error), where("workload", number, "task"))]
    quality = suite.quality_of(workload)
    place = _place(number, workload, where)
    found, problems = _declared(quality, declared, place)
    wanted = {quality.metric: place("metric"), **dict.fromkeys(quality.also, place("also"))}
    target = workload.target
    if target is not None:
        wanted[target.metric] = where("workload", number, "target")
        metric = found.get(target.metric) or declared.get(target.metric) or metrics.known(target.metric)
        if line := target.contradicts(metric):
            better = metric.better if metric else ""
            message = (
                f"'{target.metric}' is better when {better}, so '{workload.name}' would reach its target untrained"
            )
            problems.append(Problem("E409", message, where("workload", number, "target"), line))
    missing = [name for name in wanted if name not in reported]
    problems = [problem for problem in problems if not missing] + [
        Problem(
            "E406",
            f"'{workload.name}' has no quality '{name}'",
            wanted[name],
            f"its task reports: {', '.join(reported)}",
        )
        for name in missing
    ]
    return {**declared, **found}, problems


def of_command(
    suite: Suite, number: int, workload: CommandWorkloadTable, where: Where
) -> tuple[dict[str, Metric], list[Problem]]:
    """The same of a command, of which only the suite and the names themselves say anything."""
    if workload.quality.where == "none":
        return {}, []
    quality, place = suite.quality_of(workload), _place(number, workload, where)
    source, read = workload.quality, partial(where, "workload", number, "quality")
    sources = source.sources(quality.metric)
    declared = {name: metric for name, each in sources.items() if (metric := each.declared(name))}
    found, problems = _declared(quality, declared, place)
    if source.metric not in (None, quality.metric):
        message = f"'{workload.name}' is judged by '{quality.metric}', and what is read here is '{source.metric}'"
        hint = f'accept = {{ quality = {{ metric = "{source.metric}", loses_at_most = ... }} }} in its [[workload]]'
        problems.append(Problem("E409", message, read("metric"), hint))
    unread = [name for name in quality.also if name not in sources]
    if unread and source.where == "regex":
        message = f"the pattern of '{workload.name}' reads one figure, and also = {unread} asks for more"
        hint = (
            f'in its quality: also = [{{ metric = "{unread[0]}", from = "regex", pattern = \'{unread[0]}=(\\S+)\' }}]'
        )
        problems.append(Problem("E409", message, place("also"), hint))
    for name in sources:
        if name != quality.metric and name not in declared and name not in quality.also:
            message = f"nobody says whether '{name}' is better when higher or lower"
            problems.append(Problem("E409", message, read("also"), 'add better = "lower" beside it, or "higher"'))
    return {**declared, **found}, problems


def _place(number: int, workload: WorkloadTable | CommandWorkloadTable, where: Where) -> Where:
    """Of a key of the quality table that holds for a workload."""
    if workload.accept is not None:
        return lambda key: where("workload", number, "accept", "quality", key)
    return lambda key: where("accept", "quality", key)


def _declared(
    quality: QualityTable, declared: Mapping[str, Metric], place: Where
) -> tuple[dict[str, Metric], list[Problem]]:
    resolved = {quality.metric: quality.resolve(declared)}
    resolved |= {name: declared.get(name) or metrics.known(name) for name in quality.also}
    problems = [
        Problem(
            "E409",
            f"nobody says whether '{name}' is better when higher or lower",
            place("metric" if name == quality.metric else "also"),
            quality.to_write(name),
        )
        for name, metric in resolved.items()
        if metric is None
    ]
    return {name: metric for name, metric in resolved.items() if metric is not None}, problems
