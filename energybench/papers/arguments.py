"""What a person gives to a count, checked: a figure that no table could have is refused in words."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Real
from typing import Any

from energybench.common.errors import Problem, UsageError, WorkloadError


class BadClaim(UsageError, WorkloadError, ValueError):
    """An argument that no count could have: a ValueError to Python, exit 2 on the command line."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(Problem("E404", message, hint=hint))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems[0].message, self.problems[0].hint)


def exact(value: Any, what: str) -> Fraction:
    """The decimal that a person wrote: 0.8 is 4/5, not the nearest binary fraction. Raises BadClaim for no number."""
    value = value.item() if hasattr(value, "item") else value  # a tensor or numpy's
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return Fraction(value) if isinstance(value, (int, Fraction)) else Fraction(str(float(value)))
    raise BadClaim(f"{what} is a number, not {value!r}")


def share_of(value: Any, what: str, closed: bool = False) -> Fraction:
    """In [0, 1), or [0, 1] if `closed`. Raises BadClaim."""
    share = exact(value, what)
    if not 0 <= share <= 1 or (share == 1 and not closed):
        raise BadClaim(f"{what} is a share in [0, 1{']' if closed else ')'}, not {value!r}", "80 % is written 0.8")
    return share


def amount_of(value: Any, what: str) -> Fraction:
    """A number from 0 on. Raises BadClaim."""
    amount = exact(value, what)
    if amount < 0:
        raise BadClaim(f"{what} cannot be negative: {value!r}")
    return amount


def whole(value: Any, what: str, least: int = 1) -> int:
    """A whole number from `least` on. Raises BadClaim."""
    number = exact(value, what)
    if number.denominator != 1 or number < least:
        raise BadClaim(f"{what} is a whole number from {least} on, not {value!r}")
    return int(number)
