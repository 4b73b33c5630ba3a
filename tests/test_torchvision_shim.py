"""torchvision imports beside any torch, once or often, and its stand-in nms is the real one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energybench.common.torchvision_shim import import_torchvision, nms


def reference(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    """Boxes by falling score, the earlier first among equals; one is kept unless it overlaps a kept one."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def overlap(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (area(a) + area(b) - both)


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


corner, side = st.integers(0, 12), st.integers(1, 12)
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@settings(deadline=None)
@given(st.lists(st.tuples(box, st.integers(0, 4)), min_size=0, max_size=15), st.sampled_from([0.0, 0.3, 0.5, 0.99]))
def test_nms_keeps_what_the_definition_keeps_ties_included(found, threshold):
    boxes, scores = [b for b, _ in found], [float(s) for _, s in found]
    kept = nms(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores), threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == reference(boxes, scores, threshold)


def test_torchvision_works_through_its_own_names():
    torchvision = import_torchvision()
    assert import_torchvision() is torchvision
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
    groups = torch.tensor([0, 1, 0])
    assert torchvision.ops.batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), groups, 0.5).tolist() == [0, 1, 2]
    assert torchvision.models.resnet18(num_classes=3)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    from torchvision.transforms import v2

    image = v2.RandomHorizontalFlip(1.0)(torch.arange(4.0).reshape(1, 2, 2))
    assert image.flatten().tolist() == [1, 0, 3, 2]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_plain_import_works_afterwards():
    code = (
        "from energybench.common.torchvision_shim import import_torchvision as f; f(); f();"
        "import torchvision, torchvision.models.detection; print('fine')"
    )
    assert run(code) == "fine"


def test_where_the_import_works_nothing_is_declared(tmp_path):
    (tmp_path / "torchvision.py").write_text("mark = 'its own'")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "import energybench.common.torchvision_shim as shim; print(shim.import_torchvision().mark, shim._library)"
    )
    assert run(code) == "its own None"


@pytest.mark.parametrize("raised", ["RuntimeError('other')", "ImportError('torchvision::nms does not exist')"])
def test_other_errors_come_as_they_are(tmp_path, raised):
    (tmp_path / "torchvision.py").write_text(f"raise {raised}")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import energybench.common.torchvision_shim as shim\n"
        "try: shim.import_torchvision()\n"
        "except Exception as error: print(type(error).__name__, shim._library)"
    )
    assert run(code) == f"{raised.split('(')[0]} None"


@pytest.mark.slow  # torchvision compiles its stand-in for roi_align
def test_a_detector_trains_and_detects():
    """torchvision has parts of it compiled by torch."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++, which torch compiles with")
    if re.search(r"\s", tempfile.gettempdir()):
        pytest.skip("torch's compiler takes no folder for temporary files with a blank in its name")
    import_torchvision()
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64)
    images = [torch.rand(3, 64, 64)]
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}]
    sum(model(images, targets).values()).backward()
    with torch.no_grad():
        assert set(model.eval()(images)[0]) == {"boxes", "labels", "scores"}
