"""Whether a figure can be in the scale that was declared: 94.8 is no fraction, and 0.948 is hardly a percentage.

A margin of 0.5 pp is 0.005 of a fraction and 0.5 of a percentage, so one taken for the other judges by a hundred times
too much or too little.
"""

from __future__ import annotations

from dataclasses import dataclass

from energybench.common.metrics import Metric


@dataclass(frozen=True, slots=True)
class DeclaredScale:
    """What is declared of the metric that decides.

    metric: None where there is none
    range_declared: the suite itself says in which range it lies, and so that a figure there is meant
    """

    metric: Metric | None
    range_declared: bool = False

    def doubt(self, name: str, value: float, sign: bool) -> str | None:
        """Why a figure is of another scale, and what to type; None where it can be of this one.

        sign: a percent sign stands behind it
        """
        metric = self.metric
        if metric is None:
            return None
        meant = self.range_declared and not metric.outside(value)
        if metric.scale == "fraction" and (sign or (abs(value) > 1 and not meant)):
            shown = f"{value:g} %" if sign else f"{value:g}"
            fraction = "" if sign else "; if it is a fraction all the same, its range: range = [0, 2]"
            return (
                f"its {name} is {shown}, and a margin in pp is of a fraction: if that is a percentage, add "
                f'scale = "percent" beside metric = "{name}" in [accept] quality; if it has a unit of its own, write '
                f'loses_at_most = "... units"{fraction}'
            )
        small = metric.better == "higher" and 0 < value <= 1
        if metric.scale == "percent" and small and not (sign or self.range_declared):
            return (
                f'its {name} is {value:g}, which scale = "percent" reads as {value:g} %: if that is a fraction, remove '
                f"the scale; if it is so low, say that it is meant: range = [0, 100]"
            )
        return None
