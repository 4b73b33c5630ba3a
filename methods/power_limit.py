"""power_limit: train under a lower power limit of the card: P ≤ limit, so that its clocks fall wherever P would exceed.

Training is plain training's, bit for bit in what is computed. The same work at other watts takes longer, t(P) · P = E:
where dynamic power grows faster than the clock, energy falls more than time grows, until what the card draws at rest
weighs more. The harness sets the limit before a trial warms up, reads it back before and after, and puts back what was
there on every way out (`energybench/process/card_keeper.py`).

Source: NVML API reference, nvmlDeviceSetPowerManagementLimit; You, Chung and Chowdhury 2023, Zeus. Promises
0 % of FLOPs, and joules for seconds: how many of each is what is measured. Needs an NVIDIA card that nobody else uses,
and root. Trials of a workload with it run one after the other, never in turns. Composes with everything but itself; on
a processor it is only counted, as plain training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from energybench import Method
from energybench.common.units import Watts


@dataclass
class PowerLimit(Method):
    """limit: of each card that trains, in watts; this or `share`

    share: of the card's default limit
    """

    trains_less: ClassVar[bool | None] = False
    example: ClassVar[Mapping[str, Any]] = {"share": 0.6}

    limit: Watts | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if (self.limit is None) == (self.share is None):
            raise ValueError('say how much: limit = "200 W", or share = 0.6 of the default limit, and not both')
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share is a part of the default limit in (0, 1], not {self.share}")

    def incompatible_hardware(self, device: str) -> str | None:
        return "it limits the power of an NVIDIA card" if device == "cpu" else None

    def card_settings(self) -> Mapping[str, float]:
        if self.limit is not None:
            return {"power_limit_w": self.limit.count}
        return {"power_limit_rel": self.share or 1.0}
