"""What a suite says of quality: the metric that decides, what may be lost of it, further metrics, targets.

A metric that is neither declared by the task nor known by its name (`common/metrics.py`) needs its direction here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, Strict, model_validator

from energybench.common import metrics
from energybench.common.metrics import Better, End, Metric, Scale
from energybench.common.units import Points
from energybench.suite.messages import KeyedError
from energybench.suite.table import Name, Several, SuiteTable

Finite = Annotated[float, Field(ge=-1e100, le=1e100)]
Ends = Annotated[tuple[End, End], Strict(False)]  # a TOML array


def _in_units(written: Any) -> bool:
    return isinstance(written, str) and written.rstrip().endswith(("unit", "units"))


class QualityTable(SuiteTable):
    """The metric that decides, and the quality margin: how much of it a method may lose."""

    metric: Name = Field(default="accuracy", description="what the task, or the command, reports")
    loses_at_most: Points = Field(
        default="0.5 pp", validate_default=True, description="the quality margin, in points or the metric's own units"
    )
    better: Better | None = Field(default=None, description="which way; else as the task or the metric's name has it")
    scale: Scale | None = Field(
        default=None, description='"fraction": 0.948; "percent": 94.8; "units": the metric\'s own'
    )
    unit: Annotated[str, Field(min_length=1, max_length=40)] | None = Field(
        default=None, examples=["dB"], description="of a metric that is no share, as it is printed"
    )
    range: Ends | None = Field(default=None, examples=[[0, 1]], description="what lies outside of it decides nothing")
    also: Several[Name] = Field(default=(), description="further metrics that are kept and shown; they decide nothing")

    @model_validator(mode="before")
    @classmethod
    def _scale_of_the_margin(cls, given: Any) -> Any:
        """A margin in the metric's own units says that the metric is no fraction."""
        if isinstance(given, Mapping) and _in_units(given.get("loses_at_most")):
            if given.get("scale") == "percent":
                hint = 'loses_at_most = "0.5 pp"; or scale = "units"'
                raise KeyedError("changes of a percentage are percentage points", "loses_at_most", hint)
            return {"scale": "units", **given}
        return given

    @model_validator(mode="after")
    def _makes_sense(self) -> QualityTable:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise KeyedError("a range rises from its least to its most", "range", "range = [0, 1]")
        if self.unit is not None and self.scale in ("fraction", "percent"):
            raise KeyedError("a share has no unit of its own", "unit", 'remove it, or write scale = "units"')
        if self.metric in self.also:
            raise KeyedError(f"'{self.metric}' decides already", "also", "name the other metrics alone")
        return self

    def resolve(self, task: Mapping[str, Metric]) -> Metric | None:
        """The metric as this table, else the task, else its name declares it; None where nobody says which way.

        task: what the task declares, by name
        """
        base = task.get(self.metric) or metrics.known(self.metric)
        better = self.better or (base.better if base else None)
        if better is None:
            return None
        scale: Scale = self.scale or (base.scale if base else "fraction")  # of a margin in points
        least, most = (base.least, base.most) if base is not None and base.scale == scale else ends_of(scale)
        if self.range is not None:
            least, most = self.range
        unit = self.unit or (base.unit if base is not None and scale == "units" else "")
        return Metric(better=better, scale=scale, unit=unit, least=least, most=most)

    def to_write(self, name: str) -> str:
        """The line that declares a metric, as one types it."""
        margin = f'"{self.loses_at_most:g} units"' if self.scale == "units" else f'"{100 * self.loses_at_most:g} pp"'
        if name == self.metric:
            line = f'quality = {{ metric = "{name}", loses_at_most = {margin}, better = "lower" }}'
            return f'[accept] {line}, or "higher"; a task of yours says it itself: metrics = {{"{name}": "lower"}}'
        return (
            f'a task of yours says it itself: metrics = {{"{name}": "lower"}}, or "higher"; else leave it out of also'
        )


def ends_of(scale: Scale) -> tuple[float | None, float | None]:
    """The range of what is only known by its scale: a share may be below 0 or above 1, a percentage seldom is."""
    return (0.0, 100.0) if scale == "percent" else (None, None)


class WorkloadAcceptTable(SuiteTable):
    """What one workload accepts in place of what the suite does."""

    quality: QualityTable


class TargetTable(SuiteTable):
    """Also report the cost of reaching this quality: at least so much, or at most where less is better."""

    metric: Name = Field(default="accuracy", description="what the task reports")
    at_least: Finite | None = Field(
        default=None, examples=[0.9], description="in the metric's own unit: of an accuracy 0.9 is 90 %"
    )
    at_most: Finite | None = Field(default=None, examples=[0.02], description="in its place where less is better")

    @model_validator(mode="after")
    def _one_side(self) -> TargetTable:
        if (self.at_least is None) == (self.at_most is None):
            hint = 'target = { metric = "accuracy", at_least = 0.9 }, or at_most where less is better'
            raise KeyedError("a target is reached from one side", "at_most", hint)
        return self

    def reached(self, value: float) -> bool:
        """Whether a value is as good as was asked for."""
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)

    def contradicts(self, metric: Metric | None) -> str:
        """What to write where the target lies on the side from which training starts; empty where it does not."""
        if metric is None or (metric.better == "higher") == (self.at_least is not None):
            return ""
        wanted, value = ("at_least", self.at_most) if metric.better == "higher" else ("at_most", self.at_least)
        return f'target = {{ metric = "{self.metric}", {wanted} = {value:g} }}'
