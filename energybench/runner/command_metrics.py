"""What is declared of the metrics of a workload that is a command: in which scale they are, and which way is better."""

from __future__ import annotations

from energybench.suite.command_tables import CommandWorkloadTable
from energybench.suite.suite import Suite
from energybench.verdict.pairing import higher_is_better


def is_percentage(suite: Suite) -> bool:
    """Whether the deciding metric is declared a percentage: 94.8 is then 94.8 %."""
    return suite.accept.quality.scale == "percent"


def is_fraction(suite: Suite) -> bool:
    """Whether the margin is in points of a fraction: a value beyond 1 is then none that anybody declared."""
    return suite.accept.quality.scale in (None, "fraction")


def directions(suite: Suite, workload: CommandWorkloadTable) -> dict[str, bool]:
    """Metric that is read → whether more of it is better."""
    metric = suite.accept.quality.metric
    names = [source.metric or metric for source in workload.quality.sources]
    return {name: higher_is_better(name) for name in names}
