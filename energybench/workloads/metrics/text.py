"""How well a model foretells a text: the perplexity."""

from __future__ import annotations

import math


def perplexity(loss: float) -> float:
    """exp(loss): of how many equally likely tokens a choice is as hard as the next one; infinite beyond what fits.

    Args:
        loss: mean over all tokens of −ln p, in nats; a mean of samples' means is another number where lengths differ
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
