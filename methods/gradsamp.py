"""gradsamp: in some epochs do not train; draw every tensor's update from a distribution fitted to the last real one.

After each real epoch δ = θ_after − θ_before. In a sampled epoch every parameter tensor moves by i.i.d. draws from the
generalized Gaussian fitted to its δ by maximum likelihood, with scale σ + ε: no forward, no backward. BatchNorm
statistics and optimizer state stay as they are; the learning-rate schedule advances.

Paper: GradSamp, Algorithm 1 and §4.1. Promises the nominal share of skipped epochs ("every:5" → 20 %); what it really
saves is the epochs it skipped, minus fit and draw, which are metered. The control that matters is plain training for
the kept epochs, which stands beside it by default.
Composes with everything that leaves `epoch` alone; a matched control runs beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from energybench import Method
from energybench.ggd import GGD, fit


@dataclass
class GradSamp(Method):
    """skip: "every:5" | "random:0.2" | "late-every:5" | "late-random:0.2" (late: only in the second half of training)

    epsilon:           added to the fitted scale σ
    location:          centre of the fit: "median" | "mean" | "zero"
    start_epoch:       the first epoch that may be skipped (counted from 1; epoch 1 never is)
    min_real_between:  real epochs required between two skipped ones
    least_shape:       a tensor whose fitted β is smaller repeats its update. Not the paper's: ε in the scale becomes
                       ε·√(Γ(3/β)/Γ(1/β)) in the draws, 11 ε at β = 0.5, 361 ε at 0.3, 10³¹ ε at 0.05, where the fit of
                       a tensor ends that mostly stands still (attention's key bias, whose gradient is 0)
    """

    skip: str = "every:5"
    epsilon: float = 1e-3
    location: str = "median"
    start_epoch: int = 2
    min_real_between: int = 0
    least_shape: float = 0.3

    def __post_init__(self) -> None:
        self._kind, _, amount = self.skip.partition(":")
        try:
            self._amount = float(amount)
        except ValueError:
            self._amount = math.nan
        every = self._kind in ("every", "late-every") and self._amount >= 2 and self._amount.is_integer()
        random = self._kind in ("random", "late-random") and 0 < self._amount < 1
        if not every and not random:
            raise ValueError(
                f'skip is "every:P" with P ≥ 2 or "random:ρ" with 0 < ρ < 1, or that after "late-"; not \'{self.skip}\''
            )
        if self.location not in ("median", "mean", "zero"):
            raise ValueError(f"location is median, mean or zero, not '{self.location}'")
        if self.epsilon < 0 or self.start_epoch < 2 or self.min_real_between < 0:
            raise ValueError("epsilon and min_real_between are ≥ 0, start_epoch is ≥ 2")

    def skipped_epochs(self, run) -> set[int]:
        """Epochs (from 1) to sample: 1-based e mod P = 0, or Bernoulli(ρ); late from E/2 + 1."""
        chance = torch.rand(run.epochs + 1, generator=run.rng(self.name, "skip"), dtype=torch.float64)
        first = max(self.start_epoch, run.epochs // 2 + 1 if self._kind.startswith("late") else 2)
        chosen: set[int] = set()
        last = -math.inf
        for epoch in range(first, run.epochs + 1):
            drawn = (
                epoch % self._amount == 0 if self._kind.endswith("every") else chance[epoch] < self._amount
            )
            if drawn and epoch - last > self.min_real_between:
                chosen.add(epoch)
                last = epoch
        return chosen

    def kept_epochs(self, run):
        return run.epochs - len(self.skipped_epochs(run))

    def setup(self, run):
        self.acted = False
        self._skipped = self.skipped_epochs(run)
        self._fits: list[GGD | None] = []
        self._log: list[dict[str, float]] = []
        self._epochs = self._real = 0

    def epoch(self, run, data, inner):
        self._epochs += 1
        if run.epoch_number in self._skipped:
            self._draw(run)
            return
        self._real += 1
        parameters = self._parameters(run)
        needed = run.epoch_number + 1 in self._skipped  # only then is this epoch's update fitted
        before = [p.detach().clone() for p in parameters] if needed else []
        inner(data)
        if needed:
            with torch.no_grad():
                self._update = [p - b for p, b in zip(parameters, before, strict=True)]
            self._fits = []

    @torch.no_grad()
    def _draw(self, run):
        run.tally.mark(self)
        parameters = self._parameters(run)
        if not self._fits:  # a second skipped epoch in a row reuses the fit: its δ would be the last draw
            self._fits = [self._fit(update) for update in self._update]
        generator = run.rng(self.name, "draw", run.epoch_number, device=run.device)
        for parameter, ggd, update in zip(parameters, self._fits, self._update, strict=True):
            if ggd is None:  # too few elements, no spread or most at rest: move as in the last real epoch
                parameter += update
                continue
            wide = replace(ggd, scale=ggd.scale + self.epsilon)
            parameter += wide.sample(parameter.shape, generator).to(parameter.dtype)
        self._note(run)

    def _fit(self, update) -> GGD | None:
        try:
            found = fit(update, self.location)
        except ValueError:
            return None
        return found if found.shape >= self.least_shape else None

    def _note(self, run) -> None:
        fitted = [ggd for ggd in self._fits if ggd is not None]
        if fitted:
            middle = len(fitted) // 2
            self._log.append({
                "epoch": run.epoch_number,
                "tensors_fitted": len(fitted),
                "tensors_repeated": len(self._fits) - len(fitted),
                "shape_median": sorted(ggd.shape for ggd in fitted)[middle],
                # the injected noise over the real update's, in scale: 1 + ε/σ
                "noise_ratio_median": sorted(1 + self.epsilon / ggd.scale for ggd in fitted)[middle],
            })  # fmt: skip

    @staticmethod
    def _parameters(run):
        return [p for part in run.task.parts for p in run.parameters(part)]

    def estimate(self, work):
        return work.trained(work.epochs * self._real / self._epochs) if self._epochs else work

    def claims(self):
        share = 1 / self._amount if self._kind.endswith("every") else self._amount
        nominal = share / 2 if self._kind.startswith("late") else share
        return nominal, "training", "GradSamp, Table 2, the nominal share of skipped epochs"

    def diagnostics(self):
        return {"skipped_epochs": sorted(self._skipped), "fits": self._log}
