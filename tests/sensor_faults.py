"""What is wrong with a sensor in a test, and what a reading then says: the tests' cases, and the rows of a page.

    python tests/sensor_faults.py > docs/sensor-faults.md

Each case is injected by the test of that name; `test_fault_table.py` sees to it that the page is what this prints.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = ("meter.test_gpu_faults", "run.test_doors", "meter.test_rapl_faults", "meter.test_hwmon_faults")


@dataclass(frozen=True, slots=True)
class SensorFault:
    """One injected fault. name: of its test; sensor: which; happens: what goes wrong; seen: what the reading says."""

    name: str
    sensor: str
    happens: str
    seen: str


def every_fault() -> list[SensorFault]:
    """Those of all tests, in the order of the page."""
    for folder in (HERE / "run", HERE / "meter", HERE):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    found: list[SensorFault] = []
    for name in MODULES:
        listed: Iterable[SensorFault] = importlib.import_module(name.partition(".")[2]).FAULTS
        found += listed
    return found


def page() -> str:
    faults = every_fault()
    lines = [
        "# What sensors do wrong",
        "",
        f"{len(faults)} faults, each injected by a test through the real binding or the real file tree, on sensors\n"
        "whose true energy is known. In every one of them a figure that is given holds the truth within its error;\n"
        "what is not true is null, with its reason. This page is printed from those tests (`tests/sensor_faults.py`).",
        "",
        "| sensor | fault | what goes wrong | what the reading says |",
        "|---|---|---|---|",
    ]
    lines += [f"| {f.sensor} | {f.name} | {f.happens} | {f.seen} |" for f in faults]
    return "\n".join(
        [*lines, "", "How energy is measured: [measurement](measurement.md). Our words: [glossary](glossary.md).", ""]
    )


if __name__ == "__main__":
    sys.modules["sensor_faults"] = sys.modules[__name__]
    print(page(), end="")
