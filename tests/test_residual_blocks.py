"""Residual blocks: which modules of known models are some, what is left of one that is dropped, and how f is scaled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import CPU, MODELS, StackedTransformer, assert_same_state, make_run, state
from torch import Tensor, nn

from energybench.algorithms.residual_blocks import Droppable, find
from energybench.train.data import Data, Resident
from energybench.workloads import models
from energybench.workloads.models.segmentation import Block
from energybench.workloads.models.text import gpt2_classifier

SHAPE, CLASSES = (1, 8, 8), 10


def built(use: str, **parameters: Any) -> Any:
    return lambda: models.build(use, SHAPE, CLASSES, dict(parameters))


def names(model: Any, **settings: Any) -> list[str]:
    return [block.name for block in find(make_run([], model, **settings))]


class Stack(nn.Module):
    """Layers one after another on rows of four pixels."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.embed, self.layers, self.head = nn.Linear(4, 16), nn.Sequential(*layers), nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(images.reshape(len(images), 16, 4))).mean(1))


class Sum(nn.Module):
    """x + f(x); with `last`, what follows that."""

    def __init__(self, branch: nn.Module, last: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.last = branch, last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.branch(x))


# ── which they are ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_of_a_resnet_they_are_the_blocks_without_a_projection(shortcut):
    projecting = {"blocks.5", "blocks.10"}  # where the width doubles
    expected = [f"blocks.{n}" for n in range(15) if f"blocks.{n}" not in projecting]
    found = find(make_run([], built("resnet32", shortcut=shortcut)))
    assert [block.name for block in found] == expected
    assert [block.end for block in found] == [f"{name}.body.4" for name in expected]  # the last normalisation


def test_of_torchvisions_resnet_too():
    expected = ["layer1.0", "layer1.1", *(f"layer{n}.1" for n in (2, 3, 4))]
    assert names(built("resnet18_groupnorm")) == expected


@pytest.mark.parametrize("norm_first", [True, False])
def test_of_torchs_transformer_they_are_its_layers_wherever_they_normalise(norm_first):
    layers = [
        nn.TransformerEncoderLayer(16, 2, 24, 0.1, batch_first=True, norm_first=norm_first, device=CPU)
        for _ in range(2)
    ]
    assert names(lambda: Stack(*layers)) == ["layers.0", "layers.1"]


def test_of_a_vision_transformer_a_segmenter_and_gpt2_they_are_the_blocks():
    small = built("vit_tiny", layers=2, heads=2, width=16)
    assert names(small) == [f"encoder.layers.encoder_layer_{n}" for n in range(2)]
    assert names(lambda: Stack(Block(16, 2, 0.0, 0.0), Block(16, 2, 0.0, 0.0))) == ["layers.0", "layers.1"]
    tokens = torch.arange(40).reshape(4, 10) % 7
    text = Data(Resident(tokens, torch.tensor([0, 1, 2, 0]), CPU))
    assert names(lambda: gpt2_classifier((10,), 3, 7, 2, 2, 8), data=text) == ["transformer.h.0", "transformer.h.1"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_a_module_for_each_sum_has_none(name):
    assert names(MODELS[name]) == []


def test_what_only_keeps_the_shape_is_none():
    layers = [nn.Linear(16, 16), nn.LayerNorm(16), nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)), nn.Identity()]
    assert names(lambda: Stack(*layers)) == []


class Overwrites(Sum):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.branch(x.clone()))


class WithAttention(Sum):
    """Returns something beside x, which nobody knows once it is dropped."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x.mean()


def test_what_changes_its_input_or_returns_more_than_its_output_is_none():
    assert names(lambda: Stack(Overwrites(nn.Linear(16, 16)))) == []

    class Takes(Stack):
        def forward(self, images: Tensor) -> Tensor:
            x, _ = self.layers(self.embed(images.reshape(len(images), 16, 4)))
            return self.head(x.mean(1))

    assert names(lambda: Takes(WithAttention(nn.Linear(16, 16)))) == []


def test_of_nested_ones_the_innermost_count():
    outer = nn.Sequential(Sum(nn.Linear(16, 16)), Sum(nn.Linear(16, 16)))
    assert names(lambda: Stack(outer)) == ["layers.0.0", "layers.0.1"]


def test_a_module_that_is_called_twice_must_be_one_in_both_calls():
    """σ a ReLU, which leaves what it is given alone behind another one, and only there."""
    shared = Sum(nn.Linear(16, 16), nn.ReLU())
    assert names(lambda: Stack(nn.ReLU(), shared, shared)) == ["layers.1"]
    assert names(lambda: Stack(nn.ReLU(), shared, nn.Linear(16, 16), shared)) == []


def test_the_search_leaves_model_mode_and_random_numbers_as_they_were():
    run = make_run([], built("resnet32"))
    run.model.train()
    run.model.blocks[3].eval()
    before, modes = state(run.model), [module.training for module in run.model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    find(run)
    assert torch.equal(torch.rand(3), expected)
    assert_same_state(state(run.model), before)
    assert [module.training for module in run.model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.model.modules())
    assert all(parameter.grad is None for parameter in run.model.parameters())


# ── dropped and scaled ────────────────────────────────────────────────────────────────────────────────────────────


def droppable(model: Any) -> tuple[nn.Module, Droppable, Tensor]:
    run = make_run([], model)
    return run.model, Droppable(run.model, find(run)), next(iter(run.data.load([torch.arange(6)]))).inputs


def test_without_a_block_the_rest_is_computed_as_if_it_were_an_identity():
    model, parts, images = droppable(StackedTransformer)
    without = copy.deepcopy(model)
    without.layers[1] = nn.Identity()
    parts.blocks[1].kept = False
    loss, expected = model(images).square().sum(), without(images).square().sum()
    loss.backward()
    expected.backward()
    assert torch.equal(loss, expected)
    assert all(p.grad is None for p in model.layers[1].parameters())
    for name, parameter in without.named_parameters():
        assert torch.equal(parameter.grad, model.get_parameter(name).grad)
    model.eval()
    assert torch.equal(model(images), copy.deepcopy(model)(images))
    assert not torch.equal(model(images), without.eval()(images))  # it is pruned in evaluation by another word


def test_a_block_with_one_end_is_scaled_inside_its_relu():
    """σ(x + s·f(x)), f from the block's own parts."""
    model, parts, images = droppable(built("resnet32"))
    block, scale = parts.blocks[2], 1.7
    module = model.blocks[2]
    x = model.stem(images)
    plain = copy.deepcopy(module)
    block.scale = scale
    expected = torch.relu(x + scale * plain.body(x))
    torch.testing.assert_close(module(x), expected)
    mixed = x + scale * (torch.relu(x + plain.body(x)) - x)
    assert not torch.allclose(mixed, expected)


def test_a_block_with_several_ends_is_scaled_as_a_whole():
    model, parts, images = droppable(StackedTransformer)
    x = model.patch(images).flatten(2).transpose(1, 2)
    y = model.layers[0](x)
    parts.blocks[0].scale = 2.5
    torch.testing.assert_close(model.layers[0](x), x + 2.5 * (y - x))


def test_folded_weights_compute_what_was_scaled_in_evaluation():
    model, parts, images = droppable(built("resnet32"))
    for _ in range(3):
        model(images)
    model.eval()
    for number, block in enumerate(parts.blocks):
        block.scale_in_evaluation = 1 - 0.05 * number
    scaled = model(images)
    parts.restore()
    plain = model(images)
    parts.fold()
    torch.testing.assert_close(model(images), scaled)
    assert not torch.allclose(plain, scaled)


@pytest.mark.parametrize("model", [StackedTransformer, built("resnet32")], ids=["transformer", "resnet"])
def test_restored_it_is_the_model_that_it_was(model):
    run = make_run([], model)
    kinds, keys = ([f(m) for m in run.model.modules()] for f in (type, lambda m: vars(m).keys()))
    first = Droppable(run.model, find(run))
    second = Droppable(run.model, find(run))  # of another method
    assert [type(m) for m in run.model.modules()] != kinds
    assert all(isinstance(m, kind) for m, kind in zip(run.model.modules(), kinds, strict=True))
    second.restore()
    first.restore()
    assert [type(m) for m in run.model.modules()] == kinds
    assert [vars(m).keys() for m in run.model.modules()] == keys
    assert not any(module._forward_hooks for module in run.model.modules())


def test_a_block_that_returns_a_tuple_returns_one_when_it_is_dropped():
    class Pairs(Sum):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return super().forward(x), None

    class Takes(Stack):
        def forward(self, images: Tensor) -> Tensor:
            x = self.embed(images.reshape(len(images), 16, 4))
            for layer in self.layers:
                x, _ = layer(x)
            return self.head(x.mean(1))

    model, parts, images = droppable(lambda: Takes(Pairs(nn.Linear(16, 16)), Pairs(nn.Linear(16, 16))))
    without = Takes()
    without.embed, without.head = model.embed, model.head
    for block in parts.blocks:
        block.kept = False
    assert torch.equal(model(images), without(images))
