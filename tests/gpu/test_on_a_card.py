"""`make gpu`: every part on a real card, one after the other, each in its process; skipped where there is none.

What is found lies in the folder as soon as it is known, whatever a test here says of it: README.md and a JSON file for
each part. A test fails where a check of its part does not hold, and is skipped where its part was cut short.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.neutral import OUTSIDE, ROOT
from gpu.page import write_page
from gpu.parts import PARTS, Part, folder_of, run_part

pytestmark = pytest.mark.gpu

LOOK = """
import torch
from energybench.meter.devices import visible_uuids
from energybench.meter.nvml import open_gpus
from energybench.meter.unavailable import Unavailable

try:
    gpu = open_gpus(visible_uuids()[:1])[0]
except Unavailable as error:
    print("no:", error.reason)
else:
    print("card:" if torch.cuda.is_available() else "no: torch sees no CUDA, though there is a", gpu.name)
"""


@pytest.fixture(scope="session")
def card() -> str:
    """Its name, in this machine's own environment, which tests otherwise do not see."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [OUTSIDE.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env={**OUTSIDE, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    kind, _, words = (done.stdout.strip().splitlines() or [f"no: {done.stderr.strip()[-300:]}"])[-1].partition(": ")
    if kind != "card":
        pytest.skip(f"it needs an NVIDIA card: {words}")
    return words


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_on_this_card(part: Part, card: str, out: Path | None, pytestconfig: pytest.Config) -> None:
    folder = out or ROOT / "reports" / "gpu" / folder_of(card)
    found = run_part(part, folder, OUTSIDE, fake=False, long=pytestconfig.getoption("gpu_long"))
    print(f"\n{write_page(folder)}")
    failed = [f"{check['name']}: {check['detail']}" for check in found["checks"] if check["passed"] is False]
    assert found["status"] != "failed", found["reason"]
    assert not failed, failed
    if found["status"] == "cut short":
        pytest.skip(found["reason"])
