"""Wall time and the CPU time of the whole process tree."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench import processes
from energybench.meter.clock import REAL_TIME, Clock, stolen_s
from energybench.meter.replay import VirtualTime
from energybench.processes import by_parents, descendants

SPIN = "import time\nend = time.process_time() + {cpu_s}\nwhile time.process_time() < end: pass\n"


def stopped(clock: Clock) -> tuple[float, float]:
    reading = clock.stop()
    assert reading.cpu_s is not None
    return reading.wall_s, reading.cpu_s


def test_a_child_that_has_ended_is_counted() -> None:
    clock = Clock()
    clock.start()
    subprocess.run([sys.executable, "-c", SPIN.format(cpu_s=0.3)], check=True)
    wall_s, cpu_s = stopped(clock)
    assert wall_s >= 0.3
    assert 0.3 <= cpu_s < 0.3 + 0.5  # and its interpreter's start, and ours


def test_less_than_a_tick_of_the_kernels_counts_is_no_zero() -> None:
    """/proc counts in hundredths of a second: a window of 3 ms had used 0 of them, or 10 ms on one core."""
    for _ in range(20):
        clock = Clock()
        clock.start()
        end = time.process_time() + 0.003
        while time.process_time() < end:
            pass
        assert 0.0025 < stopped(clock)[1] < 0.0095


def test_a_child_that_still_runs_is_counted() -> None:
    child = subprocess.Popen([sys.executable, "-c", SPIN.format(cpu_s=30)])
    try:
        clock = Clock()
        clock.start()
        time.sleep(0.8)
        wall_s, cpu_s = stopped(clock)
    finally:
        child.kill()
        child.wait()
    assert 0.1 < cpu_s < 2 * wall_s  # it spins as far as it is let; two cores at most


def test_the_kernels_lists_of_children_say_what_every_processs_parent_says() -> None:
    nested = "import subprocess, sys; subprocess.run(['sleep', '30'])"
    children = [subprocess.Popen([sys.executable, "-c", nested], start_new_session=True) for _ in range(2)]
    try:
        while len(by_parents(os.getpid())) < 4:
            time.sleep(0.01)
        assert descendants(os.getpid()) == by_parents(os.getpid())
        assert {child.pid for child in children} < descendants(os.getpid())
    finally:
        for child in children:
            os.killpg(child.pid, 9)
            child.wait()
    assert descendants(os.getpid()) == set()
    assert descendants(2**22 + 1) == set()  # no such process


@pytest.mark.skipif(not processes.LISTED.exists(), reason="this kernel keeps no lists of children")
def test_the_clock_looks_at_no_process_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sensors that wait for an edge enclose the clock: what it takes is billed to the window."""
    monkeypatch.setattr(psutil, "process_iter", lambda *_: pytest.fail("it looked at every process"))
    monkeypatch.setattr(psutil, "pids", lambda: pytest.fail("it looked at every process"))
    meter = Clock()
    meter.start()
    assert stopped(meter)[0] > 0


def test_sleeping_costs_wall_time_and_hardly_any_cpu_time() -> None:
    clock = Clock()
    clock.start()
    time.sleep(0.3)
    wall_s, cpu_s = stopped(clock)
    assert wall_s == pytest.approx(0.3, abs=0.25)
    assert cpu_s < 0.1


def test_what_a_child_used_before_the_window_is_not_billed() -> None:
    subprocess.run([sys.executable, "-c", SPIN.format(cpu_s=0.3)], check=True)
    clock = Clock()
    clock.start()
    assert stopped(clock)[1] < 0.1


def test_time_that_the_host_took_away_is_the_eighth_figure_of_all_cores_in_clock_ticks(
    tmp_path: Path,
) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 20 30 40 50 60 70 1234 90 100\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    assert stolen_s(stat) == pytest.approx(1234 / os.sysconf("SC_CLK_TCK"))


@pytest.mark.parametrize("text", ["", "cpu  1 2 3\n", "cpu  a b c d e f g h\n"])
def test_a_kernel_that_does_not_say_what_was_taken_is_null_and_not_zero(tmp_path: Path, text: str) -> None:
    stat = tmp_path / "stat"
    stat.write_text(text)
    assert stolen_s(stat) is None
    assert stolen_s(tmp_path / "nothing") is None


def test_what_runs_in_the_background_is_called_about_on_time_and_bills_its_own_cpu_time() -> None:
    calls: list[float] = []

    def work() -> None:
        calls.append(time.perf_counter())
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    stop = REAL_TIME.every(0.05, work)
    time.sleep(0.6)
    cpu_s = stop()
    seen = len(calls)
    assert 4 <= seen <= 13
    assert 0.01 * seen <= cpu_s < 0.01 * seen + 0.1
    time.sleep(0.2)
    assert len(calls) == seen  # stopped is stopped


def test_a_call_that_takes_longer_than_its_period_is_not_made_up_for_by_a_burst() -> None:
    calls: list[float] = []

    def work() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.2 if len(calls) == 1 else 0.0)

    stop = REAL_TIME.every(0.05, work)
    time.sleep(0.5)
    stop()
    gaps = [b - a for a, b in itertools.pairwise(calls)]
    assert min(gaps, default=1.0) > 0.02


@given(period=st.floats(0.001, 10), seconds=st.floats(0.01, 100))
def test_on_a_virtual_clock_background_calls_come_exactly_when_they_are_due(
    period: float, seconds: float
) -> None:
    virtual = VirtualTime()
    calls: list[int] = []
    stop = virtual.every(period, lambda: calls.append(virtual.now_ns()))
    virtual.sleep(seconds)
    period_ns = round(period * 1e9)
    assert virtual.now_ns() == round(seconds * 1e9)
    assert calls == [period_ns * i for i in range(1, round(seconds * 1e9) // period_ns + 1)]
    stop()
    virtual.sleep(2 * period)
    assert len(calls) == round(seconds * 1e9) // period_ns
