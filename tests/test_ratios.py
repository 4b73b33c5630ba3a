"""The tool of `make bench`, on times that are given: what it divides, in which order sides run, and how a run ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import perf.conftest
import pytest
from perf import roofline
from perf.ratios import Bench, Ratio, figure, missed, order, take_turns, timed, told

pytest_plugins = ["pytester"]

OURS = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 8.0]
THEIRS = [3.0, 2.0, 5.0, 4.0, 9.0, 7.0, 8.0]  # by OURS: 3, 2, 5, 4, 9, 7, 1, so the median is 4, the mean above


def bench(measuring: bool = True) -> Bench:
    return Bench("test_it.py", measuring)


def one(**options: Any) -> Ratio:
    made = bench()
    made.faster("it", OURS, THEIRS, than="theirs", **options)
    return made.told[0]


# ── turns ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_sides_change_their_order_so_that_a_drift_meets_both():
    assert [order("AB", turn) for turn in range(4)] == [["A", "B"], ["B", "A"], ["B", "A"], ["A", "B"]]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_each_side_is_as_often_at_each_place_and_before_each_other(count):
    names = "ABCD"[:count]
    turns = [order(names, turn) for turn in range(2 * count)]
    assert all(sorted(turn) == list(names) for turn in turns)
    places = Counter((place, name) for turn in turns for place, name in enumerate(turn))
    assert set(places.values()) == {2}
    follows = Counter(pair for turn in turns for pair in pairwise(turn))
    assert all(follows[a, b] == follows[b, a] for a, b in follows)


def test_the_first_round_is_not_counted_and_the_sides_take_turns():
    called: list[str] = []
    answers = {"A": iter([100.0, 1.0, 2.0, 3.0]), "B": iter([100.0, 4.0, 5.0, 6.0])}

    def side(name: str):
        def run() -> float:
            called.append(name)
            return next(answers[name])

        return run

    assert take_turns({name: side(name) for name in "AB"}, 3) == {"A": [1, 2, 3], "B": [4, 5, 6]}
    assert "".join(called) == "AB" + "AB" + "BA" + "BA"


def test_a_call_is_timed_on_average_over_its_repeats(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    assert timed(lambda: calls.append(1), 3)() == 2.0
    assert len(calls) == 3


# ── ratios ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ratio_is_the_median_of_those_of_the_rounds_with_their_quartiles():
    ratio = one(goal=4)
    assert ratio.rounds == (3, 2, 5, 4, 9, 7, 1)
    assert ratio.median == 4
    assert ratio.quartiles == (2.5, 6)  # of 1 2 3 4 5 7 9
    assert ratio.facts()["range"] == [1, 9]


def test_a_cost_is_ours_over_theirs_or_over_a_fixed_time():
    made = bench()
    made.cost("a", THEIRS, OURS, of="ours")
    made.cost("b", [1.0] * 7, 4.0, of="four seconds")
    assert [ratio.median for ratio in made.told] == [4, 0.25]


@pytest.mark.parametrize(("goal", "reached"), [(3.9, True), (4.0, True), (4.1, False), (None, None)])
def test_a_saving_reaches_its_goal_from_above(goal, reached):
    assert one(goal=goal).reached is reached


@pytest.mark.parametrize(("goal", "reached"), [(3.9, False), (4.0, True), (4.1, True), (None, None)])
def test_a_cost_reaches_its_goal_from_below(goal, reached):
    made = bench()
    made.cost("it", THEIRS, OURS, of="ours", goal=goal)
    assert made.told[0].reached is reached
    assert missed(made.told) == (made.told if reached is False else [])


def test_no_median_of_fewer_than_seven_rounds():
    with pytest.raises(ValueError, match="6 rounds"):
        bench().turns({"A": lambda: 1.0}, 6)
    with pytest.raises(ValueError, match="6 rounds"):
        bench().faster("it", OURS[:6], THEIRS[:6], than="theirs")


@pytest.mark.parametrize("measuring", [True, False])
def test_sides_of_unequal_rounds_and_names_told_twice_are_mistakes_in_the_smoke_too(measuring):
    with pytest.raises(ValueError, match="argument 2"):
        bench(measuring).faster("it", OURS, THEIRS[:6], than="theirs")
    made = bench(measuring)
    made.faster("it", OURS, THEIRS, than="theirs")
    with pytest.raises(ValueError, match="twice"):
        made.cost("it", OURS, THEIRS, of="theirs")


def test_what_is_no_number_was_not_measured():
    with pytest.raises(ValueError, match="not measured"):
        bench().faster("it", [float("nan"), *OURS[1:]], THEIRS, than="theirs")


def test_the_smoke_runs_each_side_once_and_judges_nothing():
    called: list[str] = []
    made = bench(measuring=False)
    times = made.turns({name: lambda name=name: called.append(name) or 0.0 for name in "AB"})
    made.faster("it", times["A"], times["B"], than="B", goal=2)  # 0 by 0
    assert called == ["A", "B"]
    assert made.told == []
    assert (made.size(100, 1), bench().size(100, 1)) == (1, 100)


@pytest.mark.parametrize("measuring", [True, False])
def test_a_side_that_tells_no_seconds_is_a_mistake_in_the_smoke_too(measuring):
    with pytest.raises(TypeError):
        bench(measuring).turns({"A": lambda: None})


def test_threads_are_not_measured_on_fewer_cores_and_not_set_in_the_smoke(monkeypatch):
    set_to: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", set_to.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5})
    bench(measuring=False).threads(3)
    bench().threads(2)
    assert set_to == [2]
    with pytest.raises(pytest.skip.Exception, match="3 threads, cores: 2"):
        bench().threads(3)


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_says_ratio_spread_goal_limit_and_what_was_missed():
    ratios = [
        one(goal=4.5, limit=(5.02, "FLOPs"), seen="3.7 on an older one"),
        Ratio("test_it.py", "other", "ours / peer", (0.5,) * 7, 0.6, False),
        Ratio("test_last.py", "last", "ours / peer", (0.5,) * 7, None, False),
    ]
    lines = told(ratios, "a machine", 80).splitlines()
    assert lines[0] == "a machine"
    assert lines[3:] == [
        "test_it.py",
        "  it: theirs / ours",
        "       4.00 (2.50–6.00)           goal ≥ 4.5    MISSED   limit 5.02, FLOPs: 80%",
        "  other: ours / peer",
        "      0.500 (0.500–0.500)         goal ≤ 0.6    reached",
        "",
        "test_last.py",
        "  last: ours / peer",
        "      0.500 (0.500–0.500)         no goal",
        "",
        "1 of 2 goals reached",
        "missed: it: 4.00, wanted ≥ 4.5 (before: 3.7 on an older one)",
    ]


def test_the_table_fits_80_columns():
    made = one(goal=1234, limit=(5.02, "FLOPs of the backward"), seen="word " * 30)
    long = Ratio("f.py", "a long name " * 9, "ours / theirs", (0.000123,) * 7, 0.0001, False)
    assert max(map(len, told([made, long], "a machine " * 12, 80).splitlines())) <= 80


def test_the_share_of_a_limit_is_one_where_it_is_reached_from_either_side():
    assert one(limit=(8, "FLOPs")).share == pytest.approx(0.5)
    assert Ratio("f.py", "cost", "ours / peer", (2.0,) * 7, None, False, (1, "nothing")).share == pytest.approx(0.5)
    assert one().share is None


# ── the roofline of a backward ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kept", [1, 13, 64])
def test_where_products_outweigh_memory_the_limit_is_that_of_the_flops(kept):
    layer = roofline.Convolution(spatial=4096, into=64, out=64, positions=9)
    whole, less = (
        roofline.time_of(parts, 0.0) for parts in (roofline.dense(layer), roofline.channel_sparse(layer, kept))
    )
    assert whole / (less - layer.y) == pytest.approx(64 / kept)  # choosing adds |dY| up
    assert whole / roofline.time_of(roofline.resting(layer, kept), 0.0) == pytest.approx(2 / (1 + kept / 64))


def test_where_memory_is_all_that_counts_nothing_is_gained_by_gathering_much():
    layer = roofline.Convolution(spatial=4096, into=64, out=64, positions=9)
    slow = 1e9
    whole = roofline.time_of(roofline.dense(layer), slow)
    assert roofline.time_of(roofline.channel_sparse(layer, 64), slow) > 1.5 * whole
    assert roofline.time_of(roofline.resting(layer, 64), slow) > whole


@pytest.mark.parametrize(
    ("value", "printed"),
    [(4, "4.00"), (12.345, "12.3"), (1234.5, "1,234"), (0.000123, "0.000123"), (-0.5, "-0.500"), (0, "0")],
)
def test_a_figure_has_three_digits_and_no_exponent(value, printed):
    assert figure(value) == printed


# ── a run of pytest ───────────────────────────────────────────────────────────────────────────────────────────────

GOOD = f"""
def test_good(bench):
    times = bench.turns({{"ours": iter([1.0] + {OURS}).__next__, "theirs": iter([1.0] + {THEIRS}).__next__}})
    bench.faster("good", times["ours"], times["theirs"], than="theirs", goal=4, limit=(9, "physics"))
"""
MISSED = GOOD.replace("good", "short").replace("goal=4", "goal=5")
BROKEN = GOOD.replace("good", "broken").replace("    times", "    raise RuntimeError('no such method')\n    times")
WRONG = GOOD.replace("good", "wrong") + "    assert 1 + 1 == 3\n"
SILENT = "def test_silent(bench):\n    bench.turns({'ours': lambda: 1.0})\n"
MEASURED = ("--benchmark-enable", "--benchmark-quiet", "-m", "perf")


@pytest.fixture
def run(pytester, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # in a worker nothing would be measured

    def run_pytest(*arguments: str, **files: str):
        pytester.makeini("[pytest]\nmarkers = perf: measures\naddopts = -p no:cacheprovider -p no:xdist")
        pytester.makepyfile(**{f"test_{name}": text for name, text in files.items()})
        return pytester.runpytest_inprocess(*arguments, plugins=[perf.conftest])

    return run_pytest


@pytest.mark.parametrize(
    ("files", "strict", "code"),
    [
        ({"good": GOOD}, False, 0),
        ({"good": GOOD}, True, 0),
        ({"good": GOOD, "short": MISSED}, False, 0),
        ({"good": GOOD, "short": MISSED}, True, 1),
        ({"good": GOOD, "broken": BROKEN}, False, 1),
        ({"good": GOOD, "wrong": WRONG}, False, 1),
        ({"silent": SILENT}, False, 1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_missed_goal_fails_only_where_asked_and_an_error_always(run, files, strict, code):
    result = run(*MEASURED, *["--strict-goals"] * strict, **files)
    assert result.ret == code
    printed = result.stdout.str()
    assert ("missed: short: 4.00, wanted ≥ 5" in printed) is ("short" in files)
    assert ("a missed goal fails this run" in printed) is (strict and "short" in files)
    if "good" in files:
        assert "good: theirs / ours" in printed
        assert "limit 9, physics: 44%" in printed.replace("\n  ", " ")
    if "silent" in files:
        assert "told no ratio" in printed


def test_the_json_is_pytest_benchmarks_with_our_times_and_the_ratios(run, tmp_path):
    saved = tmp_path / "saved.json"
    result = run(*MEASURED, f"--benchmark-json={saved}", good=GOOD, short=MISSED)
    assert f"kept in {saved}" in result.stdout.str()
    found = json.loads(saved.read_text(encoding="utf-8"))
    assert {"torch", "cores", "load", "cpu"} <= set(found["machine_info"])
    benches = {made["name"]: made for made in found["benchmarks"]}
    assert set(benches) == {"test_good", "test_short"}
    stats = benches["test_good"]["stats"]
    assert (stats["data"], stats["median"], stats["rounds"]) == (OURS, 1, 7)
    (ratio,) = benches["test_short"]["extra_info"]["ratios"]
    assert ratio | {"threads": 1} == {
        "name": "short",
        "fraction": "theirs / ours",
        "median": 4,
        "quartiles": [2.5, 6],
        "range": [1, 9],
        "rounds": [3, 2, 5, 4, 9, 7, 1],
        "goal": 5,
        "goal_is": "at least",
        "reached": False,
        "limit": 9,
        "limit_of": "physics",
        "share": pytest.approx(4 / 9),
        "seen": "",
        "threads": 1,
    }


def test_pytest_benchmark_compares_two_such_files(run, tmp_path, capsys, monkeypatch):
    from pytest_benchmark.cli import main

    before, after = tmp_path / "before.json", tmp_path / "after.json"
    run(*MEASURED, f"--benchmark-json={before}", good=GOOD)
    shutil.copy(before, after)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["pytest-benchmark", "compare", str(before), str(after)])
    main()
    printed = capsys.readouterr().out
    assert printed.count("test_good") == 2


def test_without_being_asked_benchmarks_run_once_and_are_not_marked(run):
    result = run("--benchmark-disable", "-m", "not perf", good=GOOD, short=MISSED)
    result.assert_outcomes(passed=2)
    assert "speed ratios" not in result.stdout.str()


def test_the_smoke_notices_a_benchmark_that_no_longer_runs_or_tells_nothing(run):
    result = run("--benchmark-disable", "-m", "not perf", good=GOOD, broken=BROKEN, wrong=WRONG, silent=SILENT)
    result.assert_outcomes(passed=1, failed=3)


def test_what_measures_is_marked_so_that_a_plain_run_leaves_it_out(run):
    run("--benchmark-enable", "-m", "not perf", good=GOOD, plain="def test_plain(): pass").assert_outcomes(
        passed=1, deselected=1
    )


def test_goals_cannot_be_held_where_nothing_is_measured(run):
    result = run("--benchmark-disable", "--strict-goals", good=GOOD)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--benchmark-enable" in result.stdout.str() + result.stderr.str()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("given", "expected", "absent"),
    [
        ([], ["tests/perf ", "--benchmark-enable", "-m perf", "-p no:xdist", "json='.benchmarks/2"], "--strict"),
        (["STRICT=1"], ["--strict-goals"], "tests/perf/"),
        (["STRICT=0"], ["tests/perf "], "--strict"),
        (
            ["TESTS=tests/perf/test_onion.py", "JSON=kept/onion.json"],
            ["tests/perf/test_onion.py ", "--benchmark-json='kept/onion.json'", "mkdir -p 'kept/'"],
            ".benchmarks/",
        ),
    ],
)
def test_make_bench_says_what_was_asked(given, expected, absent):
    root, plain = Path(__file__).parents[1], {"PATH": os.environ["PATH"]}  # without what this make was given
    printed = subprocess.run(
        ["make", "--dry-run", "bench", *given], cwd=root, env=plain, text=True, capture_output=True, check=True
    ).stdout
    assert all(words in printed for words in expected)
    assert absent not in printed
