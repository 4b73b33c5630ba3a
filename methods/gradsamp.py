"""gradsamp: in some epochs do not train; draw every tensor's update from a distribution fitted to the last real one.

After each real epoch δ = θ_after − θ_before. In a sampled epoch every parameter tensor moves by i.i.d. draws from the
generalized Gaussian fitted to its δ by maximum likelihood, with scale σ + ε: no forward, no backward. BatchNorm
statistics and optimizer state stay as they are; the learning-rate schedule advances.

Paper: GradSamp, Algorithm 1 and §4.1. Promises the nominal share of skipped epochs ("every:5" → 20 %), which its own
Table 2 does not skip; what it really saves is the epochs it skipped, minus fit and draw, which are metered. The control
that matters is plain training for the kept epochs, which stands beside it by default.
Measured on two CPU cores, a small MLP on MNIST, 3 blocks: time fell about as the epochs skipped, 63 % [37, 78] for
"random:0.7" at 4.5 points of accuracy less, and 38 % [27, 47] for "late-random:0.7" at held quality; no strategy was
proven better than training for the kept epochs (reports/gradsamp/2026-11-30-194650).
Composes with everything that leaves `epoch` alone; under a forward-only method its skipped epochs save forwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from energybench import Data, Method, TrainingRun, Work
from energybench.algorithms.generalized_gaussian import GGD, LOCATIONS, fit
from energybench.algorithms.gradsamp_bound import bounds
from energybench.algorithms.side_by_side import side_by_side
from energybench.algorithms.update_fits import LEVEL, ChosenUpdates, described_fit, histogram, spread

# Epochs of 200 that the paper's Table 2 skips by its own FLOPs. Its periodic counts come from a later first epoch.
TABLE_2: dict[str, dict[float, int]] = {
    "Pe": {5: 33, 10: 17},
    "DP": {5: 10, 10: 5},
    "Pr": {0.2: 24, 0.5: 65, 0.7: 81},
    "DR": {0.2: 10, 0.5: 25, 0.7: 35},
}
TABLE_2_EPOCHS = 200
TABLE_2_FIRST = {"Pe": 40, "DP": 155}
KINDS = {"Pe": "every", "DP": "late-every", "Pr": "random", "DR": "late-random"}
# What an editor knows of `skip`; the exact rule, and its message, is in __post_init__.
Skip = Annotated[
    str,
    Field(
        json_schema_extra={
            "pattern": r"^((late-)?every:([2-9]|[1-9]\d+)(\.0*)?"
            r"|(late-)?random:(0?\.\d*[1-9]\d*|[1-9](\.\d*)?[eE]-0*[1-9]\d*)"
            r"|table2:(Pe|DP)=(5|10)(\.0*)?|table2:Pr=0?\.[257]0*|table2:DR=0?\.[257]0*)$",
            "examples": ["every:5", "random:0.2", "late-every:5", "late-random:0.2", "table2:Pe=5"],
        }
    ),
]

PICTURED = 3  # tensors of the last fit


@dataclass
class GradSamp(Method):
    """skip: "every:5" | "random:0.2" | "late-every:5" | "late-random:0.2" (late: only in the second half of training),
    e mod P = 0 for epochs e counted from 1, or each epoch with that chance; or "table2:Pe=5" and the other rows of the
    paper's Table 2 (Pe, Pr, DP, DR), which skip as many of 200 epochs as its FLOPs say: Pe from epoch 40 and DP from
    155, Pr and DR that many drawn ones, in proportion for another number of epochs

    epsilon:           added to the fitted scale σ
    location:          centre of the fit: "median" | "mean" | "zero" | "free", the likeliest: the paper's, but it takes
                       longer and leaves a tensor of fewer than about 20 elements without a usable shape
    start_epoch:       the first epoch that may be skipped (counted from 1; epoch 1 never is)
    min_real_between:  real epochs required between two skipped ones; 1 makes "random:ρ" skip ρ/(1+ρ)
    least_shape:       a tensor whose fitted β is smaller repeats its update. Not the paper's: ε in the scale becomes
                       ε·√(Γ(3/β)/Γ(1/β)) in the draws, 11 ε at β = 0.5, 361 ε at 0.3, 10³¹ ε at 0.05, where the fit of
                       a tensor ends that mostly stands still (attention's key bias, whose gradient is 0)
    fit_layers:        names of parameters, with * and ?, of whose updates in `fit_epochs` the fits are kept and drawn
    fit_epochs:        epochs (from 1) of those fits; a sampled one has the fit that it draws from. No weight changes:
                       what is metered are two copies of these parameters in such an epoch, which are held to the end

    In the record: per skipped epoch the medians of shape and of noise over update, and E‖draw‖² of the fitted tensors;
    how far the loss stayed above its minimum, beside the bounds of Theorem 3.1 (algorithms/gradsamp_bound.py), or why
    there is none; for the last fit every tensor's parameters, its Kolmogorov–Smirnov statistic on up to 65,536
    elements, the share that passes at 5 %, and of the three largest tensors a histogram of the real update with the
    fitted density; the same of `fit_layers` in `fit_epochs` (the paper's Figures 2 and 3).
    """

    skip: Skip = "every:5"
    epsilon: Annotated[float, Field(ge=0)] = 1e-3
    location: Literal["median", "mean", "zero", "free"] = "median"
    start_epoch: Annotated[int, Field(ge=2)] = 2
    min_real_between: Annotated[int, Field(ge=0)] = 0
    least_shape: Annotated[float, Field(ge=0)] = 0.3
    fit_layers: tuple[str, ...] = ()
    fit_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()

    def __post_init__(self) -> None:
        kind, _, amount = self.skip.partition(":")
        self._row = ""
        if kind == "table2":
            self._row, _, amount = amount.partition("=")
            kind = KINDS.get(self._row, "")
        try:
            self._amount = float(amount)
        except ValueError:
            self._amount = math.nan
        self._kind = kind
        every = kind in ("every", "late-every") and self._amount >= 2 and self._amount.is_integer()
        random = kind in ("random", "late-random") and 0 < self._amount < 1
        if not every and not random:
            raise ValueError(
                'skip is "every:P" with P ≥ 2 or "random:ρ" with 0 < ρ < 1, or that after "late-", or "table2:Pe=5"; '
                f"not '{self.skip}'"
            )
        if self._row and self._amount not in TABLE_2[self._row]:
            known = ", ".join(f'"table2:{self._row}={amount:g}"' for amount in TABLE_2[self._row])
            raise ValueError(f"of Table 2's rows {self._row} has {known}; not '{self.skip}'")
        if self.location not in LOCATIONS:
            raise ValueError(f"location is {', '.join(LOCATIONS)}, not '{self.location}'")
        if self.epsilon < 0 or self.start_epoch < 2 or self.min_real_between < 0 or self.least_shape < 0:
            raise ValueError("epsilon, min_real_between and least_shape are ≥ 0, start_epoch is ≥ 2")
        self.fit_layers, self.fit_epochs = tuple(self.fit_layers), tuple(self.fit_epochs)
        if bool(self.fit_layers) != bool(self.fit_epochs):
            raise ValueError("fit_layers and fit_epochs go together: of which parameters, after which epochs")
        if min(self.fit_epochs, default=1) < 1 or len(set(self.fit_epochs)) < len(self.fit_epochs):
            raise ValueError(f"fit_epochs are different epochs, counted from 1, not {list(self.fit_epochs)}")

    def skipped_epochs(self, run: TrainingRun) -> set[int]:
        """Epochs (from 1) to sample; late from E/2 + 1."""
        first = max(self.start_epoch, run.epochs // 2 + 1 if self._kind.startswith("late") else 2)
        generator = run.rng(self.name, "skip")
        if self._row in TABLE_2_FIRST:
            first = max(first, math.ceil(TABLE_2_FIRST[self._row] * run.epochs / TABLE_2_EPOCHS))
        elif self._row:
            count = round(TABLE_2[self._row][self._amount] * run.epochs / TABLE_2_EPOCHS)
            return self._drawn(range(first, run.epochs + 1), count, generator)
        chance = torch.rand(run.epochs + 1, generator=generator, dtype=torch.float64)
        chosen: set[int] = set()
        last = -math.inf
        for epoch in range(first, run.epochs + 1):
            drawn = epoch % self._amount == 0 if self._kind.endswith("every") else chance[epoch] < self._amount
            if drawn and epoch - last > self.min_real_between:
                chosen.add(epoch)
                last = epoch
        return chosen

    def _drawn(self, epochs: range, count: int, generator: torch.Generator) -> set[int]:
        """Exactly `count` of these epochs, any such set as likely as another; fewer where they do not fit."""
        between = self.min_real_between
        count = min(count, (len(epochs) + between) // (1 + between))
        # Drawn from a line without the required gaps, which are put back in.
        room = len(epochs) - max(0, count - 1) * between
        places = sorted(torch.randperm(room, generator=generator)[:count].tolist())
        return {epochs[place + number * between] for number, place in enumerate(places)}

    def kept_epochs(self, run: TrainingRun) -> int | None:
        return run.epochs - len(self.skipped_epochs(run))

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._skipped = self.skipped_epochs(run)
        self._fits: list[GGD | None] = []
        self._update: list[Tensor] = []
        self._moved: list[nn.Parameter] = []  # whose updates these are
        self._log: list[dict[str, float]] = []
        self._epochs = self._real = self._last_real = 0
        self._names: list[str] = []
        self._chosen = ChosenUpdates(self.name, self.fit_layers, self.fit_epochs, run.model)
        self._run = run
        self._known = run.task.convexity(run) if self._uncovered(run) is None else None

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        self._epochs += 1
        if run.epoch_number in self._skipped:
            self._draw(run)
            self._chosen.keep(run, self._moved, self._update, of=self._last_real)
            return
        self._real += 1
        self._last_real = run.epoch_number
        parameters = self._parameters(run)
        needed = run.epoch_number + 1 in self._skipped  # only then is this epoch's update fitted
        watched = parameters if needed else self._chosen.parameters(run)
        before = [p.detach().clone() for p in watched]
        inner(data)
        with torch.no_grad():
            update = [torch.sub(p, b, out=b) for p, b in zip(watched, before, strict=True)]
        if needed:
            self._update, self._moved, self._fits = update, parameters, []
        self._chosen.keep(run, watched, update, of=run.epoch_number)

    def _draw(self, run: TrainingRun) -> None:
        run.tally.mark(self)
        if not self._fits:  # a second skipped epoch in a row reuses the fit: its δ would be the last draw
            self._fits = side_by_side([(u.numel(), partial(self._fit, u)) for u in self._update], run.device)
        moves = [(p.numel(), partial(self._move, run, number)) for number, p in enumerate(self._moved)]
        side_by_side(moves, run.device)
        self._note(run)

    def _move(self, run: TrainingRun, number: int) -> None:
        """Draw one parameter's update and add it: by a generator of its own, so that the order is no matter."""
        parameter, ggd, drawn = self._moved[number], self._fits[number], self._update[number]
        if not parameter.requires_grad:
            return
        if ggd is not None:  # else too few elements, no spread or most at rest: it moves as in the last real epoch
            generator = run.rng(self.name, "draw", run.epoch_number, number, device=run.device)
            drawn = self._widened(ggd).sample(parameter.shape, generator)
        parameter.add_(drawn.to(parameter.dtype))

    def _fit(self, update: Tensor) -> GGD | None:
        try:
            distribution = fit(update, self.location)
        except ValueError:
            return None
        return distribution if distribution.shape >= self.least_shape else None

    def _widened(self, ggd: GGD) -> GGD:
        return replace(ggd, scale=ggd.scale + self.epsilon)

    def _note(self, run: TrainingRun) -> None:
        if len(self._names) != len(self._moved):  # not in setup, where layers further out have yet to change the model
            names = {parameter: name for name, parameter in run.model.named_parameters()}
            self._names = [names.get(parameter, "") for parameter in self._moved]
        fitted = [(ggd, u.numel()) for ggd, u in zip(self._fits, self._update, strict=True) if ggd is not None]
        if fitted:
            middle = len(fitted) // 2
            self._log.append(
                {
                    "epoch": run.epoch_number,
                    "tensors_fitted": len(fitted),
                    "tensors_repeated": len(self._fits) - len(fitted),
                    "shape_median": sorted(ggd.shape for ggd, _ in fitted)[middle],
                    # the injected noise over the real update's, in scale: 1 + ε/σ
                    "noise_ratio_median": sorted(1 + self.epsilon / ggd.scale for ggd, _ in fitted)[middle],
                    "draw_square": sum(n * _square(self._widened(ggd)) for ggd, n in fitted),
                }
            )

    @staticmethod
    def _parameters(run: TrainingRun) -> list[nn.Parameter]:
        return [p for part in run.task.parts for p in run.parameters(part)]

    def estimate(self, work: Work) -> Work:
        return work.trained(work.epochs * self._real / self._epochs) if self._epochs else work

    def claims(self) -> tuple[float, str, str] | None:
        share = 1 / self._amount if self._kind.endswith("every") else self._amount
        nominal = share / 2 if self._kind.startswith("late") else share
        return nominal, "training", "GradSamp, Table 2, the nominal share of skipped epochs"

    def diagnostics(self) -> dict[str, Any]:
        """Asked for when the window is closed, so goodness of fit is nobody's energy; of the last fit alone, and of
        those that were asked for, since keeping every epoch's update would take memory that plain training does not."""
        chosen = self._chosen.fits(self.location, self.epsilon)
        return {
            **({"chosen_fits": chosen} if chosen else {}),
            "skipped_epochs": sorted(self._skipped),
            "fits": self._log,
            "theorem": self._theorem(),
            "last_fit": self._last_fit(),
        }

    def _uncovered(self, run: TrainingRun) -> str | None:
        """What Theorem 3.1 does not speak of: it has one gradient step or one draw of mean zero, by chance."""
        recipe = run.recipe
        plain = recipe.optimizer == "sgd" and not recipe.momentum and not recipe.decay and recipe.clip is None
        plain = plain and not recipe.lr_multipliers and recipe.precision != "fp16"  # which leaves updates out
        if self._kind != "random" or self._row or self.min_real_between:
            return "epochs are not sampled independently by one chance"
        if self.location != "zero":
            return 'draws have a mean; location = "zero" has none'
        if not plain or recipe.schedule != "constant" or recipe.warmup_epochs or run.data.steps(recipe.batch) > 1:
            return "an epoch is not one step of plain gradient descent at a constant rate"
        if len(run.methods) > 1:
            return "other methods stand beside it, of whose steps the theorem says nothing"
        augmented = run.data.images is not None and run.data.images.augment
        if augmented or run.data.samples(recipe.batch) < len(run.data):
            return "a step does not see all samples as they are, which the minimum is of"
        return None

    def _theorem(self) -> dict[str, Any]:
        """f(θ_k) − f* as the curve shows it at the start of real epoch k + 1, and the bounds on its mean over runs."""
        run, known = self._run, self._known
        if reason := self._uncovered(run):
            return {"reason": reason}
        if known is None:
            return {"reason": "the task does not know the curvature of its loss"}
        losses = enumerate(point["loss"] for point in run.curve)
        seen = {epoch: loss - known.minimum for epoch, loss in losses if loss is not None}
        if not self._log or any(entry["tensors_repeated"] for entry in self._log) or 0 not in seen:
            return {"reason": "no epoch was sampled, or a tensor repeated its update instead of being drawn"}
        square = max(entry["draw_square"] for entry in self._log)
        try:
            curves = bounds(known, seen[0], run.recipe.lr, self._amount, square, run.epochs - 1)
        except ValueError as error:
            return {"reason": str(error)}
        return {
            "strong_convexity": known.strong_convexity,
            "smoothness": known.smoothness,
            "minimum": known.minimum,
            "step": run.recipe.lr,
            "sampled": self._amount,
            "draw_square": square,
            "bounded": [
                {"epoch": epoch, "observed": gap, **{name: line[epoch] for name, line in curves.items()}}
                for epoch, gap in sorted(seen.items())
            ],
        }

    def _last_fit(self) -> dict[str, Any]:
        if not any(self._fits):
            return {}
        sizes = sorted((u.numel() for u, ggd in zip(self._update, self._fits, strict=True) if ggd), reverse=True)
        tensors: list[dict[str, Any]] = []
        pictures: list[dict[str, Any]] = []
        real = passing = 0.0
        for name, update, ggd in zip(self._names, self._update, self._fits, strict=True):
            flat = update.flatten()
            if ggd is None:
                tensors.append({"name": name, "n": len(flat), "repeated": True})
                continue
            some = spread(flat)
            tensors.append({"repeated": False, **described_fit(name, len(flat), some, ggd, self.epsilon)})
            real += flat.double().square().sum().item()
            passing += tensors[-1]["ks_passes"]
            if len(flat) >= sizes[:PICTURED][-1] and len(pictures) < PICTURED:
                pictures.append({"name": name, **histogram(some, ggd)})
        return {
            "ks_level": LEVEL,
            "ks_pass_rate": passing / len(sizes),
            # root of E‖draw‖² over ‖δ‖², over all fitted tensors
            "noise_over_update": math.sqrt(self._log[-1]["draw_square"] / real),
            "tensors": tensors,
            "histograms": pictures,
        }


def _square(ggd: GGD) -> float:
    """E x²."""
    return ggd.variance + ggd.location**2
