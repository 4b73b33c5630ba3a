"""What the meters measured in one window, as it stands in a record.

SI units in the field names (_s _j _c _mhz); a missing figure is null with its reason, never 0. Imports no torch.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from energybench.common.open_tables import Detail
from energybench.common.quantities import (
    Amount,
    Celsius,
    Count,
    Joules,
    Megahertz,
    Period,
    Pid,
    Seconds,
    Text,
    WindowSeconds,
)

MEASURED_SOURCES = frozenset({"gpu_counter", "gpu_power_integral", "rapl"})
MEASURED_BEGINNINGS = ("meter(", "hwmon(")  # of sources that carry a name
NO_SENSOR = ("model(", "replay(")  # beginnings of sources that are no sensor's
UNMETERED = "unmetered"  # detail of what is there and is no part of this measurement: true


class RecordModel(BaseModel):
    """A part of a record: immutable, of known keys alone, every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Energy(RecordModel):
    """One sensor's figure for one window.

    Either `energy_j` in joules, with `error_j` if the sensor knows it, or null and the `reason`; never 0 for unknown.

    source: one of MEASURED_SOURCES; `hwmon(DRIVER)` of the kernel; `meter(NAME)` of another package; `model(...)` or
            `replay(...)`, which are no measurement; "unavailable" for a sensor that was never there
    """

    source: Text
    scope: Text  # gpu | cpu | dram | module (a GPU with the processor and memory on its board) | machine
    device: Text = ""
    energy_j: Joules | None = None
    error_j: Amount | None = None  # in joules: the truth lies within energy_j ± error_j; null where it is not known
    reason: str | None = None  # why energy_j is null
    detail: Detail = Field(default_factory=dict)

    @property
    def measured(self) -> bool:
        known = self.source in MEASURED_SOURCES or self.source.startswith(MEASURED_BEGINNINGS)
        return known and self.energy_j is not None

    @property
    def lost(self) -> bool:
        """Whether a sensor that was there gave no figure."""
        return self.energy_j is None and self.source != "unavailable"

    @property
    def unmetered(self) -> bool:
        """Whether it says of something that it is there and no part of this measurement: no figure is missing."""
        return self.energy_j is None and self.detail.get(UNMETERED) is True


class CardState(RecordModel):
    """The state of one GPU during a window: what may have bent its figures."""

    temperature_start_c: Celsius | None = None
    temperature_end_c: Celsius | None = None
    temperature_max_c: Celsius | None = None
    sm_clock_mhz: Megahertz | None = None  # mean over the samples
    throttled_s: dict[str, Seconds] = Field(default_factory=dict)  # reason → seconds held back
    foreign_pids: list[Pid] = Field(default_factory=list)  # processes on the card that are not the trial's
    mig: bool | None = None  # sliced: the counter is the whole card's
    mps: bool | None = None  # shared: several processes in one context


class SamplerState(RecordModel):
    """What the thread that reads sensors in the background did in a window, and what it cost."""

    period_s: Period
    samples: Count = 0
    missed: Count = 0  # reads that failed
    largest_gap_s: Seconds = 0.0
    cpu_s: Seconds = 0.0


class Reading(RecordModel):
    """Everything the meters measured in one window.

    A meter of another package gives `wall_s` (the seconds that its figures are of, or 0) and `energy`; the window's own
    clock gives the rest.
    """

    wall_s: WindowSeconds  # without the pauses between pieces
    cpu_s: Seconds | None = None  # CPU seconds of the process and its children
    steal_s: Seconds | None = None  # CPU seconds that the host took from this machine
    other_cpu_s: Seconds | None = None  # CPU seconds of every other process that this machine shows
    suspended_s: Seconds | None = None  # that the machine slept meanwhile: they are not in wall_s
    trackers: list[Text] = Field(default_factory=list)  # other programs that read energy sensors meanwhile
    pieces: Count = 1  # a pause, for an evaluation say, ends one piece and begins another
    energy: list[Energy] = Field(default_factory=list)
    cards: dict[str, CardState] = Field(default_factory=dict)  # by UUID
    sampler: SamplerState | None = None

    @model_validator(mode="after")
    def _took_place(self) -> Reading:
        if self.wall_s > 0 and self.pieces < 1:
            raise ValueError("a time in no piece")
        return self
