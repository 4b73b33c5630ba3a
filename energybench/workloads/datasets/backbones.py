"""Where a frozen backbone has its weights from: a file, a short training on another data set, or chance.

Whatever it is, it is told: in `Backbone.words`, which the record keeps with the features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.fingerprint import source_digest
from energybench.common.hashing import digest, stable_seed
from energybench.flops.counter import Counter
from energybench.suite.tables import DataTable, ModelTable
from energybench.train.discovery import names_file
from energybench.train.recipe import Recipe
from energybench.train.run import Diverged, Run
from energybench.workloads import datasets, models, stand_in
from energybench.workloads.datasets import kept_tensors
from energybench.workloads.datasets.kept_tensors import Kept
from energybench.workloads.description import DataDescription
from energybench.workloads.models.bounds import bounded_models
from energybench.workloads.start_weights import load_start
from energybench.workloads.tasks.classification import Classification

Table = TypeVar("Table", bound=BaseModel)

CPU = torch.device("cpu")
KIND = "backbone"  # of what is kept
PUBLISHED_CLASSES = 1000  # of the heads in torchvision's files
OF_A_SET = ("use", "split", "split_seed", "resize", "options", "resident", "workers")
OF_A_TRAINING = (*OF_A_SET, "batch", "augment", "subset", "test_subset", "epochs", "lr")
# Adam with a cosine schedule: seconds on a CPU.
DEFAULTS: dict[str, Any] = {"batch": 100, "subset": 5000, "test_subset": 1000}
EPOCHS, LR = 5, 3e-3


@dataclass(frozen=True)
class Backbone:
    """A model on the CPU whose weights are given.

    words:   what it is, and where its weights are from
    flop:    that its training took; None for one that is still to come
    fresh:   tensors that its file of weights lacks, which start from the seed
    lacking: why it is not yet what it will be in a run; empty where it is
    unkept:  why its training could not be kept; empty where it was
    """

    model: nn.Module
    use: str
    parameters: Mapping[str, Any]
    words: str
    flop: float | None = 0.0
    fresh: tuple[str, ...] = ()
    lacking: str = ""
    unkept: str = ""


def versions() -> list[str]:
    """Of the code that computes: a figure belongs to the code that made it."""
    return [torch.__version__, metadata.version("torchvision"), source_digest()]


def backbone_of(given: Any, trained_on: Any, shape: tuple[int, ...], seed: int, asked: datasets.Asked) -> Backbone:
    """The model that options name, for images of that shape.

    Raises UsageError E401 and E402 for one that cannot be had; where `asked.known`, what is missing is only told.
    """
    table = read_table(ModelTable, given, "backbone", None)
    if names_file(table.use):
        raise refusal(f"options.backbone is a file, '{table.use}'", "a name: vgg_small, or one of torchvision's, vgg16")
    if trained_on is None:
        return _from_file(table, shape, seed, asked)
    if table.weights is not None:
        raise refusal("options.trained_on, and weights of a file", "take one of them out")
    return _trained(table, trained_on, shape, seed, asked)


def _from_file(table: ModelTable, shape: tuple[int, ...], seed: int, asked: datasets.Asked) -> Backbone:
    """With the weights of a file, or those that the seed gives."""
    parameters = table.parameters
    model = _built(table.use, parameters, shape, parameters.pop("classes", PUBLISHED_CLASSES), seed)
    every = table.parameters
    if table.weights is None:
        return Backbone(model, table.use, every, f"{table.use} with random weights (seed {seed})")
    words = f"{table.use} with the weights of '{table.weights}'"
    if asked.known and not os.path.isfile(asked.base / str(table.weights)):
        lacking = f"'{table.weights}' is not on this machine"
        return Backbone(model, table.use, every, words, lacking=lacking)
    started = load_start(model, table, asked.base)
    sha256, fresh = (started.sha256, started.fresh) if started else ("", ())
    return Backbone(model, table.use, every, f"{words} (sha256 {sha256[:12]})", fresh=fresh)


def _trained(table: ModelTable, given: Any, shape: tuple[int, ...], seed: int, asked: datasets.Asked) -> Backbone:
    """Trained here, once, on another data set."""
    values = dict(given) if isinstance(given, Mapping) else {"use": given}
    epochs, lr = values.pop("epochs", EPOCHS), values.pop("lr", LR)
    _check_recipe(epochs, lr)
    settings = read_table(DataTable, DEFAULTS | values, "trained_on", OF_A_TRAINING)
    described = decoded(settings, "trained_on", asked)
    classes = described.classes or 0
    if described.targets != "class" or classes < 2 or described.mean is None:
        raise refusal(f"options.trained_on: '{settings.use}' holds no images with classes", 'trained_on = "cifar10"')
    if described.shape[0] != shape[0]:
        channels = f"{described.shape[0]} channels, and the images have {shape[0]}"
        raise refusal(f"options.trained_on: '{settings.use}' has {channels}", "a set with as many")
    parameters = table.parameters
    if "classes" in parameters:
        raise refusal("options.backbone.classes is of a file's head", f"take it out: '{settings.use}' says it")
    model = _built(table.use, parameters, described.shape, classes, seed)
    words = f"{table.use} trained on {settings.use} ({described.train:,} images, {epochs} epoch{'s' * (epochs != 1)}"
    if described.kind == stand_in.KIND:
        lacking = f"'{settings.use}' is not on this machine"
        return Backbone(model, table.use, parameters, f"{words})", None, lacking=lacking)
    what = [
        described.sha256,
        described.shape,
        settings.batch,
        settings.augment,
        table.use,
        parameters,
        epochs,
        lr,
        seed,
    ]
    key = digest([KIND, kept_tensors.FORMAT, *what, *versions()])
    kept, unkept = kept_tensors.read(KIND, key), ""
    if kept is None and asked.known:
        return Backbone(model, table.use, parameters, f"{words})", None, lacking="it is not trained yet")
    if kept is None:
        kept = _train(model, settings, described, epochs, lr, seed)
        unkept = kept_tensors.write(KIND, key, kept)
    else:
        model.load_state_dict(dict(kept.tensors))
    words = f"{words}, accuracy {kept.facts['accuracy']:.2f})"
    return Backbone(model, table.use, parameters, words, kept.facts["flop"], unkept=unkept)


def _train(
    model: nn.Module, settings: DataTable, described: DataDescription, epochs: int, lr: float, seed: int
) -> Kept:
    """Train it as plain training does, on the CPU. The FLOPs are counted, those of its evaluation left out."""
    train, test = datasets.open_data(described, settings, CPU)
    recipe = Recipe(epochs=epochs, batch=settings.batch, optimizer="adam", lr=lr, schedule="cosine")
    with torch.random.fork_rng([]), torch.enable_grad():
        try:
            with Counter() as counter:
                run = Run(Classification(), [], recipe, model, train, seed=seed, device=CPU)
                run.train()
        except Diverged as error:
            raise refusal(f"training the backbone on '{settings.use}' failed: {error}", "a smaller lr") from None
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise refusal(f"the backbone cannot be trained on '{settings.use}': {reason}", "another backbone") from None
        accuracy = run.evaluate(test)["accuracy"]
    return Kept(model.state_dict(), {"flop": counter.total, "accuracy": accuracy})


def _built(use: str, parameters: Mapping[str, Any], shape: tuple[int, ...], classes: Any, seed: int) -> nn.Module:
    """As its seed makes it, whatever random numbers were drawn before, and without drawing any of theirs."""
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise refusal(f"options.backbone.classes is {classes!r}; expected a whole number", "classes = 1000")
    try:
        with torch.random.fork_rng([]), bounded_models(use):
            torch.manual_seed(stable_seed(seed, KIND))
            model = models.build(use, shape, classes, dict(parameters))
        models.fix_sizes(model, use, shape)
    except UsageError:
        raise
    except Exception as error:  # whatever a builder makes of a size that is not its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        shown = "×".join(map(str, shape))
        raise refusal(
            f"'{use}' cannot be made for images of {shown}: {reason}", "resize, or another backbone"
        ) from None
    return model


def _check_recipe(epochs: Any, lr: Any) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise refusal(f"options.trained_on.epochs is {epochs!r}; expected a whole number", f"epochs = {EPOCHS}")
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
        raise refusal(f"options.trained_on.lr is {lr!r}; expected a number above 0", f"lr = {LR}")


# ── tables within options ─────────────────────────────────────────────────────────────────────────────────────────────


def decoded(settings: DataTable, key: str, asked: datasets.Asked) -> DataDescription:
    """Another data set, prepared beside the one that is made of it. Raises UsageError E402."""
    if names_file(settings.use):
        raise refusal(f"options.{key} is a file, '{settings.use}'", "the name of a data set, or a folder of images")
    if settings.use.casefold() == "features":
        raise refusal(f"options.{key} are features themselves", "a set of images")
    described = datasets.decode(settings, asked.cache, base=asked.base, download=asked.download, known=asked.known)
    return datasets.fitted(described, settings)


def read_table(kind: type[Table], given: Any, key: str, keys: Sequence[str] | None) -> Table:
    """A table of the suite's own kind inside of options; a name alone is its `use`.

    keys: that it may have; None: those of its kind, and others where its kind is open

    Raises UsageError E402.
    """
    values = {"use": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping):
        raise refusal(f"options.{key} is {given!r}; expected a name, or a table", f'{key} = {{ use = "…" }}')
    if keys is not None and (unknown := [name for name in values if name not in keys]):
        raise refusal(f"options.{key} takes no key '{unknown[0]}'", nearest(unknown[0], keys))
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join([key, *map(str, first["loc"])])
        raise refusal(f"options.{where}: {first['msg'].removeprefix('Value error, ')}") from None


def refusal(message: str, hint: str = "") -> UsageError:
    return UsageError(Problem("E402", message, hint=hint))
