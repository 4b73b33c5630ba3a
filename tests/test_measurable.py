"""A record holds what can have been measured, or it is refused: no figure that physics forbids gets in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from energybench.cli import app
from energybench.common.errors import EnergybenchError
from energybench.meter import clock
from energybench.meter.reading import RecordModel
from energybench.records.reader import read, read_folder
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.train import discovery
from energybench.verdict.summary import summarise
from energybench.windows.file import WindowsFile

REPORTS = Path(__file__).parents[1] / "reports"

TRIAL: dict[str, Any] = {
    "schema": 1,
    "trial": "b0",
    "workload": "w",
    "method": "m",
    "role": "method",
    "block": 0,
    "seed": 1,
    "invocation": 0,
    "position": 0,
    "status": "ok",
    "digest": "d",
    "started_at": "2026-01-01T00:00:00Z",
    "device": "cpu",
    "phases": {"train": {"wall_s": 1.0, "energy": [{"source": "rapl", "scope": "cpu", "energy_j": 5.0, "detail": {}}]}},
    "estimate": {"plain_flop": 1e9, "estimated_flop": 5e8},
    "quality": {"accuracy": 0.9},
    "passes": {"forwards": 1, "keys": {"plain": {"steps": 1}}},
    "environment": {"gpus": {"GPU-1": {"name": "card"}}},
    "curve": [{"epoch": 1, "loss": 0.5}],
    "warmup": {"steps": 3},
    "claim": {"saving_rel": 0.5},
    "target": {"metric": "accuracy", "at_least": 0.9, "steps": 10, "wall_s": 1.0},
    "data_wait_s": 0.0,
}
RUN: dict[str, Any] = {
    "schema": 1,
    "suite": "s",
    "run": "r",
    "digest": "d",
    "suite_path": "s.toml",
    "suite_text": "",
    "resolved": {},
    "blocks": 3,
    "machine": {"carbon": {"zone": "FRA", "intensity_kg_per_j": 1e-8}},
    "cells": [{"workload": "w", "method": "baseline", "role": "baseline"}],
}


def changed(base: dict[str, Any], way: str, new: Any) -> Any:
    tables = json.loads(json.dumps(base))
    inner = tables
    *parts, last = way.split(".")
    for part in parts:
        inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
    inner[int(last) if isinstance(inner, list) else last] = new
    return tables


def refused(tmp_path: Path, kind: type, text: str) -> str:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(EnergybenchError) as caught:
        read(path, kind)
    assert [problem.code for problem in caught.value.problems] == ["E601"]
    return caught.value.problems[0].message


def test_the_records_that_are_changed_below_are_read(tmp_path: Path) -> None:
    for kind, base in ((Trial, TRIAL), (RunFile, RUN)):
        (tmp_path / "r.json").write_text(json.dumps(base))
        read(tmp_path / "r.json", kind)


TRAIN = "phases.train"


@pytest.mark.parametrize(
    ("way", "value"),
    [(f"{TRAIN}.wall_s", value) for value in (-3, -1e-9, 1e12, True, "1.0", None, [1.0], 1e-12)]
    + [(f"{TRAIN}.{key}", -1) for key in ("cpu_s", "steal_s", "pieces")]
    + [(f"{TRAIN}.energy.0.energy_j", value) for value in (-5, 1e19, True, "5", 1e-20)]
    + [(f"{TRAIN}.energy.0.error_j", -1), (f"{TRAIN}.energy.0.detail", {"tick_s": "x"})]
    + [(f"{TRAIN}.energy.0.detail", {"tick_s": [0.1, None]}), (f"{TRAIN}.energy.0.detail", {"tick_s": -1})]
    + [("estimate.plain_flop", value) for value in (-1, 1e40, True, "1e9")]
    + [("estimate.estimated_flop", -1), ("block", -1), ("block", 10**9), ("block", 1.5), ("block", True), ("seed", -1)]
    + [
        ("passes.keys.plain.steps", -1),
        ("passes.forwards", 2**60),
        ("quality.accuracy", 1e200),
        ("quality.accuracy", "1"),
    ]
    + [
        (f"{TRAIN}.pieces", 0),
        (f"{TRAIN}.energy.0.detail", {"period_s": 0}),
        (f"{TRAIN}.energy.0.detail", {"load_rel": 1.1}),
        (f"{TRAIN}.energy.0.detail", {"load_rel": [0.5, -0.1]}),
        (f"{TRAIN}.energy.0.detail", {"wraps": -1}),
        (f"{TRAIN}.energy.0.detail", {"head_w": [1.0, -1.0]}),
        (f"{TRAIN}.energy.0.detail", {"deeper": {"range_j": -1}}),
        (f"{TRAIN}.energy.0.detail", {"card_c": -273.2}),
        (f"{TRAIN}.sampler", {"period_s": 0}),
        (f"{TRAIN}.sampler", {"period_s": -1}),
        (f"{TRAIN}.sampler", {"period_s": 1, "samples": -1}),
        (f"{TRAIN}.sampler", {"period_s": 1, "largest_gap_s": -1}),
        (f"{TRAIN}.cards", {"GPU-1": {"sm_clock_mhz": -1}}),
        (f"{TRAIN}.cards", {"GPU-1": {"temperature_max_c": -274}}),
        (f"{TRAIN}.cards", {"GPU-1": {"foreign_pids": [-1]}}),
        (f"{TRAIN}.cards", {"GPU-1": {"throttled_s": {"heat": -1}}}),
        ("estimate.memory_bound_rel", 1.01),
        ("estimate.memory_bound_rel", -0.01),
        ("estimate.roofline_saved_rel", 1.01),
        ("quality", {"tick_s": -1}),
        ("quality", {"cost_j": -1e-9}),
        ("curve.0", {"wall_s": -1}),
        ("curve.0", {"epoch": 1, "clock_mhz": -1}),
        ("environment.threads", 0),
        ("environment.load_average", -1),
        ("environment.gpus.GPU-1", {"power_limit_w": -1}),
        ("flop", {"counted": -1}),
        ("target.epoch", -1),
        ("memory_resident_b", -1),
    ]
    + [("claim.saving_rel", 1.01), ("target.wall_s", -1), ("data_wait_s", -1), ("curve.0.loss", "low")]
    + [("environment.gpus", []), ("environment.gpus.GPU-1", "card"), ("environment.gpus.GPU-1.name", 3)]
    + [("workload", "x" * 2000), ("warmup.steps", -1), ("started_at", None), ("role", "boss"), ("status", "fine")],
)
def test_what_cannot_have_been_measured_is_refused_with_its_place(way: str, value: Any, tmp_path: Path) -> None:
    message = refused(tmp_path, Trial, json.dumps(changed(TRIAL, way, value)))
    assert way.split(".")[0] in message


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "9" * 5000, "[" * 400 + "]" * 400])
@pytest.mark.parametrize("way", [f"{TRAIN}.wall_s", "quality.accuracy", "settings.x", "diagnostics.x", "block"])
def test_a_number_that_is_none_is_refused_in_open_tables_too(number: str, way: str, tmp_path: Path) -> None:
    refused(tmp_path, Trial, json.dumps(changed(TRIAL, way, "@")).replace('"@"', number))


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("blocks", 0),
        ("blocks", 10**9),
        ("closed", 4),
        ("looks", {"at": [3, 4]}),
        ("looks", {"at": [-1]}),
        ("added", -1),
        ("looks", {"at": []}),
        ("looks", {"at": [3, 2]}),
        ("looks", {"at": [2, 3], "taken": [0]}),
        ("cells.0.expected_s", -1),
        ("cells.0.tuned_trials", 0),
        ("cells.0.epochs", [-1]),
        ("invocations", [{"number": -1, "argv": [], "started_at": ""}]),
        ("machine.cores", 0),
        ("machine.threads", -1),
        ("machine.energy_model", {"tdp_w": -8.0}),
        ("data.w", "digits"),
        ("data.w.parameters", -1),
        ("data.w.std", [-0.5]),
        ("resolved.trials", "many"),
        ("resolved.trials.seed", -1),
        ("resolved.workload", "w"),
        ("resolved.workload", ["w"]),
        ("resolved.require", [{"method": "m"}]),
        ("resolved.require", [{"workload": "w", "method": "m", "saves_at_least": 1.5}]),
        ("machine.carbon", "FRA"),
        ("machine.carbon.intensity_kg_per_j", -1),
        ("machine.carbon.pue", 0),
        ("machine.cpu", 3),
        ("resolved.accept", {"noise": 1.0}),
        ("resolved.accept", {"noise": -0.1}),
        ("resolved.accept", {"noise": "1 %"}),
        ("resolved.accept", {"quality": {"loses_at_most": -1}}),
        ("resolved.accept", []),
        ("resolved.measure", "off"),
    ],
)
def test_a_run_file_that_no_suite_can_have_made_is_refused(way: str, value: Any, tmp_path: Path) -> None:
    refused(tmp_path, RunFile, json.dumps(changed(RUN, way, value)))


@pytest.mark.parametrize("kind", [RunFile, Trial, CountingRun, WindowsFile])
def test_every_number_of_a_record_has_a_least_and_a_most(kind: type[RecordModel]) -> None:
    """Whoever adds a field says what it can be. Tables whose keys others choose have no schema."""
    free = []

    def walk(schema: Any, way: str) -> None:
        if isinstance(schema, dict):
            low, high = ({"minimum", "exclusiveMinimum"} & set(schema), {"maximum", "exclusiveMaximum"} & set(schema))
            bounded = (low and high) or {"const", "enum"} & set(schema)
            if schema.get("type") in ("integer", "number") and not bounded:
                free.append(way)
            for key, inner in schema.items():
                walk(inner, f"{way}.{key}")
        elif isinstance(schema, list):
            for inner in schema:
                walk(inner, way)

    walk(kind.model_json_schema(), kind.__name__)
    assert not [way for way in free if "quality.additionalProperties" not in way]


@pytest.mark.parametrize("folder", sorted(REPORTS.glob("*/*/run.json")), ids=lambda file: file.parent.name)
def test_the_runs_that_are_kept_as_examples_are_read(folder: Path) -> None:
    run, trials, counting_runs = read_folder(folder.parent)
    assert {trial.workload for trial in trials} == {cell.workload for cell in run.cells if cell.skipped is None}
    assert len(trials) >= run.verdict_blocks
    assert counting_runs


def test_figures_that_are_small_but_can_be_are_read(tmp_path: Path) -> None:
    """At the bounds, and below zero where nothing forbids it."""
    good = [
        (f"{TRAIN}.energy.0.detail", {"tick_s": 0.0, "load_rel": [0.0, 1.0], "offset": -3}),
        (f"{TRAIN}.cards", {"GPU-1": {"temperature_end_c": -273.15, "sm_clock_mhz": 0.0, "foreign_pids": [0]}}),
        ("quality", {"loss": -7.0, "log_likelihood": -1e9}),
        ("curve.0", {"epoch": 1, "loss": -7.0, "wall_s": 0.0}),
        ("diagnostics", {"mine": {"shift_b": -1.0}}),
        ("estimate.roofline_saved_rel", -3.0),
        ("claim.saving_rel", 1.0),
    ]
    for way, value in good:
        (tmp_path / "r.json").write_text(json.dumps(changed(TRIAL, way, value)))
        read(tmp_path / "r.json", Trial)


def test_a_run_that_declares_more_trials_than_can_be_reported_is_refused_with_their_number(tmp_path: Path) -> None:
    many = changed(RUN, "blocks", 900_000) | {"cells": RUN["cells"] * 5}
    assert "4,500,000 trials" in refused(tmp_path, RunFile, json.dumps(many))


def test_the_largest_run_that_is_read_is_reported_and_its_blocks_cost_a_line_of_code_each() -> None:
    def lines(blocks: int) -> int:
        run, count = RunFile.model_validate({**RUN, "blocks": blocks}), [0]

        def trace(frame: Any, event: str, argument: Any) -> Any:
            count[0] += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            summarise(run, [], [])
        finally:
            sys.settrace(before)
        return count[0]

    summarise(RunFile.model_validate({**RUN, "blocks": 1_000_000 - 1}), [], [])
    # Not the lines themselves, of which a cache may leave out some: how many more there are with more blocks.
    few, many = lines(1000), lines(5000)
    assert many - few <= 2 * 4000


def test_a_witness_counts_nothing_negative(tmp_path: Path) -> None:
    base = {key: TRIAL[key] for key in ("schema", "workload", "method", "role", "seed", "digest", "status")}
    for way, value in (
        ("counted_flop", -1),
        ("outside_steps_flop", -1),
        ("counted_error_flop", -1),
        ("by_op", {"mm": -1}),
        ("shadow", {"plain_s": {"forward": -1}}),
        ("uncounted_calls", {"x": -1}),
    ):
        refused(tmp_path, CountingRun, json.dumps({**base, way: value}))


def test_a_clock_that_went_back_gives_no_negative_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that nobody waited for takes its seconds with it; some hosts turn back the time that they stole."""
    stolen, worked = iter([5.0, 3.0]), iter([9.0, 2.0])
    monkeypatch.setattr(clock, "stolen_s", lambda: next(stolen))
    monkeypatch.setattr(clock.Clock, "_cpu", lambda self: next(worked))
    meter = clock.Clock()
    meter.start()
    reading = meter.stop()
    assert (reading.cpu_s, reading.steal_s) == (0.0, 0.0)


@pytest.mark.parametrize("use", ["x.python:f", "x.pyc", "x.py.txt:f", "os:system", "f.py/../g:f"])
def test_only_a_name_that_ends_in_py_is_a_file_of_code(use: str) -> None:
    assert not discovery.names_file(use)


def test_list_tells_what_it_cannot_read_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("methods", "suites"):
        (tmp_path / folder).mkdir()
    (tmp_path / "methods" / "broken.py").write_text("def (")
    (tmp_path / "methods" / "bytes.py").write_bytes(b"\xff\xfe")
    (tmp_path / "methods" / "deep.py").write_text("x = " + "(" * 5000)
    (tmp_path / "suites" / "number.toml").write_text("about = 3")
    (tmp_path / "suites" / "bytes.toml").write_bytes(b"\xff")
    (tmp_path / "suites" / "deep.toml").write_text("a = " + "[" * 5000)
    (tmp_path / "suites" / "evil.toml").write_text('about = "\\u001b[2J"')
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0, result.exception
    assert result.output.count("cannot be read") == 5
    assert "\x1b[2J" not in result.output


@pytest.mark.parametrize(
    ("name", "least"),
    [("tick_s", 0), ("train_flop", 0), ("r_s", None), ("elbo_b", None), ("loss_c", None), ("reward", None)],
)
def test_a_metrics_name_is_others_to_choose_but_where_it_ends_in_a_unit_after_a_word(
    name: str, least: float | None
) -> None:
    """A bound of −3 is no failure of a training, a second of −3 is none."""
    accepted = {"quality": {name: -3.0}, "curve": [{"epoch": 1, name: -3.0}]}
    for key, value in accepted.items():
        if least is None:
            assert getattr(Trial.model_validate({**TRIAL, key: value}), key) == value
        else:
            with pytest.raises(ValidationError, match=name):
                Trial.model_validate({**TRIAL, key: value})
