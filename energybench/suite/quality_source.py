"""Where the quality of a command is read: the table `quality` of a workload that is a command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from energybench.common import metrics
from energybench.common.metrics import Better, Metric, Scale
from energybench.suite.messages import KeyedError
from energybench.suite.quality_tables import Ends, ends_of
from energybench.suite.table import Name, Several, SuiteTable

KEYS: dict[str, tuple[str, ...]] = {
    "json": ("key", "stream", "which"),
    "file": ("path", "key", "which"),
    "regex": ("pattern", "stream", "which"),
    "window": ("key",),
    "none": (),
}


class QualitySourceTable(SuiteTable):
    """Where the quality of a trial is read."""

    where: Literal["json", "file", "regex", "window", "none"] = Field(
        alias="from",
        description="a JSON object or a Python dict on a line of its output; a JSON file; a match in its output; "
        "what energybench.measure() was given; none: there is no quality that could be lost",
    )
    metric: Name | None = Field(default=None, description="its name; else the metric of [accept]")
    key: Name | None = Field(default=None, description="of the JSON, dotted where nested; else the metric")
    path: Name | None = Field(default=None, description="of the file, from the folder that the command runs in")
    pattern: Name | None = Field(default=None, examples=["acc=(\\S+)"], description="group 1 is the number")
    stream: Literal["stdout", "stderr"] | None = Field(
        default=None, description="which output is read; else stdout for JSON, and for a pattern the one that matches"
    )
    which: Literal["last", "best", "first"] = Field(
        default="last", description="of several figures; the best one is chosen by the data that it is judged by"
    )
    better: Better | None = Field(default=None, description="which way; else as the metric's name has it")
    scale: Scale | None = Field(
        default=None, description='"fraction": 0.948; "percent": 94.8; "units": the metric\'s own'
    )
    unit: Annotated[str, Field(min_length=1, max_length=40)] | None = Field(
        default=None, examples=["dB"], description="of a metric that is no share, as it is printed"
    )
    range: Ends | None = Field(default=None, examples=[[0, 1]], description="what lies outside of it decides nothing")
    also: Several[QualitySourceTable] = Field(
        default=(), description="other metrics that are kept, and decide nothing; each needs a metric"
    )

    @model_validator(mode="after")
    def _fits(self) -> QualitySourceTable:
        given = {key: getattr(self, key) for key in ("key", "path", "pattern", "stream")}
        given["which"] = self.which if self.which != "last" else None
        wanted = KEYS[self.where]
        for key, value in given.items():
            if value is not None and key not in wanted:
                message = f'from = "{self.where}" has no {key}'
                raise KeyedError(message, key, f"its keys: {', '.join(wanted)}" if wanted else "remove it")
        example = {"path": 'path = "{scratch}/metrics.json"', "pattern": "pattern = 'accuracy: (\\S+)'"}
        for key in ("path", "pattern"):
            if key in wanted and given[key] is None:
                raise KeyedError(f'from = "{self.where}" needs a {key}', "", f"add {example[key]}")
        self._check_pattern()
        self._check_also()
        if self.range is not None and not self.range[0] < self.range[1]:
            raise KeyedError("a range rises from its least to its most", "range", "range = [0, 1]")
        return self

    def _check_pattern(self) -> None:
        if self.pattern is None:
            return
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            hint = "single quotes keep the backslashes: pattern = 'acc=(\\S+)'"
            raise KeyedError(f"not a regular expression: {error}", "pattern", hint) from None
        if groups < 1:
            hint = "put brackets around the number: 'accuracy (\\S+)'"
            raise KeyedError("the pattern has no group to read the number from", "pattern", hint)

    def _check_also(self) -> None:
        names = [self.metric] if self.metric else []
        for each in self.also:
            if each.metric is None:
                hint = 'also = [{ metric = "loss", from = "regex", pattern = \'loss (\\S+)\' }]'
                raise KeyedError("a metric that is kept beside the deciding one needs its name", "also", hint)
            if each.where == "none" or each.also:
                hint = "one list of metrics, each with a place where it is read"
                raise KeyedError(f"'{each.metric}' cannot be read so", "also", hint)
            names.append(each.metric)
        if self.where == "none" and self.also:
            raise KeyedError('from = "none" has no also', "also", "read the deciding metric too, or none")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise KeyedError(f"'{twice}' is read twice", "also", "give each metric its own name")

    @property
    def paths(self) -> list[str]:
        """Of the files that quality is read from."""
        return [each.path for each in (self, *self.also) if each.path]

    def sources(self, metric: str, also: Sequence[str] = ()) -> dict[str, QualitySourceTable]:
        """Each metric and where it is read: the deciding one first, then its own `also`.

        Args:
            metric: the one that decides, as [accept] names it
            also: further names of [accept]; each lies where the deciding one does, under its own name
        """
        found = {metric: self} | {each.metric or metric: each for each in self.also}
        beside = self.model_copy(update={"key": None, "metric": None, "also": ()})
        return found | {name: beside for name in also if name not in found}

    def declared(self, name: str) -> Metric | None:
        """What this table says of the metric that it reads, over what its name says; None where nobody says which way
        is better."""
        known = metrics.known(name)
        better = self.better or (known.better if known else None)
        if better is None or not (self.better or self.scale or self.unit or self.range):
            return known
        scale: Scale = self.scale or (known.scale if known else "units")
        least, most = (known.least, known.most) if known is not None and known.scale == scale else ends_of(scale)
        least, most = self.range or (least, most)
        unit = self.unit or (known.unit if known is not None and scale == "units" else "")
        return Metric(better=better, scale=scale, unit=unit, least=least, most=most)


def from_word(value: Any) -> Any:
    """`quality = "none"` as the table that it stands for."""
    if isinstance(value, str) and value != "none":
        hint = 'quality = { from = "json", key = "accuracy" }, or "none" where nothing can be lost'
        raise KeyedError(f"expected a table or 'none', not '{value}'", "", hint)
    return {"from": value} if isinstance(value, str) else value
