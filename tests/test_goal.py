"""The way to a target inside a trial: evaluations outside the window, and no piece of it without training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from energybench.meter import devices as used
from energybench.meter.combine import metered
from energybench.meter.reading import Energy, Reading
from energybench.meter.window import Window
from energybench.suite.tables import TargetTable
from energybench.trial.phases import Phases
from energybench.trial.trial import UNSEEN, TargetTracker


class Counted:
    """A meter that sees 10 J in each piece."""

    def start(self) -> None: ...

    def stop(self) -> Reading:
        return Reading(wall_s=1.0, energy=[Energy(source="rapl", scope="cpu", device="package-0", energy_j=10.0)])


def train(reached: list[float], at_least: float, fails_at: int = 0) -> tuple[Reading, Any]:
    """The trial's part of a training of so many epochs with these qualities. Returns its window and target."""
    window = Window([Counted()], lambda: None)
    judge: Any = SimpleNamespace(quality=lambda run: run.evaluate())
    goal: Any = TargetTracker(TargetTable(at_least=at_least), window, judge, Phases({}, lambda: None))
    run = SimpleNamespace(epochs=len(reached), epoch_number=0, curve=[], tally=SimpleNamespace(steps=1))

    def evaluate() -> dict[str, float]:
        if run.epoch_number == fails_at:
            raise RuntimeError("mine")
        return {"accuracy": reached[run.epoch_number - 1]}

    run.evaluate = evaluate
    window.start()
    try:
        for number in range(1, run.epochs + 1):
            run.epoch_number, run.continues = number, number < run.epochs
            run.curve.append({})
            goal.after_epoch(run)
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


def test_a_card_that_a_trial_used_and_nobody_metered_leaves_no_sum_of_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that moves a part of the model to a second card does not save what the first one no longer draws."""
    card = Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=100.0, error_j=1.0)
    package = Energy(source="rapl", scope="cpu", device="package-0", energy_j=10.0, error_j=0.1)
    reading = Reading(wall_s=10.0, energy=[card, package])
    monkeypatch.setattr(used, "uuids", lambda: {"GPU-1"})
    assert used.with_every_card(reading, UNSEEN) == reading
    monkeypatch.setattr(used, "uuids", lambda: {"GPU-1", "GPU-2"})
    told = used.with_every_card(reading, UNSEEN)
    assert (told.energy[-1].device, told.energy[-1].energy_j) == ("GPU-2", None)
    assert metered(told).sensors == {("rapl", "cpu")}
    no_cards = Reading(wall_s=10.0, energy=[package])
    assert used.with_every_card(no_cards, UNSEEN) == no_cards  # none was to be metered
