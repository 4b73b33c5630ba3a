"""amp: what torch.autocast makes of a recipe, its bytes as the ledger of that precision has them, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import CPU, TinyTransformer, assert_same_state, digits, double_run, make_run, state
from support import tiny_cnn as cnn
from test_method_members import method_named

from energybench.common.errors import UsageError
from energybench.flops.intensity import layer
from energybench.flops.work import Work
from energybench.runner.tracing import trace_task
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

BATCH = 32
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
each_precision = pytest.mark.parametrize("precision", NARROW)
each_model = pytest.mark.parametrize("model", [cnn, TinyTransformer])


def amp(precision: str = "bf16") -> Any:
    return method_named("amp", precision=precision)


def work_in(precision: str, model: Any, run: Any) -> Work:
    batch = next(iter(run.data.load([torch.arange(2)])))
    recipe = Recipe(epochs=2, batch=BATCH, precision=precision)
    lines = trace_task(Classification(), model(), recipe, batch, CPU).lines
    return Work(lines, epochs=2, samples=run.data.samples(BATCH), batch=BATCH)


@each_precision
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_a_recipe_of_that_precision_does_bit_for_bit(precision, accumulate):
    with_it = make_run([amp(precision)], accumulate=accumulate)
    without = make_run(precision=precision, accumulate=accumulate)
    for run in (with_it, without):
        run.train()
    assert_same_state(state(with_it.model), state(without.model))
    assert with_it.evaluate(digits(32, test=True)) == without.evaluate(digits(32, test=True))
    assert with_it.tally.updates_skipped == without.tally.updates_skipped


@each_precision
def test_products_are_narrow_and_weights_and_gradients_are_not(precision):
    run = make_run([amp(precision)])
    forward = run.gradients(next(run.data.load([torch.arange(BATCH)])))
    assert forward.outputs.dtype == NARROW[precision]
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in run.model.parameters()} == {torch.float32}
    assert (run.loss_scale > 1) is (precision == "fp16")  # bf16 has the exponents of fp32


@each_precision
def test_the_gradient_is_that_of_fp32_to_the_digits_that_a_narrow_number_has(precision):
    """Of a loss whose products each round to 8 or 11 bits: ‖g − g₃₂‖ stays within a few dozen of these roundings."""
    runs = [make_run([amp(precision)], TinyTransformer), make_run(model=TinyTransformer)]
    gradients = []
    for run in runs:
        run.gradients(next(run.data.load([torch.arange(BATCH)])))
        gradients.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]))
    narrow, full = gradients
    error = (narrow - full).norm() / full.norm()
    unit = torch.finfo(NARROW[precision]).eps / 2
    assert 0 < error < 32 * unit


@pytest.mark.parametrize(("precision", "model"), [("bf16", cnn), ("fp16", cnn), ("bf16", TinyTransformer)])
def test_its_bytes_are_those_of_the_ledger_in_that_precision_and_its_flops_are_plain_trainings(precision, model):
    run = make_run([method := amp(precision)], model)
    run.step(next(run.data.load([torch.arange(BATCH)])))
    plain, narrow = work_in("fp32", model, run), work_in(precision, model, run)
    estimated = method.estimate(plain)
    assert estimated.flop == narrow.flop == plain.flop
    assert plain.moved_b(BATCH) > 1.1 * narrow.moved_b(BATCH)
    assert estimated.moved_b(BATCH) == pytest.approx(narrow.moved_b(BATCH), rel=1e-12)
    assert estimated.moved_b_by(BATCH, layer) == pytest.approx(narrow.moved_b_by(BATCH, layer))
    pairs = zip(plain.lines, estimated.lines, strict=False)
    products = [(before, after) for before, after in pairs if before.op in ("conv", "linear", "attention")]
    assert [after.moved_b(BATCH) for _, after in products] == pytest.approx(
        [before.moved_b(BATCH) / 2 for before, _ in products]
    )


def test_what_a_layer_further_in_leaves_out_is_left_out_of_its_bytes_too():
    run = make_run([method := amp()])
    run.train()
    plain = work_in("fp32", cnn, run)
    half = plain.change(lambda line: 0.5)
    casts = sum(line.moved_b(BATCH) for line in method.estimate(plain).lines[len(plain.lines) :])
    assert casts > 0
    lines = [
        sum(line.moved_b(BATCH) for line in method.estimate(work).lines[: len(plain.lines)]) for work in (plain, half)
    ]
    assert lines[1] == pytest.approx(lines[0] / 2)


@each_model
def test_as_many_flops_are_counted_as_in_plain_training(model):
    counts = []
    for methods in ([amp()], []):
        counter = StepCounter(10**9)
        run = make_run(methods, model, counter=counter)
        run.train()
        counts.append(counter.result(run).counted_flop)
    assert counts[0] == counts[1]


def test_it_has_acted_when_a_step_was_narrow_and_not_before():
    run = make_run([method := amp()])
    assert method.acted is False
    assert method.estimate(work := work_in("fp32", cnn, run)) is work
    run.step(next(run.data.load([torch.arange(BATCH)])))
    assert method.acted is True
    method.setup(wide := make_run())  # as its own run would not have it
    method.step(wide, next(wide.data.load([torch.arange(BATCH)])), wide.step)
    assert method.acted is False


def test_what_is_narrow_already_is_refused_in_words():
    assert amp().incompatible_recipe({"precision": "fp32"}) is None
    assert amp().incompatible_recipe({"precision": "fp16"}) == "its precision is fp16 already"
    with pytest.raises(UsageError, match="weights in float32, and this model has some in float64"):
        double_run([amp()])
    with pytest.raises(UsageError, match="precision"):
        amp("fp8")


def test_in_fp16_an_update_that_overflows_is_left_out_and_halves_the_scale():
    class Huge(Method):
        name = "huge"

        def gradients(self, run, batch, inner):
            forward = run.forward(batch)
            run.backward(forward.value * 3e38)
            run.add_loss(forward.value)
            return forward

        replaces = frozenset({"gradients"})

    run = make_run([amp("fp16"), Huge()])
    before, scale = state(run.model), run.loss_scale
    run.step(next(run.data.load([torch.arange(16)])))
    assert run.loss_scale == scale / 2
    assert run.tally.updates_skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in run.model.named_parameters())
