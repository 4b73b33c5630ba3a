"""Draw samples in proportion to their importance: B of N by O(B log N) work, on the training device.

    top      ▇▅▂▃          one row of at most 4,096 sums
    middle   ▇▂▅ ▁▃▇ …     each entry is the sum of a row below
    leaves   ▁▅▇▂ ▂▁▇▃ …   q_i, in rows of 32

A draw walks down from the top: in each row the first entry whose cumulative sum exceeds what is left of u·Σq. A change
writes its leaves and sums their rows again, so that no rounding ever adds up, and a repeated index is no special case.
Everything is in double precision: 53 bits tell the samples of any set apart. torch.multinomial sums all N importances
at every call and ends at 2²⁴ of them. Nothing here makes the host wait for the device but `check`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun

ROW_BITS = 5
ROW = 1 << ROW_BITS
# Each level costs a dozen calls whatever its width, so few are best: three hold 4.2 million samples, four 134 million.
# Timed at 1.3 million with B = 64 and 256 on a CPU, rows of 16 and 64 and tops of 1,024 and 8,192 are no faster.
TOP = 4096


class Sampler:
    """importance: (N,), each finite and ≥ 0; what is not is refused, taken as 0 here and reported by `check`."""

    def __init__(self, importance: Tensor) -> None:
        if importance.dim() != 1 or not len(importance):
            raise ValueError(f"importances have shape (N,) with N > 0, not {tuple(importance.shape)}")
        self.refused = torch.zeros((), dtype=torch.long, device=importance.device)
        self._zero = torch.zeros((), dtype=torch.float64, device=importance.device)
        self._below = torch.full((), -torch.inf, dtype=torch.float64, device=importance.device)
        self.reset(importance)

    def __len__(self) -> int:
        return self._count

    @property
    def importance(self) -> Tensor:
        """(N,), double precision; changes with the sampler."""
        return self._levels[0].view(-1)[: self._count]

    def reset(self, importance: Tensor) -> None:
        """New importances for all, and every sum: O(N)."""
        importance = importance.double()
        self._count = len(importance)
        sums = self._accepted(importance, torch.zeros_like(importance))
        self._levels = []
        while len(sums) > TOP:
            self._levels.append(_rows(sums))
            sums = self._levels[-1].sum(1)
        self._levels.append(sums[None])
        self.total = sums.sum()

    def set(self, index: Tensor, importance: Tensor) -> None:
        """New importances (B,) at positions (B,); where a position is repeated, so is its importance."""
        leaves = self._levels[0].view(-1)
        leaves[index] = self._accepted(importance.double(), leaves.index_select(0, index))
        row = index
        for fine, coarse in pairwise(self._levels):
            row = row >> ROW_BITS
            coarse.view(-1)[row] = fine.index_select(0, row).sum(1)
        self.total = self._levels[-1].sum()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(positions, their probabilities), both (count,), with replacement. All alike while every importance is 0."""
        uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=self.total.device)
        index = self.at(uniform)
        share = self.importance.index_select(0, index) / self.total
        return index, torch.where(self.total > 0, share, 1 / self._count)

    def at(self, uniform: Tensor) -> Tensor:
        """For numbers (B,) in [0, 1) the first positions whose cumulative share of the total exceeds them."""
        left = uniform * self.total
        row = torch.zeros_like(uniform, dtype=torch.long)
        for level in reversed(self._levels):
            entries = level.index_select(0, row) if len(level) > 1 else level
            sums = entries.cumsum(1)
            # A row and its sum differ by rounding, which must not lead past its last entry, nor past 0 where all are 0.
            left = torch.clamp(left, self._zero, torch.nextafter(sums[:, -1], self._below))
            where = left[:, None] if len(level) > 1 else left[None]
            inside = torch.searchsorted(sums, where, right=True)
            row = (row << ROW_BITS) + inside.flatten()
            if level is not self._levels[0]:
                left = left - (sums.gather(1, inside) - entries.gather(1, inside)).flatten()
        row = torch.where(self.total > 0, row, (uniform * self._count).long())
        return row.clamp_(max=self._count - 1)  # a device may add a row's zeros up to more than nothing

    def check(self) -> None:
        """Raises ValueError for importances that were refused or are all 0. Waits for the device: once an epoch."""
        refused, total = self.refused.item(), self.total.item()
        if refused:
            raise ValueError(f"an importance is finite and ≥ 0; {refused} were not")
        if not total:
            raise ValueError(f"all {self._count} importances are 0: there is nothing to prefer")

    def _accepted(self, importance: Tensor, otherwise: Tensor) -> Tensor:
        good = (importance >= 0) & (importance < torch.inf)
        self.refused += (~good).sum()
        return torch.where(good, importance, otherwise)


def _rows(values: Tensor) -> Tensor:
    """(n,) as rows of ROW, the last filled up with zeros."""
    rows = values.new_zeros(-(-len(values) // ROW), ROW)
    rows.view(-1)[: len(values)] = values
    return rows


def unbiased(probability: Tensor, count: int) -> Tensor:
    """Weights 1/(N·p) (B,): with them the mean over drawn samples has the mean over all N as its expectation."""
    # A sample of probability 0 is drawn only where a device's sums round: it counts for nothing.
    return torch.where(probability > 0, 1 / (count * probability), 0.0)


def average_repeats(index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(values with the mean in place of those that share an index, (B,) in double precision; how many are repeats)."""
    values = values.double()
    ordered, order = index.sort()
    sums = torch.cat([values.new_zeros(1), values.index_select(0, order).cumsum(0)])
    first, past = torch.searchsorted(ordered, index), torch.searchsorted(ordered, index, right=True)
    count = past - first
    group = sums.index_select(0, past) - sums.index_select(0, first)
    mean = torch.where(count > 1, group / count, values)
    return mean, (ordered[1:] == ordered[:-1]).sum()


def pass_key(run: TrainingRun) -> tuple[int, ...]:
    """What tells the pass over some data that begins now from the other passes of its epoch, as federated clients make
    them: key of `run.rng` for what a pass draws. Plain training's only pass of an epoch has the epoch alone."""
    return (run.epoch_number, run.step_in_epoch) if run.step_in_epoch else (run.epoch_number,)
