"""Lines of windows: whole, in order, shared by processes, readable after a kill, added up only where that is true."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.common.errors import UsageError
from energybench.meter.reading import Energy, Reading
from energybench.meter.window import refuse_short
from energybench.windows.file import (
    WindowLine,
    append,
    of_training,
    qualities,
    read_windows,
    sentence,
    summed,
    training,
)


def reading(seconds: float, joules: float | None = None) -> Reading:
    reason = "it was lost" if joules is None else None
    energy = Energy(source="rapl", scope="cpu", device="package-0", energy_j=joules, error_j=0.1, reason=reason)
    return Reading(wall_s=seconds, cpu_s=seconds, energy=[energy])


def window(
    name: str = "train", start: float = 0.0, stop: float = 1.0, joules: float | None = 10.0, **more: Any
) -> WindowLine:
    return WindowLine(
        **{
            "name": name,
            "path": name,
            "start_s": start,
            "stop_s": stop,
            "reading": reading(stop - start, joules),
            **more,
        }
    )


def test_a_window_reads_back_equal_and_the_contracts_keys_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    line = window(steps=12, samples=96, quality={"accuracy": 0.9}, flop={"estimated": 1e9}, error="ValueError")
    append(path, line)
    assert read_windows(path) == [line]
    keys = {"name", "path", "parent", "steps", "samples", "quality", "flop", "start_s", "stop_s", "reading", "error"}
    assert keys <= set(json.loads(path.read_text()))
    assert json.loads(path.read_text())["flop"] == {"estimated": 1e9, "counted": None}


def test_a_line_of_another_language_needs_a_name_and_two_times(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text('{"name": "train", "start_s": 1.5, "stop_s": 9, "written_by": "awk"}\n')
    (line,) = read_windows(path)
    assert (line.wall_s, line.reading, line.parent) == (7.5, None, None)
    assert training([line]) is None


@given(cut=st.integers(1, 400))
def test_a_last_line_that_was_cut_short_is_left_out_and_the_others_stay(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.unlink(missing_ok=True)
    append(path, window("first"))
    whole = path.read_bytes()
    append(path, window("second", 1, 2))
    path.write_bytes(path.read_bytes()[: max(len(whole), path.stat().st_size - 1 - cut)])
    assert [line.name for line in read_windows(path)] == ["first"]


def test_a_whole_line_without_its_newline_is_still_a_window(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    append(path, window())
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(read_windows(path)) == 1


@pytest.mark.parametrize("bad", ["nonsense", '{"name": "train"}', '{"name": "", "start_s": 0, "stop_s": 1}', "[]"])
def test_a_line_that_is_no_window_is_named_with_its_number(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "w.jsonl"
    append(path, window())
    with path.open("a") as file:
        file.write(f"{bad}\n")
    append(path, window())
    with pytest.raises(UsageError, match=r"E640.*w\.jsonl:2: not a window"):
        read_windows(path)


def test_no_file_is_no_window(tmp_path: Path) -> None:
    assert read_windows(tmp_path / "none.jsonl") == []


def test_windows_come_in_the_order_of_their_start_and_a_later_line_of_the_same_id_replaces_the_first(
    tmp_path: Path,
) -> None:
    path = tmp_path / "w.jsonl"
    append(path, window("inner", 1, 2, id="7.2", parent="outer"))
    append(path, window("outer", 0, 3, id="7.1"))
    append(path, window("outer", 0, 3, id="7.1", quality={"accuracy": 0.5}))
    assert [(line.name, line.quality) for line in read_windows(path)] == [("outer", {"accuracy": 0.5}), ("inner", {})]


def _append_many(path: str, name: str) -> None:
    for number in range(200):
        append(Path(path), window(name, number, number + 1, quality={"accuracy": number / 200}))


def test_processes_that_share_the_file_never_mix_their_lines(tmp_path: Path) -> None:
    path, context = tmp_path / "w.jsonl", multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(str(path), name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {name: sum(line.name == name for line in read_windows(path)) for name in "abc"} == dict.fromkeys("abc", 200)


def test_training_is_the_window_of_that_name_else_all_at_the_top_and_nothing_nested() -> None:
    inner = window("epoch", 1, 2, parent="train", path="train/epoch")
    named = [window("load", 0, 1, 1.0), window("train", 1, 3, 20.0), inner, window("evaluate", 3, 4, 2.0)]
    assert of_training(named) == [named[1]]
    assert training(named) == named[1].reading
    unnamed = [window("first", 0, 1, 1.0), window("second", 1, 3, 20.0)]
    both = training(unnamed)
    assert both is not None
    assert (both.wall_s, both.energy[0].energy_j, both.energy[0].error_j) == (3.0, 21.0, pytest.approx(0.2))


def test_windows_that_overlap_are_not_added_up_for_a_sensor_sees_the_whole_machine() -> None:
    assert summed([window(start=0, stop=2), window(start=1, stop=3)]) is None
    assert summed([window(start=0, stop=2), window(start=2, stop=3)]) is not None


def test_windows_of_which_one_has_an_unknown_error_have_a_sum_of_unknown_error_and_no_line_says_zero() -> None:
    untold = Reading(wall_s=1.0, energy=[Energy(source="meter(x)", scope="machine", energy_j=10.0)])
    told = Reading(wall_s=1.0, energy=[Energy(source="meter(x)", scope="machine", energy_j=10.0, error_j=1.0)])
    lines = [window(start=start, stop=start + 1, reading=each) for start, each in ((0, told), (1, untold))]
    both = summed(lines)
    assert both is not None
    assert (both.energy[0].energy_j, both.energy[0].error_j) == (20.0, None)
    assert sentence(lines[0]).endswith("10 J meter(x) ±1 J")
    for line in (lines[1], window(stop=2, reading=both)):
        assert "±" not in sentence(line)
        assert sentence(line).endswith(" J meter(x), error unknown")


def test_the_sum_of_a_known_and_an_unknown_error_is_not_the_known_one() -> None:
    package = Energy(source="rapl", scope="cpu", device="package-0", energy_j=10.0, error_j=1.0)
    card = Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=190.0)
    text = sentence(window(reading=Reading(wall_s=1.0, energy=[package, card])))
    assert "200 J" in text
    assert "error unknown" in text
    assert "±" not in text


def test_one_lost_reading_leaves_no_partial_total() -> None:
    both = summed([window(start=0, stop=1), window(start=1, stop=2, joules=None)])
    assert both is not None
    assert (both.energy[0].energy_j, both.energy[0].reason) == (None, "it was lost")
    assert summed([window(start=0, stop=1), window(start=1, stop=2, reading=None)]) is None
    assert summed([]) is None


@pytest.mark.parametrize("order", [1, -1])
def test_a_window_too_short_for_the_sensor_leaves_no_total_but_the_sensor_was_not_lost(order: int) -> None:
    """Two epochs as two windows: one of them is over ten ticks long, the other is not."""
    lines = []
    for start, seconds in ((0.0, 1.2), (2.0, 0.8)):
        energy = [
            Energy(source=source, scope="gpu", device="GPU-0", energy_j=100.0, error_j=1.0, detail={key: 0.1})
            for source, key in (("gpu_counter", "tick_s"), ("gpu_power_integral", "period_s"))
        ]
        whole = refuse_short(Reading(wall_s=seconds, energy=energy[::order]))
        lines.append(WindowLine(name="train", start_s=start, stop_s=start + seconds, reading=whole))
    both = summed(lines)
    assert both is not None
    assert not any(energy.measured or energy.lost for energy in both.energy)
    assert {energy.device for energy in both.energy} == {"GPU-0"}
    assert all("0.80 s is shorter than 10 ticks" in str(energy.reason) for energy in both.energy)


def test_the_last_word_on_quality_holds() -> None:
    lines = [window(stop=3, quality={"accuracy": 0.9}), window(start=3, stop=4, quality={"accuracy": 0.8, "f1": 0.7})]
    assert qualities(reversed(lines)) == {"accuracy": 0.8, "f1": 0.7}
