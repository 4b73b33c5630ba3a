"""Records that were edited, cut or made up: refused with a code, or reported with the figures that they hold."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fuzzing import Step, as_json, changed, finite, harmless, hunt, mutations, steps_of, told
from hypothesis import strategies as st
from rich.console import Console

from energybench.common.errors import EnergybenchError
from energybench.records.reader import read, read_folder
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.report.markdown import markdown
from energybench.report.terminal import render
from energybench.verdict.figures import Measured, Row, Summary
from energybench.verdict.summary import summarise, to_json

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "report"))
from synthetic import GPU, Run  # noqa: E402

MEASURED = ("gpu_counter", "gpu_power_integral", "rapl")
KINDS = {"run": RunFile, "trial": Trial, "witness": CountingRun}

# ── the runs that are mutated ─────────────────────────────────────────────────────────────────────────────────


@cache
def runs() -> list[list[tuple[str, Any]]]:
    """Files of three runs as (kind, JSON): measured joules, times alone, and a part of a committed run."""
    made = [
        Run(noise=0.02, sensors=(GPU,)).method("half", time=0.7, flop=0.5).control("half", time=0.9).records(),
        Run(noise=0.02).method("half", time=0.7, flop=0.5).method("other", time=1.1).records(),
    ]
    real = read_folder(ROOT / "reports" / "quick" / "2026-11-21-170504")
    name = real[0].cells[0].workload
    made.append(
        (
            real[0].model_copy(update={"cells": [c for c in real[0].cells if c.workload == name]}),
            [t for t in real[1] if t.workload == name],
            [w for w in real[2] if w.workload == name],
        )
    )
    return [
        [
            ("run", _plain(run)),
            *(("trial", _plain(t)) for t in trials),
            *(("witness", _plain(w)) for w in counting_runs),
        ]
        for run, trials, counting_runs in made
    ]


def _plain(model: Any) -> Any:
    return json.loads(model.model_dump_json(by_alias=True))


@cache
def models(number: int) -> list[Any]:
    return [KINDS[kind].model_validate_json(json.dumps(value)) for kind, value in runs()[number]]


def reported(tmp_path: Path, number: int, index: int, content: bytes) -> None:
    """One file of a run replaced by `content`: refused, or every report of it is right."""
    kind = KINDS[runs()[number][index][0]]
    path = tmp_path / "witness.json"
    path.write_bytes(content)
    try:
        new = read(path, kind)
    except EnergybenchError as error:
        told(error, "6")
        return
    nothing_impossible(new.model_dump(by_alias=True))
    found = [*models(number)]
    found[index] = new
    run = next(m for m in found if isinstance(m, RunFile))
    trials = [m for m in found if isinstance(m, Trial)]
    every_report(run, trials, [m for m in found if isinstance(m, CountingRun)])


OPEN = ("settings", "diagnostics", "resolved", "data", "stack")  # what others call what
LEAST = {"_s": 0, "_j": 0, "_w": 0, "_kg": 0, "_flop": 0, "_b": 0, "_mhz": 0, "_phase": 0, "by_op": 0, "_c": -273.15}
METRIC = re.compile(r".{4,}_(s|j|kg|flop|mhz)", re.DOTALL)
COUNTS = {
    "block",
    "position",
    "invocation",
    "seed",
    "added",
    "epochs",
    "steps",
    "samples",
    "missed",
    "foreign_pids",
    "forwards",
    "backwards",
    "updates",
    "samples_forward",
    "epochs_trained",
    "counted_steps",
    "keys",
    "uncounted_calls",
    "load_average",
    "wraps",
    "number",
}
ONES = {"pieces", "blocks", "closed", "at", "taken", "tuned_trials", "threads", "cores", "pue"}
PARTS = {"load_rel", "memory_bound_rel"}
SAVED = {"saving_rel", "flop_saved_rel", "bytes_saved_rel", "roofline_saved_rel"}


def nothing_impossible(value: Any, least: float = -math.inf, most: float = math.inf) -> None:
    """No second, joule or count below 0, nothing colder than cold, no share over one, no figure that is none."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("quality", "curve"):  # their keys are others' too: a unit, after a word, is a unit
                for metrics in [item] if key == "quality" else item:
                    nothing_impossible({k: v for k, v in metrics.items() if METRIC.fullmatch(k)})
            elif key not in OPEN:
                unit = next((bound for end, bound in LEAST.items() if str(key).endswith(end)), -math.inf)
                low = 1 if key in ONES else 0 if key in COUNTS | PARTS else unit
                nothing_impossible(item, max(least, low), min(most, 1 if key in PARTS | SAVED else math.inf))
    elif isinstance(value, list):
        for item in value:
            nothing_impossible(item, least, most)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        assert math.isfinite(value)
        assert least <= value <= most


# ── what is said of them ──────────────────────────────────────────────────────────────────────────────────────


def every_report(run: RunFile, trials: list[Trial], counting_runs: list[CountingRun]) -> None:
    summary = summarise(run, trials, counting_runs)
    for workload in summary.workloads:
        for row in workload.rows:
            as_it_says(row, workload.name, trials)
    text = json.dumps(to_json(summary), allow_nan=False)
    assert json.loads(text)["schema"] == 1
    out = io.StringIO()
    render(summary, Console(file=out, width=90))
    for printed in (out.getvalue(), markdown(summary)):
        harmless(printed)
        finite(_without_names(printed, summary))


def _without_names(text: str, summary: Summary) -> str:
    return text


def joules(trial: Trial) -> float:
    assert trial.train is not None
    best: dict[tuple[str, str], tuple[int, float]] = {}
    order = ("gpu_counter", "rapl", "gpu_power_integral")
    for energy in trial.train.energy:
        known = energy.source in MEASURED or energy.source.startswith("meter(")
        if known and energy.energy_j is not None:
            rank = order.index(energy.source) if energy.source in order else 3
            key = (energy.scope, energy.device)
            if key not in best or rank < best[key][0]:
                best[key] = (rank, energy.energy_j)
    whole = [value for (scope, _), (_, value) in best.items() if scope == "machine"]
    return math.fsum(whole or [value for _, value in best.values()])


def as_it_says(row: Row, workload: str, trials: list[Trial]) -> None:
    """The saving is 1 − exp of the mean log ratio of the blocks that the row names, computed from the records alone."""
    if row.measured is None:
        return
    here = [t for t in trials if t.workload == workload and t.status == "ok" and t.train and t.train.wall_s > 0]
    logs, times = [], []
    for block, name in zip(row.blocks, row.records, strict=True):
        ours = [t for t in here if (t.method, t.block, t.trial) == (row.method, block, name)]
        plain = [t for t in here if (t.role, t.block) == ("baseline", block)]
        if len(ours) != 1 or len(plain) != 1:
            return  # two records of one name: which is meant is another test's question
        assert (ours[0].device, ours[0].invocation) == (plain[0].device, plain[0].invocation)
        both = [t.train.wall_s for t in (ours[0], plain[0]) if t.train]
        times.append(math.log(both[0] / both[1]))
        logs.append(times[-1] if row.measured.quantity == "time" else math.log(joules(ours[0]) / joules(plain[0])))
    same(row.measured, logs)
    if row.time is not None:
        same(row.time, times)


def same(figure: Measured, logs: list[float]) -> None:
    assert figure.n == len(logs) >= 1
    mean = math.fsum(logs) / len(logs)
    assert math.isclose(figure.saving_rel, 1 - math.exp(mean), rel_tol=1e-9, abs_tol=1e-12)
    for bound in (figure.low_rel, figure.high_rel):
        assert bound is None or not math.isnan(bound)


# ── the hunts ─────────────────────────────────────────────────────────────────────────────────────────────────


def pick(number: int, *wanted: str) -> list[int]:
    return [index for index, (kind, _) in enumerate(runs()[number]) if kind in wanted]


numbers = st.tuples(st.integers(0, 2), st.integers(0, 2**16))


def a_changed_file_of_a_run(tmp_path: Path, number: int, index: int, steps: list[Step]) -> None:
    """number: of `runs`; index: of its file"""
    reported(tmp_path, number, index, as_json(changed(runs()[number][index][1], steps)).encode())


def _plain_case(case: Any, *wanted: str) -> tuple[int, int, list[Step]]:
    (number, which), drawn = case
    found = [index for kind in wanted for index in pick(number, kind)]
    index = found[which % len(found)]
    return number, index, steps_of(runs()[number][index][1], drawn)


@pytest.mark.soak
def test_a_mutated_record_is_refused_or_reported_as_it_says(tmp_path: Path) -> None:
    hunt(
        "records",
        st.tuples(numbers, mutations),
        a_changed_file_of_a_run,
        lambda case: _plain_case(case, "trial"),
        tmp_path=tmp_path,
    )


@pytest.mark.soak
def test_so_is_a_mutated_witness_or_run_file(tmp_path: Path) -> None:
    hunt(
        "witnesses and run.json",
        st.tuples(numbers, mutations),
        a_changed_file_of_a_run,
        lambda case: _plain_case(case, "run", "run", "run", "witness"),
        tmp_path=tmp_path,
    )


edits = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 40), st.binary(max_size=6)), min_size=1, max_size=3)


def bytes_in_place_of_a_file(tmp_path: Path, number: int, index: int, content: bytes) -> None:
    reported(tmp_path, number, index, content)


@pytest.mark.soak
def test_so_are_bytes_that_were_cut_or_overwritten(tmp_path: Path) -> None:
    def plain(case: Any) -> tuple[int, int, bytes]:
        (number, which), changes, cut = case
        index = which % len(runs()[number])
        content = json.dumps(runs()[number][index][1]).encode()
        for at, length, new in changes:
            at %= len(content) + 1
            content = content[:at] + new + content[at + length :]
        return number, index, content[: int(cut * len(content))]

    share = st.just(1.0) | st.floats(0, 1)
    hunt("records as bytes", st.tuples(numbers, edits, share), bytes_in_place_of_a_file, plain, tmp_path=tmp_path)
