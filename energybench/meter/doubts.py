"""Every reason to doubt what the sensors said of one window, whatever ran in it and whoever asked: the one place.

`run`, `measure`, the Python windows, the callbacks, pytest and the reports all ask here. Severities as in
verdict/flag_codes.py, which holds these codes too: invalid (no figure is used), struck (it decides nothing), marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from energybench.meter.plausible import IMPLAUSIBLE
from energybench.meter.reading import Energy, Reading

Severity = Literal["invalid", "struck", "marked"]

STEAL_LIMIT = 0.01  # CPU seconds that the host took away, per second of the window
THROTTLE_LIMIT = 0.01  # of the window
CHANNELS_APART, CHANNELS_CONTRADICT = 0.05, 0.15  # counter against power integral
FEWEST_TICKS = 50  # of a sensor, in a window that may get a verdict
ALIASING_PERIODS_S = (0.05, 0.1, 0.15)  # of power sensors that look at a part of the time only
ALIASING_WITHIN = 0.1  # of such a period
OVERHEAD_LIMIT = 0.01  # of one core, by the reader in the background
MISSED_LIMIT = 0.1  # of its reads
OTHER_LOAD_LIMIT = 0.05  # of the CPU seconds behind a figure of the processor
COUNTER, INTEGRAL = "gpu_counter", "gpu_power_integral"  # the two channels of a card
OF_THE_PROCESSOR = frozenset({"cpu", "dram", "module", "machine"})  # scopes in which everything that computes is seen


@dataclass(frozen=True, slots=True)
class Doubt:
    """One reason, what it does to the number, and the sentence for it."""

    code: str
    severity: Severity
    sentence: str


DOUBTS: tuple[Doubt, ...] = (
    Doubt("implausible", "invalid", "A sensor said more than its part can draw, so that it gives no figure."),
    Doubt("sensor_lost", "invalid", "An energy sensor died inside the window; a partial total would be a wrong one."),
    Doubt(
        "channels_contradict",
        "invalid",
        "The card's energy counter and its integrated power lie over 15 % apart: one of them is wrong.",
    ),
    Doubt("channels_apart", "marked", "The card's energy counter and its integrated power lie over 5 % apart."),
    Doubt("suspended", "struck", "The machine slept in the window: what its sensors say of it cannot be believed."),
    Doubt("mig", "struck", "The card is sliced (MIG): its sensors see the whole card, whoever else uses it."),
    Doubt("mps", "struck", "Processes share the card's context (MPS): its energy is not one process's."),
    Doubt("foreign_process", "struck", "Another process was on the card: its energy is in the figure."),
    Doubt(
        "window_short",
        "struck",
        "The window is shorter than 50 ticks of the energy sensor, so its ends weigh too much.",
    ),
    Doubt("throttled", "marked", "The card held its clocks back: the same work took longer and drew less."),
    Doubt(
        "aliasing",
        "marked",
        "A step takes about as long as the power sensor's own period, which may see always the same part of it.",
    ),
    Doubt("reads_missed", "marked", "Over 10 % of the sensor reads in the background failed."),
    Doubt(
        "harness_overhead",
        "marked",
        "Reading the sensors took over 1 % of a core: the harness is part of what was measured.",
    ),
    Doubt("host_contention", "marked", "Other work on this machine or its host took the processor away."),
    Doubt("other_load", "marked", "Other processes computed meanwhile: what they drew is in the processor's figure."),
    Doubt(
        "second_tracker",
        "marked",
        "Another tracker of energy ran meanwhile: its own work is in the figures, and its joules are the same ones.",
    ),
)
_BY_CODE = {doubt.code: doubt for doubt in DOUBTS}

Found = Iterator[tuple[str, str]]  # code, detail


def doubts(window: Reading, steps: int | None = None) -> list[tuple[Doubt, str]]:
    """What the sensors of one window show, with a detail; the first of each code.

    Args:
        window: what was read of it
        steps: how often what ran in it repeats; None where that is not known
    """
    by_code: dict[str, str] = {}
    for code, detail in found(window, steps):
        by_code.setdefault(code, detail)
    return [(_BY_CODE[code], detail) for code, detail in by_code.items()]


def found(window: Reading, steps: int | None) -> Found:
    """The same as codes, every one of them."""
    for energy in window.energy:
        if energy.lost:
            code = "implausible" if IMPLAUSIBLE in energy.detail else "sensor_lost"
            yield code, f"{energy.source} {energy.scope}: {energy.reason or 'no reason given'}"
    if window.suspended_s:
        yield "suspended", f"for {window.suspended_s:.3g} s"
    yield from _of_sensors(window, steps)
    yield from _of_cards(window)
    yield from _of_the_reader(window)
    yield from _of_others(window)


def _of_sensors(window: Reading, steps: int | None) -> Found:
    """Short windows, aliasing, and two channels of one card that disagree."""
    measured = [energy for energy in window.energy if energy.measured]
    on_cards = [energy for energy in measured if energy.source in (COUNTER, INTEGRAL)]
    yield from _too_short(window, measured)
    if on_cards and steps:
        yield from _aliasing(window.wall_s / steps)
    yield from _disagreement(on_cards)


def _too_short(window: Reading, measured: Sequence[Energy]) -> Found:
    piece_s = window.wall_s / max(1, window.pieces)
    with_counter = {energy.device for energy in measured if energy.source == COUNTER}
    for energy in measured:
        if energy.source == INTEGRAL and energy.device in with_counter:
            continue  # it only checks the counter, whose ticks decide
        ticks = energy.detail.get("tick_s", energy.detail.get("period_s"))
        tick_s = max(ticks) if isinstance(ticks, list) else ticks
        if tick_s and piece_s < FEWEST_TICKS * tick_s:
            yield "window_short", f"{energy.source}: {piece_s:.2f} s at a tick of {tick_s:.3f} s"


def _aliasing(step_s: float) -> Found:
    """A step that takes about as long as the sensor's period."""
    period_s = min(ALIASING_PERIODS_S, key=lambda period: abs(step_s / period - 1))
    if abs(step_s / period_s - 1) <= ALIASING_WITHIN:
        yield "aliasing", f"{1e3 * step_s:.1f} ms a step, {1e3 * period_s:.0f} ms a period"


def _disagreement(on_cards: Sequence[Energy]) -> Found:
    """The energy counter of a card against its integrated power of the same scope.

    They contradict each other only where no truth lies within the errors of both: a sensor that looks part of the time
    may be far off, and says so.
    """
    for counter in (energy for energy in on_cards if energy.source == COUNTER):
        for integral in (energy for energy in on_cards if energy.source == INTEGRAL):
            same = (counter.device, counter.scope) == (integral.device, integral.scope)
            if not same or not counter.energy_j or integral.energy_j is None:
                continue
            apart_j = abs(integral.energy_j - counter.energy_j)
            apart = apart_j / counter.energy_j
            if apart > CHANNELS_APART:
                beyond = apart_j > (counter.error_j or 0.0) + (integral.error_j or 0.0)
                code = "channels_contradict" if apart > CHANNELS_CONTRADICT and beyond else "channels_apart"
                yield code, f"{counter.device}: {100 * apart:.1f} %"


def _of_cards(window: Reading) -> Found:
    for uuid, card in window.cards.items():
        if card.mig or card.mig is None:
            yield "mig", uuid if card.mig else f"{uuid}: it does not tell whether it is"
        if card.mps:
            yield "mps", uuid
        if card.foreign_pids:
            yield "foreign_process", f"{uuid}: process {', '.join(map(str, card.foreign_pids))}"
        for reason, seconds in card.throttled_s.items():
            if seconds > THROTTLE_LIMIT * window.wall_s:
                yield "throttled", f"{uuid}: {reason}, {100 * seconds / window.wall_s:.1f} % of the window"


def _of_the_reader(window: Reading) -> Found:
    sampler = window.sampler
    if sampler and sampler.cpu_s > OVERHEAD_LIMIT * window.wall_s:
        yield "harness_overhead", f"{100 * sampler.cpu_s / window.wall_s:.1f} % of a core"
    if sampler and sampler.missed > MISSED_LIMIT * sampler.samples:
        yield "reads_missed", f"{sampler.missed} of {sampler.samples}"


def _of_others(window: Reading) -> Found:
    """The host, other processes, other trackers."""
    if window.steal_s is not None and window.steal_s > STEAL_LIMIT * window.wall_s:
        yield "host_contention", f"the host took {100 * window.steal_s / window.wall_s:.1f} % of a core away"
    if sees_others(window) and window.other_cpu_s is not None and window.cpu_s is not None:
        every_s = window.other_cpu_s + window.cpu_s
        if every_s > 0 and window.other_cpu_s > OTHER_LOAD_LIMIT * every_s:
            yield "other_load", f"{100 * window.other_cpu_s / every_s:.0f} % of the CPU seconds were others'"
    if window.trackers:
        yield "second_tracker", ", ".join(window.trackers)


def sees_others(window: Reading) -> bool:
    """Whether a figure is of everything that computes, and it is known how much of that was others'."""
    of_the_processor = any(energy.measured and energy.scope in OF_THE_PROCESSOR for energy in window.energy)
    return of_the_processor and window.other_cpu_s is not None and window.cpu_s is not None
