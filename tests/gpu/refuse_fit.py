"""The two constants of ssProp's `refuse` on a card, fitted to layers that were timed both ways.

The rule lets a layer be sparse where the FLOPs that it drops are worth more than the calls and the elements that
choosing costs. Its constants are those with which a training of all these layers would take the least time: what a
wrong decision costs counts, not how many there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST, MOST, PER_DECADE = 0, 13, 4  # powers of ten of FLOPs that are tried for the calls
MOST_ELEMENT = 6  # and for an element


@dataclass(frozen=True)
class Timed:
    """A layer's backward: what the rule looks at, and seconds.

    saved_flop:  dropped, less what kernels for few channels are slower (the rule's `saved`)
    elements:    of dY
    factor:      by which the rule takes its costs: 2 for strides, 2 for narrow numbers
    """

    saved_flop: float
    elements: int
    factor: int
    dense_s: float
    sparse_s: float

    def lets_in(self, calls_flop: float, element_flop: float) -> bool:
        return self.saved_flop > self.factor * (calls_flop + element_flop * self.elements)


@dataclass(frozen=True)
class Fitted:
    """calls_flop, element_flop: the constants; seconds: of all layers under them; let_in: how many were sparse;
    slower: how many of those were slower than dense"""

    calls_flop: float
    element_flop: float
    seconds: float
    let_in: int
    slower: int


def under(layers: Sequence[Timed], calls_flop: float, element_flop: float) -> Fitted:
    """What the rule makes of these layers with these constants."""
    inside = [layer.lets_in(calls_flop, element_flop) for layer in layers]
    seconds = math.fsum(each.sparse_s if sparse else each.dense_s for each, sparse in zip(layers, inside, strict=True))
    slower = sum(sparse and layer.sparse_s > layer.dense_s for layer, sparse in zip(layers, inside, strict=True))
    return Fitted(calls_flop, element_flop, seconds, sum(inside), slower)


def best(layers: Sequence[Timed]) -> Fitted:
    """The constants under which these layers take the least time; of equals the middle ones, as the best guess between
    what was seen to pay and what was not."""
    powers = [10 ** (step / PER_DECADE) for step in range(PER_DECADE * MOST + 1)]
    elements = [0.0, *(power for power in powers if power <= 10**MOST_ELEMENT)]
    tried = [under(layers, calls, element) for calls, element in itertools.product(powers, elements)]
    least = min(each.seconds for each in tried)
    equals = [each for each in tried if each.seconds <= least * (1 + 1e-9)]
    return equals[len(equals) // 2]
