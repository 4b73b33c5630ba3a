"""What is rehearsed before a part changes nothing that the trial could see."""

from __future__ import annotations

import torch
from support import assert_same_state, digits, make_run, state
from torch import nn

from energybench.trial.rehearsal import Rehearsal
from energybench.trial.spec import REHEARSED_STEPS


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


def test_no_random_draw_of_the_trial_moves() -> None:
    rehearse = Rehearsal(make_run(model=with_dropout, data=digits(40), batch=8))
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    rehearse()
    assert torch.equal(torch.rand(5), expected)


def test_it_learns_nothing_however_often_it_is_rehearsed() -> None:
    run = make_run(model=with_dropout, data=digits(40), batch=8)
    before = {name: value.clone() for name, value in state(run.model).items()}
    rehearse = Rehearsal(run)
    for _ in range(3):
        rehearse()
    assert_same_state(state(run.model), before)
    assert run.tally.forwards == run.tally.backwards == 3 * REHEARSED_STEPS
    assert run.tally.updates == 0
