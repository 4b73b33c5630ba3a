"""What a call took: the sensors of the machine around it, and which figure follows from them.

Energy is what was measured, one channel per device, over everything inside the window; per call it is divided by the
calls. A modelled figure stands apart under its own name. Where there is none it is null, with the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from energybench.meter import Meter, devices, ranks
from energybench.meter.carbon import CodecarbonModel, model_parameters
from energybench.meter.clock import WallClock
from energybench.meter.combine import added_error, metered
from energybench.meter.modelled import MODEL, loads_of, whole_machine
from energybench.meter.nvml import open_gpus
from energybench.meter.reading import NO_SENSOR, Energy, Reading
from energybench.meter.sensors import MeterSelection, measures, open_meters
from energybench.meter.unavailable import Unavailable
from energybench.meter.window import Window, refuse_short
from energybench.meter.zones import intensity
from energybench.records.record import Flag
from energybench.verdict import flag_codes, flags

KEY = "energybench"  # of extra_info, where pytest-benchmark keeps what a test adds
LEAST_TIMED = 0.9  # of a window; in the rest something else than the timed code ran


@dataclass(frozen=True, slots=True)
class Bill:
    """What one call took, and over how many calls that was metered.

    energy_j, error_j, power_w: measured, in joules and watts; the truth lies within energy ± error. Null with the
                `reason`; error_j alone is null with its `error_reason`
    modelled_j: from codecarbon's power model, which measures nothing
    no_verdict: why the figure, though it is one, may not decide anything
    parts:      each sensor's own figure, of the whole window
    window_s, timed_s: how long the sensors ran, and how much of it the calls themselves took
    """

    calls: int
    window_s: float
    timed_s: float
    energy_j: float | None = None
    error_j: float | None = None
    power_w: float | None = None
    reason: str | None = None
    no_verdict: str | None = None
    modelled_j: float | None = None
    parts: tuple[Energy, ...] = ()
    flags: tuple[str, ...] = ()
    co2e_kg: float | None = None
    co2e_reason: str | None = None
    carbon: dict[str, Any] | None = None  # zone, intensity_kg_per_j, year, source

    @property
    def sources(self) -> tuple[str, ...]:
        """Of the measured figure, or of the modelled one where there is no other: "gpu_counter (gpu)"."""
        if self.energy_j is not None:
            return tuple(f"{source} ({scope})" for source, scope in sorted(self._sensors()))
        modelled = [part for part in self.parts if part.source.startswith("model(")]
        return tuple(dict.fromkeys(f"{part.source} ({part.scope})" for part in modelled))

    @property
    def modelled_of(self) -> str | None:
        """What codecarbon's figure is of: "of the whole machine at a load of 43 %"."""
        modelled = [part for part in self.parts if part.source.startswith(MODEL) and part.energy_j is not None]
        return whole_machine(loads_of(modelled)).replace("\N{NO-BREAK SPACE}", " ") if modelled else None

    @property
    def error_reason(self) -> str | None:
        """Why the measured figure has no error."""
        if self.energy_j is None or self.error_j is not None:
            return None
        channels = metered(self._whole()).channels
        silent = [part for part in self.parts if (part.source, part.scope, part.device) in channels]
        names = dict.fromkeys(f"{part.source} ({part.scope})" for part in silent if part.error_j is None)
        return f"{', '.join(names)} does not say how far off it may be"

    def _sensors(self) -> frozenset[tuple[str, str]]:
        return metered(self._whole()).sensors

    def _whole(self) -> Reading:
        return Reading(wall_s=self.window_s, energy=list(self.parts))

    def of(self, scopes: Collection[str]) -> Bill:
        """The same of some parts of the machine alone. Null with a reason where one of them was not measured."""
        if self.energy_j is None:
            return self
        some = replace(self, parts=tuple(part for part in self.parts if part.scope in scopes))
        measured_scopes = {scope for _, scope in some._sensors()}
        if missing := [scope for scope in scopes if scope not in measured_scopes]:
            reason = f"nothing measures {', '.join(missing)} here"
            return replace(self, energy_j=None, error_j=None, power_w=None, co2e_kg=None, reason=reason)
        return some.with_energy(self.carbon if self.co2e_kg is not None else None)

    def with_energy(self, grid: Mapping[str, Any] | None) -> Bill:
        """The same with the energy of one call from what its parts measured; CO2e where the grid is known."""
        window = metered(self._whole())
        other_j = window.joules * (1 - self.timed_rel)  # of what else ran in the window
        error_j = added_error([window.error_j, other_j])
        return replace(
            self,
            energy_j=window.joules / self.calls,
            error_j=None if error_j is None else error_j / self.calls,
            power_w=window.joules / self.window_s,
            co2e_kg=window.joules / self.calls * grid["intensity_kg_per_j"] if grid else None,
        )

    @property
    def timed_rel(self) -> float:
        return min(1.0, self.timed_s / self.window_s) if self.window_s > 0 else 0.0

    def facts(self) -> dict[str, Any]:
        """For a record: SI units in the names, null with its reason."""
        return {
            "energy_j": self.energy_j,
            "energy_error_j": self.error_j,
            "energy_error_reason": self.error_reason,
            "energy_reason": self.reason,
            "energy_no_verdict": self.no_verdict,
            "power_w": self.power_w,
            "energy_sources": list(self.sources),
            "modelled_energy_j": self.modelled_j,
            "modelled_energy_of": self.modelled_of,
            "co2e_kg": self.co2e_kg,
            "co2e_reason": self.co2e_reason,
            "carbon": self.carbon,
            "calls": self.calls,
            "window_s": self.window_s,
            "timed_s": self.timed_s,
            "flags": list(self.flags),
            "sensors": [part.model_dump(exclude={"detail"}) for part in self.parts],
        }


class Metering:
    """The sensors that code of one process is metered by, opened when first needed and kept open.

    Args:
        gpus: "used" (those this process computes on when a window begins), "all", or UUIDs
        meters: those of other packages, by name
        zone: of the grid, as "FR", "US-CA" or "aws:eu-west-3"; None: no CO2e

    Raises:
        UsageError: E502 for an unknown zone and, when a window begins, E503 for an unknown meter
    """

    def __init__(self, gpus: str | Sequence[str] = "used", meters: Sequence[str] = (), zone: str | None = None) -> None:
        self._gpus, self._names = gpus, list(meters)
        self._carbon = intensity(zone) if zone else None
        self._opened: dict[tuple[str, ...], list[Meter]] = {}
        self._model: Meter | None = None
        # Now, since a container's processes have other numbers for the driver.
        self._processes_before = processes_on_cards()
        self._has_driver = self._processes_before is not None

    @contextmanager
    def window(self) -> Iterator[OpenWindow]:
        """A window that may be opened and closed several times; whatever happens, it is closed at the end."""
        window = OpenWindow(self)
        try:
            yield window
        finally:
            window.abandon()

    def _selection(self, cards: Sequence[str]) -> MeterSelection:
        gpus = "all" if self._all_cards else list(cards) or "used"
        return MeterSelection(gpus=gpus, meters=self._names, processes_before=self._processes_before)

    @property
    def _all_cards(self) -> bool:
        return self._gpus == "all" and ranks.reads_node()

    def used_cards(self) -> list[str]:
        """UUIDs of the cards that a window which begins now is about."""
        if not isinstance(self._gpus, str):
            return list(self._gpus)
        cards = dict.fromkeys(sorted(devices.uuids() | (devices.pci_addresses() - {devices.UNKNOWN})))
        if self._has_driver:
            with suppress(Unavailable):
                cards |= dict.fromkeys(devices.listed_uuids(open_gpus()))
        return list(cards)

    def newly_used(self, metered_cards: Sequence[str]) -> list[str]:
        """UUIDs of those in use by now that nobody meters."""
        return [] if self._all_cards else [card for card in self.used_cards() if card not in metered_cards]

    def meters(self, cards: Sequence[str]) -> list[Meter]:
        key = tuple(cards)
        if key not in self._opened:
            meters = open_meters(self._selection(cards), "cpu")
            if not any(map(measures, meters)) and ranks.reads_node():
                self._model = self._model or CodecarbonModel(model_parameters())  # slow, so once
                meters.append(self._model)
            self._opened[key] = meters
        return self._opened[key]

    def bill(
        self, reading: Reading, calls: int, timed_s: float, metered_cards: Sequence[str], newly_used: Sequence[str]
    ) -> Bill:
        """What one call took.

        Args:
            reading: of the window in which the calls ran
            calls: how many there were
            timed_s: seconds of the window in which they ran
            metered_cards: UUIDs of those that the window is about
            newly_used: UUIDs of others that the process uses since the window began
        """
        needed = {
            *metered_cards,
            *(
                part.device
                for part in reading.energy
                if part.measured or (part.device and not part.source.startswith(NO_SENSOR) and not part.unmetered)
            ),
        }
        reading = refuse_short(reading)
        raised = {flag.code: flag for flag in flags.check_window(reading)}
        modelled = [
            part.energy_j for part in reading.energy if part.source.startswith("model(") and part.energy_j is not None
        ]
        bill = Bill(
            calls,
            reading.wall_s,
            timed_s,
            parts=tuple(reading.energy),
            flags=tuple(sorted(raised)),
            modelled_j=sum(modelled) / calls if modelled else None,
            carbon=self._carbon,
        )
        if reason := self._refusal(bill, raised, needed, newly_used):
            return replace(bill, reason=reason, co2e_reason="only measured energy is given as CO2e")
        struck = [flag for code, flag in raised.items() if flag_codes.kind(code).severity == "struck"]
        return replace(
            bill.with_energy(self._carbon),
            co2e_reason="no country is named: energybench_country" if self._carbon is None else None,
            no_verdict="; ".join(f"{flag_codes.kind(flag.code).sentence} ({flag.detail})" for flag in struck) or None,
        )

    def _refusal(
        self, bill: Bill, raised: Mapping[str, Flag], needed: Collection[str], newly_used: Sequence[str]
    ) -> str | None:
        """Why there is no measured figure. needed: devices without which a total would be a part of the whole."""
        for code, flag in raised.items():
            if flag_codes.kind(code).severity == "invalid":
                return f"{flag_codes.kind(code).sentence} ({flag.detail})"
        measured = {part.device: part.scope for part in bill.parts if part.measured}
        blind = [device for device in needed if device not in measured]
        if blind or not measured:
            about = [part for part in bill.parts if part.reason and (not blind or part.device in (*blind, ""))]
            reasons = "; ".join(dict.fromkeys(str(part.reason) for part in about)) or ", ".join(blind)
            return reasons or "this machine has no energy sensor that could be read"
        if newly_used:
            return (
                f"{', '.join(newly_used)} came into use inside the window: use the card once before, or name it "
                "(energybench_gpus)"
            )
        if bill.timed_rel < LEAST_TIMED:
            return (
                f"only {bill.timed_rel:.0%} of the window was the timed code, the rest work between the rounds: "
                "ask for longer rounds (--benchmark-min-time=0.01)"
            )
        if self._gpus == "used" and not set(measured.values()) & {"gpu", "cpu", "module", "machine"}:
            return "the processor, which does the work, has no figure"
        return None


class OpenWindow:
    """One window of a Metering. `start` and `stop` in turn, then `bill`."""

    def __init__(self, metering: Metering) -> None:
        self._metering = metering
        self._window: Window | None = None
        self._cards: list[str] = []
        self._extent = WallClock()
        self._open = self._failed = False

    def start(self) -> None:
        """Returns when the work may begin. Raises UsageError E503."""
        if self._window is None:
            self._cards = self._metering.used_cards()
            outermost, *others = self._metering.meters(self._cards)
            # Between the starts of two meters time passes too: the outermost one's window is the longest.
            self._window = Window([outermost, self._extent, *others], self._synchronise, WallClock())
        self._window.start()
        self._open = True

    def stop(self) -> None:
        if self._open and self._window is not None:
            self._open = False
            self._window.stop()

    def abandon(self) -> None:
        """Close it after a failure, so that nothing goes on in the background. What the sensors say is not asked."""
        self._failed = True
        self.stop()

    def _synchronise(self) -> None:
        if not self._failed:  # a card that failed cannot be waited for
            devices.synchronise()

    def bill(self, calls: int, timed_s: float | None = None) -> Bill | None:
        """What one of so many calls took; None if the window was never opened.

        Args:
            calls: that ran inside it
            timed_s: seconds that they took; None: all of the window
        """
        if self._window is None:
            return None
        reading = self._window.reading().model_copy(update={"wall_s": self._extent.seconds})
        timed_s = reading.wall_s if timed_s is None else timed_s
        return self._metering.bill(reading, calls, timed_s, self._cards, self._metering.newly_used(self._cards))


def processes_on_cards() -> dict[str, set[int]] | None:
    """UUID → processes on that card, unless this one is already among them; None without a driver."""
    try:
        return {} if devices.uuids() else {gpu.uuid: gpu.processes() for gpu in open_gpus()}
    except Unavailable:
        return None
