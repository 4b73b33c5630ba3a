"""A busy machine is told before the first trial, with who it is: from two looks a moment apart."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.runner.busy import OTHERS_REL, STOLEN_REL, Seen, Watch, read, told

QUIET = Seen(busy_s=100.0, stolen_s=5.0, own_s=10.0, hot=3, held_s=1.0, by_process={7: ("cc1", 20.0), 8: ("sh", 1.0)})


def test_a_quiet_machine_is_not_spoken_of() -> None:
    assert told(QUIET, QUIET, 0.5, 2, 0.1) is None


def test_others_are_told_with_how_much_they_use_and_who_they_are() -> None:
    after = replace(QUIET, busy_s=100.9, own_s=10.1, by_process={7: ("cc1", 20.7), 8: ("sh", 1.0), 9: ("ld", 0.1)})
    found = told(QUIET, after, 0.5, 2, 6.3)
    assert found is not None
    assert found.sentences == ("others use 1.6 of 2 processors (load 6.3): cc1, ld",)
    assert found.facts["others_rel"] == pytest.approx(0.8)


@given(busy=st.floats(0, 10), own=st.floats(0, 10), cores=st.integers(1, 64))
def test_what_this_process_does_itself_disturbs_nobody(busy: float, own: float, cores: int) -> None:
    after = replace(QUIET, busy_s=100.0 + busy, own_s=10.0 + own)
    found = told(QUIET, after, 1.0, cores, 0.0)
    others = max(0.0, after.busy_s - 100.0 - (after.own_s - 10.0))  # type: ignore[operator]
    assert (found is not None) == (others > OTHERS_REL * cores)


def test_a_host_heat_and_a_quota_are_told_each() -> None:
    after = replace(QUIET, stolen_s=5.0 + 2 * STOLEN_REL, hot=4, held_s=1.2)
    found = told(QUIET, after, 1.0, 2, 0.0)
    assert found is not None
    assert [sentence.split()[0] for sentence in found.sentences] == ["the", "processors", "the"]
    assert "host takes 4 %" in found.sentences[0]
    assert "heat" in found.sentences[1]
    assert "quota" in found.sentences[2]


def test_where_the_kernel_does_not_tell_nothing_is_claimed() -> None:
    blind = replace(QUIET, busy_s=None, stolen_s=None)
    assert told(blind, blind, 1.0, 2, 9.0) is None


@pytest.mark.parametrize(("passed_s", "seen"), [(2.0, True), (0.01, False)])
def test_it_watches_while_the_suite_is_checked(passed_s: float, seen: bool) -> None:
    looks, clock = iter([QUIET, replace(QUIET, busy_s=200.0)]), iter([0.0, passed_s])
    watch = Watch(lambda: next(looks), lambda: next(clock))
    assert (watch.disturbed() is not None) == seen


def test_what_an_ended_child_used_is_this_processs_own() -> None:
    before = read()
    subprocess.run([sys.executable, "-ISc", "sum(range(3_000_000))"], check=True)
    assert read().own_s - before.own_s > 0.02


def test_this_machine_can_be_looked_at(tmp_path: Path) -> None:
    core = tmp_path / "cpu0" / "thermal_throttle"
    core.mkdir(parents=True)
    (core / "core_throttle_count").write_text("12\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 2500000\n")
    seen = read(tmp_path, tmp_path)
    assert (seen.hot, seen.held_s) == (12, 2.5)
    assert read(tmp_path / "none", tmp_path / "none").hot == 0
