"""The pytest plugin in real runs of pytest and pytest-benchmark, on cards and processors of known power.

Each run is a process of its own, with the fake driver under the real binding and a powercap tree whose counters move;
what came of its tests is read from JUnit's and pytest-benchmark's own files. Several tests here look at one run.
Those with sensors go by a virtual clock (fakes/in_children.py), on which only sleeping takes time, and exactly so long.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from fakes import in_children
from fakes.nvml import UUID, FakeDriver, FakeGpu
from fakes.powercap import Powercap

VIRTUAL = in_children.environment(clock="virtual", PYTHONPATH=str(Path(__file__).resolve().parent.parent))
ROOT = Path(__file__).resolve().parent.parent
GPU_W, CPU_W, DRAM_W, TICK_S = 300.0, 60.0, 5.0, 0.005
ALL_W = GPU_W + CPU_W + DRAM_W
OTHER = "GPU-00000000-0000-0000-0000-000000000002"
# Where energybench is installed with its entry point pytest loads the plugin by itself.
INSTALLED = any(point.name == "energybench" for point in entry_points(group="pytest11"))
PLUGIN = () if INSTALLED else ("-p", "energybench.pytest_plugin")


@dataclass(frozen=True)
class Test:
    """What came of one test of a run: passed, failed, error or skipped, with what was said and JUnit's properties."""

    __test__ = False
    outcome: str
    said: str
    properties: dict[str, str]


@dataclass(frozen=True)
class Ran:
    code: int
    output: str
    tests: dict[str, Test]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # energybench's extra_info, and `stats`

    def table(self, title: str = "energy") -> str:
        return self.output.partition(f" {title}: ")[2]


def pytest_in(
    folder: Path,
    text: str | None,
    *arguments: str,
    environment: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> Ran:
    """Run pytest on `text` in `folder`; None: on what is there."""
    if text is not None:
        (folder / "test_it.py").write_text(text, encoding="utf-8")
    junit, saved = folder / "junit.xml", folder / "saved.json"
    saved.unlink(missing_ok=True)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COLUMNS"))}
    known = {"ENERGYBENCH_POWERCAP": str(folder / "no-rapl"), "PYTHONPATH": str(ROOT)}
    with_benchmark = (
        ()
        if "no:benchmark" in arguments
        else ("--benchmark-max-time=0.3", "--benchmark-min-rounds=3", f"--benchmark-json={saved}")
    )
    done = subprocess.run(
        [
            *prefix,
            sys.executable,
            "-m",
            "pytest",
            *PLUGIN,
            "-p",
            "no:cacheprovider",
            "-rsf",
            "--strict-markers",
            f"--junitxml={junit}",
            *with_benchmark,
            *arguments,
        ],
        cwd=folder,
        env={**plain, **known, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    benches = json.loads(saved.read_text())["benchmarks"] if saved.exists() and saved.stat().st_size else []
    facts = {b["name"]: b["extra_info"].get("energybench", {}) | {"stats": b["stats"]} for b in benches}
    return Ran(done.returncode, done.stdout + done.stderr, _tests(junit), facts)


def _tests(junit: Path) -> dict[str, Test]:
    found: dict[str, Test] = {}
    for case in ElementTree.parse(junit).iter("testcase") if junit.exists() else ():
        said = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = {"failure": "failed", None: "passed"}.get(said.tag if said is not None else None, "")
        message = f"{said.get('message')}\n{said.text}" if said is not None else ""
        properties = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
        found[case.get("name", "")] = Test(outcome or str(said.tag), message, properties)  # type: ignore[union-attr]
    return found


# ── one run on a machine with a card and a processor ──────────────────────────────────────────────────────

METERED = """
import time, pytest

def test_call(energy_benchmark):
    energy_benchmark(time.sleep, 0.02)

@pytest.mark.benchmark(timer=time.process_time, min_rounds=15, max_time=0.1)
def test_timer(energy_benchmark):
    energy_benchmark.pedantic(time.sleep, args=(0.02,), rounds=15)

def test_iterations(energy_benchmark):
    energy_benchmark.pedantic(time.sleep, args=(0.005,), rounds=20, iterations=4)

def test_setup(energy_benchmark):
    energy_benchmark.pedantic(time.sleep, setup=lambda: (time.sleep(0.2), ((0.15,), {}))[1],
                              teardown=lambda s: time.sleep(0.2), rounds=2)

def slow_at_first(longer):
    calls = []
    def work():
        calls.append(time.sleep(0.08 if len(calls) < longer else 0.02))
    return work

def test_warmup_of_pedantic(energy_benchmark):
    energy_benchmark.pedantic(slow_at_first(5), rounds=15, warmup_rounds=5)

@pytest.mark.benchmark(warmup=True, warmup_iterations=5, min_rounds=15, max_time=0.1)
def test_warmup_by_option(energy_benchmark):
    # A calibration of 1 call, up to 5 to warm it up for a tenth of a second, and 5 more before the rounds.
    energy_benchmark(slow_at_first(1 + 2 + 5))

def test_short_rounds(energy_benchmark):
    energy_benchmark.pedantic(lambda: None, rounds=20_000)

def test_raises(energy_benchmark):
    energy_benchmark.pedantic(lambda: 1 / 0, rounds=3)

def test_raises_left_nothing_in_the_background():
    from fakes.in_children import CLOCK
    assert not CLOCK._due

@pytest.mark.parametrize("iterations", [1, 3])
def test_same_calls(energy_benchmark, iterations):
    calls = []
    def work(x, *, y):
        time.sleep(0.02)
        calls.append(x + y)
        return len(calls)
    last = energy_benchmark.pedantic(work, (1,), {"y": 2}, rounds=10, iterations=iterations, warmup_rounds=2)
    # As pytest-benchmark's source has it: one more for the result where the rounds keep none.
    assert (last, set(calls)) == ((12, {3}) if iterations == 1 else (37, {3}))

def test_one_state(benchmark, energy_benchmark):
    energy_benchmark.group, energy_benchmark.extra_info["mine"] = "ours", 1
    energy_benchmark.pedantic(time.sleep, args=(0.15,), rounds=1)
    assert benchmark.group == "ours" and benchmark.extra_info["mine"] == 1 and benchmark.stats

@pytest.mark.benchmark(max_time=0.45)
@pytest.mark.energy("9 J")
def test_call_within(energy_benchmark):
    energy_benchmark(time.sleep, 0.02)

@pytest.mark.benchmark(max_time=0.45)
@pytest.mark.energy("6 J")
def test_call_over(energy_benchmark):
    energy_benchmark(time.sleep, 0.02)

@pytest.mark.parametrize("name", [
    pytest.param("within", marks=pytest.mark.energy(budget="250 J")),
    pytest.param("over", marks=pytest.mark.energy(budget="75 J")),
    pytest.param("within_in_watt_hours", marks=pytest.mark.energy("70 mWh")),
    pytest.param("within_dram", marks=pytest.mark.energy("5 J", of="dram")),
    pytest.param("over_cpu", marks=pytest.mark.energy("5 J", of="cpu")),
    pytest.param("over_parts", marks=pytest.mark.energy("12 J", of="cpu+dram")),
    pytest.param("no_such_meter", marks=pytest.mark.energy("1 MJ", of=("machine",))),
])
def test_budget(name):
    time.sleep(0.45)

@pytest.mark.energy("1 MJ")
def test_asserts_first():
    assert False, "on purpose"
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Powercap:
    """A machine of 60 W and 5 W of memory."""
    machine = Powercap(tmp_path_factory.mktemp("powercap"))
    machine.add("intel-rapl:0", "package-0", CPU_W)
    machine.add("intel-rapl:0:1", "dram", DRAM_W)
    return machine


@pytest.fixture(scope="module")
def processor(machine: Powercap) -> dict[str, str]:
    """What a process needs to be on that machine, on a virtual clock."""
    return in_children.environment(clock="virtual", powercap=machine, PYTHONPATH=str(ROOT))


def card(library: Path, folder: Path, *gpus: FakeGpu) -> dict[str, str]:
    """The same of a machine with cards."""
    return FakeDriver(library, gpus).environment(folder, clock="virtual") | VIRTUAL


@pytest.fixture(scope="module")
def metered(fake_nvml_library: Path, processor: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("metered")
    (folder / "pytest.ini").write_text("[pytest]\nenergybench_country = fr\nenergybench_gpus = all\n")
    gpu = card(fake_nvml_library, folder, FakeGpu(power=GPU_W, tick_s=TICK_S))
    return pytest_in(folder, METERED, environment=gpu | processor)


def assert_billed(facts: dict[str, Any], call_s: float, watts: float = ALL_W) -> None:
    """One call took its power times its time, within an error of less than 2 %."""
    assert facts["energy_j"] is not None, facts["energy_reason"]
    assert abs(facts["energy_j"] - watts * call_s) <= facts["energy_error_j"] < 0.02 * watts * call_s


def test_a_call_takes_the_power_of_card_and_processor_times_its_time_and_says_by_whom(metered: Ran) -> None:
    facts = metered.facts["test_call"]
    assert facts["calls"] == facts["stats"]["rounds"] * facts["stats"]["iterations"]
    assert facts["stats"]["mean"] == pytest.approx(0.02, rel=1e-3)
    assert_billed(facts, 0.02)
    assert facts["power_w"] == pytest.approx(ALL_W, rel=0.02)
    assert facts["energy_sources"] == ["gpu_counter (gpu)", "rapl (cpu)", "rapl (dram)"]
    assert facts["modelled_energy_j"] is None
    assert facts["timed_s"] == pytest.approx(facts["stats"]["total"], rel=1e-9)
    row = re.search(r"test_call +([\d.]+) J ± [\d.]+ m?J", metered.table())
    assert row is not None
    assert float(row[1]) == pytest.approx(facts["energy_j"], rel=0.01)
    assert "gpu_counter (gpu) + rapl (cpu) + rapl (dram)" in metered.table()


def test_the_cards_truth_lies_within_the_stated_error(metered: Ran) -> None:
    for name in ("test_call", "test_iterations", "test_one_state"):
        facts = metered.facts[name]
        (counter,) = [part for part in facts["sensors"] if part["source"] == "gpu_counter"]
        assert abs(counter["energy_j"] - GPU_W * facts["window_s"]) <= counter["error_j"], name


def test_a_timer_of_processor_seconds_does_not_change_what_a_call_took(metered: Ran) -> None:
    facts = metered.facts["test_timer"]
    assert facts["stats"]["mean"] < 0.01  # else this says nothing: it slept
    assert_billed(facts, 0.02)
    assert 15 * 0.02 <= facts["timed_s"] <= facts["window_s"]


def test_iterations_of_a_round_are_calls_too(metered: Ran) -> None:
    facts = metered.facts["test_iterations"]
    assert facts["calls"] == 80
    assert_billed(facts, 0.005)


def test_setup_and_teardown_between_the_rounds_are_not_billed(metered: Ran) -> None:
    """A round of 0.15 s between four tenths of them."""
    facts = metered.facts["test_setup"]
    assert facts["window_s"] == pytest.approx(2 * 0.15, rel=1e-3)
    assert_billed(facts, 0.15)


@pytest.mark.parametrize("name", ["test_warmup_of_pedantic", "test_warmup_by_option"])
def test_a_warm_up_is_not_billed(metered: Ran, name: str) -> None:
    """Its calls are four times as long as those that are timed."""
    facts = metered.facts[name]
    assert facts["stats"]["max"] < 0.06  # else this says nothing
    assert facts["calls"] == facts["stats"]["rounds"] == 15
    assert_billed(facts, 0.02)


def test_rounds_so_short_that_the_window_is_mostly_bookkeeping_have_no_figure(metered: Ran) -> None:
    facts = metered.facts["test_short_rounds"]
    assert facts["timed_s"] < 0.9 * facts["window_s"]
    assert (facts["energy_j"], facts["co2e_kg"]) == (None, None)
    assert "--benchmark-min-time" in facts["energy_reason"]


def test_a_function_that_raises_fails_as_with_benchmark_and_its_window_is_closed(metered: Ran) -> None:
    assert metered.tests["test_raises"].outcome == "failed"
    assert "ZeroDivisionError" in metered.tests["test_raises"].said
    assert "test_raises" not in metered.facts
    assert metered.tests["test_raises_left_nothing_in_the_background"].outcome == "passed"


def test_it_is_benchmark_with_the_same_calls_the_same_result_and_one_state(metered: Ran) -> None:
    for name in ("test_same_calls[1]", "test_same_calls[3]", "test_one_state"):
        assert metered.tests[name].outcome == "passed", metered.tests[name].said


def test_co2e_is_measured_energy_times_the_countrys_intensity(metered: Ran) -> None:
    """France is 56.04 g/kWh."""
    facts = metered.facts["test_call"]
    assert facts["co2e_kg"] == pytest.approx(facts["energy_j"] / 3.6e6 * 0.05604, rel=1e-4)
    assert facts["carbon"]["zone"] == "FRA"


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("test_budget[within]", "passed"),  # 365 W for 0.45 s are 164 J, or 46 mWh
        ("test_budget[over]", "failed"),
        ("test_budget[within_in_watt_hours]", "passed"),
        ("test_budget[within_dram]", "passed"),
        ("test_budget[over_cpu]", "failed"),
        ("test_budget[over_parts]", "failed"),
        ("test_budget[no_such_meter]", "skipped"),
        ("test_call_within", "passed"),  # 7.3 J a call
        ("test_call_over", "failed"),
    ],
)
def test_a_test_keeps_to_its_budget_or_fails(metered: Ran, name: str, outcome: str) -> None:
    found = metered.tests[name]
    assert found.outcome == outcome, found.said
    verdict = {"passed": "within", "failed": "over", "skipped": "not measured"}[outcome]
    assert found.properties["energy_verdict"] == verdict
    assert re.search(rf"test_it\.py::{re.escape(name)} .* {verdict}\n", metered.table("energy budgets"))
    if outcome == "failed":
        assert re.search(r"over budget: [\d.]+ J ± [\d.]+ m?J by .*; the budget is \d+ J", found.said)
        assert "Traceback" not in found.said
    if outcome == "skipped":
        assert "nothing measures machine here" in found.said


def test_a_benchmarks_budget_is_that_of_one_call(metered: Ran) -> None:
    assert re.search(r"a call, over \d\d calls", metered.tests["test_call_over"].said)


def test_what_a_test_asserts_is_decided_before_its_budget(metered: Ran) -> None:
    assert metered.tests["test_asserts_first"].outcome == "failed"
    assert "on purpose" in metered.tests["test_asserts_first"].said


# ── one run on a machine without any sensor ───────────────────────────────────────────────────────────────

UNMETERED = """
import time, pytest
torch = pytest.importorskip("torch")

def test_call(energy_benchmark):
    energy_benchmark(time.sleep, 0.01)

def product(benchmark, how, calls=None, **options):
    a, b, seen = torch.ones(8, 16), torch.ones(16, 32), []
    def work():
        seen.append(0)
        return a @ b
    how(benchmark, work)
    assert calls in (None, len(seen))

def test_flop(energy_benchmark):
    product(energy_benchmark, lambda b, work: b(work))

def test_flop_of_iterations(energy_benchmark):
    product(energy_benchmark, lambda b, work: b.pedantic(work, rounds=2, iterations=3), 7)

def test_flop_of_pedantic(energy_benchmark):
    product(energy_benchmark, lambda b, work: b.pedantic(work, rounds=2), 2)

def test_flop_asked_for(energy_benchmark):
    energy_benchmark.flops = True
    product(energy_benchmark, lambda b, work: b.pedantic(work, rounds=2), 3)

def test_flop_refused(energy_benchmark):
    energy_benchmark.flops = False
    product(energy_benchmark, lambda b, work: b(work))

@pytest.mark.energy("1 MJ")
def test_budget():
    pass

@pytest.mark.energy("1 MJ")
def test_budget_and_failure():
    assert False, "on purpose"

@pytest.mark.energy(budget="12")
def test_no_unit(): pass

@pytest.mark.energy
def test_no_budget(): pass

@pytest.mark.energy(budget="12 j")
def test_wrong_unit(): pass

@pytest.mark.energy(budget="12 J", off="gpu")
def test_wrong_word(): pass

@pytest.mark.energy(budget="12 J", of="gppu")
def test_wrong_part(): pass

@pytest.mark.energy(budget="12 J")
def test_plain_benchmark(benchmark):
    benchmark(len, "x")
"""


@pytest.fixture(scope="module")
def unmetered(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return pytest_in(
        tmp_path_factory.mktemp("unmetered"), UNMETERED, "--benchmark-max-time=0.05", "--energy-country=FRA"
    )


def test_without_a_sensor_energy_is_null_and_what_is_modelled_is_called_so(unmetered: Ran) -> None:
    facts = unmetered.facts["test_call"]
    assert (facts["energy_j"], facts["energy_error_j"], facts["power_w"], facts["co2e_kg"]) == (None,) * 4
    assert "RAPL" in facts["energy_reason"]
    assert facts["modelled_energy_j"] > 0
    assert all(source.startswith("model(") for source in facts["energy_sources"])
    assert re.search(r"test_call +modelled [\d.]+ m?J", unmetered.table())
    flat = " ".join(unmetered.table().split())
    assert re.search(r"modelled energy is of the whole machine at a (mean )?load of \d+ %", flat)


@pytest.mark.parametrize(
    ("name", "flop"),
    [
        ("test_flop", 2 * 8 * 16 * 32),  # in the call for the result, which nobody times
        ("test_flop_of_iterations", 2 * 8 * 16 * 32),
        ("test_flop_of_pedantic", None),
        ("test_flop_asked_for", 2 * 8 * 16 * 32),
        ("test_flop_refused", None),
        ("test_call", None),  # never 0
    ],
)
def test_the_flops_of_one_call_are_counted_outside_the_timed_rounds(
    unmetered: Ran, name: str, flop: int | None
) -> None:
    assert unmetered.tests[name].outcome == "passed", unmetered.tests[name].said
    assert unmetered.facts[name]["flop"] == flop
    assert ("flop_reason" in unmetered.facts[name]) == (flop is None)


def test_where_nothing_measures_a_budget_is_skipped_with_the_reason_and_never_passed(unmetered: Ran) -> None:
    assert unmetered.tests["test_budget"].outcome == "skipped"
    assert re.search(r"SKIPPED \[1\] test_it\.py:\d+: not measured: RAPL", unmetered.output)
    assert "modelled energy keeps to no budget" in unmetered.tests["test_budget"].said
    assert unmetered.tests["test_budget_and_failure"].outcome == "failed"  # what it asserts is checked everywhere


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("test_no_unit", "joules or watt-hours"),
        ("test_no_budget", "needs one budget"),
        ("test_wrong_unit", "did you mean 'J'?"),
        ("test_wrong_word", "did you mean 'of'?"),
        ("test_wrong_part", "did you mean 'gpu'?"),
        ("test_plain_benchmark", "needs energy_benchmark"),
    ],
)
def test_a_marker_that_is_written_wrongly_is_an_error_with_what_to_write(unmetered: Ran, name: str, word: str) -> None:
    assert unmetered.tests[name].outcome == "error"
    assert word in unmetered.tests[name].said
    assert "Traceback" not in unmetered.tests[name].said


# ── what it costs, and where it stands aside ──────────────────────────────────────────────────────────────

CALL = "import time\ndef test_call(energy_benchmark):\n    energy_benchmark(time.sleep, {seconds})\n"
BUDGET = "import pytest\n@pytest.mark.energy('1 MJ')\ndef test_budget(): pass\n"


OFFERED = """
from energybench.meter import sensors
from energybench.meter.reading import Energy, Reading

class Plug:
    def start(self): pass
    def stop(self):
        return Reading(wall_s=0.0, energy=[Energy(source="x", scope="machine", energy_j=10.0)])

class Point:
    def load(self): return Plug

sensors.offered = lambda: {"plug": Point()}
"""


def test_a_meter_that_states_no_error_decides_no_budget_and_its_error_is_nowhere_zero(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(OFFERED)
    (tmp_path / "pytest.ini").write_text("[pytest]\nenergybench_meters = plug\n")
    ran = pytest_in(tmp_path, BUDGET + CALL.format(seconds=0.02), environment=VIRTUAL | {"COLUMNS": "200"})
    budget = ran.tests["test_budget"]
    assert budget.outcome == "failed"
    assert "undecided: 10 J, error unknown, by meter(plug) (machine)" in budget.said
    assert (budget.properties["energy_j"], budget.properties["energy_verdict"]) == ("10.0", "undecided")
    assert budget.properties["energy_error_j"] == "None"
    facts = ran.facts["test_call"]
    assert facts["energy_j"] == pytest.approx(10.0 / facts["calls"])
    assert facts["energy_error_j"] is None
    assert "does not say how far off it may be" in facts["energy_error_reason"]
    assert "error unknown" in ran.table()
    assert "±" not in ran.table() + budget.said


def test_unused_it_imports_nothing_and_opens_no_sensor(tmp_path: Path) -> None:
    text = """
import sys
def test_it(benchmark):
    benchmark(len, "x")
    assert not {"torch", "rich", "pynvml", "codecarbon", "numpy", "pydantic", "psutil"} & set(sys.modules)
    ours = {name.removeprefix("energybench.") for name in sys.modules if name.startswith("energybench.")}
    assert "pytest_plugin" in ours
    parts = ("meter", "report", "billing", "benchmark", "budget", "energy")
    assert not {name for name in ours if name.startswith(parts)}
"""
    ran = pytest_in(tmp_path, text, "-p", "no:hypothesispytest", "-p", "no:anyio", "--benchmark-max-time=0.01")
    assert ran.tests["test_it"].outcome == "passed", ran.tests["test_it"].said
    assert " energy" not in ran.output.partition("collected")[2]


def test_without_pytest_benchmark_the_fixture_says_what_is_missing_and_the_marker_works(
    tmp_path: Path, machine: Powercap
) -> None:
    """On the real clock: a threshold that no machine fails."""
    text = CALL.format(seconds=0.01) + BUDGET.replace("pass", "time.sleep(0.2)")
    real = in_children.environment(powercap=machine, PYTHONPATH=str(ROOT))
    ran = pytest_in(tmp_path, text, "-p", "no:benchmark", environment=real)
    assert ran.tests["test_call"].outcome == "error"
    assert "needs pytest-benchmark, which is switched off (-p no:benchmark)" in ran.tests["test_call"].said
    assert ran.tests["test_budget"].outcome == "passed", ran.tests["test_budget"].said
    assert float(ran.tests["test_budget"].properties["energy_j"]) >= 0.19 * (CPU_W + DRAM_W)


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"energybench": "energybench.pytest_plugin"}


def test_only_skip_and_disable_know_a_test_of_ours_as_a_benchmark(tmp_path: Path, processor: dict[str, str]) -> None:
    text = CALL.format(seconds=0.01).replace("def ", "@pytest.mark.energy('1 MJ')\ndef ")
    text = f"import pytest\n{text}def test_other(): pass\n"
    for option, call, other in (
        ("--benchmark-only", "passed", "skipped"),
        ("--benchmark-skip", "skipped", "passed"),
        ("--benchmark-disable", "skipped", "passed"),
    ):
        ran = pytest_in(tmp_path, text, option, environment=processor)
        assert (ran.tests["test_call"].outcome, ran.tests["test_other"].outcome) == (call, other), option
    assert "benchmarks are switched off, so it ran once, unmetered" in ran.tests["test_call"].said


def test_a_worker_of_xdist_skips_what_it_cannot_measure_alone(tmp_path: Path, processor: dict[str, str]) -> None:
    """As its workers look to plugins; the real thing is not among our requirements."""
    (tmp_path / "conftest.py").write_text("def pytest_configure(config): config.workerinput = {}\n")
    ran = pytest_in(
        tmp_path, CALL.format(seconds=0.01) + BUDGET, environment=processor | {"PYTEST_XDIST_WORKER": "gw0"}
    )
    assert "1 passed, 1 skipped" in ran.output  # a worker writes no JUnit
    assert "not measured: other workers of xdist" in ran.output


def test_saved_runs_are_compared_and_a_regression_fails_as_their_users_know(
    tmp_path: Path, processor: dict[str, str]
) -> None:
    def again(seconds: float, *arguments: str) -> Ran:
        return pytest_in(tmp_path, CALL.format(seconds=seconds), *arguments, environment=processor)

    again(0.01, "--benchmark-autosave")
    same = again(0.01, "--benchmark-compare", "--benchmark-compare-fail=min:60%", "--benchmark-autosave")
    assert same.code == 0, same.output
    saved = list((tmp_path / ".benchmarks").rglob("*.json"))
    assert len(saved) == 2
    for file in saved:
        assert json.loads(file.read_text())["benchmarks"][0]["extra_info"]["energybench"]["energy_j"] > 0
    slower = again(0.03, "--benchmark-compare=0001", "--benchmark-compare-fail=min:60%")
    assert slower.code != 0
    assert "Performance has regressed" in slower.output
    rows = re.findall(r"test_call \((NOW|0001)[^)]*\) +([\d.]+) (m?)J", slower.table())
    joules = {name: float(figure) * (1e-3 if milli else 1) for name, figure, milli in rows}
    assert joules["NOW"] / joules["0001"] == pytest.approx(3, rel=0.02)  # saved joules beside those of now


# ── what has no figure ────────────────────────────────────────────────────────────────────────────────────


def test_a_card_of_few_ticks_has_no_figure_and_is_not_left_out_of_a_total_with_the_processor(
    tmp_path: Path, fake_nvml_library: Path, processor: dict[str, str]
) -> None:
    gpu = card(fake_nvml_library, tmp_path, FakeGpu(power=GPU_W, tick_s=0.1))
    ran = pytest_in(tmp_path, CALL.format(seconds=0.02), "--energy-gpus=all", environment=gpu | processor)
    assert ran.facts["test_call"]["energy_j"] is None
    assert "shorter than 10 ticks" in ran.facts["test_call"]["energy_reason"]


def test_a_card_that_is_lost_inside_the_window_leaves_no_partial_total(
    tmp_path: Path, fake_nvml_library: Path, processor: dict[str, str]
) -> None:
    gpu = card(fake_nvml_library, tmp_path, FakeGpu(power=GPU_W, tick_s=TICK_S, lost=[(12.0,)]))
    text = CALL.format(seconds=13.0).replace("(time.sleep, 13.0)", ".pedantic(time.sleep, args=(13.0,), rounds=1)")
    ran = pytest_in(tmp_path, text, "--energy-gpus=all", environment=gpu | processor)
    assert ran.facts["test_call"]["energy_j"] is None
    assert "died inside the window" in ran.facts["test_call"]["energy_reason"]


def test_the_card_that_the_process_computes_on_is_metered_and_a_stranger_there_forbids_a_verdict(
    tmp_path: Path, fake_nvml_library: Path
) -> None:
    cards = [
        FakeGpu(uuid=OTHER, power=900.0, tick_s=TICK_S),
        FakeGpu(power=GPU_W, tick_s=TICK_S, compute=[(424242,), (434343,)]),
    ]
    environment = card(fake_nvml_library, tmp_path, *cards)
    # The shell's process becomes pytest's, so its number can be written into the card's list before.
    shell = ("bash", "-c", 'sed -i "s/424242/$$/" "$FAKE_NVML_SCRIPT" && exec "$@"', "-")
    text = "import pytest\n" + CALL.format(seconds=0.02).replace("def ", "@pytest.mark.energy('90 J')\ndef ")
    ran = pytest_in(tmp_path, text, "--benchmark-max-time=0.8", environment=environment, prefix=shell)
    facts = ran.facts["test_call"]
    assert {part["device"] for part in facts["sensors"] if part["scope"] == "gpu"} == {UUID}
    assert facts["power_w"] == pytest.approx(GPU_W, rel=0.02)
    assert "Another process" in facts["energy_no_verdict"]
    assert ran.tests["test_call"].outcome == "skipped"
    assert "Another process" in ran.tests["test_call"].said
