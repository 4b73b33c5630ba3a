"""What the background saw of one card in one window, kept as it comes: sums and extremes, no list that grows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from energybench.meter.integral import PowerStretch, StretchFigure
from energybench.meter.nvml_gpu import Gpu, Powers
from energybench.meter.plausible import IMPLAUSIBLE
from energybench.meter.reading import Energy

WIDEST_GAP = 5  # periods without a sample, past which power is not known


class PowerWindow:
    """A card's power from `start_s` on: the field that is integrated, the mean of the last second, the module's.

    Args:
        gpu: the card
        start_s: when the stretch begins, on the sensors' clock
        period_s: between two samples
        before: the newest look before it began, (seconds, powers)
    """

    def __init__(self, gpu: Gpu, start_s: float, period_s: float, before: tuple[float, Powers] | None) -> None:
        self._gpu, self._start_s, self._period_s = gpu, start_s, period_s
        self._impossible: str | None = None
        look, averaged = gpu.look(), gpu.look(averaged=True)
        seen = _parts(before)
        self._power = PowerStretch(start_s, look, seen.get("power"))
        self._average = PowerStretch(start_s, averaged, seen.get("average"))
        self._module = PowerStretch(start_s, look, seen.get("module"))
        self._has = set(seen)

    def add(self, time_s: float, powers: Powers) -> None:
        """A look at the card, in seconds and watts."""
        stretches = {"power": self._power, "average": self._average, "module": self._module}
        for name, (when_s, watts) in _parts((time_s, powers)).items():
            stretches[name].add(when_s, watts)
            self._has.add(name)

    def refuse(self, reason: str) -> None:
        """The card answered a power that it cannot have: there is no figure of this stretch."""
        self._impossible = self._impossible or reason

    def energies(self, end_s: float) -> list[Energy]:
        """The integral, and that of the module's power where the card tells it; null with the reason."""
        found = [self._energy("gpu", self._power, end_s)]
        return [*found, self._energy("module", self._module, end_s)] if "module" in self._has else found

    def _energy(self, scope: str, stretch: PowerStretch, end_s: float) -> Energy:
        detail: dict[str, Any] = {**self._gpu.power_is, "period_s": self._period_s}
        common: dict[str, Any] = {"source": "gpu_power_integral", "scope": scope, "device": self._gpu.uuid}
        if self._impossible:
            said = {IMPLAUSIBLE: stretch.until(end_s).joules} if not math.isinf(stretch.widest_gap_s(end_s)) else {}
            return Energy(**common, reason=self._impossible, detail=detail | said)
        gap_s = stretch.widest_gap_s(end_s)
        if gap_s > WIDEST_GAP * self._period_s:
            gap_s = min(gap_s, end_s - self._start_s)
            return Energy(**common, reason=f"no power could be read for {gap_s:.1f} s", detail=detail)
        figure = stretch.until(end_s)
        if scope == "gpu" and "average" in self._has:
            average = self._average.until(end_s)
            detail["average_field_j"] = average.joules
            figure = _checked(figure, average)
        return Energy(**common, energy_j=figure.joules, error_j=figure.error_j, detail=detail)


def _parts(look: tuple[float, Powers] | None) -> Mapping[str, tuple[float, float]]:
    if look is None:
        return {}
    time_s, powers = look
    figures = {"power": powers.power_w, "average": powers.average_w, "module": powers.module_w}
    return {name: (time_s, watts) for name, watts in figures.items() if watts is not None}


def _checked(figure: StretchFigure, average: StretchFigure) -> StretchFigure:
    """A field that looks part of the time is off by no more than it lies from one that looks always, and that one's
    own error."""
    apart_j = abs(figure.joules - average.joules) + average.error_j
    return StretchFigure(figure.joules, min(figure.error_j, apart_j))


class StateWindow:
    """Temperature and clock of a card in one window; `start_s` is when it begins."""

    def __init__(self) -> None:
        self.first_c: float | None = None
        self.last_c: float | None = None
        self.hottest_c: float | None = None
        self._clocks, self._clock_sum_mhz = 0, 0.0
        self._before_mhz: float | None = None

    def add(self, temperature_c: float | None, sm_clock_mhz: float | None, *, inside: bool) -> None:
        """A look at the card.

        inside: whether the window has begun; a clock that was seen before it stands in where there is no other
        """
        if temperature_c is not None:
            self.first_c = temperature_c if self.first_c is None else self.first_c
            self.last_c = temperature_c
            self.hottest_c = temperature_c if self.hottest_c is None else max(self.hottest_c, temperature_c)
        if sm_clock_mhz is not None and inside:
            self._clocks, self._clock_sum_mhz = self._clocks + 1, self._clock_sum_mhz + sm_clock_mhz
        elif sm_clock_mhz is not None:
            self._before_mhz = sm_clock_mhz

    @property
    def clock_mhz(self) -> float | None:
        """The mean over the samples."""
        return self._clock_sum_mhz / self._clocks if self._clocks else self._before_mhz
