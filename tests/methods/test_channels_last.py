"""channels_last: another order in memory and the same numbers, in training and evaluation, and put back at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import CPU, TinyTransformer, assert_same_state, digits, double_run, make_run, state
from test_method_members import method_named
from torch import nn

from energybench.common.errors import UsageError
from energybench.train.data import Data, Resident
from energybench.train.method import Method
from energybench.trial.counting_layer import StepCounter

CHANNELS = 3


def channels_last() -> Any:
    return method_named("channels_last")


def images(*extent: int, count: int = 24) -> Data:
    random = torch.Generator().manual_seed(5)
    inputs = torch.randn(count, CHANNELS, *extent, generator=random, dtype=torch.float64)
    return Data(Resident(inputs, torch.randint(4, (count,), generator=random), CPU))


def flat() -> nn.Module:
    """A flatten behind a convolution reads the channels in their own order."""
    layers = [nn.Conv2d(CHANNELS, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 4)).double()


def solid() -> nn.Module:
    return nn.Sequential(nn.Conv3d(CHANNELS, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 27, 4)).double()


class Layouts(Method):
    """Keeps the memory format of what the model is given and of the weights, while it trains."""

    name = "layouts"

    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool]] = []

    def step(self, run, batch, inner):
        form = {4: torch.channels_last, 5: torch.channels_last_3d}[batch.inputs.dim()]
        weights = [p for p in run.model.parameters() if p.dim() == batch.inputs.dim()]
        inner(batch)
        ordered = [p.is_contiguous(memory_format=form) and p.grad.is_contiguous(memory_format=form) for p in weights]
        self.seen.append((batch.inputs.is_contiguous(memory_format=form), all(ordered)))


@pytest.mark.parametrize(("model", "extent"), [(flat, (8, 8)), (solid, (4, 4, 4))])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_plain_trainings_to_rounding_in_double_precision(model, extent, accumulate):
    layouts, method = Layouts(), channels_last()
    settings = {"model": model, "data": images(*extent), "epochs": 3, "accumulate": accumulate, "momentum": 0.9}
    run, plain = double_run([layouts, method], **settings), double_run(**settings)
    for each in (run, plain):
        each.train()
    assert layouts.seen == [(True, True)] * 9
    assert method.acted is True or model is solid  # of three dimensions torch's double kernel answers in planes
    for name, value in state(run.model).items():
        torch.testing.assert_close(value, state(plain.model)[name], rtol=1e-9, atol=1e-12)
    assert run.evaluate(images(*extent)) == pytest.approx(plain.evaluate(images(*extent)), rel=1e-9)


def test_evaluation_is_given_the_same_order():
    seen = []
    run = make_run([channels_last()], flat, images(8, 8))
    run.model.register_forward_pre_hook(lambda m, args: seen.append(args[0].stride()))
    run.evaluate(images(8, 8))
    assert set(seen) == {(CHANNELS * 64, 1, 8 * CHANNELS, CHANNELS)}


def test_a_tree_of_inputs_is_reordered_leaf_by_leaf_and_rows_are_left_alone():
    run = make_run([method := channels_last()], flat, images(8, 8))
    tree = {
        "image": torch.randn(2, 3, 4, 5),
        "video": torch.randn(2, 3, 4, 5, 6),
        "row": torch.randn(2, 7),
        "none": None,
    }
    prepared = method.prepare_inputs(run, tree)
    assert prepared["image"].stride() == (60, 1, 15, 3)
    assert prepared["video"].stride() == (360, 1, 90, 18, 3)
    assert prepared["row"] is tree["row"]
    assert prepared["none"] is None
    assert all(torch.equal(prepared[name], tree[name]) for name in ("image", "video", "row"))


def test_finish_puts_every_weight_back_in_its_order_with_its_numbers():
    run = make_run([channels_last()], flat, images(8, 8))
    run.train()
    trained = state(run.model)
    assert not run.model[0].weight.is_contiguous()
    run.finish()
    assert all(parameter.is_contiguous() for parameter in run.model.parameters())
    assert_same_state(state(run.model), trained)
    assert not any(module._forward_hooks for module in run.model.modules())


def test_it_says_that_it_acted_only_when_a_convolution_in_training_has_handed_the_order_on():
    class Undone(Method):
        name = "undone"

        def setup(self, run):  # after it, further out
            for parameter in run.model.parameters():
                parameter.data = parameter.data.contiguous()

        def prepare_inputs(self, run, inputs):
            return inputs.contiguous()

    run = make_run([Undone(), method := channels_last()], flat, images(8, 8))
    run.train()
    assert method.acted is False
    run = make_run([method := channels_last()], flat, images(8, 8))
    run.evaluate(images(8, 8))
    assert method.acted is False
    run.train()
    assert method.acted is True


def test_as_many_flops_are_counted_as_in_plain_training():
    counts = []
    for methods in ([channels_last()], []):
        layer = StepCounter(10**9)
        run = make_run(methods, counter=layer)
        run.train()
        counts.append(layer.result(run).counted_flop)
    assert counts[0] == counts[1]


def test_a_model_in_which_the_order_means_nothing_is_refused_in_words():
    with pytest.raises(UsageError, match="no layer of this model is a convolution of images"):
        double_run([channels_last()])
    with pytest.raises(UsageError, match="takes in one channel, of which there is no order"):
        make_run([channels_last()], TinyTransformer, digits())
