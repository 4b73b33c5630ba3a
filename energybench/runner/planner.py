"""Everything about a suite that can be checked, decoded or counted before training, in a child process.

Methods are loaded and built, stacks checked, data decoded once, models built, the ledger of plain training traced, a
few plain steps timed for the expected duration. Every mistake is collected; nothing here is metered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from energybench.common.errors import EnergybenchError, Problem
from energybench.common.fingerprint import source_digest
from energybench.common.hashing import digest
from energybench.common.metrics import Metric
from energybench.flops.work import Line
from energybench.records.record import Cell, Role
from energybench.runner import plan_devices, plan_metrics, plan_refusals, plan_threads
from energybench.runner.plan_claim import claim
from energybench.runner.plan_controls import kept_share, planned_control, useless_controls
from energybench.runner.plan_energy import energy, unless_elsewhere
from energybench.runner.plan_machine import machine_facts
from energybench.runner.plan_precision import precision_on
from energybench.runner.plan_settings import settings_of
from energybench.runner.plan_spec import PlannedWorkload, PlanResult, PlanSpec
from energybench.runner.plan_stacks import Stack, build_stack
from energybench.runner.tracing import time_step, time_threads, trace_run, whole_step_rel
from energybench.runner.user_code import packages_named, user_files
from energybench.suite.tables import WorkloadTable
from energybench.suite.variants import Variant
from energybench.train import discovery, images
from energybench.train.data import Data
from energybench.train.method import Task, parameters
from energybench.train.parameter_groups import described, multipliers_of
from energybench.train.passes import mean_epoch
from energybench.train.plain_epochs import every_epoch
from energybench.train.refusals import refuse_task
from energybench.train.run import Run
from energybench.trial.build import device_name, fresh_model, recipe_of
from energybench.trial.spec import MethodSpec
from energybench.workloads import datasets, stand_in
from energybench.workloads.description import DataDescription
from energybench.workloads.start_weights import load_start
from energybench.workloads.tasks import task_named

Built = TypeVar("Built")

# Of a cell: what follows from the rest of it, or only informs.
_NOT_IN_DIGEST = {"stack", "expected_s", "plain_flop", "not_in_ledger", "epochs", "control", "card_settings"}
# Where there is no data, so that a model's own mistakes show too.
SUPPOSED = DataDescription(kind="resident", shape=(3, 32, 32), classes=10, train=0, test=0, sha256="")


def main(in_path: str, out_path: str) -> None:
    Plan(PlanSpec.read(in_path)).result().write(Path(out_path))


class Plan:
    """Checks a suite piece by piece, so that one mistake does not hide the next."""

    def __init__(self, spec: PlanSpec) -> None:
        self.spec, self.suite, self.base, self.purpose = spec, spec.suite, spec.base, spec.purpose
        self.device = torch.device(spec.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.suite.trials.given_threads:
            torch.set_num_threads(self.suite.trials.given_threads)
        self.devices = self.suite.trials.devices
        self.problems = plan_devices.problems(spec, self.device)
        self.device_name = "cpu" if self.problems else device_name(self.device, self.devices)
        self.notes: list[str] = []
        self.data: dict[str, DataDescription] = {}
        self.checked: set[tuple[str, str]] = set()  # (variant, task) whose stack was
        self.threads = self.suite.trials.given_threads
        self.thread_facts: dict[str, Any] = {}
        self.metrics: dict[str, dict[str, Metric]] = {}  # of each workload
        self.stacks: dict[str, Stack] = {}

    def result(self) -> PlanResult:
        self.stacks = stacks = {each.label: self.stack(each) for each in self.spec.variants if each.command is None}
        workloads = {each.name: self.workload(number, each) for number, each in self.spec.trainings}
        choice, workloads = plan_threads.chosen(self.spec, self.device, workloads)
        if choice:
            self.threads, self.thread_facts = choice.threads, choice.facts
            self.notes += choice.notes
        for number, workload in self.spec.trainings:
            self.check_methods(number, workload)
        methods = {label: [method for _, method in stack] for label, stack in stacks.items()}
        self.problems += useless_controls(self.spec, methods, self.seeds)
        machine = machine_facts(self.device, self.thread_facts) | self.energy()
        planned = [(each, workloads[each.name]) for _, each in ([] if self.problems else self.spec.trainings)]
        cells = [cell for each, known in planned if known for cell in self.cells(each, known, stacks)]
        asked = [cell.name for cell in cells if cell.control == "asked"]
        return PlanResult(
            problems=tuple(self.problems),
            notes=tuple(dict.fromkeys(self.notes)),  # one that several workloads share is said once
            device=str(self.device),
            device_name=self.device_name,
            workloads={name: known for name, known in workloads.items() if known},
            cells=tuple(cells),
            machine=machine,
            threads=self.threads,
            metrics=self.metrics,
            sources=packages_named(workload for _, workload in self.spec.trainings),
            digest=digest(
                [
                    [cell.model_dump(exclude=_NOT_IN_DIGEST) for cell in cells],
                    *self.spec.declared(),
                    *([["asked", *asked]] if asked else []),
                ]
            ),
        )

    # ── methods ───────────────────────────────────────────────────────────────────────────────────────────────

    def stack(self, variant: Variant) -> Stack:
        stack, problems, notes = build_stack(self.spec, self.base, variant)
        self.problems += problems
        self.notes += notes
        return stack

    def check_methods(self, number: int, workload: WorkloadTable) -> None:
        """Each stack by the workload's recipe, and once for each kind of task."""
        refused = plan_refusals.Refusals(self.spec, self.device, self.stacks)
        problems, notes = refused.by_recipe(workload)
        self.problems, self.notes = [*self.problems, *problems], [*self.notes, *notes]
        try:
            task = task_named(workload.task, self.base, self.spec.where("workload", number, "task"))
        except EnergybenchError:
            return  # already reported with its workload
        for pair, variant in self.spec.pairs_of(workload.name, commands=False):
            kind = digest(workload.settings()["task"])
            if pair.skipped or (variant.label, kind) in self.checked:
                continue
            self.checked.add((variant.label, kind))
            problems, notes = refused.in_stack(variant, task)
            self.problems, self.notes = [*self.problems, *problems], [*self.notes, *notes]

    # ── workloads ─────────────────────────────────────────────────────────────────────────────────────────────

    def workload(self, number: int, workload: WorkloadTable) -> PlannedWorkload | None:
        """What is known of it; None where something failed, and its problem is collected."""
        where = partial(self.spec.where, "workload", number)
        if self.purpose != "trace":  # where nothing is computed
            problem, note = precision_on(self.device, workload.name, workload.train.precision)
            self.problems += [problem.placed(where("train", "precision"))] if problem else []
            self.notes += [f"{workload.name}: {note}"] if note else []
        settings = workload.data
        if not self.check_augmentation(workload, where("data", "augment")):
            settings = settings.model_copy(update={"augment": ()})
        data = self.attempt("data", where("data"), lambda: self.prepare(workload))
        in_task = partial(where, "task")
        task = self.attempt("task", where("task"), lambda: task_named(workload.task, self.base, where("task"), in_task))
        seed = self.suite.trials.seed
        model = self.attempt("model", where("model"), lambda: fresh_model(workload, data or SUPPOSED, self.base, seed))
        if model is not None and not self.check_multipliers(workload, model, where):
            return None
        weights = None
        if model is not None:
            load = partial(load_start, model, workload.model, self.base)
            weights = self.attempt("model", where("model", "weights"), load)
        if task is not None:
            self.problems += refuse_task(task, self.devices, where("task"))
        if data is None or task is None or model is None:
            return None
        opened = self.attempt("data", where("data"), lambda: datasets.open_data(data, settings, self.device))
        if opened is None:
            return None
        train = self.attempt("task", where("task"), lambda: opened[0].zipped(task.batch_parts))
        planned = None if train is None else self.trace(number, workload, data, task, model, (train, opened[1]))
        return planned.model_copy(update={"weights": weights, "task": parameters(task)}) if planned else None

    def attempt(self, key: str, where: str, build: Callable[[], Built]) -> Built | None:
        """What `build` gives, or None and its mistakes collected at the place of the workload's table `key`."""
        try:
            return build()
        except EnergybenchError as error:
            self.problems += [problem.placed(where) for problem in error.problems]
        except Exception as error:  # whatever a builder raises is a mistake at this table
            message = f"building the {key} failed: {type(error).__name__}: {error}"
            self.problems.append(Problem("E404", message, where))
        return None

    def check_augmentation(self, workload: WorkloadTable, where: str) -> bool:
        """Whether all of it is known."""
        before = len(self.problems)
        for name in workload.data.augment:
            try:
                images.parse(name)
            except ValueError as error:
                self.problems.append(Problem("E407", str(error), where))
        return len(self.problems) == before

    def prepare(self, workload: WorkloadTable) -> DataDescription:
        data = workload.data
        key = digest(
            [data.use, data.split, data.split_seed, data.subset, data.test_subset, data.options, data.resident]
        )
        if key not in self.data:
            function = discovery.load_function(data.use, self.base) if discovery.names_file(data.use) else None
            described = datasets.decode(
                data,
                self.spec.cache,
                base=self.base,
                function=function,
                download=self.spec.download,
                known=self.purpose != "run",
            )
            self.data[key] = described
            self.notes += described.notes
            if described.kind == stand_in.KIND and not described.notes:
                timed = "" if self.purpose == "trace" else "; times are those of a few samples of zeros"
                name = data.options.get("folder", data.use)
                self.notes.append(f"'{name}' is not on this machine: shape and counts are the published ones{timed}")
        return datasets.fitted(self.data[key], data)

    def check_multipliers(self, workload: WorkloadTable, model: nn.Module, where: Callable[..., str]) -> bool:
        """Whether each pattern fits the model's parameters; what they fit is noted."""
        patterns = workload.train.lr_multipliers
        found = self.attempt("model", where("train", "lr_multipliers"), lambda: multipliers_of(model, patterns))
        if found:
            self.notes.append(f"{workload.name}: the learning rate {described(found)}")
        return found is not None

    def trace(
        self,
        number: int,
        workload: WorkloadTable,
        data: DataDescription,
        task: Task,
        model: nn.Module,
        opened: tuple[Data, Data],
    ) -> PlannedWorkload | None:
        """The ledger of plain training and the time of a few plain steps, on real samples."""
        recipe, (train, test) = recipe_of(workload), opened
        lines: tuple[Line, ...] = ()
        unknown: tuple[str, ...] = ()
        parameters_before = sum(p.numel() for p in model.parameters())
        try:
            run = Run(task, [], recipe, model.to(self.device), train, seed=self.suite.trials.seed, device=self.device)
            epochs = every_epoch(run, range(1, recipe.epochs + 1))
        except Exception as error:
            self.problems += self.failed(number, f"a first step of '{workload.name}'", error)
            return None
        self.problems += plan_refusals.Refusals(self.spec, self.device, self.stacks).by_run(workload, run)
        try:
            traced = trace_run(run, self.device)
            lines, unknown = traced.lines, traced.unknown
            self.notes += [f"{workload.name}: {traced.note}"] * bool(traced.note)
            lacking = (
                f"{workload.name}: the ledger has no formula for {', '.join(unknown)}; products there are not in it"
            )
            self.notes += [lacking] * bool(unknown)
        except EnergybenchError as error:  # the workload still runs: its estimate is not available, and why
            self.notes.append(f"{workload.name}: no ledger, so no estimate: {error.problems[0].message}")
        except Exception as error:
            self.problems += self.failed(number, f"reading and tracing '{workload.name}'", error)
            return None
        planned = PlannedWorkload(
            data=data,
            ledger=lines,
            not_in_ledger=unknown,
            parameters=parameters_before,
            steps=train.steps(recipe.batch),
            epochs=recipe.epochs,
            samples=train.samples(recipe.batch),
        )
        if epochs:
            planned = planned.in_rounds(mean_epoch(epochs))
        if self.purpose == "trace":
            return planned
        try:
            absent = data.kind == stand_in.KIND
            few = stand_in.timed_samples(lines) if absent else None
            step_s = time_step(run, few)
            counts = () if absent else plan_threads.candidates(self.spec, self.device)
            timed = time_threads(run, counts) if counts else {}
            judged = 1 if few == stand_in.FEWEST else 2  # of large images at several scales one takes seconds
            some = test.subset(torch.arange(min(judged, len(test))))
            self.check_quality(number, workload, task, task.reports or tuple(run.evaluate(some)))
            if data.kind != stand_in.KIND:
                whole_rel = whole_step_rel(run, step_s)
                step_s *= whole_rel
                timed = {count: tuple(whole_rel * each for each in seconds) for count, seconds in timed.items()}
            return planned.model_copy(update={"step_s": step_s, "threads_s": timed})
        except Exception as error:
            self.problems += self.failed(number, f"a first step of '{workload.name}'", error)
        return planned

    def failed(self, number: int, what: str, error: Exception) -> list[Problem]:
        """Whatever its data, model or task raise is this workload's, not the suite's. A refusal says itself why, as
        one does of a package that is missing."""
        if isinstance(error, EnergybenchError):
            return [problem.placed(self.spec.where("workload", number, "task")) for problem in error.problems]
        where = self.spec.where("workload", number, "model")
        return [Problem("E404", f"{what} failed: {type(error).__name__}: {error}", where)]

    def check_quality(self, number: int, workload: WorkloadTable, task: Task, reported: tuple[str, ...]) -> None:
        """Whether the task reports what the suite judges by, and somebody says which way is better.

        reported: names of what its evaluation gives
        """
        of_training = partial(plan_metrics.of_training, self.suite, number, workload, where=self.spec.where)
        self.metrics[workload.name], problems = of_training(task=task.metrics, reported=reported)
        self.problems += [problem for problem in problems if problem not in self.problems]

    # ── cells ─────────────────────────────────────────────────────────────────────────────────────────────────

    def cells(self, workload: WorkloadTable, known: PlannedWorkload, stacks: dict[str, Stack]) -> list[Cell]:
        pairs = self.spec.pairs_of(workload.name, commands=False)
        skipped = pairs[0][0].skipped if pairs and all(pair.skipped for pair, _ in pairs) else None
        roles: list[Literal["baseline", "twin"]] = ["baseline", "twin"] if self.suite.trials.twin else ["baseline"]
        result = [self.cell(workload, known, role, role) for role in roles]
        result = [cell.model_copy(update={"skipped": skipped}) for cell in result]  # nothing to compare with
        for pair, variant in pairs:
            stack = stacks[variant.label]
            methods = [method for _, method in stack]
            cell = self.cell(workload, known, variant.label, "method", [spec for spec, _ in stack])
            if cell.expected_s is not None:
                cell = cell.model_copy(
                    update={"expected_s": cell.expected_s * kept_share(methods, known.epochs, self.seeds)}
                )
            result.append(
                cell.model_copy(
                    update={
                        "claim": claim(variant, methods),
                        "skipped": pair.skipped,
                        "tuned_trials": variant.tuned,
                        "card_settings": settings_of(methods),
                    }
                )
            )
            if not pair.skipped and variant.control != "none":
                result.append(planned_control(cell, methods, variant.control, known.epochs, self.seeds))
        return result

    def cell(
        self,
        workload: WorkloadTable,
        known: PlannedWorkload,
        label: str,
        role: Role,
        stack: list[MethodSpec] | None = None,
    ) -> Cell:
        """stack: outermost first."""
        settings = self.suite.digest_source()
        return Cell(
            workload=workload.name,
            method=label,
            role=role,
            stack=[each.model_dump(mode="json") for each in stack or []],
            digest=digest(
                [
                    workload.settings(),
                    [(each.name, each.sha256, each.resolved) for each in stack or []],
                    known.data.sha256,
                    user_files(workload, self.base),
                    *([known.weights.sha256] if known.weights else []),
                    source_digest(),
                    torch.__version__,
                    str(self.device),
                    settings["measure"],
                    settings["trials"]["warmup"],
                    self.suite.trials.threads,
                    self.suite.trials.turns,
                    *([["devices", self.devices]] if self.devices > 1 else []),
                ]
            ),
            expected_s=None if known.step_s is None else known.step_s * known.steps * known.epochs,
            plain_flop=known.work(workload).flop if known.ledger else None,
            not_in_ledger=list(known.not_in_ledger) if role == "baseline" else [],
        )

    @property
    def seeds(self) -> list[int]:
        """Of all blocks."""
        return [self.suite.trials.seed + block for block in range(self.spec.blocks + self.spec.added)]

    # ── the machine ───────────────────────────────────────────────────────────────────────────────────────────

    def energy(self) -> dict[str, Any]:
        """What this machine can say about energy, and the carbon intensity that the suite asks for."""
        if self.purpose in ("count", "trace"):
            return {}
        facts, problems = energy(self.spec, self.suite.measure, self.device_name)
        problems, notes = unless_elsewhere(self.spec, problems)
        self.problems, self.notes = [*self.problems, *problems], [*self.notes, *notes]
        return facts
