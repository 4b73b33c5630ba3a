"""Diffusion: noise and loss against closed forms, generation by a model that knows, every method that trains it."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CPU, assert_same_state, data_settings, digits, make_run, run_or_refusal, state
from torch import Tensor, nn

from energybench.common import extras
from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_run
from energybench.suite.suite import load
from energybench.suite.tables import TaskTable
from energybench.train import discovery
from energybench.train.batch import Batch
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.images import Images
from energybench.train.method import Method
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import datasets, models, tasks
from energybench.workloads.metrics import features as feature_net
from energybench.workloads.metrics.distributions import frechet_distance
from energybench.workloads.metrics.features import FEATURES, features, how_many, trained_on
from energybench.workloads.models.diffusion import ddpm_unet
from energybench.workloads.tasks import keyed_noise
from energybench.workloads.tasks.diffusion import DDPM, in_range, signal_left

ROOT = Path(__file__).resolve().parents[2]
HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
needs_diffusers = pytest.mark.skipif(not HAS_DIFFUSERS, reason="needs energybench[diffusion]: diffusers")
SOURCES = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}
T, SIDE = 20, 8


class SmallNet(nn.Module):
    """Two convolutions, told of the time by one more channel: (B, 1, H, W), (B,) → (B, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )

    def forward(self, images: Tensor, steps: Tensor) -> Tensor:
        time = (steps.to(images.dtype) / T).view(-1, 1, 1, 1).expand_as(images)
        return self.net(torch.cat([images, time], 1))


class Says(nn.Module):
    """The same of every pixel, whatever it is shown."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, images: Tensor, steps: Tensor) -> Tensor:
        return self.value.expand_as(images)


class Knows(nn.Module):
    """The noise exactly, since every image is the one that it was told of."""

    def __init__(self, image: Tensor, task: DDPM) -> None:
        super().__init__()
        self.image, self.left = nn.Parameter(image), signal_left(task.timesteps, task.schedule)

    def forward(self, images: Tensor, steps: Tensor) -> Tensor:
        left = self.left[steps].view(-1, 1, 1, 1)
        return (images - left.sqrt() * self.image) / (1 - left).sqrt()


def tiny_unet() -> nn.Module:
    settings = {"width": 8, "multipliers": [1, 2], "layers": 1, "groups": 4}
    return models.build("ddpm_unet", (1, SIDE, SIDE), None, settings)


def small_task(**given: Any) -> DDPM:
    return DDPM(**{"timesteps": T, "schedule": "squared-cosine", "sampling_steps": 4, "samples": 6} | given)


def diffusion_run(methods: Any = (), model: Any = SmallNet, **given: Any) -> Any:
    plain = {"data": digits(12), "task": small_task(), "batch": 4, "epochs": 4, "lr": 0.05}
    return make_run(methods, model, **plain | given)


def one_image(count: int = 5) -> tuple[Tensor, Data]:
    """(1, 1, 8, 8) in −1 … 1, and data that are it again and again, as floats."""
    image = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return image, Data(Resident(image.repeat(count, 1, 1, 1), None, CPU), facts=Facts("none"))


@pytest.fixture
def quick_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net of features that has learned next to nothing, where distances do not matter."""
    monkeypatch.setattr(feature_net, "STEPS", 3)


# ── noise by key ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_words_are_those_of_splitmix64():
    """Its published first outputs from the state 0."""
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    found = keyed_noise._words(torch.zeros(1, dtype=torch.long), 4)
    assert [word % 2**64 for word in found[0].tolist()] == wanted


@given(key=st.integers(0, 2**64 - 1), order=st.permutations(range(7)), pieces=st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_a_samples_noise_is_its_own_in_whatever_order_and_pieces_it_is_asked_for(key, order, pieces):
    index = torch.tensor([3, 1000, 0, 2**40, 8, 5, 7])
    noise = keyed_noise.normal(keyed_noise.states(key, index), (2, 3))
    shuffled = index[torch.tensor(order)]
    again = [keyed_noise.normal(keyed_noise.states(key, piece), (2, 3)) for piece in shuffled.tensor_split(pieces)]
    assert torch.equal(torch.cat(again), noise[torch.tensor(order)])
    assert len(noise.flatten().unique()) == noise.numel()
    assert not torch.isin(keyed_noise.normal(keyed_noise.states(key ^ 1, index), (2, 3)), noise).any()


def test_a_sample_that_stands_in_a_batch_twice_has_two_noises():
    index = torch.tensor([4, 9, 4, 4])
    state_ = keyed_noise.states(1, index)
    assert len(state_.unique()) == 4
    assert torch.equal(state_[:2], keyed_noise.states(1, index[:2]))


def test_noise_has_the_moments_tails_and_independence_of_a_normal_distribution():
    """Each within five standard errors."""
    noise = keyed_noise.normal(keyed_noise.states(7, torch.arange(1000)), (201,)).double()
    n = noise.numel()
    assert abs(noise.mean().item()) < 5 / math.sqrt(n)
    for power, moment, variance in ((2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((noise**power).mean().item() - moment) < 5 * math.sqrt(variance / n)
    for limit, share in ((1.0, 0.3173105), (2.0, 0.0455003), (3.0, 0.0026998)):
        assert abs((noise.abs() > limit).double().mean().item() - share) < 5 * math.sqrt(share / n)
    within = (noise[:, :100] * noise[:, 101:]).mean().item()  # the two of one word, and others
    between = (noise[:-1] * noise[1:]).mean().item()
    assert abs(within) < 5 / math.sqrt(100_000)
    assert abs(between) < 5 / math.sqrt(n - 201)


@pytest.mark.parametrize("most", [2, 10, 1000])
def test_steps_of_time_are_drawn_evenly_and_independently_of_the_noise(most):
    state_ = keyed_noise.states(3, torch.arange(50_000))
    steps = keyed_noise.below(state_, most)
    counts = torch.bincount(steps, minlength=most).double()
    assert len(counts) == most
    expected = len(state_) / most
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - (most - 1)) < 5 * math.sqrt(2 * (most - 1))
    noise = keyed_noise.normal(state_, (1,))[:, 0]
    correlation = torch.corrcoef(torch.stack([steps.double(), noise.double()]))[0, 1].item()
    assert abs(correlation) < 5 / math.sqrt(len(state_))


# ── images and features ───────────────────────────────────────────────────────────────────────────────────────────────


def test_normalised_images_come_back_into_their_range():
    images = torch.arange(256, dtype=torch.uint8).repeat(6).view(4, 3, 16, 8)
    prepare = Images([0.1, 0.5, 0.9], [0.2, 0.3, 0.4], (), CPU, facts=Facts("none"))
    data = Data(Resident(images, None, CPU), prepare, facts=Facts("none"))
    batch = next(data.in_order(4))
    torch.testing.assert_close(in_range(data, batch.inputs), images / 127.5 - 1, atol=1e-6, rtol=0)


def test_what_are_no_images_is_told():
    data = digits(4)
    for inputs in (torch.zeros(2, 3), torch.zeros(2, 1, 4, 4, dtype=torch.long), {"image": torch.zeros(2, 1, 4, 4)}):
        with pytest.raises(TypeError, match="diffusion learns images"):
            in_range(data, inputs)


def real_digits(count: int = 400) -> tuple[Tensor, Tensor]:
    """(count, 1, 8, 8) in −1 … 1, and their classes."""
    data = digits(count)
    batch = next(data.in_order(count))
    return in_range(data, batch.inputs), batch.targets


@cache
def net_of_digits() -> Any:
    images, labels = real_digits()
    return trained_on(images, labels, 10)


def test_the_net_of_features_learns_the_classes_and_is_the_same_for_the_same_images():
    images, labels = real_digits()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # as an evaluation may be
        again = trained_on(images, labels, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(state(again.net), state(net_of_digits().net))
    assert again.told_apart == "classes"
    assert again.accuracy > 0.8
    assert not any(parameter.requires_grad for parameter in again.net.parameters())


def test_features_of_the_training_images_vary_by_one_so_that_one_image_alone_is_at_one():
    found = features(net_of_digits().net, real_digits()[0].split(100))
    assert found.shape == (400, FEATURES)
    assert found.double().var(0).sum().item() == pytest.approx(1, rel=1e-5)
    centre = found.mean(0).expand(50, -1)
    assert frechet_distance(centre, found) == pytest.approx(1, rel=1e-4)


def test_other_digits_are_near_and_noise_is_far():
    data = digits(300, test=True)
    known = features(net_of_digits().net, [real_digits()[0]])
    others = features(net_of_digits().net, [in_range(data, next(data.in_order(300)).inputs)])
    random = torch.randn(300, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    noise = features(net_of_digits().net, [random.clamp(-1, 1)])
    near, far = frechet_distance(others, known), frechet_distance(noise, known)
    assert near < 0.1
    assert far > 10 * near


def test_images_without_classes_are_turned():
    images = torch.rand(9, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    shown, wanted = feature_net._Turns(4).show(images, torch.arange(9))
    assert wanted.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    for image, turned, turn in zip(images, shown, wanted.tolist(), strict=True):
        assert torch.equal(turned, torch.rot90(image, turn, (1, 2)))
    wide = torch.rand(3, 1, 2, 6)
    shown, wanted = feature_net._Turns(2).show(wide, torch.arange(3))
    assert wanted.tolist() == [0, 1, 0]
    assert torch.equal(shown[1], wide[1].flip(1, 2))


@pytest.mark.parametrize("labels", [None, torch.zeros(60), torch.zeros(60, 2, dtype=torch.long)])
def test_the_net_of_images_without_classes_learns_turns(labels, monkeypatch):
    monkeypatch.setattr(feature_net, "STEPS", 40)
    images = real_digits(60)[0]
    found = trained_on(images, labels, 10)
    assert found.told_apart == "turns"
    assert found.accuracy > 0.3  # chance is a quarter


def test_the_net_sees_no_more_images_than_memory_has_room_for():
    assert how_many(4000, (1, 28, 28)) == 4000
    assert how_many(162_770, (3, 64, 64)) * 3 * 64 * 64 <= 1 << 24
    assert how_many(60_000, (1, 32, 32)) == 10_000
    assert how_many(9, (3, 9999, 9999)) == 2
    assert how_many(1, (3, 9999, 9999)) == 1


# ── the schedule of the noise ─────────────────────────────────────────────────────────────────────────────────────────


@needs_diffusers
def test_the_linear_schedule_is_that_of_its_paper():
    """β from 10⁻⁴ to 0.02 in even steps, ᾱₜ the product of 1 − β up to t."""
    product, wanted = 1.0, []
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        wanted.append(product)
    torch.testing.assert_close(signal_left(1000, "linear"), torch.tensor(wanted), rtol=1e-4, atol=1e-7)


@needs_diffusers
@pytest.mark.parametrize("steps", [20, 200, 1000])
def test_the_squared_cosine_is_that_of_its_paper(steps):
    """ᾱₜ = cos²(((t + 1)/T + 0.008)/1.008 · π/2) / cos²(0.008/1.008 · π/2), up to β's limit of 0.999 at the end."""

    def cosine(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    wanted = torch.tensor([cosine((t + 1) / steps) / cosine(0) for t in range(steps)])
    found = signal_left(steps, "squared-cosine")
    torch.testing.assert_close(found[:-1], wanted[:-1], rtol=1e-3, atol=1e-7)
    assert found[-1] < 0.01


@needs_diffusers
@pytest.mark.parametrize("schedule", ["linear", "squared-cosine"])
def test_noise_grows_with_time_and_the_variance_of_one_stays_one(schedule):
    left = signal_left(1000, schedule)
    assert left.shape == (1000,)
    assert (left.diff() < 0).all()
    assert 0 <= left[-1] < 1e-4
    assert 1 - left[0] < 1e-3
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1000, 1, 10, 10, generator=random) for _ in range(2))
    noisy = DDPM(1000, schedule).noisy(clean, noise, torch.arange(1000))
    assert noisy.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / noisy.numel()) + 1e-3)


@needs_diffusers
def test_noisy_images_are_diffusers_own():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(T, beta_schedule="squaredcos_cap_v2")
    clean, noise = torch.randn(2, T, 3, 4, 4).unbind()
    steps = torch.arange(T)
    torch.testing.assert_close(small_task().noisy(clean, noise, steps), scheduler.add_noise(clean, noise, steps))


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_diffusers
def test_a_model_that_knows_the_noise_has_no_loss_and_one_that_says_nothing_has_the_noises_variance():
    image, data = one_image(600)
    run = make_run((), lambda: Knows(image, small_task()), data, small_task(), batch=600)
    batch = next(run.data.in_order(600))
    assert run.forward(batch).each.max().item() < 1e-6
    silent = make_run((), Says, data, small_task(), batch=600).forward(batch)
    pixels = 600 * SIDE**2
    assert silent.value.item() == pytest.approx(1, abs=5 * math.sqrt(2 / pixels))
    said = make_run((), lambda: Says(2.0), data, small_task(), batch=600).forward(batch)
    assert said.value.item() == pytest.approx(1 + 4, abs=5 * math.sqrt((2 + 4 * 4) / pixels))


@needs_diffusers
def test_its_outputs_gradient_is_autograds():
    run = diffusion_run()
    batch = next(iter(run.data.in_order(4)))
    outputs = run.forward(batch).outputs.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(run.task.losses(run, outputs, batch).sum(), outputs)
    torch.testing.assert_close(run.task.output_gradient(run, outputs.detach(), batch), wanted)


@needs_diffusers
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 3.0, 0.25, 1.5)])
def test_micro_batches_and_weighted_samples_add_up_to_the_whole_batch(weights):
    """By the same noise in both: else they would be other gradients."""
    net = lambda: nn.Conv2d(1, 1, 3, padding=1).double()  # noqa: E731

    class Timeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, images: Tensor, steps: Tensor) -> Tensor:
            return self.net(images)

    images = torch.randn(6, 1, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    data, found = Data(Resident(images, None, CPU), facts=Facts("none")), []
    for pieces in (1, 3):
        run = make_run((), Timeless, data, small_task(), batch=6, accumulate=pieces)
        batch = Batch(images, None, torch.arange(6), None if weights is None else torch.tensor(weights).double())
        forward = run.gradients(batch)
        found.append(torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()]))
    torch.testing.assert_close(*found)
    each = run.forward(batch).each
    torch.testing.assert_close(forward.each, each.detach(), check_dtype=False)
    loss = (each * (1 if weights is None else torch.tensor(weights).double())).sum() / 6
    wanted = torch.autograd.grad(loss, list(run.model.parameters()))
    torch.testing.assert_close(found[0], torch.cat([gradient.flatten() for gradient in wanted]))


@needs_diffusers
def test_who_looks_twice_at_a_step_sees_one_loss_and_another_step_or_seed_has_another():
    run = diffusion_run()
    batch = next(iter(run.data.in_order(4)))
    first = run.forward(batch, "frozen_stats").each
    assert torch.equal(run.forward(batch, "frozen_stats").each, first)
    run.step_in_epoch = 1
    assert not torch.equal(run.forward(batch, "frozen_stats").each, first)
    run.step_in_epoch, run.epoch_number = 0, 2
    assert not torch.equal(run.forward(batch, "frozen_stats").each, first)
    other = diffusion_run(seed=8)
    other.model = run.model
    assert not torch.equal(other.forward(batch, "frozen_stats").each, first)


@needs_diffusers
def test_evaluation_has_the_same_noise_in_every_epoch_however_the_set_is_cut(quick_features):
    found = []
    for batch, epoch in ((4, 1), (4, 3), (5, 1)):
        run = diffusion_run(batch=batch)
        run.epoch_number = epoch
        found.append(run.evaluate(digits(9, test=True))["loss"])
    assert found[0] == found[1]
    assert found[0] == pytest.approx(found[2], rel=1e-6)


# ── generation, and what it is judged by ──────────────────────────────────────────────────────────────────────────────


@needs_diffusers
@pytest.mark.parametrize("steps", [None, 1, 3, 7, 20])
def test_a_model_that_knows_the_image_generates_it_in_however_many_steps(steps):
    image, data = one_image()
    task = small_task(sampling_steps=steps)
    run = make_run((), lambda: Knows(image, task), data, task, batch=4)
    made = list(task.generated(run, next(run.data.in_order(2)).inputs))
    assert [len(each) for each in made] == [4, 2]
    torch.testing.assert_close(torch.cat(made), image.expand(6, -1, -1, -1), atol=1e-3, rtol=0)


@needs_diffusers
def test_generation_starts_at_the_noisiest_step_and_ends_at_the_least_noisy():
    seen: list[int] = []

    class Watches(Says):
        def forward(self, images: Tensor, steps: Tensor) -> Tensor:
            assert len(steps.unique()) == 1
            assert not torch.is_grad_enabled()
            seen.append(int(steps[0]))
            return super().forward(images, steps)

    _, data = one_image()
    for count in (20, 5, 3):
        seen.clear()
        task = small_task(sampling_steps=count, samples=2)
        list(task.generated(make_run((), Watches, data, task), torch.zeros(1, 1, SIDE, SIDE)))
        assert len(seen) == count
        assert seen[0] == T - 1
        assert seen == sorted(set(seen), reverse=True)
        assert seen[-1] < T / count + 1


@needs_diffusers
def test_generated_images_are_the_same_for_one_seed_and_lie_in_their_range():
    run, like = diffusion_run(), torch.zeros(1, 1, SIDE, SIDE)
    first, second = (torch.cat(list(run.task.generated(run, like))) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (6, 1, SIDE, SIDE)
    assert first.abs().max() <= 1
    assert len(first.flatten(1).unique(dim=0)) == 6
    other = diffusion_run(seed=8)
    other.model = run.model
    assert not torch.equal(torch.cat(list(other.task.generated(other, like))), first)


@needs_diffusers
def test_the_distance_of_a_model_that_knows_the_test_set_is_none_and_of_noise_is_far():
    image, test = one_image()
    train = Data(Resident(*real_digits(200), CPU), facts=Facts("class", 10))
    task = small_task(samples=20)
    known = make_run((), lambda: Knows(image, task), train, task, batch=32).evaluate(test)
    assert set(known) == set(DDPM.reports) == set(DDPM.metrics)
    assert known["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert known["loss"] == pytest.approx(0, abs=1e-6)
    told = task.diagnostics()
    assert told["features_tell_apart"] == "classes"
    assert 0.5 < told["features_accuracy"] <= 1
    fresh_task = small_task(samples=20)
    silent = make_run((), Says, digits(200), fresh_task, batch=32).evaluate(digits(100, test=True))
    told = fresh_task.diagnostics()
    assert told["frechet_distance_of_training"] < 0.2 < told["frechet_distance_of_noise"]
    assert silent["frechet_distance"] > 0.2


@needs_diffusers
def test_images_that_are_no_numbers_have_no_distance(quick_features):
    found = diffusion_run(model=lambda: Says(math.nan)).evaluate(digits(6, test=True))
    assert math.isnan(found["frechet_distance"])


@needs_diffusers
def test_of_one_test_image_there_is_a_loss_and_no_distance(quick_features):
    assert set(diffusion_run().evaluate(digits(1, test=True))) == {"loss"}


@needs_diffusers
@pytest.mark.parametrize(
    "wrong",
    [{"timesteps": 1}, {"schedule": "cosine"}, {"timesteps": 10, "sampling_steps": 11}, {"samples": 1}, {"T": 9}],
)
def test_parameters_that_cannot_be_are_refused(wrong, tmp_path):
    with pytest.raises(UsageError) as refused:
        tasks.task_named(TaskTable.model_validate({"use": "ddpm", **wrong}), tmp_path)
    assert {problem.code for problem in refused.value.problems} == {"E403"}
    given = {"use": "ddpm", "timesteps": 50, "sampling_steps": 10}
    assert tasks.task_named(TaskTable.model_validate(given), tmp_path) == DDPM(50, sampling_steps=10)


@needs_diffusers
def test_what_is_no_noise_of_its_images_is_told():
    class Wrong(Says):
        def forward(self, images: Tensor, steps: Tensor) -> Tensor:
            return images.flatten(1)

    run = diffusion_run(model=Wrong)
    with pytest.raises(TypeError, match="diffusion needs the noise of the images"):
        run.forward(next(iter(run.data.in_order(2))))


# ── the U-Net ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_diffusers
def test_the_unet_is_diffusers_own_with_its_names_and_starts_from_the_seed():
    from diffusers import UNet2DModel

    torch.manual_seed(3)
    ours = models.build("ddpm_unet", (3, 16, 16), None, {"width": 8, "multipliers": [1, 2], "attention": [1]}).eval()
    torch.manual_seed(3)
    theirs = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).eval()
    assert_same_state(state(ours), state(theirs))
    images, steps = torch.randn(2, 3, 16, 16), torch.tensor([0, 17])
    with torch.no_grad():
        assert torch.equal(ours(images, steps).sample, theirs(images, steps).sample)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"groups": 5}, "5 groups"),
        ({"width": 12, "groups": 4, "multipliers": [1]}, "heads of 8"),
        ({"width": 0}, "1 at least"),
        ({"multipliers": []}, "multiplier"),
        ({"attention": [3]}, "levels 0 to 2"),
        ({"multipliers": [1, 1, 1, 1]}, "data.resize = 32"),
    ],
)
def test_a_unet_that_cannot_be_is_refused_before_anything_is_imported(wrong, says):
    with pytest.raises(ValueError, match=says):
        ddpm_unet((1, 28, 28), **wrong)
    with pytest.raises(ValueError, match="it takes images"):
        ddpm_unet((784,))


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (lambda: tasks.task_named("ddpm", Path()), "E403"),
        (lambda: models.build("ddpm_unet", (1, 32, 32), None, {}), "E401"),
    ],
)
def test_without_its_package_it_is_refused_with_what_to_install(build, code, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as refused:
        build()
    (problem,) = refused.value.problems
    assert problem.code == code
    assert "diffusers" in problem.message
    assert problem.hint == "pip install 'energybench[diffusion]'"


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────

each_model = pytest.mark.parametrize("model", [SmallNet, tiny_unet], ids=["net", "unet"])


@needs_diffusers
@each_model
def test_it_learns_and_its_ledger_is_what_is_counted(model):
    counter = StepCounter(10**9)
    run = diffusion_run(model=model, data=digits(64), batch=16, counter=counter, optimizer="adam", lr=0.01, epochs=6)
    traced = trace_run(run, CPU)
    assert (traced.unknown, traced.note) == ((), "")
    work = Work(traced.lines, epochs=6, samples=64, batch=16)
    run.train()
    assert run.curve[-1]["loss"] < 0.9 * run.curve[0]["loss"]
    assert work.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-3)


def fresh(name: str) -> Method:
    kind = discovery.load(SOURCES[name])
    return discovery.build(kind, name, dict(kind.example))


@needs_diffusers
@each_model
@pytest.mark.parametrize("name", SOURCES)
def test_every_method_trains_it(name, model):
    method = fresh(name)
    assert check_stack([method], small_task()) == []
    run = run_or_refusal(
        lambda: diffusion_run([method], model, data=digits(12, augment=("flip", "crop2")), epochs=4, lr=0.01)
    )
    if run is None:
        return
    assert method.incompatible_recipe({"optimizer": "sgd", "lr": 0.01, "momentum": 0.9}) is None
    run.train()
    assert run.uncalled_overrides() == []
    losses = [point["loss"] for point in run.curve if point["loss"] is not None]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    run.finish()
    assert [type(module) for module in run.model.modules()] == [type(module) for module in model().modules()]


@needs_diffusers
@pytest.mark.parametrize("use", [["ema", "gradsamp"], ["ssprop", "importance"]])
def test_stacks_train_the_unet_and_are_judged(use, quick_features):
    run = diffusion_run([fresh(name) for name in use], tiny_unet, lr=0.01)
    run.train()
    found = run.evaluate(digits(6, test=True))
    assert all(math.isfinite(value) for value in found.values())


@needs_diffusers
def test_images_without_labels_train_under_every_score():
    kind = discovery.load(SOURCES["importance"])
    _, data = one_image(8)
    for score in ("output-gradient", "loss", "parameter-gradient"):
        method = discovery.build(kind, "importance", dict(kind.example) | {"score": score})
        run = diffusion_run([method], data=data, epochs=2)
        run.train()
        assert all(math.isfinite(point["loss"]) for point in run.curve)
    method = discovery.build(kind, "importance", dict(kind.example) | {"score": "last-layer-gradient"})
    with pytest.raises(UsageError, match="no linear layer"):
        diffusion_run([method], data=data)


@needs_diffusers
def test_clipping_holds_the_length_of_the_gradient():
    run = diffusion_run(clip=1e-3, momentum=0.0, lr=1.0)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in run.model.parameters()])
    run.step(next(iter(run.data.in_order(4))))
    moved = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


@needs_diffusers
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_is_judged_in_single(precision, quick_features):
    run = diffusion_run(model=tiny_unet, precision=precision, accumulate=2, clip=1.0, lr=0.01)
    forward = run.forward(next(iter(run.data.in_order(4))))
    assert forward.each.dtype == torch.float32
    run.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    assert all(math.isfinite(value) for value in run.evaluate(digits(6, test=True)).values())


@needs_diffusers
def test_the_same_seed_gives_the_same_weights_and_judging_changes_none(quick_features):
    plain, judged = diffusion_run(), diffusion_run()
    plain.train()
    judged.train(lambda run: run.evaluate(digits(6, test=True)))
    assert_same_state(state(plain.model), state(judged.model))


# ── data and suites ───────────────────────────────────────────────────────────────────────────────────────────────────


def write_images(folder: Path, count: int, first: int = 0, size: tuple[int, int] = (6, 4)) -> None:
    """Grey images (width, height) of a brightness of their own."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("RGB", size, (number, number, number)).save(folder / f"{number:06}.png")


def read(use: str, folder: Path, **given: Any) -> tuple[Any, Data, Data]:
    spec = data_settings({"use": use} | given)
    described = datasets.prepare(spec, folder / "cache", base=folder)
    return described, *datasets.open_data(described, spec, CPU)


def shades(data: Data) -> list[int]:
    """The number of each image, which is its brightness."""
    found = (in_range(data, batch.inputs) for batch in data.in_order(3))
    return [round(value) for batch in found for value in ((batch.mean((1, 2, 3)) + 1) * 127.5).tolist()]


def test_a_folder_in_two_parts_is_read_without_labels(tmp_path):
    write_images(tmp_path / "faces" / "Train" / "a", 4, 10)
    write_images(tmp_path / "faces" / "Train", 2)
    write_images(tmp_path / "faces" / "val", 3, 200)
    described, train, test = read("unlabelled_folder", tmp_path, options={"folder": "./faces", "size": 4})
    assert (described.targets, described.classes, described.shape) == ("none", None, (3, 4, 4))
    assert shades(train) == [0, 1, 10, 11, 12, 13]
    assert shades(test) == [200, 201, 202]
    batch = next(train.in_order(2))
    assert batch.targets is None
    assert batch.inputs.shape == (2, 3, 4, 4)


@pytest.mark.parametrize("inside", ["", "train", "more"])
def test_of_one_folder_a_share_is_kept_for_testing_by_the_names_of_its_files(tmp_path, inside):
    write_images(tmp_path / "faces" / inside, 20)
    found = [read("unlabelled_folder", tmp_path, options={"folder": "./faces"})[1:] for _ in range(2)]
    train, test = map(shades, found[0])
    assert [shades(data) for data in found[1]] == [train, test]
    assert (len(train), len(test)) == (18, 2)
    assert sorted(train + test) == list(range(20))
    options = {"folder": "./faces", "holdout": 0.5}
    more = shades(read("unlabelled_folder", tmp_path, options=options)[2])
    assert len(more) == 10
    assert set(test) <= set(more)
    assert found[0][0].images is not None
    assert next(found[0][0].in_order(1)).inputs.shape == (1, 3, 4, 6)  # of the first image


@pytest.mark.parametrize(
    ("folders", "options", "says"),
    [
        ({"": 1}, {}, "has one image"),
        ({"": 4}, {"holdout": 0.0}, "a share of the images"),
        ({"": 4}, {"holdout": True}, "a share of the images"),
        ({"": 4}, {"holdout": 2}, "a share of the images"),
        ({"train": 2, "test": 2}, {"holdout": 0.5}, "test/ of its own"),
        ({"train": 2, "test": 0}, {}, "no image in faces/test/"),
        ({"test": 2}, {}, "no train/"),
        ({"": 0}, {}, "no image in faces/"),
        ({"": 4}, {"size": "x"}, "options.size"),
        ({"": 4}, {"hold": 0.5}, "no option 'hold'"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_in_words(tmp_path, folders, options, says):
    for name, count in folders.items():
        write_images(tmp_path / "faces" / name, count)
    with pytest.raises(UsageError) as refused:
        read("unlabelled_folder", tmp_path, options={"folder": "./faces", **options})
    (problem,) = refused.value.problems
    assert problem.code == "E402"
    assert says in problem.message


def test_a_file_that_is_no_image_is_named(tmp_path):
    write_images(tmp_path / "faces", 4)
    (tmp_path / "faces" / "broken.jpg").write_text("no image", encoding="utf-8")
    with pytest.raises(UsageError, match=r"broken\.jpg"):
        read("unlabelled_folder", tmp_path, options={"folder": "./faces"})


LISTS = {
    "list_eval_partition.txt": ["{} {}", ""],
    "list_eval_partition.csv": ["{},{}", "image_id,partition"],
    "Eval/list_eval_partition.txt": ["{}   {}", ""],
}


@pytest.mark.parametrize("listed", LISTS)
@pytest.mark.parametrize("nested", ["", "img_align_celeba"])
def test_celeba_is_read_by_its_authors_partition(tmp_path, monkeypatch, listed, nested):
    write_images(tmp_path / "celeba" / "img_align_celeba" / nested, 9, size=(8, 12))
    line, heading = LISTS[listed]
    parts = [0, 0, 1, 2, 0, 1, 2, 0, 2]
    lines = [heading, *(line.format(f"{number:06}.png", part) for number, part in enumerate(parts)), ""]
    (tmp_path / "celeba" / listed).parent.mkdir(exist_ok=True)
    (tmp_path / "celeba" / listed).write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    described, train, test = read("CelebA", tmp_path, options={"size": 4})
    assert (described.targets, described.classes, described.shape) == ("none", None, (3, 4, 4))
    assert shades(train) == [0, 1, 4, 7]
    assert shades(test) == [3, 6, 8]


def test_celeba_may_lie_in_two_folders_and_is_else_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    write_images(tmp_path / "celeba" / "train", 2)
    with pytest.raises(UsageError, match="neither list_eval_partition"):
        read("celeba", tmp_path)
    write_images(tmp_path / "celeba" / "test", 2)
    assert read("celeba", tmp_path)[0].shape == (3, 64, 64)
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("000000.png 0\n000001.png 2\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no image in celeba/img_align_celeba/"):
        read("celeba", tmp_path)
    write_images(tmp_path / "celeba" / "img_align_celeba", 1)
    with pytest.raises(UsageError) as refused:
        read("celeba", tmp_path)
    assert "000001.png" in refused.value.problems[0].hint
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("000000.png 0\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no image to test"):
        read("celeba", tmp_path)


def test_celeba_has_its_published_counts_where_it_is_not_and_no_labels(tmp_path, monkeypatch):
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    spec = data_settings({"use": "celeba", "subset": 100})
    found = datasets.prepare(spec, tmp_path, known=True)
    assert (found.kind, found.targets, found.shape, found.classes) == ("stand-in", "none", (3, 64, 64), None)
    assert (found.train, found.test) == (100, 19_962)
    train, _ = datasets.open_data(found, spec, CPU)
    batch = next(train.in_order(3))
    assert (batch.inputs.shape, batch.targets) == ((3, 3, 64, 64), None)
    with pytest.raises(UsageError):
        datasets.prepare(spec, tmp_path)


def test_files_that_are_not_resident_are_streamed_without_labels(tmp_path):
    write_images(tmp_path / "faces", 10)
    options = {"folder": "./faces", "size": 4}
    given = {"options": options, "resident": 100, "workers": 0, "augment": ["flip"], "subset": 6}
    described, train, _ = read("unlabelled_folder", tmp_path, **given)
    assert (described.kind, described.train) == ("streamed", 6)
    batch = next(train.load([torch.tensor([1, 0])], lambda number: torch.Generator().manual_seed(0)))
    assert batch.targets is None
    assert batch.inputs.shape == (2, 3, 4, 4)


@cache
def traced_suite(name: str) -> Any:
    """What is known of a shipped suite where there are no data."""
    file = ROOT / "suites" / f"{name}.toml"
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.delenv("ENERGYBENCH_DATA", raising=False)
        spec = spec_of(load(file), Path(folder), device="cpu", download=False)
        return planner.Plan(spec.model_copy(update={"purpose": "trace"})).result()


@pytest.mark.parametrize("name", ["tasks-diffusion", "paper-ssprop-diffusion"])
def test_its_suites_are_traced_where_there_are_no_data(name):
    found = traced_suite(name)
    assert all("diffusers" in problem.message for problem in found.problems)
    assert bool(found.problems) != HAS_DIFFUSERS
    if HAS_DIFFUSERS:
        assert found.workloads
    for workload, known in found.workloads.items():
        assert known.ledger, workload
        assert not known.not_in_ledger


@needs_diffusers
def test_the_papers_celeba_has_its_images_and_the_flops_of_its_convolutions():
    known = traced_suite("paper-ssprop-diffusion").workloads["ddpm-celeba"]
    assert (known.samples, known.data.targets, known.data.shape) == (162_770, "none", (3, 64, 64))
    forward = {line.module: line.flop for line in known.ledger if line.phase == "forward" and line.op == "conv"}
    for module in ("conv_in", "conv_out"):
        assert forward[module] == 2 * 64 * 64 * 3 * 128 * 9, module
    assert max(forward.values()) == 2 * 64 * 64 * 256 * 256 * 9  # behind the last doubling, as wide as the level below


@needs_diffusers
def test_no_image_is_generated_to_plan_a_run(monkeypatch, tmp_path):
    """The paper's would take hours, and at its batch more memory than a small machine has."""

    def refused(*_: Any) -> Any:
        raise AssertionError("it was evaluated")

    monkeypatch.setattr(DDPM, "evaluate", refused)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class net(nn.Module):\n"
        "    def __init__(self, shape): super().__init__(); self.net = nn.Conv2d(shape[0], shape[0], 3, padding=1)\n"
        "    def forward(self, images, steps): return self.net(images)\n",
        encoding="utf-8",
    )
    (tmp_path / "d.toml").write_text(
        'schema = 1\nsuite = "d"\ntrials = { blocks = 1, warmup = "1 steps", threads = 1 }\n'
        'measure = { energy = "off" }\n[accept.quality]\nmetric = "frechet_distance"\n'
        'loses_at_most = "0.1 units"\nalso = ["loss", "psnr_db"]\n'
        '[[workload]]\nname = "w"\ntask = { use = "ddpm", timesteps = 10 }\nmodel = { use = "net.py" }\n'
        'data = { use = "digits", batch = 8, subset = 16 }\ntrain = { epochs = 2, lr = 0.01 }\n',
        encoding="utf-8",
    )
    spec = spec_of(load(tmp_path / "d.toml"), tmp_path, device="cpu", download=False)
    problems = planner.Plan(spec).result().problems
    assert [problem.code for problem in problems] == ["E406"]
    assert "'psnr_db'" in problems[0].message
    assert problems[0].hint == "its task reports: frechet_distance, loss"


def test_nothing_of_it_is_imported_until_it_is_used():
    code = (
        "import sys; from energybench.workloads import models, tasks, datasets\n"
        "models.build('mlp', (1, 2, 2), 2, {})\n"
        "assert not any('diffus' in name for name in sys.modules), sys.modules\n"
        "import energybench.workloads.tasks.diffusion, energybench.workloads.models.diffusion\n"
        "assert 'diffusers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
