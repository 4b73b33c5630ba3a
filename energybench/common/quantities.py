"""Bounded numeric types of a record: finite, not negative where the quantity cannot be, and within physical limits.

Ratios of these, and squares of such ratios, stay far inside a float.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from energybench.common.limits import MOST_TRIALS, NAME


def _measurable(least_of_it: float) -> Callable[[float | None], float | None]:
    def check(value: float | None) -> float | None:
        if value is not None and 0 < value < least_of_it:
            raise ValueError(f"{value:g} is less than anything that could be measured ({least_of_it:g})")
        return value

    return check


Seconds = Annotated[float, Field(ge=0, le=1e11)]  # 3,000 years
WindowSeconds = Annotated[float, Field(ge=0, le=1e11), AfterValidator(_measurable(1e-9))]  # of a clock in nanoseconds
Joules = Annotated[float, Field(ge=0, le=1e18), AfterValidator(_measurable(1e-15))]
Flop = Annotated[float, Field(ge=0, le=1e36), AfterValidator(_measurable(1e-6))]
Byte = Annotated[float, Field(ge=0, le=1e36), AfterValidator(_measurable(1e-6))]
Amount = Annotated[float, Field(ge=0, le=1e36)]  # what nothing is divided by: a spread, an error
Period = Annotated[float, Field(gt=0, le=1e11)]  # of what happens again and again
Megahertz = Annotated[float, Field(ge=0, le=1e7)]
Part = Annotated[float, Field(ge=0, le=1)]  # of a whole
Epochs = Annotated[float, Field(ge=0, le=1e9)]
Celsius = Annotated[float, Field(ge=-273.15, le=1e4)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Pid = Annotated[int, Field(ge=0, lt=2**32)]
Tunings = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Blocks = Annotated[int, Field(ge=1, le=MOST_TRIALS)]
Place = Annotated[int, Field(ge=0, lt=MOST_TRIALS)]  # a block, an invocation, a turn
Share = Annotated[float, Field(ge=-1e6, le=1)]  # a saving: 1 is everything, less than 0 costs
Figure = Annotated[float, Field(ge=-1e100, le=1e100)]  # a loss, an accuracy: any unit
Text = Annotated[str, Field(max_length=NAME)]


# What a name that ends so can be: a second is not negative because somebody else chose the name.
UNITS = {"_s": 0.0, "_j": 0.0, "_w": 0.0, "_kg": 0.0, "_flop": 0.0, "_b": 0.0, "_mhz": 0.0, "_c": -273.15}
OTHERS = {unit: least for unit, least in UNITS.items() if unit not in ("_w", "_b", "_c")}
NAMES = 10_000  # that are remembered: a record says each of its names in every phase
SHORTEST_STEM = 4  # of a metric's name: `tick_s` and `wall_s`, but Spearman's `r_s` is below 0 as it likes


@lru_cache(NAMES)
def least(name: str) -> float:
    """The least figure that can have this name in a table of ours, by the unit in which it ends; else −∞."""
    return next((least for unit, least in UNITS.items() if name.endswith(unit)), -math.inf)


@lru_cache(NAMES)
def least_metric(name: str) -> float:
    """The same of a metric, whose name others choose: they end a bound in `_b`, a class in `_c`."""
    return next(
        (least for unit, least in OTHERS.items() if name.endswith(unit) and len(name) >= SHORTEST_STEM + len(unit)),
        -math.inf,
    )


def is_figure(value: float, name: str = "") -> bool:
    """Whether a record can hold a metric's value: finite, its square too, and no less than its unit can be."""
    return abs(value) <= 1e100 and value >= least_metric(name)


def physical(table: dict[str, Any], inside: float = -math.inf) -> dict[str, Any]:
    """The table, if no figure in it, however deep, is less than the unit in its name can be. Raises ValueError."""
    for key, value in table.items():
        _hold(key, value, max(inside, least(str(key))))
    return table


def _metrics(table: dict[str, float | None]) -> dict[str, float | None]:
    for key, value in table.items():
        _hold(key, value, least_metric(key))
    return table


def _hold(key: str, value: Any, bound: float) -> None:
    if isinstance(value, dict):
        physical(value, bound)
    elif isinstance(value, list | tuple):
        for item in value:
            _hold(key, item, bound)
    elif isinstance(value, int | float) and value < bound:
        raise ValueError(f"{key}: {value:g} is less than {bound:g}, and nothing of its unit is")


Qualities = Annotated[dict[Text, Figure], AfterValidator(_metrics)]
Point = Annotated[dict[str, Figure | None], AfterValidator(_metrics)]
