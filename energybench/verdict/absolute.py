"""Seconds and joules of a cell as they are: of one device. Those of several are never pooled, and stand one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from energybench.records.record import Trial
from energybench.verdict import pairing
from energybench.verdict.devices import Pooling
from energybench.verdict.figures import OnDevice
from energybench.verdict.pairing import EnergyFigure, TrialMean


class Absolute(TypedDict):
    """Of all trials where one device ran them; else of each device."""

    seconds: TrialMean | None
    energies: tuple[EnergyFigure, ...]
    on_devices: tuple[OnDevice, ...]


def absolute(trials: Sequence[Trial], pooling: Pooling) -> Absolute:
    """Of one cell's trials."""
    if not pooling.several:
        return {"seconds": _seconds(trials), "energies": pairing.energies(trials), "on_devices": ()}
    on_devices = tuple(
        OnDevice(pooling.name(device), len(of_it), _seconds(of_it), pairing.energies(of_it))
        for device, of_it in pooling.by_device(trials).items()
    )
    return {"seconds": None, "energies": (), "on_devices": on_devices}


def _seconds(trials: Sequence[Trial]) -> TrialMean | None:
    return pairing.mean_of(pairing.seconds(trial) for trial in trials)
