"""The generalized Gaussian, density β / (2σΓ(1/β)) · exp(−(|x−μ|/σ)^β): normal at β = 2, Laplace at β = 1.

`scipy.stats.gennorm` is the same family (β, loc μ, scale σ); its fit takes seconds per million elements. This one looks
at each element a few times only: it counts them in bins 1/128 to 1/256 of their distance wide, with the exact mean of
each bin, and maximises the likelihood of the bins, which is that of the elements to about 1e-8 an element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import digamma, gammaln, kolmogorov
from torch import Tensor

from energybench.algorithms.side_by_side import one_thread
from energybench.algorithms.ziggurat import fill

# Many exact zeros make the likelihood unbounded as β → 0, a uniform sample as β → ∞.
SHAPE_MIN, SHAPE_MAX = 0.05, 20.0
LOCATIONS = ("free", "median", "mean", "zero")
EXACT_BELOW = 4096  # elements: so few are not worth binning
CHUNK = 1 << 17  # elements looked at at a time: what fits a core's cache
CHUNK_ELSEWHERE = 1 << 23  # on a card; 2²³ are the most whose number and sum one integer of 64 bits can hold

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GGD:
    """location μ, scale σ > 0, shape β > 0."""

    location: float
    scale: float
    shape: float

    @property
    def variance(self) -> float:
        """σ²·Γ(3/β)/Γ(1/β), in the square of the unit of x."""
        return self.scale**2 * math.exp(math.lgamma(3 / self.shape) - math.lgamma(1 / self.shape))

    def cdf(self, x: Tensor) -> Tensor:
        """P(X ≤ x) = ½ + ½·sign(x − μ)·P(1/β, |(x − μ)/σ|^β), float64, on x's device; P is the regularised incomplete
        gamma function."""
        z = (x.double() - self.location) / self.scale
        within = torch.special.gammainc(torch.full_like(z, 1 / self.shape), z.abs() ** self.shape)
        return (1 + z.sign() * within) / 2

    @one_thread()
    def sample(self, n: int | tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """float32 draws on the generator's device, n of them or of size n: exact but for a grain of 2⁻²³ of what 256th
        of the density they lie in (ziggurat.py). Without a generator: torch's own on the CPU.
        """
        size = torch.Size([n] if isinstance(n, int) else n)
        draws = torch.empty(size.numel(), device=torch.device("cpu") if generator is None else generator.device)
        fill(self.shape, draws, generator)
        return draws.mul_(self.scale).add_(self.location).view(size)


@one_thread()
def fit(x: Tensor, location: str = "free") -> GGD:
    """Maximum likelihood in μ, σ and 0.05 ≤ β ≤ 20, or in σ and β about the sample's median, its mean or zero.

    x: any shape, type and device. With z = |x − μ|: σ^β = (β/n)·Σz^β, and β is a zero of the profile score
    1/β + (ψ(1/β) + log(β·Σz^β / n))/β² − Σ(z^β·log z) / (β·Σz^β).

    Raises ValueError for fewer than 2 elements, for NaN or infinity, and for elements that are all equal (about zero:
    all zero). Every other sample has a fit, at an end of β's range where no shape inside it is likelier:
    - uniform: β = 20, since its likelihood grows up to β → ∞;
    - many equal elements at μ (exact zeros, say): β = 0.05 or near it, since it grows without bound as β → 0;
    - fewer than about 20 elements, location free: the same on one of them, since any element can be μ;
    - Cauchy and other heavy tails: β of about a half or less; the draws have every moment, unlike the sample.
    An odd count is fitted about its median without that element, which at distance 0 of itself would pull β to 0.
    """
    if location not in LOCATIONS:
        raise ValueError(f"location is free, median, mean or zero, not '{location}'")
    values = x.detach().flatten()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values.double()
    if values.numel() < 2:
        raise ValueError("a distribution needs at least 2 elements")
    low, high = (end.item() for end in values.aminmax())
    if not math.isfinite(high - low):
        raise ValueError("the elements are not all finite, or span more than a float64 can hold")
    if low == high and (location != "zero" or low == 0):
        raise ValueError("the elements are all equal")
    if high - low > 1e38:  # a difference of two float32 may be none
        values = values.double()
    if location == "free":
        return _free(values)
    if location == "median":
        return _about(values, _median(values), without_one=values.numel() % 2 == 1)
    return _about(values, values.double().mean().item() if location == "mean" else 0.0)


def _about(values: Tensor, centre: float, *, without_one: bool = False) -> GGD:
    """The likeliest scale and shape about a centre; `without_one` leaves one element at the centre out."""
    sample = _Sample.of(values, centre, signed=False)
    if without_one and values.numel() > 2:
        sample.weights[np.flatnonzero(sample.values == 0)[0]] -= 1
    profile = _Profile(np.abs(sample.values), sample.weights)
    shape = profile.best_shape()
    scale = sample.unit * profile.scale(shape)
    if scale == 0:
        raise ValueError("the elements lie closer together than a float64 can hold")
    return GGD(centre, scale, shape)


def _median(values: Tensor) -> float:
    """The middle element, or the mean of the two middle ones."""
    ranks = [(values.numel() - 1) // 2, values.numel() // 2]
    if values.numel() > 20_000:
        # Every k-th element says between which two to look; if it misleads, everywhere.
        some = values[:: max(8, values.numel() // 10_000)].sort().values
        low, high = some[len(some) * 47 // 100], some[len(some) * 53 // 100]
        first, inside = 0, list[Tensor]()
        for chunk in values.split(CHUNK if values.device.type == "cpu" else values.numel()):
            below = chunk < low
            first += int(below.count_nonzero())
            inside.append(chunk[(chunk <= high).logical_xor_(below)])
        if first <= ranks[0] and ranks[1] < first + sum(map(len, inside)):
            values, ranks = torch.cat(inside), [rank - first for rank in ranks]
    if values.device.type == "cpu":  # numpy selects sixteen times as fast
        middle = np.partition(values.numpy(), ranks)[ranks]
        return float(middle[0]) / 2 + float(middle[1]) / 2
    lower, upper = (values.kthvalue(rank + 1).values.item() for rank in ranks)
    return lower / 2 + upper / 2


def goodness(x: Tensor, ggd: GGD) -> tuple[float, float]:
    """The Kolmogorov–Smirnov statistic of a sample against a distribution, and its p-value.

    By Stephens' (1970) finite-sample form of the limit law. A distribution fitted to the same sample passes more often
    than 95 % at the 5 % level; at a million elements the smallest misfit fails, so report the count with it.
    """
    count = x.numel()
    expected = ggd.cdf(x.flatten().sort().values)
    steps = torch.arange(count + 1, dtype=torch.float64, device=x.device) / count
    statistic = torch.maximum((steps[1:] - expected).max(), (expected - steps[:-1]).max()).item()
    root = math.sqrt(count)
    return statistic, float(kolmogorov((root + 0.12 + 0.11 / root) * statistic))


# ── the sample, as few points as describe it ──────────────────────────────────────────────────────────────────────


@dataclass
class _Sample:
    """`weights` elements at each of `values`, which are differences from a centre in multiples of `unit`."""

    values: Array
    weights: Array
    unit: float

    @classmethod
    def of(cls, elements: Tensor, centre: float, *, signed: bool) -> _Sample:
        """Few elements as they are, many in bins: the upper bits of their difference as a float32, signed or not."""
        low, high = (end.item() for end in elements.aminmax())
        # A power of two, so that division is exact; not so small that its inverse overflows.
        smallest = -120 if elements.dtype == torch.float32 else -1000
        unit = 2.0 ** max(math.frexp(max(high - centre, centre - low))[1] - 1, smallest)
        if elements.numel() <= EXACT_BELOW:
            values = (elements.double() - centre).cpu().numpy() / unit
            return cls(values, np.ones_like(values), unit)
        # In float32 in two steps, which is as exact as in float64 for elements near the centre.
        near = torch.tensor(centre, dtype=elements.dtype).item()
        counts, rest = torch.zeros(2, 1 << 16, dtype=torch.int64, device=elements.device)
        for chunk in elements.split(CHUNK if elements.device.type == "cpu" else CHUNK_ELSEWHERE):
            part = chunk - near
            if near != centre:
                part -= centre - near
            bits = part.mul_(1 / unit).float().view(torch.int32)
            low_bits = (bits & 0xFFFF).long()
            keys = bits.bitwise_right_shift_(16).bitwise_and_(0xFFFF if signed else 0x7FFF)
            # How many there are and what the key leaves out, as one sum of integers: exact, and the same in any order,
            # unlike a sum of floats.
            both = torch.zeros_like(counts).index_add_(0, keys, low_bits.bitwise_or_(1 << 40))
            counts += both >> 40
            rest += both.bitwise_and_((1 << 40) - 1)
        used = counts.nonzero().squeeze(1)
        key, weight, beyond = torch.stack([used, counts[used], rest[used]]).cpu().numpy()
        beyond[(key & 0x7FFF) == 0] = 0  # nearer than a float32 of the sample's span can say: at the centre
        edges = (key << 16).astype(np.uint32)
        lower = edges.view(np.float32).astype(np.float64)
        upper = (edges + np.uint32(1 << 16)).view(np.float32).astype(np.float64)
        return cls(lower + (upper - lower) * (beyond / weight / (1 << 16)), weight.astype(np.float64), unit)


class _Profile:
    """The likelihood as a function of β alone, σ being at its best for each β. Takes distances and their weights."""

    def __init__(self, distances: Array, weights: Array) -> None:
        positive = (distances > 0) & (weights > 0)  # where z = 0, z^β is 0 too
        self.log_distance = np.log(distances[positive])
        weights = weights[positive] / weights.sum()
        self.weights = torch.from_numpy(np.stack([weights, weights * self.log_distance], 1))

    def moments(self, shapes: Array) -> tuple[Array, Array]:
        """Means of z^β and of z^β·log z at each β."""
        powers = np.exp(np.multiply.outer(shapes, self.log_distance))
        means = _product(powers, self.weights)  # shape (..., 2)
        return means[..., 0], means[..., 1]

    def scale(self, shape: float) -> float:
        return float((shape * self.moments(np.array(shape))[0]) ** (1 / shape))

    def likelihood(self, shape: float) -> float:
        return float(_likelihood(shape, self.moments(np.array(shape))[0]))

    def score(self, log_shapes: Any) -> Any:
        """dℓ/dβ at each log β."""
        shapes = np.exp(log_shapes)
        return _score(shapes, *self.moments(shapes))

    def best_shape(self) -> float:
        """The most likely β of the allowed range; the likelihood may have several peaks, one of them at an end."""
        places = np.linspace(math.log(SHAPE_MIN), math.log(SHAPE_MAX), 13)
        scores = self.score(places)
        peaks = [SHAPE_MIN] * int(scores[0] < 0) + [SHAPE_MAX] * int(scores[-1] > 0)
        for i in range(12):
            if scores[i] >= 0 > scores[i + 1]:
                peaks.append(math.exp(brentq(self.score, places[i], places[i + 1], xtol=1e-9)))
        best = peaks[0] if len(peaks) == 1 else max(peaks or np.exp(places), key=self.likelihood)
        return min(max(float(best), SHAPE_MIN), SHAPE_MAX)


def _product(one: Array, other: Tensor) -> Array:
    """By torch: where floating-point operations are counted, these are, and numpy would start threads for them."""
    return np.asarray((torch.from_numpy(one) @ other).numpy())


def _score(shape: Any, mean_power: Any, mean_power_log: Any) -> Any:
    """dℓ/dβ at the best scale."""
    inner = (digamma(1 / shape) + np.log(shape * mean_power)) / shape**2
    return 1 / shape + inner - mean_power_log / (shape * mean_power)


def _likelihood(shape: Any, mean_power: Any) -> Any:
    """Mean log-likelihood at the best scale, σ^β = β·mean(z^β)."""
    log_scale = np.log(shape * mean_power) / shape
    return np.log(shape / 2) - log_scale - gammaln(1 / shape) - 1 / shape


# ── the location too ──────────────────────────────────────────────────────────────────────────────────────────────


def _free(values: Tensor) -> GGD:
    """About the likeliest centre of those that a search from a grid of centres and shapes finds.

    Where β > 1 the likelihood is smooth in μ, with one peak for each β; where β ≤ 1 it has a peak at every element.
    """
    centre, count = _median(values), values.numel()
    search = _Search(sample := _Sample.of(values, centre, signed=True))
    place, shape = search.best(zero=-centre / sample.unit)
    for _ in range(2):
        # Bins are fine near their centre and coarse elsewhere, so look again from where the peak is, unless it is
        # smooth and near, or so near that elements around it are told apart.
        near = search.spread * (0.02 if shape > 1 else 64 / count)
        if count <= EXACT_BELOW or abs(place) < near:
            break
        centre += place * sample.unit
        search = _Search(sample := _Sample.of(values, centre, signed=True))
        place, shape = search.climb(0.0, shape)
    location = centre + place * sample.unit
    if shape <= 1:
        location = values[(values - location).abs_().argmin()].item()
    return _about(values, location)


class _Search:
    """The likelihood as a function of μ and β; places are in the sample's unit, from its centre."""

    def __init__(self, sample: _Sample) -> None:
        self.values, same = np.unique(sample.values, return_inverse=True)
        self.count = sample.weights.sum()
        self.weights = np.bincount(same, sample.weights) / self.count
        self.mean = float((self.values * self.weights).sum())
        self.spread = float((np.abs(self.values) * self.weights).sum())

    def best(self, zero: float) -> tuple[float, float]:
        """(μ, β) of the highest peak: climbed from the best of a grid on either side of β = 1, seen by 256 quantiles;
        zero is the place where elements are 0."""
        ranks = np.cumsum(self.weights)
        seen = self.values[np.searchsorted(ranks, (np.arange(256) + 0.5) / 256).clip(max=len(ranks) - 1)]
        heaviest = self.values[self.weights.argmax()]
        places = np.array([*seen[8::8], 0.0, zero, self.mean, heaviest])
        with np.errstate(divide="ignore"):
            log_distance = np.log(np.abs(seen - places[:, None]))
        starts = []
        for shapes in (np.geomspace(1.2, SHAPE_MAX, 5), np.geomspace(SHAPE_MIN, 1, 5)):
            table = np.array([_likelihood(b, np.exp(b * log_distance).mean(1)) for b in shapes])
            place = float(places[table.max(0).argmax()])
            shape = self.best_shape(place)
            starts.append((self.likelihood(place, shape), place, shape))
        # What a climb can still gain is of the order of 1/n an element, and of the grid's step.
        worth = max(starts)[0] - 0.02 - 2 / self.count
        ends = [self.climb(place, shape) for height, place, shape in starts if height >= worth]
        return max(ends, key=lambda end: self.likelihood(*end))

    def likelihood(self, place: float, shape: float) -> float:
        return float(_likelihood(shape, self.mean_powers(np.array([place]), shape))[0])

    def mean_powers(self, places: Array, shape: float) -> Array:
        """Mean of |x − μ|^β about each place."""
        with np.errstate(divide="ignore"):
            log_distance = np.log(np.abs(self.values - places[:, None]))
        return _product(np.exp(shape * log_distance), torch.from_numpy(self.weights))

    def best_shape(self, place: float) -> float:
        return _Profile(np.abs(self.values - place), self.weights).best_shape()

    def climb(self, place: float, shape: float) -> tuple[float, float]:
        """To the peak from there; both ways where β is near 1."""
        ways = [self.climb_smooth] * (shape > 0.8) + [self.climb_cusps] * (shape < 1.25)
        return max((way(place, shape) for way in ways), key=lambda end: self.likelihood(*end))

    def climb_smooth(self, place: float, shape: float) -> tuple[float, float]:
        """By the gradient in μ and log β, with 1 ≤ β ≤ 20, beyond which it is flat."""
        # Not L-BFGS-B, though it takes bounds: its BLAS starts threads for two numbers.
        start = (place / self.spread, math.log(max(shape, 1.01)))
        optimum = minimize(self.falling, start, jac=True, method="BFGS", options={"gtol": 1e-8})
        return float(optimum.x[0]) * self.spread, min(max(math.exp(optimum.x[1]), 1.0), SHAPE_MAX)

    def falling(self, at: Array) -> tuple[float, Array]:
        """−ℓ at (μ in units of the spread, log β) and its gradient."""
        shape = min(max(math.exp(min(at[1], 9.0)), 1.0), SHAPE_MAX)
        offset = self.values - at[0] * self.spread
        off_centre = offset != 0
        offset, weights = offset[off_centre], self.weights[off_centre]
        log_distance = np.log(np.abs(offset))
        powers = np.exp(shape * log_distance) * weights
        mean = powers.sum()
        along_shape = shape * _score(shape, mean, (powers * log_distance).sum())
        along_place = self.spread * (powers / offset).sum() / mean
        inside = 1 < shape < SHAPE_MAX
        return -float(_likelihood(shape, mean)), -np.array([along_place, along_shape if inside else 0.0])

    def climb_cusps(self, place: float, shape: float) -> tuple[float, float]:
        """The element with the smallest mean power around, and its likeliest shape, in turn.

        Around: 64 elements to both sides, at first 1/16 of the sample; every k-th of them is tried, then those around
        the best, closer and closer.
        """
        ranks, last = np.cumsum(self.weights), len(self.values) - 1
        for wide in (1 / 16, 0, 0, 0):
            start = min(int(np.searchsorted(self.values, place)), last)
            low, high = np.searchsorted(ranks, [ranks[start] - wide, ranks[start] + wide]).tolist()
            low, high = max(0, min(low, start - 64)), min(last, max(high, start + 64))
            while True:
                among = np.unique(np.linspace(low, high, 129 if last < EXACT_BELOW else 33).astype(int))
                middle = int(among[self.mean_powers(self.values[among], shape).argmin()])
                step = math.ceil((high - low) / (len(among) - 1))
                if step <= 1:
                    break
                low, high = max(0, middle - step), min(last, middle + step)
            before, place = place, float(self.values[middle])
            shape = self.best_shape(place)
            if place == before:
                break
        return place, shape
