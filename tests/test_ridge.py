"""Ridge regression: its constants against autograd, its minimum against the gradient, its bounds against real runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from energybench.algorithms.gradsamp_bound import bounds
from energybench.train import discovery
from energybench.train.data import Data
from energybench.workloads.tasks.ridge import RIDGE, Ridge
from tests.support import digits, double_run, tiny_mlp, vectors

KIND: Any = discovery.load(discovery.sources()["gradsamp"])


SAMPLES = next(iter(vectors().in_order()))


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()


def ridge_run(methods: Any = (), **settings: Any) -> Any:
    plain = {"model": linear, "task": Ridge(), "batch": 100, "lr": 0.1, "momentum": 0.0}
    return double_run(methods, **plain | settings)


def mean_loss(run: Any, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """½ mean‖Wx + b − onehot‖² + RIDGE/2·‖θ‖², written out once more."""
    batch = SAMPLES
    outputs = functional_call(run.model, weights, (batch.inputs,))
    wanted = torch.eye(3, dtype=torch.float64)[batch.targets]
    squares = sum(value.square().sum() for value in weights.values())
    return (outputs - wanted).square().sum() / (2 * len(wanted)) + RIDGE / 2 * squares


def test_the_loss_is_the_one_written_and_its_output_gradient_is_autograds():
    run = ridge_run()
    batch = SAMPLES
    forward = run.forward(batch)
    assert forward.value.item() == pytest.approx(mean_loss(run, dict(run.model.named_parameters())).item())
    (gradient,) = torch.autograd.grad(forward.each.sum(), forward.outputs)
    assert torch.allclose(gradient, run.task.output_gradient(run, forward.outputs, batch))


def test_curvatures_are_the_extreme_eigenvalues_of_the_hessian_that_autograd_builds():
    run = ridge_run()
    weights = dict(run.model.named_parameters())
    blocks = hessian(lambda w: mean_loss(run, w))(weights)
    names, sizes = list(weights), [value.numel() for value in weights.values()]
    whole = torch.cat(
        [torch.cat([blocks[a][b].reshape(n, -1) for b in names], 1) for a, n in zip(names, sizes, strict=True)]
    )
    curvatures = torch.linalg.eigvalsh(whole.detach())
    known = run.task.convexity(run)
    assert known.strong_convexity == pytest.approx(curvatures[0].item(), rel=1e-9)
    assert known.smoothness == pytest.approx(curvatures[-1].item(), rel=1e-9)


def test_gradient_descent_ends_at_the_minimum_and_never_below():
    run = ridge_run(epochs=400)
    known = run.task.convexity(run)
    run.train()
    gaps = [point["loss"] - known.minimum for point in run.curve]
    assert min(gaps) > -1e-12
    assert gaps[-1] < 1e-9


def test_another_model_has_no_constants():
    run = ridge_run(model=lambda: tiny_mlp().double())
    assert run.task.convexity(run) is None


def sampled(seed: int = 0, epochs: int = 25, **settings: Any) -> dict[str, Any]:
    """What the method says of the theorem after a run."""
    parameters = {"skip": "random:0.3", "location": "zero", "epsilon": 1e-2} | settings.pop("parameters", {})
    method = discovery.build(KIND, "gradsamp", parameters)
    beside = [
        discovery.build(discovery.load(discovery.sources()[name]), name, {})
        for name in [settings.pop("beside", None)]
        if name
    ]
    run = ridge_run([method, *beside], seed=seed, epochs=epochs, **settings)
    run.train()
    return method.diagnostics()["theorem"]


def pictures() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_the_mean_over_runs_stays_under_the_corrected_bound():
    found = [sampled(seed) for seed in range(100)]
    found = [one for one in found if "bounded" in one]
    assert len(found) > 80
    draw_square = max(one["draw_square"] for one in found)
    known = ridge_run().task.convexity(ridge_run())
    gaps: dict[int, list[float]] = {}
    for one in found:
        for point in one["bounded"]:
            gaps.setdefault(point["epoch"], []).append(point["observed"])
    first = sum(one["bounded"][0]["observed"] for one in found) / len(found)
    highest = bounds(known, first, 0.1, 0.3, draw_square, 24)["corrected"]
    for epoch, values in gaps.items():
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)) / math.sqrt(len(values))
        assert mean - 4 * spread <= highest[epoch] * (1 + 1e-9)
    assert len(gaps) == 25


def test_the_record_holds_the_bounds_of_its_own_constants_over_the_real_epochs_alone():
    found = next(one for one in map(sampled, range(9)) if "bounded" in one)
    known = ridge_run().task.convexity(ridge_run())
    assert found["strong_convexity"] == pytest.approx(known.strong_convexity)
    start = found["bounded"][0]
    again = bounds(known, start["observed"], 0.1, 0.3, found["draw_square"], 24)
    assert [point["epoch"] for point in found["bounded"]] == sorted({p["epoch"] for p in found["bounded"]})
    assert len(found["bounded"]) < 25
    for point in found["bounded"]:
        assert point["printed"] == pytest.approx(again["printed"][point["epoch"]])
        assert point["corrected"] == pytest.approx(again["corrected"][point["epoch"]])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parameters": {"location": "median"}}, "draws have a mean"),
        ({"parameters": {"skip": "every:3"}}, "by one chance"),
        ({"parameters": {"min_real_between": 1}}, "by one chance"),
        ({"batch": 8}, "one step"),
        ({"momentum": 0.5}, "plain gradient descent"),
        ({"schedule": "cosine"}, "constant rate"),
        ({"beside": "with_replacement"}, "other methods"),
        ({"beside": "sgld"}, "other methods"),
        ({"data": Data(vectors().store, drop_last=True), "batch": 16}, "all samples as they are"),
        ({"data": digits(24, ["flip"]), "model": pictures, "lr": 0.01}, "all samples as they are"),
        ({"model": lambda: tiny_mlp().double()}, "does not know the curvature"),
        ({"lr": 5.0, "epochs": 3}, "2/L"),
    ],
)
def test_outside_what_the_theorem_speaks_of_there_is_a_reason_and_no_bound(change, reason):
    seeds = (sampled(seed, **{"epochs": 6, **change}) for seed in range(20))
    found = next(one for one in seeds if "no epoch was sampled" not in one["reason"])
    assert reason in found["reason"]
    assert "bounded" not in found
