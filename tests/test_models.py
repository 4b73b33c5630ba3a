"""Models by name: what a recipe's settings change in them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from energybench.common.errors import UsageError
from energybench.flops.counter import Counter
from energybench.runner.tracing import trace_task
from energybench.train.data import Data, Resident
from energybench.train.recipe import Recipe
from energybench.workloads import models
from energybench.workloads.classification import Classification

SHAPE, CLASSES = (3, 32, 32), 10
HIDDEN = (nn.ReLU, nn.GELU, nn.SiLU)


def built(use: str, activation: str | None, **settings: Any) -> nn.Module:
    torch.manual_seed(3)
    model = models.build(use, SHAPE, CLASSES, settings)
    if activation:
        models.activate(model, use, activation)
    return model


@pytest.mark.parametrize(("use", "count"), [("cnn", 2), ("resnet18", 9), ("vit_tiny", 12), ("mobilenet_v2", 35)])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_every_hidden_activation_becomes_the_recipes(use: str, count: int, activation: str) -> None:
    model = built(use, activation)
    kinds = [type(m) for m in model.modules() if isinstance(m, (*models.HIDDEN, nn.Sigmoid))]
    assert kinds == [models.ACTIVATIONS[activation]] * count


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_a_network_between_linear_layers_computes_that_function(activation: str) -> None:
    model = built("mlp", activation, hidden=(5,)).double()
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    first, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    assert torch.equal(model(x), last(getattr(torch, activation)(first(x.flatten(1)))))


def test_activations_draw_nothing_and_leave_the_weights_alone() -> None:
    model = built("resnet18", None)
    expected = torch.get_rng_state()
    changed = copy.deepcopy(model)
    models.activate(changed, "resnet18", "tanh")
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), changed.state_dict().values(), strict=True)
    )


def test_a_gate_stays_a_gate() -> None:
    model = built("efficientnet_b0", "tanh")
    gates = [m for m in model.modules() if isinstance(m, nn.Sigmoid)]
    assert len(gates) == 16  # one per squeeze-and-excitation block: MBConv 1, 2, 2, 3, 3, 4, 1
    assert not any(isinstance(m, HIDDEN) for m in model.modules())


def test_a_model_without_activation_modules_is_told() -> None:
    with pytest.raises(UsageError, match="has no activation module"):
        models.activate(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "line", "tanh")


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_the_ledger_of_such_a_model_still_equals_the_counter(activation: str) -> None:
    data = Data(Resident(torch.rand(4, *SHAPE), torch.zeros(4, dtype=torch.long), torch.device("cpu")))
    batch = next(data.in_order(4))
    model = built("cnn", activation)
    lines = trace_task(
        Classification(), copy.deepcopy(model), Recipe(epochs=1, batch=4), batch, torch.device("cpu")
    ).lines
    with Counter() as counter:
        nn.functional.cross_entropy(model(batch.inputs), batch.targets).backward()
    assert sum(line.flop for line in lines) * 4 == pytest.approx(counter.total, rel=1e-3)
    moving = {line.op for line in lines if line.phase == "forward"}
    assert {"conv", "linear"} <= moving
