"""The child's part of `energybench doctor --calibrate`: plain training against itself, again and again, each metered.

    learn how long an epoch takes → a pair that is not counted → pairs: the same training twice, in random order

Whatever differs between the two trainings of a pair is noise: weights, data and their order are the same. All of them
run in one process, so what differs between processes is not seen. IN.json goes in, OUT.json comes out:

    IN   a CalibrationSpec
    OUT  device, threads, torch, workload, and what `noise_floor` says; or only `reason`, when it failed
"""

from __future__ import annotations

import gc
import math
import random
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from energybench.meter import combine, devices
from energybench.meter.reading import Reading
from energybench.meter.sensors import open_meters
from energybench.meter.window import Window, refuse_short
from energybench.records.record import write_json
from energybench.stats import paired, power
from energybench.suite.tables import AcceptTable, DataTable, ModelTable, TrainTable, WorkloadTable
from energybench.trial.build import build, device_name
from energybench.trial.spec import CalibrationSpec, MeasureSpec, TrainingSpec
from energybench.workloads import datasets

SEED = 2026
MARGIN = AcceptTable().margin  # the margin of a suite that states none
WITHIN_S = (60.0, 600.0, 3600.0)  # for which the smallest detectable saving is reported
ABOVE = 1.25  # trainings are made this much longer than the shortest, since some run faster than the others

# Real handwritten digits and a network that keeps the device at work: what is computed moves a device's power.
CHANNELS = {"cpu": [16, 32], "cuda": [64, 128, 256]}
TRAIN = TrainTable(epochs=1, lr=0.1, momentum=0.9, schedule="cosine")


def main(in_path: str, out_path: str) -> None:
    """Write what `calibrate` finds, or why it failed."""
    try:
        result = calibrate(CalibrationSpec.read(in_path))
    except Exception as error:
        traceback.print_exc()
        result = {"reason": f"{type(error).__name__}: {error}"}
    write_json(Path(out_path), result)


def calibrate(spec: CalibrationSpec) -> dict[str, Any]:
    """Raises whatever training or metering raises."""
    twins = Twins(spec)
    goal_s = ABOVE * spec.shortest_s
    epochs = _times(1, goal_s / twins.train(SEED, 1).wall_s)  # from a cold start, so rather too few
    fastest_s = min(twins.train(SEED, epochs).wall_s for _ in "ab")
    epochs = _times(epochs, goal_s / fastest_s)

    chance, orders, pairs = random.Random(SEED), list[str](), list[tuple[Reading, Reading]]()
    begun, pair_s = time.monotonic(), 0.0
    while len(pairs) < spec.fewest_pairs or time.monotonic() + pair_s < spec.until_s:
        # Each goes first as often as the other, so that a drift is no bias.
        orders = orders or chance.sample(["ab", "ba"], 2)
        readings = {side: twins.train(SEED + 1 + len(pairs), epochs) for side in orders.pop()}
        shortest_s = min(reading.wall_s for reading in readings.values())
        if shortest_s < spec.shortest_s:  # the machine has become faster: begin again, with longer ones
            epochs, begun = _times(epochs, goal_s / shortest_s), time.monotonic()
            pairs.clear()
            continue
        pairs.append((readings["a"], readings["b"]))
        pair_s = (time.monotonic() - begun) / len(pairs)
    return twins.facts(epochs) | noise_floor(pairs, pair_s)


def _times(epochs: int, factor: float) -> int:
    return max(1, math.ceil(epochs * factor))


class Twins:
    """The workload on this machine's device, its data and its meters, ready to be trained as often as wanted."""

    def __init__(self, spec: CalibrationSpec) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device_name = device_name(self.device)
        # First, so that they see who is on the card before we are.
        self._meters = open_meters(MeasureSpec(meters=spec.meters).selection(), self.device_name)
        self.workload = WorkloadTable(
            name="calibration",
            model=ModelTable.model_validate({"use": "cnn", "channels": CHANNELS[self.device.type]}),
            data=DataTable(use="digits", batch=64),
            train=TRAIN,
        )
        self.data = datasets.prepare(self.workload.data, spec.cache, download=False)
        self._train, _ = datasets.open_data(self.data, self.workload.data, self.device)
        self._synchronise = partial(devices.synchronise, self.device)

    def facts(self, epochs: int) -> dict[str, Any]:
        return {
            "device": self.device_name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "workload": {
                "model": self.workload.model.model_dump(mode="json"),
                "data": self.data.source,
                "samples": self.data.train,
                "batch": self.workload.data.batch,
                "epochs": epochs,
            },
        }

    def train(self, seed: int, epochs: int) -> Reading:
        """One training of so many epochs, from fresh weights, in one window."""
        train = self.workload.train.model_copy(update={"epochs": epochs})
        workload = self.workload.model_copy(update={"train": train})
        run = build(TrainingSpec(base=Path(), workload=workload, data=self.data, seed=seed), self._train, self.device)
        gc.collect()  # of the training before, which must not be paid by this one
        window = Window(self._meters, self._synchronise)
        window.start()
        run.train()
        window.stop()
        return refuse_short(window.reading())


# ── what the pairs say ────────────────────────────────────────────────────────────────────────────────────────


def noise_floor(pairs: Sequence[tuple[Reading, Reading]], pair_s: float) -> dict[str, Any]:
    """What the windows (a, b) of identical trainings say of this machine.

    pair_s: how long a pair takes, everything included
    time, energy: {sd_log, the noise floor: of ln(b / a); ratios_log; bias_rel: how far b lies from a in the mean, and
                  its 95 % interval; biased: beyond the margin; detectable: per time the smallest saving that would
                  be called one, margin included, in as many pairs as fit}
    """
    metered = [[combine.metered(reading) for reading in pair] for pair in pairs]
    sensors = {each.sensors for pair in metered for each in pair}
    energy, reason = None, None
    if len(sensors) == 1 and all(each.joules > 0 for pair in metered for each in pair):
        energy = _floor([a.joules for a, _ in metered], [b.joules for _, b in metered], pair_s)
        energy["sensors"] = sorted(map(" of ".join, sensors.pop()))
    else:
        missing = [energy for pair in pairs for reading in pair for energy in reading.energy if energy.reason]
        lost = sorted(missing, key=lambda energy: not energy.lost)  # what failed before what never was
        reason = lost[0].reason if lost else "no sensor gave a figure for every training"
    windows = [reading.wall_s for pair in pairs for reading in pair]
    return {
        "pairs": len(pairs),
        "pair_s": pair_s,
        "window_s": math.fsum(windows) / len(windows),
        "window_shortest_s": min(windows),
        "margin_rel": MARGIN,
        "noise_rel": MARGIN,  # the name before
        "chance_rel": power.POWER,
        "time": _floor([a.wall_s for a, _ in pairs], [b.wall_s for _, b in pairs], pair_s),
        "energy": energy,
        "energy_reason": reason,
    }


def _floor(a: Sequence[float], b: Sequence[float], pair_s: float) -> dict[str, Any]:
    change, h = paired.paired(b, a), -math.log1p(-MARGIN)
    low, high = change.interval()
    return {
        "sd_log": change.sd,
        "ratios_log": change.d,
        "bias_rel": math.expm1(change.mean),
        "bias_interval_rel": [math.expm1(low), math.expm1(high)],
        "biased": low > h or high < -h,
        "detectable": [_detectable(change, within_s, int(within_s / pair_s)) for within_s in WITHIN_S],
    }


def _detectable(seen: paired.Paired, within_s: float, count: int) -> dict[str, Any]:
    """For a fresh run of so many pairs, by the spread of those that were seen."""
    saving = power.detectable(seen.sd, count, MARGIN, df=seen.df) if count >= paired.FEWEST_BLOCKS else None
    reason = None if saving is not None else f"not with fewer than {paired.FEWEST_BLOCKS} pairs"
    return {"within_s": within_s, "pairs": count, "saving_rel": saving, "reason": reason}
