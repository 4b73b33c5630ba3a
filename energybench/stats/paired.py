"""How sure a saving is: paired log ratios, Student's t, one verdict.

A block trains the baseline and every method once, beside each other. d = ln(method) − ln(baseline) is formed
inside a block, so that a slow day cancels; saving = 1 − exp(mean d). Margin in logs: h = −ln(1 − margin).

    saves        the one-sided 99 % upper bound of mean d lies below −h     (on time: faster)
    costs more   the one-sided 99 % lower bound of mean d lies above +h     (on time: slower)
    no saving    the whole 95 % interval of mean d lies within ±h           (on time: no difference)
    inconclusive anything else

Quality is a verdict of its own, from a two-sided interval of the paired difference (method − baseline, turned so that
more is better) against the loss q that the suite accepts, whether or not anything is saved:

    held   its one-sided 95 % lower bound is no lower than −q
    lost   its one-sided 95 % upper bound lies below −q
    open   anything else: one block, a block without a figure, an interval that holds −q

Blocks on several devices are averaged within each device, and n counts devices: `replication.py`.

`verdict` puts both into one word: a cost that is not proven worse counts for nothing where quality is lost, and a
saving is one only where quality is held.

A run that is looked at more than once spends the chances of error: each look may use a fraction of them, its
`alpha_fraction` (`verdict/interim.py`), and every bound here is taken at its confidence less the rest: 99 % at a
fraction of a half is 99.5 %.

The margin is symmetric in logs, not in percent (1 %: below −1.00 %, above +1.01 %), so that swapping
method and baseline swaps "saves" with "costs more" exactly. Functions of numbers alone: no record, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from energybench.stats.replication import by_device

Quantity = Literal["energy", "time"]
RowVerdict = Literal[
    "saves",
    "costs more",
    "no saving",
    "faster",
    "slower",
    "no difference",
    "quality lost",
    "quality unproven",
    "inconclusive",
    "no verdict",
]
Verdict = Literal[RowVerdict, "not reached"]  # the last of the way to a target
QualityVerdict = Literal["held", "lost", "open"]

FEWEST_BLOCKS = 3  # below it there is no verdict; of devices, `replication.FEWEST_DEVICES`
CLAIM, INTERVAL, QUALITY = 0.99, 0.95, 0.95  # one-sided, two-sided, one-sided at either end
ROUNDING = 1e-12  # 0.905 − 0.9 is not 0.005 in floats

WORDS: dict[Quantity, tuple[Verdict, Verdict, Verdict]] = {
    "energy": ("saves", "costs more", "no saving"),
    "time": ("faster", "slower", "no difference"),
}


def saving_of(log_ratio: float) -> float:
    """1 − exp(d), where a cost too large for a float reads as −inf."""
    return -math.expm1(log_ratio) if log_ratio < 700 else -math.inf


def student(probability: float, df: float) -> float:
    """The quantile of Student's t; infinite where no degree of freedom is left."""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability)) if df > 0 else math.copysign(math.inf, probability - 0.5)


def adjusted_confidence(confidence: float, alpha_fraction: float) -> float:
    """The confidence of a bound that may err with only this fraction of its chance."""
    return 1 - (1 - confidence) * alpha_fraction


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of n independent samples with the standard deviation that bounds it (NaN when df is 0).

    alpha_fraction: of every chance of error: what this look may use
    counts:         of each sample, the blocks that it is the mean of, where the samples are devices; empty where
                    they are blocks' paired differences
    """

    n: int
    mean: float
    sd: float
    df: float
    alpha_fraction: float = field(default=1.0, kw_only=True)
    counts: tuple[int, ...] = field(default=(), kw_only=True)

    @property
    def blocks(self) -> int:
        """How many blocks are in it."""
        return sum(self.counts) if self.counts else self.n

    def _reach(self, confidence: float) -> float:
        if self.df <= 0:
            return math.inf
        return student(adjusted_confidence(confidence, self.alpha_fraction), self.df) * self.sd / math.sqrt(self.n)

    def lower(self, confidence: float) -> float:
        """The one-sided lower bound."""
        return self.mean - self._reach(confidence)

    def upper(self, confidence: float) -> float:
        """The one-sided upper bound."""
        return self.mean + self._reach(confidence)

    def interval(self, confidence: float = INTERVAL) -> tuple[float, float]:
        """The two-sided interval: each tail holds half of what is left."""
        tail = (1 + confidence) / 2
        return self.lower(tail), self.upper(tail)


@dataclass(frozen=True, slots=True)
class Paired(Mean):
    """The mean log ratio ln(method / baseline) of n blocks, or of n devices; `d` holds each one's."""

    d: tuple[float, ...] = ()

    @property
    def saving(self) -> float:
        return saving_of(self.mean)

    def saving_interval(self, confidence: float = INTERVAL) -> tuple[float, float]:
        low, high = self.interval(confidence)
        return saving_of(high), saving_of(low)

    @property
    def residuals(self) -> tuple[float, ...]:
        return tuple(value - self.mean for value in self.d)


@dataclass(frozen=True, slots=True)
class Spread:
    """A standard deviation and the degrees of freedom that it is worth."""

    sd: float
    df: float


def _spread(values: Sequence[float]) -> tuple[float, Spread]:
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, Spread(math.nan, 0)
    return mean, Spread(math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)), n - 1)


def _same_length(method: Sequence[float], baseline: Sequence[float]) -> None:
    if len(method) != len(baseline) or len(method) == 0:
        raise ValueError(f"pairs needed: {len(method)} and {len(baseline)} values")


def paired(
    method: Sequence[float],
    baseline: Sequence[float],
    pooled: Spread | None = None,
    alpha_fraction: float = 1.0,
    devices: Sequence[str] | None = None,
) -> Paired:
    """Compare block by block; over devices, where the blocks ran on several.

    Args:
        method, baseline: costs in the same unit, all above 0; block i is (method[i], baseline[i])
        pooled: the spread of all comparisons of the workload
        alpha_fraction: of every chance of error, what the interim analysis may use
        devices: of each block; None where one device ran them all

    Raises:
        ValueError: without a pair, with a value that is missing, or one that is not above 0

    A pooled spread lends its degrees of freedom but never a smaller sd: it is used only where it is at least
    the cell's own. Simulated at n = 3 with one cell three times as noisy as two others, plain pooling gives
    3.1 % false "saves" and 87 % coverage; this rule 1.1 % and 95 %.
    """
    _same_length(method, baseline)
    if not all(math.isfinite(value) and value > 0 for value in (*method, *baseline)):
        raise ValueError("log ratios need finite values above 0")
    ratios = [math.log(cost) - math.log(of_baseline) for cost, of_baseline in zip(method, baseline, strict=True)]
    d, counts = by_device(ratios, devices)
    mean, unpooled = _spread(d)
    lends = pooled is not None and unpooled.df > 0 and pooled.sd >= unpooled.sd and pooled.df > unpooled.df
    spread = pooled if pooled is not None and lends else unpooled
    return Paired(len(d), mean, spread.sd, spread.df, d, alpha_fraction=alpha_fraction, counts=counts)


def differences(
    method: Sequence[float],
    baseline: Sequence[float],
    higher_is_better: bool = True,
    alpha_fraction: float = 1.0,
    devices: Sequence[str] | None = None,
) -> Mean:
    """method − baseline, block by block, turned so that a positive change is an improvement; over devices, as `paired`,
    where the blocks ran on several."""
    _same_length(method, baseline)
    sign = 1 if higher_is_better else -1
    blocks = [sign * (value - of_baseline) for value, of_baseline in zip(method, baseline, strict=True)]
    samples, counts = by_device(blocks, devices)
    mean, spread = _spread(samples)
    return Mean(len(samples), mean, spread.sd, spread.df, alpha_fraction=alpha_fraction, counts=counts)


def pool(groups: Sequence[Sequence[float]], correlation: float = 0.5, level: float = 0.01) -> Spread | None:
    """One spread for all comparisons of a workload, or None where Bartlett's test tells their variances apart.

    Args:
        groups: each comparison's residuals in logs
        correlation: of two comparisons' differences
        level: of the test

    The cells of a block share its baseline, so equal variances make their differences correlate by 1/2 and
    k cells of ν degrees of freedom are worth k·ν / (1 + (k − 1)·ρ²), not k·ν.
    """
    from scipy.special import chdtrc

    spreads = [_spread(group)[1] for group in groups if len(group) > 1]
    k, total = len(spreads), math.fsum(spread.df for spread in spreads)
    if k < 2:
        return None
    variance = math.fsum(spread.df * spread.sd**2 for spread in spreads) / total
    if variance > 0:
        if any(spread.sd == 0 for spread in spreads):
            return None
        logs = math.fsum(spread.df * math.log(spread.sd**2) for spread in spreads)
        inverse = math.fsum(1 / spread.df for spread in spreads) - 1 / total
        statistic = (total * math.log(variance) - logs) / (1 + inverse / (3 * (k - 1)))
        if float(chdtrc(k - 1, max(statistic, 0.0))) < level:
            return None
    return Spread(math.sqrt(variance), total / (1 + (k - 1) * correlation**2))


def cost_verdict(change: Paired, margin: float, quantity: Quantity) -> Verdict:
    """The word for the cost alone, by the table above, as if quality were held.

    Args:
        change: the paired log ratios of costs
        margin: of the saving, as a fraction: 0.01 for 1 %
        quantity: what the costs are of
    """
    if change.n < FEWEST_BLOCKS:
        return "no verdict"
    better, worse, same = WORDS[quantity]
    h = -math.log1p(-margin)
    if change.upper(CLAIM) < -h:
        return better
    if change.lower(CLAIM) > h:
        return worse
    low, high = change.interval(INTERVAL)
    return same if -h < low and high < h else "inconclusive"


def quality_verdict(quality: Mean | None, quality_margin: float | None) -> QualityVerdict:
    """The word for quality alone, whatever the cost.

    Args:
        quality: `differences` of all blocks; None where a block has no figure, which leaves everything open
        quality_margin: the loss that the suite accepts, in the metric's own unit, at least 0
    """
    if quality is None or quality_margin is None or quality.n < FEWEST_BLOCKS:
        return "open"
    if quality.lower(QUALITY) >= -quality_margin - ROUNDING:
        return "held"
    return "lost" if quality.upper(QUALITY) < -quality_margin - ROUNDING else "open"


def in_one_word(of_cost: Verdict, of_quality: QualityVerdict) -> Verdict:
    """Cost and quality together: what was lost saves nothing, and a saving needs quality that is held."""
    if of_cost in ("no verdict", *(worse for _, worse, _ in WORDS.values())):
        return of_cost
    if of_quality == "lost":
        return "quality lost"
    saves = of_cost in [better for better, _, _ in WORDS.values()]
    return "quality unproven" if saves and of_quality == "open" else of_cost


def verdict(
    change: Paired, margin: float, quantity: Quantity, quality: Mean | None = None, quality_margin: float | None = None
) -> Verdict:
    """The one word for a comparison, by the tables above. Arguments: those of `cost_verdict` and `quality_verdict`."""
    return in_one_word(cost_verdict(change, margin, quantity), quality_verdict(quality, quality_margin))


def verdict_at_equal_quality(change: Paired, margin: float, quantity: Quantity) -> Verdict:
    """The same for costs of one and the same result, such as a target quality: there is none to lose."""
    return cost_verdict(change, margin, quantity)


@dataclass(frozen=True, slots=True)
class Decomposition:
    """ln(ratio) of each factor, adding up to `total`: E = FLOP × (s / FLOP) × W; on time without W."""

    flop: float
    seconds_per_flop: float
    watts: float | None

    @property
    def total(self) -> float:
        return math.fsum((self.flop, self.seconds_per_flop, self.watts or 0.0))


def decompose(flop_ratio: float, seconds_ratio: float, joules_ratio: float | None = None) -> Decomposition:
    """Where a ratio method / baseline came from. An identity, not a model."""
    flop, seconds = math.log(flop_ratio), math.log(seconds_ratio)
    watts = None if joules_ratio is None else math.log(joules_ratio) - seconds
    return Decomposition(flop, seconds - flop, watts)


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean log; NaN of nothing."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan
