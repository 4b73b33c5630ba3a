"""What a stack of methods sets of the card that trains, and what can be said against that (E329). Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from energybench.common.errors import Problem
from energybench.meter.card_settings import WORDS
from energybench.train.method import Method


def refuse_settings(methods: Sequence[Method], where: str = "") -> list[Problem]:
    """What can be said against what a stack sets of a card: something unknown, or one thing twice."""
    problems: list[Problem] = []
    setters: dict[str, str] = {}
    for method in methods:
        for key in method.card_settings():
            if key not in WORDS:
                message = f"'{method.name}' sets '{key}' of a card, which nothing is called"
                problems.append(Problem("E329", message, where, f"one of {', '.join(WORDS)}"))
            elif WORDS[key] in setters:
                message = f"'{setters[WORDS[key]]}' and '{method.name}' both set the card's {WORDS[key]}"
                problems.append(Problem("E329", message, where, "leave one of them out"))
            else:
                setters[WORDS[key]] = method.name
    return problems


def settings_of(methods: Sequence[Method]) -> Mapping[str, float]:
    """What a stack sets of a card."""
    return {key: float(value) for method in methods for key, value in method.card_settings().items()}
