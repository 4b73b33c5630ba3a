"""The optimizers of a run, one for each part: built through the layers, grouped by rate, told of what is released."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from energybench.train.method import Method
from energybench.train.parameter_groups import Multipliers, split_groups
from energybench.train.recipe import add_parameters
from energybench.train.results import checked

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun

Build = Callable[[list[nn.Parameter]], Optimizer]


class PartOptimizers:
    """Of one run.

    Args:
        layers:      innermost first; the recipe's own optimizer lies inside of them
        multipliers: of the learning rate; whoever replaces `update` sets the rates itself, and gets no groups

    Attributes:
        built: part → its optimizer, of those that have been asked for
    """

    def __init__(self, run: TrainingRun, layers: Sequence[Method], multipliers: Multipliers) -> None:
        self._run, self._layers, self._multipliers = run, layers, multipliers
        self._grouped = bool(multipliers) and not any("update" in layer.replaces for layer in layers)
        self.built: dict[str, Optimizer] = {}

    def of(self, part: str, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """Built on first use, so that a forward-only method builds none."""
        if part not in self.built:
            chain: Build = self._run.recipe.build_optimizer
            for layer in self._layers:
                chain = partial(self._of_layer, layer, chain)
            self.built[part] = chain(list(parameters))
            self._group(self.built[part])
        return self.built[part]

    def join(self, part: str, joined: list[nn.Parameter]) -> None:
        """Parameters that were released or made since the part was listed."""
        if optimizer := self.built.get(part):
            add_parameters(optimizer, joined, self._run.recipe)
            self._group(optimizer)

    def _of_layer(self, layer: Method, inner: Build, parameters: list[nn.Parameter]) -> Optimizer:
        optimizer: Optimizer = checked(layer.name, "optimizer", layer.optimizer(self._run, parameters, inner))
        return optimizer

    def _group(self, optimizer: Optimizer) -> None:
        if self._grouped:
            split_groups(optimizer, self._multipliers.of)
