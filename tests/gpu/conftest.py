"""Options of `make gpu`, and the line that says why its tests are skipped elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.nvml import FakeDriver, FakeGpu

POWER_W = 120.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu")
    group.addoption("--gpu-out", default=None, help="the folder of what is found; else reports/gpu/<card>")
    group.addoption("--gpu-fake", action="store_true", help="a made-up driver; into --gpu-out or a temporary folder")
    group.addoption("--gpu-long", action="store_true", help="four times the limits, and trials that take turns")


@pytest.fixture(scope="session")
def fake_machine(fake_nvml_library: Path) -> Callable[[Path], dict[str, str]]:
    """`fake_machine(folder)`: the environment of a machine with one made-up card, on the real clock, that always draws
    POWER_W."""

    def made(folder: Path) -> dict[str, str]:
        driver = FakeDriver(fake_nvml_library, [FakeGpu(name="Fake Card", power=POWER_W, tick_s=0.01)])
        return {**os.environ, **driver.environment(folder), "OMP_NUM_THREADS": "1"}

    return made
