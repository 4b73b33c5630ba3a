"""Fixtures for any test that meters a GPU: `fake_driver(FakeGpu(...))` puts cards behind the real binding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import FakeDriver, FakeGpu, build


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library, once per session."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_driver(fake_nvml_library: Path) -> Iterator[Callable[..., FakeDriver]]:
    """`fake_driver(*gpus, **options of script)`: an active driver until the test ends, or the next one begins."""
    with ExitStack() as active:

        def plug(*gpus: FakeGpu, **options: Any) -> FakeDriver:
            active.close()
            return active.enter_context(FakeDriver(fake_nvml_library, gpus or [FakeGpu()], **options))

        yield plug
