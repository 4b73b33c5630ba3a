"""Options of `make gpu`, and the line that says why its tests are skipped elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu")
    group.addoption("--gpu-out", default=None, help="the folder of what is found; else reports/gpu/<card>")
    group.addoption("--gpu-long", action="store_true", help="four times the limits, and trials that take turns")


@pytest.fixture(scope="session")
def out(pytestconfig: pytest.Config) -> Path | None:
    given = pytestconfig.getoption("gpu_out", default=None)
    return Path(given).absolute() if given else None
