"""A suite goes in, records and a report come out, and nothing else stays."""

from __future__ import annotations

import json
import math
import re

import pytest
from tiny_runs import Done, contents

from energybench.records.kept import whole

pytestmark = pytest.mark.slow
CELLS = ["baseline", "twin", "calm", "gradsamp", "gradsamp matched"]


def test_every_cell_of_every_block_has_one_good_record(finished: Done) -> None:
    run, trials, _ = contents(finished.folder)
    seen = [(t.block, t.workload, t.method) for t in trials.values()]
    assert sorted(seen) == sorted((b, w, m) for b in range(2) for w in ("w", "own") for m in CELLS)
    assert {t.status for t in trials.values()} == {"ok"}
    assert run.finished
    assert [i.outcome for i in run.invocations] == ["finished"]


def test_exit_code_table_and_report_tell_the_same(finished: Done) -> None:
    assert finished.process.returncode == 0
    for method in ("calm", "gradsamp"):
        assert method in finished.process.stdout
        assert method in (finished.folder / "report.md").read_text()
    for column in ("claimed", "estimated", "counted", "measured"):
        assert column in finished.process.stdout
    told = finished.process.stdout.splitlines()
    assert f"report: {finished.folder.relative_to(finished.home) / 'report.md'}" in told
    assert [line for line in told if line.startswith("more: ")] == told[-2:]
    assert "\x1b" not in finished.process.stdout + finished.process.stderr


def test_the_run_leaves_its_records_its_witnesses_and_its_report_and_nothing_else(finished: Done) -> None:
    left = sorted(str(p.relative_to(finished.folder)) for p in finished.folder.rglob("*") if p.is_file())
    records = [name for name in left if name.startswith("records/")]
    counting_runs = [name for name in left if name.startswith("witness/")]
    figures = [name for name in left if name.startswith("figures/")]
    assert sorted(set(left) - set(records) - set(counting_runs) - set(figures)) == ["report.md", "run.json"]
    page = (finished.folder / "report.md").read_text()
    assert figures
    assert all(f"({name})" in page for name in figures)
    assert len(records) == 2 * 2 * len(CELLS)
    assert len(counting_runs) == 2 * 3
    assert sorted(p.name for p in finished.folder.iterdir()) == [
        "figures",
        "records",
        "report.md",
        "run.json",
        "witness",
    ]
    assert list((finished.home / "tmp").glob("*energybench*")) == []
    assert sorted(p.name for p in finished.home.iterdir()) == ["elsewhere", "methods", "reports", "tmp"]


def test_each_record_is_named_after_what_it_holds(finished: Done) -> None:
    for path in (finished.folder / "records").iterdir():
        assert json.loads(path.read_text())["trial"] == path.stem


def test_counted_equals_estimated_for_plain_training(finished: Done) -> None:
    _, trials, counting_runs = contents(finished.folder)
    for workload in ("w", "own"):
        counting_run = counting_runs[f"{workload}.baseline"]
        assert counting_run.status == "ok"
        assert counting_run.estimate is not None
        assert counting_run.counted_flop == pytest.approx(counting_run.estimate.plain_flop, rel=1e-3)
        plain = next(t for t in trials.values() if (t.workload, t.method) == (workload, "baseline"))
        assert whole(plain).estimate == counting_run.estimate


def test_on_the_roofline_less_of_everything_is_less_time_and_plain_training_saves_none(finished: Done) -> None:
    """Whatever the machine's balance: an epoch that is skipped takes its FLOPs, its bytes and its time away."""
    _, trials, _ = contents(finished.folder)
    told = [t.estimate for t in trials.values() if t.estimate]
    assert told
    for estimate in told:
        assert estimate.balance_flop_b is not None
        assert estimate.memory_bound_rel is not None
        assert estimate.balance_flop_b > 0
        assert 0 <= estimate.memory_bound_rel <= 1
        saved = 1 - estimate.estimated_flop / estimate.plain_flop
        assert estimate.roofline_saved_rel == pytest.approx(saved, abs=1e-9)


def test_counted_flops_are_those_of_the_layers(finished: Done) -> None:
    """own: Linear 2→3 and 3→1 on 40 samples, 2 epochs: forward 2mn, dW 2mn, dX 2mn but not into the data."""
    _, _, counting_runs = contents(finished.folder)
    first, second = 2 * 2 * 3, 2 * 3 * 1
    assert counting_runs["own.baseline"].counted_flop == 40 * 2 * (2 * first + 3 * second)


def test_metered_trials_do_what_their_witness_counted(finished: Done) -> None:
    _, trials, counting_runs = contents(finished.folder)
    for trial in trials.values():
        if trial.role in ("baseline", "method") and trial.block == 0:
            assert trial.passes == counting_runs[f"{trial.workload}.{trial.method}"].passes


def test_a_record_says_what_was_trained_and_for_how_long(finished: Done) -> None:
    _, trials, _ = contents(finished.folder)
    for trial in trials.values():
        assert trial.samples == (64 if trial.workload == "w" else 40)
        steps = {"w": 4, "own": 3}[trial.workload]
        epochs = 1 if trial.method.startswith("gradsamp") else 2
        assert trial.steps == steps * epochs
        assert trial.train is not None
        assert trial.train.wall_s > 0
        assert trial.train.energy == []  # energy = "off"
        assert {"setup", "warmup", "build", "train", "evaluate"} <= set(trial.phases)
        assert trial.seed == 7 + trial.block
        assert all(point["loss"] is None or math.isfinite(point["loss"]) for point in trial.curve)
        assert trial.environment["threads"] == 1
        assert re.fullmatch("[0-9a-f]{64}", trial.weights_sha256 or "")


def test_a_method_in_the_methods_folder_is_found_and_its_parameters_arrive(finished: Done) -> None:
    run, trials, _ = contents(finished.folder)
    assert "./methods" in run.sources["calm"]
    settings = next(t.settings for t in trials.values() if t.method == "calm")
    assert settings["methods"] == [{"name": "calm", "factor": 0.25}]


def test_the_matched_control_trains_plainly_for_the_kept_epochs(finished: Done) -> None:
    _, trials, _ = contents(finished.folder)
    controls = [t for t in trials.values() if t.role == "control"]
    assert len(controls) == 4
    assert {(t.epochs, t.of) for t in controls} == {(1, "gradsamp")}


def test_baseline_and_twin_end_with_equal_weights_and_a_method_with_others(finished: Done) -> None:
    _, trials, _ = contents(finished.folder)
    for block in range(2):
        for workload in ("w", "own"):
            sha = {t.method: t.weights_sha256 for t in trials.values() if (t.block, t.workload) == (block, workload)}
            assert sha["baseline"] == sha["twin"]
            assert len({sha["baseline"], sha["calm"], sha["gradsamp"]}) == 3


def test_blocks_start_from_different_weights(finished: Done) -> None:
    _, trials, _ = contents(finished.folder)
    first, second = (
        next(t.curve[0]["loss"] for t in trials.values() if (t.block, t.workload, t.method) == (b, "w", "baseline"))
        for b in range(2)
    )
    assert first != second


def test_positions_are_the_places_in_the_blocks_order(finished: Done) -> None:
    _, trials, _ = contents(finished.folder)
    for block in range(2):
        started = sorted((t.started_at, t.position) for t in trials.values() if t.block == block)
        places = [position for _, position in started]
        assert places == sorted(set(places))
        assert set(places) <= set(range(12))  # that of calm's control stays free: calm trained as much
