"""`new`: a first file of one's own that works as it is: a method, a suite, a task, a model, a data set."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Callable
from pathlib import Path

from energybench.common.errors import Problem, UsageError, typed
from energybench.common.sealed_files import write_out
from energybench.common.shipped import shipped
from energybench.train.discovery import sources

SCHEMA_FILE = "suite.schema.json"
METHOD = '''"""{name}: one sentence that says what it does.

Paper: ... Promises: ... Composes with: ...
"""

from __future__ import annotations

from dataclasses import dataclass

from energybench import Method


@dataclass
class {class_name}(Method):
    """every: train on each batch but every n-th one"""

    every: int = 2

    def __post_init__(self) -> None:
        if self.every < 2:
            raise ValueError(f"every is at least 2, not {{self.every}}")

    def setup(self, run):
        self.acted = False
        self._seen = self._trained = 0

    def batches(self, run, data, inner):
        for batch in inner(data):
            self._seen += 1
            if self._seen % self.every == 0:
                run.tally.mark(self)  # it acted: a batch is left out
                continue
            self._trained += 1
            yield batch

    def estimate(self, work):
        return work.trained(work.epochs * self._trained / self._seen) if self._seen else work
'''
TASK = '''"""A task of your own: task = "{name}.py:{class_name}"

What is learned, and how well. Here: the classes of images, by the Brier score of their probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from energybench import Forward, Metric, Task


@dataclass
class {class_name}(Task):
    """Brier score: how far the probabilities of the classes lie from what is true, Σ (p − onehot)² of each sample.

    inputs (B, ...), targets (B,) of class numbers; the model returns scores (B, classes).

    temperature: by which scores are divided before they become probabilities
    """

    temperature: float = 1.0

    name = "{name}"
    # What `evaluate` gives. Which way is better is said here, never guessed from a name.
    metrics = {{"brier": Metric(better="lower", least=0.0, most=2.0)}}

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature is above 0, not {{self.temperature}}")

    def forward(self, run, batch):
        outputs = run.model(batch.inputs)
        each = self.losses(run, outputs, batch)
        return Forward(each.mean(), each, outputs)

    def losses(self, run, outputs, batch):
        """(B,): what methods score samples by; leave it out where a sample has no loss of its own."""
        true = F.one_hot(batch.targets, outputs.shape[1])
        return ((outputs / self.temperature).softmax(1) - true).square().sum(1)

    def evaluate(self, run, data):
        total = sum(self.losses(run, run.model(batch.inputs), batch).sum().item() for batch in data.in_order())
        return {{"brier": total / len(data)}}
'''
MODEL = '''"""A model of your own: model = {{ use = "{name}.py:{name}", width = 32 }}"""

from __future__ import annotations

from torch import nn


def {name}(shape: tuple[int, ...], classes: int, width: int = 32) -> nn.Module:
    """shape: of one sample, (channels, height, width) for images; classes: how many there are to tell apart.

    Both are told by energybench; every other argument is a key of the suite's `model`.
    """
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, classes),
    )
'''
DATA = '''"""Data of your own: data = {{ use = "{name}.py:{name}", batch = 32, options = {{ samples = 512 }} }}

A folder of images needs no code: data = {{ use = "./folder", batch = 32, split = 0.2 }}
"""

from __future__ import annotations

import torch


def {name}(samples: int = 512):
    """The training part and the test part, each as (inputs, targets).

    inputs: uint8 (N, channels, height, width) for images, which are normalised by the training part's mean and standard
    deviation; any other tensor is taken as it is. targets: int64 (N,), classes from 0.
    """
    generator = torch.Generator().manual_seed(0)  # the same data in every trial
    targets = torch.arange(samples) % 2
    noise = torch.randint(0, 128, (samples, 1, 8, 8), generator=generator)
    inputs = (noise + 127 * targets.view(-1, 1, 1, 1)).to(torch.uint8)  # dark and light images
    cut = samples * 4 // 5
    return {{"train": (inputs[:cut], targets[:cut]), "test": (inputs[cut:], targets[cut:])}}
'''
SUITE = """#:schema ./{schema}
# Every key, its unit and its default: docs/suite.md. Check it: energybench check {file}

schema = 1
suite  = "{name}"
about  = "One sentence on what is compared."

[trials]
blocks = 3                       # a block is every cell once; 3 at least for a verdict
warmup = "4 steps"

[accept]                         # what may be called a saving
quality = {{ metric = "accuracy", loses_at_most = "1 pp" }}
margin  = "2 %"

[[workload]]
name  = "small"
model = {{ use = "cnn", channels = [16, 32] }}                  # energybench list models; or "mine.py:mine"
data  = {{ use = "digits", batch = 64 }}                        # or a folder: use = "./pets", split = 0.2
train = {{ epochs = 4, optimizer = "sgd", lr = 0.1, momentum = 0.9, schedule = "cosine" }}

# energybench list methods; and all about one: energybench list NAME
{method}

[quick]                          # for --quick: a smoke test
trials         = {{ blocks = 1, twin = false }}
workload.train = {{ epochs = 2 }}
workload.data  = {{ subset = 256 }}
"""


def write_method(name: str, here: Path) -> Path:
    """methods/NAME.py from a template that trains. Raises UsageError E305 for a name it cannot have."""
    _refuse_name(name, "a method's", "my_method")
    if name in sources(here):
        raise UsageError(Problem("E305", f"there is a method '{name}' already: {sources(here)[name].path}"))
    return _write(here, Path("methods") / f"{name}.py", METHOD.format(name=name, class_name=class_name(name)))


def class_name(name: str) -> str:
    """ "my_task" → "MyTask"."""
    return "".join(part.capitalize() for part in name.split("_") if part)


def write_task(name: str, here: Path) -> Path:
    """NAME.py with a task that trains. Raises UsageError E305, E605."""
    _refuse_name(name, "a task's", "my_task")
    return _write(here, Path(f"{name}.py"), TASK.format(name=name, class_name=class_name(name)))


def write_model(name: str, here: Path) -> Path:
    """NAME.py with a function NAME that builds a model. Raises UsageError E305, E605."""
    _refuse_name(name, "a function's", "my_model")
    return _write(here, Path(f"{name}.py"), MODEL.format(name=name))


def write_data(name: str, here: Path) -> Path:
    """NAME.py with a function NAME that makes a data set. Raises UsageError E305, E605."""
    _refuse_name(name, "a function's", "my_data")
    return _write(here, Path(f"{name}.py"), DATA.format(name=name))


def write_suite(name: str, here: Path, schema: Callable[[], bytes]) -> list[Path]:
    """NAME.toml, and the schema that it names unless one is there. Raises UsageError E305, E605.

    schema: makes the content of that file
    """
    from energybench.suite.messages import FOLDER_NAME

    name = name.removesuffix(".toml")
    if not re.fullmatch(FOLDER_NAME.strip("^$"), name):
        hint = "lower-case letters, digits, '.', '_' and '-', for it names a folder in reports/"
        raise UsageError(Problem("E305", f"'{name}' cannot be a suite's name", hint=hint))
    text = SUITE.format(name=name, file=typed(f"{name}.toml"), schema=SCHEMA_FILE, method=_a_method())
    written = [_write(here, Path(f"{name}.toml"), text)]
    if not os.path.lexists(here / SCHEMA_FILE):
        write_out(here / SCHEMA_FILE, schema())
        written.append(Path(SCHEMA_FILE))
    return written


def _a_method() -> str:
    """The first [[method]] of the suite that shows how it is done: which methods there are is not known here."""
    text = (shipped("suites") / "quick.toml").read_text(encoding="utf-8")
    return next(table for table in text.split("\n\n") if table.startswith("[[method]]"))


def _refuse_name(name: str, whose: str, such_as: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        hint = f"use letters, digits and _, as {such_as}"
        raise UsageError(Problem("E305", f"'{name}' cannot be {whose} name", hint=hint))


def _write(here: Path, path: Path, text: str) -> Path:
    """A new file, relative to `here`; one that is there is never written over."""
    if os.path.lexists(here / path):
        hint = "give it another name, or remove it first"
        raise UsageError(Problem("E305", "there is a file of that name already", str(path), hint))
    try:
        (here / path).parent.mkdir(exist_ok=True)
        with (here / path).open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        hint = "type it in another folder"
        raise UsageError(Problem("E605", f"cannot write there: {error.strerror}", str(here / path), hint)) from None
    return path
