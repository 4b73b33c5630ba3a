"""Where the methods and suites that come with energybench lie."""

from __future__ import annotations

from pathlib import Path


def shipped(kind: str) -> Path:
    """The folder of shipped `methods` or `suites`: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "shipped" / kind
    return inside if inside.is_dir() else package.parent / kind
