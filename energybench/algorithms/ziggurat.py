"""Draws with density ∝ exp(−|x|^β), by the ziggurat of Marsaglia and Tsang (2000), many at a time.

Strips of equal area v cover the density: the i-th lies between the heights f(x_{i−1}) and f(x_i) and is x_{i−1} wide;
the lowest holds the tail beyond its x too. Of one random integer 8 bits draw a strip and 23 a place in it, to either
side. A place within the next strip's width lies below the density, as nearly every one does, so a draw is a look into
two tables. The others are held against the density. The law is exact but for the grain of 2⁻²³ of a strip's width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import gammaincc, gammainccinv
from torch import Tensor

STRIPS = 256
SIDE = 1 << 22  # places of a strip, to each side
FEW = 4096  # draws that are not worth tables
CHUNK = 65_536  # draws at a time: what fits a core's cache


@dataclass(frozen=True, slots=True)
class Ziggurat:
    """Tables of one shape β, the lowest strip first; a strip that there is not is 0 wide.

    widths: (256,) float32, of a place
    inner:  (256,) float32, places within the next strip's width
    low, high: (256,) float64, the heights between which it lies
    outside: of all draws, the share beyond the lowest strip's x
    """

    shape: float
    widths: Tensor
    inner: Tensor
    low: Tensor
    high: Tensor
    outside: float

    def draw(self, out: Tensor, generator: torch.Generator | None) -> None:
        """Fill `out` (n,), float32 on the CPU."""
        bits, strips = (torch.empty(min(CHUNK, len(out)), dtype=torch.int32) for _ in range(2))
        places, looked_up = (torch.empty(min(CHUNK, len(out))) for _ in range(2))
        unsure, of_strip = list[Tensor](), list[Tensor]()
        for start in range(0, len(out), CHUNK):
            count = min(CHUNK, len(out) - start)
            bit, strip, place, table = bits[:count], strips[:count], places[:count], looked_up[:count]
            torch.bitwise_and(bit.random_(generator=generator), STRIPS - 1, out=strip)
            place.copy_(bit.bitwise_right_shift_(8)).add_(0.5 - SIDE)  # exact: 24 bits
            torch.mul(place, torch.index_select(self.widths, 0, strip, out=table), out=out[start : start + count])
            beyond = place.abs_() >= torch.index_select(self.inner, 0, strip, out=table)
            where = torch.from_numpy(np.flatnonzero(beyond.numpy()))  # a tenth of the time that torch's takes
            unsure.append(where + start)
            of_strip.append(strip[where])
        if len(positions := torch.cat(unsure)):
            out[positions] = self._settled(out[positions], torch.cat(of_strip), generator)

    def _settled(self, x: Tensor, strips: Tensor, generator: torch.Generator | None) -> Tensor:
        """Places beyond the next strip's width: left where they lie below the density, moved into the tail, or drawn
        anew. Both (m,)."""
        uniform = torch.rand(len(x), dtype=torch.float64, generator=generator)
        low, high = self.low[strips], self.high[strips]
        below = low + uniform * (high - low) < torch.exp(-(x.double().abs() ** self.shape))
        lowest = (strips == 0).nonzero().squeeze(1)  # beyond its x: all of them stand for the tail
        if len(lowest):
            inverse = 1 / self.shape
            beyond = (1 - uniform[lowest].numpy()) * self.outside
            x[lowest] = torch.from_numpy(gammainccinv(inverse, beyond) ** inverse).float().copysign(x[lowest])
            below[lowest] = True
        again = (~below).nonzero().squeeze(1)
        if len(again):
            fresh = torch.empty(len(again))
            fill(self.shape, fresh, generator)
            x[again] = fresh
        return x


@lru_cache(maxsize=512)
def ziggurat(shape: float) -> Ziggurat:
    """The tables of a shape β, of 0.05 or more."""
    total = math.gamma(1 + 1 / shape)  # ∫ exp(−x^β) over x > 0
    # A little more than that of the strips which end at the top: (1 + 2.8/256) times the mean at β = 1.
    area = total / STRIPS * (1 + 3 * shape**-0.6 / STRIPS)
    while (edges := _edges(shape, total, area)) is None:
        area *= 1 + 1 / STRIPS
    return _tables(shape, area, edges)


def fill(shape: float, out: Tensor, generator: torch.Generator | None) -> None:
    """Signed draws of a shape β ≥ 0.05 into `out` (n,), float32 on the generator's device.

    Few of them, or on a card: U·G^(1/β), U uniform in (−1, 1), G ~ Gamma(1 + 1/β, 1). It has the law of ±G^(1/β) with
    G ~ Gamma(1/β, 1), which underflows for a large β and takes longer.
    """
    if len(out) >= FEW and out.device.type == "cpu":
        ziggurat(shape).draw(out, generator)
        return
    gamma = torch._standard_gamma(torch.full_like(out, 1 + 1 / shape), generator)
    out.uniform_(-1, 1, generator=generator).mul_(gamma.pow_(1 / shape))


def _edges(shape: float, total: float, area: float) -> list[float] | None:
    """x_0 > x_1 > …, of which the last strip reaches the top; None where that takes more strips than there are."""
    inverse = 1 / shape

    def excess(log_x: float) -> float:
        power = math.exp(shape * log_x)
        return math.exp(log_x - power) + total * float(gammaincc(inverse, power)) - area

    # Beyond x = 1 the lowest strip's area falls with x, from more than 1/e.
    edge = math.exp(brentq(excess, 0.0, inverse * math.log(700)))
    edges, height = [edge], math.exp(-(edge**shape))
    while len(edges) < STRIPS:
        height += area / edge
        if height >= 1:
            return edges
        edge = (-math.log(height)) ** inverse
        edges.append(edge)
    return None


def _tables(shape: float, area: float, edges: list[float]) -> Ziggurat:
    low = [0.0, *(math.exp(-(edge**shape)) for edge in edges)]
    across = [area / low[1], *edges]  # as wide as if the tail were a part of the lowest rectangle
    inner = [*edges, 0.0]
    high = [low[1], *(floor + area / width for floor, width in zip(low[1:], edges, strict=True))]
    none = [0.0] * (STRIPS - len(across))
    shares = [SIDE * within / width for within, width in zip(inner, across, strict=True)]
    return Ziggurat(
        shape,
        widths=torch.tensor([width / SIDE for width in across] + none),
        inner=torch.tensor(shares + none),
        low=torch.tensor(low + [2.0] * len(none), dtype=torch.float64),  # above every density: drawn anew
        high=torch.tensor(high + [2.0] * len(none), dtype=torch.float64),
        outside=float(gammaincc(1 / shape, edges[0] ** shape)),
    )
