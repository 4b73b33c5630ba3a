"""Everything about a suite that can be checked, decoded or counted before training, in a child process.

Methods are loaded and built, stacks checked, data decoded once, models built, the ledger of plain training traced, a
few plain steps timed for the expected duration. Every mistake is collected; nothing here is metered.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from energybench.common.errors import EnergybenchError, Problem
from energybench.common.fingerprint import source_digest
from energybench.common.hashing import digest, stable_seed
from energybench.common.machine import cpu_name, native_bf16
from energybench.common.sealed_files import write_text
from energybench.common.torchvision_shim import import_torchvision
from energybench.common.version import __version__
from energybench.flops.balance import balance
from energybench.flops.work import Line
from energybench.records.record import Cell, Claim
from energybench.runner.plan_energy import energy
from energybench.runner.tracing import time_step, trace_task
from energybench.runner.user_code import user_files
from energybench.train import discovery, images
from energybench.train.data import Data
from energybench.train.method import Method, Task, parameters
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.train.stack_check import check_stack
from energybench.trial.build import build_model, device_name
from energybench.workloads import datasets, stand_in
from energybench.workloads.tasks import task_named

Built = TypeVar("Built")

TRACED_SAMPLES, STAND_IN_SAMPLES = 11, 8


def main(in_path: str, out_path: str) -> None:
    spec = json.loads(Path(in_path).read_text(encoding="utf-8"))
    result = Plan(spec).result()
    write_text(Path(out_path), json.dumps(result))


class Plan:
    """Checks a suite piece by piece, so that one mistake does not hide the next.

    spec["purpose"]: "run" trains, so everything must be there; "check" looks only, and data that is known by its name
                     may be missing; "count" is not metered, so sensors do not matter; "trace" does not train either
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.base = spec, Path(spec["base"])
        self.device = torch.device(spec["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
        if spec.get("threads"):
            torch.set_num_threads(spec["threads"])
        self.purpose = spec.get("purpose") or ("run" if spec["download"] else "check")
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.data: dict[str, dict[str, Any]] = {}

    def result(self) -> dict[str, Any]:
        stacks = {variant["label"]: self.stack(variant) for variant in self.spec["variants"]}
        workloads = {workload["name"]: self.workload(workload) for workload in self.spec["workloads"]}
        self.check_stacks(stacks)
        machine = self.machine() | self.energy()
        cells: list[Cell] = []
        if not self.problems:
            cells = [c for w in self.spec["workloads"] for c in self.cells(w, workloads[w["name"]], stacks)]
        return {
            "problems": [problem.as_dict() for problem in self.problems],
            "notes": self.notes,
            "device": str(self.device),
            "device_name": device_name(self.device),
            "workloads": workloads,
            "cells": [c.model_dump(mode="json") for c in cells],
            "machine": machine,
            "digest": digest(
                [
                    [c.model_dump(exclude={"stack", "expected_s", "plain_flop", "epochs"}) for c in cells],
                    *(self.spec[key] for key in ("blocks", "looks", "seed", "twin", "stamp", "accept")),
                    *([self.spec["require"]] if self.spec["require"] else []),  # declared before the first block
                ]
            ),
        }

    # ── methods ───────────────────────────────────────────────────────────────────────────────────────────────

    def stack(self, variant: dict[str, Any]) -> list[tuple[dict[str, Any], Method]]:
        """(what a cell needs to rebuild it, the method), outermost first."""
        built: list[tuple[dict[str, Any], Method]] = []
        for item in variant["stack"]:
            where = item["where"]
            try:
                source = discovery.find(item["use"], self.base, where.get("use", ""))
                kind = discovery.load(source)
                method = discovery.build(kind, source.name, item["parameters"], partial(_placed_key, where))
            except EnergybenchError as error:
                self.problems += error.problems
                continue
            described = {
                "use": source.name,
                "name": source.name,
                "path": str(source.path),
                "origin": source.origin,
                "class_name": source.class_name,
                "sha256": source.sha256,
                "parameters": item["parameters"],
            }
            built.append((described | {"resolved": parameters(method)}, method))
        return built

    def check_stacks(self, stacks: dict[str, list[tuple[dict[str, Any], Method]]]) -> None:
        seen: set[tuple[str, str]] = set()
        for pair in self.spec["pairs"]:
            workload = next(w for w in self.spec["workloads"] if w["name"] == pair["workload"])
            key = (pair["variant"], workload["task"])
            variant = next(v for v in self.spec["variants"] if v["label"] == pair["variant"])
            if not pair["skipped"]:
                self.check_recipe(workload, variant, stacks)
            if pair["skipped"] or key in seen:
                continue
            seen.add(key)
            try:
                task = task_named(workload["task"], self.base, workload["where"].get("task", ""))
            except EnergybenchError:
                continue  # already reported with its workload
            methods = [method for _, method in stacks[pair["variant"]]]
            for problem in check_stack(methods, task, variant["stack"][0]["where"].get("", "")):
                hint = problem.hint
                for use in (item["use"] for item in variant["stack"] if discovery.names_file(item["use"])):
                    hint = hint.replace(f'"{Path(use.partition(":")[0]).stem}"', f'"{use}"')  # as one would type it
                self.problems.append(replace(problem, hint=hint))

    def check_recipe(
        self, workload: dict[str, Any], variant: dict[str, Any], stacks: dict[str, list[tuple[dict[str, Any], Method]]]
    ) -> None:
        for _, method in stacks[variant["label"]]:
            if reason := method.incompatible_recipe(workload["train"]):
                where, name = variant["stack"][0]["where"].get("", ""), workload["name"]
                hint = f'[[skip]] workload = "{name}", method = "{variant["label"]}", with a because; or another recipe'
                message = f"'{method.name}' cannot train '{name}': {reason}"
                self.problems.append(Problem("E315", message, where, hint))

    # ── workloads ─────────────────────────────────────────────────────────────────────────────────────────────

    def workload(self, workload: dict[str, Any]) -> dict[str, Any]:
        """{data, ledger, parameters, step_s, steps}; what failed is missing and its problem collected."""
        self.check_precision(workload)
        augments = self.check_augmentation(workload)
        place = workload["where"].get("task", "")
        data = self.attempt(workload, "data", lambda: self.prepare(workload))
        task = self.attempt(workload, "task", lambda: task_named(workload["task"], self.base, place))
        described = data or {"shape": [3, 32, 32], "classes": 10}  # so that a model's own mistakes show too
        model = self.attempt(workload, "model", lambda: build_model(workload, described, self.base, self.spec["seed"]))
        if data is None or task is None or model is None:
            return {}
        spec = workload["data"] if augments else {**workload["data"], "augment": []}
        opened = self.attempt(workload, "data", lambda: datasets.open_data(data, spec, self.device))
        return {} if opened is None else self.trace(workload, data, task, model, opened)

    def attempt(self, workload: dict[str, Any], key: str, build: Callable[[], Built]) -> Built | None:
        """What `build` gives, or None and its mistakes collected at the workload's table `key`."""
        where = workload["where"].get(key, "")
        try:
            return build()
        except EnergybenchError as error:
            self.problems += [problem.placed(where) for problem in error.problems]
        except Exception as error:  # whatever a builder raises is a mistake at this table
            message = f"building the {key} failed: {type(error).__name__}: {error}"
            self.problems.append(Problem("E404", message, where))
        return None

    def check_augmentation(self, workload: dict[str, Any]) -> bool:
        """Whether all of it is known."""
        told = len(self.problems)
        for name in workload["data"].get("augment") or []:
            try:
                images.parse(name)
            except ValueError as error:
                self.problems.append(Problem("E407", str(error), workload["where"].get("data.augment", "")))
        return len(self.problems) == told

    def prepare(self, workload: dict[str, Any]) -> dict[str, Any]:
        spec = workload["data"]
        key = digest([spec["use"], spec.get("subset"), spec.get("test_subset"), spec.get("options"), spec["resident"]])
        if key not in self.data:
            named = discovery.names_file(spec["use"])
            function = discovery.load_function(spec["use"], self.base) if named else None
            self.data[key] = datasets.prepare(
                spec,
                Path(self.spec["cache"]),
                function=function,
                download=self.spec["download"],
                known=self.purpose != "run",
            )
            if self.data[key]["kind"] == stand_in.KIND:
                timed = "" if self.purpose == "trace" else "; times are those of a few black images"
                self.notes.append(
                    f"'{spec['use']}' is not on this machine: shape and counts are the published ones{timed}"
                )
        return self.data[key]

    def check_precision(self, workload: dict[str, Any]) -> None:
        if self.purpose == "trace":
            return  # nothing is computed
        if workload["train"]["precision"] == "bf16" and self.device.type == "cpu" and not native_bf16():
            self.problems.append(
                Problem(
                    "E405",
                    f"'{workload['name']}' asks for bf16, which this processor emulates: 8–25× slower",
                    workload["where"].get("train.precision", workload["where"].get("", "")),
                    "add --set workload.train.precision=fp32, or --quick where the suite's overlay has it",
                )
            )

    def trace(
        self,
        workload: dict[str, Any],
        described: dict[str, Any],
        task: Task,
        model: nn.Module,
        opened: tuple[Data, Data],
    ) -> dict[str, Any]:
        """The ledger of plain training and the time of a few plain steps, on real samples."""
        recipe = Recipe.of(workload)
        where, (train, test) = workload["where"].get("model", ""), opened
        lines: tuple[Line, ...] = ()
        try:
            # An odd prime, so that what has no room for the batch can be told from what has.
            batch = next(iter(train.load([torch.arange(min(TRACED_SAMPLES, len(train)))])))
            lines = trace_task(task, model, recipe, batch, self.device)
        except EnergybenchError as error:  # the workload still runs: its estimate is not available, and why
            self.notes.append(f"{workload['name']}: no ledger, so no estimate: {error.problems[0].message}")
        result: dict[str, Any] = {
            "data": described,
            "ledger": [asdict(line) for line in lines],
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": train.steps(recipe.batch),
            "epochs": recipe.epochs,
            "samples": train.samples(recipe.batch),
            "step_s": 0.0,
        }
        if self.purpose == "run":
            result["balance_flop_b"] = balance(self.device, recipe.precision)
        if self.purpose == "trace":
            return result
        try:
            run = Run(task, [], recipe, model.to(self.device), train, seed=0, device=self.device)
            known = described["kind"] == stand_in.KIND
            result["step_s"] = time_step(run, STAND_IN_SAMPLES if known else None)
            target = workload.get("target")
            metric = self.spec["metric"]
            quality = run.evaluate(test.subset(torch.arange(min(2, len(test)))))
            for name, table in [(metric, "accept")] + ([(target["metric"], "target")] if target else []):
                if name not in quality:
                    self.problems.append(
                        Problem(
                            "E406",
                            f"'{workload['name']}' has no quality '{name}'",
                            workload["where"].get(table, self.spec["metric_where"]),
                            f"its task reports: {', '.join(quality)}",
                        )
                    )
        except Exception as error:
            self.problems.append(
                Problem("E404", f"a first step of '{workload['name']}' failed: {type(error).__name__}: {error}", where)
            )
        return result

    # ── cells ─────────────────────────────────────────────────────────────────────────────────────────────────

    def cells(
        self, workload: dict[str, Any], traced: dict[str, Any], stacks: dict[str, list[tuple[dict[str, Any], Method]]]
    ) -> list[Cell]:
        pairs = [pair for pair in self.spec["pairs"] if pair["workload"] == workload["name"]]
        idle = pairs[0]["skipped"] if pairs and all(pair["skipped"] for pair in pairs) else None
        roles: list[Literal["baseline", "twin"]] = ["baseline", "twin"] if self.spec["twin"] else ["baseline"]
        result = [self.cell(workload, traced, role, role, []) for role in roles]
        result = [made.model_copy(update={"skipped": idle}) for made in result]  # nothing to compare with
        for pair in pairs:
            variant = next(v for v in self.spec["variants"] if v["label"] == pair["variant"])
            stack = stacks[variant["label"]]
            made = self.cell(workload, traced, variant["label"], "method", [described for described, _ in stack])
            made = made.model_copy(
                update={
                    "claim": claim(variant, [m for _, m in stack]),
                    "skipped": pair["skipped"],
                    "tuned_trials": variant["tuned"],
                }
            )
            result.append(made)
            kept = self.kept_epochs(workload, [m for _, m in stack])
            if kept and not pair["skipped"] and variant["control"] == "matched":
                control = self.cell(workload, traced, f"{variant['label']} matched", "control", [], kept)
                result.append(control.model_copy(update={"of": variant["label"]}))
        return result

    def cell(
        self,
        workload: dict[str, Any],
        traced: dict[str, Any],
        label: str,
        role: Any,
        stack: list[dict[str, Any]],
        epochs: list[int] | None = None,
    ) -> Cell:
        settings = {key: value for key, value in workload.items() if key != "where"}
        mean_epochs = sum(epochs) / len(epochs) if epochs else traced["epochs"]
        per_sample = sum(line["flop"] for line in traced["ledger"])
        return Cell(
            workload=workload["name"],
            method=label,
            role=role,
            stack=stack,
            epochs=epochs or [],
            digest=digest(
                [
                    settings,
                    [(s["name"], s["sha256"], s["resolved"]) for s in stack],
                    epochs and epochs[: self.spec["blocks"]],  # blocks added later make it no other cell
                    traced["data"]["sha256"],
                    user_files(settings, self.base),
                    source_digest(),
                    torch.__version__,
                    str(self.device),
                    self.spec["measure"],
                    self.spec["warmup"],
                    self.spec["threads"],
                ]
            ),
            expected_s=traced["step_s"] * traced["steps"] * mean_epochs,
            plain_flop=per_sample * traced["samples"] * traced["epochs"] if traced["ledger"] else None,
        )

    def kept_epochs(self, workload: dict[str, Any], methods: list[Method]) -> list[int] | None:
        """The kept budget of a stack that skips epochs, block by block; None for one that skips none."""
        epochs, budgets = workload["train"]["epochs"], list[int]()
        for block in range(self.spec["blocks"] + self.spec["added"]):
            seed = self.spec["seed"] + block
            run: Any = SimpleNamespace(
                epochs=epochs, rng=lambda *key, s=seed: torch.Generator().manual_seed(stable_seed(s, *key))
            )
            kept = [budget for method in methods if (budget := method.kept_epochs(run)) is not None]
            if not kept:
                return None
            budgets.append(max(1, min(kept)))
        return budgets

    def energy(self) -> dict[str, Any]:
        """What this machine can say about energy, and the carbon intensity that the suite asks for."""
        if self.purpose in ("count", "trace"):
            return {}
        facts, problems = energy(self.spec, device_name(self.device))
        self.problems += problems
        return facts

    def machine(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": import_torchvision().__version__,
            "energybench": __version__,
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "device": str(self.device),
        }
        if self.device.type == "cuda":
            facts["gpu"] = torch.cuda.get_device_name(self.device)
        return facts


def claim(variant: dict[str, Any], methods: list[Method]) -> Claim | None:
    """The suite's claim; else the promise of the one method in the stack that makes one."""
    if variant["claim"]:
        return Claim(**variant["claim"])
    promises = [promise for method in methods if (promise := method.claims()) is not None]
    if len(promises) != 1:
        return None  # nobody's paper promises a sum
    saving, of, source = promises[0]
    return Claim(saving_rel=saving, of="backward" if of == "backward" else "training", source=source)


def _placed_key(where: dict[str, str], key: str) -> str:
    """Where a parameter stands, or else its method's table."""
    return where.get(key, where.get("", ""))
