"""`energybench.measure()`: joules from physics: fakes of known power under the real bindings, on a clock that the tests
move. A second takes no time and is exactly one; what a figure may be off by is its own error, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import in_children
from fakes.clock import put_behind
from fakes.nvml import UUID, FakeDriver, FakeGpu
from fakes.powercap import Powercap
from fakes.replay import VirtualTime

import energybench
from energybench.common.errors import CannotMeasure, UsageError
from energybench.meter import devices, pool, rapl
from energybench.meter.counter import Counters
from energybench.meter.reading import Energy, Reading
from energybench.records.reader import read
from energybench.records.record import SCHEMA
from energybench.windows import window as measuring
from energybench.windows.file import WindowsFile, read_windows
from energybench.windows.window import MeasuredWindow, current

Plug = Callable[..., FakeDriver]
Card = Callable[..., VirtualTime]
WATTS, MEMORY_WATTS, TICK_S = 60.0, 5.0, 0.01
START_S = 1.0  # when a test begins, on the clock of its cards
OTHER = "GPU-00000000-0000-0000-0000-000000000002"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No set of meters from another test, no sensor of this machine, no suite around us."""
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(tmp_path / "nothing"))
    for name in ("ENERGYBENCH_WINDOWS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    pool._idle.clear()
    yield
    assert not measuring._open
    pool._idle.clear()


def sockets(machine: Powercap) -> None:
    """A package that draws 60 W and memory that draws 5 W, counted every millisecond."""
    machine.add("intel-rapl:0", "package-0", WATTS)
    machine.add("intel-rapl:0:0", "dram", MEMORY_WATTS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return put_behind(monkeypatch, VirtualTime())


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VirtualTime:
    """A metered processor; its clock."""
    machine = Powercap(tmp_path / "sys")
    sockets(machine)
    monkeypatch.setattr(rapl, "read_text", machine.only_when_read().read_text)
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", str(machine.flat))
    return put_behind(monkeypatch, machine.time)


@pytest.fixture
def card(fake_driver: Plug, monkeypatch: pytest.MonkeyPatch) -> Callable[..., VirtualTime]:
    """Cards, of which this process is on the first; their clock."""
    return lambda *gpus: put_behind(monkeypatch, fake_driver(*gpus, start_s=START_S).time)


def ours(**more: Any) -> FakeGpu:
    return FakeGpu(**{"power": 300.0, "tick_s": TICK_S, "compute": [(os.getpid(),)], **more})


def found(window: MeasuredWindow, source: str, device: str = UUID) -> Energy:
    assert window.reading is not None
    return next(e for e in window.reading.energy if (e.source, e.device) == (source, device))


def billed(window: MeasuredWindow, watts: float, source: str, device: str) -> float:
    """The joules of a constant power, after they were held to it: within their error, which is of 10 ms at most."""
    energy = found(window, source, device)
    assert energy.energy_j is not None
    assert energy.error_j is not None
    assert abs(energy.energy_j - watts * window.seconds) <= energy.error_j <= 0.01 * watts
    return energy.energy_j


def of_card(window: MeasuredWindow, watts: float = 300.0, device: str = UUID) -> float:
    return billed(window, watts, "gpu_counter", device)


def of_processor(window: MeasuredWindow) -> float:
    return billed(window, WATTS, "rapl", "package-0")


def span(window: MeasuredWindow) -> float:
    """Seconds from its start to its stop, pauses and all."""
    return window.line.stop_s - window.line.start_s


# ── joules ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_decorated_functions_energy_is_power_times_time_within_the_stated_error(card: Card) -> None:
    clock = card(ours())
    seen: list[MeasuredWindow | None] = []

    @energybench.measure("fit", quiet=True)
    def fit(seconds: float, *, answer: int) -> int:
        seen.append(current())
        clock.sleep(seconds)
        return answer

    assert fit(0.8, answer=42) == 42
    assert fit.__name__ == "fit"
    (window,) = seen
    assert window is not None
    assert window.seconds == pytest.approx(0.8)
    of_card(window)


def test_windows_inside_add_up_to_the_one_around_them_on_the_processor(processor: VirtualTime) -> None:
    with energybench.measure("train", quiet=True) as train:
        parts = []
        for _ in range(3):
            with energybench.measure("epoch") as epoch:
                processor.sleep(0.15)
            parts.append(epoch)
    assert [part.seconds for part in parts] == pytest.approx([0.15] * 3)
    assert train.seconds == pytest.approx(0.45)
    for device, watts in (("package-0", WATTS), ("package-0/dram", MEMORY_WATTS)):
        whole = billed(train, watts, "rapl", device)
        inner = [billed(part, watts, "rapl", device) for part in parts]
        error_j = sum(found(window, "rapl", device).error_j or 0.0 for window in (train, *parts))
        assert sum(inner) == pytest.approx(whole, abs=error_j)


def test_a_window_inside_one_on_a_card_has_its_integral_and_holds_nothing_up(card: Card, monkeypatch: Any) -> None:
    clock = card(ours())
    with energybench.measure("train", quiet=True) as train, monkeypatch.context() as patch:
        for wait in ("start", "stop"):  # nobody may wait for an edge
            patch.setattr(Counters, wait, lambda *_: pytest.fail("an edge was waited for"))
        with energybench.measure("epoch") as epoch:
            clock.sleep(2.1)
    inner = found(epoch, "gpu_power_integral")
    assert epoch.seconds == train.seconds == pytest.approx(2.1)  # it took no time itself
    assert inner.energy_j == pytest.approx(300 * 2.1, abs=inner.error_j)
    of_card(train)
    assert [e.source for e in epoch.reading.energy if e.scope == "gpu"] == ["gpu_power_integral"]  # type: ignore[union-attr]


def test_a_window_inside_that_is_too_short_for_the_sampler_has_no_figure_but_a_reason(card: Card) -> None:
    clock = card(ours())
    with energybench.measure("train", quiet=True), energybench.measure("step") as step:
        clock.sleep(0.3)
    assert step.reading is not None
    (energy,) = [e for e in step.reading.energy if e.scope == "gpu"]
    assert energy.energy_j is None
    assert "shorter than 10 ticks" in (energy.reason or "")


def test_an_excluded_window_is_no_part_of_the_one_around_it(card: Card) -> None:
    clock = card(ours())
    with energybench.measure("train", quiet=True) as train:
        clock.sleep(0.2)
        with energybench.measure("evaluate", exclude_from_parent=True) as evaluate:
            clock.sleep(0.4)
        clock.sleep(0.2)
    assert train.reading is not None
    assert evaluate.reading is not None
    assert (train.reading.pieces, evaluate.reading.pieces) == (2, 1)
    assert evaluate.seconds == pytest.approx(0.4)
    assert train.seconds == pytest.approx(0.4)
    assert span(train) >= 0.8 - 1e-9  # and what the sensors waited for between the pieces
    for window in (train, evaluate):
        of_card(window)
    assert (evaluate.path, evaluate.line.parent) == ("evaluate", None)


def test_an_excluded_window_pauses_every_window_that_it_lies_in(processor: VirtualTime) -> None:
    with energybench.measure("train", quiet=True) as train, energybench.measure("epoch") as epoch:
        processor.sleep(0.1)
        with (
            energybench.measure("evaluate", exclude_from_parent=True) as evaluate,
            energybench.measure("batch") as batch,
        ):
            processor.sleep(0.2)
        processor.sleep(0.1)
    assert batch.path == "evaluate/batch"
    for window in (train, epoch, evaluate, batch):
        assert window.seconds == pytest.approx(0.2)
        of_processor(window)
    assert span(train) == pytest.approx(0.4)


def test_a_card_that_this_process_does_not_use_is_not_billed(card: Card) -> None:
    clock = card(ours(), FakeGpu(uuid=OTHER, power=500.0, tick_s=TICK_S, compute=[(1,)]))
    with energybench.measure("train", quiet=True) as window:
        clock.sleep(0.2)
    assert window.reading is not None
    assert {e.device for e in window.reading.energy if e.scope == "gpu"} == {UUID}
    assert set(window.reading.cards) == {UUID}
    with energybench.measure("train", quiet=True, gpus="all") as window:
        clock.sleep(0.2)
    of_card(window, 500.0, OTHER)


def test_a_process_that_only_now_starts_on_a_card_is_its_own_and_no_foreign_one(card: Card) -> None:
    clock = card(ours(compute=[(os.getpid(), START_S + 0.1), (1,)]))
    with energybench.measure("train", quiet=True) as window:
        clock.sleep(0.3)
    assert window.reading is not None
    assert window.reading.cards[UUID].foreign_pids == [1]


def on_cards(monkeypatch: pytest.MonkeyPatch, *uuids: str) -> None:
    """This machine has no card: a stand-in for torch.cuda says which ones hold tensors."""
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: len(uuids),
        max_memory_reserved=lambda n: 8,
        synchronize=lambda n: None,
        get_device_properties=lambda n: SimpleNamespace(uuid=uuids[n].removeprefix("GPU-")),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2"))


def test_in_a_container_torch_says_which_card_is_used_and_the_one_newcomer_is_us(card: Card, monkeypatch: Any) -> None:
    clock = card(ours(compute=[(777777, START_S + 0.1), (1,)]), FakeGpu(uuid=OTHER, tick_s=TICK_S))
    on_cards(monkeypatch, UUID)
    with energybench.measure("train", quiet=True) as window:
        clock.sleep(0.3)
    assert window.reading is not None
    assert set(window.reading.cards) == {UUID}
    assert window.reading.cards[UUID].foreign_pids == [1]
    of_card(window)


def test_a_card_of_which_it_cannot_be_told_who_uses_it_is_unavailable_and_not_dropped(card: Card) -> None:
    clock = card(ours(compute=[(777777, START_S + 0.1)]), FakeGpu(uuid=OTHER, tick_s=TICK_S))
    with energybench.measure("train", quiet=True) as window:
        clock.sleep(0.3)
    assert window.reading is not None
    (energy,) = [e for e in window.reading.energy if e.scope == "gpu"]
    assert (energy.source, energy.device, energy.reason) == ("unavailable", UUID, pool.AMBIGUOUS)


def test_a_known_process_that_comes_onto_a_card_is_somebody_elses(card: Card) -> None:
    other = int(subprocess.check_output(["sh", "-c", "sleep 60 >/dev/null & echo $!"]))  # its parent has ended
    try:
        clock = card(ours(compute=[(other, START_S + 0.1)]))
        with energybench.measure("train", quiet=True) as window:
            clock.sleep(0.3)
    finally:
        os.kill(other, signal.SIGKILL)
    assert window.reading is not None
    assert not [e for e in window.reading.energy if e.scope == "gpu"]


def test_a_card_that_was_used_and_not_opened_is_said(card: Card, monkeypatch: Any) -> None:
    clock = card(FakeGpu(tick_s=TICK_S))
    on_cards(monkeypatch, OTHER)
    with energybench.measure("train", quiet=True) as window:
        clock.sleep(0.2)
    assert window.reading is not None
    assert [(e.device, e.reason) for e in window.reading.energy if e.scope == "gpu"] == [(OTHER, pool.NOT_OPENED)]


def test_a_card_that_is_hidden_from_this_process_is_not_even_opened(card: Card, monkeypatch: Any) -> None:
    clock = card(ours(), FakeGpu(uuid=OTHER, power=500.0, tick_s=TICK_S, compute=[(os.getpid(),)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with energybench.measure("train", quiet=True) as window:
        clock.sleep(0.2)
    assert window.reading is not None
    assert {e.device for e in window.reading.energy if e.scope == "gpu"} == {OTHER}


def test_a_card_that_is_lost_gives_no_number_and_the_training_goes_on(card: Card, capsys: Any) -> None:
    clock = card(ours(lost=[(START_S + 0.4,)]))
    with energybench.measure("train", gpus="all") as window:
        clock.sleep(0.6)
    assert found(window, "gpu_counter").energy_j is None
    assert "GPU is lost" in (found(window, "gpu_counter").reason or "")
    told = capsys.readouterr().err
    assert "no energy: " in told
    assert " J" not in told


# ── the sensors of a process ──────────────────────────────────────────────────────────────────────────────────


def test_sensors_are_opened_once_and_again_only_for_a_second_thread(processor: VirtualTime, monkeypatch: Any) -> None:
    opened, real = [], pool.open_meters
    monkeypatch.setattr(pool, "open_meters", lambda *given: opened.append(1) or real(*given))
    for _ in range(3):
        with energybench.measure("train", quiet=True), energybench.measure("epoch"):
            pass
    assert len(opened) == 1
    seen: dict[str, MeasuredWindow] = {}
    inside, over = threading.Barrier(2), threading.Event()

    def work(name: str) -> None:
        with energybench.measure(name, quiet=True) as window:
            inside.wait(600)
            over.wait(600)
        seen[name] = window

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
        inside.wait(600)  # one after the other: opening sensors moves the clock
    processor.sleep(0.2)
    over.set()
    for thread in threads:
        thread.join()
    assert len(opened) == 2
    for window in seen.values():
        assert window.line.parent is None
        assert window.seconds >= 0.2 - 1e-9  # one of them while the other's sensors were opened, too
        of_processor(window)


def test_without_a_sensor_energy_is_modelled_and_said_to_be(capsys: Any) -> None:
    with energybench.measure("train") as window:
        window.steps += 1204
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("train: ")
    assert "1,204 steps" in line
    assert re.search(r"energy modelled \(codecarbon\): [\d.]+ m?J of the whole machine at a load of \d+ %$", line)
    assert window.reading is not None
    assert not any(energy.measured for energy in window.reading.energy)


def test_the_line_names_each_sensor_and_its_error(processor: VirtualTime, capsys: Any) -> None:
    with energybench.measure("train") as window:
        processor.sleep(0.1)
        window.steps, window.samples = 3, 96
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line == str(window)
    assert "3 steps · 96 samples · " in line
    assert " J rapl ±" in line
    assert "modelled" not in line


def test_required_energy_that_cannot_be_measured_is_refused_before_anything_runs() -> None:
    with pytest.raises(CannotMeasure, match="E501"), energybench.measure("train", energy="require"):
        pytest.fail("the body ran")


def test_off_takes_the_time_alone(clock: VirtualTime, capsys: Any) -> None:
    with energybench.measure("train", energy="off") as window:
        clock.sleep(0.01)
    assert window.reading is not None
    assert window.seconds == pytest.approx(0.01)
    assert window.reading.energy == []
    assert "J" not in capsys.readouterr().err


# ── a script's mistakes, and ours ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_passes_and_the_window_is_closed_and_marked(kind: type[BaseException], capsys: Any) -> None:
    with pytest.raises(kind), energybench.measure("train", energy="off") as window:
        raise kind("mine")
    assert window.line.error == kind.__name__
    assert f"train ({kind.__name__}): " in capsys.readouterr().err
    assert current() is None


def test_an_exit_without_an_error_is_none() -> None:
    with pytest.raises(SystemExit), energybench.measure("train", energy="off", quiet=True) as window:
        sys.exit(0)
    assert window.line.error is None


def test_one_recipe_can_be_used_inside_itself() -> None:
    @energybench.measure("factorial", energy="off", quiet=True)
    def factorial(n: int) -> int:
        depths.append(current().path.count("/"))  # type: ignore[union-attr]
        return n * factorial(n - 1) if n else 1

    depths: list[int] = []
    assert factorial(3) == 6
    assert depths == [0, 1, 2, 3]


def test_a_bare_decorator_takes_the_functions_name() -> None:
    @energybench.measure
    def training() -> str:
        return current().name  # type: ignore[union-attr]

    assert training() == "training"


async def _task() -> None: ...


def _generator() -> Iterator[int]:
    yield 1


async def _stream() -> Any:
    yield 1


@pytest.mark.parametrize("function", [_task, _generator, _stream, SimpleNamespace])
def test_a_function_that_returns_before_its_work_is_done_is_refused(function: Any) -> None:
    with pytest.raises(UsageError, match="cannot decorate") as caught:
        energybench.measure("train")(function)
    assert "with energybench.measure('train')" in caught.value.problems[0].hint


@pytest.mark.parametrize("wrong", [{"name": ""}, {"name": "a/b"}, {"name": 3}, {"energy": "on"}, {"gpus": "one"}])
def test_a_wrong_word_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="E641"):
        energybench.measure(**wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None, 10**400, [0.9, 0.8]])
def test_a_quality_that_is_no_finite_number_ends_no_training_and_is_kept_as_none(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path, kept = tmp_path / "windows.jsonl", tmp_path / "record.json"
    monkeypatch.setenv("ENERGYBENCH_WINDOWS", str(path))
    with energybench.measure("train", energy="off", record=kept) as window:
        window.quality("accuracy", 0.5)
        window.quality("accuracy", value)
        window.quality("loss", 0.25)
    assert [line.quality for line in read_windows(path)] == [{"accuracy": None, "loss": 0.25}]
    assert json.loads(kept.read_text())["windows"][0]["quality"] == {"accuracy": None, "loss": 0.25}
    assert ("is no number" in capsys.readouterr().err) == (not isinstance(value, float))
    assert "accuracy nan" in str(window)


def test_steps_of_a_closed_window_are_refused() -> None:
    with energybench.measure("train", energy="off", quiet=True) as window:
        window.steps += 1
    with pytest.raises(UsageError, match="count steps inside"):
        window.steps += 1


@pytest.mark.parametrize(
    "say", [lambda w: setattr(w, "steps", -1), lambda w: w.flop(counted=float("nan")), lambda w: w.flop(estimated=-1.0)]
)
def test_what_is_no_count_is_refused_when_it_is_said_and_not_when_the_window_closes(say: Any) -> None:
    with energybench.measure("train", energy="off", quiet=True) as window:
        window.flop(estimated=1e9)
        with pytest.raises(UsageError, match="E641"):
            say(window)
    assert window.line.error is None


def test_a_stretch_late_in_a_long_window_is_integrated_from_its_own_samples(fake_driver: Plug) -> None:
    from energybench.meter.gpu import GpuMeter
    from energybench.meter.nvml import open_gpus

    power = [(0.0, 500.0), (60.0, 100.0), (90.0, 300.0)]
    driver = fake_driver(FakeGpu(power=power), FakeGpu(uuid=OTHER, power=50.0))
    meter = GpuMeter(open_gpus(), driver.time)
    meter.start()
    driver.time.sleep(92.0 - driver.time.now_ns() / 1e9)
    inner = meter.nested()
    inner.start()
    driver.time.sleep(4.0)
    first, second = (e for e in inner.stop().energy if e.energy_j is not None)
    meter.stop()
    assert (first.energy_j, second.energy_j) == (pytest.approx(1200.0, rel=0.01), pytest.approx(200.0, rel=0.01))
    # It knows nothing of the 500 W of a minute ago: what the ends of a mean over a second leave open, at 800 W at most.
    assert first.error_j == pytest.approx(2 * 300 / 2 * (1 - 300 / 800))


def test_a_window_that_was_left_open_is_closed_by_the_one_around_it(clock: VirtualTime) -> None:
    with energybench.measure("train", energy="off", quiet=True) as train:
        clock.sleep(0.3)
        left = energybench.measure("evaluate", exclude_from_parent=True).start()
        clock.sleep(0.05)
    assert left.line.error == "never closed"
    assert (left.seconds, train.seconds) == (pytest.approx(0.05), pytest.approx(0.3))
    assert span(train) == pytest.approx(0.35)
    assert train.line.error is None


@pytest.mark.parametrize("threads", [False, True])
def test_two_excluded_windows_at_the_same_time_pause_the_one_around_them_once(
    processor: VirtualTime, threads: bool
) -> None:
    """0 – 0.2 training · 0.2 – 0.6 one evaluation, 0.3 – 0.9 another · 0.9 – 1.1 training"""

    class Evaluation:
        """Opened and closed when it is told to, in a task or in a thread of its own."""

        def __init__(self, name: str) -> None:
            self.name, self.opened, self.over = name, threading.Event(), threading.Event()

        def in_thread(self) -> None:
            with energybench.measure(self.name, exclude_from_parent=True) as self.window:
                self.opened.set()
                assert self.over.wait(600)

        async def in_task(self) -> None:
            with energybench.measure(self.name, exclude_from_parent=True) as self.window:
                self.opened.set()
                while not self.over.is_set():
                    await asyncio.sleep(0)

        async def open(self) -> None:
            self.work = asyncio.create_task(asyncio.to_thread(self.in_thread) if threads else self.in_task())
            while not self.opened.is_set():
                await asyncio.sleep(0)

        async def close(self) -> None:
            self.over.set()
            await self.work

    async def train() -> MeasuredWindow:
        with energybench.measure("train", quiet=True) as window:
            processor.sleep(0.2)
            await first.open()
            processor.sleep(0.1)
            await second.open()
            processor.sleep(0.3)
            await first.close()
            processor.sleep(0.3)
            assert window.seconds == pytest.approx(0.2)  # still paused, by the other
            await second.close()
            processor.sleep(0.2)
        return window

    # Opening sensors takes a while, also on this clock: both sets that will be lent are there before.
    for each in [pool.borrow(pool.MeterRequest()) for _ in range(2)]:
        pool.give_back(each)
    first, second = Evaluation("first"), Evaluation("second")
    whole = asyncio.run(train())
    assert whole.reading is not None
    assert whole.reading.pieces == 2
    for window, seconds in ((whole, 0.4), (first.window, 0.4), (second.window, 0.6)):
        assert window.seconds == pytest.approx(seconds)
        of_processor(window)
    assert sum(map(len, pool._idle.values())) == 2  # both sets of meters were given back


def test_tasks_that_take_turns_do_not_lie_inside_each_other() -> None:
    async def work(name: str) -> MeasuredWindow:
        with energybench.measure(name, energy="off", quiet=True) as window:
            await asyncio.sleep(0.02)
        return window

    async def both() -> list[MeasuredWindow]:
        return await asyncio.gather(work("a"), work("b"))

    assert [window.path for window in asyncio.run(both())] == ["a", "b"]


# ── under a suite, and on disk ────────────────────────────────────────────────────────────────────────────────


def test_under_a_suite_nothing_is_printed_and_every_window_is_a_line(
    processor: VirtualTime, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    path = tmp_path / "windows.jsonl"
    monkeypatch.setenv("ENERGYBENCH_WINDOWS", str(path))
    before = processor.now_ns() / 1e9
    with energybench.measure("train") as train:
        processor.sleep(0.01)
        with energybench.measure("epoch"):
            processor.sleep(0.05)
        train.steps += 7
        train.flop(estimated=2e9)
    train.quality("accuracy", 0.75)  # after the window: the line is written again
    after = processor.now_ns() / 1e9
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert len(path.read_text().splitlines()) == 3
    outer, inner = read_windows(path)
    assert (outer.name, outer.path, outer.parent, outer.steps) == ("train", "train", None, 7)
    assert (inner.name, inner.path, inner.parent, inner.steps) == ("epoch", "train/epoch", "train", None)
    assert outer.quality == {"accuracy": 0.75}
    assert outer.flop is not None
    assert (outer.flop.estimated, outer.flop.counted) == (2e9, None)
    assert before <= outer.start_s <= inner.start_s <= inner.stop_s <= outer.stop_s <= after
    assert outer.reading == train.reading


def test_a_record_holds_the_window_and_all_inside_it(processor: VirtualTime, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    with energybench.measure("train", record=path, quiet=True):
        with energybench.measure("epoch"):
            pass
        with energybench.measure("evaluate", exclude_from_parent=True) as evaluate:
            pass
    record = read(path, WindowsFile)
    assert [window.path for window in record.windows] == ["train", "train/epoch", "evaluate"]
    assert record.machine["cpu"]
    evaluate.quality("accuracy", 0.5)
    assert read(path, WindowsFile).windows[2].quality == {"accuracy": 0.5}
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_show_prints_each_window_of_a_record(processor: VirtualTime, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with energybench.measure("train", record=path, quiet=True) as train, energybench.measure("epoch") as epoch:
        epoch.steps += 2
    done = subprocess.run(
        [sys.executable, "-m", "energybench", "show", str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "60", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [str(train), f"  {epoch}"]
    path.write_text(path.read_text().replace('"wall_s"', '"wall"', 1))
    broken = subprocess.run([sys.executable, "-m", "energybench", "show", str(path)], capture_output=True, text=True)
    assert (broken.returncode, "E621" in broken.stderr) == (2, True)


def test_a_place_where_no_record_can_be_written_is_said_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "record.json"):
        with pytest.raises(UsageError, match="E605"), energybench.measure("train", record=path):
            pytest.fail("the body ran")


def test_a_full_disk_costs_the_line_and_not_the_training(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("ENERGYBENCH_WINDOWS", str(tmp_path / "no folder" / "windows.jsonl"))
    with energybench.measure("train", energy="off"):
        pass
    assert "'train' could not be written" in capsys.readouterr().err


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────


def script(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A file of its own, run to its end."""
    path = folder / "script.py"
    path.write_text(text)
    return subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
        env=os.environ | environment,
    )


def test_it_never_imports_torch_and_importing_the_package_costs_nothing(tmp_path: Path) -> None:
    done = script(
        tmp_path,
        (
            "import sys, energybench\n"
            "assert 'pydantic' not in sys.modules and 'measure' in dir(energybench)\n"
            "with energybench.measure('train', quiet=True): pass\n"
            "assert 'torch' not in sys.modules\n"
        ),
    )
    assert done.returncode == 0, done.stderr


def test_a_windows_start_and_stop_are_those_of_the_clock_that_all_processes_share(tmp_path: Path) -> None:
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    with energybench.measure("train", energy="off", quiet=True) as window:
        pass
    assert before <= window.line.start_s <= window.line.stop_s <= time.clock_gettime(time.CLOCK_MONOTONIC)


def test_a_forked_child_writes_its_own_windows_and_not_its_parents(tmp_path: Path) -> None:
    path, machine = tmp_path / "windows.jsonl", Powercap(tmp_path / "sys")
    sockets(machine)
    done = script(
        tmp_path,
        (
            "import energybench, os, sys, time\n"
            "with energybench.measure('train') as window:\n"
            "    window.steps += 1\n"
            "    child = os.fork()\n"
            "    if not child:\n"
            "        with energybench.measure('worker') as own: time.sleep(0.1)\n"
            "        assert own.line.parent is None and own.reading.energy[0].energy_j > 0, own.reading\n"
            "        sys.exit(0)\n"  # leaves the parent's block too
            "    assert os.waitpid(child, 0)[1] == 0\n"
        ),
        **in_children.environment(powercap=machine),
        ENERGYBENCH_WINDOWS=str(path),
    )
    assert done.returncode == 0, done.stderr
    assert sorted((line.name, line.error) for line in read_windows(path)) == [("train", None), ("worker", None)]


def test_a_window_that_nobody_closes_is_written_at_the_end_of_the_process_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    text = "import energybench\nenergybench.measure('train', energy='off').start().steps = 5\n"
    assert script(tmp_path, text, ENERGYBENCH_WINDOWS=str(path)).returncode == 0
    (line,) = read_windows(path)
    assert (line.steps, line.error) == (5, "never closed")


def test_torch_that_has_not_started_cuda_is_not_made_to() -> None:
    import torch

    assert not torch.cuda.is_initialized()
    devices.synchronise()
    assert devices.numbers() == []
    assert devices.uuids() == set()
    assert not torch.cuda.is_initialized()


def test_every_used_device_is_waited_for_before_the_first_and_the_last_reading(monkeypatch: Any) -> None:
    """This machine has no card: a stand-in for torch.cuda says which calls come."""
    waited: list[int] = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 3,
        max_memory_reserved=lambda n: 8 * (n >= 1),
        synchronize=waited.append,
        get_device_properties=lambda n: SimpleNamespace(uuid=f"{n}{n}"),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2"))
    with energybench.measure("train", energy="off", quiet=True):
        assert waited == [1, 2]
    assert waited == [1, 2, 1, 2]
    assert devices.uuids() == {"GPU-11", "GPU-22"}


@pytest.mark.parametrize("started", [True, False])
def test_the_device_of_a_trial_is_waited_for_before_all_that_are_used(monkeypatch: Any, started: bool) -> None:
    """Also where nothing has started CUDA yet; and a trial on the processor waits for no card."""
    waited: list[Any] = []
    cuda = SimpleNamespace(
        is_initialized=lambda: started,
        device_count=lambda: 3,
        max_memory_reserved=lambda n: 8 * (n >= 1),
        synchronize=waited.append,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2"))
    card = SimpleNamespace(type="cuda", index=1)
    devices.synchronise(card)
    assert waited == [card, *([1, 2] if started else [])]
    devices.synchronise(SimpleNamespace(type="cpu"))
    assert len(waited) == 1 + 2 * started


def test_each_card_that_was_used_and_not_metered_is_said_to_have_no_figure(monkeypatch: Any) -> None:
    on_cards(monkeypatch, UUID, OTHER)
    card = Energy(source="gpu_counter", scope="gpu", device=UUID, energy_j=100.0, error_j=1.0)
    package = Energy(source="rapl", scope="cpu", device="package-0", energy_j=10.0, error_j=0.1)
    whole = devices.with_every_card(Reading(wall_s=1.0, energy=[card, package]), "because")
    assert [e.device for e in whole.energy if e.energy_j is None] == [OTHER]
    assert whole.energy[-1].reason == "because"
    assert devices.with_every_card(whole, "because") == whole
    for none_was_to_be_metered in ([], [package], [Energy(source="unavailable", scope="gpu", reason="no driver")]):
        reading = Reading(wall_s=1.0, energy=none_was_to_be_metered)
        assert devices.with_every_card(reading, "because") == reading


def test_the_old_name_of_exclude_from_parent_works_for_one_version_with_a_warning(clock: VirtualTime) -> None:
    with energybench.measure("train", energy="off", quiet=True) as train:
        clock.sleep(0.1)
        with pytest.warns(DeprecationWarning, match="exclude_from_parent"):
            evaluate = energybench.measure("evaluate", apart=True)
        with evaluate as window:
            clock.sleep(0.2)
    assert (window.line.parent, window.seconds) == (None, pytest.approx(0.2))
    assert train.seconds == pytest.approx(0.1)
    with pytest.warns(DeprecationWarning, match="exclude_from_parent"):
        inner = energybench.measure("inner", energy="off", apart=False)
    with energybench.measure("outer", energy="off", quiet=True), inner as window:
        pass
    assert window.line.parent == "outer"


def test_an_error_in_a_kernel_closes_the_window_and_is_raised(monkeypatch: Any, capsys: Any) -> None:
    def fail(number: int) -> None:
        if failing:
            raise RuntimeError("CUDA error: device-side assert triggered")

    failing: list[bool] = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True, device_count=lambda: 1, max_memory_reserved=lambda n: 8, synchronize=fail
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2"))
    with pytest.raises(RuntimeError, match="device-side"), energybench.measure("t", energy="off") as window:
        failing.append(True)
    assert window.line.error == "RuntimeError"
    assert "did not close: RuntimeError" in capsys.readouterr().err


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with energybench.measure("train", record=path, quiet=True, energy="off"):
        pass
    assert json.loads(path.read_text())["schema"] == SCHEMA
