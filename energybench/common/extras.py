"""Packages that a part of energybench needs and that are not installed with it: `pip install 'energybench[text]'`."""

from __future__ import annotations

import importlib.util

# Extra of pyproject.toml → what is imported of it.
EXTRAS = {
    "text": ("tokenizers", "transformers"),
    "vision": ("segmentation_models_pytorch", "torchmetrics", "faster_coco_eval", "transformers"),
    "diffusion": ("diffusers",),
}


def missing_packages(extra: str) -> list[str]:
    """Those of an extra that cannot be found, as they are imported; nothing is imported. None for an empty name."""
    return [package for package in EXTRAS[extra] if not _found(package)] if extra else []


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # ValueError: something else stands under its name in sys.modules
        return False
