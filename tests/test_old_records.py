"""Runs that were made by an earlier energybench: they stay readable, and say what they said.

tests/old_records holds two of each schema: `trained`, on a fake card of 300 W, with twin, matched control, target, a
requirement and a power trace; and `commands`. Those of schema 1 are of the last day before the rooms; those of schema
2, beside a card that nothing meters, of the last day before schema 3; so are those of schema 3, before schema 4. Beside
each lies what `energybench report --json` said of it on that day. A later report may say more; what it said, it says
still: every figure, flag and verdict. What it promised of runs to come (how small a saving so many blocks see, how many
would decide) was too much, and is told anew, and with it the sentences that hold it; so is the sentence of the A/A
check, and a headline that said of a method that costs less for sure only that nothing was proven.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import energybench

from energybench.records.reader import read_folder

OLD = Path(__file__).parent / "old_records"
PROMISES = ("detectable_rel", "blocks_needed", "reason", "because")
ANEW = {"sentence": "Plain training differs from itself", "headline": "No method was proven"}
RUNS = sorted(path.parent for path in OLD.glob("schema-*/*/run.json"))


def no_longer_said(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Where `now` lacks a fact of `before` or says another; keys that `before` had not are no matter."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in before.items():
            told_anew = key in PROMISES or (key in ANEW and str(value).startswith(ANEW[key]))
            if told_anew and type(value) is type(now.get(key)):
                continue
            if key not in now:
                yield f"{place}.{key}: gone"
            else:
                yield from no_longer_said(value, now[key], f"{place}.{key}")
    elif place.endswith(".checks"):  # a check that came later is no matter either
        yield from no_longer_said(by_code(before), by_code(now), f"{place} by code")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from no_longer_said(one, other, f"{place}[{index}]")
    elif before != now or isinstance(before, bool) != isinstance(now, bool):
        yield f"{place}: {before!r}, now {now!r}"


def by_code(checks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {f"{check['code']} {check['where']}": check for check in checks}
    assert len(found) == len(checks)
    return found


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_run_of_an_earlier_schema_says_what_it_said(folder, tmp_path):
    said = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    done = energybench("report", folder, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(no_longer_said(said, json.loads(done.stdout))) == []


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_every_page_of_it_can_be_written_and_every_sensor_s_joules_are_physics(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    for arguments in (["--write"], ["--html"], ["--carbon"]):
        done = energybench("report", copy, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
    assert all((copy / page).stat().st_size for page in ("report.md", "report.html"))
    for trial in read_folder(folder)[1]:
        for energy in trial.train.energy if trial.train else ():
            if energy.source == "gpu_counter":  # the card of that run drew 300 W, whatever it did
                assert energy.energy_j == pytest.approx(300 * trial.train.wall_s, rel=0.001)


def test_both_kinds_of_runs_are_kept_of_every_schema():
    kept = {schema.name: {path.name for path in schema.iterdir()} for schema in OLD.iterdir()}
    assert kept == {f"schema-{number}": {"trained", "commands"} for number in (1, 2, 3)}


@pytest.mark.parametrize(
    ("before", "now", "lost"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, []),
        ({"a": 1}, {"b": 1}, [".a: gone"]),
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": 0}]}, [".a[1].b: None, now 0"]),
        ({"a": [1]}, {"a": [1, 2]}, [".a: [1], now [1, 2]"]),
        ({"a": True}, {"a": 1}, [".a: True, now 1"]),
    ],
)
def test_what_is_lost_is_found(before, now, lost):
    assert list(no_longer_said(before, now)) == lost
