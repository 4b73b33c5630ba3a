"""The task, the model and the stack of one trial, as its specification names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from energybench.common.errors import Problem, UsageError
from energybench.common.hashing import stable_seed
from energybench.suite.tables import WorkloadTable
from energybench.train import discovery
from energybench.train.data import Data
from energybench.train.method import Method, Task
from energybench.train.rank_run import RankRun
from energybench.train.ranks import Ranks
from energybench.train.recipe import Recipe
from energybench.train.run import Run
from energybench.trial.control_run import ControlRun, RankControlRun
from energybench.trial.spec import MethodSpec, TrainingSpec
from energybench.workloads import models
from energybench.workloads.description import DataDescription, StartWeights
from energybench.workloads.models.bounds import bounded_models, refuse_too_many
from energybench.workloads.start_weights import function_arguments, load_start
from energybench.workloads.tasks import task_named


def build(
    spec: TrainingSpec,
    train: Data,
    device: torch.device,
    task: Task | None = None,
    kind: Callable[..., Run] | None = None,
    ranks: Ranks | None = None,
) -> Run:
    """A fresh model, task and stack. The initial weights depend on the seed alone.

    Args:
        task: one that was made before; a fresh one where there is none
        kind: what makes the run, where it is another than `Run`, or with a budget than `ControlRun`; on several devices
              one that takes `ranks`
        ranks: this process among those that train together; each of them builds its own
    """
    stack = build_stack(spec.stack)
    usual: tuple[Callable[..., Run], Callable[..., Run]] = (
        (Run, ControlRun) if ranks is None else (RankRun, RankControlRun)
    )
    kind = kind or usual[spec.budget is not None]
    if spec.budget is not None:
        kind = partial(kind, steps=spec.budget.steps)
    if ranks is not None:
        kind = partial(kind, ranks=ranks)
    model = build_model(spec.workload, spec.data, spec.base, spec.seed, spec.weights)
    return kind(
        task or task_named(spec.workload.task, spec.base),
        stack,
        recipe_of(spec.workload),
        model.to(device),
        train,
        seed=spec.seed,
        device=device,
    )


def recipe_of(workload: WorkloadTable) -> Recipe:
    """How a workload of a suite is trained."""
    train = workload.train
    return Recipe(
        epochs=train.epochs,
        batch=workload.data.batch,
        optimizer=train.optimizer,
        lr=train.lr,
        momentum=train.momentum,
        nesterov=train.nesterov,
        betas=train.betas,
        decay=train.decay,
        schedule=train.schedule,
        milestones=train.milestones,
        factor=train.factor,
        warmup_epochs=train.warmup_epochs,
        clip=train.clip,
        accumulate=train.accumulate,
        precision=train.precision,
        label_smoothing=train.label_smoothing,
        lr_multipliers=train.lr_multipliers,
    )


def build_model(
    workload: WorkloadTable, data: DataDescription, base: Path, seed: int, weights: StartWeights | None = None
) -> torch.nn.Module:
    """The workload's model for samples of the data's shape, on the CPU, with the weights that training starts from.

    weights: the file's, as it was when the suite was checked

    Raises UsageError as `fresh_model` and `load_start` do.
    """
    model = fresh_model(workload, data, base, seed)
    load_start(model, workload.model, base, weights)
    return model


def fresh_model(workload: WorkloadTable, data: DataDescription, base: Path, seed: int) -> torch.nn.Module:
    """The same as its seed initialises it, without a file of weights.

    Raises UsageError E401 for a model that is not known or refuses its parameters, E207 for one that is too large.
    """
    torch.manual_seed(stable_seed(seed, "init"))
    use, settings = workload.model.use, function_arguments(workload.model, base)
    # Only what the data says: what a function has a default for stays.
    offered = {**data.extra, **({} if data.void is None else {"void": data.void})}
    with bounded_models(use):
        if discovery.names_file(use):
            function = discovery.load_function(use, base)
            known = {"shape": data.shape, "classes": data.classes}
            model: torch.nn.Module = models.call(function, use, known, settings, offered)
        else:
            model = models.build(use, data.shape, data.classes, settings, offered)
    _take_back()
    refuse_too_many(use, sum(1 for _ in model.parameters()))  # copies of layers are not counted as they are made
    refuse_wrapped(model, use)
    models.fix_sizes(model, use, data.shape)
    if workload.train.activation:
        models.activate(model, use, workload.train.activation)
    return model


def refuse_wrapped(model: torch.nn.Module, use: str) -> None:
    """Raises UsageError E404 for a model that somebody has spread over processes already: nothing of FSDP is imported
    to find out."""
    kinds = {(kind.__name__, kind.__module__) for module in model.modules() for kind in type(module).__mro__}
    kinds |= {(type(tensor).__name__, type(tensor).__module__) for tensor in model.parameters()}
    named = {name for name, module in kinds if module.startswith("torch.")}
    if named & {"FullyShardedDataParallel", "FSDPModule", "DTensor"}:
        message = f"'{use}' gives a model under FSDP, of whose tensors a rank holds a shard: gradsamp fits whole ones, "
        message += "and ssprop chooses among the channels of whole layers"
        hint = "give the plain model; [trials] devices = 2 trains it on two by DDP"
        raise UsageError(Problem("E404", message, hint=hint))
    if "DistributedDataParallel" in named:
        hint = "give the plain model; [trials] devices = 2 wraps it when the methods have changed it"
        raise UsageError(Problem("E404", f"'{use}' gives a model under DistributedDataParallel", hint=hint))


def _take_back() -> None:
    """transformers gives torch's own class of modules a function whenever it makes a model and finds none there; left
    in place it would look as if a method had replaced what judges."""
    added = vars(torch.nn.Module).get("smart_apply")
    if str(getattr(added, "__module__", "")).startswith("transformers."):
        del torch.nn.Module.smart_apply  # type: ignore[attr-defined]


def build_stack(stack: Iterable[MethodSpec]) -> list[Method]:
    """Methods outermost first, each with a name of its own: it keys random streams and diagnostics."""
    methods: list[Method] = []
    for spec in stack:
        source = discovery.Source(spec.use, Path(spec.path), spec.origin, spec.class_name)
        method = discovery.build(discovery.load(source), spec.name, spec.parameters)
        methods.append(method)
    return methods


def device_name(device: torch.device, world: int = 1) -> str:
    """ "cpu", or the card's UUID as NVML writes it; of several cards in their alphabetical order, joined by "+"."""
    if device.type != "cuda":
        return device.type
    cards = [device] if world == 1 else [rank_device(device, number) for number in range(world)]
    return "+".join(sorted(f"GPU-{torch.cuda.get_device_properties(card).uuid}" for card in cards))


def rank_device(device: torch.device, number: int) -> torch.device:
    """The device of one rank of several: the CPU for all of them, or a card each, as torch numbers them."""
    return torch.device("cuda", number) if device.type == "cuda" else device
