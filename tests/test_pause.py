"""Where a trial that takes turns rests, and that its rests change nothing: the line to whoever calls it is a list."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_same_state, double_run, state, vectors

from energybench.meter.reading import Reading
from energybench.meter.window import Window
from energybench.train.method import Method
from energybench.train.run import Run
from energybench.trial.control_run import ControlRun
from energybench.trial.pause import TURNS, Gate, PausingControlRun, PausingRun
from energybench.workloads.tasks.classification import Classification

SAMPLES, BATCH, EPOCHS = 20, 8, 4  # steps of 8, 8 and 4: twelve of them
PER_EPOCH = 3


class Caller:
    """The other end of the line: tells until where, and keeps what was said."""

    def __init__(self, until: Sequence[float]) -> None:
        self._until = iter(until)
        self.said: list[dict[str, Any]] = []

    def send_bytes(self, message: bytes) -> None:
        self.said.append(json.loads(message))

    def recv_bytes(self) -> bytes:
        return json.dumps({"until": next(self._until, None), "siblings": {}}).encode()

    @property
    def rests(self) -> list[float]:
        return [each["progress"] for each in self.said if each["at"] == "rest"]


class SkipsEpochs(Method):
    def epoch(self, run, data, inner):
        if run.epoch_number in (2, 3):
            return
        inner(data)


def made(kind: Any, methods: Sequence[Method] = (), **more: Any) -> Run:
    plain = double_run(data=vectors(SAMPLES), batch=BATCH, epochs=EPOCHS, schedule="cosine")
    arguments = (Classification(), list(methods), plain.recipe, plain.model, plain.data)
    return kind(*arguments, seed=7, device=torch.device("cpu"), **more)  # type: ignore[no-any-return]


def trained(run: Run) -> Run:
    run.train()
    return run


def in_turns(until: Sequence[float], kind: Any = PausingRun, **more: Any) -> tuple[Run, Caller, Reading, Reading]:
    """(the run, who called it, its window, the time that the rests took of nobody's)."""
    caller = Caller(until)
    gate = Gate(caller, timed=True)  # type: ignore[arg-type]
    run, window = made(kind, gate=gate, **more), Window([], lambda: None)
    gate.ready(run, [], None)
    window.start()
    gate.begin(window)
    run.train()
    window.stop()
    readings: dict[str, Reading] = {}
    gate.trained(readings)
    return run, caller, window.reading(), readings[TURNS]


@given(cuts=st.lists(st.floats(0.01, 0.999), max_size=8).map(sorted))
@settings(max_examples=25)
def test_wherever_it_rests_its_weights_are_those_of_a_run_that_never_rests_to_the_bit(cuts: list[float]) -> None:
    run, caller, window, _ = in_turns([*cuts, math.inf])
    plain = trained(made(Run))
    assert_same_state(state(run.model), state(plain.model))
    assert run.samples_sha256() == plain.samples_sha256()
    assert run.curve == plain.curve
    assert run.tally.steps == plain.tally.steps == 12
    assert [each["at"] for each in caller.said] == ["ready", *["rest"] * len(cuts), "trained"]
    for progress, cut in zip(caller.rests, cuts, strict=True):  # behind the first step that reaches it
        assert cut <= progress < cut + 1 / 12 + 1e-9
    assert window.pieces == 1 + len(set(caller.rests))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 9, 12])
def test_a_matched_control_rests_by_its_own_steps_and_ends_with_its_own_weights(steps: int) -> None:
    cuts = [0.25, 0.5, 0.75]
    run, caller, _, _ = in_turns([*cuts, math.inf], PausingControlRun, steps=steps)
    alone = trained(made(ControlRun, steps=steps))
    assert_same_state(state(run.model), state(alone.model))
    assert run.samples_sha256() == alone.samples_sha256()
    assert run.tally.steps == alone.tally.steps == steps
    assert run.tally.epochs_trained == alone.tally.epochs_trained
    assert caller.said[0]["steps"] == steps
    # In a part of an epoch its last step ends it: a cut in that step is met by the end.
    behind = [math.ceil(cut * steps - 1e-9) for cut in cuts]
    expected = [step / steps for step in behind if step < steps or steps % PER_EPOCH == 0]
    assert caller.rests == pytest.approx(expected)


def test_a_part_of_skipped_epochs_is_almost_empty_and_none_is_left_out() -> None:
    cuts = [0.2, 0.4, 0.6, 0.8]
    _, caller, _, _ = in_turns([*cuts, math.inf], methods=[SkipsEpochs()])
    # Steps 1 to 3 train the first quarter; epochs 2 and 3 are skipped, and epoch 4 begins at three quarters.
    assert caller.rests == pytest.approx([3 / 12, 2 / 4, 3 / 4, 10 / 12])
    parts = [each["part_s"] for each in caller.said if each["at"] == "rest"]
    assert parts[1] == parts[2] == 0.0
    assert parts[0] > 0


def test_what_a_rest_takes_is_in_no_window_and_in_a_phase_of_its_own() -> None:
    _, _, window, between = in_turns([0.25, 0.5, math.inf])
    assert window.pieces == 3
    assert between.pieces == 2
    assert 0.0 <= between.wall_s < 1.0
