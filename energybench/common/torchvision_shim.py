"""Import torchvision beside a CPU build of torch.

torchvision's published Linux wheel is built against CUDA torch. Beside a CPU torch its C++ extension does not
load, so nobody declares its operators, and the import dies where it registers their meta kernels: "operator
torchvision::nms does not exist". Models, transforms and data sets need none of these operators. Declaring the
two that the import asks for lets it pass; `nms` gets a CPU implementation, so that detection models work.

    torchvision = import_torchvision()    # instead of `import torchvision`; any plain import works afterwards
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # kept alive: its registrations end with it


def import_torchvision() -> ModuleType:
    """torchvision, as it is where its import works, with the missing operators declared where it does not.

    Any other import error is raised as it came. Calling it again is free.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # a half-imported package would be found instead of imported
    _declare()
    torchvision = importlib.import_module("torchvision")
    extension: Any = importlib.import_module("torchvision.extension")
    extension._has_ops = _yes  # torchvision.ops.nms asks before it calls
    return torchvision


def _yes() -> bool:
    return True


def _declare() -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            _library.define(schema)
        _library.impl("nms", nms, "CPU")


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: positions of the boxes kept, by falling score; ties keep their order.

    dets: (n, 4) boxes as x1, y1, x2, y2; scores: (n,). A box is dropped when its intersection over union with
    a kept box of higher score is greater than `iou_threshold`.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order].double()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if alive[i]:
            rest = boxes[i + 1 :]
            corner = torch.maximum(boxes[i, :2], rest[:, :2])
            sides = (torch.minimum(boxes[i, 2:], rest[:, 2:]) - corner).clamp(min=0)
            overlap = sides.prod(dim=1)
            alive[i + 1 :] &= ~(overlap / (areas[i] + areas[i + 1 :] - overlap) > iou_threshold)
    return order[alive]
