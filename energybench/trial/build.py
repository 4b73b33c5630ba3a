"""The task, the model and the stack of one trial, as its specification names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from energybench.common.hashing import stable_seed
from energybench.train import discovery
from energybench.train.data import Data
from energybench.train.method import Method, Task
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.workloads import models
from energybench.workloads.tasks import task_named


def build(spec: dict[str, Any], train: Data, device: torch.device, outermost: Method | None = None) -> Run:
    """A fresh model, task and stack. The initial weights depend on the seed alone."""
    base, workload, seed = Path(spec["base"]), spec["workload"], spec["header"]["seed"]
    stack = [*([outermost] if outermost else []), *build_stack(spec["stack"])]
    model = build_model(workload, spec["data"], base, seed)
    return Run(
        build_task(workload, base),
        stack,
        Recipe.of(workload),
        model.to(device),
        train,
        seed=seed,
        device=device,
        epochs=spec.get("epochs"),
    )


def build_task(workload: dict[str, Any], base: Path) -> Task:
    return task_named(workload["task"], base)


def build_model(workload: dict[str, Any], described: dict[str, Any], base: Path, seed: int) -> torch.nn.Module:
    torch.manual_seed(stable_seed(seed, "init"))
    settings = dict(workload["model"])
    use = settings.pop("use")
    shape, classes = tuple(described["shape"]), described["classes"]
    if discovery.names_file(use):
        function = discovery.load_function(use, base)
        model: torch.nn.Module = models.call(function, use, {"shape": shape, "classes": classes}, settings)
    else:
        model = models.build(use, shape, classes, settings)
    if activation := workload["train"].get("activation"):
        models.activate(model, use, activation)
    return model


def build_stack(stack: list[dict[str, Any]]) -> list[Method]:
    """Methods outermost first, each with a name of its own: it keys random streams and diagnostics."""
    methods: list[Method] = []
    for item in stack:
        source = discovery.Source(item["use"], Path(item["path"]), item["origin"], item.get("class_name"))
        method = discovery.build(discovery.load(source), item["name"], item["parameters"])
        methods.append(method)
    return methods


def device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
