"""Which parts of a model are made again in the backward pass, found without knowing the model.

    blocks    modules of one class that has layers of its own, two or more beside each other: residual blocks, encoder
              layers; none lies inside another
    runs      the children of one nn.Sequential, cut into k runs of nearly equal length; ⌈√n⌉ of them by default, with
              which O(√n) activations are kept (Chen et al. 2016, §4.1)

Whichever holds more of the model's parameters is taken; blocks where both hold as many, and of blocks the more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)  # nobody calls them


@dataclass(frozen=True)
class Pieces:
    """What a model is cut into.

    owner:  the name of the nn.Sequential whose children are cut into runs; None: the blocks are modules of their own
    parts:  of each piece the names of its modules within the model, in order
    """

    owner: str | None
    parts: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.parts)

    def named(self) -> list[str]:
        """ "layer1.0", or "4 … 6" for a run of children."""
        return [part[0] if len(part) == 1 else f"{part[0]} … {part[-1]}" for part in self.parts]


def pieces_of(model: nn.Module, segments: int | None = None) -> Pieces | None:
    """None where no block comes twice and no nn.Sequential can be cut.

    Args:
        segments: k, of an nn.Sequential
    """
    blocks, owner = _blocks(model), _largest_sequential(model)
    if owner is None or (blocks and _held(model, blocks) >= _held(model, [owner])):
        return Pieces(None, tuple((name,) for name in blocks)) if blocks else None
    parts = tuple(tuple(run) for run in _runs(model.get_submodule(owner), owner, segments))
    return Pieces(owner, parts) if len(parts) > 1 else None


def _blocks(model: nn.Module) -> list[str]:
    by_class: dict[type, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if name and not isinstance(module, CONTAINERS) and next(module.children(), None) is not None:
            names = by_class[type(module)]
            if not any(name.startswith(f"{other}.") for other in names) and next(module.parameters(), None) is not None:
                names.append(name)
    repeated = [names for names in by_class.values() if len(names) > 1]
    return max(repeated, key=lambda names: (_held(model, names), len(names)), default=[])


def _largest_sequential(model: nn.Module) -> str | None:
    names = [
        name
        for name, module in model.named_modules()
        if type(module).forward is nn.Sequential.forward and len(module) > 1
    ]
    return max(names, key=lambda name: _held(model, [name]), default=None)


def _held(model: nn.Module, names: Sequence[str]) -> int:
    """Numbers in the parameters of these modules."""
    return sum(parameter.numel() for name in names for parameter in model.get_submodule(name).parameters())


def _runs(sequential: nn.Module, owner: str, segments: int | None) -> Iterator[list[str]]:
    """None begins with what works in place: the piece's own input would be overwritten before it is needed again."""
    children = list(sequential.named_children())
    count = len(children)
    wanted = min(count, math.ceil(math.sqrt(count)) if segments is None else segments)
    cuts = {number * count // wanted for number in range(1, wanted)}
    starts = [0, *sorted({start for cut in cuts if (start := _not_in_place(children, cut)) < count})]
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield [f"{owner}.{name}".removeprefix(".") for name, _ in children[start:end]]


def _not_in_place(children: list[tuple[str, nn.Module]], place: int) -> int:
    while place < len(children) and any(getattr(part, "inplace", False) for part in children[place][1].modules()):
        place += 1
    return place
