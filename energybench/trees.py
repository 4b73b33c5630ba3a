"""Moved: `energybench.train.trees`; this name of it is documented and stays."""

from energybench.train.trees import join, split, take, to

__all__ = ["join", "split", "take", "to"]
