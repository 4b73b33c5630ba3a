"""Segmentation: its loss and metrics against closed forms and by hand, its models, and every method that trains it."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CPU, assert_same_state, data_settings, make_run, run_or_refusal, state
from torch import Tensor, nn

from energybench.common import extras
from energybench.common.errors import UsageError
from energybench.common.torchvision_shim import import_torchvision
from energybench.flops.work import Work
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_run
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.batch import Batch
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.images import Images
from energybench.train.method import Method
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import datasets, models
from energybench.workloads.models.segmentation import padded_to, segmenter
from energybench.workloads.tasks.segmentation import Segmentation, at_scales, sample_losses

ROOT = Path(__file__).resolve().parents[2]
HAS_UNET = importlib.util.find_spec("segmentation_models_pytorch") is not None
needs_unet = pytest.mark.skipif(not HAS_UNET, reason="needs energybench[vision]: segmentation-models-pytorch")
CLASSES, VOID, SIDE = 3, 255, 16
SOURCES = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}


def masked(inputs: Tensor, targets: Tensor, void: int | None = VOID, classes: int = CLASSES) -> Data:
    return Data(Resident(inputs, targets, CPU), facts=Facts("mask", classes, void))


def squares(count: int = 12, augment: tuple[str, ...] = ()) -> Data:
    """Grey images whose halves and corner have brightnesses of their own, which are the classes; a border is void."""
    generator = torch.Generator().manual_seed(5)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    masks[:, :, SIDE // 2 :] = 1
    masks[count // 2 :, : SIDE // 2] = 2
    noise = torch.randint(0, 40, (count, 1, SIDE, SIDE), generator=generator)
    images = (masks[:, None] * 90 + noise).clamp(max=255).to(torch.uint8)
    masks[:, 0], masks[: count // 3, -1] = VOID, VOID  # of some images more than of others
    facts = Facts("mask", CLASSES, VOID)
    prepare = Images([0.4], [0.3], augment, CPU, facts=facts)
    return Data(Resident(images, masks, CPU), prepare, facts=facts)


def small_net() -> nn.Module:
    """Convolution, BatchNorm, ReLU, convolution: (B, 1, H, W) → (B, CLASSES, H, W)."""
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))


def tiny_segmenter() -> nn.Module:
    settings = {"patch": 4, "width": 16, "layers": 2, "heads": 2, "decoder_layers": 1}
    return segmenter((1, SIDE, SIDE), CLASSES, **settings, drop_path=0.0, decoder_dropout=0.0)


def dropping_segmenter() -> nn.Module:
    settings = {"patch": 4, "width": 16, "layers": 2, "heads": 2, "decoder_layers": 1}
    return segmenter((1, SIDE, SIDE), CLASSES, **settings, drop_path=0.5, decoder_dropout=0.5)


def tiny_unet() -> nn.Module:
    return models.build("unet", (1, SIDE, SIDE), CLASSES, {"encoder": "resnet18", "channels": [8, 8, 8]})


def segmentation_run(methods: Any = (), model: Any = small_net, **given: Any) -> Any:
    plain = {"data": squares(), "task": Segmentation(), "batch": 4, "epochs": 4, "lr": 0.1}
    return make_run(methods, model, **plain | given)


def logits_and_masks(seed: int, void: int | None = VOID) -> tuple[Tensor, Tensor]:
    """Of four samples in double precision; the second has no label, the third has one."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, CLASSES, 5, 6, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, CLASSES, (4, 5, 6), generator=generator)
    if void is not None:
        masks = torch.where(torch.rand(4, 5, 6, generator=generator) < 0.3, void, masks)
        masks[1], masks[2], masks[2, 3, 4] = void, void, 1
    return logits, masks


def batch_of(inputs: Tensor, masks: Tensor) -> Batch:
    return Batch(inputs, masks, torch.arange(len(masks)))


class Fixed(nn.Module):
    """Says what it was told, whatever it is shown: scores (1, classes, H, W), of every sample alike."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores.expand(len(images), -1, -1, -1)


class Painted(nn.Module):
    """Says the class that the image's own brightness is, sure of it."""

    def forward(self, images: Tensor) -> Tensor:
        return -50 * (images - torch.arange(float(CLASSES)).view(1, -1, 1, 1)).abs()


def judged(model: nn.Module, data: Data, task: Segmentation | None = None, batch: int = 4) -> dict[str, float]:
    return make_run((), lambda: model, data, task or Segmentation(), batch=batch).evaluate(data)


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(seed=st.integers(0, 2**32), smoothing=st.sampled_from([0.0, 0.1]), void=st.sampled_from([None, 255, 3, -1]))
@settings(max_examples=25, deadline=None)
def test_a_samples_loss_is_the_mean_of_minus_log_probability_over_its_labelled_pixels(seed, smoothing, void):
    logits, masks = logits_and_masks(seed, void)
    found = sample_losses(logits, masks, void, smoothing)
    for sample in range(4):
        log_p = logits[sample].flatten(1).log_softmax(0)
        each = [
            -(1 - smoothing) * log_p[label, pixel] - smoothing * log_p[:, pixel].mean()
            for pixel, label in enumerate(masks[sample].flatten().tolist())
            if label != void
        ]
        expected = sum(each) / len(each) if each else torch.tensor(0.0, dtype=torch.float64)
        assert found[sample].item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-15)


@given(seed=st.integers(0, 2**32), smoothing=st.sampled_from([0.0, 0.1]))
@settings(max_examples=10, deadline=None)
def test_the_closed_form_of_its_gradient_is_autograds_and_void_pixels_have_none(seed, smoothing):
    logits, masks = logits_and_masks(seed)
    run = make_run((), small_net, masked(logits, masks), Segmentation(), label_smoothing=smoothing)
    batch = batch_of(logits, masks)
    given = logits.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(run.task.losses(run, given, batch).sum(), given)
    found = run.task.output_gradient(run, logits, batch)
    torch.testing.assert_close(found, wanted)
    assert not found[(masks == VOID)[:, None].expand_as(found)].any()
    assert not found[1].any()


def test_even_scores_cost_the_logarithm_of_the_number_of_classes():
    _, masks = logits_and_masks(1)
    losses = sample_losses(torch.zeros(4, CLASSES, 5, 6), masks, VOID)
    assert losses.tolist() == pytest.approx([math.log(3), 0.0, math.log(3), math.log(3)])


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 3.0, 0.25, 1.5)])
def test_micro_batches_and_weighted_samples_add_up_to_the_whole_batch(weights):
    """Three micro-batches of two, of which each has another number of void pixels."""
    net = lambda: nn.Conv2d(1, CLASSES, 3, padding=1).double()  # noqa: E731
    masks = logits_and_masks(2)[1][[0, 1, 2, 3, 0, 2]]
    images = torch.randn(6, 1, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = []
    for pieces in (1, 3):
        run = make_run((), net, masked(images, masks), Segmentation(), batch=6, accumulate=pieces)
        batch = Batch(images, masks, torch.arange(6), None if weights is None else torch.tensor(weights).double())
        run.gradients(batch)
        found.append(torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()]))
    torch.testing.assert_close(*found)
    given = run.model(images)
    each = sample_losses(given, masks, VOID)
    loss = (each * (1 if weights is None else torch.tensor(weights).double())).sum() / 6
    wanted = torch.autograd.grad(loss, list(run.model.parameters()))
    torch.testing.assert_close(found[0], torch.cat([gradient.flatten() for gradient in wanted]))


# ── what it is judged by ──────────────────────────────────────────────────────────────────────────────────────────────


def painted(masks: Tensor) -> Tensor:
    """Images of which `Painted` reads these classes; void is painted as class 0."""
    return torch.where(masks == VOID, 0, masks)[:, None].float()


def test_a_perfect_prediction_has_shares_of_one_and_next_to_no_loss():
    masks = logits_and_masks(4)[1]
    found = judged(Painted(), masked(painted(masks), masks))
    assert (found["miou"], found["pixel_accuracy"]) == (1.0, 1.0)
    assert found["loss"] == pytest.approx(0, abs=1e-9)


def test_a_constant_prediction_has_the_share_of_its_class_over_the_number_of_classes_that_occur():
    masks = torch.full((2, 4, 5), VOID)
    masks[0, 0, :4], masks[1, 2, :3], masks[1, 3, 0] = 0, 1, 2  # 4, 3 and 1 of 8 labelled pixels
    scores = torch.zeros(1, CLASSES, 4, 5)
    scores[:, 1] = 1
    found = judged(Fixed(scores), masked(torch.zeros(2, 1, 4, 5), masks))
    assert found["pixel_accuracy"] == 3 / 8
    assert found["miou"] == pytest.approx((3 / 8) / 3)


def test_a_class_that_occurs_nowhere_counts_nowhere_and_one_that_is_only_predicted_counts_as_nothing_right():
    masks = torch.tensor([[[0, 0, 1, 1]]])
    images = torch.tensor([[[[0, 0, 1, 0]]]]).float()
    found = judged(Painted(), masked(images, masks))  # class 2 occurs nowhere
    assert found["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    found = judged(Painted(), masked(torch.tensor([[[[0, 0, 1, 2]]]]).float(), masks))
    assert found["miou"] == pytest.approx((2 / 2 + 1 / 2 + 0) / 3)


def test_what_is_predicted_at_void_changes_no_figure():
    masks = logits_and_masks(6)[1]
    images = painted(masks)
    wrong = torch.where((masks == VOID)[:, None], 2.0, images)
    assert judged(Painted(), masked(images, masks)) == judged(Painted(), masked(wrong, masks))


def test_where_nothing_has_a_label_there_is_no_figure():
    masks = torch.full((2, 3, 3), VOID)
    found = judged(Painted(), masked(torch.zeros(2, 1, 3, 3), masks))
    assert all(math.isnan(value) for value in found.values())


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_no_figure_depends_on_how_the_test_set_is_cut(seed):
    logits, masks = logits_and_masks(seed)
    images = logits.argmax(1)[:, None].float()
    whole, cut = (judged(Painted(), masked(images, masks), batch=batch) for batch in (4, 1))
    assert whole == pytest.approx(cut, rel=1e-6)
    assert (whole["miou"], whole["pixel_accuracy"]) == (cut["miou"], cut["pixel_accuracy"])


@pytest.mark.parametrize("seed", range(4))
def test_torchmetrics_finds_the_same(seed):
    import_torchvision()  # which it imports
    reference = pytest.importorskip("torchmetrics.functional.classification", reason="needs energybench[vision]")
    logits, masks = logits_and_masks(seed)
    if seed == 3:  # a class that occurs nowhere
        logits[:, 2], masks = -9, torch.where(masks == 2, 1, masks)
    found = judged(Painted(), masked(logits.argmax(1)[:, None].float(), masks))
    wanted = reference.multiclass_jaccard_index(logits.argmax(1), masks, CLASSES, "macro", VOID)
    assert found["miou"] == pytest.approx(wanted.item(), rel=1e-6)
    accuracy = reference.multiclass_accuracy(logits.argmax(1), masks, CLASSES, "micro", ignore_index=VOID)
    assert found["pixel_accuracy"] == pytest.approx(accuracy.item(), rel=1e-6)


def test_the_loss_is_the_mean_of_the_samples_that_have_a_label_without_smoothing():
    _, masks = logits_and_masks(7)
    data = masked(torch.zeros(4, 1, 5, 6), masks)
    scores = torch.randn(1, CLASSES, 5, 6, generator=torch.Generator().manual_seed(0))
    run = make_run((), lambda: Fixed(scores), data, Segmentation(), label_smoothing=0.3, batch=3)
    each = sample_losses(scores.expand(4, -1, -1, -1), masks, VOID)
    assert run.evaluate(data)["loss"] == pytest.approx(each.sum().item() / 3)


# ── at several scales ─────────────────────────────────────────────────────────────────────────────────────────────────


class Recorded(nn.Module):
    """A net that works pixel by pixel, and the sizes that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.sizes = nn.Conv2d(1, CLASSES, 1), list[tuple[int, int]]()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append((images.shape[-2], images.shape[-1]))
        return self.net(images)


def test_one_scale_of_one_is_the_plain_prediction():
    data = squares()
    found = judged(small_net(), data, Segmentation((1.0,)))
    assert found["miou_multiscale"] == found["miou"]
    assert found["pixel_accuracy_multiscale"] == found["pixel_accuracy"]


def test_every_scale_is_shown_at_its_size_and_mirrored_and_the_average_is_of_probabilities():
    model, images = Recorded(), torch.rand(2, 1, 10, 13)
    with torch.no_grad():
        found = at_scales(model, images, (0.5, 1.0, 1.75), True)
    assert model.sizes == [(5, 6), (5, 6), (10, 13), (10, 13), (18, 23), (18, 23)]
    torch.testing.assert_close(found.sum(1), torch.ones(2, 10, 13))
    flat = torch.full((1, 1, 10, 13), 0.3)
    with torch.no_grad():
        torch.testing.assert_close(at_scales(model, flat, (0.5, 1.0, 1.75), True), model(flat).softmax(1))


def test_a_net_that_looks_at_one_side_alone_is_made_even_by_flips():
    """It says class 1 at the left and 0 elsewhere: mirrored and put back, at both sides alike."""
    scores = torch.zeros(1, 2, 3, 4)
    scores[:, 1, :, 0] = 2
    found = at_scales(Fixed(scores), torch.zeros(1, 1, 3, 4), (1.0,), True)
    sure = (math.e**2 / (1 + math.e**2) + 0.5) / 2
    assert found[0, 1, 0].tolist() == pytest.approx([sure, 0.5, 0.5, sure])


def test_what_it_does_not_report_it_is_not_asked_for():
    assert set(judged(small_net(), squares())) == {"miou", "pixel_accuracy", "loss"}
    assert set(judged(small_net(), squares(), Segmentation((0.5, 1.0), True))) == set(Segmentation.metrics)


@pytest.mark.parametrize("wrong", [{"scales": [0.0]}, {"scales": [1.0, 1.0]}, {"flips": True}, {"scales": [9.0]}])
def test_scales_that_say_nothing_are_refused(wrong):
    with pytest.raises(UsageError):
        discovery.build(Segmentation, "segmentation", wrong)
    assert discovery.build(Segmentation, "segmentation", {"scales": [0.5, 1], "flips": True}).scales == (0.5, 1.0)


@pytest.mark.parametrize("model", [nn.Flatten(), nn.MaxPool2d(2), nn.Identity()])
def test_what_is_no_mask_or_no_logits_of_it_is_told(model):
    run = make_run((), lambda: model, squares(), Segmentation())
    batch = next(iter(run.data.in_order(2)))
    if isinstance(model, nn.Identity):
        batch = Batch(batch.inputs, torch.zeros(2, dtype=torch.long), batch.index)
    with pytest.raises(TypeError, match=r"label of each pixel|logits of each pixel"):
        run.forward(batch)


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────

MODELS = {"segmenter": tiny_segmenter, "net": small_net, "unet": pytest.param(tiny_unet, marks=needs_unet, id="unet")}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.__name__)


@each_model
@pytest.mark.parametrize("size", [(16, 16), (13, 22), (5, 7)])
def test_logits_have_the_images_size_whatever_it_is(model, size):
    with torch.no_grad():
        assert model().eval()(torch.randn(2, 1, *size)).shape == (2, CLASSES, *size)


def test_padding_is_at_the_right_and_below_and_only_where_it_is_needed():
    images = torch.ones(1, 1, 5, 8)
    padded = padded_to(images, 4)
    assert padded.shape == (1, 1, 8, 8)
    assert padded.sum() == images.sum()
    assert padded[..., :5, :8].eq(1).all()
    assert padded_to(padded, 4) is padded


def test_the_segmenter_has_the_parameters_that_its_paper_describes():
    """Seg-Tiny with patches of 16 at 512 px and 150 classes, counted layer by layer."""
    width, classes, patches = 192, 150, 32 * 32
    block = 2 * 2 * width + (width + 1) * 3 * width + (width + 1) * width  # norms, query key value, out
    block += (width + 1) * 4 * width + (4 * width + 1) * width
    encoder = (3 * 16**2 + 1) * width + (patches + 1) * width + width + 12 * block + 2 * width
    decoder = (width + 1) * width + classes * width + 2 * block + 2 * width + 2 * width**2 + 2 * classes
    with torch.device("meta"):
        model = segmenter((3, 512, 512), classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + decoder


def test_the_segmenters_masks_do_not_change_when_patches_and_their_places_are_shuffled_together():
    torch.manual_seed(0)
    model = tiny_segmenter().eval()
    features, order = torch.randn(2, 16, 16), torch.randperm(16)
    with torch.no_grad():
        masks, shuffled = (model.decoder(each, (4, 4)).flatten(2) for each in (features, features[:, order]))
    torch.testing.assert_close(masks[..., order], shuffled)


def test_stochastic_depth_and_dropout_are_drawn_in_training_alone():
    torch.manual_seed(0)
    model = dropping_segmenter()
    images = torch.randn(4, 1, SIDE, SIDE)
    with torch.no_grad():
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("wrong", [{"width": 16, "heads": 3}, {"patch": 0}, {"layers": 0}, {"depth": 3}])
def test_a_segmenter_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError) as refused:
        models.build("segmenter", (3, 32, 32), 5, wrong)
    assert refused.value.problems[0].code == "E401"


@needs_unet
@pytest.mark.parametrize("wrong", [{"encoder": "resnet33"}, {"channels": [8, 8]}])
def test_a_unet_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError) as refused:
        models.build("unet", (3, 32, 32), 5, wrong)
    assert refused.value.problems[0].code == "E401"


@needs_unet
def test_the_unet_is_the_packages_own_with_its_names_and_starts_from_the_seed():
    import segmentation_models_pytorch

    torch.manual_seed(3)
    ours = tiny_unet().eval()
    torch.manual_seed(3)
    theirs = segmentation_models_pytorch.Unet(
        "resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(8, 8, 8), in_channels=1, classes=CLASSES
    ).eval()
    assert_same_state(state(ours), state(theirs))
    images = torch.randn(2, 1, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_without_its_package_the_unet_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as refused:
        models.build("unet", (3, 32, 32), 5, {})
    (problem,) = refused.value.problems
    assert problem.code == "E401"
    assert "segmentation_models_pytorch" in problem.message
    assert problem.hint == "pip install 'energybench[vision]'"


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@each_model
def test_it_learns_and_its_ledger_is_what_is_counted(model):
    counter = StepCounter(10**9)
    run = segmentation_run(model=model, counter=counter, optimizer="adam", lr=0.01, epochs=6)
    traced = trace_run(run, CPU)
    work = Work(traced.lines, epochs=6, samples=12, batch=4)
    before = run.evaluate(run.data)["miou"]
    run.train()
    assert run.evaluate(run.data)["miou"] > before
    assert work.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-3)


def test_its_ledger_is_what_is_counted_with_dropout_and_stochastic_depth_too():
    counter = StepCounter(10**9)
    run = segmentation_run(model=dropping_segmenter, counter=counter, epochs=2)
    work = Work(trace_run(run, CPU).lines, epochs=2, samples=12, batch=4)
    run.train()
    assert work.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-3)


def fresh(name: str) -> Method:
    kind = discovery.load(SOURCES[name])
    return discovery.build(kind, name, dict(kind.example))


@cache
def trained_plain() -> dict[str, Tensor]:
    run = segmentation_run()
    run.train()
    return state(run.model)


@pytest.mark.parametrize("model", [small_net, tiny_segmenter], ids=lambda model: model.__name__)
@pytest.mark.parametrize("name", SOURCES)
def test_every_method_trains_it(name, model):
    method = fresh(name)
    assert check_stack([method], Segmentation()) == []
    run = run_or_refusal(
        lambda: segmentation_run([method], model, data=squares(augment=("flip", "crop2")), epochs=6, lr=0.05)
    )
    if run is None:
        return
    assert method.incompatible_recipe({"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}) is None
    run.train()
    assert run.uncalled_overrides() == []
    losses = [point["loss"] for point in run.curve if point["loss"] is not None]
    assert all(math.isfinite(loss) for loss in losses)
    found = run.evaluate(run.data)
    assert set(found) == {"miou", "pixel_accuracy", "loss"}
    run.finish()
    assert [type(module) for module in run.model.modules()] == [type(module) for module in model().modules()]


def test_a_score_that_needs_one_row_of_logits_is_refused_in_words():
    kind = discovery.load(SOURCES["importance"])
    for model, said in ((small_net, "no linear layer"), (tiny_segmenter, "the model's output is")):
        method = discovery.build(kind, "importance", dict(kind.example) | {"score": "last-layer-gradient"})
        with pytest.raises((TypeError, UsageError)) as refused:
            segmentation_run([method], model).train()
        assert said in str(refused.value)


def test_clipping_holds_the_length_of_the_gradient():
    run = segmentation_run(clip=1e-3, momentum=0.0, lr=1.0)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in run.model.parameters()])
    run.step(next(iter(run.data.in_order(4))))
    moved = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_is_judged_in_single(precision):
    run = segmentation_run(model=tiny_segmenter, precision=precision, accumulate=2, clip=1.0, lr=0.05)
    forward = run.forward(next(iter(run.data.in_order(4))))
    assert forward.each.dtype == torch.float32
    run.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    found = judged(run.model, squares(), Segmentation((0.5, 1.0), True))
    assert all(0 <= value <= 1 for name, value in found.items() if name != "loss")


def test_the_same_seed_gives_the_same_weights():
    again = segmentation_run()
    again.train()
    assert_same_state(trained_plain(), state(again.model))


# ── data and suites ───────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def traced_suite(name: str) -> Any:
    """What is known of a shipped suite where there are no data."""
    file = ROOT / "suites" / f"{name}.toml"
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.delenv("ENERGYBENCH_DATA", raising=False)
        spec = spec_of(load(file), Path(folder), device="cpu", download=False)
        return planner.Plan(spec.model_copy(update={"purpose": "trace"})).result()


@pytest.mark.parametrize("name", ["tasks-segmentation", "paper-gradsamp-segmentation"])
def test_its_suites_are_traced_where_there_are_no_data(name):
    found = traced_suite(name)
    assert all("segmentation_models_pytorch" in problem.message for problem in found.problems)
    assert bool(found.problems) != HAS_UNET
    for workload, known in found.workloads.items():
        assert known.ledger, workload
        assert known.data.targets == "mask"


def test_the_papers_segmenter_has_the_flops_of_its_layers():
    """Segmenter-Tiny at 512 px: the products of its linear layers and of attention, forward, for one image."""
    known = traced_suite("paper-gradsamp-segmentation").workloads["segmenter-tiny-ade20k"]
    width, patches, classes = 192, 32 * 32, 150

    def block(tokens: int) -> int:
        return 2 * tokens * width * (3 + 1 + 4 + 4) * width + 2 * 2 * tokens**2 * width

    encoder = 2 * patches * 3 * 16**2 * width + 12 * block(patches + 1)
    decoder = 2 * patches * width**2 + 2 * block(patches + classes)
    decoder += 2 * (patches + classes) * width**2 + 2 * patches * classes * width
    forward = sum(line.flop for line in known.ledger if line.phase == "forward")
    assert forward == pytest.approx(encoder + decoder, rel=1e-3)
    assert (known.samples, known.data.classes, known.data.void) == (20_210, 150, 255)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "void", "train", "test"),
    [("camvid", (3, 360, 480), 11, 11, 367, 233), ("ade20k", (3, 512, 512), 150, VOID, 20_210, 2_000)],
)
def test_a_set_by_its_name_has_its_published_facts_where_it_is_not(
    name, shape, classes, void, train, test, tmp_path, monkeypatch
):
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    found = datasets.prepare(data_settings({"use": name}), tmp_path, known=True)
    assert (found.kind, found.targets, found.shape) == ("stand-in", "mask", shape)
    assert (found.classes, found.void, found.train, found.test) == (classes, void, train, test)
    sized = data_settings({"use": name, "options": {"size": [8, 12]}, "subset": 5})
    assert datasets.prepare(sized, tmp_path, known=True).shape == (3, 8, 12)
    for refused in ({"use": name}, {"use": "voc2012"}, {"use": name, "options": {"folder": "elsewhere"}}):
        with pytest.raises(UsageError):
            datasets.prepare(data_settings(refused), tmp_path, known=refused["use"] != name or "options" in refused)


def camvid_like(folder: Path) -> None:
    """Two frames in each part of SegNet's layout, at 12 × 8 pixels, with a void pixel."""
    from PIL import Image

    for part in ("train", "test"):
        for kind in ("", "annot"):
            (folder / "camvid" / f"{part}{kind}").mkdir(parents=True)
        for number in range(2):
            mask = torch.arange(96, dtype=torch.uint8).view(8, 12) % 12
            Image.fromarray(mask.numpy()).save(folder / "camvid" / f"{part}annot" / f"{number}.png")
            image = (mask[..., None] * 20 + number).expand(8, 12, 3).contiguous()
            Image.fromarray(image.numpy()).save(folder / "camvid" / part / f"{number}.png")


def test_camvid_is_read_with_its_classes_and_its_void(tmp_path, monkeypatch):
    camvid_like(tmp_path)
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    settings = data_settings({"use": "camvid", "options": {"size": [4, 6]}, "augment": ["flip"]})
    described = datasets.prepare(settings, tmp_path / "cache")
    assert (described.targets, described.classes, described.void) == ("mask", 11, 11)
    assert described.class_names[:2] == ("sky", "building")
    assert (described.shape, described.train, described.test) == ((3, 4, 6), 2, 2)
    train, _ = datasets.open_data(described, settings, CPU)
    batch = next(iter(train.in_order(2)))
    assert batch.inputs.shape == (2, 3, 4, 6)
    assert batch.targets.dtype == torch.int64
    net = nn.Conv2d(3, 11, 1)
    run = make_run((), lambda: net, train, Segmentation(), batch=2)
    run.step(batch)
    assert set(run.evaluate(train)) == {"miou", "pixel_accuracy", "loss"}


def test_nothing_of_it_is_imported_until_it_is_used():
    """The table of models names the file; the packages of the U-Net are imported by the first one alone."""
    code = (
        "import sys; from energybench.workloads import models, tasks, datasets\n"
        "models.build('mlp', (1, 2, 2), 2, {})\n"
        "assert not any('segmentation' in name for name in sys.modules), sys.modules\n"
        "models.build('segmenter', (3, 16, 16), 2, {'layers': 1})\n"
        "assert 'segmentation_models_pytorch' not in sys.modules and 'torchmetrics' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_interpolation_of_places_is_exact_at_the_grid_that_they_were_learned_for():
    model = tiny_segmenter().eval()
    places = model.encoder.places
    assert places.shape[-2:] == (4, 4)
    torch.testing.assert_close(F.interpolate(places, (4, 4), mode="bilinear"), places)
