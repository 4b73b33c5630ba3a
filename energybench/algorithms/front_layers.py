"""The layers of a model from its front to its end, and what of the backward pass is left where the first of them rest.

A layer is a module with parameters of its own that learn, in the order of first calls; what it holds in modules that
are never called by themselves, as attention holds its projection, is its own too. A parameter of two layers is the
later one's, so that it learns as long as any of them does.

Where the first n layers rest:   dW   of the others alone
                                 dX   where something learned before: of the modules whose input hangs on a parameter
                                      that learns, as a forward pass shows; of operations between modules, and within
                                      the first module that learns, those behind the first that uses such a parameter
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from energybench.algorithms.forward_calls import watch_forward
from energybench.flops.work import FORWARD, INPUT_GRADIENT, RECOMPUTE, WEIGHT_GRADIENT, Line, Work

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun


@dataclass(frozen=True)
class FrontLayers:
    """names: of the layers, in order. called: names of all modules that a forward pass calls. weights: module → the
    place of the layer with which its own weights rest, a later one's where it shares them."""

    names: tuple[str, ...]
    called: frozenset[str]
    weights: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, run: TrainingRun) -> FrontLayers:
        """By a forward pass of two samples."""
        order: dict[str, None] = {}
        watch_forward(run, before=lambda name, *_: order.setdefault(name))
        every = cls(tuple(order), frozenset(order))
        held = every.parameters(run.model)
        learning = [name for name, own in zip(order, held, strict=True) if any(p.requires_grad for p in own)]
        layers = cls(tuple(learning), frozenset(order))
        places = {p: place for place, own in enumerate(layers.parameters(run.model)) for p in own}
        weights: dict[str, int] = {}
        for name, module in run.model.named_modules(remove_duplicate=False):
            own = [p for p in module.parameters(recurse=False) if p in places]
            matrices = [p for p in own if p.dim() > 1] or own
            if matrices:
                weights[name] = max(places[p] for p in matrices)
        return replace(layers, weights=weights)

    def place(self, name: str) -> int | None:
        """Of the layer that a module or a parameter is in, by its name; None: in none."""
        while name and name not in self._places:
            name = name.rpartition(".")[0]
        return self._places.get(name)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {layer: place for place, layer in enumerate(self.names)}

    def parameters(self, model: nn.Module) -> list[list[nn.Parameter]]:
        """Of each layer, as the model is now: other methods may have put modules in place of others."""
        places: dict[nn.Parameter, int] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            place = self.place(name)
            if place is not None:
                places[parameter] = max(place, places.get(parameter, 0))
        held: list[list[nn.Parameter]] = [[] for _ in self.names]
        for parameter, place in places.items():
            held[place].append(parameter)
        return held

    def is_leaf(self, module: str) -> bool:
        """Whether it is called and calls no other module."""
        inside = f"{module}." if module else ""
        return module in self.called and not any(name != module and name.startswith(inside) for name in self.called)


def reached(run: TrainingRun) -> dict[str, float]:
    """Module → the share of what it takes in that hangs on a parameter which learns now; in elements, of all calls."""
    every: dict[str, int] = defaultdict(int)
    hanging: dict[str, int] = defaultdict(int)

    def before(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        every[name] += sum(value.numel() for value in tensors if value.is_floating_point())
        hanging[name] += sum(value.numel() for value in tensors if value.requires_grad)

    watch_forward(run, before)
    return {name: hanging[name] / count for name, count in every.items() if count}


class RestingFront:
    """What is left of the lines of a ledger.

    layers:  of the model
    reached: number of resting layers → module → the share of its inputs that a gradient reaches; 0: none rests
    """

    def __init__(self, layers: FrontLayers, reached: dict[int, dict[str, float]], work: Work) -> None:
        self._layers, self._reached, self._lines = layers, reached, work.lines
        self._places = {line.module: layers.weights.get(line.module, layers.place(line.module)) for line in work.lines}
        self._leaves = {module for module in self._places if layers.is_leaf(module)}
        self._own: dict[int, int] = {}  # of a line, the place of its operation's forward line
        forward: dict[tuple[str, str], int] = {}
        for number, line in enumerate(work.lines):
            if line.phase == FORWARD:
                forward[line.module, line.op] = number
            self._own[id(line)] = forward.get((line.module, line.op), number)

    def share(self, line: Line, resting: int) -> float:
        """Of the work of plain training, where the first layers rest."""
        if not resting or line.phase not in (WEIGHT_GRADIENT, INPUT_GRADIENT, RECOMPUTE):
            return 1.0
        place = self._places[line.module]
        learns = place is not None and place >= resting
        if line.phase == WEIGHT_GRADIENT:
            return float(learns)
        found = self._reached[resting].get(line.module, 0.0)
        if line.module in self._leaves:
            if found or not learns:
                return min(1.0, found / (self._reached[0].get(line.module) or 1.0))
            return float(line.phase == RECOMPUTE or self._is_behind(line, [line.module]))
        later = [module for module, at in self._places.items() if at is not None and at >= resting]
        return float(self._is_behind(line, later))

    def _is_behind(self, line: Line, modules: Iterable[str]) -> bool:
        """Whether an operation comes after the first one of these modules."""
        among = set(modules)
        first = next(
            (n for n, each in enumerate(self._lines) if each.phase == FORWARD and each.module in among),
            len(self._lines),
        )
        return self._own[id(line)] > first
