"""What a part of a machine can draw at most: a sensor that says more is wrong, and its figure is none.

Counters jump by tens of kilojoules, restart when the machine was suspended, and answer 0xFFFFFFFF with success. All of
that is more than the part can have drawn since it was last looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from energybench.common.units import format_energy, format_si

IMPLAUSIBLE = "implausible_j"  # detail of a figure that is null because no part can draw so much: what was said


@dataclass(frozen=True, slots=True)
class PowerLimit:
    """The most that a part can draw.

    watts:  sustained from one look at its sensor to the next
    origin: where that comes from, for the reason: "its short-term limit of 88 W"
    """

    watts: float
    origin: str

    def possible_j(self, gap_s: float, tick_s: float) -> float:
        """Joules that may lie between two looks that are `gap_s` apart, at a sensor that moves every `tick_s`.

        At either look the sensor may lag by one tick, so the energy of up to two ticks more may show up in the gap.
        """
        return self.watts * (gap_s + 2 * tick_s)

    def excess(self, joules: float, gap_s: float, tick_s: float) -> str | None:
        """Why that many joules in that gap cannot be true; None where they can."""
        if joules <= self.possible_j(gap_s, tick_s):
            return None
        return (
            f"{format_energy(joules)} in {gap_s:.3g} s is more than it can draw: {format_si(self.watts, 'W')}, "
            f"{self.origin}"
        )

    def excess_w(self, watts: float) -> str | None:
        """Why a power cannot be true; None where it can."""
        if watts <= self.watts:
            return None
        return (
            f"a power of {format_si(watts, 'W')} is more than it can draw: {format_si(self.watts, 'W')}, {self.origin}"
        )


def suspended(seconds: float) -> str:
    """The reason of a figure that is null because the machine slept in the window."""
    return f"the machine was suspended for {seconds:.3g} s in the window, in which its counters may have restarted"
