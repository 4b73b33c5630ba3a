"""Fingerprints of energybench itself: a figure belongs to the code that made it. Imports no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from energybench.seeds import digest

PRINTERS = (
    "report/",
    "shipped/",
    "cli.py",
    "commands/",
    "progress.py",
    "changed.py",
    "show.py",
    "listing.py",
    "doctor.py",
    "calibrate.py",
    "claims_page.py",
    "export.py",
    "cost_page.py",
    "counting.py",
    *("gate.py", "golden.py", "alike.py", "two_runs.py", "history.py", "ci_formats.py"),
    *("pytest_plugin.py", "benchmark.py", "billing.py", "budget.py", "energy_table.py", "overhead", "versus"),
    "__",
)


@cache
def source_digest() -> str:
    """A fingerprint of energybench itself, less what only prints and cannot move a figure."""
    package = Path(__file__).parent
    files = {str(path.relative_to(package)): path for path in sorted(package.rglob("*.py"))}
    counted = {name: path for name, path in files.items() if not name.startswith(PRINTERS)}
    return digest([(name, path.read_text(encoding="utf-8")) for name, path in counted.items()])
