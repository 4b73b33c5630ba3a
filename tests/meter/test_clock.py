"""Wall time and the CPU time of the whole process tree."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fakes.clock import put_behind
from fakes.replay import VirtualTime
from hypothesis import given
from hypothesis import strategies as st

from energybench.common import processes
from energybench.common.processes import by_parents, descendants
from energybench.meter import clock as clock_module
from energybench.meter.clock import REAL_TIME, Clock, RealTime, stolen_s

SPIN = "import time\nend = time.process_time() + {cpu_s}\nwhile time.process_time() < end: pass\n"


def stopped(clock: Clock) -> tuple[float, float]:
    reading = clock.stop()
    assert reading.cpu_s is not None
    return reading.wall_s, reading.cpu_s


class Around:
    """What the kernel says of a stretch around a window: the window cannot have had more, on any machine."""

    def __init__(self, child: int | None = None) -> None:
        self._child = child
        self._wall_s, self._cpu_s = time.perf_counter(), self._used()

    def _used(self) -> float:
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        running = sum(psutil.Process(self._child).cpu_times()[:2]) if self._child else 0.0
        return sum(usage.ru_utime + usage.ru_stime for usage in own) + running

    def hold(self, wall_s: float, cpu_s: float) -> None:
        assert wall_s <= time.perf_counter() - self._wall_s
        assert cpu_s <= self._used() - self._cpu_s + 1e-5  # the kernel's microseconds


def test_a_child_that_has_ended_is_counted() -> None:
    around, clock = Around(), Clock()
    clock.start()
    subprocess.run([sys.executable, "-c", SPIN.format(cpu_s=0.1)], check=True)
    wall_s, cpu_s = stopped(clock)
    assert wall_s >= 0.1
    assert cpu_s >= 0.1
    around.hold(wall_s, cpu_s)  # its interpreter's start is in both


def test_less_than_a_tick_of_the_kernels_counts_is_no_zero_and_no_whole_tick() -> None:
    """/proc counts in hundredths of a second: a window of 3 ms had used 0 of them, or 10 ms on one core."""
    for _ in range(20):
        around, clock = Around(), Clock()
        clock.start()
        began = time.process_time()
        while time.process_time() < began + 0.003:
            pass
        used_s = time.process_time() - began
        wall_s, cpu_s = stopped(clock)
        assert used_s - 1e-5 <= cpu_s
        around.hold(wall_s, cpu_s)


def test_a_child_that_still_runs_is_counted() -> None:
    child = subprocess.Popen([sys.executable, "-c", SPIN.format(cpu_s=600)])

    def used() -> float:
        return sum(psutil.Process(child.pid).cpu_times()[:2])

    try:
        around, clock = Around(child.pid), Clock()
        clock.start()
        before = used()
        while used() < before + 0.2:
            time.sleep(0.01)
        wall_s, cpu_s = stopped(clock)
        assert cpu_s >= 0.2 - 0.01  # the kernel tells hundredths of it
        around.hold(wall_s, cpu_s)
    finally:
        child.kill()
        child.wait()


def test_the_kernels_lists_of_children_say_what_every_processs_parent_says() -> None:
    nested = "import subprocess, sys; subprocess.run(['sleep', '30'])"
    children = [subprocess.Popen([sys.executable, "-c", nested], start_new_session=True) for _ in range(2)]
    try:
        started = {child.pid for child in children}
        while len(by_parents(os.getpid())) < 4:
            time.sleep(0.01)
        # What other tests left in this process may start or end between two looks: only the lists' own word counts.
        given_up = time.monotonic() + 60
        while descendants(os.getpid()) != (nested_too := by_parents(os.getpid())):
            assert time.monotonic() < given_up
            time.sleep(0.01)
        assert started < nested_too
    finally:
        for child in children:
            os.killpg(child.pid, 9)
            child.wait()
    assert not started & descendants(os.getpid())
    assert descendants(2**22 + 1) == set()  # no such process


@pytest.mark.skipif(not processes.CHILDREN_LIST.exists(), reason="this kernel keeps no lists of children")
def test_the_clock_looks_at_no_process_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sensors that wait for an edge enclose the clock: what it takes is billed to the window."""
    monkeypatch.setattr(psutil, "process_iter", lambda *_: pytest.fail("it looked at every process"))
    monkeypatch.setattr(psutil, "pids", lambda: pytest.fail("it looked at every process"))
    meter = Clock()
    meter.start()
    assert stopped(meter)[0] > 0


def test_sleeping_costs_wall_time_and_no_cpu_time_of_its_own() -> None:
    around, clock = Around(), Clock()
    clock.start()
    time.sleep(0.1)
    wall_s, cpu_s = stopped(clock)
    assert wall_s >= 0.1
    around.hold(wall_s, cpu_s)


def test_what_a_child_used_before_the_window_is_not_billed() -> None:
    subprocess.run([sys.executable, "-c", SPIN.format(cpu_s=0.2)], check=True)
    around, clock = Around(), Clock()
    clock.start()
    around.hold(*stopped(clock))


def test_time_that_the_host_took_away_is_the_eighth_figure_of_all_cores_in_clock_ticks(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 20 30 40 50 60 70 1234 90 100\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    assert stolen_s(stat) == pytest.approx(1234 / os.sysconf("SC_CLK_TCK"))


@pytest.mark.parametrize("text", ["", "cpu  1 2 3\n", "cpu  a b c d e f g h\n"])
def test_a_kernel_that_does_not_say_what_was_taken_is_null_and_not_zero(tmp_path: Path, text: str) -> None:
    stat = tmp_path / "stat"
    stat.write_text(text)
    assert stolen_s(stat) is None
    assert stolen_s(tmp_path / "nothing") is None


def test_what_runs_in_the_background_is_never_early_bills_its_own_cpu_time_and_ends_when_stopped() -> None:
    calls, enough = list[float](), threading.Event()

    def work() -> None:
        calls.append(time.perf_counter())
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass
        if len(calls) == 5:
            enough.set()

    around, began_s = Around(), time.perf_counter()
    stop = REAL_TIME.every(0.01, work)
    assert enough.wait(600)
    cpu_s = stop()
    assert "energybench sampler" not in {thread.name for thread in threading.enumerate()}
    assert all(at_s >= began_s + 0.01 * number for number, at_s in enumerate(calls, 1))
    assert cpu_s >= 0.002 * len(calls)
    around.hold(0.0, cpu_s)


def test_a_call_that_takes_longer_than_its_period_is_not_made_up_for_by_a_burst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread of the real clock, with a clock and a wait of ours under it."""
    now, calls = VirtualTime(), list[float]()

    def now_s() -> float:
        return now.now_ns() / 1e9

    class Wait(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            now.sleep(timeout)
            return now_s() > 0.5

    def work() -> None:
        calls.append(now_s())
        now.sleep(0.23 if len(calls) == 2 else 0.0)

    monkeypatch.setattr(clock_module, "_perf_counter", now_s)
    monkeypatch.setattr(clock_module, "threading", SimpleNamespace(Event=Wait, Thread=threading.Thread))
    REAL_TIME.every(0.05, work)()
    # One call at once, since it is late; from then on in their period again, and what was missed stays missed.
    assert calls == pytest.approx([0.05, 0.10, 0.33, 0.38, 0.43, 0.48])


@given(period=st.floats(0.001, 10), seconds=st.floats(0.01, 100))
def test_on_a_virtual_clock_background_calls_come_exactly_when_they_are_due(period: float, seconds: float) -> None:
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


def test_a_sleep_of_the_machine_is_seen_and_is_no_time_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    time = put_behind(monkeypatch, VirtualTime())
    clock = Clock()
    clock.start()
    time.sleep(2.0)
    time.suspend(3600.0)
    time.sleep(1.0)
    reading = clock.stop()
    assert reading.wall_s == pytest.approx(3.0)
    assert reading.suspended_s == pytest.approx(3600.0)


def test_two_clocks_that_are_read_one_after_the_other_are_no_sleep() -> None:
    clock = Clock()
    for _ in range(20):
        clock.start()
        assert clock.stop().suspended_s == 0.0


def test_what_others_compute_is_what_the_machine_was_busy_with_less_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 s of all cores before and 130 s after; the window's own process did next to nothing."""
    seconds = iter([100.0, 130.0])
    monkeypatch.setattr(clock_module, "busy_s", lambda: next(seconds))
    clock = Clock()
    clock.start()
    assert clock.stop().other_cpu_s == pytest.approx(30.0, abs=1.0)


def test_in_many_short_pieces_the_kernels_hundredths_do_not_add_up_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 pieces of 13 ms, all of it our own; what the machine was busy is told in whole hundredths of a second."""
    own_s = 0.0
    monkeypatch.setattr(clock_module, "busy_s", lambda: math.floor(100 * own_s) / 100)
    monkeypatch.setattr(Clock, "_cpu", lambda self: own_s)
    clock, others_s = Clock(), 0.0
    for _ in range(1000):
        clock.start()
        own_s += 0.013
        others_s += clock.stop().other_cpu_s or 0.0
    assert others_s <= 0.02  # a tick at either end of all of them together


def test_busy_is_everything_but_idle_waiting_and_stolen(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    ticks = os.sysconf("SC_CLK_TCK")
    fields = [seconds * ticks for seconds in (1, 2, 4, 8, 16, 32, 64, 128, 1, 2)]
    stat.write_text(f"cpu  {' '.join(map(str, fields))}\ncpu0 1 2 3\n")
    assert clock_module.busy_s(stat) == 1 + 2 + 4 + 32 + 64  # user, nice, system, irq, softirq; guests are in user
    assert stolen_s(stat) == 128
    assert clock_module.busy_s(tmp_path / "absent") is None


def test_who_replaces_the_functions_of_time_moves_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, before_ns = Clock(), time.perf_counter_ns()
    clock.start()
    for name in ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time"):
        monkeypatch.setattr(time, name, lambda: 0)
    while RealTime().now_ns() - before_ns < 2_000_000:
        pass
    reading = clock.stop()
    assert 0.0 < reading.wall_s < 600
    assert (reading.cpu_s or 0) > 0
