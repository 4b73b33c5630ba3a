"""The other side of `runner/turns.py`: a trial that trains up to where it is told, and then rests until it is called.

    set-up → "ready" ┄ rests ┄ part → "rest" ┄ rests ┄ part → … → "trained" ┄ rests ┄ evaluation, report, end

A part ends behind a step, or before an epoch: the window's piece is closed there, with its device synchronised, so that
neither the rest nor what resting costs is billed. While it rests this process waits on a pipe, and whoever called it
stops it and everything that it has started (SIGSTOP). Steps, their order and every random draw are those of a trial
that runs alone: the weights are the same to the bit.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from energybench.meter import Meter
from energybench.meter.reading import Energy, Reading
from energybench.meter.window import Window, ticks_of
from energybench.process import heap_layout, in_child
from energybench.train.batch import Batch
from energybench.train.run import Run
from energybench.trial.control_run import ControlRun

FEWEST_TICKS, FEWEST_AVERAGES = 50, 20  # of a sensor, in a part
RAPL_TICK_S = 0.001
UNKNOWN_AVERAGING_S = 1.0  # the longest that is known of any card
FEWEST_STEPS = 3  # after a part's first, for a median
TURNS = "turns"  # the phase of what stopping and starting the window took


class Gate:
    """Between a trial and whoever gives it turns.

    Args:
        line:  to them
        timed: whether the host sees how long a step takes; a card that works behind its back does not show it
    """

    def __init__(self, line: Connection[bytes, bytes], *, timed: bool) -> None:
        self._line, self._timed = line, timed
        self._until = math.inf
        self._window: Window | None = None
        self._meters: Sequence[Meter] = ()
        self._marks_s: list[float] = []  # of the window's own time, when the part began and behind each of its steps
        self._gap_s, self._rests = 0.0, 0

    @classmethod
    def opened(cls, device: torch.device) -> Gate | None:
        """None for a trial that nobody gives turns."""
        line = in_child.line()
        return None if line is None else cls(line, timed=device.type == "cpu")

    def ready(self, run: Run, meters: Sequence[Meter], idle: Reading | None) -> None:
        """Set up: say what a schedule must know, and rest. idle: what the meters said of a moment of waiting."""
        self._meters = meters
        facts: dict[str, Any] = {
            "steps": round(run.schedule_epochs * run.steps_per_epoch),
            "least_part_s": least_part_s(idle.energy if idle else ()),
            "on_cards": {uuid: pids for meter in meters for uuid, pids in _on_cards(meter).items()},
        }
        if run.device.type == "cuda":
            facts["device_free_b"], facts["device_b"] = torch.cuda.mem_get_info(run.device)
        self._rest("ready", facts)

    def begin(self, window: Window) -> None:
        """The window is open, and the first part begins."""
        self._window = window
        self._marks_s = [window.elapsed_s()]

    def passed(self, progress: float, *, step: bool) -> None:
        """Called behind every step and before every epoch. progress: of the planned training, 0 to 1."""
        if self._window is None:  # steps of a set-up, say
            return
        if step and self._timed:
            self._marks_s.append(self._window.elapsed_s())
        if progress < self._until:
            return
        self._outside(self._window.stop)
        while progress >= self._until:  # a part that lies in epochs that were skipped is empty
            self._rest("rest", {"progress": progress, **self._part()})
            self._marks_s = []
        self._outside(self._window.start)
        self._marks_s = [self._window.elapsed_s()]

    def trained(self, readings: dict[str, Reading]) -> None:
        """The window is closed: rest until the others' are. readings: of the trial's phases; one is added."""
        readings[TURNS] = Reading(wall_s=self._gap_s, pieces=max(1, self._rests))
        self._rest("trained", self._part())

    def _part(self) -> dict[str, Any]:
        steps = [after - before for before, after in zip(self._marks_s, self._marks_s[1:], strict=False)]
        if len(steps) <= FEWEST_STEPS:
            return {"part_s": math.fsum(steps), "excess_s": None}
        return {"part_s": math.fsum(steps), "excess_s": steps[0] - statistics.median(steps[1:])}

    def _outside(self, move: Callable[[], None]) -> None:
        """Stop or start the window; what of that lies outside of it belongs to no other phase."""
        assert self._window is not None
        inside_s, started = self._window.elapsed_s(), time.perf_counter()
        move()
        took_s = time.perf_counter() - started
        self._gap_s += max(0.0, took_s - max(0.0, self._window.elapsed_s() - inside_s))

    def _rest(self, at: str, facts: Mapping[str, Any]) -> None:
        self._rests += at == "rest"
        heap_layout.draw()
        self._line.send_bytes(json.dumps({"at": at, **facts}).encode())
        told = json.loads(self._line.recv_bytes())
        self._until = math.inf if told["until"] is None else float(told["until"])
        spare(self._meters, told["siblings"])


class PausingRun(Run):
    """A run that passes a gate behind every step and before every epoch."""

    def __init__(self, *args: Any, gate: Gate, **kwargs: Any) -> None:
        self._gate = gate
        super().__init__(*args, **kwargs)

    def train_epoch(self, number: int) -> None:
        self._gate.passed((number - 1) / self.schedule_epochs, step=False)
        super().train_epoch(number)

    def _whole_step(self, chain: Callable[[Batch], None], batch: Batch) -> None:
        super()._whole_step(chain, batch)
        within = min(1.0, self.step_in_epoch / self.steps_per_epoch)
        self._gate.passed((self.epoch_number - 1 + within) / self.schedule_epochs, step=True)


class PausingControlRun(PausingRun, ControlRun):
    """The same of a matched control: its last epoch may be a part of one, and its progress is that of its own steps."""


def least_part_s(energies: Sequence[Energy]) -> float:
    """How long a part must be for these sensors: their ticks, and the time over which some average."""
    longest_s = 0.0
    counted = {energy.device for energy in energies if energy.source == "gpu_counter"}
    for energy in energies:
        if energy.source.startswith("model(") or (energy.source == "unavailable"):
            continue
        tick_s = RAPL_TICK_S if energy.source == "rapl" else ticks_of(energy) or 0.0
        if energy.source == "gpu_power_integral" and energy.device in counted:
            tick_s = 0.0  # it only checks the counter, whose ticks decide
        averaging_s = energy.detail.get("averaging_s", 0.0)
        if not isinstance(averaging_s, int | float):
            averaging_s = UNKNOWN_AVERAGING_S
        longest_s = max(longest_s, FEWEST_TICKS * tick_s, FEWEST_AVERAGES * averaging_s)
    return longest_s


def spare(meters: Sequence[Meter], processes: Mapping[str, Sequence[int]]) -> None:
    """Siblings that rest on a card are no foreign processes. processes: UUID → their numbers."""
    for meter in meters:
        allow: Callable[[Mapping[str, Sequence[int]]], None] | None = getattr(meter, "spare", None)
        if allow is not None:
            allow(processes)


def _on_cards(meter: Meter) -> dict[str, list[int]]:
    """UUID → this process on that card, as the driver numbers it."""
    own: Callable[[], dict[str, list[int]]] | None = getattr(meter, "own_on_cards", None)
    return own() if own is not None else {}
