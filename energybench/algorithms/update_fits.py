"""Generalized Gaussians beside the updates that they were fitted to: parameters, goodness of fit and a histogram.

What GradSamp's record holds of its last fit, and of the layers and epochs that a suite names (the paper's Figures 2 and
3). All of it is made when the metered window is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from energybench.algorithms.generalized_gaussian import GGD, fit, goodness
from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.name_patterns import matches

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun

LEVEL = 0.05  # of the Kolmogorov–Smirnov test
TESTED = 65_536  # elements of a tensor that a goodness of fit looks at, evenly spread
BINS = 41
MOST = 24  # updates of one training that are kept, since each is held until its end


@dataclass(frozen=True)
class _Update:
    """What epoch `of` changed in a parameter, for the record's `epoch`: its own, or a later sampled one's."""

    name: str
    epoch: int
    of: int
    values: Tensor


class ChosenUpdates:
    """The updates of some parameters in some epochs, held until the window is closed.

    Args:
        method: whose they are, for messages
        layers: names of parameters, with * and ?
        epochs: counted from 1
        model:  as it is set up

    Raises UsageError E304 for a name that no parameter has, and for more updates than may be held.
    """

    def __init__(self, method: str, layers: Sequence[str], epochs: Sequence[int], model: nn.Module) -> None:
        self._layers, self._epochs, self._updates = layers, frozenset(epochs), list[_Update]()
        names = [name for name, _ in model.named_parameters()]
        for pattern in layers:
            if not matches(pattern, names):
                message = f"'{method}': fit_layers: no parameter of the model has a name like '{pattern}'"
                raise UsageError(Problem("E304", message, "", _hint(pattern, names)))
        count = sum(map(self._is_chosen, names)) * len(self._epochs)
        if count > MOST:
            message = f"'{method}': fit_layers and fit_epochs are {count} updates; at most {MOST} are kept"
            raise UsageError(Problem("E304", message, "", "fewer epochs, or names in place of patterns"))

    def _is_chosen(self, name: str) -> bool:
        return any(matches(pattern, [name]) for pattern in self._layers)

    def parameters(self, run: TrainingRun) -> list[nn.Parameter]:
        """Whose updates in this epoch are asked for; none in most epochs."""
        if run.epoch_number not in self._epochs:
            return []
        return [parameter for name, parameter in run.model.named_parameters() if self._is_chosen(name)]

    def keep(self, run: TrainingRun, parameters: Sequence[nn.Parameter], updates: Sequence[Tensor], of: int) -> None:
        """Of these updates those that are asked for now. of: the epoch that made them"""
        if run.epoch_number not in self._epochs:
            return
        chosen = {id(parameter): name for name, parameter in run.model.named_parameters() if self._is_chosen(name)}
        self._updates += [
            _Update(chosen[id(parameter)], run.epoch_number, of, update)
            for parameter, update in zip(parameters, updates, strict=True)
            if id(parameter) in chosen
        ]

    def fits(self, location: str, epsilon: float) -> dict[str, Any]:
        """For the record; {} where nothing was asked for. location, epsilon: as the method has them"""
        if not self._epochs:
            return {}
        tensors: list[dict[str, Any]] = []
        pictures: list[dict[str, Any]] = []
        for update in self._updates:
            name, flat = f"epoch {update.epoch}: {update.name}", update.values.flatten()
            some = spread(flat)
            try:
                ggd = fit(flat, location)
            except ValueError as error:
                tensors.append({"name": name, "n": len(flat), "update_of_epoch": update.of, "reason": str(error)})
                continue
            tensors.append({**described_fit(name, len(flat), some, ggd, epsilon), "update_of_epoch": update.of})
            pictures.append({"name": name, **histogram(some, ggd)})
        seen = {update.epoch for update in self._updates}
        return {
            "ks_level": LEVEL,
            "epochs_without": sorted(self._epochs - seen),  # which never came
            "tensors": tensors,
            "histograms": pictures,
        }


def _hint(pattern: str, names: Sequence[str]) -> str:
    if any(name.startswith(f"{pattern}.") for name in names):
        return f'did you mean "{pattern}.*"?'
    close = nearest(pattern, names)
    return close if close.startswith("did you mean") or not names else f"such as {names[0]}"  # and no list of hundreds


def spread(flat: Tensor) -> Tensor:
    """Up to TESTED elements of (n,), evenly spread, on the CPU."""
    return flat[:: -(-len(flat) // TESTED)].cpu()


def described_fit(name: str, count: int, some: Tensor, ggd: GGD, epsilon: float) -> dict[str, Any]:
    """The law of a tensor's `count` elements and how well it fits `some` of them.

    noise_ratio: the scale that is drawn with over the fitted one, 1 + ε/σ
    """
    statistic, p_value = goodness(some, ggd)
    return {
        "name": name,
        "n": count,
        "location": short(ggd.location),
        "scale": short(ggd.scale),
        "shape": short(ggd.shape),
        "noise_ratio": short(1 + epsilon / ggd.scale),
        "ks": short(statistic),
        "ks_n": len(some),
        "ks_passes": p_value >= LEVEL,
    }


def histogram(values: Tensor, ggd: GGD) -> dict[str, Any]:
    """Density of the values in equal bins about the location, which hold 99 % of them, and the fitted one there."""
    reach = (values.double() - ggd.location).abs().quantile(0.99).item() or ggd.scale
    edges = ggd.location + torch.linspace(-reach, reach, BINS + 1, dtype=torch.float64)
    counts = torch.histogram(values.double(), edges).hist
    # The mean over a bin: where β < 1 the density has a peak that a bin's middle overstates.
    inside = ggd.cdf(edges).diff()
    width = 2 * reach / BINS
    return {
        "from": short(edges[0].item()),
        "to": short(edges[-1].item()),
        "density": [short(share) for share in (counts / (len(values) * width)).tolist()],
        "fitted": [short(share) for share in (inside / width).tolist()],
    }


def short(value: float) -> float:
    """Five digits, as records hold them."""
    return float(f"{value:.5g}")
