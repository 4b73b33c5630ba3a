"""Denoising diffusion (Ho, Jain and Abbeel 2020, algorithms 1 and 2): the model predicts the noise in an image.

A sample's loss is the mean squared error of its noise, at a step of time that is drawn for it. Both are keyed by the
run's seed, the epoch, the step and the sample (`keyed_noise.py`): micro-batches add up to the whole batch, and a method
that looks twice at a step, as one without back-propagation does, sees one loss. In evaluation mode, and so in probes of
methods, a sample's noise and time are always the same.

Quality is the Fréchet distance between generated images and the test set, on the features of a small net that is
trained from the training images after the window is closed (`metrics/features.py`). It is not FID, which is of
Inception's features; its unit is the spread of the training images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from energybench.common.metrics import Better, Metric
from energybench.common.torchvision_shim import import_torchvision
from energybench.train.batch import Batch, Forward
from energybench.train.method import Task
from energybench.workloads.metrics.distributions import frechet_distance
from energybench.workloads.metrics.features import AT_ONCE, FeatureNet, Trained, features, how_many, trained_on
from energybench.workloads.tasks import keyed_noise

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

Schedule = Literal["linear", "squared-cosine"]
IN_DIFFUSERS: dict[str, str] = {"linear": "linear", "squared-cosine": "squaredcos_cap_v2"}


@dataclass
class DDPM(Task):
    """Denoising diffusion: the noise in an image by its squared error; quality is a Fréchet distance of what it makes.

    inputs (B, C, H, W); the model is called with noisy images and their steps of time, and returns their noise.

    timesteps: of which the first has next to no noise and the last next to nothing else
    schedule: of the noise: "linear" from 1e-4 to 0.02 a step, made for 1,000 of them, or "squared-cosine"
    sampling_steps: of time that a generated image passes through; all of them if not given
    samples: images that are generated to be compared with the test set
    """

    timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    schedule: Schedule = "linear"
    sampling_steps: Annotated[int, Field(ge=1)] | None = None
    samples: Annotated[int, Field(ge=2)] = 1000

    name = "ddpm"
    metrics: ClassVar[Mapping[str, Metric | Better]] = {
        "frechet_distance": Metric(better="lower", least=0.0),
        "loss": Metric(better="lower", least=0.0),
    }
    reports = ("frechet_distance", "loss")  # not tried before a run: a paper's would take hours

    def __post_init__(self) -> None:
        if self.sampling_steps is not None and self.sampling_steps > self.timesteps:
            raise ValueError(f"sampling_steps are some of the {self.timesteps} timesteps, not {self.sampling_steps}")
        self._features: Trained | None = None  # made by the first evaluation
        self._told: dict[str, Any] = {}

    def setup(self, run: TrainingRun) -> None:
        signal_left(self.timesteps, self.schedule)  # imports diffusers now, not in the first step

    # ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        """Its outputs are the error of the predicted noise (B, C, H, W), which differs from the prediction by a
        constant."""
        clean = in_range(run.data, batch.inputs)
        noise, steps = self._draws(run, batch, clean.shape[1:])
        noisy = self.noisy(clean, noise, steps).to(batch.inputs.dtype)
        error = predicted(run.model, noisy, steps) - noise  # of single precision, or of what is wider
        each = self.losses(run, error, batch)
        return Forward(each.mean(), each, error)

    def losses(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """outputs: the errors, as `forward` has them."""
        return outputs.square().mean((1, 2, 3))

    def output_gradient(self, run: TrainingRun, outputs: Tensor, batch: Batch) -> Tensor:
        """2·error / (C·H·W): (B, C, H, W)."""
        return 2 * outputs / outputs[0].numel()

    def noisy(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """√ᾱₜ·x + √(1 − ᾱₜ)·ε, of each image at its step of time (equation 4)."""
        left = signal_left(self.timesteps, self.schedule).to(steps.device)[steps].view(-1, 1, 1, 1)
        return left.sqrt() * clean + (1 - left).sqrt() * noise

    def _draws(self, run: TrainingRun, batch: Batch, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Each sample's noise (B, *shape) and step of time (B,)."""
        moment = ("training", run.epoch_number, run.step_in_epoch) if run.model.training else ("evaluation",)
        state = keyed_noise.states(run.rng(self.name, *moment).initial_seed(), batch.index)
        return keyed_noise.normal(state, shape), keyed_noise.below(state, self.timesteps)

    # ── quality ───────────────────────────────────────────────────────────────────────────────────────────────

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """frechet_distance of `samples` generated images to `data`, of which it takes two; and the mean loss there."""
        seen, losses, like = [], [], None
        net = self._feature_net(run)
        for batch in data.in_order(run.recipe.batch):  # no larger than what training has room for
            losses.append(cast(Tensor, self.forward(run, batch).each).double())
            seen.append(features(net, [in_range(data, batch.inputs)]))
            like = batch.inputs
        if like is None:
            raise ValueError("there is no image to evaluate on")
        loss = torch.cat(losses).mean().item()
        real = torch.cat(seen)
        if len(real) < 2:
            return {"loss": loss}
        self._compare_others(run, net, real, like)
        made = features(net, self.generated(run, like))
        distance = frechet_distance(made, real) if bool(made.isfinite().all()) else float("nan")
        return {"frechet_distance": distance, "loss": loss}

    def generated(self, run: TrainingRun, like: Tensor) -> Iterator[Tensor]:
        """`samples` images, in batches: (b, C, H, W), −1 … 1 (algorithm 2). The same noise for every model of a seed.

        like: inputs of the model, whose size and kind of numbers the images have
        """
        scheduler = _scheduler(self.timesteps, self.schedule)
        scheduler.set_timesteps(self.sampling_steps or self.timesteps)
        random = run.rng(self.name, "generated")  # of the CPU, so that every device starts from the same
        for images in self._noise(run, like, random):
            with torch.no_grad():  # else every pass through the model is kept
                for step in scheduler.timesteps:
                    noise = predicted(run.model, images.to(like.dtype), step.expand(len(images)).to(run.device))
                    images = scheduler.step(noise.float(), int(step), images, generator=random).prev_sample
            yield images.clamp(-1, 1)

    def _noise(self, run: TrainingRun, like: Tensor, random: torch.Generator) -> Iterator[Tensor]:
        """What `samples` images begin as, in batches no larger than what training has room for."""
        for start in range(0, self.samples, run.recipe.batch):
            count = min(run.recipe.batch, self.samples - start)
            yield torch.randn(count, *like.shape[1:], generator=random).to(run.device)

    def _feature_net(self, run: TrainingRun) -> FeatureNet:
        if self._features is None:
            images, labels = self._training_images(run)
            found = self._features = trained_on(images, labels, run.data.facts.classes)
            self._told = {"features_tell_apart": found.told_apart, "features_accuracy": found.accuracy}
        return self._features.net

    def _compare_others(self, run: TrainingRun, net: FeatureNet, real: Tensor, like: Tensor) -> None:
        """How far from the test set the training images are, and noise: what the distance can be read by."""
        if "frechet_distance_of_training" not in self._told:
            known = features(net, self._training_images(run)[0].split(AT_ONCE))
            noise = self._noise(run, like, run.rng(self.name, "noise"))
            self._told["frechet_distance_of_training"] = frechet_distance(known, real)
            self._told["frechet_distance_of_noise"] = frechet_distance(
                features(net, (each.clamp(-1, 1) for each in noise)), real
            )

    def _training_images(self, run: TrainingRun) -> tuple[Tensor, Tensor | None]:
        """Some of them at random, always the same, in −1 … 1, and their labels."""
        shape = in_range(run.data, next(run.data.zipped(()).load([torch.arange(1)])).inputs).shape[1:]
        index = torch.randperm(len(run.data), generator=torch.Generator().manual_seed(0))
        index = index[: how_many(len(index), shape)]
        images, labels = torch.empty(len(index), *shape), []
        for start, batch in enumerate(run.data.zipped(()).load(index.split(AT_ONCE))):
            images[start * AT_ONCE :][: len(batch)] = in_range(run.data, batch.inputs)
            labels.append(batch.targets)
        known = run.data.facts.targets == "class" and all(isinstance(each, Tensor) for each in labels)
        return images, torch.cat(labels).cpu() if known else None

    def diagnostics(self) -> dict[str, Any]:
        """What the net of features learned, and the distances that others have: what a perfect model would reach, and
        what one that has learned nothing has."""
        return self._told


def in_range(data: Data, inputs: Any) -> Tensor:
    """Images as diffusion has them, −1 … 1: of a set of images from their normalised values, of others as they are.

    Raises:
        TypeError: for what is no batch of images
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
        given = f"{inputs.dtype}, {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"diffusion learns images, floating-point (samples, channels, height, width), not {given}")
    if data.images is None:
        return inputs
    taken, multiplied = (each.to(inputs.device) for each in data.images.scales[""])
    return inputs / (multiplied * 127.5) + (taken / 127.5 - 1)


def predicted(model: Any, noisy: Tensor, steps: Tensor) -> Tensor:
    """What the model says of the noise: a tensor of its own, or diffusers' `sample`."""
    outputs = model(noisy, steps)
    found = getattr(outputs, "sample", outputs)
    if not isinstance(found, Tensor) or found.shape != noisy.shape:
        given = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise TypeError(f"the model returns {given}; diffusion needs the noise of the images, {tuple(noisy.shape)}")
    return found


@cache
def signal_left(timesteps: int, schedule: Schedule) -> Tensor:
    """ᾱₜ of every step of time, (timesteps,), as diffusers has them: what is left of an image's variance."""
    left: Tensor = _scheduler(timesteps, schedule).alphas_cumprod
    return left


def _scheduler(timesteps: int, schedule: Schedule) -> Any:
    import_torchvision()  # before what imports it
    from diffusers import DDPMScheduler

    # Fewer steps end where the first of all begins, at noise alone; diffusers' own spacing leaves out the noisiest.
    return DDPMScheduler(timesteps, beta_schedule=IN_DIFFUSERS[schedule], timestep_spacing="trailing")
