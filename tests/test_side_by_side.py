"""Pieces that run at once give what they give one after the other, and leave torch as it was."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from energybench.algorithms.side_by_side import WORTH, side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def draw(number: int) -> torch.Tensor:
    return torch.randn(100, generator=torch.Generator().manual_seed(number))


def test_results_come_in_the_order_of_the_pieces_whatever_runs_first(two_threads):
    sizes = [3, WORTH, 1, 2 * WORTH, 5]
    found = side_by_side([(size, partial(draw, number)) for number, size in enumerate(sizes)], CPU)
    assert all(torch.equal(result, draw(number)) for number, result in enumerate(found))


def test_two_pieces_are_at_work_at_once(two_threads):
    meeting = threading.Barrier(2, timeout=30)
    assert sorted(side_by_side([(WORTH, meeting.wait)] * 2, CPU)) == [0, 1]


def test_small_work_and_watched_work_stays_in_this_thread(two_threads):
    def here() -> int:
        return threading.get_ident()

    assert set(side_by_side([(1, here)] * 4, CPU)) == {threading.get_ident()}
    with FlopCounterMode(display=False):
        assert set(side_by_side([(WORTH, here)] * 4, CPU)) == {threading.get_ident()}
    assert set(side_by_side([(WORTH, here)] * 4, torch.device("cuda"))) == {threading.get_ident()}
    assert threading.get_ident() not in side_by_side([(WORTH, here)] * 2, CPU)


def test_gradients_are_off_and_each_operation_has_one_thread(two_threads):
    weight = torch.ones(3, requires_grad=True)

    def facts() -> tuple[bool, int]:
        return (2 * weight).requires_grad, torch.get_num_threads()

    for size in (1, WORTH):
        assert side_by_side([(size, facts)] * 3, CPU) == [(False, 1)] * 3
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("size", [1, WORTH])
def test_what_a_piece_raises_is_raised(two_threads, size):
    def fails() -> None:
        raise ValueError("no spread")

    with pytest.raises(ValueError, match="no spread"):
        side_by_side([(size, fails), (size, fails)], CPU)


def test_of_nothing_comes_nothing():
    assert side_by_side([], CPU) == []
