"""[[require]]: from the suite's file to met, not met or undecided, and to the exit code."""

from __future__ import annotations

import io
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from synthetic import GPU, Run, merge

from energybench.cli.command_line import app
from energybench.records.record import RunFile, write_json
from energybench.report.markdown import markdown
from energybench.report.terminal import render
from energybench.stats import paired
from energybench.suite.suite import SuiteError, load, schema_json
from energybench.verdict import requirements
from energybench.verdict import wording as words
from energybench.verdict.figures import Required
from energybench.verdict.summary import summarise, to_json

SUITE = """schema = 1
suite = "s"

[[workload]]
name = "w"
model = { use = "cnn" }
data = { use = "digits", batch = 8 }
train = { epochs = 1, lr = 0.1 }

[[method]]
use = "gradsamp"
sweep = { skip = ["every:2", "every:4"] }
"""


def suite(tmp_path: Path, table: str) -> Any:
    path = tmp_path / "s.toml"
    path.write_text(SUITE + table, encoding="utf-8")
    return load(path)


# ── in the suite's file ───────────────────────────────────────────────────────────────────────────────────────


def test_a_requirement_is_read_with_its_unit_and_stands_in_the_resolved_settings(tmp_path: Path) -> None:
    table = '\n[[require]]\nmethod = "gradsamp*"\nsaves_at_least = "5 %"\nof = "time"\nnever = ["quality lost"]\n'
    (asked,) = suite(tmp_path, table).digest_source()["require"]
    assert asked == {
        "workload": "*",
        "method": "gradsamp*",
        "saves_at_least": 0.05,
        "of": "time",
        "verdict": [],
        "never": ["quality lost"],
    }


@pytest.mark.parametrize(
    ("table", "code", "line", "says", "hint"),
    [
        ('saves_at_leest = "5 %"', "E201", 15, "saves_at_leest", "saves_at_least"),
        ("saves_at_least = 5", "E204", 15, "no unit", '"1 %"'),
        ('verdict = ["save"]', "E202", 15, "expected one of", "did you mean 'saves'"),
        ('method = "gradsmp*"\nnever = ["slower"]', "E205", 15, "requires nothing", "gradsamp"),
        ('method = "gradsamp"', "E202", 14, "requires nothing", "saves_at_least"),
        ('of = "time"\nnever = ["slower"]', "E202", 15, "how much", "saves_at_least"),
        ('verdict = ["faster"]\nnever = ["faster"]', "E202", 16, "both", "one of the two"),
    ],
)
def test_mistakes_in_a_requirement_are_told_with_their_line_and_what_to_type(
    tmp_path: Path, table: str, code: str, line: int, says: str, hint: str
) -> None:
    with pytest.raises(SuiteError) as caught:
        suite(tmp_path, f"\n[[require]]\n{table}\n")
    (problem,) = caught.value.problems
    assert problem.code == code
    assert f"s.toml:{line}:" in problem.where
    assert says in problem.message
    assert hint in problem.hint


def test_a_requirement_of_which_every_comparison_is_skipped_is_told_before_anything_runs(tmp_path: Path) -> None:
    """Held against nothing it would pass in silence."""
    skips = '\n[[skip]]\nmethod = "gradsamp*"\nbecause = "not now"\n'
    with pytest.raises(SuiteError) as caught:
        suite(tmp_path, skips + '\n[[require]]\nmethod = "gradsamp*"\nsaves_at_least = "5 %"\n')
    (problem,) = caught.value.problems
    assert problem.code == "E205"
    assert "s.toml:18:" in problem.where
    assert "skipped" in problem.message
    some = skips.replace("gradsamp*", "gradsamp[skip=every:2]")
    suite(tmp_path, some + '\n[[require]]\nmethod = "gradsamp*"\nsaves_at_least = "5 %"\n')


def test_the_schema_for_editors_knows_it_and_every_word_of_a_verdict_on_a_row() -> None:
    table = schema_json()["$defs"]["RequireTable"]["properties"]
    assert {"workload", "method", "saves_at_least", "of", "verdict", "never"} == set(table)
    words = set(table["verdict"]["items"]["enum"])
    assert words == set(paired.Verdict.__args__) - {"not reached"}  # type: ignore[attr-defined]


# ── held against a run ────────────────────────────────────────────────────────────────────────────────────────


def asking(run: Run, *requires: dict[str, Any], workloads: tuple[Run, ...] = ()) -> tuple[RunFile, list, list]:
    meta, trials, counting_runs = merge(run, *workloads) if workloads else run.records()
    whole = [
        {"workload": "*", "method": "*", "saves_at_least": None, "of": None, "verdict": [], "never": []} | each
        for each in requires
    ]
    return meta.model_copy(update={"resolved": meta.resolved | {"require": whole}}), trials, counting_runs


def outcomes(run: Run, *requires: dict[str, Any]) -> dict[tuple[str, str], str]:
    found = summarise(*asking(run, *requires)).required
    return {(each.method, each.asks): each.outcome for each in found}


def one(run: Run, **asked: Any) -> Required:
    (found,) = summarise(*asking(run, asked)).required
    return found


def test_a_saving_is_enough_when_its_bound_reaches_it_and_too_little_when_the_other_bound_stays_below() -> None:
    run = Run(blocks=5, noise=0.01, seed=3).method("it", time=0.8)
    found = one(run, saves_at_least=0.1)
    assert found.outcome == "met"
    assert found.saving_rel == pytest.approx(0.2, abs=0.02)
    assert found.low_rel is not None
    assert found.high_rel is not None
    assert found.low_rel > 0.1
    assert one(run, saves_at_least=found.low_rel - 1e-6).outcome == "met"
    assert one(run, saves_at_least=found.low_rel + 1e-6).outcome == "undecided"
    assert one(run, saves_at_least=found.high_rel - 1e-6).outcome == "undecided"
    assert one(run, saves_at_least=found.high_rel + 1e-6).outcome == "not met"


def test_a_bound_beside_what_is_asked_is_not_told_as_the_same_figure() -> None:
    run = Run(blocks=5, noise=0.01, seed=3).method("it", time=0.8)
    found = one(run, saves_at_least=0.1)
    assert found.low_rel is not None
    assert found.high_rel is not None
    for bound, asked in ((found.low_rel, found.low_rel + 2e-6), (found.high_rel, found.high_rel + 2e-6)):
        told = one(run, saves_at_least=asked)
        least = re.findall(r"[\d.]+ %", words.plain(told.asks))
        assert told.outcome in ("undecided", "not met")
        assert float(least[0][:-2]) == pytest.approx(100 * asked, abs=1e-3)
        assert least[0] not in words.plain(told.reason)
        assert words.plain(words.share_beside(bound, asked)) in words.plain(told.reason)


def test_the_bounds_are_one_sided_and_students_at_99_percent() -> None:
    run = Run(blocks=4, noise=0.02, seed=8)
    run.truths = [t for t in run.truths if t.role != "twin"]  # so that no spread is pooled
    found = one(run.method("it", time=0.7), saves_at_least=0.1)
    _, trials, _ = run.records()
    seconds = {(t.method, t.block): t.phases["train"].wall_s for t in trials}
    d = [math.log(seconds["it", b] / seconds["baseline", b]) for b in range(4)]
    mean = sum(d) / 4
    sd = math.sqrt(sum((x - mean) ** 2 for x in d) / 3)
    upper = mean + 4.540703 * sd / 2  # t(0.99, 3) of any table
    assert found.low_rel == pytest.approx(1 - math.exp(upper), abs=1e-6)


def test_at_a_saving_of_exactly_what_is_asked_it_is_called_met_once_in_a_hundred() -> None:
    """The whole truth of "at 99 %": drawn from normal log ratios, with the row's own arithmetic."""
    from energybench.verdict.figures import Measured
    from energybench.verdict.interim import Look

    rng, times, look = random.Random(4), 4000, Look(1, 1, 5, None, 5, 1.0)
    met = missed = 0
    for _ in range(times):
        ratios = [math.exp(rng.gauss(math.log(0.9), 0.03)) for _ in range(5)]
        figure = Measured.of(paired.paired(ratios, [1.0] * 5), "time")
        _, low, high = requirements._figures(figure, look)
        assert low is not None
        assert high is not None
        met += low >= 0.1
        missed += high < 0.1
    assert met / times == pytest.approx(0.01, abs=0.006)
    assert missed / times == pytest.approx(0.01, abs=0.006)


def test_a_saving_that_lost_quality_is_not_met_and_one_whose_quality_is_unproven_is_undecided() -> None:
    lost = Run(blocks=5).method("it", time=0.5, quality=-0.02)
    assert one(lost, saves_at_least=0.1).outcome == "not met"
    assert "quality lost" in one(lost, saves_at_least=0.1).reason
    assert one(lost, saves_at_least=0.0).outcome == "not met"
    unsure = Run(blocks=5).method("it", time=0.5)
    for block, accuracy in enumerate((0.92, 0.88, 0.9, 0.92, 0.88)):  # no change on average, ±2 points
        unsure.change("it", block, quality={"accuracy": accuracy})
    assert one(unsure, saves_at_least=0.1).outcome == "undecided"


def test_energy_that_nobody_measured_is_undecided_and_time_can_be_asked_for_beside_energy() -> None:
    timed = Run(blocks=5, noise=0.01).method("it", time=0.5, energy=0.5)
    assert one(timed, saves_at_least=0.1, of="energy").outcome == "undecided"
    assert "not measured" in one(timed, saves_at_least=0.1, of="energy").reason
    metered = Run(blocks=5, noise=0.01, sensors=(GPU,)).method("it", time=0.95, energy=0.5)
    assert one(metered, saves_at_least=0.3).outcome == "met"
    assert one(metered, saves_at_least=0.3, of="time").outcome == "not met"


def test_verdicts_that_are_asked_for_and_those_that_are_forbidden() -> None:
    run = Run(blocks=5, noise=0.005, seed=1).method("quick", time=0.7).method("slow", time=1.4)
    found = outcomes(run, {"verdict": ["saves", "faster"]}, {"never": ["slower"]})
    assert found["quick", "one of: saves, faster"] == "met"
    assert found["slow", "one of: saves, faster"] == "not met"
    assert found["quick", "never: slower"] == "met"
    assert found["slow", "never: slower"] == "not met"


def test_two_blocks_decide_nothing_and_a_requirement_on_them_is_undecided() -> None:
    run = Run(blocks=2).method("it", time=0.5)
    for asked in ({"saves_at_least": 0.1}, {"verdict": ["faster"]}, {"never": ["slower"]}):
        found = one(run, **asked)
        assert found.outcome == "undecided", asked
        assert "2 blocks" in found.reason.replace("\u00a0", " ")


def test_a_struck_comparison_proves_nothing_however_much_it_saves() -> None:
    run = Run(blocks=5, noise=0.001).method("it", time=0.5)
    run.truths[1] = type(run.truths[1])("twin", "twin", time=1.3)
    assert one(run, saves_at_least=0.1).outcome == "undecided"


@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_training_that_diverged_meets_no_requirement_however_few_blocks_are_left(blocks: int) -> None:
    run = Run(blocks=5, noise=0.005).method("it", time=0.5)
    for block in range(blocks):
        run.change("it", block, status="diverged", reason="NaN in epoch 1")
    for asked in ({"saves_at_least": 0.1}, {"never": ["quality lost"]}, {"verdict": ["faster"]}):
        found = one(run, **asked)
        assert found.outcome == "not met", asked
        assert "diverged" in found.reason or "quality lost" in found.reason
    assert one(run, never=["slower"]).outcome in ("met", "undecided")


def test_a_side_that_ran_past_its_limit_neither_meets_nor_misses_what_the_other_blocks_say() -> None:
    for label, asked in (("it", 0.1), ("baseline", 0.7)):
        run = Run(blocks=5, noise=0.005).method("it", time=0.5).change(label, 2, status="timeout", reason="9 s")
        found = one(run, saves_at_least=asked)
        assert found.outcome == "undecided"
        assert "past its limit" in found.reason
    slow = Run(blocks=5, noise=0.005).method("it", time=0.95).change("it", 2, status="timeout", reason="9 s")
    assert one(slow, saves_at_least=0.1).outcome == "not met"  # it saves less still


def test_where_the_suite_says_that_no_quality_can_be_lost_a_saving_is_enough() -> None:
    """As its verdict has it, which is "faster"."""
    run = Run(blocks=5, noise=0.005, seed=3).method("it", time=0.5)
    meta, trials, counting_runs = asking(run, {"saves_at_least": 0.1})
    unjudged = {"workload": [{"name": run.workload, "quality": {"from": "none"}}]}
    meta = meta.model_copy(update={"resolved": meta.resolved | unjudged})
    found = summarise(meta, trials, counting_runs)
    assert found.workloads[0].rows[0].verdict == "faster"
    assert [each.outcome for each in found.required] == ["met"]


def test_patterns_choose_methods_with_their_sweeps_and_workloads() -> None:
    first = Run("cnn", blocks=3).method("half[skip=every:2]", time=0.5).method("other", time=0.9)
    second = Run("mlp", blocks=3).method("half[skip=every:2]", time=0.5)
    asked = {"method": "half", "workload": "m*", "saves_at_least": 0.1}
    found = summarise(*asking(first, asked, workloads=(second,))).required
    assert [(each.workload, each.method) for each in found] == [("mlp", "half[skip=every:2]")]


def test_exit_codes_and_records_from_before_there_were_requirements() -> None:
    run = Run(blocks=5, noise=0.01).method("it", time=0.8)
    assert summarise(*run.records()).required == ()
    for asked, code, strict in ((0.1, 0, 0), (0.5, 1, 1), (0.2, 0, 4)):
        found = summarise(*asking(run, {"saves_at_least": asked})).required
        assert (requirements.exit_code(found), requirements.exit_code(found, strict=True)) == (code, strict)


# ── shown ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_page_says_what_was_asked_and_whether_it_was_met() -> None:
    summary = summarise(*asking(Run(blocks=5, noise=0.01).method("it", time=0.8), {"saves_at_least": 0.5}))
    page = io.StringIO()
    render(summary, Console(file=page, width=60))
    told = " ".join(page.getvalue().split())
    assert "not met: cnn-digits: it must save at least 50.0 % of the time: at most" in told
    assert "| cnn-digits | it | saves at least 50.0 % of the time | **not met** |" in markdown(summary)
    assert to_json(summary)["required"][0]["outcome"] == "not met"


def test_a_run_that_requires_nothing_has_no_such_section() -> None:
    assert "requires" not in markdown(summarise(*Run(blocks=3).method("it", time=0.8).records()))


def written(folder: Path, records: tuple[RunFile, list, list]) -> Path:
    meta, trials, counting_runs = records
    write_json(folder / "run.json", meta)
    for trial in trials:
        write_json(folder / "records" / f"{trial.trial}.json", trial)
    for counting_run in counting_runs:
        write_json(folder / "witness" / f"{counting_run.workload}.{counting_run.method}.json", counting_run)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("--carbon", "--require"),
        ("--zones", "FRA", "--require"),
        ("--all", "--require"),
        ("--strict",),
        ("--carbon", "--html"),
        ("--all", "--json"),
        ("--all", "--carbon"),
    ],
)
def test_what_report_was_asked_for_is_done_or_refused_and_never_passed_over(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """A requirement that is not met must not end with 0 because another page was asked for beside it."""
    run = Run(blocks=5, noise=0.01).method("it", time=0.8)
    folder = written(tmp_path / "r", asking(run, {"saves_at_least": 0.5}))
    done = CliRunner().invoke(app, ["report", str(folder), *arguments])
    assert done.exit_code == 2
    assert "Error: --" in done.output
    assert not (folder / "report.md").exists()


def test_report_answers_by_its_exit_code_only_when_it_is_asked_to(tmp_path: Path) -> None:
    run = Run(blocks=5, noise=0.01).method("it", time=0.8)
    folder = written(tmp_path / "r", asking(run, {"saves_at_least": 0.5}))
    invoke = CliRunner().invoke
    assert invoke(app, ["report", str(folder)]).exit_code == 0
    assert invoke(app, ["report", str(folder), "--require"]).exit_code == 1
    bare = written(tmp_path / "bare", run.records())
    assert "E631" in str(invoke(app, ["report", str(bare), "--require"]).exception)
