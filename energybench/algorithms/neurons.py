"""Neurons: the output channels of every convolution, linear and normalisation layer, found by the layer's type."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, eq=False)
class Neurons:
    """Those of one layer.

    axis:   of the layer's output, in which they lie
    rows:   the layer's parameters, each with the dimension in which a neuron is a row
    fan_in: multiply-adds per element of the output; 0 for a normalisation
    """

    name: str
    module: nn.Module
    count: int
    axis: int
    rows: tuple[tuple[nn.Parameter, int], ...]
    fan_in: int

    def outputs(self, y: Tensor) -> Tensor:
        """The layer's output as samples × neurons × positions, in memory of its own."""
        together: Tensor = y.detach().movedim(self.axis, 1).flatten(2) if y.dim() > 2 else y.detach()[:, :, None]
        return together.clone()

    def operations(self, y: Tensor) -> int:
        """Of this output: multiply-adds, 2 per element of a normalisation, as thop counts them."""
        return y.numel() * (self.fan_in or 2)


def find(model: nn.Module) -> list[Neurons]:
    """In the model's order. Left out: layers without parameters that learn, layers of which another holds a parameter
    too, transposed convolutions in groups, normalisations over several dimensions at once."""
    modules = list(model.modules())
    owners = Counter(id(p) for module in modules for p in module._parameters.values() if p is not None)
    neurons = []
    for name, module in model.named_modules():
        known = _place(module)
        if known is None:
            continue
        axis, dim, fan_in = known
        parameters = [module._parameters.get(key) for key in ("weight", "bias")]
        if parameters[0] is None or any(p is not None and owners[id(p)] > 1 for p in parameters):
            continue
        rows = tuple((p, d) for p, d in zip(parameters, (dim, 0), strict=True) if p is not None and p.requires_grad)
        if rows:
            neurons.append(Neurons(name, module, parameters[0].shape[dim], axis, rows, fan_in))
    return neurons


def _place(module: nn.Module) -> tuple[int, int, int] | None:
    """(axis of the output, dimension of the weight, multiply-adds per element) where neurons lie; None: it has none."""
    layer: Any = module
    if isinstance(module, nn.modules.conv._ConvNd):
        if layer.transposed:
            return (1, 1, layer.weight[:, 0].numel()) if layer.groups == 1 else None
        return 1, 0, layer.weight[0].numel()
    if isinstance(module, nn.Linear):
        return -1, 0, layer.in_features
    if not isinstance(module, NORMS):
        return None
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):  # one that permutes its input has another forward
        known = type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward)
        return (-1, 0, 0) if known and len(layer.normalized_shape) == 1 else None
    return 1, 0, 0
