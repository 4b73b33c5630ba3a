"""What a trial did outside its window: what a method spends once, which is billed, and work that nobody bills.

Seconds and joules of the phases of one trial, and their difference to plain training's of the same block. Records of
before schema 3 do not hold them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from energybench.meter.combine import Metered, metered
from energybench.meter.reading import Reading
from energybench.records.record import Trial
from energybench.stats import paired
from energybench.verdict.devices import Pooling
from energybench.verdict.figures import Measured, Once
from energybench.verdict.pairing import Pair, devices_of, seconds

# Before the window and after the evaluation: what a method makes ready, and undoes. It makes ready twice, for the
# warm-up and for the window, and is billed the dearer time: what the first left in memory spares the second.
MADE_READY, UNDONE = ("warmup_build", "build"), "finish"
# Phases whose CPU seconds are known: the harness's own, and what is billed elsewhere or, as the warm-up, to nobody.
ACCOUNTED = ("open", "setup", "cooldown", "warmup_build", "warmup", "build", "train", "report", "evaluate")

Extras = Mapping[str, Sequence[tuple[float, float]]]  # what → of each block (seconds, share of plain training's window)


def _once(trial: Trial) -> list[Reading]:
    """The readings that bill what the trial spent once; empty where the record does not hold them."""
    ready = [trial.phases[name] for name in MADE_READY if name in trial.phases]
    if UNDONE not in trial.phases or not ready:
        return []
    return [max(ready, key=lambda reading: reading.wall_s), trial.phases[UNDONE]]


def _once_s(trial: Trial) -> float:
    return math.fsum(reading.wall_s for reading in _once(trial))


def _once_j(trial: Trial, window: Metered) -> float:
    """By the window's own sensors; at the window's mean power where they gave no figure for so short a phase."""
    joules = []
    for reading in _once(trial):
        known = metered(reading)
        power_w = window.joules / seconds(trial)
        joules.append(known.joules if known.channels == window.channels else power_w * reading.wall_s)
    return math.fsum(joules)


def this_run(
    pairs: Sequence[Pair],
    steady: paired.Paired,
    quantity: paired.Quantity,
    margin: float,
    epochs: float | None,
    pooling: Pooling | None = None,
) -> tuple[paired.Paired, Once | None]:
    """The change of whole runs, what is spent once included, and what that is; the window's own change and None where
    the whole interval of what is spent once lies below the margin, or the records do not hold it.

    Args:
        pairs:    at least one
        steady:   the change of the windows alone
        quantity: of the change
        margin:   of the saving, as a fraction
        epochs:   of plain training, into which its saving is divided
        pooling:  of the devices, where they may be several
    """
    if not all(_once(trial) for pair in pairs for trial in (pair.method, pair.baseline)):
        return steady, None
    costs = [_costs(pair, quantity) for pair in pairs]  # (window, once) of the method and of the baseline
    shares = [(method[1] - baseline[1]) / baseline[0] for method, baseline in costs]
    devices = devices_of(pairs, pooling)
    extra = paired.differences(shares, [0.0] * len(shares), devices=devices)
    low, high = extra.interval() if extra.df > 0 else (None, None)
    most = high if high is not None and extra.n >= paired.FEWEST_BLOCKS else extra.mean
    if most <= margin or extra.mean <= 0:  # nobody is paid for preparing faster than plain training
        return steady, None
    change = paired.paired(
        [sum(method) for method, _ in costs],
        [sum(baseline) for _, baseline in costs],
        alpha_fraction=steady.alpha_fraction,
        devices=devices,
    )
    runs = extra.mean / steady.saving if steady.saving > 0 < extra.mean else None
    return change, Once(
        seconds=None
        if devices
        else math.fsum(_once_s(pair.method) - _once_s(pair.baseline) for pair in pairs) / len(pairs),
        share_rel=extra.mean,
        low_rel=low,
        high_rel=high,
        steady=Measured.of(steady, quantity, unit="block" if pooling is None else pooling.counts),
        repaid_runs=runs,
        repaid_epochs=None if runs is None or not epochs else runs * epochs,
    )


def _costs(pair: Pair, quantity: paired.Quantity) -> tuple[tuple[float, float], tuple[float, float]]:
    """(window, once) of the method and of the baseline, in seconds or in measured joules."""
    trials, windows = (pair.method, pair.baseline), pair.costs(quantity)
    if quantity == "time":
        once = [_once_s(trial) for trial in trials]
    else:
        once = [_once_j(trial, window) for trial, window in zip(trials, pair.metered, strict=True)]
    return (windows[0], once[0]), (windows[1], once[1])


def extras(pairs: Sequence[Pair]) -> Extras:
    """What each block's method did outside its window beyond plain training; without what no record holds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for pair in pairs:
        window = pair.baseline.train
        if window is None or not window.wall_s > 0:
            continue
        for what, extra_s, of_s in _extras(pair, window):
            found.setdefault(what, []).append((extra_s, extra_s / of_s))
    return {what: each for what, each in found.items() if len(each) == len(pairs)}


def _extras(pair: Pair, window: Reading) -> list[tuple[str, float, float]]:
    """(what, seconds beyond plain training's, those of plain training's window)"""
    method, baseline = pair.method, pair.baseline
    mine, plain = (trial.phases.get("evaluate") for trial in (method, baseline))
    left, plain_left = (trial.phases.get(UNDONE) for trial in (method, baseline))
    result: list[tuple[str, float, float]] = []
    evaluated_cpu_s = 0.0
    if mine and plain and left and plain_left:
        # A method that reaches its target later is evaluated more often: each evaluation is held against another.
        again = mine.pieces / max(1, plain.pieces)
        evaluated_cpu_s = (mine.cpu_s or 0.0) - again * (plain.cpu_s or 0.0)
        extra_s = mine.wall_s - again * plain.wall_s + left.wall_s - plain_left.wall_s
        result.append(("evaluation and finish", extra_s, window.wall_s))
    if method.process and baseline.process:
        outside_s = [_outside_cpu_s(trial) for trial in (method, baseline)]
        extra_s = outside_s[0] - outside_s[1] + evaluated_cpu_s
        result.append(("processor time outside of every window", extra_s, window.cpu_s or window.wall_s))
        unseen_s = [_unseen_s(trial) for trial in (method, baseline)]
        result.append(("time in no phase", unseen_s[0] - unseen_s[1], window.wall_s))
    return result


def _outside_cpu_s(trial: Trial) -> float:
    assert trial.process
    known = [trial.phases[name].cpu_s or 0.0 for name in ACCOUNTED if name in trial.phases]
    return trial.process.cpu_s - math.fsum(known)


def _unseen_s(trial: Trial) -> float:
    assert trial.process
    own_s = trial.process.wall_s - trial.process.rested_s
    return own_s - math.fsum(reading.wall_s for reading in trial.phases.values())
