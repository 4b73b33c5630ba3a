"""How near a distribution of features comes to another: the Fréchet distance of two normal distributions.

Of features of Inception it is called FID (Heusel et al. 2017, equation 6); of another net's it is no FID and must not
be called one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) of the samples' means and covariances, in float64.

    The trace of the root is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric: what rounding
    takes below 0 is 0.

    Args:
        first, second: features (N, d) and (M, d), two samples each at least

    Raises:
        ValueError: for other shapes
    """
    if first.dim() != 2 or second.dim() != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features are (N, d) and (M, d), not {tuple(first.shape)} and {tuple(second.shape)}")
    if min(len(first), len(second)) < 2:
        raise ValueError("a covariance needs two samples at least")
    means, covariances = zip(*((x.double().mean(0), x.double().T.cov()) for x in (first, second)), strict=True)
    one, other = (c.reshape(first.shape[1], first.shape[1]) for c in covariances)
    root = _root(one)
    product = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    apart = (means[0] - means[1]).square().sum()
    return max(0.0, (apart + one.trace() + other.trace() - 2 * product).item())


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
