"""The way to a target inside a trial: evaluations outside the window, and no piece of it without training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from energybench.cell import _Goal
from energybench.meter.window import Window
from energybench.phases import Phases
from energybench.record import Energy, Reading


class Counted:
    """A meter that sees 10 J in each piece."""

    def start(self) -> None: ...

    def stop(self) -> Reading:
        return Reading(
            wall_s=1.0, energy=[Energy(source="rapl", scope="cpu", device="package-0", energy_j=10.0)]
        )


def train(reached: list[float], at_least: float, fails_at: int = 0) -> tuple[Reading, Any]:
    """The trial's part of a training of so many epochs with these qualities. Returns its window and target."""
    window = Window([Counted()], lambda: None)
    goal = _Goal({"metric": "accuracy", "at_least": at_least}, window, None, Phases({}, lambda: None))  # type: ignore[arg-type]
    run = SimpleNamespace(epochs=len(reached), epoch_number=0, curve=[], tally=SimpleNamespace(steps=1))

    def evaluate(_: Any) -> dict[str, float]:
        if run.epoch_number == fails_at:
            raise RuntimeError("mine")
        return {"accuracy": reached[run.epoch_number - 1]}

    run.evaluate = evaluate
    window.start()
    try:
        for number in range(1, run.epochs + 1):
            run.epoch_number = number
            run.curve.append({})
            goal.after_epoch(run)  # type: ignore[arg-type]
    except RuntimeError:
        pass
    finally:
        window.stop()
    return window.reading(), goal.target


@pytest.mark.parametrize(
    ("reached", "epoch", "pieces"),
    [([0.5, 0.6, 0.7], None, 3), ([0.5, 0.6, 0.95], 3, 3), ([0.95, 0.6, 0.7], 1, 2), ([0.5], None, 1)],
)
def test_there_are_as_many_pieces_as_stretches_of_training(
    reached: list[float], epoch: int | None, pieces: int
) -> None:
    """After an evaluation that follows the last epoch no training comes, so no piece of the window either."""
    reading, target = train(reached, 0.9)
    assert target.epoch == epoch
    assert (reading.pieces, reading.energy[0].energy_j) == (pieces, 10.0 * pieces)


def test_an_evaluation_that_fails_is_not_billed_as_training() -> None:
    reading, _ = train([0.5, 0.6, 0.7], 0.9, fails_at=2)
    assert (reading.pieces, reading.energy[0].energy_j) == (2, 20.0)
