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

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from energybench.flops.work import Work
from energybench.train.batch import Batch, Forward

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from energybench.train.convexity import Convexity
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

VERBS = ("epoch", "batches", "step", "gradients", "update")


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

    def setup(self, run: TrainingRun) -> None:
        """Once, before the first step: swap modules, add hooks, allocate. Must consume no initialisation randomness."""

    def optimizer(
        self, run: TrainingRun, params: list[nn.Parameter], inner: Callable[[list[nn.Parameter]], Optimizer]
    ) -> Optimizer:
        return inner(params)

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        inner(data)

    def batches(self, run: TrainingRun, data: Data, inner: Callable[[Data], Iterable[Batch]]) -> Iterable[Batch]:
        return inner(data)

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        inner(batch)

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        return inner(batch)

    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        inner(part)

    def resting(self, run: TrainingRun) -> AbstractContextManager[None]:
        """The model as evaluation should see it."""
        return nullcontext()

    def finish(self, run: TrainingRun) -> None:
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

    def kept_epochs(self, run: TrainingRun) -> int | None:
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

    def parameters(self, run: TrainingRun, part: str) -> Iterator[nn.Parameter]:
        return run.model.parameters()

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        raise NotImplementedError(f"{type(self).__name__} must define forward(run, batch)")

    def losses(self, run: TrainingRun, outputs: Any, batch: Batch) -> Tensor:
        """The per-sample losses (B,) of `forward`, from its outputs: what scores of samples differentiate. Optional."""
        raise NotImplementedError(f"{type(self).__name__} must define losses(run, outputs, batch)")

    def output_gradient(self, run: TrainingRun, outputs: Any, batch: Batch) -> Tensor | None:
        """∂ℓᵢ/∂outputᵢ (B, ...) where it has a closed form; None: `losses` is differentiated."""
        return None

    def convexity(self, run: TrainingRun) -> Convexity | None:
        """The curvature and the minimum of the training loss, where they are known in closed form."""
        return None

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
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
