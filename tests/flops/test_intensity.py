"""Work changed by a method, and whether its saved FLOPs can be saved seconds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.flops.intensity import explain, groups, roofline_flop
from energybench.flops.work import BACKWARD, FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, Line, Work


def conv(module: str, flop: float, x: float, y: float, w: float) -> list[Line]:
    return [
        Line(FORWARD, module, "conv", flop, sample_b={"x": x, "y": y}, step_b={"w": w}),
        Line(WEIGHT_GRADIENT, module, "conv", flop, sample_b={"x": x, "dy": y}, step_b={"dw": w}),
        Line(INPUT_GRADIENT, module, "conv", flop, sample_b={"dy": y, "dx": x}, step_b={"w": w}),
    ]


def norm(module: str, x: float) -> list[Line]:
    return [
        Line(FORWARD, module, "normalisation", 0.0, sample_b={"x": x, "y": x}),
        Line(INPUT_GRADIENT, module, "normalisation", 0.0, sample_b={"x": x, "dy": x, "dx": x}),
    ]


# wide: 1000 FLOPs on 20 bytes; thin: 100 FLOPs on 40 bytes, of which 30 are x
WORK = Work(
    tuple(conv("wide", 1000.0, 10.0, 10.0, 0.0) + conv("thin", 100.0, 30.0, 10.0, 0.0) + norm("norm", 10.0)), 2, 8
)


def backward_less(ratio: float) -> Any:
    return lambda line: ratio if line.op == "conv" and line.phase in BACKWARD else 1.0


def test_without_a_bytes_rule_bytes_follow_flops():
    half = WORK.change(lambda line: 0.5)
    assert half.flop == WORK.flop / 2
    assert half.moved_b(4) == WORK.moved_b(4) / 2
    assert WORK.change(lambda line: 1.0) == WORK


def test_a_bytes_rule_speaks_of_each_operand():
    changed = WORK.change(backward_less(0.2), lambda line, operand: 0.2 if operand == "dy" else 1.0)
    lines = {(line.module, line.phase): line for line in changed.lines}
    assert lines["thin", WEIGHT_GRADIENT].sample_b == {"x": 30.0, "dy": 2.0}
    assert lines["thin", WEIGHT_GRADIENT].flop == pytest.approx(20.0)
    assert lines["thin", FORWARD] == WORK.lines[3]
    assert lines["norm", INPUT_GRADIENT].sample_b["dy"] == 2.0  # the rule was asked of every line


@given(st.floats(0, 2), st.floats(0, 2))
def test_changes_compose(one, other):
    twice = WORK.change(backward_less(one)).change(backward_less(other))
    at_once = WORK.change(backward_less(one * other))
    assert twice.flop == pytest.approx(at_once.flop)
    assert twice.moved_b(4) == pytest.approx(at_once.moved_b(4))


def test_fewer_epochs_move_fewer_bytes_and_a_step_more_reads_parameters_again():
    lines = tuple(conv("a", 8.0, 1.0, 1.0, 100.0))
    assert Work(lines, 4, 10).trained(1).moved_b(5) == Work(lines, 4, 10).moved_b(5) / 4
    assert Work(lines, 1, 10).moved_b(5) == 10 * 6 + 2 * 300
    assert Work(lines, 1, 11).moved_b(5) == 11 * 6 + 3 * 300


def test_a_layer_says_how_many_flops_and_bytes_it_saves():
    less = WORK.change(backward_less(0.2), lambda line, operand: 0.2 if operand == "dy" else 1.0)
    found = {group.name: group for group in groups(WORK, less, batch=4)}
    assert list(found) == ["conv wide", "conv thin", "normalisation norm"]
    thin = found["conv thin"]
    assert thin.flop_saved_rel == pytest.approx(0.8 * 2 / 3)
    assert thin.bytes_saved_rel == pytest.approx(0.8 * (10 + 10) / 120)
    assert thin.intensity == pytest.approx(300 / 120)
    assert found["normalisation norm"].flop_saved_rel is None
    assert found["normalisation norm"].intensity == 0
    assert (thin.bound(2.0), thin.bound(3.0)) == ("compute", "memory")


def test_groups_may_be_phases_and_added_lines_are_a_group_of_their_own():
    probed = WORK.add(Line("probe", "wide", "conv", 5.0, sample_b={"x": 1.0}))
    found = {group.name: group for group in groups(WORK, probed, 4, by=lambda line: line.phase)}
    assert found["probe"].plain_flop == 0
    assert found["probe"].estimated_flop == 5.0 * 16
    assert found["probe"].flop_saved_rel is None
    assert found[FORWARD].flop_saved_rel == 0


def test_without_a_balance_no_time_is_promised():
    found = explain(WORK, WORK.change(backward_less(0.5)), batch=4)
    assert (found.time_saved_rel, found.memory_bound_rel, found.balance_flop_b) == (None, None, None)
    assert found.flop_saved_rel == pytest.approx(1 / 3)
    assert [group.name for group in found.groups] == ["conv wide", "conv thin"]  # what changed, most FLOPs first


def test_on_a_roofline_saved_flops_of_a_memory_bound_layer_save_no_time():
    """Balance 10: `thin` has 2.5 FLOP/B and waits for its 40 bytes, which stay; `wide` has 50 and computes."""
    less = WORK.change(backward_less(0.5), lambda line, operand: 1.0)
    found = explain(WORK, less, batch=4, balance_flop_b=10.0)
    before = 3 * 1000 + 3 * 40 * 10 + 50 * 10
    assert roofline_flop(WORK, 4, 10.0) == 16 * before
    assert found.time_saved_rel == pytest.approx(1 - (before - 1000) / before)
    assert found.memory_bound_rel == pytest.approx((3 * 400 + 500) / before)


@given(st.floats(0, 1))
def test_a_machine_that_only_computes_saves_the_flops_and_one_that_only_moves_saves_the_bytes(kept):
    less = WORK.change(backward_less(kept), lambda line, operand: math.sqrt(kept))
    for balance, wanted in (
        (1e-9, explain(WORK, less, 4).flop_saved_rel),
        (1e12, explain(WORK, less, 4).bytes_saved_rel),
    ):
        assert explain(WORK, less, 4, balance).time_saved_rel == pytest.approx(wanted, abs=1e-6)


def test_an_empty_ledger_explains_nothing():
    nothing = Work((), 1, 1)
    found = explain(nothing, nothing, 1, 10.0)
    assert (found.flop_saved_rel, found.bytes_saved_rel, found.time_saved_rel, found.groups) == (None, None, None, ())
