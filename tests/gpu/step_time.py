"""Seconds of a step of the training of part 1, in a process of its own: `python -m gpu.step_time real|fake`."""

from __future__ import annotations

import sys

from gpu import counter
from gpu.card import Card


def step_s(card: Card) -> float:
    step = counter.training(card)
    card.repeated(step, card.size(1.0, 0.02))
    count = card.size(50, 10)
    return card.elapsed_s(lambda: [step() for _ in range(count)]) / count


if __name__ == "__main__":
    print(step_s(Card(fake=sys.argv[1] == "fake")))
