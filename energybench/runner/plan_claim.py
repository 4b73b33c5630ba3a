"""What a variant is said to save: by its suite, else by the one method of its stack that makes a promise."""

from __future__ import annotations

from energybench.records.record import Claim
from energybench.suite.variants import Variant
from energybench.train.method import Method


def claim(variant: Variant, methods: list[Method]) -> Claim | None:
    """The suite's claim; else the promise of the one method in the stack that makes one."""
    if variant.claim:
        return Claim(**variant.claim)
    promises = [(method.name, promise) for method in methods if (promise := method.claims()) is not None]
    if len(promises) != 1:
        return None  # nobody's paper promises a sum
    name, (saving, of, source) = promises[0]
    if len(methods) > 1:
        source = f"{source}: of {name} alone, not of the stack"
    return Claim(saving_rel=saving, of="backward" if of == "backward" else "training", source=source)
