"""The contract of a method: a layer over five verbs.

    run
    └─ epoch(data)                 one pass, or one round            default: for batch in batches(data): step(batch)
       ├─ batches(data)            which samples, with what weights  default: shuffled, weights 1
       └─ step(batch)              one update                        default: gradients(batch); update(batch.part)
          ├─ gradients(batch)      fill .grad, return the Forward    default: forward, Σ wᵢℓᵢ / B, backward
          └─ update(part)          move the parameters               default: optimizers[part].step()

Methods stack, outermost first; the innermost layer is the Task, which alone knows the loss. Imports no torch, so
that methods can be listed where torch is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from energybench.errors import Problem
from energybench.work import Work

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from energybench.loop import Run
    from energybench.theorem import Convexity
    from energybench.workloads.data import Data

VERBS = ("epoch", "batches", "step", "gradients", "update")
# What the default of each verb enters: the tree drawn above.
ENTERS = {
    "epoch": frozenset({"batches", "step"}),
    "step": frozenset({"gradients", "update"}),
    "batches": frozenset[str](),
    "gradients": frozenset[str](),
    "update": frozenset[str](),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples on the training device.

    inputs, targets: tensors or trees of tensors, the first dimension is the batch
    index:           positions in the data set, shape (B,)
    weights:         per-sample loss weights, shape (B,); None means 1
    part:            which optimizer it is for: "main", "critic", ...
    also:            other domains' batches of the same step
    """

    inputs: Any
    targets: Any
    index: Tensor
    weights: Tensor | None = None
    part: str = "main"
    also: Mapping[str, Batch] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward pass: the scalar mean loss, the per-sample losses (B,) if the task has them, the outputs."""

    value: Tensor
    each: Tensor | None
    outputs: Any

    def weighted(self, weights: Tensor | None) -> Tensor:
        """Σ wᵢℓᵢ / B: by the number of samples, never by Σ wᵢ, or importance weights would not be unbiased."""
        if weights is None:
            return self.value
        if self.each is None:
            raise TypeError("this task has no per-sample losses, so its batches cannot be weighted")
        return (self.each * weights.to(self.each.dtype)).sum() / len(weights)


class Method:
    """One energy-saving training method: override the verbs it changes; its dataclass fields are its parameters."""

    replaces: ClassVar[frozenset[str]] = frozenset()  # verbs it owns outright: never calls `inner` for them
    enters: ClassVar[frozenset[str]] = frozenset()  # verbs that a replaced verb still calls through the run
    needs: ClassVar[frozenset[str]] = frozenset()  # what it acts on: "forward", "backward", "per_sample_loss"
    runs: ClassVar[frozenset[str] | None] = None  # passes left when it replaces `gradients`
    # Points between estimate and count that are expected, with the reason; None takes the suite's `estimate_gap`.
    gap_because: str | None = None
    # Kinds of layers that it puts its own in place of, "conv" or "linear": no two methods can have the same layer.
    swaps: frozenset[str] = frozenset()
    swaps_unless: str | None = None  # the parameter with which it would swap none, as one types it
    # Values with which a small run shows what it does: of its required parameters, and of defaults that act late.
    example: ClassVar[Mapping[str, Any]] = {}

    name: str = "method"  # set when it is loaded; keys its random stream and its diagnostics
    acted: bool | None = None  # a method that can fail to act sets this on itself: False, then True

    def setup(self, run: Run) -> None:
        """Once, before the first step: swap modules, add hooks, allocate. Must consume no initialisation randomness."""

    def optimizer(
        self, run: Run, params: list[nn.Parameter], inner: Callable[[list[nn.Parameter]], Optimizer]
    ) -> Optimizer:
        return inner(params)

    def epoch(self, run: Run, data: Data, inner: Callable[[Data], None]) -> None:
        inner(data)

    def batches(self, run: Run, data: Data, inner: Callable[[Data], Iterable[Batch]]) -> Iterable[Batch]:
        return inner(data)

    def step(self, run: Run, batch: Batch, inner: Callable[[Batch], None]) -> None:
        inner(batch)

    def gradients(self, run: Run, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        return inner(batch)

    def update(self, run: Run, part: str, inner: Callable[[str], None]) -> None:
        inner(part)

    def resting(self, run: Run) -> AbstractContextManager[None]:
        """The model as evaluation should see it."""
        return nullcontext()

    def finish(self, run: Run) -> None:
        """Leave a plain model behind: undo swaps, remove hooks."""

    def refuses(self, train: Mapping[str, Any]) -> str | None:
        """Why it cannot train by this recipe, the suite's resolved [train] table; None if it can."""
        return None

    def estimate(self, work: Work) -> Work:
        """The analytic promise on what actually ran, as a change to the ledger of plain training."""
        return work

    def claims(self) -> tuple[float, str, str] | None:
        """The method's own nominal promise: (saving, of "training" or "backward", source)."""
        return None

    def kept_epochs(self, run: Run) -> int | None:
        """How many of `run.epochs` will really train, when fewer; decided before the first step from `run.rng`."""
        return None

    def diagnostics(self) -> dict[str, Any]:
        """What the record should keep: JSON-able."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors worth keeping in a file beside the record; asked for when the window is closed."""
        return {}


class Task(Method):
    """The innermost layer: parameters, loss and quality of one kind of learning problem."""

    parts: ClassVar[tuple[str, ...]] = ("main",)
    provides: ClassVar[frozenset[str]] = frozenset({"forward", "backward", "per_sample_loss"})

    def parameters(self, run: Run, part: str) -> Iterator[nn.Parameter]:
        return run.model.parameters()

    def forward(self, run: Run, batch: Batch) -> Forward:
        raise NotImplementedError(f"{type(self).__name__} must define forward(run, batch)")

    def losses(self, run: Run, outputs: Any, batch: Batch) -> Tensor:
        """The per-sample losses (B,) of `forward`, from its outputs: what scores of samples differentiate. Optional."""
        raise NotImplementedError(f"{type(self).__name__} must define losses(run, outputs, batch)")

    def output_gradient(self, run: Run, outputs: Any, batch: Batch) -> Tensor | None:
        """∂ℓᵢ/∂outputᵢ (B, ...) where it has a closed form; None: `losses` is differentiated."""
        return None

    def convexity(self, run: Run) -> Convexity | None:
        """The curvature and the minimum of the training loss, where they are known in closed form."""
        return None

    def evaluate(self, run: Run, data: Data) -> dict[str, float]:
        raise NotImplementedError(f"{type(self).__name__} must define evaluate(run, data)")


def parameters(method: Method) -> dict[str, Any]:
    """A method's parameters as TOML values; building from them gives an equal method."""
    if not is_dataclass(method):
        return {}
    values = {field.name: getattr(method, field.name) for field in fields(method) if field.init}
    return {key: _plain(value) for key, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    """Tables and arrays stay what they are; a quantity is written with its unit."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def overrides(layer: Method, verb: str) -> bool:
    return getattr(type(layer), verb) is not getattr(Method, verb)


def check_stack(methods: Sequence[Method], task: Task, where: str = "") -> list[Problem]:
    """What can be said against a stack (outermost first) before anything runs."""
    problems: list[Problem] = []
    for position, owner in enumerate(methods):
        for verb in sorted(owner.replaces):
            hidden = [layer for layer in [*methods[position + 1 :], task] if overrides(layer, verb)]
            if hidden:
                problems.append(_hidden(methods, task, owner, verb, hidden, where))
            lost = _unreachable(verb, owner)
            for layer in [layer for layer in [*methods, task] if layer is not owner]:
                for inside in sorted(v for v in lost if overrides(layer, v)):
                    problems.append(
                        Problem(
                            "E311",
                            f"'{owner.name}' replaces `{verb}` and never enters `{inside}`, "
                            f"so '{layer.name}' could not act there",
                            where,
                            _apart(owner, layer),
                        )
                    )
    problems += _unmet_needs(methods, task, where)
    return problems + _swapped_twice(methods, where)


def _unreachable(verb: str, owner: Method) -> set[str]:
    """Verbs nested in `verb` that nobody enters once `owner` replaces it."""
    entered, frontier = set(owner.enters), set(owner.enters)
    while frontier:
        frontier = {inner for v in frontier for inner in ENTERS[v]} - entered
        entered |= frontier
    nested, frontier = set(ENTERS[verb]), set(ENTERS[verb])
    while frontier:
        frontier = {inner for v in frontier for inner in ENTERS[v]} - nested
        nested |= frontier
    return nested - entered - set(owner.replaces)


def _hidden(methods: Sequence[Method], task: Task, owner: Method, verb: str, hidden: list[Method],
            where: str) -> Problem:  # fmt: skip
    names = " and ".join(f"'{layer.name}'" for layer in hidden)
    message = f"'{owner.name}' replaces `{verb}`, so {names} inside it would never act"
    order = _working_order(methods, task)
    if order is None:
        return Problem("E310", message, where, f"no order works: {_apart(owner, hidden[-1])}")
    return Problem("E310", message, where, f"this order works: use = {json.dumps(order)}")


def _working_order(methods: Sequence[Method], task: Task) -> list[str] | None:
    """Names, outermost first, in an order in which no replaced verb hides a layer; None if there is none."""
    left, order = list(methods), list[str]()
    while left:
        for layer in left:
            inside = [other for other in [*left, task] if other is not layer]
            if not any(overrides(other, verb) for verb in layer.replaces for other in inside):
                break
        else:
            return None
        left = [other for other in left if other is not layer]
        order.append(layer.name)
    return order


def _apart(owner: Method, layer: Method) -> str:
    if isinstance(layer, Task):
        return f"'{owner.name}' cannot train the task '{layer.name}'"
    return f"run '{owner.name}' and '{layer.name}' as two methods"


def _unmet_needs(methods: Sequence[Method], task: Task, where: str) -> list[Problem]:
    problems = []
    for layer in methods:
        for need in sorted(layer.needs - task.provides):
            problems.append(
                Problem("E312", f"'{layer.name}' needs {need}, which the task does not provide", where)
            )
        for owner in methods:
            if owner is layer or owner.runs is None:
                continue
            for need in sorted((layer.needs & {"forward", "backward"}) - owner.runs):
                problems.append(
                    Problem(
                        "E313",
                        f"'{layer.name}' acts on the {need} pass, but '{owner.name}' leaves only: "
                        f"{', '.join(sorted(owner.runs)) or 'none'}",
                        where,
                        f"run '{layer.name}' and '{owner.name}' as two methods",
                    )
                )
    return problems


def _swapped_twice(methods: Sequence[Method], where: str) -> list[Problem]:
    problems = []
    for position, outer in enumerate(methods):
        for inner in methods[position + 1 :]:
            if both := sorted(outer.swaps & inner.swaps):
                without = [f"give '{m.name}' {m.swaps_unless}" for m in (outer, inner) if m.swaps_unless]
                message = f"'{outer.name}' and '{inner.name}' each put a layer of their own in place of every {both[0]}"
                problems.append(
                    Problem("E314", message, where, ", or ".join([*without[:1], _apart(outer, inner)]))
                )
    return problems
