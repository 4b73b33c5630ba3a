"""The meter of NVIDIA GPUs: over one window, per card, a counter and a power integral, and the state of the card.

gpu_counter          the card's own cumulative energy, read from edge to edge (counter.py)
gpu_power_integral   its power, sampled in the background and integrated (trace.py): an independent second channel
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from energybench.meter.card_window import PowerWindow, StateWindow
from energybench.meter.clock import REAL_TIME, Time
from energybench.meter.counter import CounterFigure, Counters, SensorError
from energybench.meter.devices import listed_uuids
from energybench.meter.kept_trace import KeptTrace
from energybench.meter.nvml import own_processes, process_exists
from energybench.meter.nvml_gpu import Gpu, ImplausiblePower, Powers
from energybench.meter.plausible import PowerLimit
from energybench.meter.ranks import siblings_among
from energybench.meter.reading import CardState, Energy, Reading, SamplerState
from energybench.meter.trace import Sample

Read = TypeVar("Read")
PERIOD_S = 0.2  # between samples: one holds a busy process up by 0.2 ms; under 50 ms some cards answer with zeros
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
        self._counters = Counters(reads, time, tail_power_w, self._counter_limit)
        self._trace = KeptTrace()  # of every window so far
        self._newest: dict[str, tuple[float, Powers]] = {}
        now = {gpu.uuid: gpu.processes() for gpu in gpus}  # before we had a context of our own
        self._processes_before = {**now, **(processes_before or {})}
        self._own_processes: dict[str, set[int]] = {}
        self._spared: dict[str, set[int]] = {}
        self._of_children = of_children
        self._stop_sampling: Callable[[], float] = lambda: 0.0
        self._start_ns = 0
        self._begin()

    @property
    def samples(self) -> list[Sample]:
        """Of every window so far, thinned where there are many."""
        return self._trace.samples

    @property
    def answers(self) -> bool:
        """Whether any card gives a figure of energy at all."""
        return len(self.silent) < len(self._gpus)

    @property
    def silent(self) -> dict[str, str]:
        """UUID → why a card gives no figure of energy."""
        return {
            uuid: f"counter: {gpu.counter_reason}; power: {gpu.power_reason}"
            for uuid, gpu in self._gpus.items()
            if gpu.counter_reason is not None and gpu.power_reason is not None
        }

    def _begin(self) -> None:
        self._missed = self._rounds = 0
        self._sampled_ns, self._largest_gap_s = 0, 0.0
        self._foreign_pids: dict[str, set[int]] = {uuid: set() for uuid in self._gpus}
        self._throttled_before: dict[str, dict[str, float]] = {}
        self._states = {uuid: StateWindow() for uuid in self._gpus}
        self._stretches: list[dict[str, PowerWindow]] = []  # the window's, and those of stretches inside it
        self._working = False

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
        self._window, self._working = self.begin_stretch(self._start_ns), True

    def stop(self) -> Reading:
        """To be called right after the last synchronise; returns a few ticks later."""
        end_ns = self._time.now_ns()
        self._working = False
        throttled = {uuid: _throttled_s(gpu) for uuid, gpu in self._gpus.items()}
        figures = self._counters.stop(end_ns)
        cpu_s = self._stop_sampling()
        self._sample_cards(everything=True)
        energy: list[Energy] = []
        cards: dict[str, CardState] = {}
        for uuid, gpu in self._gpus.items():
            energy += [self._counter(uuid, gpu, figures), *self._integrals(uuid, gpu, self._window, end_ns)]
            cards[uuid] = self._card(uuid, gpu, throttled[uuid])
        seconds = (end_ns - self._start_ns) / 1e9
        return Reading(wall_s=seconds, energy=energy, cards=cards, sampler=self._sampler(cpu_s))

    def nested(self) -> NestedGpuMeter:
        """A meter of a stretch inside this one's running window."""
        return NestedGpuMeter(self, self._time)

    def begin_stretch(self, start_ns: int) -> dict[str, PowerWindow]:
        """A stretch of the running window that begins now: what the sampler sees of it from here on is summed."""
        stretch = {
            uuid: PowerWindow(gpu, start_ns / 1e9, self._period_s, self._newest.get(uuid))
            for uuid, gpu in self._gpus.items()
        }
        self._stretches = [*self._stretches, stretch]  # whole at once, for the sampler is running
        return stretch

    def end_stretch(self, stretch: dict[str, PowerWindow], end_ns: int) -> list[Energy]:
        """Its integrals; nothing is read."""
        self._stretches = [each for each in self._stretches if each is not stretch]
        return [energy for uuid, gpu in self._gpus.items() for energy in self._integrals(uuid, gpu, stretch, end_ns)]

    def own_on_cards(self) -> dict[str, list[int]]:
        """UUID → this process there, as the driver numbers it; empty before the first window."""
        return {uuid: sorted(pids) for uuid, pids in self._own_processes.items()}

    def spare(self, processes: Mapping[str, Iterable[int]]) -> None:
        """From now on these are no foreign processes: they hold memory on the card, and compute nothing meanwhile.

        processes: UUID → numbers, as the driver has them
        """
        for uuid, pids in processes.items():
            self._spared.setdefault(uuid, set()).update(pids)

    def of_stretch(self, start_ns: int, stop_ns: int) -> list[Energy]:
        """The integrals of a stretch inside the last window, which nobody metered while it ran, from the samples that
        were kept."""
        found: list[Energy] = []
        for uuid, gpu in self._gpus.items():
            points = [
                (sample.time_ns / 1e9, Powers(sample.power_w))
                for sample in self._trace.samples
                if sample.device == uuid and sample.power_w is not None
            ]
            before = [point for point in points if point[0] <= start_ns / 1e9]
            spacing_s = max(
                (b[0] - a[0] for a, b in pairwise(points)), default=self._period_s
            )  # a long trace is thinned
            window = PowerWindow(
                gpu, start_ns / 1e9, max(self._period_s, spacing_s / 2), before[-1] if before else None
            )
            for time_s, powers in points[len(before) :]:
                window.add(time_s, powers)
            found += self._integrals(uuid, gpu, {uuid: window}, stop_ns)
        return found

    def _counter_limit(self, uuid: str) -> PowerLimit:
        return self._gpus[uuid].limit(self._gpus[uuid].scope)

    def listed_cards(self) -> set[str]:
        """UUIDs of the cards on which the driver lists this process or one that it started."""
        return set(listed_uuids(self._gpus.values()))

    def unknown_newcomers(self) -> dict[str, set[int]]:
        """UUID → processes seen in the last window, not known as our own, that were not on the card at first."""
        own = own_processes()
        unknown = {uuid: pids - self._processes_before[uuid] - own for uuid, pids in self._foreign_pids.items()}
        return {uuid: pids - siblings_among(pids) for uuid, pids in unknown.items()}

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
        sampled_ns = self._time.now_ns()
        if self._sampled_ns:
            self._largest_gap_s = max(self._largest_gap_s, (sampled_ns - self._sampled_ns) / 1e9)
        self._sampled_ns = sampled_ns
        for uuid, gpu in self._gpus.items():
            asked_ns = self._time.now_ns()
            powers = self._powers(uuid, gpu)
            now_ns = (asked_ns + self._time.now_ns()) // 2
            temperature_c = self._try(gpu.temperature_c) if state else None
            sm_clock_mhz = self._try(gpu.sm_clock_mhz) if state else None
            power_w = None if powers is None else powers.power_w
            self._trace.add(Sample(now_ns, uuid, power_w, temperature_c, sm_clock_mhz))
            self._states[uuid].add(temperature_c, sm_clock_mhz, inside=self._working)
            if powers is not None:
                for stretch in self._stretches:
                    stretch[uuid].add(now_ns / 1e9, powers)
                self._newest[uuid] = (now_ns / 1e9, powers)
            if everything:
                self._foreign_pids[uuid] |= self._foreign_among(uuid, gpu.processes())
        if state:
            self._counters.look()

    def _powers(self, uuid: str, gpu: Gpu) -> Powers | None:
        if gpu.power_reason is not None:
            return None
        try:
            return gpu.powers()
        except ImplausiblePower as error:
            for stretch in self._stretches:
                stretch[uuid].refuse(str(error))
        except SensorError:
            pass
        self._missed += 1
        return None

    def _foreign_among(self, uuid: str, on_card: set[int]) -> set[int]:
        unknown = on_card - self._own_processes.get(uuid, set()) - self._spared.get(uuid, set())
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
            reason = f"energy counter: {gpu.counter_reason}"
            return Energy(source="unavailable", scope=gpu.scope, device=uuid, reason=reason)
        figure = figures[uuid]
        return Energy(
            source="gpu_counter",
            scope=gpu.scope,
            device=uuid,
            energy_j=figure.joules,
            error_j=figure.error_j,
            reason=figure.reason,
            detail=figure.detail,
        )

    def _integrals(self, uuid: str, gpu: Gpu, stretch: dict[str, PowerWindow], end_ns: int) -> list[Energy]:
        if gpu.power_reason is not None:
            return [Energy(source="unavailable", scope="gpu", device=uuid, reason=f"power: {gpu.power_reason}")]
        return stretch[uuid].energies(end_ns / 1e9)

    def _card(self, uuid: str, gpu: Gpu, throttled: Mapping[str, float]) -> CardState:
        state, foreign = self._states[uuid], self._foreign_pids[uuid] - own_processes()
        before = self._throttled_before[uuid]
        grown = {reason: throttled[reason] - before[reason] for reason in throttled if reason in before}
        return CardState(
            temperature_start_c=state.first_c,
            temperature_end_c=state.last_c,
            temperature_max_c=state.hottest_c,
            sm_clock_mhz=state.clock_mhz,
            throttled_s={reason: seconds for reason, seconds in grown.items() if seconds > 0},
            foreign_pids=sorted(foreign - siblings_among(foreign)),
            mig=gpu.mig(),
            mps=gpu.mps(),
        )

    def _sampler(self, cpu_s: float) -> SamplerState:
        return SamplerState(
            period_s=self._period_s,
            samples=self._rounds,
            missed=self._missed,
            largest_gap_s=self._largest_gap_s,
            cpu_s=cpu_s,
        )


class NestedGpuMeter:
    """A stretch inside a running window of cards. It reads no sensor and waits for no edge, so that the window around
    it is not held up; what it knows is the power that the sampler sees anyway."""

    def __init__(self, around: GpuMeter, time: Time) -> None:
        self._around, self._time = around, time
        self._start_ns = 0
        self._stretch: dict[str, PowerWindow] = {}

    def start(self) -> None:
        self._start_ns = self._time.now_ns()
        self._stretch = self._around.begin_stretch(self._start_ns)

    def stop(self) -> Reading:
        end_ns = self._time.now_ns()
        energy = self._around.end_stretch(self._stretch, end_ns)
        return Reading(wall_s=(end_ns - self._start_ns) / 1e9, energy=energy)


def _throttled_s(gpu: Gpu) -> dict[str, float]:
    try:
        return gpu.throttled_s()
    except SensorError:
        return {}  # that a card is lost stands with its energy
