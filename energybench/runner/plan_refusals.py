"""What a suite's stacks of methods cannot train, before anything does: by order, recipe, model, data and device."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from energybench.common.errors import Problem
from energybench.runner.plan_precision import precision_on
from energybench.runner.plan_settings import refuse_settings
from energybench.runner.plan_spec import PlanSpec
from energybench.runner.plan_stacks import Stack
from energybench.suite.tables import WorkloadTable
from energybench.suite.variants import Variant
from energybench.train import discovery
from energybench.train.interface import TrainingRun
from energybench.train.method import Method, Task
from energybench.train.refusals import refuse_hardware, refuse_methods, refuse_run
from energybench.train.stack_check import check_stack


class Refusals:
    """Asks the methods of each stack. stacks: by the label of their variant, those that could be built."""

    def __init__(self, spec: PlanSpec, device: torch.device, stacks: Mapping[str, Stack]) -> None:
        self.spec, self.device, self.stacks = spec, device, stacks

    def in_stack(self, variant: Variant, task: Task) -> tuple[list[Problem], list[str]]:
        """What is said against a stack with a task, on these devices; and what only a run would be refused for."""
        methods, where = self._methods(variant), self._where(variant)
        problems = refuse_methods(methods, self.spec.suite.trials.devices, where) + refuse_settings(methods, where)
        elsewhere = refuse_hardware(methods, self.device.type, where)
        for problem in check_stack(methods, task, where):
            hint = problem.hint
            for use in (item.use for item in variant.stack if discovery.names_file(item.use)):
                hint = hint.replace(f'"{Path(use.partition(":")[0]).stem}"', f'"{use}"')  # as one would type it
            problems.append(replace(problem, hint=hint))
        if self.spec.purpose == "run":
            return problems + elsewhere, []
        return problems, [f"{each.message}; what is counted here trains without it" for each in elsewhere]

    def by_recipe(self, workload: WorkloadTable) -> tuple[list[Problem], list[str]]:
        """Each method by the recipe as the others of its stack leave it; and the precision that one asks for."""
        recipe = workload.train.model_dump(mode="json")
        problems, notes = list[Problem](), list[str]()
        for variant, methods in self._trained(workload):
            where, hint = self._where(variant), self._skip(workload, variant)
            for method in methods:
                others = (other.trains_in for other in methods if other is not method and other.trains_in)
                if reason := method.incompatible_recipe(recipe | {"precision": next(others, recipe["precision"])}):
                    message = f"'{method.name}' cannot train '{workload.name}': {reason}"
                    problems.append(Problem("E315", message, where, f"{hint}; or another recipe"))
                if method.trains_in and self.spec.purpose != "trace":  # where nothing is computed
                    problem, note = precision_on(self.device, method.name, method.trains_in)
                    problems += [replace(problem, where=where, hint=hint)] if problem else []
                    notes += [f"{method.name}: {note}"] if note else []
        return problems, notes

    def by_run(self, workload: WorkloadTable, run: TrainingRun) -> list[Problem]:
        """Each stack by the workload's model and data. run: of plain training, which has not trained."""
        problems = []
        for variant, methods in self._trained(workload):
            stacked: Any = copy.copy(run)
            stacked.methods = methods  # so that one may refuse another
            where, hint = self._where(variant), self._skip(workload, variant)
            problems += refuse_run(methods, stacked, f"'{workload.name}'", where, hint)
        return problems

    def _trained(self, workload: WorkloadTable) -> Iterator[tuple[Variant, list[Method]]]:
        for pair, variant in self.spec.pairs_of(workload.name, commands=False):
            if not pair.skipped and variant.label in self.stacks:
                yield variant, self._methods(variant)

    def _methods(self, variant: Variant) -> list[Method]:
        return [method for _, method in self.stacks[variant.label]]

    def _where(self, variant: Variant) -> str:
        return self.spec.where(*variant.stack[0].loc)

    def _skip(self, workload: WorkloadTable, variant: Variant) -> str:
        return f'[[skip]] workload = "{workload.name}", method = "{variant.label}", with a because'
