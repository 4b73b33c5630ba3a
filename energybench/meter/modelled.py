"""What a modelled figure is of. codecarbon models the whole machine at the load that everything on it makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energybench.meter.reading import Energy

MODEL = "model(codecarbon"  # how codecarbon's sources begin


def loads_of(energies: Iterable[Energy]) -> list[float]:
    """The loads of the machine, 0 to 1, that codecarbon's figures among these were modelled at; one per piece."""
    loads: list[float] = []
    for energy in energies:
        if energy.source.startswith(MODEL) and energy.energy_j is not None:
            load = energy.detail.get("load_rel")
            loads += [each for each in (load if isinstance(load, list) else [load]) if each is not None]
    return loads


def whole_machine(loads: Sequence[float], mean: bool = False) -> str:
    """What codecarbon's model is of: "of the whole machine at a load of 43 %".

    Args:
        loads: 0 to 1, of which the mean is given; none where the model does not depend on it, or the record lacks it
        mean: each is a mean already
    """
    if not loads:
        return "of the whole machine"
    word = "a mean load" if mean or len(loads) > 1 else "a load"
    return f"of the whole machine at {word} of {100 * math.fsum(loads) / len(loads):.0f}\N{NO-BREAK SPACE}%"
