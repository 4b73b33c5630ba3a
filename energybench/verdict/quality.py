"""Quality against plain training: which metric decides, what is known of it, and its own verdict.

A metric is what its task or suite declared (`RunFile.metrics`). Records of before schema 4 declare none: of those alone
the direction is told by the metric's name, as it was when they were made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from energybench.common import metrics
from energybench.common.metrics import Metric
from energybench.records.record import RunFile, Trial
from energybench.stats import paired
from energybench.verdict import wording
from energybench.verdict.accept import Accept
from energybench.verdict.devices import Pooling
from energybench.verdict.figures import Quality, QualityWord, Row
from energybench.verdict.pairing import Pair, devices_of

DECLARED_SINCE = 4  # schema
LOWER_IS_BETTER = re.compile(  # anywhere in a name; or as a word of it
    r"loss(?!less)|error|perplexity|entropy|mae|mse|fid(?!e)|bits_per"
    r"|(?<![a-z])(ppl|nll|wer|cer|eer|bpb|bpc|bpd|kid|lpips|mape)(?![a-z])"
)


@dataclass(frozen=True, slots=True)
class Known:
    """A metric as a report takes it. `guessed`: by its name, in records that declare none."""

    metric: Metric
    guessed: bool = False


def known(run: RunFile, workload: str, name: str) -> Known | None:
    """What is known of a metric of a workload; None where nobody said which way is better."""
    declared = run.metrics.get(workload, {}).get(name)
    if declared is not None:
        return Known(declared)
    if run.schema_ < DECLARED_SINCE:
        lower = LOWER_IS_BETTER.search(name.lower()) is not None
        return Known(Metric(better="lower" if lower else "higher"), guessed=True)
    by_name = metrics.known(name)
    return None if by_name is None else Known(by_name)


def main_metric(trials: Iterable[Trial]) -> str | None:
    """Accuracy where it was recorded, else the first metric by name."""
    names = sorted({name for trial in trials for name in trial.quality})
    return "accuracy" if "accuracy" in names else next(iter(names), None)


def compare(
    run: RunFile,
    workload: str,
    pairs: Sequence[Pair],
    accept: Accept,
    alpha_fraction: float,
    pooling: Pooling | None = None,
) -> tuple[Quality | None, paired.Mean | None]:
    """What is reported of the metric that decides, and the differences that a verdict may use; None where they prove
    nothing: a block without a figure, a figure out of range, a metric that nobody declared."""
    name = accept.metric or main_metric(pair.baseline for pair in pairs)
    if name is None:
        return None, None
    return _compare(run, workload, pairs, name, accept.loses_at_most, alpha_fraction, pooling)


def further(
    run: RunFile,
    workload: str,
    pairs: Sequence[Pair],
    accept: Accept,
    alpha_fraction: float,
    pooling: Pooling | None = None,
) -> tuple[Quality, ...]:
    """The metrics that are kept beside it and decide nothing."""
    found = (_compare(run, workload, pairs, name, None, alpha_fraction, pooling)[0] for name in accept.also)
    return tuple(quality for quality in found if quality is not None)


def _compare(
    run: RunFile,
    workload: str,
    pairs: Sequence[Pair],
    name: str,
    loses_at_most: float | None,
    alpha_fraction: float,
    pooling: Pooling | None,
) -> tuple[Quality | None, paired.Mean | None]:
    judged, recorded = _values(pairs, name)
    if not recorded:
        return None, None
    of = known(run, workload, name)
    metric = of.metric if of else Metric(better="higher")
    of_method, of_baseline = ([metric.fraction(value[side]) for value in recorded] for side in (0, 1))
    devices = devices_of(judged, pooling)
    difference = paired.differences(of_method, of_baseline, metric.better == "higher", alpha_fraction, devices)
    fraction = metric.in_points
    if of is not None and of.guessed:
        fraction = metric.better == "higher" and all(0 <= value <= 1 for value in (*of_method, *of_baseline))
    outside = next((value for both in recorded for value in both if metric.outside(value)), None)
    if outside is not None:
        fraction = False  # of what it is, nobody knows
    doubt = f"nobody declared which way {name} is better" if of is None else _doubt(name, metric, outside)
    if not doubt and len(recorded) < len(pairs):
        doubt = f"no {name} in {wording.blocks(len(pairs) - len(recorded))}"
    bounded, sign = difference.df > 0, metric.sign
    quality = Quality(
        name,
        baseline=math.fsum(of_baseline) / len(recorded),
        method=math.fsum(of_method) / len(recorded),
        change=sign * difference.mean,
        bound=sign * difference.lower(paired.QUALITY) if bounded else None,
        limit=None if loses_at_most is None else -sign * loses_at_most,
        fraction=fraction,
        sd=difference.sd if bounded else None,
        n=difference.n,
        best=sign * difference.upper(paired.QUALITY) if bounded else None,
        better=metric.better,
        unit=metric.unit,
        doubt=doubt,
    )
    return quality, None if doubt else difference


def _doubt(name: str, metric: Metric, outside: float | None) -> str:
    """Why a figure can be none of this metric; empty where it can."""
    if outside is None:
        return ""
    hint = '; where it is a percentage, scale = "percent"' if metric.scale == "fraction" and outside > 1 else ""
    return f"{name} {outside:.4g} lies out of its range, {metric.range_in_words}{hint}"


def _values(pairs: Sequence[Pair], name: str) -> tuple[list[Pair], list[tuple[float, float]]]:
    """The pairs of which both sides are known and finite, and (method, baseline) of each."""
    both = [(pair, pair.method.quality.get(name), pair.baseline.quality.get(name)) for pair in pairs]
    known = [
        (pair, (a, b))
        for pair, a, b in both
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    ]
    return [pair for pair, _ in known], [values for _, values in known]


def word(row: Row, difference: paired.Mean | None, quality_margin: float | None, open_: bool) -> QualityWord:
    """Held, lost or open, whatever the cost; not judged where the suite says so; no verdict where none may be.

    Args:
        row: with its flags and how its trials ended
        difference: of `compare`
        quality_margin: as the suite accepts
        open_: whether a look was reached

    What diverged has no quality, whatever the other blocks reached; what ran past its limit leaves it open where the
    others would hold it.
    """
    if row.unjudged:
        return "not judged"
    if not open_ or row.quality_forbidden:
        return "no verdict"
    if row.diverged:
        return "lost"
    found = paired.quality_verdict(difference, quality_margin)
    return "open" if found == "held" and row.timed_out else found
