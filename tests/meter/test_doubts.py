"""What makes a reading doubtful, whoever asks: each with the figure that decides."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import fault

from energybench.meter import trackers
from energybench.meter.clock import RealTime
from energybench.meter.doubts import DOUBTS, doubts
from energybench.meter.plausible import IMPLAUSIBLE
from energybench.meter.reading import CardState, Energy, Reading
from energybench.meter.window import Window
from energybench.verdict import flag_codes

RAPL = Energy(source="rapl", scope="cpu", device="package-0", energy_j=500.0, error_j=1.0)
ON_A_CARD = Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=1000.0, error_j=1.0)


def codes(**fields: Any) -> list[str]:
    return [doubt.code for doubt, _ in doubts(Reading(**{"wall_s": 100.0, "energy": [RAPL]} | fields))]


def test_every_doubt_of_a_window_is_a_flag_of_the_same_severity_and_words() -> None:
    for doubt in DOUBTS:
        kind = flag_codes.KINDS[doubt.code]
        assert (kind.severity, kind.sentence) == (doubt.severity, doubt.sentence)


def test_a_quiet_window_raises_nothing() -> None:
    assert codes(cpu_s=100.0, other_cpu_s=1.0, steal_s=0.0, suspended_s=0.0) == []


def test_what_others_compute_is_told_from_a_twentieth_on_and_only_beside_the_processors_figure() -> None:
    assert codes(cpu_s=95.0, other_cpu_s=5.0) == []
    assert codes(cpu_s=94.0, other_cpu_s=6.0) == ["other_load"]
    assert codes(cpu_s=1.0, other_cpu_s=99.0, energy=[ON_A_CARD]) == []  # a card's own counter sees none of it


def test_an_impossible_figure_is_told_from_one_that_was_lost() -> None:
    impossible = Energy(source="rapl", scope="cpu", device="package-0", reason="no", detail={IMPLAUSIBLE: 5e4})
    assert codes(energy=[impossible]) == ["implausible"]
    assert codes(energy=[impossible.model_copy(update={"detail": {}})]) == ["sensor_lost"]


def test_a_suspend_a_slice_and_a_card_that_does_not_tell_strike() -> None:
    assert codes(suspended_s=60.0) == ["suspended"]
    assert codes(cards={"GPU-1": CardState(mig=True)}) == codes(cards={"GPU-1": CardState(mig=None)}) == ["mig"]
    assert codes(cards={"GPU-1": CardState(mig=False)}) == []


@pytest.mark.parametrize(("integral_error_j", "code"), [(1.0, "channels_contradict"), (700.0, "channels_apart")])
def test_two_channels_contradict_only_beyond_the_errors_of_both(integral_error_j: float, code: str) -> None:
    """2.00 kJ of a sensor that looks a quarter of the time beside a counter of 1.25 kJ are no contradiction."""
    integral = ON_A_CARD.model_copy(
        update={"source": "gpu_power_integral", "energy_j": 1600.0, "error_j": integral_error_j}
    )
    assert codes(energy=[ON_A_CARD, integral]) == [code]


def test_a_modules_counter_is_never_held_against_its_gpus_power() -> None:
    module = ON_A_CARD.model_copy(update={"scope": "module", "energy_j": 2000.0})
    gpu = ON_A_CARD.model_copy(update={"source": "gpu_power_integral", "error_j": 1.0})
    assert codes(energy=[module, gpu]) == []


# ── other trackers ────────────────────────────────────────────────────────────────────────────────────────


class Sensor:
    def start(self) -> None: ...

    def stop(self) -> Reading:
        return Reading(wall_s=1.0, energy=[RAPL])


def a_window() -> Reading:
    window = Window([Sensor()], lambda: None)
    window.start()
    window.stop()
    return window.reading()


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENERGYBENCH_PROC", str(tmp_path))
    monkeypatch.setattr(trackers, "_scanned", (-1e9, frozenset(), frozenset()))
    return tmp_path


def test_a_program_that_tracks_energy_is_named(processes: Path) -> None:
    for number, name in ((7, "bash"), (8, "scaphandre")):
        (processes / str(number)).mkdir()
        (processes / str(number) / "comm").write_text(f"{name}\n")
    assert a_window().trackers == ["scaphandre"]


def test_a_tracker_in_this_process_is_named(processes: Path) -> None:
    def track() -> None:
        ended.wait()

    ended = threading.Event()
    track.__module__ = "codecarbon.external.scheduler"
    timer = threading.Timer(600, track)
    timer.start()
    try:
        assert a_window().trackers == ["codecarbon in this process"]
    finally:
        timer.cancel()
        timer.join()


def samples(processes: Path, pid: int) -> None:
    """A process in which energybench reads sensors, as the kernel shows it."""
    for thread, name in ((pid, "python"), (pid + 1, "ebench-sampler")):
        (processes / str(pid) / "task" / str(thread)).mkdir(parents=True)
        (processes / str(pid) / "task" / str(thread) / "comm").write_text(f"{name}\n")


@fault("second tracker")
def test_another_process_that_meters_is_named_and_our_own_tree_is_not(processes: Path) -> None:
    for pid in (os.getpid(), os.getppid(), 2**22 + 5):
        samples(processes, pid)
    assert a_window().trackers == [f"energybench, process {2**22 + 5}"]


def test_a_process_in_which_a_sensor_is_sampled_is_known_by_a_thread_while_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def names() -> Iterator[str]:
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # another test's thread that has just ended
                yield (thread / "comm").read_text().strip()

    if not Path("/proc/self/task").exists():
        pytest.skip("this kernel does not list its threads")
    called = threading.Event()
    stop = RealTime().every(0.001, called.set)
    assert called.wait(60)
    given_up = time.monotonic() + 60
    while "ebench-sampler" not in names():  # a list that is read while threads end may leave one out
        assert time.monotonic() < given_up
        time.sleep(0.001)
    stop()
    while "ebench-sampler" in names():  # the kernel forgets a thread a moment after its end
        time.sleep(0.001)


def test_a_stretch_inside_a_window_looks_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "running", lambda: pytest.fail("it looked"))
    window = Window([Sensor()], lambda: None, inside=True)
    window.start()
    window.stop()
