"""A ledger that is made anew from traces of what a method changed: ratios, what is added, and what nobody traced."""

from __future__ import annotations

import copy

import pytest
import torch
from support import CPU, assert_same_state, make_run, state, tiny_cnn
from torch import Tensor, nn

from energybench.algorithms.retraced import META, PlainTwin, Variant, failure, in_a_line, on_meta, remade
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, Line, Work
from energybench.runner.tracing import trace_run

PLAIN = (
    Line(FORWARD, "a", "conv", 100.0, sample_b={"x": 10.0, "y": 20.0}, step_b={"w": 8.0}),
    Line(WEIGHT_GRADIENT, "a", "conv", 100.0),
    Line(FORWARD, "b", "matmul", 0.0, step_flop=50.0, pair_flop=4.0, pair_b={"y": 2.0}),
)


def work(*lines: Line) -> Work:
    return Work(lines or PLAIN, epochs=2, samples=12, batch=4)


def test_a_variant_that_is_plain_training_changes_nothing():
    assert remade(work(), PLAIN, [Variant(1.0, 1.0, PLAIN)]) == work()
    assert remade(work(), PLAIN, [Variant(0.3, 0.5, PLAIN), Variant(0.7, 0.5, PLAIN)]).flop == pytest.approx(
        work().flop
    )


def test_lines_are_the_mean_of_the_variants_by_samples_and_what_a_step_costs_once_by_steps():
    smaller = (
        Line(FORWARD, "a", "conv", 20.0, sample_b={"x": 5.0, "y": 10.0}, step_b={"w": 8.0}),
        Line(WEIGHT_GRADIENT, "a", "conv", 30.0),
        Line(FORWARD, "b", "matmul", 0.0, step_flop=10.0, pair_flop=1.0, pair_b={"y": 1.0}),
    )
    changed = remade(work(), PLAIN, [Variant(0.25, 0.5, PLAIN), Variant(0.75, 0.5, smaller)]).lines
    assert [line.flop for line in changed] == pytest.approx([40.0, 47.5, 0.0])
    assert changed[0].sample_b == pytest.approx({"x": 6.25, "y": 12.5})
    assert changed[0].step_b == pytest.approx({"w": 8.0})
    assert (changed[2].step_flop, changed[2].pair_flop) == pytest.approx((30.0, 2.5))
    assert changed[2].pair_b == pytest.approx({"y": 1.5})


def test_what_another_method_has_made_of_a_line_is_multiplied_and_its_own_phases_go_with_the_forward():
    halved = Line(FORWARD, "a", "conv", 50.0)
    probe = Line("probe", "a", "conv", 100.0)
    other = Line("probe", "elsewhere", "linear", 7.0)
    quarter = (Line(FORWARD, "a", "conv", 25.0), Line(WEIGHT_GRADIENT, "a", "conv", 0.0))
    changed = remade(work(halved, PLAIN[1], probe, other), PLAIN[:2], [Variant(1.0, 1.0, quarter)])
    assert [line.flop for line in changed.lines] == pytest.approx([12.5, 0.0, 25.0, 7.0])


def test_what_plain_training_does_not_have_is_added():
    more = (*PLAIN, Line(INPUT_GRADIENT, "a", "conv", 60.0, sample_b={"dx": 3.0}), Line(FORWARD, "c", "linear", 8.0))
    changed = remade(work(), PLAIN, [Variant(0.5, 0.5, PLAIN), Variant(0.5, 0.5, more)])
    assert changed.lines[:3] == work().lines
    added = {(line.module, line.phase): line for line in changed.lines[3:]}
    assert added.keys() == {("a", INPUT_GRADIENT), ("c", FORWARD)}
    assert added["a", INPUT_GRADIENT].flop == 30.0
    assert added["a", INPUT_GRADIENT].sample_b == {"dx": 1.5}


def test_the_twin_of_a_run_gives_the_ledger_of_plain_training_and_that_of_a_changed_copy():
    run = make_run()
    before = state(run.model)
    twin = PlainTwin(run)
    assert twin.lines(run) is None  # nothing has been seen
    twin.see(next(iter(run.batches(run.data))))
    assert twin.lines(run) == trace_run(make_run(), CPU).lines

    def freeze(model: nn.Module) -> None:
        for parameter in model[0].parameters():
            parameter.requires_grad_(False)

    frozen = twin.lines(run, freeze)
    assert frozen is not None
    phases = {line.phase for line in frozen if line.module == "0" and line.flop}
    assert phases == {FORWARD}
    assert twin.lines(run) == trace_run(make_run(), CPU).lines  # a copy was frozen
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    assert_same_state(state(run.model), before)
    assert {parameter.device for parameter in twin.model.parameters()} == {META}


class Picky(nn.Module):
    """Takes images of 8 × 8 alone, and never whole numbers of them that a trace could follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = tiny_cnn()

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != 8:
            raise ValueError("images are of 8 × 8\nand no others")
        if images.sum().item() == 0.5:  # needs numbers
            raise ValueError("never")
        return self.inside(images)


def test_what_cannot_be_traced_without_numbers_is_told_by_none():
    run = make_run(model=Picky)
    twin = PlainTwin(run)
    twin.see(next(iter(run.batches(run.data))))
    assert twin.lines(run) is None


def test_a_trial_forward_tells_what_a_model_raises_and_leaves_no_trace():
    run = make_run(model=Picky)
    batch = next(iter(run.batches(run.data)))
    before = state(run.model)
    model = copy.deepcopy(run.model)
    assert failure(run, model, batch) is None
    assert failure(run, PlainTwin(run).model, on_meta(batch)) is not None
    cut = on_meta(batch)
    small = type(batch)(cut.inputs[..., :4], cut.targets, cut.index)
    error = failure(run, PlainTwin(run).model, small)
    assert error is not None
    assert in_a_line(error) == "ValueError: images are of 8 × 8"
    assert in_a_line(KeyError()) == "KeyError"
    assert_same_state(state(run.model), before)
    assert run.tally.forwards == 0
    assert torch.is_grad_enabled()
