"""Wall time and the CPU time of the whole process tree."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from energybench.meter.clock import Clock

SPIN = "import time\nend = time.process_time() + {cpu_s}\nwhile time.process_time() < end: pass\n"


def test_a_child_that_has_ended_is_counted() -> None:
    clock = Clock()
    clock.start()
    subprocess.run([sys.executable, "-c", SPIN.format(cpu_s=0.3)], check=True)
    wall_s, cpu_s = clock.stop()
    assert wall_s >= 0.3
    assert 0.3 <= cpu_s < 0.3 + 0.5  # and its interpreter's start, and ours


def test_a_child_that_still_runs_is_counted() -> None:
    child = subprocess.Popen([sys.executable, "-c", SPIN.format(cpu_s=30)])
    try:
        clock = Clock()
        clock.start()
        time.sleep(0.8)
        wall_s, cpu_s = clock.stop()
    finally:
        child.kill()
        child.wait()
    assert 0.1 < cpu_s < 2 * wall_s  # it spins as far as it is let; two cores at most


def test_sleeping_costs_wall_time_and_hardly_any_cpu_time() -> None:
    clock = Clock()
    clock.start()
    time.sleep(0.3)
    wall_s, cpu_s = clock.stop()
    assert wall_s == pytest.approx(0.3, abs=0.25)
    assert cpu_s < 0.1


def test_what_a_child_used_before_the_window_is_not_billed() -> None:
    subprocess.run([sys.executable, "-c", SPIN.format(cpu_s=0.3)], check=True)
    clock = Clock()
    clock.start()
    assert clock.stop()[1] < 0.1
