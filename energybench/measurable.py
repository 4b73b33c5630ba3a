"""Numbers that a measurement can have, as types: finite, not negative, not beyond physics, and safe to compute with.

A record that says otherwise was not measured. Ratios of these, and squares of such ratios, stay far inside a float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field

from energybench.bounds import MOST_TRIALS, NAME


def _measurable(least: float) -> Callable[[float | None], float | None]:
    def check(value: float | None) -> float | None:
        if value is not None and 0 < value < least:
            raise ValueError(f"{value:g} is less than anything that could be measured ({least:g})")
        return value

    return check


Seconds = Annotated[float, Field(ge=0, le=1e11)]  # 3,000 years
Window = Annotated[
    float, Field(ge=0, le=1e11), AfterValidator(_measurable(1e-9))
]  # of a clock in nanoseconds
Joules = Annotated[float, Field(ge=0, le=1e18), AfterValidator(_measurable(1e-15))]
Flop = Annotated[float, Field(ge=0, le=1e36), AfterValidator(_measurable(1e-6))]
Byte = Annotated[float, Field(ge=0, le=1e36), AfterValidator(_measurable(1e-6))]
Amount = Annotated[float, Field(ge=0, le=1e36)]  # what nothing is divided by: a spread, an error
Epochs = Annotated[float, Field(ge=0, le=1e9)]
Celsius = Annotated[float, Field(ge=-273.15, le=1e4)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Tunings = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Blocks = Annotated[int, Field(ge=1, le=MOST_TRIALS)]
Place = Annotated[int, Field(ge=0, lt=MOST_TRIALS)]  # a block, an invocation, a turn
Share = Annotated[float, Field(ge=-1e6, le=1)]  # a saving: 1 is everything, less than 0 costs
Figure = Annotated[float, Field(ge=-1e100, le=1e100)]  # a loss, an accuracy: any unit
Text = Annotated[str, Field(max_length=NAME)]


def is_figure(value: float) -> bool:
    """Whether a record can hold it: finite, and its square too."""
    return abs(value) <= 1e100
