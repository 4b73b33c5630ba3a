"""scotti: ε and α learn from the same products; both modes train alike; what rests, rests."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from support import MODELS, digits, make_run, state, tiny_cnn, tiny_mlp, vectors
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner.tracing import trace_task
from energybench.train import discovery
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["scotti"])


class Chosen(KIND):
    """Neurons rest by a pattern that changes with the step, so that rows come and go."""

    def live(self, run):
        return (torch.arange(len(self._velocity)) + run.epoch_number + run.step_in_epoch // 2) % 3 != 0


def method(kind: Any = KIND, **parameters: Any) -> Any:
    return discovery.build(kind, "scotti", parameters)


def double(methods: Any, **settings: Any) -> Any:
    """A small network in double precision on 96 random vectors: 64 to train on in 8 steps, 32 the probe."""
    defaults: dict[str, Any] = {
        "model": lambda: tiny_mlp().double(),
        "data": vectors(96),
        "batch": 8,
        "momentum": 0.0,
        "epochs": 4,
    }
    return make_run(methods, **defaults | settings)


class Account(Method):
    """Outermost: after every step α, ε, and the weights; innermost gradients come from `dense`, a plain copy."""

    name = "account"

    def __init__(self, made: Any) -> None:
        self.made = made

    def setup(self, run):
        self.rows: list[dict[str, Any]] = []

    def step(self, run, batch, inner):
        before = {p: p.detach().clone() for p in run.model.parameters()}
        # The raw gradient, by autograd on the same weights and batch.
        named = {name: p.detach().clone().requires_grad_() for name, p in run.model.named_parameters()}
        logits = torch.func.functional_call(run.model, named, (batch.inputs,))
        loss = torch.nn.functional.cross_entropy(logits, batch.targets)
        raw = dict(zip(run.model.parameters(), torch.autograd.grad(loss, list(named.values())), strict=True))
        alpha = run.optimizer().rate.item()
        epsilon = self.made._epsilon.item()
        inner(batch)
        self.rows.append(
            {
                "raw": raw,
                "alpha": alpha,
                "epsilon": epsilon,
                "alpha_after": run.optimizer().rate.item(),
                "epsilon_after": self.made._epsilon.item(),
                "gated": bool(self.made._gated),
                "direction": {p: (before[p] - p.detach()) / run.optimizer().rate for p in before},
            }
        )


@pytest.mark.parametrize("mode", ["sliced", "released"])
@pytest.mark.parametrize(
    "recipe", [{}, {"momentum": 0.9}, {"momentum": 0.9, "decay": 0.05}, {"momentum": 0.9, "nesterov": True}]
)
def test_alpha_and_epsilon_learn_from_the_raw_gradient_and_the_last_step(mode, recipe):
    """Both from what the test sees: the weights' own movement, and a gradient that it takes itself."""
    made = method(Chosen, mode=mode, hyper_lr=1e-3, epsilon_lr=3e-4, slice_from=0.0)
    account = Account(made)
    double([account, made], **recipe).train()
    moved = 0
    for before, now in zip(account.rows, account.rows[1:], strict=False):
        product = sum((now["raw"][p] * before["direction"][p]).sum().item() for p in now["raw"])
        assert now["alpha_after"] - now["alpha"] == pytest.approx(1e-3 * product, rel=1e-6, abs=1e-13)
        # Every parameter belongs to a layer with a velocity, but not before the first velocity.
        gated = product if before["gated"] else 0.0
        assert now["epsilon_after"] - now["epsilon"] == pytest.approx(-3e-4 * now["alpha"] * gated, rel=1e-6, abs=1e-16)
        moved += now["epsilon_after"] != now["epsilon"]
    assert moved == 8 * 3 - 1
    assert account.rows[0]["alpha_after"] == 0.05


@pytest.mark.parametrize("mode", ["sliced", "released"])
def test_where_every_layer_is_gated_epsilon_moves_against_alpha(mode):
    """Δε = −(η_ε/η_α)·α_t·Δα."""
    made = method(Chosen, mode=mode, hyper_lr=1e-3, slice_from=0.0)
    account = Account(made)
    double([account, made], momentum=0.9).train()
    for before, now in zip(account.rows, account.rows[1:], strict=False):
        if before["gated"]:
            change = now["alpha_after"] - now["alpha"]
            assert now["epsilon_after"] - now["epsilon"] == pytest.approx(-0.5 * now["alpha"] * change, rel=1e-9)


@pytest.mark.parametrize("mode", ["sliced", "released"])
def test_a_learned_momentum_hears_nothing_of_a_step_in_which_a_neuron_rested(mode):
    """μ moves by η·α·⟨g_t, b_{t−2}⟩, b the buffer that μ multiplied in the last step, which had no row for it."""
    made = method(Chosen, mode=mode, hyper_lr=1e-3, learn_momentum=True, slice_from=0.0)
    run = double([made], momentum=0.9)
    update, multiplied, learned = run.update, {}, []

    def watched(part: str) -> None:
        optimizer = run.optimizer(part)
        alpha, mu = optimizer.rate.item(), optimizer.momentum.item()
        product = sum((p.grad * b).sum().item() for p, b in multiplied.items() if p.grad is not None)
        buffers = {
            p: optimizer.state[p].get("momentum_buffer", torch.zeros_like(p)).clone() for p in run.model.parameters()
        }
        update(part)
        learned.append((optimizer.momentum.item() - mu, 1e-3 * alpha * product))
        for neurons, live in zip(made._gated, made._live or [], strict=True):
            for parameter, dim in neurons.rows:
                buffers[parameter].index_fill_(dim, (~live).nonzero().flatten(), 0)
        multiplied.update(buffers)

    run.update = watched
    run.train()
    for found, expected in learned:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-15)
    assert sum(found != 0 for found, _ in learned) == 4 * 8 - 2


class Outside(nn.Module):
    """A layer with neurons, and a parameter of none."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.body = nn.Parameter(torch.zeros(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + self.shift)


def test_epsilon_learns_from_gated_weights_alone_and_alpha_from_all():
    made = method(hyper_lr=1e-3, epsilon_lr=1e-3)
    account = Account(made)
    run = double([account, made], model=lambda: Outside().double())
    run.train()
    for before, now in zip(account.rows[9:], account.rows[10:], strict=False):
        products = {p: (now["raw"][p] * before["direction"][p]).sum().item() for p in now["raw"]}
        gated = sum(product for p, product in products.items() if p is not run.model.shift)
        assert products[run.model.shift] != 0
        assert now["epsilon_after"] - now["epsilon"] == pytest.approx(-1e-3 * now["alpha"] * gated, rel=1e-6)
        change = now["alpha_after"] - now["alpha"]
        assert change == pytest.approx(1e-3 * sum(products.values()), rel=1e-6)


@pytest.mark.parametrize("slice_from", [0.0, 0.5])
@pytest.mark.parametrize("recipe", [{}, {"momentum": 0.9, "decay": 0.05, "clip": 0.3}])
def test_both_modes_train_alike_where_rows_come_and_go(slice_from, recipe):
    states, learned = [], []
    for mode in ("sliced", "released"):
        made = method(Chosen, mode=mode, hyper_lr=1e-3, slice_from=slice_from)
        run = double([made], **recipe)
        run.train()
        states.append(state(run.model))
        learned.append(made.diagnostics()["epochs"])
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-9, atol=1e-11)
    for one, other in zip(*learned, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("mode", ["sliced", "released"])
def test_what_rests_in_a_step_stays_bit_for_bit_in_it_and_what_lives_moves(mode):
    made = method(Chosen, mode=mode, slice_from=0.0)
    run = make_run([made], epochs=3, decay=0.1)
    run.train_epoch(1)
    made_rows, step = 0, run.step

    def watched(batch: Any) -> None:
        nonlocal made_rows
        before = {p: p.detach().clone() for p in run.model.parameters()}
        step(batch)
        for neurons, live in zip(made._gated, made._live, strict=True):
            for parameter, _ in neurons.rows:
                moved = (parameter != before[parameter]).reshape(neurons.count, -1).any(1)
                assert torch.equal(moved, live)
                made_rows += int((~live).sum())

    run.step = watched
    run.train_epoch(2)
    run.train_epoch(3)
    assert made_rows > 50


def test_the_mask_follows_epsilon_in_every_step():
    """With a wide η_ε the share that rests changes within an epoch."""
    made = method(epsilon=0.02, epsilon_lr=5.0)
    run = make_run([made], epochs=4)
    seen = []

    class Look(Method):
        name = "look"

        def gradients(self, run, batch, inner):
            forward = inner(batch)
            if made._gated:
                live = torch.cat(made._live)
                assert torch.equal(live, made._velocity.abs() > made._epsilon.item())
                seen.append((run.epoch_number, int(live.sum())))
            return forward

    run = make_run([Look(), made], epochs=4)
    run.train()
    assert any(len({count for number, count in seen if number == epoch}) > 1 for epoch in (2, 3, 4))


def test_a_negative_epsilon_lets_everything_live_and_the_record_warns():
    made = method(epsilon=-0.5)
    make_run([made], epochs=3).train()
    found = made.diagnostics()
    assert all(entry["frozen"] == 0 and entry["epsilon"] < 0 for entry in found["epochs"])
    assert "negative" in found["warning"]
    made = method(epsilon=0.02)
    make_run([made], epochs=3).train()
    assert "warning" not in made.diagnostics()


def test_the_record_has_epsilon_alpha_and_the_share_that_rested_of_every_epoch():
    made = method(Chosen, hyper_lr=1e-3)
    run = make_run([made], epochs=3)
    run.train()
    found = made.diagnostics()
    assert [entry["epoch"] for entry in found["epochs"]] == [1, 2, 3]
    last = found["epochs"][-1]
    assert (last["epsilon"], last["learning_rate"]) == (made._epsilon.item(), run.optimizer().rate.item())
    assert set(found["frozen_by_layer"]) == set("01459")
    assert all(0.2 < share < 0.45 for shares in found["frozen_by_layer"].values() for share in shares[1:])


@pytest.mark.parametrize("model", MODELS.values())
@pytest.mark.parametrize("slice_from", [0.0, 0.5])
def test_what_is_counted_is_what_is_estimated(model, slice_from):
    totals = []
    for stack in ([made := method(Chosen, slice_from=slice_from)], []):
        layer = StepCounter(10**9)
        run = make_run([*stack], model, counter=layer, data=digits(96), epochs=4)
        run.train()
        totals.append(layer.result(run).counted_flop)
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), model(), Recipe(epochs=4, batch=32), batch, run.device).lines
    work = Work(lines, epochs=4, samples=96)
    assert made.estimate(work).flop / work.flop == pytest.approx(totals[0] / totals[1], abs=1e-3)


def test_everything_may_rest():
    made = method(epsilon=5.0, hyper_lr=1e-3)
    run = make_run([made], epochs=4)
    run.train_epoch(1)
    before = {p: p.detach().clone() for p in run.model.parameters()}
    run.train_epoch(2)
    assert all(torch.equal(p, before[p]) for p in run.model.parameters())
    run.train_epoch(3)
    run.train_epoch(4)
    assert made.diagnostics()["epochs"][-1]["frozen"] == 1


def test_a_thousand_steps_keep_no_tensor():
    made = method(Chosen, hyper_lr=1e-6)
    run = double([made], epochs=125)
    held = {}

    def look(run: Any) -> None:
        if run.epoch_number in (5, 124):
            gc.collect()
            held[run.epoch_number] = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    run.train(look)
    assert run.tally.steps == 1000
    assert held[124] <= held[5] + 124  # the loop's and the record's own numbers are no tensors


@pytest.mark.parametrize(
    "wrong",
    [
        {"hyper_lr": 0.0},
        {"epsilon_lr": -1.0},
        {"epsilon_lr": "third"},
        {"epsilon": float("nan")},
        {"hyper_momentum": 1.0},
        {"mode": "other"},
        {"probe": 2.0},
    ],
)
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError) as refused:
        method(**wrong)
    assert refused.value.problems[0].code == "E304"


def test_other_optimizers_are_refused_and_so_are_other_owners_of_the_layers():
    with pytest.raises(ValueError, match="of SGD, not of adam"):
        make_run([method()], optimizer="adam")
    neq = discovery.build(discovery.load(discovery.sources()["neq"]), "neq", {})
    (problem,) = check_stack([method(), neq], Classification())
    assert problem.code == "E314"


def test_as_released_it_composes_with_sparse_layers():
    ssprop = discovery.build(discovery.load(discovery.sources()["ssprop"]), "ssprop", {"drop": 0.5})
    made = method(Chosen, mode="released")
    assert check_stack([made, ssprop], Classification()) == []
    run = make_run([made, ssprop], tiny_cnn, epochs=4)
    run.train()
    assert made.acted
    assert ssprop.acted
