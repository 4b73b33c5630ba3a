"""What one tree's harness costs, measured in a process of its own: `python -P probe.py WHAT [ARGUMENT]`.

It is run by path with the tree first on the path, so it may be another version's code that is timed, and asks of it
only what every version has, in whichever of the PLACES that version has it. It prints one JSON object: the package's
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

# What is needed of a tree → where in energybench it may be, under which name: today's first, then what was true before
# (rooms since 2026-12). Whoever moves or renames one of these adds a line in front.
PLACES = {
    "Run": ("train.run.Run", "loop.Run"),
    "Recipe": ("train.recipe.Recipe", "recipe.Recipe"),
    "Data": ("train.data.Data", "workloads.data.Data"),
    "Resident": ("train.data.Resident", "workloads.data.Resident"),
    "Classification": ("workloads.classification.Classification",),
    "Forward": ("train.batch.Forward", "method.Forward"),
    "Method": ("train.method.Method", "method.Method"),
    "discovery": ("train.discovery", "discovery"),
    "load": ("suite.suite.load", "suite.load"),
    "read_folder": ("records.reader.read_folder", "record.read_folder"),
    "markdown": ("report.markdown.markdown",),
    "render": ("report.terminal.render",),
    "summarise": ("verdict.summary.summarise", "report.summary.summarise"),
}


def of_tree(name: str) -> Any:
    """What the tree on the path has for this key of PLACES. Raises ImportError where it has no such thing."""
    for place in PLACES[name]:
        module, _, attribute = f"energybench.{place}".rpartition(".")
        with contextlib.suppress(ModuleNotFoundError):
            holder = importlib.import_module(module)
            if hasattr(holder, attribute):
                return getattr(holder, attribute)
            return importlib.import_module(f"{module}.{attribute}")
    raise ImportError(f"this version has no {name} in any of: {', '.join(PLACES[name])}")


def least(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """The seconds of the fastest of a few calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def run_of(methods: list[Any], model: Any, inputs: Any, targets: Any, batch: int, epochs: int) -> Any:
    """The tree's training of a model on the CPU, not begun."""
    import torch

    cpu = torch.device("cpu")
    data = of_tree("Data")(of_tree("Resident")(inputs, targets, cpu))
    task, recipe = of_tree("Classification")(), of_tree("Recipe")(epochs, batch, lr=0.1)
    return of_tree("Run")(task, methods, recipe, model, data, seed=7, device=cpu)


def step() -> float:
    """Seconds per step of the loop, its data and the layers around each hook, where the training itself is nothing."""
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
    method_class = discovery.load(discovery.find(name))
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
        run_of([discovery.build(method_class, name, {})], model, inputs, targets, batch=32, epochs=6).train()

    return least(train, 3) / (6 * 8)


def parse(path: str) -> float:
    """Seconds of reading a suite."""
    load = of_tree("load")
    return least(lambda: load(path))


def report(folder: str) -> float:
    """Seconds of reading a run, summarising it and printing it for a terminal and as Markdown."""
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
