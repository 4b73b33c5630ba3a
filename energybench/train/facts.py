"""What the targets of a data set are: the kind, the classes, and what else a model or a task must know of them.

Imports no torch: it is recorded, and read where nothing trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Targets = Literal["class", "mask", "boxes", "value", "tokens", "none"]
TARGETS: tuple[Targets, ...] = get_args(Targets)
NO_OBJECT = -1  # the label of a row of boxes that holds none


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one data set, or of a part of it.

    targets:     what they are, and so what moves with an image that is mirrored or shifted:
                 "class":  one or more labels of a whole sample, (N,): nothing moves
                 "mask":   a label of each pixel, (N, H, W), of the size of the images
                 "boxes":  {"boxes": (N, K, 4) in pixels, x₁ y₁ x₂ y₂, "labels": (N, K), −1 where there is no object}
                 "value":  numbers, such as those of a regression
                 "tokens": a sequence of numbers of a vocabulary, (N, length)
                 "none":   there are none; a batch's are None
    classes:     how many; None where they are not counted
    void:        the label that stands for none of them, and is neither learned nor scored
    class_names: of each class, in order; empty where they have none
    extra:       what else there is to know by name: {"vocabulary": 8000}
    """

    targets: Targets = "class"
    classes: int | None = None
    void: int | None = None
    class_names: tuple[str, ...] = ()
    extra: Mapping[str, int | float | str] = field(default_factory=dict)
