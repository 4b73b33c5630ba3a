"""sgld: its drift is the gradient's, its noise has the step for a variance, and it comes to rest at the posterior."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support import CPU, double_run, make_run, state, vectors
from torch import nn

from energybench import Forward, Task
from energybench.common.errors import UsageError
from energybench.flops.work import Line, Work
from energybench.train import discovery
from energybench.train.data import Data, Resident

KIND: Any = discovery.load(discovery.sources()["sgld"])
SAMPLES = 24  # of `vectors`


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "sgld", parameters)


def wide() -> nn.Module:
    """One large weight, so that the law of its noise can be tested."""
    return nn.Sequential(nn.Linear(6, 4000), nn.Linear(4000, 3)).double()


def step_of(made: Any, model=wide, **settings: Any) -> tuple[Any, dict, dict, dict]:
    """(run, weights before, gradients, weights after) of one step."""
    run = double_run([made], model=model, **settings)
    batch = next(run.data.load([torch.arange(8)]))
    run.gradients(batch)
    gradients = {name: p.grad.clone() for name, p in run.model.named_parameters()}
    before = state(run.model)
    run.update("main")
    return run, before, gradients, state(run.model)


@pytest.mark.parametrize("width", [1e-4, 0.5])
def test_what_the_drift_leaves_over_is_normal_with_the_step_for_a_variance(width):
    _, before, gradients, after = step_of(method(step_size=width, prior=0.0))
    noise = torch.cat(
        [(after[name] - before[name] + width / 2 * SAMPLES * gradients[name]).flatten() for name in before]
    )
    assert stats.kstest(noise.numpy(), "norm", (0, math.sqrt(width))).pvalue > 1e-3
    assert noise.var().item() == pytest.approx(width, rel=4 * math.sqrt(2 / noise.numel()))


@given(lr=st.floats(1e-4, 1.0), decay=st.floats(0, 0.1))
def test_by_default_the_drift_is_plain_sgds_and_the_prior_its_decay(lr, decay):
    """Two runs whose noise is the same differ by what their drifts do; a step of no gradient has the noise alone."""
    _, before, gradients, after = step_of(method(), lambda: nn.Linear(6, 3).double(), lr=lr, decay=decay)
    noise = noise_of(lr)
    for name in before:
        drift = before[name] - lr * (gradients[name] + decay * before[name])
        torch.testing.assert_close(after[name], drift + noise[name], rtol=1e-6, atol=1e-6)


def noise_of(lr: float) -> dict[str, torch.Tensor]:
    run = double_run([method(prior=0.0)], model=lambda: nn.Linear(6, 3).double(), lr=lr)
    before = state(run.model)
    run.update("main")
    return {name: value - before[name] for name, value in state(run.model).items()}


@given(power=st.floats(0, 1), width=st.floats(1e-6, 1.0))
def test_a_step_of_ones_own_falls_as_its_power_says_and_is_the_noises_variance(power, width):
    made = method(step_size=width, power=power)
    run = double_run([made], epochs=2)
    seen = []
    for _ in range(5):
        seen.append(made.width(run, "main"))
        run.update("main")
    assert seen == pytest.approx([width * (1 + k) ** -power for k in range(5)])
    assert made.diagnostics()["step_first_and_last"] == pytest.approx([seen[0], seen[-1]])


def test_the_default_step_follows_the_recipes_schedule():
    made = method()
    run = double_run([made], schedule="cosine", epochs=4, lr=0.2)
    run.train()
    first, last = made.diagnostics()["step_first_and_last"]
    assert first == pytest.approx(2 * 0.2 / SAMPLES)
    assert last == pytest.approx(2 * 0.2 * (1 + math.cos(math.pi * 11 / 12)) / 2 / SAMPLES)


class Means(Task):
    """½·Σ_j (x − θ_j)²: every θ_j is a chain of its own, which samples the mean of the same numbers."""

    name = "means"

    def forward(self, run, batch):
        each = (batch.inputs - run.model.weight).square().sum(1) / 2
        return Forward(each.mean(), each, each)


@pytest.mark.parametrize(("prior", "share"), [(0.0, 0.2), (0.0, 1.0), (30.0, 0.4)])
def test_chains_come_to_rest_with_the_posteriors_mean_and_variance(prior, share):
    """θ ← θ − a(θ − m) + √ε·N with a = ε(N + prior)/2 has variance ε/(2a − a²): the posterior's over 1 − a/2."""
    chains, count = 3000, 20
    numbers = 2 + torch.randn(count, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    data = Data(Resident(numbers, torch.zeros(count, dtype=torch.long), CPU))

    def model():
        weights = nn.Linear(chains, 1, bias=False).double()
        nn.init.zeros_(weights.weight)
        return weights

    width = 2 * share / (count + prior)
    made = method(step_size=width, prior=prior)
    run = make_run([made], model, data, Means(), epochs=60, batch=count)
    run.train()
    found = run.model.weight.detach().flatten()
    mean, variance = numbers.sum().item() / (count + prior), 1 / (count + prior) / (1 - share / 2)
    assert abs(found.mean().item() - mean) < 4 * math.sqrt(variance / chains)
    assert found.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / chains))


def test_it_builds_no_optimizer_and_every_step_counts():
    run = double_run([method()], momentum=0.9)
    run.train()
    assert run.optimizers == {}
    steps = 2 * run.data.steps(8)
    assert (run.tally.forwards, run.tally.backwards, run.tally.updates) == (steps, steps, steps)
    work = Work((Line("forward", "a", "linear", 5.0),), epochs=2, samples=10)
    assert method().estimate(work) == work


def test_gradients_are_clipped_as_the_recipe_says():
    run, _, gradients, _ = step_of(method(), clip=1e-3)
    norm = torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm().item()
    assert torch.cat([g.flatten() for g in gradients.values()]).norm() > 1e-2
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_the_noise_belongs_to_the_seed_and_each_step_draws_another():
    def weights(seed: int) -> list[torch.Tensor]:
        run = double_run([method(step_size=1.0, prior=0.0)], seed=seed, model=lambda: nn.Linear(6, 3).double())
        found = [run.model.weight.detach().clone()]
        for _ in range(2):  # without a gradient, so that each step is its noise
            run.update("main")
            found.append(run.model.weight.detach().clone())
        return [b - a for a, b in pairwise(found)]

    first, second = weights(7)
    assert torch.equal(first, weights(7)[0])
    assert not torch.equal(first, weights(8)[0])
    assert not torch.equal(first, second)
    assert len(vectors()) == SAMPLES


@pytest.mark.parametrize(
    "wrong",
    [
        {"step_size": 0.0},
        {"step_size": -1.0},
        {"step_size": "slow"},
        {"power": 0.5},
        {"power": 1.5, "step_size": 1.0},
        {"power": -0.1, "step_size": 1.0},
        {"prior": -1.0},
        {"prior": "flat"},
    ],
)
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError):
        method(**wrong)
