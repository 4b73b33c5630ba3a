"""The fixture `bench`, the table at the end of `make bench` and its exit code: what ratios.py says, told to pytest."""

from __future__ import annotations

import os
import platform
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from perf.ratios import Bench, Ratio, missed, told

FOUND = pytest.StashKey[list[Ratio]]()
LOAD = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-goals", action="store_true", help="exit with 1 where a speed ratio misses its goal")
    parser.addoption("--launches", type=int, default=20, help="of each way, where whole trials are launched")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FOUND] = []
    config.stash[LOAD] = os.getloadavg()[0]


def measuring(config: pytest.Config) -> bool:
    return not config._benchmarksession.disabled  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What measures is marked, so that only who asks for `-m perf` waits for it; the smoke runs with the tests."""
    if config.getoption("strict_goals", default=False) and not measuring(config):
        raise pytest.UsageError("--strict-goals judges what is measured: it needs --benchmark-enable, without xdist")
    if measuring(config):
        for item in items:
            if "bench" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.perf)


@pytest.fixture
def bench(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[Bench]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Bench(request.path.name, measuring(request.config))
    if made.measuring:
        torch.zeros(31 << 18)  # any training process has freed such a block: malloc keeps what it would give back
    yield made
    torch.set_num_threads(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    result = yield  # an error ends it here, and fails the run whatever was asked
    arguments = getattr(item, "funcargs", {})
    if "bench" in arguments:
        arguments["bench"].close(arguments["benchmark"])
        item.config.stash[FOUND] += arguments["bench"].told
    return result


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["cores"] = len(os.sched_getaffinity(0))
    machine_info["load"] = config.stash[LOAD]


def pytest_sessionfinish(session: pytest.Session) -> None:
    strict = session.config.getoption("strict_goals", default=False)
    if strict and session.exitstatus == pytest.ExitCode.OK and missed(session.config.stash[FOUND]):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash[FOUND]
    if not found:
        return
    terminalreporter.section("speed ratios")
    terminalreporter.write_line(told(found, machine(config), terminalreporter._tw.fullwidth))
    if missed(found) and config.getoption("strict_goals", default=False):
        terminalreporter.write_line("a missed goal fails this run, as asked")
    kept = config.getoption("benchmark_json", default=None)
    if kept and Path(kept).exists():
        terminalreporter.write_line(f"kept in {kept}")


def machine(config: pytest.Config) -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor, cores = next(names, platform.machine()), len(os.sched_getaffinity(0))
    return (
        f"{processor}, cores: {cores}, load {config.stash[LOAD]:.1f} at the start, torch {torch.__version__}; one "
        "thread unless said"
    )
