"""COCO's mean average precision of boxes, by torchmetrics with faster-coco-eval.

Of each class and each IoU from 0.5 to 0.95 in steps of 0.05 the area below precision against recall, at 101 recalls,
with up to 100 boxes an image and class; the mean over the classes that occur. Imports neither package until it is used.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from energybench.common.errors import Problem, UsageError
from energybench.common.torchvision_shim import import_torchvision
from energybench.train.facts import NO_OBJECT

ABSENT = -1.0  # what COCO's evaluation says where no object was to be found


class BoxPrecision:
    """Summed over batches.

    Raises:
        UsageError: E403 where torchmetrics or faster-coco-eval is missing.
    """

    def __init__(self) -> None:
        import_torchvision()  # torchmetrics takes its operators, which may be missing
        try:
            import faster_coco_eval  # noqa: F401
            from torchmetrics.detection import MeanAveragePrecision
        except ImportError as error:
            missing = "faster-coco-eval" if "faster_coco_eval" in str(error) else "torchmetrics"
            message = f"mean average precision needs {missing}, which is not installed"
            raise UsageError(Problem("E403", message, hint="pip install 'energybench[vision]'")) from None
        self._metric: Any = MeanAveragePrecision(backend="faster_coco_eval")
        self._metric.warn_on_many_detections = False

    def add(self, found: tuple[Tensor, Tensor, Tensor], targets: dict[str, Any]) -> None:
        """Count a batch.

        Args:
            found: boxes (B, n, 4) in pixels, scores (B, n), classes (B, n)
            targets: "boxes" (B, K, 4) in pixels and "labels" (B, K), −1 where there is no object
        """
        names = ("boxes", "scores", "labels")
        each = [dict(zip(names, image, strict=True)) for image in zip(*(part.cpu() for part in found), strict=True)]
        true = []
        for boxes, labels in zip(targets["boxes"].cpu(), targets["labels"].cpu(), strict=True):
            real = labels != NO_OBJECT
            true.append({"boxes": boxes[real], "labels": labels[real]})
        self._metric.update(each, true)

    def result(self) -> dict[str, float]:
        """ "map" and "map50", 0 to 1; NaN where no image had an object."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = self._metric.compute()
        figures = {"map": float(values["map"]), "map50": float(values["map_50"])}
        return {name: float("nan") if value == ABSENT else value for name, value in figures.items()}
