"""What one tree's harness costs, measured in a process of its own: `python -P probe.py WHAT [ARGUMENT]`.

It is run by path with the tree first on the path, so it may be another version's code that is timed, and asks of it
only what every version has, at whichever of the PLACES that version has it. It prints one JSON object: the package's
file, and the least seconds of a few repeats, since whatever disturbs a machine only adds to them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPEATS, STEPS = 5, 256
TRAIN = {
    "epochs": 1,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.0,
    "decay": 0.0,
    "schedule": "constant",
    "nesterov": False,
    "betas": None,
    "clip": None,
    "accumulate": 1,
    "precision": "fp32",
    "label_smoothing": 0.0,
}


# Name → the modules that may hold it, today's first; the others held it before 2026-12.
PLACES = {
    "Run": ("train.run", "loop"),
    "Recipe": ("train.recipe", "recipe"),
    "Data": ("train.data", "workloads.data"),
    "Resident": ("train.data", "workloads.data"),
    "Classification": ("workloads.classification",),
    "Forward": ("train.batch", "method"),
    "Method": ("train.method", "method"),
    "discovery": ("train", ""),
    "load": ("suite.suite", "suite"),
    "read_folder": ("records.reader", "record"),
    "markdown": ("report.markdown",),
    "render": ("report.terminal",),
    "summarise": ("verdict.summary", "report.summary"),
}


def of_tree(name: str) -> Any:
    """What the tree on the path calls `name`. Raises ImportError where it has no such thing."""
    for place in PLACES[name]:
        module = f"energybench.{place}".rstrip(".")
        with contextlib.suppress(ModuleNotFoundError):
            if name == "discovery":
                return importlib.import_module(f"{module}.{name}")
            return getattr(importlib.import_module(module), name)
    raise ImportError(f"this version has no {name} in any of: {', '.join(PLACES[name])}")


def least(call: Callable[[], object], repeats: int = REPEATS) -> float:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return min(taken)


def run_of(methods: list[Any], model: Any, inputs: Any, targets: Any, batch: int, epochs: int) -> Any:
    import torch

    workload = {
        "name": "w",
        "task": "classification",
        "model": {"use": "mlp"},
        "data": {"use": "x", "batch": batch},
        "train": TRAIN | {"epochs": epochs},
    }
    cpu = torch.device("cpu")
    data = of_tree("Data")(of_tree("Resident")(inputs, targets, cpu))
    task, recipe = of_tree("Classification")(), of_tree("Recipe").of(workload)
    return of_tree("Run")(task, methods, recipe, model, data, seed=7, device=cpu)


def step() -> float:
    """Seconds per step of the loop, its data and the layers around each verb, where the training itself is nothing."""
    import torch

    Forward: Any = of_tree("Forward")
    Method: Any = of_tree("Method")

    class Null(Method):
        """In the place of the training."""

        name = "null"
        replaces = frozenset({"gradients", "update"})
        done = Forward(torch.zeros(()), None, None)

        def gradients(self, run: Any, batch: Any, inner: Any) -> Any:
            return self.done

        def update(self, run: Any, part: Any, inner: Any) -> None: ...

    class Passing(Method):
        """A layer that only passes on."""

        def epoch(self, run: Any, data: Any, inner: Any) -> None:
            inner(data)

        def batches(self, run: Any, data: Any, inner: Any) -> Any:
            return inner(data)

        def step(self, run: Any, batch: Any, inner: Any) -> None:
            inner(batch)

        def gradients(self, run: Any, batch: Any, inner: Any) -> Any:
            return inner(batch)

        def update(self, run: Any, part: Any, inner: Any) -> None:
            inner(part)

    torch.set_num_threads(1)
    layers: list[Any] = [Passing(), Passing(), Null()]
    for number, layer in enumerate(layers):
        layer.name = f"layer{number}"
    inputs, targets = torch.zeros(STEPS, 1), torch.zeros(STEPS, dtype=torch.long)
    run = run_of(layers, torch.nn.Linear(1, 2), inputs, targets, batch=1, epochs=1)
    return least(lambda: run.train_epoch(1)) / STEPS


def method(name: str) -> float:
    """Seconds per step of training a small network with a method of the tree, at its defaults."""
    import torch

    discovery = of_tree("discovery")
    torch.set_num_threads(1)
    kind = discovery.load(discovery.find(name))
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 1, 8, 8, generator=random)
    targets = torch.randint(10, (256,), generator=random)

    def train() -> None:
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(512, 10),
        )
        run_of([discovery.build(kind, name, {})], model, inputs, targets, batch=32, epochs=6).train()

    return least(train, 3) / (6 * 8)


def parse(path: str) -> float:
    load = of_tree("load")
    return least(lambda: load(path))


def report(folder: str) -> float:
    from rich.console import Console

    read_folder, summarise = of_tree("read_folder"), of_tree("summarise")
    markdown, render = of_tree("markdown"), of_tree("render")

    def whole() -> None:
        summary = summarise(*read_folder(Path(folder)))
        render(summary, Console(file=io.StringIO(), width=100))
        markdown(summary)

    return least(whole, 3)


def main(what: str, *arguments: str) -> None:
    import energybench

    measures: dict[str, Callable[..., float]] = {"step": step, "method": method, "parse": parse, "report": report}
    seconds = measures[what](*arguments)
    print(json.dumps({"package": energybench.__file__, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
