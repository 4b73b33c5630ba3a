"""Models by name: what a recipe's settings change in them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from energybench.common.errors import UsageError
from energybench.common.torchvision_shim import import_torchvision
from energybench.flops.counter import Counter
from energybench.runner.tracing import trace_task
from energybench.train.batch import Batch
from energybench.train.data import Data, Resident
from energybench.train.recipe import Recipe
from energybench.workloads import models
from energybench.workloads.tasks.classification import Classification

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


# ── models that answer with more than logits, or do not know their sizes yet ─────────────────────────────────


@pytest.mark.parametrize(
    ("use", "side", "heads"), [("googlenet", 64, {"aux1", "aux2"}), ("inception_v3", 299, {"AuxLogits"})]
)
def test_auxiliary_heads_are_counted(use: str, side: int, heads: set[str]) -> None:
    model = models.build(use, (3, side, side), 5, {"init_weights": False}).train().to("meta")
    recipe, task = Recipe(epochs=1, batch=4), Classification()
    x, y = torch.zeros(4, 3, side, side, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    batch = Batch(x, y, torch.arange(4))
    lines = trace_task(task, model, recipe, batch, torch.device("cpu")).lines
    with Counter() as counter:
        task.forward(SimpleNamespace(model=model, recipe=recipe), batch).value.backward()
    assert sum(line.flop_in(4) for line in lines) == pytest.approx(counter.total, rel=1e-3)
    assert {line.module.partition(".")[0] for line in lines if line.phase != "forward"} >= heads


@pytest.mark.parametrize(("use", "weights"), [("GoogLeNetOutputs", (0.3, 0.3)), ("InceptionOutputs", (0.4,))])
def test_auxiliary_heads_are_trained_with_their_weight_and_do_not_answer(use: str, weights: tuple[float, ...]) -> None:
    outputs = getattr(import_torchvision().models, use)
    answers = [torch.randn(4, 5) for _ in (0, *weights)]
    y, cpu = torch.tensor([0, 1, 2, 3]), torch.device("cpu")
    run = SimpleNamespace(model=lambda x: outputs(*answers), recipe=Recipe(epochs=1, batch=4), device=cpu)
    found = Classification().forward(run, Batch(torch.rand(4, 3), y, torch.arange(4)))
    main, *others = [nn.functional.cross_entropy(each, y, reduction="none") for each in answers]
    expected = main + sum(w * loss for w, loss in zip(weights, others, strict=True))
    assert torch.allclose(found.each, expected)
    assert torch.allclose(found.value, expected.mean())
    assert found.outputs is answers[0]
    quality = Classification().evaluate(run, Data(Resident(torch.rand(4, 3), y, cpu)))
    assert quality["loss"] == pytest.approx(main.mean().item())


def test_an_answer_that_holds_no_logits_is_told_by_its_type() -> None:
    with pytest.raises(TypeError, match=r"returns a dict; classification needs logits"):
        Classification().forward(
            SimpleNamespace(model=lambda x: {"logits": x}, recipe=Recipe(epochs=1, batch=4)),
            Batch(torch.rand(4, 3), torch.zeros(4, dtype=torch.long), torch.arange(4)),
        )


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))


def test_lazy_layers_get_their_sizes_from_the_data() -> None:
    torch.manual_seed(3)
    model = lazy()
    models.fix_sizes(model, "mine", (1, 8, 8))
    assert model[3].in_features == 4 * 6 * 6
    assert model.training
    assert torch.equal(model[1].running_mean, torch.zeros(4))  # zeros taught it nothing
    torch.manual_seed(3)
    again = lazy()
    models.fix_sizes(again, "mine", (1, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_lazy_layers_that_cannot_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"E401.*lazy layers.*shape \(2, 8\)"):
        models.fix_sizes(lazy(), "mine", (8,))

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.LazyLinear(3), nn.LazyLinear(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    with pytest.raises(UsageError, match=r"never calls: spare"):
        models.fix_sizes(Unused(), "mine", (8,))
