"""low_rank_gradients: the optimizer's step in the strongest directions of a gradient, against numpy's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import CPU, assert_same_state, double_run, make_run, state, tiny_mlp, vectors
from test_method_members import method_named
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner.tracing import trace_run
from energybench.train.method import Method
from energybench.train.run import Diverged
from energybench.trial.counting_layer import StepCounter

OPTIMIZERS = {"sgd": {"momentum": 0.9}, "adam": {}, "adamw": {}, "adagrad": {}, "adadelta": {}}


def low_rank(**parameters):
    return method_named("low_rank_gradients", **{"rank": 2, "scale": 1.0} | parameters)


class Updates(Method):
    """Weights before and after each update, and the gradients that the optimizer was given."""

    name = "updates"

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []

    def update(self, run, part, inner):
        before = state(run.model)
        inner(part)
        gradients = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
        self.seen.append((before, state(run.model), gradients))


def trained(method: Method, **settings):
    updates = Updates()
    run = double_run([updates, method], **{"lr": 0.1, "epochs": 1} | settings)
    run.train()
    return run, updates.seen


def onto(gradient: Tensor, rank: int) -> np.ndarray:
    """PPᵀG by numpy: what is left of a gradient in its strongest directions, from either side."""
    left, values, right = np.linalg.svd(gradient.numpy())
    return left[:, :rank] * values[:rank] @ right[:rank]


def test_a_gradient_that_has_no_more_directions_is_followed_as_by_plain_training():
    """A batch of two makes gradients of rank two: PPᵀG = G, and SGD without momentum takes the same steps."""
    method = low_rank(refresh=1)
    run = double_run([method], batch=2, epochs=3, lr=0.3)
    plain = double_run(batch=2, epochs=3, lr=0.3)
    run.train()
    plain.train()
    assert method.acted
    for one, other in zip(state(run.model).values(), state(plain.model).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(5, 6), (9, 6)])
def test_the_first_step_of_sgd_is_the_truncated_gradient(shape):
    """Of a matrix that is wide, and of one that is tall; biases are followed whole."""
    out, ins = shape
    model = lambda: nn.Sequential(nn.Linear(ins, out), nn.Tanh(), nn.Linear(out, 3)).double()  # noqa: E731
    _, seen = trained(low_rank(scale=0.25, rank=3), model=model, lr=0.1)
    before, after, gradients = seen[0]
    step = (after["0.weight"] - before["0.weight"]).numpy()
    np.testing.assert_allclose(step, -0.25 * 0.1 * onto(gradients["0.weight"], 3), rtol=1e-8, atol=1e-12)
    for name in ("0.bias", "2.bias", "2.weight"):  # a matrix of three rows is no larger than the rank
        torch.testing.assert_close(after[name] - before[name], -0.1 * gradients[name], rtol=1e-8, atol=1e-12)


def test_the_first_step_of_adam_is_the_projected_back_sign_of_what_it_sees():
    """m̂/(√v̂ + ε) = R/(|R| + ε), R = PᵀG; W moves by scale·P of that."""
    _, seen = trained(low_rank(scale=0.5), optimizer="adam", lr=0.01)
    before, after, gradients = seen[0]
    gradient = gradients["0.weight"].numpy()
    basis = np.linalg.svd(gradient)[0][:, :2]
    low = basis.T @ gradient
    wanted = -0.5 * 0.01 * basis @ (low / (np.abs(low) + 1e-8))
    np.testing.assert_allclose((after["0.weight"] - before["0.weight"]).numpy(), wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizer_keeps_states_of_low_rank_alone(optimizer):
    run, _ = trained(low_rank(), optimizer=optimizer, epochs=2, **{"momentum": 0.0} | OPTIMIZERS[optimizer])
    kept = run.optimizers["main"].state[run.model[0].weight]  # (5, 6)
    shapes = {tuple(value.shape) for value in kept.values() if isinstance(value, Tensor) and value.dim()}
    assert shapes == {(2, 6)}
    assert run.model[0].weight.shape == run.model[0].weight.grad.shape == (5, 6)
    assert run.methods[1].diagnostics()["state_share"] == pytest.approx((2 * 6 + 2 * 5) / (5 * 6 + 3 * 5))


def test_directions_are_found_anew_when_they_are_due():
    """And in between a step stays in the old ones."""
    run, seen = trained(low_rank(refresh=3), epochs=3)  # nine updates of two matrices
    assert run.methods[1].diagnostics()["bases_found"] == 2 * 3
    steps = [(after["0.weight"] - before["0.weight"]) for before, after, _ in seen]
    ranks = [int(torch.linalg.matrix_rank(torch.cat(steps[n : n + 3], 1), rtol=1e-8)) for n in (0, 3, 6)]
    assert ranks == [2, 2, 2]
    assert torch.linalg.matrix_rank(torch.cat(steps, 1), rtol=1e-8) > 2


def test_weight_decay_of_sgd_is_a_part_of_the_gradient_and_adamws_shrinks_the_weight_itself():
    _, seen = trained(low_rank(), decay=0.1)
    before, after, gradients = seen[0]
    wanted = -0.1 * onto(gradients["0.weight"] + 0.1 * before["0.weight"], 2)
    np.testing.assert_allclose((after["0.weight"] - before["0.weight"]).numpy(), wanted, rtol=1e-8, atol=1e-12)
    _, with_decay = trained(low_rank(), optimizer="adamw", decay=0.1)
    _, without = trained(low_rank(), optimizer="adamw", decay=0.0)
    (start, decayed, _), (_, other, _) = with_decay[0], without[0]
    torch.testing.assert_close(other["0.weight"] - decayed["0.weight"], 0.1 * 0.1 * start["0.weight"])


def test_a_multiplier_of_the_rate_and_a_clip_act_as_in_plain_training():
    _, seen = trained(low_rank(), lr_multipliers={"0.weight": 0.5}, clip=1e-2)
    before, after, gradients = seen[0]
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert length == pytest.approx(1e-2, rel=1e-3)  # what the optimizer was given is the clipped one
    wanted = -0.5 * 0.1 * onto(gradients["0.weight"], 2)
    np.testing.assert_allclose((after["0.weight"] - before["0.weight"]).numpy(), wanted, rtol=1e-8, atol=1e-14)


def test_a_matrix_that_is_frozen_stands_still():
    class Freeze(Method):
        name = "freeze"

        def step(self, run, batch, inner):
            run.model[0].weight.requires_grad_(run.epoch_number == 1)
            inner(batch)

    updates = Updates()
    run = double_run([updates, Freeze(), low_rank()], epochs=2, momentum=0.9, decay=0.1)
    run.train()
    moved = [not torch.equal(before["0.weight"], after["0.weight"]) for before, after, _ in updates.seen]
    assert moved == [True] * 3 + [False] * 3


class Skips(Method):
    name = "skips"

    def epoch(self, run, data, inner):
        if run.epoch_number != 2:
            inner(data)

    def estimate(self, work):
        return work.trained(work.epochs * 2 / 3)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("skips", [False, True])
def test_the_estimate_is_what_is_counted_and_the_closed_form(accumulate, skips):
    """4·r·m·n for each matrix and update, whatever leaves out epochs further out and however a step is cut."""
    method, counter = low_rank(), StepCounter(10**9)
    stack = [Skips(), method] if skips else [method]
    run = double_run(stack, epochs=3, accumulate=accumulate, counter=counter)
    run.train()
    work = Work(trace_run(double_run(accumulate=accumulate), CPU).lines, 3, 24, 8, accumulate)
    estimated = method.estimate(work)
    epochs = 2 if skips else 3
    estimated = Skips().estimate(estimated) if skips else estimated
    wanted = work.flop * epochs / 3 + epochs * 3 * 4 * 2 * (5 * 6 + 3 * 5)
    assert estimated.flop == pytest.approx(wanted)
    assert counter.result(run).counted_flop == pytest.approx(wanted)


def test_a_model_without_a_larger_matrix_is_refused_in_words_and_tables_are_none():
    with pytest.raises(UsageError, match="more than 5 rows"):
        double_run([low_rank(rank=5)])
    table = nn.Sequential(nn.Embedding(20, 30), nn.Flatten(), nn.Linear(180, 3))
    run = make_run([], lambda: table, vectors())
    assert "more than 4 rows" in low_rank(rank=4).incompatible_run(run)
    assert low_rank(rank=2).incompatible_run(run) is None


def test_a_loss_that_is_no_number_ends_the_run_as_plain_trainings_does():
    class Breaks(Method):
        name = "breaks"

        def update(self, run, part, inner):
            run.model[0].weight.grad.fill_(math.nan)
            inner(part)

    with pytest.raises(Diverged):
        double_run([Breaks(), low_rank()]).train()


def test_it_composes_with_an_average_of_what_it_moved():
    run = double_run([method_named("ema", decay=0.0, ramp=False), low_rank()])
    alone = double_run([low_rank()])
    run.train()
    alone.train()
    assert_same_state(state(run.model), state(alone.model))
    run.finish()
    assert_same_state(state(run.model), state(alone.model))  # without memory the average is the weight
    assert not run.optimizers["main"]._optimizer_step_pre_hooks


@pytest.mark.parametrize("parameters", [{"rank": 0}, {"refresh": 0}, {"scale": 0.0}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(UsageError):
        low_rank(**parameters)


def test_the_papers_defaults():
    made = method_named("low_rank_gradients")
    assert (made.rank, made.refresh, made.scale) == (128, 200, 0.25)
    assert made.claims() is None
    assert tiny_mlp()[0].weight.shape == (5, 6)  # which the tests above speak of
