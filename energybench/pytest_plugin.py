"""The pytest plugin: `energy_benchmark` and `@pytest.mark.energy(budget="12 J")`.

It is loaded into every pytest of an environment that has energybench, so what is not used costs nothing: until a test
asks for the fixture or carries the marker, no sensor is opened and nothing of energybench but this file is imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from energybench.pytest_energy.budget import Budget, Judgement
    from energybench.pytest_energy.metered_calls import Bill, Metering

METERING = pytest.StashKey["Metering"]()
JUDGEMENTS = pytest.StashKey[list["Judgement"]]()
MARKER = (
    'energy(budget, of=None): what the test may take, "12 J" or "5 mWh", of the parts of the machine named in `of` '
    "(gpu, cpu, dram); skipped where nothing measures it. With energy_benchmark: what one call may take."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("energybench", "energy")
    group.addoption("--energy-country", metavar="ZONE", help="Grid for CO2e: FR, US-CA, aws:eu-west-3. Default: none.")
    group.addoption(
        "--energy-gpus",
        metavar="WHICH",
        help="used: cards that the tests compute on (default); all; or UUIDs, with commas.",
    )
    parser.addini("energybench_country", "as --energy-country", default="")
    parser.addini("energybench_gpus", "as --energy-gpus", default="used")
    parser.addini("energybench_meters", "meters of other packages, by name", type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    plugins = config.pluginmanager
    here = plugins.hasplugin("benchmark") or plugins.hasplugin("pytest_benchmark.plugin")
    plugins.register(_Fixture() if here else _NoFixture(), "energybench fixture")


class _Fixture:
    """Asks for `benchmark`, so that pytest-benchmark sees such a test as one of its own."""

    @pytest.fixture
    def energy_benchmark(self, request: pytest.FixtureRequest, benchmark: Any) -> Any:
        """pytest-benchmark's `benchmark`, with joules, watts, CO2e, FLOPs and their sources in extra_info."""
        from energybench.pytest_energy.fixture import EnergyBenchmark

        return EnergyBenchmark(benchmark, _metering(request.config))


class _NoFixture:
    """Where pytest-benchmark is missing or switched off."""

    @pytest.fixture
    def energy_benchmark(self) -> Any:
        """pytest-benchmark's `benchmark`, with joules; it is not there."""
        missing = importlib.util.find_spec("pytest_benchmark") is None
        what = "is not installed: pip install pytest-benchmark" if missing else "is switched off (-p no:benchmark)"
        pytest.fail(f"energy_benchmark needs pytest-benchmark, which {what}", pytrace=False)


def _metering(config: pytest.Config) -> Metering:
    """The sensors of this session, opened when first asked for."""
    if METERING not in config.stash:
        from energybench.common.errors import EnergybenchError
        from energybench.pytest_energy.metered_calls import Metering

        gpus = config.getoption("--energy-gpus") or config.getini("energybench_gpus")
        zone = config.getoption("--energy-country") or config.getini("energybench_country")
        try:
            config.stash[METERING] = Metering(
                gpus if gpus in ("used", "all") else gpus.replace(",", " ").split(),
                config.getini("energybench_meters"),
                zone or None,
            )
        except EnergybenchError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
    return config.stash[METERING]


def _budget(item: pytest.Item) -> Budget | None:
    """The test's own, or that of its class or module. A marker that is written wrongly fails the test."""
    marker = item.get_closest_marker("energy")
    if marker is None:
        return None
    from energybench.pytest_energy.budget import BadBudget, read_marker

    try:
        return read_marker(marker.args, marker.kwargs)
    except BadBudget as error:
        raise pytest.fail.Exception(f"{item.nodeid}: {error}", pytrace=False) from None


@pytest.hookimpl(tryfirst=True)  # before its fixtures
def pytest_runtest_setup(item: pytest.Item) -> None:
    if _budget(item) is not None and _uses(item, "benchmark") and not _uses(item, "energy_benchmark"):
        pytest.fail(
            f"{item.nodeid}: a budget for a benchmark needs energy_benchmark in the place of benchmark", pytrace=False
        )


@pytest.hookimpl(wrapper=True, trylast=True)  # innermost: other plugins' work is not the test's
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    budget = _budget(item)
    if budget is None:
        return (yield)
    if _uses(item, "energy_benchmark"):
        result = yield
        fixture = getattr(item, "funcargs", {})["energy_benchmark"]
        reason = (
            "the benchmark did not run" if fixture.enabled else "benchmarks are switched off, so it ran once, unmetered"
        )
        _decide(item, budget, fixture.bill, reason)
        return result
    if hasattr(item.config, "workerinput"):
        result = yield
        _decide(item, budget, None, "other workers of xdist use the same sensors at the same time")
        return result
    with _metering(item.config).window() as window:
        window.start()
        result = yield
        window.stop()
        bill = window.bill(calls=1)
    _decide(item, budget, bill, "")
    return result


def _decide(item: pytest.Item, budget: Budget, bill: Bill | None, reason: str) -> None:
    """What the test did has passed; now what it took."""
    from energybench.pytest_energy.budget import judge

    judgement = judge(item.nodeid, budget, bill, reason)
    item.config.stash.setdefault(JUDGEMENTS, []).append(judgement)
    if bill is not None:
        facts = bill.facts()
        item.user_properties += [(key, facts[key]) for key in ("energy_j", "energy_error_j", "energy_sources")]
    item.user_properties.append(("energy_verdict", judgement.verdict))
    if judgement.verdict == "not measured":
        raise pytest.skip.Exception(judgement.sentence, _use_item_location=True)
    if judgement.verdict != "within":
        pytest.fail(judgement.sentence, pytrace=False)


def _uses(item: pytest.Item, fixture: str) -> bool:
    return fixture in getattr(item, "fixturenames", ())


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Generator[None, Any, Any]:
    try:
        return (yield)  # pytest-benchmark prints its table here, and raises where --benchmark-compare-fail says so
    finally:
        session = getattr(config, "_benchmarksession", None)
        if session is not None and session.groups and not session.quiet and METERING in config.stash:
            from energybench.pytest_energy import energy_table

            groups = energy_table.rows_of(session.groups, session.compared_mapping or {}, session.sort)
            for group, rows in groups.items():
                energy_table.write(terminalreporter, group, rows)
        if judgements := config.stash.get(JUDGEMENTS, None):
            from energybench.pytest_energy import energy_table

            energy_table.write_budgets(terminalreporter, judgements)
