"""The way to a target quality: what each side took, the paired saving, and a verdict of its own.

Some methods promise fewer steps, not cheaper ones, so a run of full length cannot show what they save. A block in which
a side never reached the target is censored: its cost exceeds the whole run's, by an amount that nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from energybench.meter.combine import Metered, metered
from energybench.meter.reading import Reading
from energybench.records.record import Target, Trial
from energybench.stats import paired
from energybench.verdict import wording
from energybench.verdict.figures import Measured, ToTarget, Way
from energybench.verdict.pairing import Pair, figure


def to_target(
    found: Sequence[Pair],
    margin: float,
    *,
    struck: bool = False,
    alpha_fraction: float = 1.0,
    waits: str = "",
    ended: int = 0,
) -> ToTarget | None:
    """None for a workload without a target.

    struck: a flag forbids a verdict
    waits:  why there is none yet
    ended:  blocks without a pair because a side diverged or ran past its limit: it never reached the target there
    """
    target = next((p.plain.target for p in found if p.plain.target is not None), None)
    if target is None:
        return None
    n, ours, plain = len(found), _way([p.ours for p in found]), _way([p.plain for p in found])
    steps = cost = None
    verdict: paired.Verdict = "no verdict"
    if ours.reached == plain.reached == n and not ended:
        steps, cost = _steps(found, alpha_fraction), _cost(found, alpha_fraction)
    if ours.reached == 0 and not struck and not waits:
        verdict = "not reached"
    elif n >= paired.FEWEST_BLOCKS and not struck and not waits:
        verdict = "inconclusive"
        if cost is not None:
            verdict = paired.verdict_at_equal_quality(cost[0], margin, cost[1].quantity)
    because = ""
    if struck:
        because = "a check of the measurement failed"
    elif waits:
        because = waits
    elif ours.reached < n or plain.reached < n:
        because = wording.missed(ours.reached, plain.reached, n)
    elif ended:
        because = wording.ended(ended, n)
    elif verdict == "no verdict":
        because = f"{wording.blocks(n)}, and {paired.FEWEST_BLOCKS} are the least"
    elif verdict == "inconclusive" and cost is not None:
        because = wording.would_decide(
            paired.blocks_needed(cost[0].mean, cost[0].sd, margin, alpha_fraction=alpha_fraction)
        )
    return ToTarget(target.metric, target.at_least, n, ours, plain, steps, cost and cost[1], verdict, because)


def _reached(trial: Trial) -> Target | None:
    return trial.target if trial.target is not None and trial.target.epoch is not None else None


def _metered(target: Target) -> Metered:
    return metered(Reading(wall_s=target.wall_s or 0.0, energy=target.energy))


def _way(trials: Sequence[Trial]) -> Way:
    known = [target for target in map(_reached, trials) if target is not None]
    joules = [_metered(target).joules for target in known if _metered(target).sensors]
    return Way(len(known), figure(t.steps for t in known), figure(t.wall_s for t in known), figure(joules))


def _both(found: Sequence[Pair]) -> list[tuple[Target, Target]]:
    both = [(_reached(pair.ours), _reached(pair.plain)) for pair in found]
    return [(ours, plain) for ours, plain in both if ours is not None and plain is not None]


def _steps(found: Sequence[Pair], alpha_fraction: float) -> Measured | None:
    both = [(ours.steps, plain.steps) for ours, plain in _both(found)]
    known = [(float(ours), float(plain)) for ours, plain in both if ours and plain]
    if len(known) < len(found):  # a method may arrive without a step, and older records do not count them
        return None
    return Measured.of(
        paired.paired([a for a, _ in known], [b for _, b in known], alpha_fraction=alpha_fraction), "time"
    )


def _cost(found: Sequence[Pair], alpha_fraction: float) -> tuple[paired.Paired, Measured] | None:
    """By energy where every target of every pair was reached under the same measured sensors, else by time."""
    both = _both(found)
    sums = [_metered(target) for pair in both for target in pair]
    sensors = sums[0].sensors
    alike = all(_metered(ours).channels == _metered(plain).channels for ours, plain in both)
    if sensors and alike and all(each.sensors == sensors and each.joules > 0 for each in sums):
        ours, plain = ([_metered(pair[side]).joules for pair in both] for side in (0, 1))
        change = paired.paired(ours, plain, alpha_fraction=alpha_fraction)
        return change, Measured.of(change, "energy", " + ".join(sorted({scope for _, scope in sensors})))
    seconds = [(ours.wall_s, plain.wall_s) for ours, plain in both]
    known = [(ours, plain) for ours, plain in seconds if ours and plain]
    if len(known) < len(found):
        return None
    change = paired.paired([a for a, _ in known], [b for _, b in known], alpha_fraction=alpha_fraction)
    return change, Measured.of(change, "time")
