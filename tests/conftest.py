"""A neutral machine, one thread and reproducible examples: tests share a small machine with timed runs."""

from __future__ import annotations

# ruff: noqa: E402  (the machine is made neutral before anything else is imported)
from fakes.neutral import forget, settle, warn_as_usual

settle()  # before anything reads what machine this is

import gc
import itertools
import random
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fakes.fixtures import fake_driver, fake_nvml_library  # noqa: F401  (fixtures, for every folder)
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

torch.set_num_threads(1)


def cheap_seeds() -> None:
    """torch keeps each seed for cards that may come, with the whole stack as text: in pytest, 20 ms a seed."""
    for kind in (torch.cuda, torch.mtia, torch.xpu):
        kind.traceback = types.SimpleNamespace(format_stack=list)  # type: ignore[attr-defined]


cheap_seeds()
FIRST = ("test_failures", "test_cheats", "test_examples", "test_commands_run")  # a fixture of each takes half a minute
USERS = "energybench_user_"  # and a hash of the path

# Hypothesis also draws constants that stand in the modules loaded so far, so that its examples would depend on which
# tests ran before in the same process: with several processes, on chance.
providers._get_local_constants = providers.Constants  # none


@pytest.fixture(autouse=True)
def same_chance() -> None:
    """Whatever a test draws without a generator of its own is the same in every order of the tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def leaves_no_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test imports of its own folder is gone when it ends: the next test would find it under a package's name.

    Code of users, which energybench loads, has a name that holds its whole path.
    """
    last = next(reversed(sys.modules))
    yield
    new = list(itertools.takewhile(lambda name: name != last, reversed(sys.modules)))
    own = str(tmp_path_factory.getbasetemp())
    files = {name: str(getattr(sys.modules[name], "__file__", None)) for name in new if not name.startswith(USERS)}
    left = [name for name, file in files.items() if file.startswith(own)]
    for name in left:
        del sys.modules[name]
    assert not left, "imported from this test's folder and left in sys.modules"


settings.register_profile(
    "energybench",
    deadline=None,
    max_examples=40,
    derandomize=True,  # the same examples on every machine; `--hypothesis-profile=default` looks for new ones
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("energybench")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    forget()


def pytest_configure() -> None:
    warn_as_usual()
    gc.disable()  # collecting 12,000 tests makes a million objects that stay: looking through them took half the time


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that no process is left alone with it at the end; a module stays together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: (FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST), item.path not in slow)
    )


def pytest_collection_finish() -> None:
    gc.freeze()  # they are not looked through again
    gc.enable()
