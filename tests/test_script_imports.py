"""Packages that a user's own script cannot import, told without importing them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from energybench.cli import script_imports


def installed(folder: Path, name: str, version: str, requires: str = "", files: dict[str, bytes] | None = None):
    """A package as pip lays it down."""
    home = folder / name.replace(" ", "-")
    info = home / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
    for path, content in (files or {}).items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files or {}))
    return PathDistribution(info)


CPU = {"torch/lib/libtorch.so": b"", "torch/lib/libtorch_cpu.so": b"", "torch/lib/libc10.so": b""}
CUDA = CPU | {"torch/lib/libtorch_cuda.so": b"", "torch/lib/libc10_cuda.so": b""}
FOR_CPU = b"\x7fELF\0libtorch.so\0libc10.so\0libstdc++.so.6\0"
FOR_CUDA = FOR_CPU + b"libtorch_cuda.so\0libc10_cuda.so\0"


@pytest.mark.parametrize(
    ("here", "libraries", "wanted", "extension", "words"),
    [
        ("2.13.0+cpu", CPU, "torch (==2.13.0)", FOR_CPU, None),
        ("2.13.0+cpu", CPU, "torch (==2.13.0)", FOR_CUDA, "needs libc10_cuda.so, libtorch_cuda.so"),
        ("2.13.0+cu130", CUDA, "torch (==2.13.0)", FOR_CUDA, None),
        ("2.12.1", CUDA, "torch==2.13.0", FOR_CUDA, "built for torch 2.13.0, and torch 2.12.1 is here"),
        ("2.12.1", CUDA, "torch>=1.8", FOR_CPU, None),
        ("2.12.1", CUDA, "torchmetrics==1.0", FOR_CPU, None),
    ],
)
def test_a_package_that_was_built_for_another_torch_is_told_with_what_to_type(
    tmp_path: Path, here: str, libraries: dict[str, bytes], wanted: str, extension: bytes, words: str | None
) -> None:
    torch = installed(tmp_path, "torch", here, files=libraries)
    vision = installed(tmp_path, "torchvision", "0.28.0", wanted, {"torchvision/_C.so": extension})
    found = script_imports.problems([vision], torch)
    if words is None:
        assert found == []
        return
    (met,) = found
    assert met["name"] == "torchvision"
    assert words in met["why"]
    assert met["remedy"].startswith("install the one that was built for this torch")


def test_without_torch_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script_imports, "_found", lambda name: None)
    assert script_imports.problems() == []


def test_what_is_said_of_this_machine_is_what_an_import_meets() -> None:
    """In a process of its own, since whoever tests may have mended torchvision already."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("no torchvision")
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
    told = {met["name"] for met in script_imports.problems()}
    assert ("torchvision" in told) == (done.returncode != 0)
