"""clock_limit: train with the card's processor clock held to a limit: f ≤ limit.

Training is plain training's, bit for bit in what is computed. Work that waits for arithmetic takes f₀/f times as long;
dynamic power falls with f · V², and the voltage V with f, so that energy falls until what the card draws at rest weighs
more. Work that waits for memory loses less time. The harness locks the clocks from the lowest that the card supports to
the limit before a trial warms up, and unlocks them on every way out (`energybench/process/card_keeper.py`). NVML does
not tell which clocks are locked: a trial whose mean clock lies above the limit is invalid, and a lock that somebody had
set before is gone afterwards.

Source: NVML API reference, nvmlDeviceSetGpuLockedClocks; Tang et al. 2019, The Impact of GPU DVFS on the Energy and
Performance of Deep Learning. Promises 0 % of FLOPs, and joules for seconds: how many of each is what is measured. Needs
an NVIDIA card (Volta or newer) that nobody else uses, and root. Trials of a workload with it run one after the other,
never in turns. Composes with everything but itself; on a processor it is only counted, as plain training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from energybench import Method
from energybench.common.units import Hertz


@dataclass
class ClockLimit(Method):
    """limit: of the streaming multiprocessors' clock, one that the card supports, as "1200 MHz"; this or `share`

    share: of the card's highest clock; the next supported clock below is taken
    """

    trains_less: ClassVar[bool | None] = False
    example: ClassVar[Mapping[str, Any]] = {"share": 0.7}

    limit: Hertz | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if (self.limit is None) == (self.share is None):
            raise ValueError('say how much: limit = "1200 MHz", or share = 0.7 of the highest clock, and not both')
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share is a part of the highest clock in (0, 1], not {self.share}")

    def incompatible_hardware(self, device: str) -> str | None:
        return "it limits the clock of an NVIDIA card" if device == "cpu" else None

    def card_settings(self) -> Mapping[str, float]:
        if self.limit is not None:
            return {"clock_limit_hz": self.limit.count}
        return {"clock_limit_rel": self.share or 1.0}
