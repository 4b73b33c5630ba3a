"""Drop-in layers: one of ours in place of one of torch's, on the same parameters, and back again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

DENSE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class DropIn(nn.Module):
    """Base of layers that also are one of DENSE: same constructor, same state_dict, another backward."""

    extra_attributes: ClassVar[frozenset[str]] = frozenset()  # attributes that the plain layer does not have

    weight: Tensor

    @classmethod
    def from_dense(cls, layer: nn.Module) -> Any:
        """Shares parameters, buffers and hooks with `layer`; draws nothing."""
        drop_in = cls.__new__(cls)
        drop_in.__dict__.update(layer.__dict__)
        return drop_in

    def dense(self) -> Any:
        """The layer that this one stands for, with the same parameters."""
        kind = next(kind for kind in DENSE if isinstance(self, kind))
        layer = kind.__new__(kind)
        layer.__dict__.update({key: value for key, value in self.__dict__.items() if key not in self.extra_attributes})
        return layer

    def _cast(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, weight and bias as autocast would hand them on, which does not look into a custom function."""
        layer: Any = self
        weight, bias = layer.weight, layer.bias
        if not torch.is_autocast_enabled(x.device.type):
            return x, weight, bias
        low = torch.get_autocast_dtype(x.device.type)
        return x.to(low), weight.to(low), None if bias is None else bias.to(low)


Layer = TypeVar("Layer", bound=DropIn)


def swap(model: nn.Module, kinds: Mapping[type[nn.Module], type[Layer]]) -> dict[str, Layer]:
    """Put a drop-in layer in place of every layer of exactly these types; returns them by name.

    A layer under two names stays one, known by the first. A model that is itself such a layer is left alone.
    """
    layers: dict[str, Layer] = {}
    drop_ins: dict[nn.Module, Layer] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and type(module) in kinds:
            if module not in drop_ins:
                drop_ins[module] = layers[name] = kinds[type(module)].from_dense(module)
            _replace(model, name, drop_ins[module])
    return layers


def swap_back(model: nn.Module, layers: Mapping[str, DropIn]) -> None:
    """Leave plain layers with the same parameters."""
    dense: dict[nn.Module, nn.Module] = {layer: layer.dense() for layer in layers.values()}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in dense:
            _replace(model, name, dense[module])


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
