"""The samples that are kept of a run, however long it lasts: all of them, or fewer whose sum is the same.

Where there are too many, every second one is left out, and its energy above or below the straight line between its
neighbours goes to these: the trapezoidal sum over the whole trace stays what it was. That takes place again and again,
so that what is older has been thinned more often.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

from energybench.meter.trace import Sample

MOST_SAMPLES = 40_000  # of one device: two hours at five in a second


class KeptTrace:
    """Samples of several devices, each added in the order of time."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most or MOST_SAMPLES
        self._by_device: dict[str, list[Sample]] = {}
        self._lock = threading.Lock()  # a thread adds samples while another asks

    def add(self, sample: Sample) -> None:
        with self._lock:
            samples = self._by_device.setdefault(sample.device, [])
            samples.append(sample)
            if len(samples) > self._most:
                self._by_device[sample.device] = thinned(samples)

    @property
    def samples(self) -> list[Sample]:
        """What is kept, in the order of time."""
        with self._lock:
            every = [sample for samples in self._by_device.values() for sample in samples]
        return sorted(every, key=lambda sample: sample.time_ns)


def thinned(samples: list[Sample]) -> list[Sample]:
    """About half of one device's samples, with the same trapezoidal sum of power over time; first and last stay.

    Samples without a power are left out. What else a dropped one knew goes to the next one that is kept.
    """
    known = [sample for sample in samples if sample.power_w is not None]
    if len(known) < 3:
        return known
    times = [sample.time_ns / 1e9 for sample in known]
    powers = [sample.power_w or 0.0 for sample in known]
    kept = [*range(0, len(known) - 1, 2), len(known) - 1]
    surplus_j = [0.0] * len(kept)  # of what was dropped, above the line between its neighbours: half to each of them
    states = [known[index] for index in kept]
    for number, (left, right) in enumerate(itertools.pairwise(kept)):
        if right - left < 2:
            continue
        middle = left + 1
        seconds = times[right] - times[left]
        share = (times[middle] - times[left]) / seconds if seconds else 0.5
        above_w = powers[middle] - powers[left] * (1 - share) - powers[right] * share
        for place in (number, number + 1):
            surplus_j[place] += above_w * seconds / 4
        states[number + 1] = _with_state_of(states[number + 1], known[middle])
    weights_s = _weights([times[index] for index in kept])
    return [
        replace(state, power_w=powers[index] + (surplus / weight if weight else 0.0))
        for state, index, surplus, weight in zip(states, kept, surplus_j, weights_s, strict=True)
    ]


def _weights(times_s: list[float]) -> list[float]:
    """Of each sample, by how many seconds its power counts in the trapezoidal sum."""
    gaps = [after - before for before, after in itertools.pairwise(times_s)]
    return [(before + after) / 2 for before, after in zip([0.0, *gaps], [*gaps, 0.0], strict=True)]


def _with_state_of(sample: Sample, dropped: Sample) -> Sample:
    temperature_c = dropped.temperature_c if sample.temperature_c is None else sample.temperature_c
    sm_clock_mhz = dropped.sm_clock_mhz if sample.sm_clock_mhz is None else sample.sm_clock_mhz
    return replace(sample, temperature_c=temperature_c, sm_clock_mhz=sm_clock_mhz)
