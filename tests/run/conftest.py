"""One whole run and one run of misbehaving methods, shared by the tests that look at them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import light
import pytest
from command_line import energybench
from rich.console import Console
from tiny_runs import Done, only_run, write_suite

from energybench.runner.progress import Progress

OWN_METHOD = '''"""calm: halves the learning rate through its gradients."""
from dataclasses import dataclass
from energybench import Method


@dataclass
class Calm(Method):
    factor: float = 0.5

    def gradients(self, run, batch, inner):
        forward = inner(batch)
        for parameter in run.parameters(batch.part):
            parameter.grad *= self.factor
        return forward
'''

OWN_WORKLOAD = """
import torch
from torch import nn
from energybench import Forward, Task


def model(shape, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], width), nn.Tanh(), nn.Linear(width, 1))


def line(samples=48):
    x = torch.linspace(-1, 1, samples)[:, None].repeat(1, 2)
    y = x.sum(1, keepdim=True)
    return {"train": (x, y), "test": (x[::3], y[::3])}


class Regression(Task):
    def forward(self, run, batch):
        outputs = run.model(batch.inputs)
        each = (outputs - batch.targets).square().mean(1)
        return Forward(each.mean(), each, outputs)

    def evaluate(self, run, data):
        total = sum(run.forward(b, mode="eval", grad=False).each.sum().item() for b in data.in_order())
        return {"accuracy": 1 - total / len(data)}
"""

OWN_TABLES = """
[[workload]]
name = "own"
task = "own.py:Regression"
model = { use = "own.py:model", width = 3 }
data = { use = "own.py:line", batch = 16, options = { samples = 40 } }
train = { epochs = 2, lr = 0.05 }
"""


@pytest.fixture(scope="session")
def quiet() -> Callable[[], Progress]:
    def silent(**options: Any) -> Console:
        return Console(file=io.StringIO(), **options)

    return lambda: Progress(silent(), silent(), quiet=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the suite of a light run."""
    (tmp_path / "light.toml").write_text(light.SUITE)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two blocks of two workloads and two methods, started in a folder that is not the suite's."""
    home = tmp_path_factory.mktemp("finished")
    (home / "methods").mkdir()
    (home / "methods" / "calm.py").write_text(OWN_METHOD)
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / "own.py").write_text(OWN_WORKLOAD)
    usual = """
[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32 }
train = { epochs = 2, lr = 0.1 }
"""
    methods = '\n[[method]]\nuse = "calm"\nfactor = 0.25\n\n[[method]]\nuse = "gradsamp"\nskip = "every:2"\n'
    suite = write_suite(home / "elsewhere", methods, workload=usual + OWN_TABLES, blocks=2)
    process = energybench("run", "elsewhere/tiny.toml", cwd=home, TMPDIR=str(_made(home / "tmp")))
    assert process.returncode == 0, process.stderr
    return Done(process, home, suite, only_run(home))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
