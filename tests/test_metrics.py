"""Metrics are declared by task, suite or a usual name; what nobody declares is refused with the line to write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.common import metrics
from energybench.common.errors import SuiteError
from energybench.common.metrics import Metric
from energybench.records.record import RunFile, Target
from energybench.runner import plan_metrics
from energybench.suite.suite import Suite, load
from energybench.verdict.quality import known

TRAINED = """schema = 1
suite  = "s"
[accept]
quality = { %s }
[[workload]]
name  = "w"
model = { use = "cnn", channels = [2] }
data  = { use = "digits", batch = 64 }
train = { epochs = 1, lr = 0.1 }
"""
COMMAND = """schema = 1
suite  = "s"
[accept]
quality = { %s }
[[workload]]
name    = "w"
command = "python train.py"
quality = { from = "json" }
[[method]]
name    = "m"
command = "python train.py --trick"
"""


def suite(folder: Path, text: str) -> Suite:
    (folder / "s.toml").write_text(text, encoding="utf-8")
    return load(folder / "s.toml")


def refused(folder: Path, text: str) -> Any:
    with pytest.raises(SuiteError) as caught:
        suite(folder, text)
    (problem,) = caught.value.problems
    return problem


def of_command(found: Suite) -> tuple[dict[str, Metric], list[Any]]:
    return plan_metrics.of_command(found, 0, found.workloads[0], lambda *keys: found.where(keys))  # type: ignore[arg-type]


def of_training(found: Suite, task: dict[str, Any], reported: list[str]) -> tuple[dict[str, Metric], list[Any]]:
    where = lambda *keys: found.where(keys)  # noqa: E731
    return plan_metrics.of_training(found, 0, found.workloads[0], task, reported, where)  # type: ignore[arg-type]


# ── who declares ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_that_nobody_declared_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    found, (problem,) = of_command(suite(tmp_path, COMMAND % 'metric = "regret", loses_at_most = "0.1 units"'))
    assert found == {}
    assert problem.code == "E409"
    assert problem.where.endswith("s.toml:4:13")
    assert "nobody says whether 'regret' is better when higher or lower" in problem.message
    line = re.search(r"quality = \{.*?\}", problem.hint)
    assert line is not None
    written = COMMAND.replace("quality = { %s }", line[0], 1)
    assert of_command(suite(tmp_path, written)) == ({"regret": Metric(better="lower", scale="units")}, [])


def test_the_suite_goes_before_the_task_and_the_task_before_the_name(tmp_path: Path) -> None:
    of_task = {"loss": Metric(better="higher", unit="bits"), "mine": "lower"}
    plain = suite(tmp_path, TRAINED % 'metric = "loss", loses_at_most = "0.1 units"')
    assert of_training(plain, {}, ["loss"])[0]["loss"].better == "lower"
    assert of_training(plain, of_task, ["loss"])[0]["loss"] == Metric(better="higher", unit="bits")
    own = suite(tmp_path, TRAINED % 'metric = "loss", loses_at_most = "0.1 units", better = "lower", unit = "nats"')
    assert of_training(own, of_task, ["loss"])[0]["loss"] == Metric(better="lower", unit="nats")
    assert of_training(own, of_task, ["loss"])[0]["mine"] == Metric(better="lower")


def test_a_task_that_reports_no_such_metric_or_declares_it_wrongly_is_told(tmp_path: Path) -> None:
    found = suite(tmp_path, TRAINED % 'metric = "f1"')
    _, (missing,) = of_training(found, {}, ["accuracy", "loss"])
    assert (missing.code, missing.hint) == ("E406", "its task reports: accuracy, loss")
    _, (wrong,) = of_training(found, {"f1": "up"}, ["f1"])
    assert wrong.code == "E403"
    assert "'up'" in wrong.message


@pytest.mark.parametrize("name", ["brier", "ece", "kl", "chamfer_distance", "mse", "perplexity", "eval_loss", "fid"])
def test_usual_names_of_what_is_better_when_lower(name: str) -> None:
    found = metrics.known(name.upper())
    assert found is not None
    assert found.better == "lower"


@pytest.mark.parametrize("name", ["regret", "my_accuracy_loss", "lossless", "score", "accuracy_drop", "errors", ""])
def test_no_name_is_guessed_from_a_part_of_it(name: str) -> None:
    assert metrics.known(name) is None


@given(st.sampled_from(sorted(metrics.KNOWN)), st.floats(-1e6, 1e6))
def test_a_share_lies_between_0_and_1(name: str, value: float) -> None:
    metric = metrics.KNOWN[name]
    if metric.scale == "fraction" and metric.most is not None:
        assert metric.outside(value) == (not 0 <= value <= 1)
    assert metric.sign == (1 if metric.better == "higher" else -1)


# ── scales, ranges, units ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("quality", "scale", "ends"),
    [
        ('metric = "accuracy"', "fraction", (0.0, 1.0)),
        ('metric = "accuracy", scale = "percent"', "percent", (0.0, 100.0)),
        ('metric = "accuracy", loses_at_most = "0.5 units"', "units", (None, None)),  # as suites of before have it
        ('metric = "mine", better = "higher", loses_at_most = "1 pp"', "fraction", (None, None)),
        ('metric = "mine", better = "higher", loses_at_most = "1 unit"', "units", (None, None)),
        ('metric = "mine", better = "higher", range = [-1, 2.5]', "fraction", (-1.0, 2.5)),
    ],
)
def test_the_margin_says_in_which_scale_a_metric_is_where_nothing_else_does(
    tmp_path: Path, quality: str, scale: str, ends: tuple[float | None, float | None]
) -> None:
    found, problems = of_command(suite(tmp_path, COMMAND % quality))
    assert problems == []
    (metric,) = found.values()
    assert (metric.scale, (metric.least, metric.most)) == (scale, ends)


@pytest.mark.parametrize(
    ("quality", "says"),
    [
        ('scale = "percent", loses_at_most = "0.5 units"', "percentage points"),
        ('scale = "percent", unit = "dB"', "no unit of its own"),
        ("range = [1, 0]", "rises"),
        ('also = ["accuracy"]', "decides already"),
        ('better = "up"', "expected one of"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, quality: str, says: str) -> None:
    assert says in refused(tmp_path, COMMAND % quality).message


def test_a_pattern_reads_one_figure_and_no_further_ones(tmp_path: Path) -> None:
    text = (COMMAND % 'also = ["f1"]').replace('{ from = "json" }', "{ from = \"regex\", pattern = 'acc=(.*)' }")
    _, (problem,) = of_command(suite(tmp_path, text))
    assert (problem.code, "one figure" in problem.message) == ("E409", True)


def test_one_workload_may_be_judged_by_another_metric(tmp_path: Path) -> None:
    text = COMMAND % 'metric = "accuracy"' + 'command = "x"\n'
    text = text.replace(
        'quality = { from = "json" }', 'quality = { from = "json" }\naccept = { quality = { metric = "ppl" } }'
    )
    found = suite(tmp_path, text.rsplit("command = ", 1)[0])
    assert found.quality_of(found.workloads[0]).metric == "ppl"
    assert of_command(found)[0]["ppl"].better == "lower"


# ── targets from above ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_target_is_reached_from_the_side_that_it_names(tmp_path: Path) -> None:
    text = TRAINED % 'metric = "mse", loses_at_most = "0.1 units"' + "target = { %s }\n"
    below = suite(tmp_path, text % 'metric = "mse", at_most = 0.02').workloads[0].target  # type: ignore[union-attr]
    assert below is not None
    assert [below.reached(value) for value in (0.1635, 0.02, 0.019)] == [False, True, True]
    assert "from one side" in refused(tmp_path, text % 'metric = "mse", at_most = 0.02, at_least = 0.1').message
    assert "from one side" in refused(tmp_path, text % 'metric = "mse"').message


def test_a_target_that_is_reached_untrained_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    text = TRAINED % 'metric = "mse", loses_at_most = "0.1 units"' + 'target = { metric = "mse", at_least = 0.02 }\n'
    _, (problem,) = of_training(suite(tmp_path, text), {}, ["mse"])
    assert problem.code == "E409"
    assert problem.hint == 'target = { metric = "mse", at_most = 0.02 }'
    right = suite(tmp_path, text.replace('target = { metric = "mse", at_least = 0.02 }', problem.hint))
    assert of_training(right, {}, ["mse"])[1] == []


# ── records ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_holds_what_was_declared_and_older_ones_are_read_by_the_name() -> None:
    facts: Any = {
        "suite": "s",
        "run": "r",
        "digest": "d",
        "suite_path": "s",
        "suite_text": "",
        "resolved": {},
        "blocks": 3,
    }
    declared = RunFile(**facts, metrics={"w": {"regret": Metric(better="lower", unit="nats", most=9.0)}})
    again = RunFile.model_validate_json(declared.model_dump_json(by_alias=True))
    assert again == declared
    of = known(again, "w", "regret")
    assert of is not None
    assert (of.metric.better, of.guessed) == ("lower", False)
    assert known(again, "w", "my_error_rate") is None
    old = known(RunFile(**facts, schema=3), "w", "my_error_rate")
    assert old is not None
    assert (old.metric.better, old.guessed) == ("lower", True)


def test_a_target_of_before_is_read_and_one_from_above_is_kept() -> None:
    assert Target.model_validate({"metric": "accuracy", "at_least": 0.9}).at_most is None
    assert Target(metric="mse", at_most=0.02).at_least is None
