"""What is on disk is whole or absent, and says where it is broken."""

from __future__ import annotations

import json
import math
import os
import resource
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from faults import fault
from hypothesis import given
from hypothesis import strategies as st

from energybench.common.errors import CannotWrite, UsageError
from energybench.meter.reading import Energy, Reading
from energybench.records.reader import read, read_folder
from energybench.records.record import SCHEMA, Cell, RunFile, Trial, write_json
from energybench.records.run_folder import Folder

WHOLE: dict[str, Any] = {
    "trial": "b0-i0-w.m",
    "workload": "w",
    "method": "m",
    "role": "method",
    "block": 0,
    "seed": 7,
    "invocation": 0,
    "position": 1,
    "status": "ok",
    "digest": "d",
    "started_at": "2026-01-01T00:00:00+00:00",
}


def trial(**more: Any) -> Trial:
    return Trial.model_validate({**WHOLE, **more})


def test_a_record_reads_back_equal(tmp_path: Path) -> None:
    record = trial(
        phases={"train": Reading(wall_s=1.5, cpu_s=2.5, energy=[Energy(source="rapl", scope="cpu", energy_j=3.25)])},
        quality={"accuracy": 0.5},
        curve=[{"epoch": 1, "loss": None}],
    )
    write_json(tmp_path / "deep" / "r.json", record)
    assert read(tmp_path / "deep" / "r.json", Trial) == record


@given(value=st.floats(-1e100, 1e100))  # what a record may hold: its square is finite too
def test_every_finite_number_survives_exactly(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "number.json"
    write_json(path, trial(quality={"accuracy": value}))
    assert read(path, Trial).quality["accuracy"] == value


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_survives(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "text.json"
    write_json(path, trial(reason=text, workload=text))
    assert (read(path, Trial).reason, read(path, Trial).workload) == (text, text)


def test_the_file_says_its_schema(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", trial())
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == SCHEMA


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_refused_and_nothing_is_written(bad: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "r.json", {"value": bad})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    write_json(path, trial())
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space") as caught:
        write_json(path, trial(reason="other"))
    assert [(p.code, p.where) for p in caught.value.problems] == [("E620", str(path))]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["r.json"]


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", trial())
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("cut", [0, 1, 10, 200])
def test_a_truncated_record_is_told_with_its_path_and_what_to_do(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, trial())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UsageError) as caught:
        read(path, Trial)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("E601", str(path))
    assert shlex.join(["mv", str(path), f"{path}.broken"]) in problem.hint
    assert "run again" in problem.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00garbage", b"\0" * 300, b"[]", b"null", b"[" * 99999, b'{"trial": "x"}'],
    ids=["no UTF-8", "zeros", "a list", "null", "too deep", "keys missing"],
)
def test_what_is_no_record_is_told_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read(path, Trial)
    assert [(p.code, p.where) for p in caught.value.problems] == [("E601", str(path))]


def test_a_record_with_a_key_too_many_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {**WHOLE, "saved": "40 %"})
    with pytest.raises(UsageError, match="saved"):
        read(tmp_path / "r.json", Trial)


def test_a_schema_of_the_future_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {**WHOLE, "schema": SCHEMA + 1})
    with pytest.raises(UsageError, match="schema"):
        read(tmp_path / "r.json", Trial)


def sealed(path: Path) -> dict[str, Any]:
    """A record on disk, as whoever edits it sees it."""
    write_json(path, trial(quality={"accuracy": 0.5}, reason="é"))
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def codes(path: Path, kind: type[Any] = Trial) -> list[tuple[str, str]]:
    with pytest.raises(UsageError) as caught:
        read(path, kind)
    assert all(problem.hint for problem in caught.value.problems)
    return [(problem.code, problem.where) for problem in caught.value.problems]


@fault("edited record")
@pytest.mark.parametrize(
    "edit",
    [
        {"quality": {"accuracy": 0.9}},
        {"quality": {"accuracy": 0.5000000000000001}},
        {"status": "failed"},
        {"seal": "0" * 64},
        {"reason": "e"},
        {"memory_device_b": 0},
    ],
)
def test_an_edited_record_is_not_read(edit: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(sealed(path) | edit))
    assert codes(path) == [("E621", str(path))]


@fault("edited record")
@pytest.mark.parametrize("layout", [{"indent": 4}, {"sort_keys": True}, {"separators": (",", ":")}])
def test_another_layout_of_the_same_content_is_no_edit(layout: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(sealed(path), **layout))
    assert read(path, Trial).quality == {"accuracy": 0.5}


@fault("edited record")
def test_a_record_of_before_there_were_seals_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    content = sealed(path)
    assert len(content.pop("seal")) == 64
    path.write_text(json.dumps(content))
    assert read(path, Trial).quality == {"accuracy": 0.5}


@fault("other schema")
@pytest.mark.parametrize(
    ("schema", "remedy"),
    [(SCHEMA + 1, "pip install -U"), *((schema, "wrote it") for schema in (0, "1", None, float(SCHEMA), True))],
)
def test_another_schema_is_named_with_the_way_to_read_it(schema: Any, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {**WHOLE, "schema": schema, "something": "else"})
    assert codes(path) == [("E622", str(path))]
    with pytest.raises(UsageError, match=remedy) as caught:
        read(path, Trial)
    assert repr(schema) in str(caught.value)


@fault("sigterm")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_the_file_that_is_being_written_is_there(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), number))
    try:
        with pytest.raises(KeyboardInterrupt):
            write_json(tmp_path / "r.json", trial())
    finally:
        signal.signal(number, before)
    assert os.listdir(tmp_path) == ["r.json"]
    assert read(tmp_path / "r.json", Trial) == trial()


@fault("disk full")
def test_a_disk_that_is_full_is_told_with_its_path_and_what_to_do(tmp_path: Path) -> None:
    """By the kernel: a file may not grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(CannotWrite, match="df -h") as caught:
            write_json(tmp_path / "deep" / "r.json", trial())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(p.code, p.where) for p in caught.value.problems] == [("E620", str(tmp_path / "deep" / "r.json"))]
    assert os.listdir(tmp_path / "deep") == []


def test_a_missing_file_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_folder(tmp_path)
    assert (caught.value.problems[0].code, caught.value.problems[0].where) == ("E601", str(tmp_path / "run.json"))


def test_a_record_of_other_settings_that_was_copied_here_is_no_part_of_the_run(tmp_path: Path) -> None:
    """Whole and sealed, but of the cell of another run: neither reported nor continued."""
    cells = [Cell(workload="w", method="m", role="method", digest="ours")]
    run = RunFile(
        suite="s", run="r", digest="d", suite_path="s.toml", suite_text="", resolved={}, blocks=1, cells=cells
    )
    write_json(tmp_path / "run.json", run)
    own = trial().model_copy(update={"workload": "w", "method": "m", "digest": "ours"})
    write_json(tmp_path / "records" / "b0-i0-w.m.json", own)
    assert read_folder(tmp_path)[1] == Folder(tmp_path).trials() == [own]
    write_json(tmp_path / "records" / "b0-i0-w.m.json", own.model_copy(update={"digest": "theirs"}))
    for look in (read_folder, lambda folder: Folder(folder).trials()):
        with pytest.raises(UsageError, match="another run") as caught:
            look(tmp_path)
        assert (caught.value.problems[0].code, bool(caught.value.problems[0].hint)) == ("E625", True)


@fault("half a file")
def test_a_half_written_file_of_a_killed_run_is_not_read(tmp_path: Path) -> None:
    run = RunFile(suite="s", run="r", digest="d", suite_path="s.toml", suite_text="", resolved={}, blocks=1)
    write_json(tmp_path / "run.json", run)
    write_json(tmp_path / "records" / "b0-i0-w.m.json", trial())
    (tmp_path / "records" / ".b0-i0-w.x.json.abc.part").write_text('{"trial": "b0')
    _, trials, counting_runs = read_folder(tmp_path)
    assert [t.trial for t in trials] == ["b0-i0-w.m"]
    assert counting_runs == []


def test_only_a_sensor_with_a_figure_counts_as_measured() -> None:
    assert Energy(source="gpu_counter", scope="gpu", energy_j=1.0).measured
    assert not Energy(source="gpu_counter", scope="gpu", reason="lost").measured
    assert not Energy(source="model(codecarbon cpu_load)", scope="cpu", energy_j=1.0).measured
