"""One trial that is a command, and where its quality is read: in this process, with /bin/sh and no sensor."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.reading import Reading
from energybench.process.supervise import CommandOutcome
from energybench.records.reader import read as read_record
from energybench.records.record import Trial
from energybench.suite.command_tables import CommandWorkloadTable
from energybench.suite.quality_source import QualitySourceTable
from energybench.trial.command_quality import NoQuality, QualityReader
from energybench.trial.command_trial import MeteredCommand, Unusable, environment, main, trial, why_unusable
from energybench.trial.record_draft import TrialDraft
from energybench.trial.spec import CommandTrialSpec, MeasureSpec, TrialHeader
from energybench.verdict.flag_codes import kind
from energybench.verdict.flags import check_pair, check_trial
from energybench.windows import file as windows
from energybench.windows.file import WindowLine

HEADER = {
    "trial": "b2-i0-w.mine",
    "workload": "w",
    "method": "mine",
    "role": "method",
    "block": 2,
    "seed": 42,
    "invocation": 0,
    "position": 0,
    "digest": "",
    "started_at": "",
}


def spec_of(folder: Path, script: str, quality: dict[str, Any] | None = None, limit_s: float = 30) -> CommandTrialSpec:
    return CommandTrialSpec(
        header=TrialHeader(**HEADER),
        base=folder,
        command=("sh", "-c", script),
        metric="accuracy",
        workload=CommandWorkloadTable.model_validate(
            {"name": "w", "command": "true", "quality": quality or {"from": "none"}}
        ),
        measure=MeasureSpec(energy="off"),
        device_name="cpu",
        limit_s=limit_s,
        windows=folder / "windows",
        log=folder / "log",
    )


def run(folder: Path, script: str, quality: dict[str, Any] | None = None, limit_s: float = 30) -> Trial:
    """A trial of `sh -c script`; whatever happens to it is in the record."""
    record = TrialDraft(**HEADER, status="ok")
    try:
        trial(spec_of(folder, script, quality, limit_s), record)
    except Unusable as unusable:
        record.status, record.reason = unusable.status, unusable.reason
    return record.finished()


def line(**fields: Any) -> str:
    window = {"name": "train", "start_s": 1.0, "stop_s": 3.0, "reading": {"wall_s": 2.0, "cpu_s": 1.5}, **fields}
    return f"echo '{json.dumps(window)}' >> $ENERGYBENCH_WINDOWS\n"


def test_the_window_is_the_whole_command_and_everything_it_started(tmp_path: Path):
    began_s = time.perf_counter()
    found = run(tmp_path, "sleep 0.1; exit 0")
    assert found.train is not None
    assert 0.1 <= found.train.wall_s <= time.perf_counter() - began_s
    assert found.phases["command"] == found.train
    assert found.environment["metered"] == "the whole command"
    assert found.settings["command"][0] == "sh"
    assert found.quality == {}
    assert (found.estimate, found.flop, found.passes) == (None, {}, None)


def test_a_script_is_billed_for_its_own_training_and_the_whole_stays_in_the_record(tmp_path: Path):
    more = {
        "steps": 10,
        "samples": 320,
        "quality": {"accuracy": 0.5, "f1": 0.25},
        "flop": {"estimated": 3e9, "counted": 4e9},
    }
    evaluation = line(name="evaluate", start_s=4.0, stop_s=5.0, reading={"wall_s": 1.0})
    began_s = time.perf_counter()
    found = run(tmp_path, line(**more) + line(start_s=6.0, stop_s=8.0, **more) + evaluation, {"from": "window"})
    whole_s = time.perf_counter() - began_s
    assert found.status == "ok", found.reason
    assert found.train is not None
    assert (found.train.wall_s, found.train.cpu_s) == (4.0, 3.0)  # two windows of 2 s add up
    assert (found.steps, found.samples, found.flop) == (20, 640, {"estimated": 6e9, "counted": 8e9})
    assert found.phases["evaluate"].wall_s == 1.0
    assert found.phases["command"].wall_s <= whole_s  # its own, and not what the windows say
    assert found.phases["command"].wall_s != 4.0
    assert found.quality == {"accuracy": 0.5, "f1": 0.25}
    assert not (tmp_path / "windows").exists()  # it is not the next trial's


def test_windows_of_one_name_beside_the_training_add_up(tmp_path: Path):
    """Two evaluations of 1 s each took 2 s; of what overlaps nobody can say what both together used."""
    twice = "".join(
        line(name="evaluate", start_s=start, stop_s=start + 1.0, reading={"wall_s": 1.0, "cpu_s": 0.5})
        for start in (4.0, 6.0)
    )
    found = run(tmp_path, line() + twice)
    assert (found.phases["evaluate"].wall_s, found.phases["evaluate"].cpu_s) == (2.0, 1.0)
    assert found.train is not None
    assert found.train.wall_s == 2.0
    overlapping = line() + twice.replace("6.0", "4.5")
    assert "evaluate" not in run(tmp_path, overlapping).phases


def test_a_window_that_says_more_than_a_record_can_hold_costs_no_reading(tmp_path: Path):
    """A perplexity of 10²⁰⁰ beside the accuracy is not kept; a count beyond all counts is told, and what was metered
    stays."""
    huge = run(tmp_path, line(quality={"accuracy": 0.5, "perplexity": 1e200}), {"from": "window"})
    assert (huge.status, huge.quality) == ("ok", {"accuracy": 0.5})
    assert run(tmp_path, line(quality={"accuracy": 1e200}), {"from": "window"}).status == "diverged"
    done = tmp_path / "out.json"
    again = {"start_s": 3.0, "stop_s": 5.0}  # each of them can be, and not both together
    for more, why in (
        ({"samples": 10**20}, "cannot be read"),
        ({"flop": {"counted": 1e40}}, "cannot be read"),
        ({"samples": 2**53}, "cannot be kept"),
        ({"flop": {"counted": 9e35}}, "cannot be kept"),
    ):
        spec = spec_of(tmp_path, line(**more) + line(**more, **again))
        spec.write(tmp_path / "in.json")
        before = signal.getsignal(signal.SIGTERM)
        try:
            main(str(tmp_path / "in.json"), str(done))
        finally:
            signal.signal(signal.SIGTERM, before)
        found = read_record(done, Trial)
        assert (found.status, found.quality) == ("failed", {})
        assert why in (found.reason or "")
        assert found.phases["command"].wall_s > 0
        assert found.flop == {}


# What any program can do that knows the monotonic clock: Python here, for a shell does not.
FOREIGN = """
import json, os, sys, time
clock = {clock}
begin = clock()
until = time.perf_counter() + {trains_s}
while time.perf_counter() < until:
    pass
line = {{"name": {name!r}, "start_s": begin, "stop_s": clock(), **{more!r}}}
with open(os.environ["ENERGYBENCH_WINDOWS"], "a") as windows:
    windows.write(json.dumps(line) + chr(10))
time.sleep({rests_s})
"""


def foreign(folder: Path, clock: str = "time.perf_counter", name: str = "train", **more: Any) -> str:
    """A script that trains for 0.2 s, writes a line of a window without a reading, and lives on for 0.2 s."""
    text = FOREIGN.format(clock=clock, trains_s=0.2, rests_s=0.2, name=name, more=more)
    (folder / "foreign.py").write_text(text)
    return f"{sys.executable} foreign.py\n"


def test_a_window_that_any_program_writes_is_what_is_billed(tmp_path: Path):
    """Only name, start_s and stop_s: its seconds are the trial's, and nothing is made up for what was not read."""
    found = run(tmp_path, foreign(tmp_path, steps=3))
    assert found.status == "ok", found.reason
    whole, train = found.phases["command"], found.train
    assert train is not None
    assert 0.2 <= train.wall_s <= whole.wall_s - 0.2
    assert (train.cpu_s, train.other_cpu_s, train.steal_s) == (None, None, None)
    assert found.steps == 3
    assert found.environment["metered"] == "the script's own window 'train'"
    assert kind_of_pair(run(tmp_path, "true"), found) == ["unlike"]  # only one side writes a window


def kind_of_pair(one: Trial, other: Trial) -> list[str]:
    return [flag.code for flag in check_pair(one, other)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clock": "lambda: 1e3 * time.perf_counter()"}, "milliseconds"),
        ({"clock": "time.time"}, "the clock of the day"),
        ({"clock": "time.process_time"}, "a clock that begins with the program"),
        ({"clock": "lambda: -time.perf_counter()"}, "has a time below 0"),
        ({"name": "training"}, 'write "name": "train"'),
        ({"stop_s": 0.2}, "stop_s looks like its duration"),
    ],
)
def test_a_window_that_cannot_be_billed_is_refused_with_what_to_type(
    tmp_path: Path, options: dict[str, Any], words: str
):
    found = run(tmp_path, foreign(tmp_path, **options))
    assert found.status == "failed"
    assert words in (found.reason or "")
    assert found.environment["refused"] == "windows"
    assert found.phases["command"].wall_s > 0


def test_windows_in_turn_add_up_and_those_that_overlap_are_refused_unless_they_are_ranks(tmp_path: Path):
    script = foreign(tmp_path)
    twice = run(tmp_path, script + script)
    assert twice.train is not None
    assert 0.4 <= twice.train.wall_s <= 0.9 * twice.phases["command"].wall_s
    both = run(tmp_path, f"{script.strip()} & {script.strip()} & wait")
    assert (both.status, "overlap" in (both.reason or "")) == ("failed", True)
    ranks = "".join(f"{sys.executable} rank{n}.py & " for n in range(2))
    for number in range(2):
        foreign(tmp_path, rank=number)
        (tmp_path / "foreign.py").rename(tmp_path / f"rank{number}.py")
    together = run(tmp_path, f"{ranks} wait")
    assert together.status == "ok", together.reason
    assert together.environment["ranks"] == 2


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        (line(error="ValueError"), "failed", "its window 'train' ended with an error: ValueError"),
        ("echo nonsense >> $ENERGYBENCH_WINDOWS\n", "ok", ""),  # cut short: no other line follows
        ("echo '{\"name\": 3}' >> $ENERGYBENCH_WINDOWS; " + line(), "failed", "its windows cannot be read"),
    ],
)
def test_windows_that_went_wrong(tmp_path: Path, script: str, status: str, reason: str):
    script = script.replace("echo nonsense", "printf nonsense")
    found = run(tmp_path, script)
    assert (found.status, reason in (found.reason or "")) == (status, True), found.reason


def test_a_trial_keeps_what_was_metered_before_it_failed(tmp_path: Path):
    found = run(tmp_path, "echo gone wrong >&2; exit 9")
    assert (found.status, found.reason) == ("failed", "it ended with status 9: gone wrong")
    assert found.train is not None
    assert found.train.wall_s > 0
    assert (tmp_path / "log").read_text() == "gone wrong\n"


def test_a_command_is_told_who_it_is():
    told = environment(HEADER["seed"], HEADER["block"], HEADER["trial"], Path("/somewhere/windows"), 3)
    ours = {key: value for key, value in told.items() if os.environ.get(key) != value}
    assert ours == {
        "ENERGYBENCH_SEED": "42",
        "ENERGYBENCH_TRIAL": "b2-i0-w.mine",
        "ENERGYBENCH_BLOCK": "2",
        windows.VARIABLE: "/somewhere/windows",
        "OMP_NUM_THREADS": "3",
    }


@pytest.mark.parametrize(
    ("ended", "last", "status", "reason"),
    [
        (CommandOutcome(0, 1.0), "", None, ""),
        (CommandOutcome(3, 1.0), "oh", "failed", "it ended with status 3: oh"),
        (CommandOutcome(3, 1.0), "torch.OutOfMemoryError: CUDA out of memory", "out_of_memory", "status 3"),
        (CommandOutcome(-signal.SIGSEGV, 1.0), "", "failed", "it was killed by SIGSEGV"),
        (CommandOutcome(-signal.SIGKILL, 1.0), "", "out_of_memory", "SIGKILL, most often for lack of memory"),
        (CommandOutcome(137, 1.0), "Killed", "out_of_memory", "SIGKILL"),
        (CommandOutcome(-signal.SIGTERM, 9.0, True, True), "", "timeout", "past its limit of 8 s"),
        (CommandOutcome(-signal.SIGKILL, 9.0, True, False), "", "timeout", "8 s, and ignored SIGTERM"),
        (None, "", "failed", "could not be started"),
    ],
)
def test_every_end_has_its_word(ended: CommandOutcome | None, last: str, status: str | None, reason: str):
    found = MeteredCommand(Reading(wall_s=1.0), None, ended, "it could not be started: x", last)  # type: ignore[arg-type]
    told = why_unusable(found, 8.0)
    assert (told and told[0]) == status
    assert reason in (told[1] if told else "")


# ── quality ───────────────────────────────────────────────────────────────────────────────────────────────


def read(source: dict[str, Any], *lines: str, folder: Path = Path("."), stream: str = "stdout") -> dict[str, float]:
    reader = QualityReader(QualitySourceTable.model_validate(source), "accuracy", folder, {"trial": "t1"})
    for text in lines:
        reader.hear(stream, text)
    return reader.result([])


def test_the_last_json_line_that_has_the_key_holds():
    lines = ['{"accuracy": 0.1}', "words", '{"accuracy": 0.9, "loss": 1}', '{"loss": 2}', "{not json}", "[1, 2]"]
    assert read({"from": "json"}, *lines) == {"accuracy": 0.9}
    assert read({"from": "json", "key": "loss"}, *lines) == {"accuracy": 2.0}


def test_a_dotted_key_goes_down_unless_the_key_itself_has_a_dot():
    assert read({"from": "json", "key": "test.acc"}, '{"test": {"acc": 0.5}}') == {"accuracy": 0.5}
    assert read({"from": "json", "key": "test.acc"}, '{"test.acc": 0.25, "test": {"acc": 0.5}}') == {"accuracy": 0.25}


@pytest.mark.parametrize("value", ['"0.9"', "true", "null", "[0.9]", '{"a": 1}'])
def test_what_is_no_number_is_no_quality(value: str):
    with pytest.raises(NoQuality, match="no accuracy"):
        read({"from": "json"}, '{"accuracy": 0.5}', f'{{"accuracy": {value}}}')


@pytest.mark.parametrize("value", ["1" + "0" * 400, "-1" + "0" * 400])
def test_a_number_too_large_for_any_float_is_infinite_and_no_error_of_ours(value: str):
    assert abs(read({"from": "json"}, f'{{"accuracy": {value}}}')["accuracy"]) == float("inf")


def test_a_line_nested_too_deeply_to_be_read_is_a_line_about_something_else():
    deep = '{"a":' * 10_000 + "1" + "}" * 10_000
    assert read({"from": "json"}, '{"accuracy": 0.5}', deep) == {"accuracy": 0.5}


def test_json_is_read_from_stdout_and_a_pattern_from_both_streams():
    with pytest.raises(NoQuality, match="printed no JSON line with the key 'accuracy'"):
        read({"from": "json"}, '{"accuracy": 0.9}', stream="stderr")
    source = {"from": "regex", "pattern": r"acc=([0-9.]+)"}
    assert read(source, "acc=0.1 acc=0.2", "acc=0.3", "none", stream="stderr") == {"accuracy": 0.3}
    with pytest.raises(NoQuality, match=r"matched '1\.2\.3', which is no number"):
        read(source, "acc=0.5", "acc=1.2.3")  # an earlier figure is not the last one


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_that_json_writes_is_read_again_exactly(value: float):
    assert read({"from": "json"}, json.dumps({"accuracy": value})) == {"accuracy": value}


def test_a_file_counts_only_if_this_trial_wrote_it(tmp_path: Path):
    source = {"from": "file", "path": "{trial}.json", "key": "accuracy"}
    file = tmp_path / "t1.json"
    with pytest.raises(NoQuality, match=r"it wrote no t1\.json"):
        read(source, folder=tmp_path)
    file.write_text('{"accuracy": 0.5}')
    with pytest.raises(NoQuality, match="older than the trial"):
        read(source, folder=tmp_path)
    reader = QualityReader(QualitySourceTable.model_validate(source), "accuracy", tmp_path, {"trial": "t1"})
    file.write_text('{"accuracy": 0.25}\n{"accuracy": 0.75}\n')  # JSON lines: the last
    assert reader.result([]) == {"accuracy": 0.75}
    reader = QualityReader(QualitySourceTable.model_validate(source), "accuracy", tmp_path, {"trial": "t1"})
    file.write_text("not json at all")
    with pytest.raises(NoQuality, match="is not JSON"):
        reader.result([])


def test_windows_say_quality_by_their_own_names():
    reader = QualityReader(QualitySourceTable.model_validate({"from": "window", "key": "top1"}), "accuracy", Path(), {})
    window = WindowLine(name="train", start_s=0.0, stop_s=1.0, quality={"top1": 0.5})
    assert reader.result([window]) == {"accuracy": 0.5}
    with pytest.raises(NoQuality, match="none of its windows says 'top1'"):
        QualityReader(
            QualitySourceTable.model_validate({"from": "window", "key": "top1"}), "accuracy", Path(), {}
        ).result([])


# ── what the report may make of it ────────────────────────────────────────────────────────────────────────


def test_a_command_that_waits_is_not_taken_for_one_that_was_held_up_but_a_training_is(tmp_path: Path):
    run_s = Reading(wall_s=3.0, cpu_s=0.01, steal_s=0.0)
    found = run(tmp_path, "true")
    found = found.model_copy(update={"phases": {**found.phases, "train": run_s, "command": run_s}})
    assert "host_contention" not in {flag.code for flag in check_trial(found) if "host took" not in flag.detail}
    ours = found.model_copy(update={"settings": {}})
    assert "host_contention" in {flag.code for flag in check_trial(ours)}


def test_what_was_left_behind_forbids_a_verdict(tmp_path: Path):
    found = run(tmp_path, "sleep 60 & exit 0")
    assert found.status == "ok"
    assert [kind(flag.code).severity for flag in found.flags if flag.code == "left_behind"] == ["struck"]


def test_a_window_against_a_whole_command_is_unlike(tmp_path: Path):
    whole, marked = run(tmp_path, "true"), run(tmp_path, line())
    assert [flag.code for flag in check_pair(whole, marked)] == ["unlike"]
    assert not check_pair(whole, whole)
