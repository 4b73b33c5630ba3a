"""A package as pip installs it, in a folder of a test: its modules, and the metadata that say what it offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(
    place: Path,
    name: str,
    offers: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
    version: str = "1.0",
) -> None:
    """Put it there, over one of the same name and version.

    Args:
        place: a folder on the path
        offers: group of entry points, without "energybench." → name → "module:object"
        modules: path of a file below the folder → its text
    """
    metadata = place / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines: list[str] = []
    for group, points in offers.items():
        lines += [f"[energybench.{group}]", *(f"{key} = {value}" for key, value in points.items()), ""]
    (metadata / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    for path, text in (modules or {}).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text, encoding="utf-8")
