"""fp16: loss scaling held against torch's GradScaler, and against training in which nothing needs it.

Autocast leaves double precision alone, and S is a power of two: a small network in double precision trains under
`precision = "fp16"` to the very bits of "fp32", unless a gradient overflows, which a test makes happen at will.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import assert_same_state, digits, double_run, make_run, state, tiny_cnn
from test_method_members import method_named
from torch import nn

from energybench.algorithms.sample_scores import Scorer, parameter_gradient
from energybench.common.errors import UsageError
from energybench.train import loss_scaling
from energybench.train.loss_scaling import LossScaler
from energybench.train.method import Method
from energybench.train.run import Diverged
from energybench.trial.trial import told_of_the_recipe
from energybench.verdict import flag_codes
from energybench.workloads.tasks.classification import Classification


class Overflows(Classification):
    """The gradient of these steps, counted from 0 over the whole run, is not finite; the loss is, unless `loss` too."""

    def __init__(self, steps: set[int], loss: bool = False) -> None:
        self.steps, self.loss, self.seen = steps, loss, 0

    def forward(self, run, batch):
        forward = super().forward(run, batch)
        if run.tally.steps not in self.steps:
            return forward
        value = forward.value * math.inf if self.loss else Infinite.apply(forward.value)
        return type(forward)(value, forward.each, forward.outputs)


class Infinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


STACKS: dict[str, tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]] = {
    "sgd": ([], {"momentum": 0.9}),
    "adam, clipped": ([], {"optimizer": "adam", "clip": 0.05}),
    "micro-batches": ([], {"accumulate": 3, "clip": 0.05}),
    "low": ([("low", {})], {"accumulate": 2}),
    "sgld": ([("sgld", {})], {"clip": 0.05}),
    "ultimate": ([("ultimate", {"hyper_lr": 1e-3})], {"momentum": 0.9, "clip": 0.05}),
    "neq": ([("neq", {"mode": "released"})], {"momentum": 0.9}),
    "importance": ([("importance", {})], {}),
    "ema": ([("ema", {})], {}),
}


@pytest.mark.parametrize("name", STACKS)
def test_what_neither_over_nor_underflows_trains_to_the_bits_of_fp32(name):
    stack, recipe = STACKS[name]
    states = []
    for precision in ("fp32", "fp16"):
        run = double_run([method_named(use, **given) for use, given in stack], precision=precision, epochs=3, **recipe)
        run.train()
        states.append(state(run.model))
    assert run.loss_scaler.scale == 2**16
    assert run.loss_scaler.told(run.tally.updates)["updates_skipped"] == 0
    assert_same_state(*states)


def test_a_gradient_is_itself_after_each_backward_pass_not_its_multiple():
    run, plain = double_run(precision="fp16"), double_run()
    assert (run.loss_scale, plain.loss_scale) == (2**16, 1)
    batch = next(run.data.load([torch.arange(8)]))
    for each in (run, plain):
        each.parameters()
        each.backward(each.forward(batch).value)
        each.backward(each.forward(batch).value * 0.5)  # adds up
    for one, other in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("bad", [{0}, {0, 1, 5}, {7}, {2, 3, 4}])
def test_scale_and_weights_are_those_of_torchs_own_scaler(bad, monkeypatch):
    monkeypatch.setattr(loss_scaling, "GROWTH_INTERVAL", 2)
    run = double_run(task=Overflows(bad), precision="fp16", momentum=0.9, epochs=3)
    run.train()
    twin = double_run(momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
    optimizer = torch.optim.SGD(twin.model.parameters(), lr=0.05, momentum=0.9)
    step = 0
    for epoch in (1, 2, 3):
        for index in torch.randperm(24, generator=run.rng("order", epoch)).split(8):
            batch = next(twin.data.load([index]))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(twin.model(batch.inputs), batch.targets)
            scaler.scale(Infinite.apply(loss) if step in bad else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            step += 1
    for key, value in state(run.model).items():
        torch.testing.assert_close(value, twin.model.state_dict()[key], rtol=1e-12, atol=1e-14)
    assert run.loss_scaler.scale == scaler.get_scale()
    assert (run.tally.updates, run.tally.updates_skipped, run.tally.steps) == (9 - len(bad), len(bad), 9)


def test_a_step_that_overflows_moves_nothing_is_counted_by_epoch_and_costs_what_a_step_costs():
    run = double_run(task=Overflows({1, 3, 4}), precision="fp16", momentum=0.9, decay=0.1, epochs=2)
    batch = next(run.data.load([torch.arange(8)]))
    run.step(batch)
    before = state(run.model)
    run.step(batch)
    assert_same_state(state(run.model), before)
    run = double_run(task=Overflows({1, 3, 4}), precision="fp16", epochs=2)
    run.train()
    told = run.loss_scaler.told(run.tally.updates)
    assert told == {
        "scale": 2.0**13,
        "updates": 3,
        "updates_skipped": 3,
        "skipped_share": 0.5,
        "skipped_by_epoch": {"1": 1, "2": 2},
        "losses_left_out": 0,
    }
    passes = run.tally.passes()
    assert (passes.updates, passes.backwards) == (3, 6)
    assert passes.keys == {"plain": {"steps": 6, "samples": 48}}


def test_one_micro_batch_that_overflows_takes_the_whole_update_with_it():
    class Second(Overflows):
        def forward(self, run, batch):
            self.seen += 1
            self.steps = {0} if self.seen == 2 else set()
            return super().forward(run, batch)

    run = double_run(task=Second(set()), precision="fp16", accumulate=4)
    before = state(run.model)
    batch = next(run.data.load([torch.arange(8)]))
    run.step(batch)
    assert_same_state(state(run.model), before)
    run.step(batch)
    assert (run.tally.updates, run.tally.updates_skipped) == (1, 1)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_a_loss_that_is_not_finite_is_left_out_of_the_curve_unless_all_of_an_epoch_are():
    run, plain = (double_run(task=Overflows(bad, loss=True), precision="fp16") for bad in ({0}, set()))
    for each in (run, plain):
        each.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve)
    assert run.loss_scaler.left_out == 1
    assert plain.loss_scaler.left_out == 0
    with pytest.raises(Diverged):
        double_run(task=Overflows(set(range(3)), loss=True), precision="fp16").train()
    with pytest.raises(Diverged):
        double_run(task=Overflows({0}, loss=True)).train()


def test_an_overflow_in_a_step_without_an_update_is_no_reason_to_leave_out_the_next():
    class Skips(Method):
        def step(self, run, batch, inner):
            run.skip_update = run.step_in_epoch == 0
            inner(batch)

    class AfterAll(Method):
        def gradients(self, run, batch, inner):
            run.skip_update = run.step_in_epoch == 0
            return inner(batch)

    for method in (Skips(), AfterAll()):
        run = double_run([method], task=Overflows({0}), precision="fp16", epochs=1)
        run.train()
        assert (run.tally.updates, run.tally.updates_skipped) == (2, 0)


class TwoParts(Overflows):
    """Body and head, each with an optimizer; the gradients of both come before either's update."""

    parts, replaces = ("body", "head"), frozenset({"step"})

    def parameters(self, run, part):
        return run.model[{"body": 0, "head": 2}[part]].parameters()

    def step(self, run, batch, inner):
        run.model.zero_grad()
        run.gradients(replace(batch, part="body"))
        run.update("body")
        run.update("head")


def test_two_parts_with_one_gradient_are_left_out_together_and_the_scale_is_halved_once():
    run = double_run(task=TwoParts({0}), precision="fp16", epochs=1)
    before = state(run.model)
    batch = next(run.data.load([torch.arange(8)]))
    run.step(batch)
    assert_same_state(state(run.model), before)
    assert (run.loss_scale, run.tally.updates_skipped, run.loss_scaler.skipped[1]) == (2**15, 2, 2)
    run.step(batch)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    assert (run.loss_scale, run.tally.updates) == (2**15, 2)


def test_a_part_that_nobody_has_asked_for_yet_is_unscaled_too():
    states = []
    for precision in ("fp32", "fp16"):
        run = double_run(task=TwoParts(set()), precision=precision, epochs=1)
        run.train()
        states.append(state(run.model))
    assert_same_state(*states)


def test_clipping_sees_the_gradient_and_not_its_multiple():
    run = double_run(precision="fp16", clip=0.1, lr=1.0)
    before = state(run.model)
    run.step(next(run.data.load([torch.arange(8)])))
    change = torch.cat([(value - before[name]).flatten() for name, value in state(run.model).items()])
    assert change.norm().item() == pytest.approx(0.1, rel=1e-4)


def test_a_method_without_a_backward_pass_has_nothing_to_scale():
    runs = [double_run([method_named("mezo", lr=0.01)], precision=precision) for precision in ("fp16", "fp32")]
    for run in runs:
        run.train()
    assert_same_state(state(runs[0].model), state(runs[1].model))
    assert runs[0].loss_scaler.told(runs[0].tally.updates)["updates_skipped"] == 0


def test_a_layer_that_is_released_is_unscaled_from_its_first_gradient():
    class Releases(Method):
        def gradients(self, run, batch, inner):
            if run.step_in_epoch == 1:
                run.model[0].requires_grad_(True)
            return inner(batch)

    class WhileItRuns(Releases):
        def gradients(self, run, batch, inner):
            return inner(batch)

        def forward_context(self, run, mode):
            if run.step_in_epoch == 1:
                run.model[0].requires_grad_(True)
            return super().forward_context(run, mode)

    for kind in (Releases, WhileItRuns):
        states = []
        for precision in ("fp32", "fp16"):
            run = double_run([kind()], precision=precision, epochs=1)
            run.model[0].requires_grad_(False)
            run.train()
            states.append(state(run.model))
        assert_same_state(*states)


def test_the_scale_has_an_upper_end():
    scaler = LossScaler(torch.device("cpu"))
    scaler.scale = loss_scaling.LARGEST_SCALE
    scaler._in_a_row = loss_scaling.GROWTH_INTERVAL - 1
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    scaler.backward(parameter.sum() * 1e-30, [parameter])
    assert not scaler.leaves_out(1)
    assert scaler.scale == loss_scaling.LARGEST_SCALE
    assert parameter.grad.item() == pytest.approx(1e-30)


def test_parameters_in_half_precision_are_refused_in_words():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float16))
    with pytest.raises(ValueError, match="keeps its parameters in float32"):
        LossScaler(torch.device("cpu")).backward(parameter.float().sum(), [parameter])


@pytest.mark.parametrize(("bad", "flagged"), [({0}, True), (set(), False)])
def test_a_record_says_what_was_left_out_and_is_marked_above_five_percent(bad, flagged):
    run = double_run(task=Overflows(bad), precision="fp16", epochs=6)  # 18 updates
    run.train()
    record: Any = SimpleNamespace(diagnostics={}, flags=[])
    told_of_the_recipe(record, run)
    assert record.diagnostics == {"loss_scaling": run.loss_scaler.told(run.tally.updates)}
    json.dumps(record.diagnostics, allow_nan=False)
    assert [flag.code for flag in record.flags] == ["updates_skipped"] * flagged
    assert not flagged or flag_codes.kind("updates_skipped").severity == "marked"


def test_a_record_of_a_run_without_loss_scaling_says_nothing_of_it():
    run = double_run()
    run.train()
    record: Any = SimpleNamespace(diagnostics={}, flags=[])
    told_of_the_recipe(record, run)
    assert (record.diagnostics, record.flags) == ({}, [])


# ── in fp16 itself ────────────────────────────────────────────────────────────────────────────────────────────────────


class Faint(Classification):
    """A loss a million times smaller, whose gradient has no number in fp16 but 0."""

    def forward(self, run, batch):
        forward = super().forward(run, batch)
        return type(forward)(forward.value * 1e-6, forward.each, forward.outputs)


def test_a_gradient_below_the_least_number_of_fp16_arrives():
    run, plain = make_run(task=Faint(), precision="fp16"), make_run(task=Faint())
    batch = next(run.data.load([torch.arange(32)]))
    for each in (run, plain):
        each.gradients(batch)
    found, expected = run.model[0].weight.grad, plain.model[0].weight.grad
    assert (found - expected).norm() < 0.1 * expected.norm()
    with run.recipe.autocast(run.device):  # what fp16 makes of it without
        run.model.zero_grad()
        run.task.forward(run, batch).value.backward()
    unscaled = run.model[0].weight.grad
    assert (unscaled - expected).norm() > 0.3 * expected.norm()


def test_it_learns_in_fp16_with_weights_in_fp32_and_is_judged_in_fp16():
    seen: set[torch.dtype] = set()

    class Dtypes(Classification):
        def evaluate(self, run, data):
            seen.update(run.model(batch.inputs).dtype for batch in data.in_order())
            return super().evaluate(run, data)

    run = make_run(task=Dtypes(), precision="fp16", epochs=6, accumulate=2, clip=1.0)
    batch = next(run.data.load([torch.arange(16)]))
    assert run.forward(batch).outputs.dtype == torch.float16
    run.train()
    assert run.curve[-1]["loss"] < run.curve[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    run.evaluate(digits(32, test=True))
    assert seen == {torch.float16}


@pytest.mark.parametrize("name", ["ssprop", "neq", "scotti", "importance", "dlis", "mezo", "low", "gradsamp", "gni"])
def test_methods_train_in_fp16(name):
    example = {"ssprop": {"drop": 0.5}, "gradsamp": {"skip": "every:2"}}.get(name, {})
    run = make_run([method_named(name, **example)], tiny_cnn, precision="fp16", epochs=2)
    run.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve if point["loss"] is not None)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def tiny_layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_where_torch_has_no_reference_score_in_a_narrow_precision_it_is_refused_in_words(precision):
    with pytest.raises(UsageError, match=rf"E312.*BatchNorm.*{precision}"):
        Scorer(make_run(precision=precision), "parameter-gradient", "analytic")
    Scorer(make_run([], tiny_layers, precision=precision), "parameter-gradient", "analytic")
    Scorer(make_run(), "parameter-gradient", "analytic")


def test_the_reference_score_of_a_faint_sample_is_scaled_too():
    run, plain = (make_run([], tiny_layers, task=Faint(), precision=each) for each in ("fp16", "fp32"))
    batch = next(run.data.load([torch.arange(4)]))
    found, expected = (parameter_gradient(each, batch) for each in (run, plain))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
