"""No verdict in favour of whoever does its training where nobody looks: ten cheats and their variants, end to end.

One run of all of them (cheats.py), three blocks, by time. Two honest methods run beside them: without one that is
called faster, no test here could fail.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import energybench

sys.path.insert(0, str(Path(__file__).parents[1] / "run"))
from tiny_runs import contents, only_run, suite_text

pytestmark = pytest.mark.slow

WORKLOAD = """[accept]
quality = { metric = "accuracy", loses_at_most = "100 pp" }
estimate_gap = "100 pp"
[[workload]]
name = "w"
task = "cheats.py:Timed"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 256, test_subset = 32 }
train = { epochs = 2, lr = 0.1 }
"""
STEP_S, STEPS, HIDDEN_S = 0.005, 32, 0.3
# Class → the flag that strikes it or makes its trials invalid; None where what it does is billed.
CHEATS = {
    "Setup": None,
    "EvaluationContext": "weights_changed",
    "EvaluationLeavesIt": "weights_changed",
    "TestSet": None,
    "Thread": "outside_work",
    "Evaluate": "patched",
    "EvaluateOfTheClass": "patched",
    "EvaluateByTorch": "patched",
    "Clock": "patched",
    "ClockOfOurs": "patched",
    "OnlyCounted": "witness_differs",
    "OnlyMetered": "witness_differs",
    "Finish": "outside_work",
    "Child": "outside_work",
    "Orphan": "outside_work",
    "OptimizerStep": "patched",
    "SameWeights": "same_weights",
}
HONEST = ("Half", "Proxy")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """(the report as JSON, the run's folder)"""
    home = tmp_path_factory.mktemp("cheats")
    shutil.copy(Path(__file__).with_name("cheats.py"), home)
    methods = "".join(
        f'\n[[method]]\nname = "{name}"\nuse = "cheats.py:{name}"\ncontrol = "none"\n' for name in (*CHEATS, *HONEST)
    )
    path = home / "tiny.toml"
    path.write_text(suite_text(methods, workload=WORKLOAD, blocks=3, twin=False, warmup="2 steps"), encoding="utf-8")
    done = energybench("run", path, cwd=home)
    assert done.returncode in (0, 3), done.stderr  # 3: trials that cannot be used
    place = only_run(home)
    said = energybench("report", place, "--json", cwd=home)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout), place


def row(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in report["workloads"][0]["rows"] if each["method"] == name)
    return found


def raised(report: dict[str, Any], place: Path, name: str) -> set[str]:
    """Codes of the row, and of the trials that were set aside."""
    _, trials, _ = contents(place)
    codes = {flag["code"] for flag in row(report, name)["flags"]}
    return codes | {flag.code for trial in trials.values() if trial.method == name for flag in trial.flags}


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_gets_a_verdict_in_its_favour(name: str, run: tuple[dict[str, Any], Path]) -> None:
    report, place = run
    assert row(report, name)["verdict"] not in ("faster", "saves", "quality unproven")
    if CHEATS[name] is not None:
        assert CHEATS[name] in raised(report, place, name)


def test_an_honest_method_that_trains_half_is_faster_and_has_no_flag_that_strikes(
    run: tuple[dict[str, Any], Path],
) -> None:
    report, _ = run
    half = row(report, "Half")
    assert [flag for flag in half["flags"] if flag["severity"] != "marked"] == []
    assert half["verdict"] == "faster"


def test_an_honest_proxy_shows_what_it_cost_to_prepare_and_when_that_is_repaid(
    run: tuple[dict[str, Any], Path],
) -> None:
    """By the trials' own seconds, so that a busy machine changes nothing. A proxy of 4 epochs of 16 passes is made
    ready twice and billed once; a quarter of 2 epochs is trained: 1.5 epochs are saved in each run, 4 were spent."""
    report, place = run
    proxy = row(report, "Proxy")
    once, trials = proxy["once"], contents(place)[1]
    spent, windows = [], []
    for block in range(3):
        (method,) = [t for t in trials.values() if (t.method, t.block) == ("Proxy", block)]
        baselines = [t for t in trials.values() if (t.method, t.block, t.group) == ("baseline", block, method.group)]
        mine, plain = method.phases, baselines[0].phases
        ready = [max(p["build"].wall_s, p["warmup_build"].wall_s) + p["finish"].wall_s for p in (mine, plain)]
        assert ready[0] >= 4 * 16 * STEP_S
        spent.append((ready[0] - ready[1]) / plain["train"].wall_s)
        windows.append(mine["train"].wall_s / plain["train"].wall_s)
    steady = 1 - math.prod(windows) ** (1 / 3)
    assert proxy["verdict"] not in ("faster", "saves")
    assert once["share_rel"] == pytest.approx(sum(spent) / 3)
    assert once["steady"]["saving_rel"] == pytest.approx(steady)
    assert once["repaid_runs"] == pytest.approx(sum(spent) / 3 / steady)
    assert once["repaid_epochs"] == pytest.approx(2 * once["repaid_runs"])
    assert proxy["measured"]["saving_rel"] < once["steady"]["saving_rel"]


def test_what_is_trained_in_setup_is_billed(run: tuple[dict[str, Any], Path]) -> None:
    report, _ = run
    assert row(report, "Setup")["once"]["seconds"] > 0


def test_the_quality_is_the_tasks_own_whoever_replaces_it(run: tuple[dict[str, Any], Path]) -> None:
    _, place = run
    trials = contents(place)[1].values()
    assert all(t.quality["accuracy"] < 1.0 for t in trials if t.method in ("Evaluate", "EvaluateOfTheClass"))


def test_no_part_of_the_test_set_is_in_the_process_that_trains(run: tuple[dict[str, Any], Path]) -> None:
    _, place = run
    found = [t.diagnostics["cheats"]["found"] for t in contents(place)[1].values() if t.method == "TestSet"]
    assert found == [0, 0, 0]


def test_a_replaced_clock_moves_no_window(run: tuple[dict[str, Any], Path]) -> None:
    _, place = run
    windows = [t.train for t in contents(place)[1].values() if t.method == "Clock"]
    assert all(window is not None and window.wall_s >= STEPS * STEP_S for window in windows)
