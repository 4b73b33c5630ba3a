"""The limit of a backward that gathers, multiplies less and scatters, on the roofline of this machine.

Each part takes as long as its FLOPs at the speed of torch's best product, or as its bytes at that of a copy of memory,
whichever is longer; parts follow one another. Bytes are as a kernel moves them that reads each operand once and writes
each result once, in float32, and nothing is found in a cache: where it is, more than the limit can be reached.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from energybench.flops.balance import balance

BYTES = 4


@dataclass(frozen=True)
class Convolution:
    """spatial: the output's positions in the batch; positions: of the kernel; inputs: positions of x for each of y"""

    spatial: int
    into: int
    out: int
    positions: int
    inputs: int = 1

    @property
    def flop(self) -> float:
        """Of dX, and of dW."""
        return 2.0 * self.spatial * self.into * self.out * self.positions

    @property
    def x(self) -> float:
        """Elements, as of y and w."""
        return float(self.spatial * self.inputs * self.into)

    @property
    def y(self) -> float:
        return float(self.spatial * self.out)

    @property
    def w(self) -> float:
        return float(self.into * self.out * self.positions)


Part = tuple[float, float]  # FLOPs, elements moved


def dense(layer: Convolution) -> list[Part]:
    """dX and dW."""
    return [(layer.flop, layer.y + layer.w + layer.x), (layer.flop, layer.x + layer.y + layer.w)]


def channel_sparse(layer: Convolution, kept: int) -> list[Part]:
    """Choosing reads dY, gathering copies the kept channels, both products are of those alone, and dW is spread out."""
    less = replace(layer, out=kept)
    choosing, gathering, spreading = (layer.y, layer.y), (0.0, 2 * less.y), (0.0, layer.w + 2 * less.w)
    return [choosing, gathering, *dense(less), spreading]


def resting(layer: Convolution, live: int) -> list[Part]:
    """dX is whole; the live rows of dY are gathered, and dW is of those alone."""
    less = replace(layer, out=live)
    return [dense(layer)[0], (0.0, 2 * less.y), dense(less)[1], (0.0, layer.w + 2 * less.w)]


def time_of(parts: list[Part], flop_per_byte: float) -> float:
    """In the time of one FLOP."""
    return sum(max(flop, BYTES * elements * flop_per_byte) for flop, elements in parts)


def machine_balance(measuring: bool) -> float:
    """FLOP/B with as many threads as torch has now; a usual one where nothing is measured."""
    if not measuring:
        return 10.0
    balance.cache_clear()
    return balance(torch.device("cpu"), "fp32")
