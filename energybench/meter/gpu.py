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
from energybench.meter.counter import Counted, Counters, SensorError
from energybench.meter.nvml import Gpu, own_processes, visible
from energybench.meter.reading import Card, Energy, Reading, Sampler
from energybench.meter.trace import Sample, integrate

Read = TypeVar("Read")
PERIOD_S = 0.2  # a look holds a busy process up by 0.2 ms; under 50 ms some cards answer with zeros
LONGEST_AVERAGE_S = 1.0  # over which nvmlDeviceGetPowerUsage may be a mean, by card and driver
WIDEST_GAP = 5  # periods without a sample, past which power is not known
LOOKS_AT_STATE = 3  # periods between two looks at temperature, clock and counter, slower than power
LOOKS_AT_PROCESSES = 5  # and at who else is on the card


class GpuMeter:
    """Meters the given cards together; several are kept apart by UUID.

    tail_power_w: UUID → what the card draws when a window has ended, where known (see counter.py)
    of_children:  what is metered are processes that this one starts later, so they are nobody else's
    strangers:    UUID → processes on the card before this one had a context there; by default those that are there now
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        time: Time = REAL_TIME,
        *,
        period_s: float = PERIOD_S,
        tail_power_w: Mapping[str, float] | None = None,
        of_children: bool = False,
        strangers: Mapping[str, set[int]] | None = None,
    ) -> None:
        self._gpus, self._time, self._period_s = {gpu.uuid: gpu for gpu in gpus}, time, period_s
        reads = {gpu.uuid: gpu.energy_j for gpu in gpus if gpu.counter_reason is None}
        self._counters = Counters(reads, time, tail_power_w)
        self._metered = set(reads)
        self.samples: list[Sample] = []  # of every window so far
        now = {gpu.uuid: gpu.processes() for gpu in gpus}  # before we had a context of our own
        self._strangers = {**now, **(strangers or {})}
        self._own: dict[str, set[int]] = {}
        self._of_children = of_children
        self._stop: Callable[[], float] = lambda: 0.0
        self._start_ns = 0
        self._begin()

    def _begin(self) -> None:
        self._first, self._missed, self._looks = len(self.samples), 0, 0
        self._averages: dict[str, list[tuple[float, float]]] = {uuid: [] for uuid in self._gpus}
        self._seen_ns: list[int] = []
        self._foreign: dict[str, set[int]] = {uuid: set() for uuid in self._gpus}
        self._throttled: dict[str, dict[str, float]] = {}

    def start(self) -> None:
        """Returns on an edge of the first card's counter: the work may begin."""
        self._begin()
        for uuid, gpu in self._gpus.items():
            if uuid not in self._own:
                # A container numbers processes otherwise than the driver: then what came since we began is ours.
                ours, here = own_processes(), gpu.processes()
                self._own[uuid] = ours if os.getpid() in here else here - self._strangers[uuid]
            self._throttled[uuid] = _held_back(gpu)
        self._look()
        self._stop = self._time.every(self._period_s, self._look)
        self._counters.start()
        self._start_ns = self._time.now_ns()

    def stop(self) -> Reading:
        """To be called right after the last synchronise; returns a few ticks later."""
        end_ns = self._time.now_ns()
        held_back = {uuid: _held_back(gpu) for uuid, gpu in self._gpus.items()}
        counted = self._counters.stop(end_ns)
        cpu_s = self._stop()
        self._look(whole=True)
        energy: list[Energy] = []
        cards: dict[str, Card] = {}
        for uuid, gpu in self._gpus.items():
            energy += [self._counter(uuid, gpu, counted), self._integral(uuid, gpu, self._start_ns, end_ns)]
            cards[uuid] = self._card(uuid, gpu, held_back[uuid], end_ns)
        seconds = (end_ns - self._start_ns) / 1e9
        return Reading(wall_s=seconds, energy=energy, cards=cards, sampler=self._sampler(cpu_s))

    def inside(self) -> Inside:
        """A meter of a stretch inside this one's running window."""
        return Inside(self, self._time)

    def within(self, start_ns: int, end_ns: int) -> list[Energy]:
        """Integrals of the power that the sampler saw between two times of the running window; nothing is read."""
        return [self._integral(uuid, gpu, start_ns, end_ns) for uuid, gpu in self._gpus.items()]

    def ours(self) -> set[str]:
        """UUIDs of the cards on which the driver lists this process or one that it started."""
        own = own_processes()
        return {uuid for uuid, gpu in self._gpus.items() if gpu.processes() & own}

    def newcomers(self) -> dict[str, set[int]]:
        """UUID → processes seen in the last window, not known as ours, that were not on the card when it was opened."""
        own = own_processes()
        return {uuid: found - self._strangers[uuid] - own for uuid, found in self._foreign.items()}

    def temperatures(self) -> dict[str, float]:
        """UUID → °C, of the cards that say."""
        found = {uuid: self._try(gpu.temperature_c) for uuid, gpu in self._gpus.items()}
        return {uuid: heat for uuid, heat in found.items() if heat is not None}

    def facts(self) -> dict[str, dict[str, object]]:
        """UUID → what two trials must share to be compared."""
        return {uuid: gpu.facts() for uuid, gpu in self._gpus.items()}

    # ── in the background ─────────────────────────────────────────────────────────────────────────────────────

    def _look(self, whole: bool = False) -> None:
        """One look at every card. A card that does not answer is a missed read, which ends nothing by itself."""
        state = whole or self._looks % LOOKS_AT_STATE == 0
        whole = whole or self._looks % LOOKS_AT_PROCESSES == 0
        self._looks += 1
        self._seen_ns.append(self._time.now_ns())
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
            if whole:
                self._foreign[uuid] |= self._not_ours(uuid, gpu.processes())
        if state:
            self._counters.look()

    def _not_ours(self, uuid: str, here: set[int]) -> set[int]:
        unknown = here - self._own.get(uuid, set())
        if unknown and self._of_children:
            # What cannot be seen from here is numbered by the host: then what came since we began is ours.
            known = self._strangers[uuid] | {pid for pid in unknown if visible(pid)}
            unknown = (unknown - own_processes()) & known
            self._own[uuid] = self._own.get(uuid, set()) | (here - unknown)
        return unknown

    def _try(self, read: Callable[[], Read]) -> Read | None:
        try:
            return read()
        except SensorError:
            self._missed += 1
            return None

    # ── what a window was ─────────────────────────────────────────────────────────────────────────────────────

    def _counter(self, uuid: str, gpu: Gpu, counted: Mapping[str, Counted]) -> Energy:
        if uuid not in counted:
            return Energy(
                source="unavailable", scope="gpu", device=uuid, reason=f"energy counter: {gpu.counter_reason}"
            )
        found = counted[uuid]
        return Energy(
            source="gpu_counter",
            scope="gpu",
            device=uuid,
            energy_j=found.joules,
            error_j=found.error_j,
            reason=found.reason,
            detail=found.detail,
        )

    def _integral(self, uuid: str, gpu: Gpu, start_ns: int, end_ns: int) -> Energy:
        if gpu.power_reason is not None:
            return Energy(source="unavailable", scope="gpu", device=uuid, reason=f"power: {gpu.power_reason}")
        near = self._near(uuid, start_ns)
        points = [(s.time_ns / 1e9, s.power_w) for s in near if s.power_w is not None]
        start_s, end_s = start_ns / 1e9, end_ns / 1e9
        detail = {**gpu.power_is, "period_s": self._period_s}
        gap_s = _widest([t for t, _ in points], start_s, end_s)
        if gap_s > WIDEST_GAP * self._period_s:
            reason = f"no power could be read for {gap_s:.1f} s"
            return Energy(source="gpu_power_integral", scope="gpu", device=uuid, reason=reason, detail=detail)
        joules, error_j = integrate([t for t, _ in points], [p for _, p in points], start_s, end_s)
        averaged_s = gpu.power_is["averaging_s"]
        if averaged_s is None and gpu.power_field is None:
            averaged_s = LONGEST_AVERAGE_S  # it is not told, and on many cards it is that
        error_j += (averaged_s or 0.0) * (max(p for _, p in points) - min(p for _, p in points))
        if averages := self._averages[uuid][-len(near) :]:
            detail["average_field_j"], _ = integrate([t for t, _ in averages], [p for _, p in averages], start_s, end_s)
        return Energy(
            source="gpu_power_integral", scope="gpu", device=uuid, energy_j=joules, error_j=error_j, detail=detail
        )

    def _card(self, uuid: str, gpu: Gpu, held_back: Mapping[str, float], end_ns: int) -> Card:
        here = [s for s in self._own_samples(uuid) if s.time_ns <= end_ns]
        inside = [s for s in here if s.time_ns >= self._start_ns] or here
        heat = [s.temperature_c for s in here if s.temperature_c is not None]
        clocks = [s.sm_clock_mhz for s in inside if s.sm_clock_mhz is not None]
        before = self._throttled[uuid]
        throttled = {why: held_back[why] - before[why] for why in held_back if why in before}
        return Card(
            temperature_start_c=heat[0] if heat else None,
            temperature_end_c=heat[-1] if heat else None,
            temperature_max_c=max(heat, default=None),
            sm_clock_mhz=statistics.fmean(clocks) if clocks else None,
            throttled_s={why: seconds for why, seconds in throttled.items() if seconds > 0},
            foreign_pids=sorted(self._foreign[uuid] - own_processes()),
            mig=gpu.mig(),
            mps=gpu.mps(),
        )

    def _sampler(self, cpu_s: float) -> Sampler:
        gaps = [(b - a) / 1e9 for a, b in zip(self._seen_ns, self._seen_ns[1:], strict=False)]
        return Sampler(
            period_s=self._period_s,
            samples=len(self._seen_ns),
            missed=self._missed,
            largest_gap_s=max(gaps, default=0.0),
            cpu_s=cpu_s,
        )

    def _near(self, uuid: str, start_ns: int) -> list[Sample]:
        """Of this window, from a few looks before a time on: a short stretch late in a long window is found at once."""
        first = bisect_left(self.samples, start_ns, lo=self._first, key=lambda sample: sample.time_ns)
        earliest = max(self._first, first - (WIDEST_GAP + 1) * len(self._gpus))
        return [sample for sample in self.samples[earliest:] if sample.device == uuid]

    def _own_samples(self, uuid: str) -> list[Sample]:
        return [sample for sample in self.samples[self._first :] if sample.device == uuid]


class Inside:
    """A stretch inside a running window of cards. It reads no sensor and waits for no edge, so that the window around
    it is not held up; what it knows is the power that the sampler sees anyway."""

    def __init__(self, around: GpuMeter, time: Time) -> None:
        self._around, self._time = around, time
        self._start_ns = 0

    def start(self) -> None:
        self._start_ns = self._time.now_ns()

    def stop(self) -> Reading:
        end_ns = self._time.now_ns()
        found = self._around.within(self._start_ns, end_ns)
        return Reading(wall_s=(end_ns - self._start_ns) / 1e9, energy=found)


def _held_back(gpu: Gpu) -> dict[str, float]:
    try:
        return gpu.throttled_s()
    except SensorError:
        return {}  # a card that is lost says so through its energy


def _widest(times_s: list[float], start_s: float, end_s: float) -> float:
    """The longest stretch of a window without a sample."""
    inside = [t for t in times_s if start_s < t < end_s]
    before = [t for t in times_s if t <= start_s]
    after = [t for t in times_s if t >= end_s]
    points = [max(before, default=start_s), *inside, min(after, default=end_s)]
    if not times_s:
        return end_s - start_s + 1e9
    return max(b - a for a, b in itertools.pairwise(points))
