"""Small models, small data and runs of them, for any test that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from energybench.algorithms.equilibrium import Motion
from energybench.common.errors import UsageError
from energybench.common.hashing import stable_seed
from energybench.common.units import RESOLVED
from energybench.suite.tables import DataTable
from energybench.train.data import Data, Resident
from energybench.train.images import Images
from energybench.train.method import Method, Task
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.trial.counting_layer import CountedRun, StepCounter
from energybench.workloads import datasets
from energybench.workloads.tasks.classification import Classification

CPU = torch.device("cpu")
CLASSES = 10


class TinyTransformer(nn.Module):
    """A patch convolution, one pre-norm block of attention and MLP, a mean and a linear head."""

    def __init__(self, width: int = 16, heads: int = 2, patch: int = 2, side: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv2d(1, width, patch, patch)
        self.places = nn.Parameter(torch.randn(1, (side // patch) ** 2, width) * 0.02)
        self.before, self.between, self.after = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2) + self.places
        batch, length, width = x.shape
        qkv = self.qkv(self.before(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(F.gelu(self.up(self.between(x))))
        return self.head(self.after(x).mean(1))


class StackedTransformer(nn.Module):
    """A patch convolution, three of torch's encoder layers one after another, a mean and a linear head."""

    def __init__(self, width: int = 16, heads: int = 2, patch: int = 2, layers: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, patch, patch)
        layer = partial(nn.TransformerEncoderLayer, width, heads, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def tiny_cnn(widths: Sequence[int] = (8, 16)) -> nn.Module:
    """Convolution, BatchNorm and ReLU twice, then a linear head: what ssprop and dropout look for."""
    first, second = widths
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(second, CLASSES),
    )


def tiny_mlp(features: int = 6, out: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, out))


MODELS: dict[str, Callable[[], nn.Module]] = {"cnn": tiny_cnn, "transformer": TinyTransformer}


@cache
def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    parts = datasets.digits()
    return parts["train"], parts["test"]


def digits(count: int = 96, augment: Sequence[str] = (), *, test: bool = False, drop_last: bool = False) -> Data:
    """The first `count` real digits: 8×8, one channel, resident."""
    images, labels = _digits()[test]
    prepare = Images([0.3], [0.375], augment, CPU)
    return Data(Resident(images[:count], labels[:count], CPU), prepare, drop_last=drop_last)


def vectors(count: int = 24, features: int = 6, classes: int = 3, dtype: torch.dtype = torch.float64) -> Data:
    """Random vectors with random labels, in double precision so that sums can be compared closely."""
    random = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, features, generator=random, dtype=dtype)
    return Data(Resident(inputs, torch.randint(classes, (count,), generator=random), CPU))


def make_run(
    methods: Sequence[Method] = (),
    model: Callable[[], nn.Module] = tiny_cnn,
    data: Data | None = None,
    task: Task | None = None,
    seed: int = 7,
    epochs: int = 2,
    batch: int = 32,
    counter: StepCounter | None = None,
    **recipe: Any,
) -> Run:
    """A run whose initial weights depend on `seed` alone, as `cell.build` makes it; with a counter, counted."""
    torch.manual_seed(stable_seed(seed, "init"))
    settings = Recipe(epochs=epochs, batch=batch, **{"lr": 0.05, "momentum": 0.9} | recipe)
    kind: Any = Run if counter is None else partial(CountedRun, counting=counter)
    return kind(
        task or Classification(), methods, settings, model(), digits() if data is None else data, seed=seed, device=CPU
    )


def run_or_refusal(build: Callable[[], Run]) -> Run | None:
    """What is built, or None where a method says in words why it cannot train this (E327)."""
    try:
        return build()
    except UsageError as error:
        if {problem.code for problem in error.problems} != {"E327"}:
            raise
        return None


def double_run(methods: Sequence[Method] = (), **settings: Any) -> Run:
    """A small network in double precision, without BatchNorm, on random vectors."""
    defaults: dict[str, Any] = {"model": lambda: tiny_mlp().double(), "data": vectors(), "batch": 8, "momentum": 0.0}
    return make_run(methods, **defaults | settings)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"differ: {different}"


def velocity(similarities: Tensor, momentum: float, recursion: str = "paper") -> Tensor:
    """v of every epoch from φ of every epoch, (epochs, ...) → (epochs, ...), by the recursion that methods use."""
    motion = Motion(momentum, recursion)
    return torch.stack([torch.as_tensor(motion.add(phi)) for phi in similarities])


def data_settings(keys: Mapping[str, Any]) -> DataTable:
    """A suite's `data` table from what a test needs of it, in SI units."""
    return DataTable.model_validate({"use": "digits", "batch": 16} | dict(keys), context=RESOLVED)
