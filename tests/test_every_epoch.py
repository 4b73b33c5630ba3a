"""`evaluate = "every epoch"`: the task's metrics after each epoch, outside the window and changing nothing else."""

from __future__ import annotations

import contextlib
import csv
import io
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support import digits, make_run, state
from synthetic import Run as Synthetic

from energybench.cli.show import MOST_EPOCHS, print_record
from energybench.common.units import RESOLVED
from energybench.meter.window import Window
from energybench.records.curve import OWN, key_of, metrics_of
from energybench.records.record import write_json
from energybench.report.export import ExportedRun, curves_csv
from energybench.suite.tables import TargetTable, TrainTable
from energybench.train.method import Method
from energybench.trial.judge import Judge
from energybench.trial.phases import Phases
from energybench.trial.trial import TargetTracker
from energybench.workloads.tasks.classification import Classification


def followed(run, target: TargetTable | None = None, *, every_epoch: bool = True, judge: Any = None):
    """(curve, window, phases, tracker) of a training, as a trial follows it."""
    window, phases = Window([], lambda: None), Phases({}, lambda: None)
    judge = judge or SimpleNamespace(quality=lambda run: run.evaluate(digits(32, test=True)))
    tracker = TargetTracker(target, window, judge, phases, every_epoch=every_epoch)
    window.start()
    run.train(tracker.after_epoch)
    window.stop()
    return tracker.curve(run.curve, judge.quality(run)), window, phases, tracker


class Several(Classification):
    """A detector's metrics, one of which decides."""

    name = "several"
    metrics: ClassVar = {"map": "higher", "map50": "higher", "loss": "lower"}

    def evaluate(self, run, data):
        found = super().evaluate(run, data)
        return {"map": found["accuracy"] / 2, "map50": found["accuracy"], "loss": found["loss"]}


def test_every_epoch_has_all_metrics_of_the_task_and_its_own_loss() -> None:
    curve, window, phases, _ = followed(run := make_run(task=Several(), epochs=3))
    assert [sorted(point) for point in curve] == [["epoch", "loss", "map", "map50", "quality_loss", "wall_s"]] * 3
    assert [point["loss"] for point in curve] == [point["loss"] for point in run.curve]
    assert all(point["map50"] == 2 * point["map"] for point in curve)
    assert metrics_of(curve[-1]) == run.evaluate(digits(32, test=True))
    assert (window.reading().pieces, phases.readings["evaluate"].pieces) == (3, 2)  # the last is the trial's own


def test_what_the_test_set_says_is_in_no_curve_that_a_method_can_read() -> None:
    seen: list[set[str]] = []

    class Looks(Method):
        name = "looks"

        def epoch(self, run, data, inner):
            seen.extend(set(point) for point in run.curve)
            inner(data)

    run = make_run([Looks()], task=Several(), epochs=3)
    curve, *_ = followed(run, TargetTable(metric="map", at_least=2.0))
    assert seen
    assert set().union(*seen) <= set(OWN)
    assert "map" in curve[0]


@pytest.mark.parametrize("every_epoch", [True, False])
def test_a_target_is_followed_beside_it(every_epoch: bool) -> None:
    values = iter([0.2, 0.5, 0.9, 0.9, 0.9])
    judge: Any = SimpleNamespace(quality=lambda run: {"map": next(values), "more": 1.0})
    curve, window, _, tracker = followed(
        make_run(epochs=4), TargetTable(metric="map", at_least=0.5), every_epoch=every_epoch, judge=judge
    )
    assert (tracker.target.epoch, tracker.target.steps) == (2, 6)
    seen = [point.get("map") for point in curve]
    assert seen == ([0.2, 0.5, 0.9, 0.9] if every_epoch else [0.2, 0.5, None, None])
    assert [point.get("more") for point in curve] == ([1.0] * 4 if every_epoch else [None] * 4)
    assert window.reading().pieces == (4 if every_epoch else 3)


def test_a_metric_without_a_figure_reaches_no_target() -> None:
    judge: Any = SimpleNamespace(quality=lambda run: {})
    curve, _, _, tracker = followed(make_run(), TargetTable(metric="loss", at_most=1.0), every_epoch=False, judge=judge)
    assert tracker.target.epoch is None
    assert all("quality_loss" not in point for point in curve)


def test_without_it_nothing_is_evaluated_and_no_window_cut() -> None:
    curve, window, phases, _ = followed(make_run(epochs=3), every_epoch=False)
    assert all(set(point) == set(OWN) for point in curve)
    assert window.reading().pieces == 1
    assert "evaluate" not in phases.readings


def test_an_epoch_that_diverged_has_a_point_without_metrics() -> None:
    _, _, _, tracker = followed(make_run(epochs=2))
    points = [{"epoch": epoch, "loss": 1.0} for epoch in (1, 2, 3)]
    curve = tracker.curve(points, {})
    assert "accuracy" in curve[0]
    assert curve[2] == points[2]


# ── the judge ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Draws(Classification):
    """An evaluation that draws from torch's own stream, as a sampler does."""

    def evaluate(self, run, data):
        torch.rand(5)
        return super().evaluate(run, data)


def judged(*methods: Method):
    run = make_run(list(methods), task=Draws(), epochs=3)
    judge = Judge(run.task, run.recipe, lambda: digits(32, test=True))
    judge.watch(run)
    return run, judge


def test_training_goes_on_as_if_nobody_had_looked() -> None:
    run, judge = judged()
    plain, _ = judged()
    followed(run, judge=judge)
    plain.train()
    for name, value in state(plain.model).items():
        assert torch.equal(value, state(run.model)[name]), name
    assert run.samples_sha256() == plain.samples_sha256()
    assert run.tally.passes() == plain.tally.passes()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    judge.quality(run)
    assert torch.equal(torch.rand(4), expected)
    weights = judge.weights()
    assert not list(judge.flags(run, weights, weights))


@pytest.mark.parametrize("restores", [True, False])
def test_weights_that_an_evaluation_leaves_changed_while_training_goes_on_are_flagged(restores: bool) -> None:
    class Swaps(Method):
        name = "swaps"

        @contextlib.contextmanager
        def eval_context(self, run):
            weight = next(run.model.parameters())
            before = weight.detach().clone()
            weight.copy_(weight / 2)
            yield
            if restores or not run.continues:
                weight.copy_(before)

    run, judge = judged(Swaps())
    run.train_epoch(1)
    judge.quality(run)
    weights = judge.weights()
    flags = list(judge.flags(run, weights, weights))
    assert [flag.code for flag in flags] == ([] if restores else ["weights_changed"])
    assert restores or "evaluation of epoch 1" in flags[0].detail


# ── names, tables and what people see ─────────────────────────────────────────────────────────────────────────────────


@given(
    st.dictionaries(st.text(min_size=1, max_size=12) | st.sampled_from(["loss", "quality_loss", "epoch"]), st.floats())
)
def test_a_metric_of_any_name_is_found_again_and_hides_nothing(quality: dict[str, float]) -> None:
    point = {"epoch": 1.0, "loss": 2.0} | {key_of(name): value for name, value in quality.items()}
    assert (point["epoch"], point["loss"]) == (1.0, 2.0)
    assert metrics_of(point).keys() == quality.keys()
    assert all(metrics_of(point)[name] is value for name, value in quality.items())


def test_a_suite_that_does_not_ask_for_it_is_resolved_to_what_it_was() -> None:
    given = {"epochs": 3, "lr": 0.1}
    plain = TrainTable.model_validate(given, context=RESOLVED)
    assert plain.evaluate == "at the end"
    assert "evaluate" not in plain.model_dump(mode="json")
    asked = TrainTable.model_validate(given | {"evaluate": "every epoch"}, context=RESOLVED)
    assert asked.model_dump(mode="json") == plain.model_dump(mode="json") | {"evaluate": "every epoch"}
    assert TrainTable.model_validate(asked.model_dump(mode="json"), context=RESOLVED) == asked


def looked_at(epochs: int):
    run, trials, counting_runs = Synthetic().records()
    curve = [
        {"epoch": float(e), "loss": 1 / e, "wall_s": float(e), "map": e / epochs, "quality_loss": 2 / e}
        for e in range(1, epochs + 1)
    ]
    return run, [trial.model_copy(update={"curve": curve}) for trial in trials], counting_runs


def test_curves_are_exported_epoch_by_epoch() -> None:
    records = looked_at(3)
    content, notes = curves_csv(ExportedRun(records))
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert not notes
    assert len(rows) == 3 * len(records[1])
    of_one = [row for row in rows if row["trial"] == records[1][0].trial]
    assert [float(row["epoch"]) for row in of_one] == [1, 2, 3]
    assert [float(row["training_loss"]) for row in of_one] == [1, 0.5, pytest.approx(1 / 3)]
    assert [float(row["quality_loss"]) for row in of_one] == [2, 1, pytest.approx(2 / 3)]
    assert [float(row["quality_map"]) for row in of_one] == [pytest.approx(e / 3) for e in (1, 2, 3)]


@pytest.mark.parametrize("epochs", [1, 3, MOST_EPOCHS, MOST_EPOCHS + 1, 10 * MOST_EPOCHS + 7])
def test_show_prints_the_last_epoch_and_no_more_than_fit(tmp_path, epochs: int) -> None:
    path = tmp_path / "records" / "one.json"
    path.parent.mkdir()
    write_json(path, looked_at(epochs)[1][0])
    out = io.StringIO()
    print_record(path, Console(file=out, width=200))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("  epoch ")]
    assert len(lines) <= MOST_EPOCHS
    assert len(lines) == epochs or epochs > MOST_EPOCHS
    assert lines[-1] == f"  epoch {epochs}: training loss {1 / epochs:.4g}, map 1, loss {2 / epochs:.4g}"
    assert ("energybench export" in out.getvalue()) == (epochs > MOST_EPOCHS)
