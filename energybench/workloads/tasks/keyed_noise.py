"""Noise that is a function of a key, a sample and a place in it: whoever looks again, in another order, sees the same.

A generator gives numbers in the order in which it is asked, so that micro-batches would share one noise, and a method
that evaluates a step's loss twice would find two losses. Here each sample has a stream of its own: SplitMix64 (Steele,
Lea and Flood 2014, figure 16) from a state that is mixed from the key, the sample's index, and how often the sample
stood in the batch before; two halves of a word make two normal deviates (Box and Muller 1958). All of it is integer
arithmetic modulo 2⁶⁴ on the device of the indices, up to the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # by which the state of SplitMix64 grows
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the factors of its output


def states(key: int, index: Tensor) -> Tensor:
    """The start of each sample's stream: int64, of the shape (B,) of `index`.

    A sample that stands in a batch several times, as sampling with replacement has it, gets a stream each time; of a
    batch that is cut into micro-batches, within each of them.
    """
    order = index.argsort(stable=True)
    ranked = index[order]
    before = torch.empty_like(order)
    before[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(ranked, ranked)
    one_key = _mixed(index + _signed(key)) + _signed(key * FIRST)  # twice, so that no key is another's, moved along
    return _mixed(_mixed(one_key) + before)


def normal(state: Tensor, shape: Sequence[int]) -> Tensor:
    """Independent standard normal deviates (B, *shape), float32.

    state: (B,), of `states`
    """
    count = math.prod(shape)
    words = _words(state, (count + 1) // 2)
    radius = (-2 * (((_shifted(words, 32)).to(torch.float32) + 0.5) / 2**32).log()).sqrt()
    angle = (words & 0xFFFFFFFF).to(torch.float32) * (2 * math.pi / 2**32)
    deviates = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return deviates[:, :count].reshape(len(state), *shape)


def below(state: Tensor, most: int) -> Tensor:
    """A whole number in 0 … most − 1 for each sample, evenly up to most / 2³¹: int64, (B,).

    It stands before the first deviate in the sample's stream, so that the two are independent.
    """
    return _shifted(_shifted(_mixed(state), 33) * most, 31)


def _words(state: Tensor, count: int) -> Tensor:
    """The next words of each stream: (B, count)."""
    steps = torch.arange(1, count + 1, device=state.device) * _signed(GOLDEN)
    return _mixed(state[:, None] + steps)


def _mixed(word: Tensor) -> Tensor:
    """SplitMix64's output of a state."""
    word = (word ^ _shifted(word, 30)) * _signed(FIRST)
    word = (word ^ _shifted(word, 27)) * _signed(SECOND)
    return word ^ _shifted(word, 31)


def _shifted(word: Tensor, bits: int) -> Tensor:
    """To the right, with zeros coming in from the left."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The int64 of these 64 bits."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number
