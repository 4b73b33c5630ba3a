"""The way to a target quality: what each side took, the paired saving, and a verdict of its own.

Some methods promise fewer steps, not cheaper ones, so a run of full length cannot show what they save. A block in which
a side never reached the target is censored: its cost exceeds the whole run's, by an amount that nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from energybench.meter.combine import Metered, metered
from energybench.meter.reading import Reading
from energybench.records.record import Target, Trial
from energybench.stats import paired, power
from energybench.verdict import sentences
from energybench.verdict.devices import Pooling, Unit
from energybench.verdict.figures import Measured, SideToTarget, ToTarget
from energybench.verdict.pairing import Pair, devices_of, mean_of


def to_target(
    pairs: Sequence[Pair],
    margin: float,
    *,
    verdict_forbidden: bool = False,
    alpha_fraction: float = 1.0,
    waiting_reason: str = "",
    lost_blocks: int = 0,
    pooling: Pooling | None = None,
) -> ToTarget | None:
    """What a workload's target quality took on both sides; None for a workload without a target.

    Args:
        pairs: of one method
        margin: of the saving
        verdict_forbidden: whether a flag forbids a verdict
        alpha_fraction: of every chance of error, what the look may use
        waiting_reason: why there is no verdict yet; empty once a look was reached
        lost_blocks: blocks without a pair because a side diverged or ran past its limit: it never reached the target
        pooling: of the devices, where they may be several
    """
    target = next((pair.baseline.target for pair in pairs if pair.baseline.target is not None), None)
    if target is None:
        return None
    n, devices = len(pairs), devices_of(pairs, pooling)
    unit: Unit = "block" if pooling is None else pooling.counts
    units = n if devices is None else len(set(devices))
    method, baseline = (
        _side(trials, absolute=devices is None)
        for trials in ([pair.method for pair in pairs], [pair.baseline for pair in pairs])
    )
    steps = change = cost = None
    if method.reached == baseline.reached == n and not lost_blocks:
        steps = _steps(pairs, alpha_fraction, devices, unit)
        change, cost = _cost(pairs, alpha_fraction, devices, unit) or (None, None)
    verdict: paired.Verdict = "no verdict"
    if verdict_forbidden:
        reason = "a check of the measurement failed"
    elif waiting_reason:
        reason = waiting_reason
    else:
        verdict = _verdict(method, change, cost, units, margin)
        reason = _reason(method, baseline, n, lost_blocks) or _undecided_reason(verdict, change, units, margin, unit)
    return ToTarget(
        target.metric,
        target.at_least,
        n,
        method,
        baseline,
        steps,
        cost,
        verdict,
        reason,
        at_most=target.at_most,
        unit=unit,
    )


def _verdict(
    method: SideToTarget, change: paired.Paired | None, cost: Measured | None, n: int, margin: float
) -> paired.Verdict:
    if method.reached == 0:
        return "not reached"
    if n < paired.FEWEST_BLOCKS:
        return "no verdict"
    if change is None or cost is None:
        return "inconclusive"
    return paired.verdict_at_equal_quality(change, margin, cost.quantity)


def _reason(method: SideToTarget, baseline: SideToTarget, n: int, lost_blocks: int) -> str:
    """Why the saving is not known; empty where both sides reached the target in every block."""
    if method.reached < n or baseline.reached < n:
        return sentences.missed(method.reached, baseline.reached, n)
    return sentences.ended(lost_blocks, n) if lost_blocks else ""


def _undecided_reason(verdict: paired.Verdict, change: paired.Paired | None, n: int, margin: float, unit: Unit) -> str:
    if verdict == "no verdict":
        return sentences.too_few(n, unit)
    if verdict == "inconclusive" and change is not None:
        fraction = change.alpha_fraction
        needed = power.blocks_needed(change.mean, change.sd, margin, alpha_fraction=fraction, df=change.df)
        each = change.blocks / change.n if change.counts else None
        return sentences.would_decide(None if needed is None else max(needed, n + 1), unit=unit, each=each)
    return ""


def _reached(trial: Trial) -> Target | None:
    return trial.target if trial.target is not None and trial.target.epoch is not None else None


def _metered(target: Target) -> Metered:
    return metered(Reading(wall_s=target.wall_s or 0.0, energy=target.energy))


def _side(trials: Sequence[Trial], absolute: bool) -> SideToTarget:
    """absolute: whether seconds and joules are of one device, and may be averaged"""
    known = [target for target in map(_reached, trials) if target is not None]
    joules = [_metered(target).joules for target in known if _metered(target).sensors]
    steps, seconds = mean_of(target.steps for target in known), mean_of(target.wall_s for target in known)
    return SideToTarget(len(known), steps, seconds if absolute else None, mean_of(joules) if absolute else None)


def _targets(pairs: Sequence[Pair]) -> list[tuple[Target, Target]]:
    """(method, baseline) of the pairs whose sides both reached it."""
    both = [(_reached(pair.method), _reached(pair.baseline)) for pair in pairs]
    return [(method, baseline) for method, baseline in both if method is not None and baseline is not None]


def _change(
    costs: Sequence[tuple[float | None, float | None]], n: int, alpha_fraction: float, devices: list[str] | None
) -> paired.Paired | None:
    """The paired log ratios of (method, baseline); None where a cost of the n pairs is missing or 0."""
    known = [(method, baseline) for method, baseline in costs if method and baseline]
    if len(known) < n:
        return None
    method, baseline = [cost for cost, _ in known], [cost for _, cost in known]
    return paired.paired(method, baseline, alpha_fraction=alpha_fraction, devices=devices)


def _steps(pairs: Sequence[Pair], alpha_fraction: float, devices: list[str] | None, unit: Unit) -> Measured | None:
    """None where a method arrived without a step, or older records do not count them."""
    steps = [(method.steps, baseline.steps) for method, baseline in _targets(pairs)]
    change = _change(steps, len(pairs), alpha_fraction, devices)
    return None if change is None else Measured.of(change, "time", unit=unit)


def _cost(
    pairs: Sequence[Pair], alpha_fraction: float, devices: list[str] | None, unit: Unit
) -> tuple[paired.Paired, Measured] | None:
    """By energy where every target of every pair was reached under the same measured sensors, else by time."""
    targets = _targets(pairs)
    windows = [(_metered(method), _metered(baseline)) for method, baseline in targets]
    sensors = windows[0][0].sensors
    alike = all(method.channels == baseline.channels for method, baseline in windows)
    same = all(window.sensors == sensors and window.joules > 0 for both in windows for window in both)
    if sensors and alike and same:
        joules = [(method.joules, baseline.joules) for method, baseline in windows]
        change = _change(joules, len(pairs), alpha_fraction, devices)
        scope = " + ".join(sorted({scope for _, scope in sensors}))
        return None if change is None else (change, Measured.of(change, "energy", scope, unit))
    seconds = [(method.wall_s, baseline.wall_s) for method, baseline in targets]
    change = _change(seconds, len(pairs), alpha_fraction, devices)
    return None if change is None else (change, Measured.of(change, "time", unit=unit))
