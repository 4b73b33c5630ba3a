"""`make gpu`: every part on a real card, one after the other, each in its process; skipped where there is none.

What is found lies in the folder as soon as it is known, whatever a test here says of it: README.md and a JSON file for
each part. A test fails where a check of its part does not hold, and is skipped where its part was cut short.
`make gpu-fake` is the same against a made-up driver, on this machine's processor.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes.neutral import OUTSIDE, ROOT
from gpu.page import write_page
from gpu.parts import PARTS, Part, folder_of, run_part

pytestmark = pytest.mark.gpu

LOOK = """
import torch
from energybench.meter.nvml import open_gpus
from energybench.meter.unavailable import Unavailable

if not torch.cuda.is_available():
    print(f"no: torch {torch.__version__} sees none")
else:
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    try:
        print(f"{uuid}: {open_gpus([uuid])[0].name}")
    except Unavailable as error:
        print(f"no: torch sees {torch.cuda.get_device_name(0)}, and {error.reason}")
"""


@dataclass(frozen=True)
class Place:
    """Where parts run: the environment of their processes, their folder, and whether the card is a fake."""

    environment: dict[str, str]
    folder: Path
    fake: bool = False


@pytest.fixture(scope="session")
def place(
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
    fake_machine: Callable[[Path], dict[str, str]],
) -> Place:
    given = pytestconfig.getoption("gpu_out", default=None)
    out = Path(given).absolute() if given else None
    if pytestconfig.getoption("gpu_fake", default=False):
        folder = out or tmp_path_factory.mktemp("fake-card")
        assert ROOT / "reports" not in [folder, *folder.parents], "no number of a fake goes to reports/"
        packages = {key: OUTSIDE[key] for key in ("PYTHONPATH",) if key in OUTSIDE}  # the wheels of run.sh
        return Place(fake_machine(tmp_path_factory.mktemp("driver")) | packages, folder, fake=True)
    uuid, name = look()
    # By its UUID both CUDA and NVML find the same card; each counts them in an order of its own.
    environment = {**OUTSIDE, "CUDA_VISIBLE_DEVICES": uuid}
    return Place(environment, out or ROOT / "reports" / "gpu" / folder_of(name))


def look() -> tuple[str, str]:
    """(UUID, name) of the card that torch uses by default, in this machine's own environment, which tests otherwise do
    not see; skips where there is none."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [OUTSIDE.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env={**OUTSIDE, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    last = (done.stdout.strip().splitlines() or [f"no: {done.stderr.strip()[-300:]}"])[-1]
    uuid, _, words = last.partition(": ")
    if not uuid.startswith("GPU-"):
        pytest.skip(f"it needs a whole NVIDIA card: {words}")
    return uuid, words


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_on_this_card(part: Part, place: Place, pytestconfig: pytest.Config) -> None:
    long = pytestconfig.getoption("gpu_long", default=False)
    found = run_part(part, place.folder, place.environment, fake=place.fake, long=long)
    print(f"\n{write_page(place.folder)}")
    failed = [f"{check['name']}: {check['detail']}" for check in found["checks"] if check["passed"] is False]
    assert found["status"] != "failed", found["reason"]
    assert not failed, failed
    if found["status"] == "cut short":
        pytest.skip(found["reason"])
