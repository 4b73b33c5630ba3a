"""The meter of NVIDIA GPUs: over one window, per card, a counter and a power integral, and the state of the card.

gpu_counter          the card's own cumulative energy, read from edge to edge (counter.py)
gpu_power_integral   its power, sampled in the background and integrated (trace.py): an independent second channel
"""

from __future__ import annotations

import itertools
import os
import statistics
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from energybench.meter.clock import REAL_TIME, Time
from energybench.meter.counter import CounterFigure, Counters, SensorError
from energybench.meter.devices import listed_uuids
from energybench.meter.nvml import Gpu, own_processes, process_exists
from energybench.meter.reading import CardState, Energy, Reading, SamplerState
from energybench.meter.trace import Sample, integrate

Read = TypeVar("Read")
PERIOD_S = 0.2  # between samples: one holds a busy process up by 0.2 ms; under 50 ms some cards answer with zeros
LONGEST_AVERAGE_S = 1.0  # over which nvmlDeviceGetPowerUsage may be a mean, by card and driver
WIDEST_GAP = 5  # periods without a sample, past which power is not known
STATE_EVERY = 3  # samples of power to one of temperature, clock and counter, which are slower
PROCESSES_EVERY = 5  # and to one of who else is on the card


class GpuMeter:
    """Meters the given cards together; each keeps its own figures, by UUID.

    Args:
        gpus: the cards
        time: the clock that the sensors run on
        period_s: seconds between two samples of power
        tail_power_w: UUID → watts that the card draws when a window has ended, where known (see counter.py)
        of_children: what is metered are processes that this one starts later, so they are nobody else's
        processes_before: UUID → processes on the card before this one had a context there; by default those that are
            there now
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        time: Time = REAL_TIME,
        *,
        period_s: float = PERIOD_S,
        tail_power_w: Mapping[str, float] | None = None,
        of_children: bool = False,
        processes_before: Mapping[str, set[int]] | None = None,
    ) -> None:
        self._gpus, self._time, self._period_s = {gpu.uuid: gpu for gpu in gpus}, time, period_s
        reads = {gpu.uuid: gpu.energy_j for gpu in gpus if gpu.counter_reason is None}
        self._counters = Counters(reads, time, tail_power_w)
        self._metered = set(reads)
        self.samples: list[Sample] = []  # of every window so far
        now = {gpu.uuid: gpu.processes() for gpu in gpus}  # before we had a context of our own
        self._processes_before = {**now, **(processes_before or {})}
        self._own_processes: dict[str, set[int]] = {}
        self._of_children = of_children
        self._stop_sampling: Callable[[], float] = lambda: 0.0
        self._start_ns = 0
        self._begin()

    def _begin(self) -> None:
        self._first_sample, self._missed, self._rounds = len(self.samples), 0, 0
        self._averages: dict[str, list[tuple[float, float]]] = {uuid: [] for uuid in self._gpus}
        self._sampled_ns: list[int] = []
        self._foreign_pids: dict[str, set[int]] = {uuid: set() for uuid in self._gpus}
        self._throttled_before: dict[str, dict[str, float]] = {}

    def start(self) -> None:
        """Returns on an edge of the first card's counter: the work may begin."""
        self._begin()
        for uuid, gpu in self._gpus.items():
            if uuid not in self._own_processes:
                # A container numbers processes otherwise than the driver: then what came after we began is our own.
                own, on_card = own_processes(), gpu.processes()
                self._own_processes[uuid] = own if os.getpid() in on_card else on_card - self._processes_before[uuid]
            self._throttled_before[uuid] = _throttled_s(gpu)
        self._sample_cards()
        self._stop_sampling = self._time.every(self._period_s, self._sample_cards)
        self._counters.start()
        self._start_ns = self._time.now_ns()

    def stop(self) -> Reading:
        """To be called right after the last synchronise; returns a few ticks later."""
        end_ns = self._time.now_ns()
        throttled = {uuid: _throttled_s(gpu) for uuid, gpu in self._gpus.items()}
        figures = self._counters.stop(end_ns)
        cpu_s = self._stop_sampling()
        self._sample_cards(everything=True)
        energy: list[Energy] = []
        cards: dict[str, CardState] = {}
        for uuid, gpu in self._gpus.items():
            energy += [self._counter(uuid, gpu, figures), self._integral(uuid, gpu, self._start_ns, end_ns)]
            cards[uuid] = self._card(uuid, gpu, throttled[uuid], end_ns)
        seconds = (end_ns - self._start_ns) / 1e9
        return Reading(wall_s=seconds, energy=energy, cards=cards, sampler=self._sampler(cpu_s))

    def nested(self) -> NestedGpuMeter:
        """A meter of a stretch inside this one's running window."""
        return NestedGpuMeter(self, self._time)

    def integrals(self, start_ns: int, end_ns: int) -> list[Energy]:
        """Integrals of the power that the sampler saw between two times of the running window; nothing is read."""
        return [self._integral(uuid, gpu, start_ns, end_ns) for uuid, gpu in self._gpus.items()]

    def listed_cards(self) -> set[str]:
        """UUIDs of the cards on which the driver lists this process or one that it started."""
        return set(listed_uuids(self._gpus.values()))

    def unknown_newcomers(self) -> dict[str, set[int]]:
        """UUID → processes seen in the last window, not known as our own, that were not on the card at first."""
        own = own_processes()
        return {uuid: pids - self._processes_before[uuid] - own for uuid, pids in self._foreign_pids.items()}

    def temperatures(self) -> dict[str, float]:
        """UUID → °C, of the cards that could be read."""
        answers = {uuid: self._try(gpu.temperature_c) for uuid, gpu in self._gpus.items()}
        return {uuid: temperature_c for uuid, temperature_c in answers.items() if temperature_c is not None}

    def facts(self) -> dict[str, dict[str, object]]:
        """UUID → what two trials must share to be compared."""
        return {uuid: gpu.facts() for uuid, gpu in self._gpus.items()}

    def pci_addresses(self) -> list[str]:
        """Of the cards, "" where the driver does not say."""
        return [gpu.pci_address() for gpu in self._gpus.values()]

    # ── in the background ─────────────────────────────────────────────────────────────────────────────────────

    def _sample_cards(self, everything: bool = False) -> None:
        """Read every card once. A card that does not answer is a missed read, which ends nothing by itself."""
        state = everything or self._rounds % STATE_EVERY == 0
        everything = everything or self._rounds % PROCESSES_EVERY == 0
        self._rounds += 1
        self._sampled_ns.append(self._time.now_ns())
        for uuid, gpu in self._gpus.items():
            asked_ns = self._time.now_ns()
            powers = self._try(gpu.powers_w) if gpu.power_reason is None else None
            power_w, average_w = powers or (None, None)
            now_ns = (asked_ns + self._time.now_ns()) // 2
            temperature_c = self._try(gpu.temperature_c) if state else None
            sm_clock_mhz = self._try(gpu.sm_clock_mhz) if state else None
            self.samples.append(Sample(now_ns, uuid, power_w, temperature_c, sm_clock_mhz))
            if average_w is not None:
                self._averages[uuid].append((now_ns / 1e9, average_w))
            if everything:
                self._foreign_pids[uuid] |= self._foreign_among(uuid, gpu.processes())
        if state:
            self._counters.check_for_reset()

    def _foreign_among(self, uuid: str, on_card: set[int]) -> set[int]:
        unknown = on_card - self._own_processes.get(uuid, set())
        if unknown and self._of_children:
            # What cannot be seen from here is numbered by the host: then what came after we began is our own.
            known = self._processes_before[uuid] | {pid for pid in unknown if process_exists(pid)}
            unknown = (unknown - own_processes()) & known
            self._own_processes[uuid] = self._own_processes.get(uuid, set()) | (on_card - unknown)
        return unknown

    def _try(self, read: Callable[[], Read]) -> Read | None:
        try:
            return read()
        except SensorError:
            self._missed += 1
            return None

    # ── what a window was ─────────────────────────────────────────────────────────────────────────────────────

    def _counter(self, uuid: str, gpu: Gpu, figures: Mapping[str, CounterFigure]) -> Energy:
        if uuid not in figures:
            return Energy(
                source="unavailable", scope="gpu", device=uuid, reason=f"energy counter: {gpu.counter_reason}"
            )
        figure = figures[uuid]
        return Energy(
            source="gpu_counter",
            scope="gpu",
            device=uuid,
            energy_j=figure.joules,
            error_j=figure.error_j,
            reason=figure.reason,
            detail=figure.detail,
        )

    def _integral(self, uuid: str, gpu: Gpu, start_ns: int, end_ns: int) -> Energy:
        if gpu.power_reason is not None:
            return Energy(source="unavailable", scope="gpu", device=uuid, reason=f"power: {gpu.power_reason}")
        samples = self._samples_from(uuid, start_ns)
        points = [(s.time_ns / 1e9, s.power_w) for s in samples if s.power_w is not None]
        start_s, end_s = start_ns / 1e9, end_ns / 1e9
        detail = {**gpu.power_is, "period_s": self._period_s}
        gap_s = _widest([t for t, _ in points], start_s, end_s)
        if gap_s > WIDEST_GAP * self._period_s:
            reason = f"no power could be read for {gap_s:.1f} s"
            return Energy(source="gpu_power_integral", scope="gpu", device=uuid, reason=reason, detail=detail)
        joules, error_j = integrate([t for t, _ in points], [p for _, p in points], start_s, end_s)
        averaged_s = gpu.power_is["averaging_s"]
        if averaged_s is None and gpu.power_field is None:
            averaged_s = LONGEST_AVERAGE_S  # NVML does not state it, and on many cards it is that
        error_j += (averaged_s or 0.0) * (max(p for _, p in points) - min(p for _, p in points))
        if averages := self._averages[uuid][-len(samples) :]:
            detail["average_field_j"], _ = integrate([t for t, _ in averages], [p for _, p in averages], start_s, end_s)
        return Energy(
            source="gpu_power_integral", scope="gpu", device=uuid, energy_j=joules, error_j=error_j, detail=detail
        )

    def _card(self, uuid: str, gpu: Gpu, throttled: Mapping[str, float], end_ns: int) -> CardState:
        samples = [s for s in self._window_samples(uuid) if s.time_ns <= end_ns]
        inside = [s for s in samples if s.time_ns >= self._start_ns] or samples
        temperatures = [s.temperature_c for s in samples if s.temperature_c is not None]
        clocks = [s.sm_clock_mhz for s in inside if s.sm_clock_mhz is not None]
        before = self._throttled_before[uuid]
        grown = {reason: throttled[reason] - before[reason] for reason in throttled if reason in before}
        return CardState(
            temperature_start_c=temperatures[0] if temperatures else None,
            temperature_end_c=temperatures[-1] if temperatures else None,
            temperature_max_c=max(temperatures, default=None),
            sm_clock_mhz=statistics.fmean(clocks) if clocks else None,
            throttled_s={reason: seconds for reason, seconds in grown.items() if seconds > 0},
            foreign_pids=sorted(self._foreign_pids[uuid] - own_processes()),
            mig=gpu.mig(),
            mps=gpu.mps(),
        )

    def _sampler(self, cpu_s: float) -> SamplerState:
        gaps = [(b - a) / 1e9 for a, b in zip(self._sampled_ns, self._sampled_ns[1:], strict=False)]
        return SamplerState(
            period_s=self._period_s,
            samples=len(self._sampled_ns),
            missed=self._missed,
            largest_gap_s=max(gaps, default=0.0),
            cpu_s=cpu_s,
        )

    def _samples_from(self, uuid: str, start_ns: int) -> list[Sample]:
        """Of this window, from a few samples before a time on: found at once, however long the window is."""
        first = bisect_left(self.samples, start_ns, lo=self._first_sample, key=lambda sample: sample.time_ns)
        earliest = max(self._first_sample, first - (WIDEST_GAP + 1) * len(self._gpus))
        return [sample for sample in self.samples[earliest:] if sample.device == uuid]

    def _window_samples(self, uuid: str) -> list[Sample]:
        return [sample for sample in self.samples[self._first_sample :] if sample.device == uuid]


class NestedGpuMeter:
    """A stretch inside a running window of cards. It reads no sensor and waits for no edge, so that the window around
    it is not held up; what it knows is the power that the sampler sees anyway."""

    def __init__(self, around: GpuMeter, time: Time) -> None:
        self._around, self._time = around, time
        self._start_ns = 0

    def start(self) -> None:
        self._start_ns = self._time.now_ns()

    def stop(self) -> Reading:
        end_ns = self._time.now_ns()
        energy = self._around.integrals(self._start_ns, end_ns)
        return Reading(wall_s=(end_ns - self._start_ns) / 1e9, energy=energy)


def _throttled_s(gpu: Gpu) -> dict[str, float]:
    try:
        return gpu.throttled_s()
    except SensorError:
        return {}  # that a card is lost stands with its energy


def _widest(times_s: list[float], start_s: float, end_s: float) -> float:
    """The longest stretch of a window without a sample."""
    inside = [t for t in times_s if start_s < t < end_s]
    before = [t for t in times_s if t <= start_s]
    after = [t for t in times_s if t >= end_s]
    points = [max(before, default=start_s), *inside, min(after, default=end_s)]
    if not times_s:
        return end_s - start_s + 1e9
    return max(b - a for a, b in itertools.pairwise(points))
