"""SIREN: a network of coordinates whose activations are sines, so that it can be fitted to one signal in all detail.

    z₁ = W₁x + b₁,   hₖ = sin(ω₀·zₖ),   zₖ₊₁ = Wₖ₊₁hₖ + bₖ₊₁,   output z_L

Sitzmann et al. 2020, section 3.2: with their initialisation ω₀·zₖ keeps a standard deviation of about 1, whatever the
depth. Biases start as torch has them, as in the authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


def siren(shape: Shape, outputs: int = 1, width: int = 256, layers: int = 5, omega: float = 30.0) -> nn.Module:
    """SIREN (Sitzmann et al. 2020): linear layers with sin(ω₀·) between, from coordinates (B, n) to (B, outputs).

    outputs: as the data say; 3 of a photograph
    width:   of the hidden layers
    layers:  linear ones, the first and the last included
    omega:   ω₀, of all sines
    """
    if min(outputs, width) < 1 or layers < 2:
        raise ValueError("outputs and width are 1 at least, and layers 2: the first and the last")
    if not 0 < omega < math.inf:
        raise ValueError(f"omega is a frequency above 0, not {omega}")
    widths = [shape[-1], *[width] * (layers - 1)]
    bounds = [1 / widths[0], *(math.sqrt(6 / each) / omega for each in widths[1:])]
    hidden = [SineLayer(inputs, width, omega, bound) for inputs, bound in zip(widths[:-1], bounds[:-1], strict=True)]
    return nn.Sequential(*hidden, linear(width, outputs, bounds[-1]))


class SineLayer(nn.Module):
    """(B, inputs) → sin(ω₀·(Wx + b)), (B, outputs); the sine is taken in single precision or better.

    bound: of W's uniform start
    """

    def __init__(self, inputs: int, outputs: int, omega: float, bound: float) -> None:
        super().__init__()
        self.omega = omega
        self.linear = linear(inputs, outputs, bound)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.linear(x)
        return torch.sin(self.omega * z.to(torch.promote_types(z.dtype, torch.float32)))

    def extra_repr(self) -> str:
        return f"omega={self.omega:g}"


def linear(inputs: int, outputs: int, bound: float) -> nn.Linear:
    """W uniform in ±bound, b as torch starts it."""
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound)
    return layer
