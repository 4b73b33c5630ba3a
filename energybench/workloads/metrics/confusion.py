"""Shares of right answers from a confusion matrix: accuracy, precision, recall, F1, intersection over union.

The matrix is summed batch by batch, of samples or of pixels alike, so that no share depends on how a test set is cut
into batches: a mean of batches' means would.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Confusion:
    """counts (classes, classes), int64: row, what is true; column, what was predicted."""

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, true: Tensor, void: int | None = None) -> None:
        """Count predictions.

        Args:
            predicted, true: class numbers, of one shape
            void: the number that stands for no class in `true`; what is predicted there counts for nothing

        Raises:
            ValueError: for a class number that is none; a label that is out of range would else be counted as another
        """
        predicted, true = predicted.reshape(-1).long(), true.reshape(-1).long()
        if void is not None:
            labelled = true != void
            predicted, true = predicted[labelled], true[labelled]
        classes = len(self.counts)
        for numbers in (predicted, true):
            if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= classes):
                wrong = int(numbers.min()) if int(numbers.min()) < 0 else int(numbers.max())
                raise ValueError(f"classes are 0 to {classes - 1}, and {wrong} is none")
        self.counts += torch.bincount(true * classes + predicted, minlength=classes**2).view(classes, classes)

    def accuracy(self) -> float:
        """Share of all that is predicted rightly; NaN where nothing was counted."""
        return _share(self.counts.diagonal().sum(), self.counts.sum())

    def precision(self, positive: int | None = None) -> float:
        """Right ones of what was predicted as a class: of `positive`, else the mean over the classes that occur.

        A class that was never predicted has a precision of 0, as is usual.
        """
        return self._of_classes(self._ratio(self.counts.sum(0)), positive)

    def recall(self, positive: int | None = None) -> float:
        """Right ones of what is a class in truth: of `positive`, else the mean over the classes that occur."""
        return self._of_classes(self._ratio(self.counts.sum(1)), positive)

    def f1(self, positive: int | None = None) -> float:
        """Harmonic mean of precision and recall, 2·right / (predicted + true): of `positive`, else their mean."""
        return self._of_classes(2 * self._ratio(self.counts.sum(0) + self.counts.sum(1)), positive)

    def intersection_over_union(self) -> float:
        """Mean over the classes that occur, in truth or in a prediction, of right / (predicted + true − right)."""
        right, size = self.counts.diagonal(), self.counts.sum(0) + self.counts.sum(1)
        return self._of_classes(self._ratio(size - right), None)

    def _ratio(self, of: Tensor) -> Tensor:
        """(classes,): right / of, 0 where there is nothing."""
        return self.counts.diagonal().double() / of.clamp(min=1)

    def _of_classes(self, ratios: Tensor, positive: int | None) -> float:
        if positive is not None:
            return ratios[positive].item()
        occurs = (self.counts.sum(0) + self.counts.sum(1)) > 0
        return ratios[occurs].mean().item()


def _share(part: Tensor, whole: Tensor) -> float:
    return part.item() / whole.item() if whole else float("nan")
