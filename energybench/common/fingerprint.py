"""Fingerprints of energybench itself: a figure belongs to the code that made it. Imports no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from energybench.common.hashing import digest

# Rooms that only read records, print or judge, and drive a run from outside: they cannot move a figure that is measured
# or counted. What is shipped, each method for itself, is fingerprinted where a plan names it.
READERS = ("cli", "gate", "report", "verdict", "pytest_energy", "overhead", "cluster", "shipped")


@cache
def source_digest() -> str:
    """A fingerprint of energybench itself: of every room but READERS, and of no module beside the rooms."""
    return digest([(name, path.read_text(encoding="utf-8")) for name, path in fingerprinted().items()])


def fingerprinted() -> dict[str, Path]:
    """The files whose text is in the fingerprint, by their path in the package."""
    package = Path(__file__).resolve().parents[1]
    files = {path.relative_to(package): path for path in sorted(package.rglob("*.py"))}
    return {str(name): path for name, path in files.items() if len(name.parts) > 1 and name.parts[0] not in READERS}
