"""Learning rates by name: patterns, groups of every optimizer, the schedule, and methods that own the update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import double_run, state, tiny_mlp
from test_method_members import OPTIMIZERS, method_named
from test_recipe import REFERENCE
from torch import nn

from energybench.algorithms.hypergradient_sgd import HyperSGD
from energybench.common.errors import UsageError
from energybench.suite.tables import TrainTable, WorkloadTable
from energybench.train.method import Method
from energybench.train.parameter_groups import KEY, described, multipliers_of
from energybench.train.recipe import Recipe
from energybench.trial.build import recipe_of

FIRST, LAST = "0.*", "2.*"  # of tiny_mlp: two linear layers around a tanh


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 3)
        self.head.weight = self.backbone[0].weight


def moved(run: Any) -> dict[str, torch.Tensor]:
    """What one step on the first eight samples moves."""
    before = state(run.model)
    run.step(next(run.data.load([torch.arange(8)])))
    return {name: value - before[name] for name, value in state(run.model).items()}


# ── patterns ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pattern_goes_past_dots_and_fits_a_tied_weight_by_any_of_its_names():
    model = Tied()
    found = multipliers_of(model, {"backbone.*": 0.1, "head.bias": 2.0})
    names = {name: found.get(parameter) for name, parameter in model.named_parameters()}
    assert names == dict.fromkeys([*names][:-1], 0.1) | {"head.bias": 2.0}
    assert multipliers_of(model, {"head.weight": 3.0}) == {model.backbone[0].weight: 3.0}
    assert multipliers_of(model, {}) == {}


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("backbone", 'did you mean "backbone.*"?'), ("bakbone.0.weight", "did you mean 'backbone.0.weight'?")],
)
def test_a_pattern_that_fits_nothing_is_refused_with_the_nearest_name(pattern, hint):
    with pytest.raises(UsageError) as refused:
        multipliers_of(Tied(), {pattern: 0.1})
    (problem,) = refused.value.problems
    assert (problem.code, problem.hint) == ("E410", hint)
    assert pattern in problem.message


@pytest.mark.parametrize("patterns", [("backbone.*", "*.weight"), ("*.weight", "backbone.*")])
def test_two_patterns_may_meet_if_they_say_the_same_whatever_their_order(patterns):
    model = Tied()
    both = multipliers_of(model, dict.fromkeys(patterns, 0.5))
    assert set(both) == set(model.parameters()) - {model.head.bias}
    with pytest.raises(UsageError, match="has one learning rate"):
        multipliers_of(model, dict(zip(patterns, (0.5, 0.25), strict=True)))


def test_the_plan_says_how_much_learns_at_which_multiple():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 2))
    assert described(multipliers_of(model, {"0.*": 0.1})) == "× 0.1 for 110 parameters in 2 tensors"


# ── optimizers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", REFERENCE)
def test_every_optimizer_moves_a_group_by_its_own_rate_and_the_schedule_is_kept(name):
    """torch's own, with two groups made and set by hand."""
    settings = {"momentum": 0.9 * (name == "sgd"), "nesterov": name == "sgd", "decay": 0.1, "lr": 0.01}
    settings |= {"optimizer": name, "schedule": "cosine", "clip": 0.5}
    run = double_run(lr_multipliers={FIRST: 0.1, "2.bias": 5.0}, epochs=2, **settings)
    twin = double_run()
    parameters = dict(twin.model.named_parameters())
    groups = [{"params": [parameters["0.weight"], parameters["0.bias"]]}]
    groups += [{"params": [parameters["2.weight"]]}, {"params": [parameters["2.bias"]]}]
    optimizer = REFERENCE[name](groups)
    run.train()
    for epoch in (1, 2):
        order = torch.randperm(24, generator=run.rng("order", epoch))
        for step, index in enumerate(order.split(8)):
            batch = next(twin.data.load([index]))
            rate = 0.01 * (1 + torch.cos(torch.tensor(torch.pi * (epoch - 1 + step / 3) / 2, dtype=torch.float64))) / 2
            for group, multiplier in zip(optimizer.param_groups, (0.1, 1.0, 5.0), strict=True):
                group["lr"] = rate.item() * multiplier
            optimizer.zero_grad()
            nn.functional.cross_entropy(twin.model(batch.inputs), batch.targets).backward()
            nn.utils.clip_grad_norm_(twin.model.parameters(), 0.5)
            optimizer.step()
    for key, value in state(run.model).items():
        torch.testing.assert_close(value, twin.model.state_dict()[key], rtol=1e-10, atol=1e-12)


@given(multiplier=st.floats(1e-3, 1e3))
def test_plain_descent_moves_by_the_multiple_and_leaves_the_others_alone(multiplier):
    plain, run = moved(double_run()), moved(double_run(lr_multipliers={FIRST: multiplier}))
    for name, change in plain.items():
        expected = change * multiplier if name.startswith("0.") else change
        torch.testing.assert_close(run[name], expected, rtol=1e-9, atol=1e-15)


def test_without_multipliers_an_optimizer_has_one_group_as_ever():
    (group,) = double_run().optimizer().param_groups
    assert KEY not in group


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_that_is_released_later_has_its_multiplier(name):
    """Held against an optimizer of its own at its own rate."""
    settings = {"lr": 0.05, "decay": 0.01, "optimizer": name, **OPTIMIZERS[name]}
    run = double_run(lr_multipliers={"0.weight": 0.2, "2.bias": 3.0}, **settings)
    twin = double_run(**settings).model
    frozen = [*run.model[0].parameters(), *twin[0].parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    own = {"0.weight": 0.2, "0.bias": 1.0, "2.weight": 1.0, "2.bias": 3.0}
    alone = [
        Recipe(epochs=1, batch=8, **settings | {"lr": settings["lr"] * own[key]}).build_optimizer([parameter])
        for key, parameter in twin.named_parameters()
    ]
    batch = next(run.data.load([torch.arange(8)]))
    for number in range(4):
        if number == 2:
            for parameter in frozen:
                parameter.requires_grad_(True)
        run.step(batch)
        twin.zero_grad()
        nn.functional.cross_entropy(twin(batch.inputs), batch.targets).backward()
        for optimizer in alone:
            optimizer.step()
    for one, other in zip(run.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_an_optimizer_of_a_methods_own_is_split_into_groups_too():
    class Own(Method):
        def optimizer(self, run, params, inner):
            return torch.optim.RMSprop(params, lr=1.0)

    run = double_run([Own()], lr=0.5, lr_multipliers={FIRST: 0.25})
    moved(run)
    assert [group[KEY] for group in run.optimizer().param_groups] == [0.25, 1.0]
    assert [group["lr"] for group in run.optimizer().param_groups] == [0.125, 0.5]


def test_a_parameter_that_a_method_puts_in_place_of_another_has_the_multiplier_of_its_name():
    class Replaces(Method):
        def setup(self, run):
            run.model[0].weight = nn.Parameter(run.model[0].weight.detach().clone())

    plain, run = moved(double_run([Replaces()])), moved(double_run([Replaces()], lr_multipliers={FIRST: 4.0}))
    torch.testing.assert_close(run["0.weight"], 4 * plain["0.weight"])


# ── methods that own the update ───────────────────────────────────────────────────────────────────────────────────────


def test_mezo_moves_by_the_multiple():
    with_it, without = (
        moved(double_run([method_named("mezo", lr=0.01)], lr_multipliers=multipliers))
        for multipliers in ({FIRST: 0.1}, {})
    )
    for name, change in without.items():
        expected = change * (0.1 if name.startswith("0.") else 1)
        torch.testing.assert_close(with_it[name], expected, rtol=1e-6, atol=1e-12)


def test_sgld_takes_the_multiple_of_its_step_size_so_that_its_noise_grows_with_the_root():
    """Δ(m) = m·a + √m·b, with the same a and b for every m."""
    at = {m: moved(double_run([method_named("sgld")], lr_multipliers={FIRST: m}))["0.weight"] for m in (0.25, 1.0, 4.0)}
    drift = (at[4.0] - 2 * at[1.0]) / 2
    noise = at[1.0] - drift
    assert noise.norm() > 1e-3
    torch.testing.assert_close(at[0.25], drift / 4 + noise / 2)


def test_a_learned_rate_learns_from_each_parameter_as_much_as_the_rate_moves_it():
    """∂L/∂α through the last step by autograd, of w − α·m·d."""
    torch.manual_seed(0)
    start = [torch.randn(4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    factors, alpha, eta = (0.25, 3.0), 0.1, 1e-3

    def loss(a, b):
        return (a**4).sum() + (a.sum() * b).square().sum()

    parameters = [nn.Parameter(value.clone()) for value in start]
    by_name = dict(zip(parameters, factors, strict=True))
    optimizer = HyperSGD(parameters, alpha, hyper_lr=eta, multiplier=by_name.__getitem__)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = None
        loss(*parameters).backward()
        optimizer.step()
    rate = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    leaves = [value.clone().requires_grad_() for value in start]
    directions = torch.autograd.grad(loss(*leaves), leaves)
    stepped = [value - rate * m * d for value, m, d in zip(start, factors, directions, strict=True)]
    (gradient,) = torch.autograd.grad(loss(*stepped), rate)
    expected = alpha - eta * gradient.item()
    assert optimizer.rate.item() == pytest.approx(expected, rel=1e-9)
    second = [value.detach().requires_grad_() for value in stepped]
    directions = torch.autograd.grad(loss(*second), second)
    for parameter, value, m, d in zip(parameters, second, factors, directions, strict=True):
        torch.testing.assert_close(parameter.detach(), value.detach() - expected * m * d)


@pytest.mark.parametrize("name", ["ultimate", "scotti"])
def test_methods_with_a_learned_rate_take_the_multiple(name):
    with_it, without = (
        moved(double_run([method_named(name)], lr_multipliers=multipliers)) for multipliers in ({FIRST: 0.5}, {})
    )
    torch.testing.assert_close(with_it["0.weight"], without["0.weight"] / 2)
    torch.testing.assert_close(with_it["2.weight"], without["2.weight"])


class Deaf(Method):
    """Moves the parameters itself, as it did before there were multipliers."""

    name = "deaf"
    replaces = frozenset({"update"})

    @torch.no_grad()
    def update(self, run, part, inner):
        for parameter in run.parameters(part):
            parameter.sub_(parameter.grad, alpha=run.lr(part))


def test_who_owns_the_update_and_never_asks_is_told():
    moved(double_run([Deaf()]))
    with pytest.raises(UsageError, match=r"E325.*'deaf' replaces `update`"):
        moved(double_run([Deaf()], lr_multipliers={FIRST: 0.5}))


# ── the suite ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def workload(**train: Any) -> WorkloadTable:
    given = {"name": "w", "model": {"use": "mlp"}, "data": {"use": "digits", "batch": 12}}
    return WorkloadTable.model_validate(given | {"train": {"epochs": 1, "lr": 0.1, **train}})


def test_a_suite_without_them_is_resolved_as_ever_and_one_with_them_says_them():
    plain, given = workload(), workload(lr_multipliers={"0.*": 0.5})
    assert "lr_multipliers" not in plain.settings()["train"]
    assert given.settings()["train"] == plain.settings()["train"] | {"lr_multipliers": {"0.*": 0.5}}
    assert TrainTable.model_validate(given.settings()["train"]) == given.train
    assert recipe_of(given).lr_multipliers == {"0.*": 0.5}
    assert workload(lr_multipliers={}).settings() == plain.settings()


@pytest.mark.parametrize("wrong", [{"0.*": 0}, {"0.*": -1.0}, {"0.*": "10 %"}, {"": 0.1}, {"a": {"b": 0.1}}, [0.1]])
def test_what_is_no_multiplier_is_a_mistake(wrong):
    with pytest.raises(ValueError, match="lr_multipliers"):
        workload(lr_multipliers=wrong)


def test_a_run_by_hand_refuses_a_pattern_that_fits_nothing():
    with pytest.raises(UsageError, match="E410"):
        double_run(lr_multipliers={"backbone.*": 0.1})
    assert set(dict(tiny_mlp().named_parameters())) == {"0.weight", "0.bias", "2.weight", "2.bias"}
