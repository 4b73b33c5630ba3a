"""The papers' own counting rules: every figure they print, to all its digits, and closed forms far beyond them."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import pickle
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from torch import nn

from energybench.cli import app
from energybench.common.errors import UsageError
from energybench.common.torchvision_shim import import_torchvision
from energybench.papers import cells, page, published_tables, ssprop_tables
from energybench.papers.counting_rules import (
    BackwardFlop,
    BadClaim,
    calflops_forward,
    drop_rate_lower_bound,
    gradsamp_skips,
    gradsamp_total,
    neq_ceiling,
    neq_saved,
    neq_unfrozen,
    presampling_gate,
    ssprop_backward,
    ssprop_total,
    thop_forward,
)
from energybench.workloads import models

ROOT = Path(__file__).resolve().parents[2]
PHOTO, CIFAR, MNIST = (3, 224, 224), (3, 32, 32), (1, 28, 28)
PAPER = [name for name, target in models.MODELS.items() if ".models.paper:" in target]


def shipped(use, shape=CIFAR, classes=10, **parameters):
    with torch.device("meta"):
        return models.build(use, shape, classes, parameters)


# ── backward with channels left out: what is printed ──────────────────────────────────────────────────────────

TABLE4 = [
    (MNIST, "resnet18", "234.10", "140.79"),
    (MNIST, "resnet50", "540.06", "325.85"),
    (CIFAR, "resnet18", "285.32", "171.61"),
    (CIFAR, "resnet50", "669.75", "404.18"),
]


@pytest.mark.parametrize(("shape", "use", "dense", "mean"), TABLE4)
def test_every_figure_of_ssprops_table_4(shape, use, dense, mean):
    found = ssprop_backward(shipped(use, shape, stem="small"), (128, *shape), drop=0.8)
    assert (f"{found.dense / 1e9:.2f}", f"{found.mean / 1e9:.2f}") == (dense, mean)


def test_its_code_keeps_whole_channels_so_its_true_figure_is_170_90():
    found = ssprop_backward(shipped("resnet18", stem="small"), (128, *CIFAR), drop=0.8, kept="integer")
    assert f"{found.mean / 1e9:.2f}" == "170.90"


@pytest.mark.parametrize(("together", "trained"), [(60_000, 48_000), (50_000, 40_000)])
def test_validation_images_make_its_totals_a_quarter_too_large(together, trained):
    printed, run = (ssprop_total(171.61e9, images=n, batch=128, epochs=50) for n in (together, trained))
    assert printed / run == pytest.approx(1.25, rel=1e-15)
    assert printed == pytest.approx(171.61e9 * 50 * together / 128, rel=1e-15)


def test_a_run_has_whole_iterations_and_the_paper_has_not():
    run = {"images": 40_000, "batch": 128, "epochs": 3}
    assert ssprop_total(10, **run) == 10 * 3 * 312.5
    assert ssprop_total(10, **run, fractional=False) == 10 * 3 * 313
    three = BackwardFlop(4.0, 2.0, 3.0)
    assert ssprop_total(three, **run, fractional=False) == (4 * 939, 2 * 939, 3 * 939)


# ── and what is not ───────────────────────────────────────────────────────────────────────────────────────────


def test_one_convolution_by_hand():
    conv = nn.Conv2d(6, 10, (3, 5), stride=2, padding=1, groups=2)
    # 11×9 → 6×4; 4 samples: M = 96; Cin = 3 a group; K² = 15
    m, each = 4 * 6 * 4, 4 * 3 * 15
    found = ssprop_backward(conv, (4, 6, 11, 9), drop=0.25)
    assert found.dense == m * each * 10
    assert found.sparse == m * each * 7.5 + (m - 1) * 10
    assert found.mean == (found.dense + found.sparse) / 2
    whole = ssprop_backward(conv, (4, 6, 11, 9), drop=0.25, kept="integer")
    assert whole == (found.dense, m * each * 7 + (m - 1) * 10, (found.dense + whole.sparse) / 2)
    printed = ssprop_backward(conv, (4, 6, 11, 9), drop=0.25, bias_term=True)
    assert (printed.dense, printed.sparse) == (m * (each + 1) * 10, m * (each + 1) * 7.5 + (m - 1) * 10)


def test_batchnorm_counts_by_its_elements_and_channels_in_both():
    norm = ssprop_backward(nn.BatchNorm2d(5), (2, 5, 3, 7), drop=0.5)
    assert norm == (12 * 2 * 5 * 3 * 7 + 10 * 5,) * 3
    assert ssprop_backward(nn.BatchNorm1d(5), (8, 5), drop=0.5).dense == 12 * 8 * 5 + 10 * 5


def test_nothing_else_counts():
    rest = nn.Sequential(
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(3, 4, 2),
        nn.Dropout(0.5),
        nn.GroupNorm(2, 4),
        nn.Flatten(2),
        nn.Conv1d(4, 8, 3),
        nn.Flatten(),
        nn.Linear(8 * 79, 10),
        nn.Softmax(1),
    )
    assert ssprop_backward(rest, (2, 3, 16, 16), drop=0.8) == (0, 0, 0)


@pytest.mark.parametrize("coefficient", [2, 4])
def test_dropout_counts_when_it_is_asked_for(coefficient):
    conv = nn.Conv2d(3, 8, 3)
    with_dropout = nn.Sequential(conv, nn.Dropout(0.2), nn.Dropout(0.0), nn.Dropout2d(0.1))
    without = ssprop_backward(with_dropout, (2, 3, 8, 8), drop=0.8)
    assert without == ssprop_backward(conv, (2, 3, 8, 8), drop=0.8)
    found = ssprop_backward(with_dropout, (2, 3, 8, 8), drop=0.8, dropout_coefficient=coefficient)
    more = coefficient * 2 * (2 * 8 * 6 * 6)  # two layers; a Dropout of 0 is none
    assert found == tuple(flop + more for flop in without)


def test_table_6_counts_four_for_each_dropout_behind_a_batchnorm():
    dropped = ssprop_tables.with_dropouts("resnet26", CIFAR, {})
    without, found = (ssprop_backward(dropped, (128, *CIFAR), drop=0.8, dropout_coefficient=c).dense for c in (None, 4))
    assert without == ssprop_backward(shipped("resnet26"), (128, *CIFAR), drop=0.8).dense
    # BatchNorms of each width: stem and two a block, one more in the shortcut where the width grows
    norms = {64: (1 + 4, 32), 128: (6 + 1, 16), 256: (10 + 1, 8), 512: (4 + 1, 4)}
    assert found - without == sum(4 * 128 * width * count * side**2 for width, (count, side) in norms.items())


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    conv = nn.Conv2d(
        groups * draw(st.integers(1, 4)),
        groups * draw(st.integers(1, 8)),
        kernel,
        stride=draw(st.integers(1, 3)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        device="meta",
    )
    shape = (draw(st.integers(1, 5)), conv.in_channels, draw(st.integers(8, 12)), draw(st.integers(8, 12)))
    return conv, shape


drops = st.integers(0, 99).map(lambda percent: percent / 100)


@given(convolutions(), drops)
def test_any_convolution_and_any_drop_rate(pair, drop):
    conv, shape = pair
    y = conv(torch.empty(shape, device="meta"))
    m, channels = y.numel() // conv.out_channels, conv.out_channels
    each = 4 * conv.in_channels // conv.groups * conv.kernel_size[0] * conv.kernel_size[1]
    share = 1 - Fraction(round(100 * drop), 100)
    found = ssprop_backward(conv, shape, drop=drop)
    assert found.dense == m * each * channels
    assert found.sparse == float(m * each * share * channels + (m - 1) * channels)
    assert found.mean == pytest.approx((found.dense + found.sparse) / 2, rel=1e-15)
    whole = ssprop_backward(conv, shape, drop=drop, kept="integer")
    left = max(int(share * channels), 1)
    assert whole.sparse == m * each * left + (m - 1) * channels


@given(convolutions())
def test_dropping_nothing_costs_the_selection_alone(pair):
    conv, shape = pair
    m = conv(torch.empty(shape, device="meta")).numel() // conv.out_channels
    for kept in ("exact", "integer"):
        found = ssprop_backward(conv, shape, drop=0, kept=kept)
        assert found.sparse == found.dense + (m - 1) * conv.out_channels


@given(convolutions(), st.integers(2, 5), drops)
def test_dense_is_linear_in_the_batch_and_sparse_but_for_the_selection(pair, times, drop):
    conv, (batch, *rest) = pair
    one, more = (ssprop_backward(conv, (n * batch, *rest), drop=drop) for n in (1, times))
    assert more.dense == times * one.dense
    assert more.sparse - times * one.sparse == pytest.approx((times - 1) * conv.out_channels, abs=1e-6 * more.sparse)


@given(convolutions())
def test_at_the_lower_bound_a_sparse_backward_is_one_addition_a_channel_cheaper_and_below_it_breaks_even(pair):
    conv, shape = pair
    m = conv(torch.empty(shape, device="meta")).numel() // conv.out_channels
    bound = drop_rate_lower_bound(conv)
    assert bound == 1 / (4 * math.prod(conv.weight.shape[1:]) + 1)
    at = ssprop_backward(conv, shape, drop=bound, bias_term=True)
    assert at.dense - at.sparse == pytest.approx(conv.out_channels, abs=1e-9 * at.dense)
    even = ssprop_backward(conv, shape, drop=bound * (1 - 1 / m), bias_term=True)
    assert even.sparse == pytest.approx(even.dense, rel=1e-12)


@pytest.mark.parametrize(
    ("channels", "drop", "left"), [(100, 0.29, 71), (64, 0.8, 12), (10, 0.99, 1), (1, 0.5, 1), (100, 0.43, 57)]
)
def test_kept_channels_are_counted_in_exact_decimals(channels, drop, left):
    found = ssprop_backward(nn.Conv2d(1, channels, 1), (1, 1, 1, 1), drop=drop, kept="integer")
    assert found.sparse == 4 * left  # M = 1: nothing to select by


def test_four_times_the_pixels_are_four_times_the_convolutions():
    small, large = (shipped("resnet18", (3, side, side), stem="small") for side in (32, 64))
    norms = 10 * sum(n.num_features for n in small.modules() if isinstance(n, nn.BatchNorm2d))
    at_32, at_64 = (ssprop_backward(m, (32, 3, side, side), drop=0.8).dense for m, side in ((small, 32), (large, 64)))
    assert at_64 - norms == 4 * (at_32 - norms)
    photo = ssprop_backward(shipped("resnet18", PHOTO, stem="small"), (32, *PHOTO), drop=0.8).dense
    assert photo - norms == 49 * (at_32 - norms)


def test_a_shared_convolution_counts_at_each_call():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    once = ssprop_backward(conv, (2, 4, 5, 5), drop=0.5)
    assert ssprop_backward(nn.Sequential(conv, nn.ReLU(), conv), (2, 4, 5, 5), drop=0.5) == tuple(2 * n for n in once)


def test_a_frozen_convolution_and_the_first_layers_dx_count_as_in_the_paper():
    conv = nn.Conv2d(3, 4, 3)
    free = ssprop_backward(conv, (2, 3, 8, 8), drop=0.5)
    assert ssprop_backward(conv.requires_grad_(False), (2, 3, 8, 8), drop=0.5) == free


# ── models are left alone ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_run_moved_or_changed(training):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)).train(training)
    ran = []
    model.register_forward_hook(lambda module, *_: ran.append(module))
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for rule in (calflops_forward, thop_forward, lambda *given: ssprop_backward(*given, drop=0.5)):
        rule(model, (2, 3, 8, 8))
    assert model not in ran
    assert [m.training for m in model.modules()] == [training] * 4
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert not [part for part in model for _ in part._forward_hooks]
    assert all(p.device.type == "cpu" and p.grad is None for p in model.parameters())


def test_the_convention_does_not_depend_on_the_models_mode():
    model = shipped("resnet18", stem="small")
    trained = (ssprop_backward(model.train(), (4, *CIFAR), drop=0.8), calflops_forward(model.train(), (1, *CIFAR)))
    assert trained == (ssprop_backward(model.eval(), (4, *CIFAR), drop=0.8), calflops_forward(model, (1, *CIFAR)))


def test_one_sample_is_enough_where_batchnorm_sees_one_pixel():
    model = nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4))
    assert ssprop_backward(model, (1, 3, 4, 4), drop=0.5).dense == 4 * 3 * 16 * 4 + 12 * 4 + 10 * 4


def test_models_that_start_with_tokens_or_need_numbers_are_no_obstacle():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x) if x.sum().item() >= 0 else x

    tokens = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 5))
    assert calflops_forward(tokens, (2, 7)) == 2 * 2 * 7 * 6 * 5
    assert calflops_forward(Branches(), (2, 4)) == 2 * 2 * 4 * 3
    assert calflops_forward(nn.Linear(4, 3).half(), (2, 4)) == 2 * 2 * 4 * 3


# ── calflops ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_gradsamps_resnet50_and_its_baseline():
    forward = calflops_forward(shipped("resnet50_head4096", PHOTO), (1, *PHOTO))
    assert forward == 8_223_875_584
    assert isinstance(forward, int)
    total = gradsamp_total(forward, images=50_000, kept_epochs=200)
    assert total == 3 * forward * 50_000 * 200
    assert f"{total / 1e12:.3f}" == "246716.268"


class Written(nn.Module):
    """Whatever expression a test writes."""

    def __init__(self, expression):
        super().__init__()
        self.expression = expression

    def forward(self, x):
        return self.expression(x)


N = 2 * 3 * 8 * 8  # elements of the input below


@pytest.mark.parametrize(
    ("part", "flop"),
    [
        (nn.Conv2d(3, 4, 3, bias=False), 2 * (2 * 36) * 4 * 27),
        (nn.Conv2d(3, 4, 3), 2 * (2 * 36) * 4 * 27 + 2 * 4 * 36),
        (nn.Conv2d(3, 6, 3, groups=3, padding="same"), 2 * (2 * 64) * 6 * 9 + 2 * 6 * 64),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), 2 * N * 4 * 4 + 2 * 4 * 16 * 16),
        (nn.Linear(8, 5), 2 * N * 5),
        (nn.BatchNorm2d(3), 2 * N),
        (nn.BatchNorm2d(3, affine=False), N),
        (nn.LayerNorm(8), 5 * N),
        (nn.LayerNorm(8, elementwise_affine=False), 4 * N),
        (nn.GroupNorm(3, 3), 5 * N),
        (nn.InstanceNorm2d(3), 4 * N),
        (nn.ReLU(), N),
        (nn.ReLU(inplace=True), N),
        (nn.LeakyReLU(), N),
        (nn.SiLU(), N),
        (nn.ReLU6(), 0),  # torch computes it as a hardtanh
        (nn.GELU(), N),
        (nn.Softmax(-1), N),
        (nn.MaxPool2d(2), N),
        (nn.AvgPool2d(2), N),
        (nn.AdaptiveAvgPool2d(1), N),
        (nn.AdaptiveMaxPool2d(2, return_indices=True), N),
        (nn.Dropout(0.5), 0),
        (nn.Sigmoid(), 0),
        (nn.Flatten(), 0),
        (Written(lambda x: x @ x), 0),
        (Written(lambda x: torch.matmul(x, x)), 2 * N * 8),
        (Written(lambda x: x.matmul(x)), 2 * N * 8),
        (Written(lambda x: torch.bmm(x[0], x[1])), 2 * N * 8 / 2),
        (Written(lambda x: torch.einsum("bcij,bckj->bcik", x, x)), 2 * N * 8),
        (Written(lambda x: torch.einsum("...ij,...kj->...ik", x, x)), 2 * N * 8),
        (Written(lambda x: x + x * x), 0),
        (Written(lambda x: F.scaled_dot_product_attention(x, x, x)), 0),
        (Written(lambda x: F.relu(input=x)), N),
        (Written(lambda x: x.relu()), 0),
        (Written(lambda x: F.conv2d(input=x, weight=x[:, :, :3, :3])), 2 * (2 * 36) * 2 * 27),
    ],
    ids=lambda value: re.sub(r"\s+", " ", str(value))[:40],
)
def test_what_calflops_sees_of_each_operation(part, flop):
    assert calflops_forward(part, (2, 3, 8, 8)) == flop


def test_residual_additions_are_free():
    block = import_torchvision().models.resnet.BasicBlock(8, 8)
    each = 2 * 8 * 8 * 9 + 2 * 8 + 8  # per pixel: convolution, BatchNorm, ReLU
    assert calflops_forward(block, (1, 8, 6, 6)) == 2 * 36 * each


@pytest.mark.parametrize("shows_weights", [True, False])
def test_attention_shows_its_projections_and_hides_a_fused_product(shows_weights):
    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.inner(x, x, x, need_weights=shows_weights)

    tokens, pairs = 2 * 5, 2 * 5 * 5
    projections = 2 * tokens * (16 * 48 + 16 * 16)
    products = 2 * (2 * pairs * 16) + 4 * pairs  # two products by name, a softmax in each of 4 heads
    assert calflops_forward(SelfAttention(), (2, 5, 16)) == projections + shows_weights * products


def test_microsofts_swin_is_torchvisions_without_its_products_of_attention():
    ours, theirs = (calflops_forward(shipped(use, PHOTO), (1, *PHOTO)) for use in ("swin_tiny", "swin_t"))
    stages = ((56**2, 96, 2), (28**2, 192, 2), (14**2, 384, 6), (7**2, 768, 2))
    assert theirs - ours == sum(depth * 2 * 2 * pixels * 49 * width for pixels, width, depth in stages)


def test_the_mixer_by_hand():
    patches, width, tokens, channels, layers, classes = 196, 512, 4 * 196, 256, 12, 10
    layer = (
        2 * 5 * patches * width  # two LayerNorms
        + 2 * 2 * patches * tokens * width
        + (tokens + patches) * width
        + tokens * width  # Conv1d with biases, GELU
        + 2 * 2 * patches * width * channels
        + patches * channels  # Linear without, GELU
    )
    head = 5 * patches * width + 2 * width * classes
    by_hand = 2 * patches * 3 * 16**2 * width + layers * layer + head
    assert calflops_forward(shipped("mixer", PHOTO), (1, *PHOTO)) == by_hand


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
def test_calflops_is_linear_in_the_batch(batch, width, kernel):
    model = nn.Sequential(nn.Conv2d(2, width, kernel), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    one = calflops_forward(model, (1, 2, 6, 6))
    assert calflops_forward(model, (batch, 2, 6, 6)) == batch * one


def test_nothing_of_torch_stays_replaced_whatever_happens():
    names = [(F, "linear"), (F, "relu"), (F, "max_pool2d"), (torch, "matmul"), (torch.Tensor, "matmul")]
    before = [getattr(owner, name) for owner, name in names]
    calflops_forward(nn.Linear(2, 2), (1, 2))
    with pytest.raises(BadClaim):
        calflops_forward(nn.Linear(2, 2), (1, 3))
    assert all(getattr(owner, name) is was for (owner, name), was in zip(names, before, strict=True))
    assert "matmul" not in vars(torch.Tensor)


@given(st.integers(0, 10**12), st.integers(1, 10**7), st.integers(0, 500))
def test_a_total_is_three_forwards_for_every_image_of_every_kept_epoch(forward, images, kept):
    assert gradsamp_total(forward, images=images, kept_epochs=kept) == 3 * forward * images * kept


# ── epochs left out ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_literal_rules():
    assert gradsamp_skips("every:5", 23) == {5, 10, 15, 20}
    assert gradsamp_skips("every:2", 5) == {2, 4}
    assert gradsamp_skips("late-every:5", 200) == set(range(105, 201, 5))
    assert gradsamp_skips("late-every:2", 5) == {4}
    assert gradsamp_skips("late-every:3", 5) == {3}
    assert gradsamp_skips("every:10", 9) == set()
    assert [gradsamp_skips("random:0.5", epochs) for epochs in (0, 1)] == [set(), set()]


TABLE2 = [
    ("every:5", 167),
    ("every:10", 183),
    ("random:0.2", 176),
    ("random:0.5", 135),
    ("random:0.7", 119),
    ("late-every:5", 190),
    ("late-every:10", 195),
    ("late-random:0.2", 190),
    ("late-random:0.5", 175),
    ("late-random:0.7", 165),
]


@pytest.mark.parametrize(("strategy", "kept"), TABLE2)
@pytest.mark.parametrize("seed", [0, 7])
def test_the_preset_pays_for_the_epochs_that_table_2_pays_for(strategy, kept, seed):
    skipped = gradsamp_skips(strategy, 200, preset="table2", seed=seed)
    assert 200 - len(skipped) == kept
    assert min(skipped) >= (101 if strategy.startswith("late") else 2)
    assert max(skipped) <= 200


def test_the_starts_that_fit_table_2_are_few():
    def starts(kind, five, ten):
        return {
            first
            for first in range(2, 201)
            if len(gradsamp_skips(f"{kind}:5", 200, start_epoch=first)) == five
            and len(gradsamp_skips(f"{kind}:10", 200, start_epoch=first)) == ten
        }

    assert starts("every", 33, 17) == set(range(36, 41))
    assert starts("late-every", 10, 5) == set(range(151, 156))


@given(st.integers(2, 40), st.integers(0, 400))
def test_a_period_skips_its_share_and_never_epoch_1(period, epochs):
    skipped = gradsamp_skips(f"every:{period}", epochs)
    assert len(skipped) == epochs // period
    late = gradsamp_skips(f"late-every:{period}", epochs)
    assert late == {epoch for epoch in skipped if epoch > epochs // 2}


@given(st.integers(1, 99), st.integers(0, 300), st.integers(0, 2**31), st.integers(0, 3))
def test_random_skips_depend_on_the_seed_alone_and_keep_their_distance(percent, epochs, seed, between):
    strategy = f"random:{percent / 100}"
    skipped = gradsamp_skips(strategy, epochs, seed=seed, min_real_between=between)
    assert skipped == gradsamp_skips(strategy, epochs, seed=seed, min_real_between=between)
    assert skipped == gradsamp_skips(
        strategy, epochs, generator=torch.Generator().manual_seed(seed), min_real_between=between
    )
    assert skipped <= set(range(2, epochs + 1))
    ordered = sorted(skipped)
    assert all(later - earlier > between for earlier, later in itertools.pairwise(ordered))
    if not between:
        more = gradsamp_skips(f"random:{(percent + 100) / 200}", epochs, seed=seed)
        late = gradsamp_skips(f"late-{strategy}", epochs, seed=seed)
        assert late <= skipped <= more
        assert late == {epoch for epoch in skipped if epoch > epochs // 2}


@pytest.mark.parametrize(("between", "share"), [(0, 0.5), (1, 0.5 / 1.5)])
def test_random_skips_have_their_expected_share(between, share):
    skipped = len(gradsamp_skips("random:0.5", 20_000, min_real_between=between))
    assert skipped / 20_000 == pytest.approx(share, abs=4 * math.sqrt(0.25 / 20_000))


def test_the_same_generator_gives_the_method_and_the_claim_the_same_epochs():
    draws = torch.rand(101, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = {epoch for epoch in range(2, 101) if draws[epoch] < 0.2}
    assert gradsamp_skips("random:0.2", 100, seed=3) == expected


# ── neurons left alone ────────────────────────────────────────────────────────────────────────────────────────


def test_neq_by_hand():
    ops = {"conv": 300, "norm": 100, "fc": 600}
    epochs = [{"conv": 0.0, "fc": 0.0}, {"conv": 0.5, "fc": 1.0}]
    # epoch 1: 900 of 1000 left, epoch 2: 150 of 1000; the norm is not hooked, so the public script calls it saved
    assert neq_saved(ops, epochs) == pytest.approx(100 * (1 - (0.9 + 0.15) / 2), rel=1e-15)
    assert neq_saved(ops, epochs, unhooked="trained") == pytest.approx(100 * (1 - (1.0 + 0.25) / 2), rel=1e-15)
    by_layer = {"conv": [0.0, 0.5], "fc": [0.0, 1.0]}
    assert neq_saved(ops, by_layer) == neq_saved(ops, epochs)
    by_position = [[0.0, None, 0.0], [0.5, None, 1.0]]
    assert neq_saved(list(ops.values()), by_position) == neq_saved(ops, epochs)
    assert neq_saved(ops, {"conv": 0.5, "fc": 1.0}) == neq_saved([300, 100, 600], [0.5, None, 1.0]) == 85
    assert neq_saved([1, 3], torch.tensor([[0.0, 0.5], [1.0, 0.5]], dtype=torch.float64)) == 50


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1)), min_size=1, max_size=6), st.integers(1, 4))
def test_neq_is_the_ops_weighted_mean_of_frozen_shares(layers, epochs):
    ops = [n for n, _ in layers]
    frozen = [f for _, f in layers]
    expected = 100 * sum(n * f for n, f in layers) / sum(ops)
    assert neq_saved(ops, [frozen] * epochs) == pytest.approx(expected, abs=1e-9)
    assert neq_saved([2 * n for n in ops], [frozen] * epochs) == pytest.approx(expected, abs=1e-9)


def test_thop_counts_multiply_adds_once_and_norms_twice_an_element():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        shared,
        shared,
    )
    assert thop_forward(model, (2, 3, 8, 8)) == {"0": 2 * 36 * 6 * 9, "1": 2 * (2 * 6 * 36), "5": 2 * (2 * 36)}


def test_what_is_not_hooked_counts_as_saved_while_nothing_is_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5))
    ops = thop_forward(model, (1, 3, 8, 8))
    conv, norm, linear, last = 4 * 36 * 27, 2 * 4 * 36, 144 * 5, 2 * 5
    every = conv + norm + linear + last
    assert list(ops.values()) == [conv, norm, linear, last]
    assert neq_unfrozen(model, ops) == pytest.approx(100 * (linear + last) / every, rel=1e-14)
    assert neq_unfrozen(model, ops, (nn.Conv2d, nn.Linear)) == pytest.approx(100 * (norm + last) / every, rel=1e-14)
    assert neq_unfrozen(model, ops, (nn.Module,)) == 0
    assert neq_unfrozen(model, ops, ()) == 100


@pytest.mark.parametrize(("use", "blocks", "saved"), [("resnet32", 5, "0.009"), ("resnet56", 9, "0.005")])
def test_of_the_small_resnets_neqs_rule_saves_the_last_layer_whatever_rests(use, blocks, saved):
    """Its 00.00 % in SCoTTi's table: 64 × 100 multiply-adds of 70 and 127 million."""
    stages = [(16, 32), (32, 16), (64, 8)]
    linear = 64 * 100
    convolutions = 16 * 32**2 * 27 + sum(2 * blocks * width**2 * 9 * side**2 for width, side in stages)
    convolutions -= sum(width * width // 2 * 9 * side**2 for width, side in stages[1:])  # half as wide before them
    norms = 2 * (16 * 32**2 + sum(2 * blocks * width * side**2 for width, side in stages))
    model = shipped(use, CIFAR, 100)
    ops = thop_forward(model, (1, *CIFAR))
    assert sum(ops.values()) == convolutions + norms + linear
    found = neq_unfrozen(model, ops)
    assert found == pytest.approx(100 * linear / (convolutions + norms + linear), rel=1e-12)
    assert f"{found:.3f}" == saved


def test_of_vgg16_it_saves_the_wide_classifier():
    widths = [(64, 2, 32), (128, 2, 16), (256, 3, 8), (512, 3, 4), (512, 3, 2)]
    convolutions, before = 0, 3
    for width, layers, side in widths:
        convolutions += side**2 * 9 * (before * width + (layers - 1) * width**2)
        before = width
    classifier = 512 * 7 * 7 * 4096 + 4096**2 + 4096 * 10
    model = shipped("vgg16")
    ops = thop_forward(model, (1, *CIFAR))
    assert sum(ops.values()) == convolutions + classifier
    assert f"{neq_unfrozen(model, ops):.1f}" == f"{100 * classifier / (convolutions + classifier):.1f}" == "27.6"


def test_of_mobilenet_it_saves_a_hundredth():
    model = shipped("mobilenet_v2", (3, 64, 64), 200)
    ops = thop_forward(model, (1, 3, 64, 64))
    assert f"{neq_unfrozen(model, ops):.2f}" == f"{100 * 1280 * 200 / sum(ops.values()):.2f}" == "0.99"


@pytest.mark.parametrize(
    ("use", "shape", "classes"),
    [
        ("vgg16", CIFAR, 10),
        ("swin_tiny", PHOTO, 10),
        ("resnet32", CIFAR, 100),
        ("resnet56", CIFAR, 100),
        ("resnet18", PHOTO, 345),
        ("mobilenet_v2", (3, 64, 64), 200),
    ],
)
def test_freezing_saves_no_more_than_50_to_52_percent_of_a_backward(use, shape, classes):
    assert 50 <= neq_ceiling(shipped(use, shape, classes), (1, *shape)) <= 52


def test_the_ceiling_by_hand():
    # dW: 10·20 + 20·5 multiply-adds; dX: 20·5, none for the first layer
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    assert neq_ceiling(model, (3, 10)) == 75
    assert neq_ceiling(nn.Linear(10, 20), (3, 10)) == 100


# ── samples chosen ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gate_of_presampling():
    assert presampling_gate(3) == 2
    assert f"{presampling_gate(5):.2f}" == "2.67"
    assert presampling_gate(0) == 1


# ── nonsense ──────────────────────────────────────────────────────────────────────────────────────────────────

CONV = nn.Conv2d(3, 4, 3)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: ssprop_backward(CONV, (1, 3, 8, 8), drop=1), "[0, 1)"),
        (lambda: ssprop_backward(CONV, (1, 3, 8, 8), drop=-0.1), "[0, 1)"),
        (lambda: ssprop_backward(CONV, (1, 3, 8, 8), drop=80), "80 % is written 0.8"),
        (lambda: ssprop_backward(CONV, (1, 3, 8, 8), drop=math.nan), "number"),
        (lambda: ssprop_backward(CONV, (1, 3, 8, 8), drop="much"), "number"),
        (lambda: ssprop_backward(CONV, (1, 3, 8, 8), drop=0.5, kept="exat"), "did you mean 'exact'?"),
        (lambda: ssprop_backward(CONV, (1, 3, 8, 8), drop=0.5, dropout_coefficient=-2), "negative"),
        (lambda: ssprop_backward(CONV, (), drop=0.5), "input shape"),
        (lambda: ssprop_backward(CONV, 3, drop=0.5), "input shape"),
        (lambda: ssprop_backward(CONV, (0, 3, 8, 8), drop=0.5), "input shape"),
        (lambda: ssprop_backward(CONV, (1, 5, 8, 8), drop=0.5), "(1, 5, 8, 8)"),
        (lambda: ssprop_backward(print, (1, 3, 8, 8), drop=0.5), "torch.nn.Module"),
        (lambda: ssprop_total(1.0, images=0, batch=8, epochs=1), "images"),
        (lambda: ssprop_total(1.0, images=8, batch=0, epochs=1), "batch"),
        (lambda: ssprop_total(1.0, images=8, batch=8, epochs=-1), "epochs"),
        (lambda: drop_rate_lower_bound(nn.Linear(2, 2)), "Linear"),
        (lambda: gradsamp_total(1, images=8, kept_epochs=-1), "negative"),
        (lambda: gradsamp_total(-1, images=8, kept_epochs=1), "negative"),
        (lambda: gradsamp_skips("evry:5", 10), "did you mean 'every'?"),
        (lambda: gradsamp_skips("late-randm:0.2", 10), "did you mean 'late-random'?"),
        (lambda: gradsamp_skips("every:1", 10), "from 2 on"),
        (lambda: gradsamp_skips("every:2.5", 10), "from 2 on"),
        (lambda: gradsamp_skips("every", 10), "every:5"),
        (lambda: gradsamp_skips("random:20", 10), "between 0 and 1"),
        (lambda: gradsamp_skips("random:x", 10), "between 0 and 1"),
        (lambda: gradsamp_skips("every:5", -1), "epochs"),
        (lambda: gradsamp_skips("every:5", 10, start_epoch=1), "start_epoch"),
        (lambda: gradsamp_skips("every:5", 100, preset="table2"), "200 epochs"),
        (lambda: gradsamp_skips("random:0.3", 200, preset="table2"), "random:0.2, random:0.5, random:0.7"),
        (lambda: gradsamp_skips("every:5", 200, preset="tabel2"), "did you mean 'table2'?"),
        (lambda: gradsamp_skips("every:5", 200, preset="table2", start_epoch=3), "leave start_epoch"),
        (lambda: neq_saved({}, [{}]), "no operations"),
        (lambda: neq_saved({"a": 1}, []), "no epoch"),
        (lambda: neq_saved({"a": 1}, {}), "no epoch"),
        (lambda: neq_saved({"conv1": 1}, [{"conv2": 0.5}]), "did you mean 'conv1'?"),
        (lambda: neq_saved({"a": 1}, [{"a": 1.5}]), "[0, 1]"),
        (lambda: neq_saved({"a": 1, "b": 1}, {"a": [0.5], "b": [0.5, 0.5]}), "as many"),
        (lambda: neq_saved({"a": -1}, [{"a": 0.5}]), "negative"),
        (lambda: neq_saved({"a": 1}, [{"a": 0.5}], unhooked="lost"), "unhooked"),
        (lambda: neq_ceiling(nn.ReLU(), (1, 3)), "no linear layer"),
    ],
)
def test_nonsense_is_refused_in_words(call, word):
    with pytest.raises(ValueError, match=re.escape(word)) as refused:
        call()
    assert isinstance(refused.value, UsageError)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


# ── the models of the tables ──────────────────────────────────────────────────────────────────────────────────


def test_no_model_of_ours_takes_a_name_of_torchvisions():
    vision = import_torchvision().models
    assert not set(models.MODELS) & set(vision.list_models())
    assert len(PAPER) == 7


@pytest.mark.parametrize(("use", "parameters", "layers"), [("resnet32", 464_154, 32), ("resnet56", 853_018, 56)])
def test_the_resnets_for_cifar_have_the_papers_depth_and_size(use, parameters, layers):
    """He et al. 2015, Table 6: 0.46 M and 0.85 M parameters, with shortcuts of kind A."""
    model = shipped(use)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == layers
    projected = shipped(use, shortcut="B")
    more = sum(p.numel() for p in projected.parameters()) - parameters
    assert more == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    with pytest.raises(UsageError, match="shortcut"):
        shipped(use, shortcut="C")


def test_shortcut_a_takes_every_second_pixel_between_channels_of_zeros():
    block = models.build("resnet32", CIFAR, 10, {}).blocks[5]
    x = torch.randn(2, 16, 8, 8)
    y = block.shortcut(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("size", [40, pytest.param(224, marks=pytest.mark.slow)])
def test_our_swin_computes_what_torchvisions_does(size):
    torch.manual_seed(0)
    ours = models.build("swin_tiny", (3, size, size), 5, {}).eval()
    theirs = import_torchvision().models.swin_t(num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("use", sorted(PAPER))
def test_every_model_of_the_papers_takes_any_channels_and_names_as_many_classes(use):
    assert shipped(use, (1, 32, 32), 7)(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, 7)


def test_resnet26_and_the_two_layer_head_are_what_their_papers_say():
    assert [len(getattr(shipped("resnet26"), f"layer{n}")) for n in (1, 2, 3, 4)] == [2, 3, 5, 2]
    head = shipped("resnet50_head4096", PHOTO).fc
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)] == [(2048, 4096), (4096, 10)]


def test_the_mixer_refuses_images_that_its_patches_do_not_tile():
    with pytest.raises(UsageError, match="patches"):
        models.build("mixer", (3, 30, 32), 10, {})


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def facts():
    return published_tables.facts()


def figures(facts, title):
    """The cells of the one table whose title begins so."""
    (found,) = [t["cells"] for paper in facts["papers"] for t in paper["tables"] if t["title"].startswith(title)]
    return found


def value(found, *labels, figure=None):
    """The one figure that has all these labels."""
    (one,) = [c for c in found if {*labels} <= {*c["labels"].values()} and figure in (None, c["figure"])]
    return one["value"]


def test_every_printed_figure_that_is_held_is_reproduced_and_no_two_kinds_are_counted_together(facts):
    table2 = 10 + 99  # "% savings" and TFLOPs
    table4 = 4 * 4 + 6 * 4  # two models, dense and ssProp, of four inputs and of six data sets
    assert facts["counts"] == {
        "printed": {
            "figures": table2 + table4 + 5 + 4,  # and Tables 6 and 7
            "reproduced": 10 + 1 + 2 * len(TABLE4) + 1 + 2,
            "differ": 1,  # the cell that repeats its neighbour
            "not_held": table2 + table4 + 5 + 4 - 22 - 1,
        },
        "fitted": {"figures": 10, "differ": 0},
        "ours": {"figures": 71},
    }
    every = [cell for paper in facts["papers"] for table in paper["tables"] for cell in table["cells"]]
    for kind in ("printed", "fitted", "ours"):
        assert sum(cell["kind"] == kind for cell in every) == facts["counts"][kind]["figures"]
    for cell in every:
        held = cell["printed"] is not None
        assert held == (cell["reason"] is None) == (cell["difference"] is not None)
        assert cell["agrees"] is (True if held else False if cell["word"] == "differs" else None)
        assert not held or cell["printed"].replace(",", "") == cell["counted"]
    assert {table["compares"] for paper in facts["papers"] for table in paper["tables"]} == {True, False}


def test_the_figures_that_are_held_are_the_papers(facts):
    held = {
        title: {(*cell["labels"].values(), cell["printed"]) for cell in figures(facts, title) if cell["printed"]}
        for title in ('Table 2: "% savings", and', "Table 2: ResNet-50", "Table 4: backward per", "Table 6", "Table 7")
    }
    names = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}
    assert held == {
        'Table 2: "% savings", and': {
            *(("Pe=5", "20"), ("Pe=10", "10"), ("Pr=0.2", "20"), ("Pr=0.5", "50"), ("Pr=0.7", "70")),
            *(("DP=5", "10"), ("DP=10", "5"), ("DR=0.2", "10"), ("DR=0.5", "25"), ("DR=0.7", "35")),
        },
        "Table 2: ResNet-50": {("baseline", "CIFAR-10", "246716.268")},
        "Table 4: backward per": {
            (f"{'MNIST' if shape == MNIST else 'CIFAR'}, 128", names[use], name, text)
            for shape, use, *texts in TABLE4
            for name, text in zip(("dense", "ssProp"), texts, strict=True)
        },
        "Table 6": {("dense", "669.75")},
        "Table 7": {("per iteration, 10⁹", "dense", "440.19"), ("in total, 10¹⁵", "dense", "42.99")},
    }
    fitted = [cell for cell in figures(facts, "Table 2: epochs") if cell["kind"] == "fitted"]
    assert [int(cell["counted"]) for cell in fitted] == [kept for _, kept in TABLE2]


def test_there_are_36_more_figures_of_ssprop_than_table_4s_eight(facts):
    iterations = [c for c in figures(facts, "Table 4: backward per") if c["labels"]["data, batch"][-3:] != "128"]
    faces = [c for c in figures(facts, "Table 4: backward per") if c["labels"]["data, batch"] == "CelebA, 128"]
    totals, table7 = figures(facts, "Table 4: backward in total"), figures(facts, "Table 7")
    assert len(iterations) + len(faces) + len(totals) + len(table7) == 36


@pytest.mark.parametrize(
    ("label", "use", "times"),
    [
        ("CelebA, 128", "resnet18", Fraction(4)),
        ("CelebA, 32", "resnet50", Fraction(4 * 32, 128)),
        ("ImageNet, 32", "resnet18", Fraction(49 * 32, 128)),
        ("ImageNet, 16", "resnet50", Fraction(49 * 16, 128)),
    ],
)
def test_an_iteration_on_larger_images_is_cifars_by_its_pixels_and_its_batch(facts, label, use, times):
    """All of it grows with batch · H · W but BatchNorm's 10·C and the −Cout of the selection, half of it of a mean."""
    model = shipped(use, stem="small")
    norms = 10 * sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    outputs = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    cifar = ssprop_backward(model, (128, *CIFAR), drop=0.8)
    found = figures(facts, "Table 4: backward per")
    name = "ResNet-" + use[-2:]
    dense, mean = (1e9 * value(found, label, name, which) for which in ("dense", "ssProp"))
    assert dense == pytest.approx((cifar.dense - norms) * float(times) + norms, rel=1e-12)
    constant = norms - outputs / 2
    assert mean == pytest.approx((cifar.mean - constant) * float(times) + constant, rel=1e-12)


@pytest.mark.parametrize(
    ("data", "model", "per_iteration", "batch", "epochs", "images"),
    [
        ("MNIST", "ResNet-18", "MNIST, 128", 128, 50, 60_000),
        ("MNIST", "ResNet-50", "MNIST, 128", 128, 50, 60_000),
        ("Fashion-MNIST", "ResNet-50", "MNIST, 128", 128, 50, 60_000),
        ("CIFAR-10", "ResNet-18", "CIFAR, 128", 128, 50, 50_000),
        ("CIFAR-10", "ResNet-50", "CIFAR, 128", 128, 250, 50_000),
        ("CIFAR-100", "ResNet-50", "CIFAR, 128", 128, 250, 50_000),
        ("CelebA", "ResNet-18", "CelebA, 128", 128, 50, 182_637),
        ("CelebA", "ResNet-50", "CelebA, 32", 32, 50, 182_637),
        ("ImageNet", "ResNet-18", "ImageNet, 32", 32, 50, 1_331_167),
        ("ImageNet", "ResNet-50", "ImageNet, 16", 16, 50, 1_331_167),
    ],
)
def test_a_total_is_an_iteration_times_epochs_and_images_by_the_batch(
    facts, data, model, per_iteration, batch, epochs, images
):
    totals, iterations = (figures(facts, f"Table 4: backward {which}") for which in ("in total", "per"))
    for which in ("dense", "ssProp"):
        expected = value(iterations, per_iteration, model, which) * epochs * images / batch / 1e6
        assert value(totals, data, model, which) == pytest.approx(expected, rel=1e-12)


def test_table_6_is_of_resnet_50_and_each_dropout_counts_four_an_element(facts):
    found = figures(facts, "Table 6")
    dense, dropout, by_eq8 = (value(found, name) for name in ("dense", "Dropout", "Dropout, by Eq. 8"))
    # elements of 128 samples behind its BatchNorms: stem, then per stage 2 narrow and 1 wide a block, one shortcut;
    # the first block's first convolution still has the stage before's pixels
    elements = 64 * 32**2
    for width, blocks, side, before in ((64, 3, 32, 32), (128, 4, 16, 32), (256, 6, 8, 16), (512, 3, 4, 8)):
        elements += width * (before**2 + (2 * blocks - 1) * side**2) + 4 * width * (blocks + 1) * side**2
    assert 1e9 * (dropout - dense) == pytest.approx(4 * 128 * elements, rel=1e-9)
    assert 1e9 * (by_eq8 - dense) == pytest.approx(2 * 128 * elements, rel=1e-9)
    mean, both = value(found, "ssProp 0.4"), value(found, "0.4 + 0.4")
    assert both - mean == pytest.approx(dropout - dense, rel=1e-9)
    assert value(found, "0.2 + 0.2") > both


@pytest.mark.parametrize(
    ("number", "text", "difference", "word"),
    [
        (1.2449, "1.24", "0.00", "reproduced"),
        (1.25, "1.24", "+0.01", "differs"),
        (1.231, "1.24", "-0.01", "differs"),
        (8_223_875_584, "8,223,875,584", "0", "reproduced"),
        (20.0, "20", "0", "reproduced"),
    ],
)
def test_a_figure_is_compared_to_the_last_digit_that_is_printed(number, text, difference, word):
    cell = cells.printed(number, text)
    assert (cell.difference, cell.word, cell.agrees) == (difference, word, word == "reproduced")
    assert cells.fitted(number, text).word == ("fitted" if cell.agrees else "differs")


def test_a_printed_figure_that_is_not_held_is_compared_with_nothing_and_says_why():
    cell = cells.printed(1.239, None, 2)
    assert (cell.counted, cell.printed, cell.difference, cell.agrees, cell.word) == (
        "1.24",
        None,
        None,
        None,
        "not held",
    )
    assert cell.reason == cells.NOT_HELD
    assert cells.ours(1.239, 2).word == "ours"


@given(st.floats(0, 1e6), st.integers(0, 4))
def test_a_figure_agrees_with_its_own_digits_and_with_no_others(number, decimals):
    text = f"{number:.{decimals}f}"
    assert cells.printed(number, text).agrees
    assert not cells.printed(number + 10.0**-decimals * 2, text).agrees


def test_a_row_has_one_kind_and_a_compared_figure_a_row_of_its_own():
    mixed = cells.Row(["a"], [cells.ours(1), cells.printed(1, "1")])
    with pytest.raises(ValueError, match="unpack"):
        assert mixed.word
    with pytest.raises(ValueError, match="a row of its own"):
        cells.PublishedTable("t", ["what"], ["one", "two"], [mixed], "s")
    with pytest.raises(ValueError, match="other columns"):
        cells.PublishedTable("t", ["what", "where"], ["one", "two"], [mixed], "s")


def test_a_figure_that_comes_to_be_held_is_compared_at_once(monkeypatch, facts):
    right = next(c["counted"] for c in figures(facts, "Table 4: backward in total"))
    wrong = f"{float(right) + 1:.2f}"
    monkeypatch.setitem(ssprop_tables.TOTALS, ("MNIST", "resnet18"), (right, wrong))
    row, other = ssprop_tables._totals().rows[:2]
    assert (row.word, other.word) == ("reproduced", "differs")


def test_table_2_is_whole_and_linear_in_its_kept_epochs(facts):
    tables = [
        t
        for t in facts["papers"][0]["tables"]
        if t["title"] in ("Table 2: ResNet-50", "Table 2: Swin-T", "Table 2: MLP-Mixer")
    ]
    assert sum(len(table["cells"]) for table in tables) == 99
    kept = [200, *(epochs for _, epochs in TABLE2)]
    for table in tables:
        for data in ("CIFAR-10", "CIFAR-100", "Tiny ImageNet"):
            of_data = [float(c["counted"]) for c in table["cells"] if c["labels"]["data"] == data]
            assert of_data == pytest.approx([of_data[0] * n / 200 for n in kept], abs=1.01e-3)


def test_the_one_cell_that_repeats_its_neighbour_says_so(facts):
    reasons = [
        c["reason"] for t in facts["papers"][0]["tables"] for c in t["cells"] if "repeats" in (c["reason"] or "")
    ]
    (cell,) = [c for c in figures(facts, "Table 2: MLP-Mixer") if "repeats" in c["reason"]]
    assert cell["labels"] == {"strategy": "DR=0.5", "data": "CIFAR-100"}
    assert (cell["word"], cell["agrees"], cell["printed"], cell["difference"]) == ("differs", False, None, None)
    assert len(reasons) == 1


def test_every_claimed_percentage_is_above_the_flops_of_its_row(facts):
    table = next(t for t in facts["papers"][0]["tables"] if "against itself" in t["title"])
    for _, claimed, paid, times, word in table["rows"]:
        assert float(claimed) > float(paid)
        assert float(times) == pytest.approx(float(claimed) / float(paid), abs=0.005)
        assert word == "ours"


def test_the_page_in_the_documents_is_this_one(facts):
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == page.markdown(facts)


@pytest.mark.parametrize("width", [20, 45, 60, 80, 140])
def test_no_terminal_is_too_narrow_for_a_number(facts, width):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    page.print_claims(facts, console)
    lines = console.file.getvalue().splitlines()
    words = console.file.getvalue().split()
    for paper in facts["papers"]:
        for table in paper["tables"]:
            for cell in table["cells"]:
                assert cell["counted"] in words, (width, cell)
                assert cell["printed"] is None or cell["difference"] in words, (width, cell)
    assert width < 45 or max(map(cell_len, lines)) <= width


def test_the_command_prints_the_page_as_text_as_json_and_to_a_file(facts, monkeypatch, tmp_path):
    monkeypatch.setattr(published_tables, "facts", lambda: facts)
    text = CliRunner().invoke(app, ["claims"])
    assert text.exit_code == 0
    assert page.TITLE in text.stdout
    assert json.loads(CliRunner().invoke(app, ["claims", "--json"]).stdout) == json.loads(json.dumps(facts))
    done = CliRunner().invoke(app, ["claims", "--markdown", str(tmp_path / "page.md")])
    assert (done.exit_code, done.stdout) == (0, "")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page.markdown(facts)


def test_printing_needs_no_torch():
    code = "import sys, energybench.papers.page, energybench.papers.cells; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_the_command_finds_every_printed_row_again():
    done = subprocess.run(
        [sys.executable, "-m", "energybench", "claims", "--json"], capture_output=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["printed"]["reproduced"] == 22
