"""The contract of a method: a layer over five hooks.

    run
    └─ epoch(data)                 one pass, or one round            default: for batch in batches(data): step(batch)
       ├─ batches(data)            which samples, with what weights  default: shuffled, weights 1
       └─ step(batch)              one update                        default: gradients(batch); update(batch.part)
          ├─ gradients(batch)      fill .grad, return the Forward    default: forward, Σ wᵢℓᵢ / B, backward
          └─ update(part)          move the parameters               default: optimizers[part].step()

Methods stack, outermost first; the innermost layer is the Task, which alone knows the loss. What a hook is handed as
`run` stands in `interface.py`. A hook that is overridden wrongly is told before anything trains (`method_check.py`).
Imports no torch, so that methods can be listed where torch is missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from energybench.common.renamed import RenamedNameWarning
from energybench.flops.work import Work
from energybench.train.batch import Batch, Forward

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from energybench.common.metrics import Better, Metric
    from energybench.train.convexity import Convexity
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun
    from energybench.train.passes import Passes

HOOKS = ("epoch", "batches", "step", "gradients", "update")

# Members that were renamed, old → new: read under the old name for one version.
RENAMED = {"resting": "eval_context", "refuses": "incompatible_recipe", "state": "saved_tensors"}


class Method:
    """One energy-saving training method: override the hooks it changes; its dataclass fields are its parameters.

    A hook is called as `hook(run, argument, inner)`, by position; `inner(argument)` is the rest of the chain: layers
    further in, the task, the default. Whoever never calls `inner` says so in `replaces`.
    """

    # ── what it declares ──────────────────────────────────────────────────────────────────────────────────────

    replaces: ClassVar[frozenset[str]] = frozenset()  # hooks it owns outright: never calls `inner` for them
    enters: ClassVar[frozenset[str]] = frozenset()  # hooks that a replaced hook still calls through the run
    needs: ClassVar[frozenset[str]] = frozenset()  # what it acts on: "forward", "backward", "per_sample_loss"
    runs: ClassVar[frozenset[str] | None] = None  # passes left when it replaces `gradients`: "forward", "backward"
    # Points between estimate and count that are expected, with the reason; None takes the suite's `estimate_gap`.
    gap_because: str | None = None
    # True: it changes with the epochs, and its `estimate` answers for those that `work.of_epochs` names.
    by_epoch: ClassVar[bool] = False
    # False: it takes every step and every sample that plain training takes, so that a matched control would be plain
    # training itself; None: its tally shows it.
    trains_less: ClassVar[bool | None] = None
    # Kinds of layers that it puts its own in place of, "conv" or "linear": no two methods can have the same layer.
    swaps: frozenset[str] = frozenset()
    swaps_unless: str | None = None  # the parameter with which it would swap none, as one types it
    # Values with which a small run shows what it does: of its required parameters, and of defaults that act late.
    example: ClassVar[Mapping[str, Any]] = {}

    # True: what layers do or are given differs from pass to pass, which code that was compiled or recorded would miss.
    # More steps of it are counted.
    passes_differ: ClassVar[bool] = False
    # True: code that it generates computes the model's passes.
    compiles: ClassVar[bool] = False
    # The precision in which it trains in place of the recipe's, "bf16" or "fp16"; None: the recipe's.
    trains_in: str | None = None

    # What it does otherwise on several devices than on one, in a sentence for the record; None: nothing.
    differs_on_devices: ClassVar[str | None] = None

    name: str = "method"  # set when it is loaded; keys its random stream and its diagnostics
    acted: bool | None = None  # a method that can fail to act sets this on itself: False in `setup`, then True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for old, new in RENAMED.items():
            if callable(member := vars(cls).get(old)) and new not in vars(cls):
                _warn_renamed(cls.__name__, old, new, stacklevel=3)
                setattr(cls, new, member)

    # ── before and after ──────────────────────────────────────────────────────────────────────────────────────

    def setup(self, run: TrainingRun) -> None:
        """Once, before the first step: swap modules, add hooks, allocate. The innermost layer's comes first.

        It draws from `run.rng` alone, never from torch's own stream, which initialised the model. To compile is a
        method of its own: `run.model.compile()` here leaves torch's own containers uncompiled, and says nothing.

        Raises:
            ValueError: where the run cannot be trained by this method; the message ends the trial.
        """

    def optimizer(
        self, run: TrainingRun, params: list[nn.Parameter], inner: Callable[[list[nn.Parameter]], Optimizer]
    ) -> Optimizer:
        """The optimizer of one part, asked for at the part's first update.

        Args:
            params: the part's parameters that have learned so far. Those released later join by `add_param_group`.
            inner: the rest of the chain; at its end stands the recipe's optimizer of torch.

        Returns:
            An optimizer over `params`. Its learning rates are set before each step, where `update` is not replaced.
        """
        return inner(params)

    def finish(self, run: TrainingRun) -> None:
        """After the last evaluation, outermost first: leave a plain model behind. Undo swaps, remove hooks."""

    # ── the five hooks ────────────────────────────────────────────────────────────────────────────────────────

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        """One pass over `data`, or one round. An epoch that never calls `inner` nor `run.step` is skipped: no samples,
        no loss, the learning rate goes on.

        Args:
            data: the training set, or what a layer further out has left of it.
            inner: trains on the data that it is handed.
        """
        inner(data)

    def batches(self, run: TrainingRun, data: Data, inner: Callable[[Data], Iterable[Batch]]) -> Iterable[Batch]:
        """The batches of one pass, in order. A generator (`yield`) is asked for the next one after each step.

        Returns:
            Batches on `run.device`: of `inner(data)`, or of `run.load(data, positions)` for positions of its own.
        """
        return inner(data)

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        """One update for one batch: `gradients`, then `update`. `run.skip_update = True` in it leaves the update out.

        Args:
            inner: takes a batch, which may be another one: smaller, reweighted, of another part.
        """
        inner(batch)

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        """Fill `.grad` of the parameters of `batch.part`.

        Whoever replaces it does what the default does, in this order: sets `.grad` of `run.parameters(batch.part)` to
        None; for each micro-batch of `trees.split(batch, run.recipe.accumulate)` calls `run.forward` and `run.backward`
        with the loss times the micro-batch's share of the batch; and calls `run.add_loss` once, with the batch's mean
        loss (): else the curve is empty and no divergence is seen.

        Returns:
            The forward pass of the whole batch (`trees.join` puts micro-batches together).
        """
        return inner(batch)

    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        """Move the parameters of `part` by their `.grad`. Not called while `run.skip_update` is set.

        Whoever replaces it clips as `run.recipe.clip` says, sets the rate (`run.lr(part)`), and moves neither a
        parameter whose `requires_grad` is off nor one without a gradient.
        """
        inner(part)

    # ── around the passes ─────────────────────────────────────────────────────────────────────────────────────

    def forward_context(self, run: TrainingRun, mode: str) -> AbstractContextManager[Any]:
        """What is entered around every `run.forward`, outermost layer first: autocast, a counter, a profiler's range.

        It lies inside the pass's grad mode and the recipe's autocast. The backward pass is outside, as torch wants it.
        Evaluation does not come here: `eval_context` does. It costs nothing while no layer overrides it.

        Args:
            mode: of the pass: "train", "eval" or "frozen_stats".

        Returns:
            A context manager, made anew for every pass.
        """
        return nullcontext()

    def prepare_inputs(self, run: TrainingRun, inputs: Any) -> Any:
        """The inputs of a batch as the model shall be given them, in training and in evaluation alike: another memory
        format, precision or layout. Layers further in come first. It costs nothing while no layer overrides it.

        It must depend on the inputs alone, and may be called before `setup`, by the setup of a layer further in. Its
        time is a part of loading.

        Args:
            inputs: a tensor or a tree of tensors, (B, ...) each, normalised and augmented, on `run.device`.

        Returns:
            The same samples in the same order.
        """
        return inputs

    def eval_context(self, run: TrainingRun) -> AbstractContextManager[Any]:
        """The model as evaluation should see it: entered around every `run.evaluate`, outermost layer first."""
        return nullcontext()

    # ── what the harness asks ─────────────────────────────────────────────────────────────────────────────────

    def incompatible_recipe(self, train: Mapping[str, Any]) -> str | None:
        """Why it cannot train by this recipe; None if it can. Asked before a run starts.

        Args:
            train: the suite's resolved [train] table: "optimizer", "lr", "momentum", "nesterov", "precision", ...
        """
        return None

    def incompatible_devices(self, devices: int) -> str | None:
        """Why it cannot train on several devices at once; None if it can. Asked before a run starts, and only then.

        Each rank has a part of every batch, and hooks see that part alone. The gradient of a pass by `run.forward` and
        `run.backward` is averaged over the ranks before `update` sees it. What a method decides by it, or by
        generators of `run.rng`, is decided alike on every rank; what it decides by its own samples is not: see
        `run.all_rows`. Ranks that end with different weights make the trial invalid.

        Args:
            devices: two or more
        """
        return None

    def incompatible_run(self, run: TrainingRun) -> str | None:
        """Why it cannot train this model on these data; None if it can. Asked before a run starts, and of each run
        before `setup`, which need not ask again.

        Args:
            run: not set up yet: its `model`, `data`, `recipe`, `task` and `device` may be looked at, and none of them
                changed. `next(iter(run.data.load([torch.arange(2)])))` is a batch of two samples.
        """
        return None

    def incompatible_hardware(self, device: str) -> str | None:
        """Why it cannot train on this kind of device; None if it can. A run is refused by it. What is only checked or
        counted is not: there it trains as plain training does.

        Args:
            device: "cpu" or "cuda"
        """
        return None

    def lr_factor(self, run: TrainingRun) -> float:
        """By which the recipe's learning rate is multiplied now: `run.lr` has it in."""
        return 1.0

    def card_settings(self) -> Mapping[str, float]:
        """What the harness sets on the card for its trials, and puts back on every way out; it sets none itself.

        Returns:
            {"power_limit_w": watts}, {"power_limit_rel": share of the default}, {"clock_limit_hz": hertz},
            {"clock_limit_rel": share of the highest}, or nothing.
        """
        return {}

    def kept_epochs(self, run: TrainingRun) -> int | None:
        """How many of `run.epochs` will really train, when fewer; decided before the first step from `run.rng`.

        A number here says before the run how long its matched control will take. What the control trains is what the
        method's own tally paid for in the same block. `run` has no more than `epochs` and `rng` when this is asked.
        """
        return None

    def steps_per_epoch(self, run: TrainingRun) -> int | None:
        """How many steps the epoch has that begins, where `epoch` makes another number than one pass: rounds, local
        steps. None: one pass. Asked when all layers are set up, and as every epoch begins; the outermost answer holds.

        With an answer the learning rate moves by it within the epoch, and the epochs trained are counted in passes: the
        samples of the steps over those of one pass, in fractions. `estimate` says what that changes:
        `work.trained(work.epochs * passes / rounds)`, with the passes of `run.tally` and the rounds for which its
        `epoch` was called, so that it composes with what skips epochs.
        """
        return None

    def estimate(self, work: Work) -> Work:
        """The analytic promise on what actually ran, as a change to the ledger of plain training.

        Args:
            work: the ledger as what acts inside of this method has left it, over the epochs that the run has ended, or
                over `work.of_epochs`. Phases are "forward", "weight_gradient", "input_gradient", and those that methods
                add: "probe", "look", "presample", ...; forward passes in evaluation are copied from `work.plain`

        Returns:
            A changed copy: `work.change(rule)`, `work.add(*lines)`, `work.trained(epochs)`.
        """
        return work

    def claims(self) -> tuple[float, str, str] | None:
        """The method's own nominal promise: (saving as a share in [0, 1), of "training" or "backward", its source)."""
        return None

    def diagnostics(self) -> dict[str, Any]:
        """What the record should keep, JSON-able. Asked for when the window is closed: nothing here is billed."""
        return {}

    def saved_tensors(self) -> dict[str, Tensor]:
        """Tensors worth keeping in a file beside the record, by name; asked for when the window is closed."""
        return {}


class Task(Method):
    """The innermost layer: parameters, loss and quality of one kind of learning problem."""

    # What `evaluate` gives, by name, and which way is better: {"mse": "lower", "psnr": Metric(better="higher", …)}
    metrics: ClassVar[Mapping[str, Metric | Better]] = {}
    parts: ClassVar[tuple[str, ...]] = ("main",)  # groups of parameters with an optimizer each
    # Parts of the data of which `batch.also[name]` has as many samples as the batch, in an endless pass of its own; the
    # mean of `Forward.each` must be `Forward.value`, with what they add in both, or samples could not be weighted
    batch_parts: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[frozenset[str]] = frozenset({"forward", "backward", "per_sample_loss"})
    # The names that `evaluate` gives, where it takes too long to be tried before a run; None: a plan tries it on two
    # samples, and sees them
    reports: ClassVar[tuple[str, ...] | None] = None
    # True: one learning rate for a whole epoch, that of its first step, as of clients who train side by side and are
    # only simulated one after another
    lr_per_epoch: ClassVar[bool] = False

    def parameters(self, run: TrainingRun, part: str) -> Iterator[nn.Parameter]:
        """All parameters of `part`, whether they learn now or not."""
        return run.model.parameters()

    def forward(self, run: TrainingRun, batch: Batch) -> Forward:
        """One forward pass of `run.model`, untallied; called by `run.forward`."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(run, batch)")

    def losses(self, run: TrainingRun, outputs: Any, batch: Batch) -> Tensor:
        """The per-sample losses (B,) of `forward`, from its outputs: what scores of samples differentiate. Optional."""
        raise NotImplementedError(f"{type(self).__name__} must define losses(run, outputs, batch)")

    def output_gradient(self, run: TrainingRun, outputs: Any, batch: Batch) -> Tensor | None:
        """∂ℓᵢ/∂outputᵢ (B, ...) where it has a closed form; None: `losses` is differentiated."""
        return None

    def passes(self, run: TrainingRun) -> Passes | None:
        """What the epoch `run.epoch_number` of plain training is, where it is another thing than one pass over the
        training set for each part: a round of federated clients, a step of two passes. None: one pass.

        By it the estimate, the plan, the learning rate within an epoch, matched controls and the share of steps that
        are counted go; with an answer an epoch of the suite's `epochs` is one round. Asked for any epoch, before and
        after training: it must be a function of `run.epoch_number`, `run.rng` and the data alone.

        Returns:
            `Passes.of(sizes of the steps' batches)`, with `forwards` and `backwards` of each step where it makes more
            than one; or the sums, `Passes(forward=…, backward=…, updates=…)`.
        """
        return None

    def convexity(self, run: TrainingRun) -> Convexity | None:
        """The curvature and the minimum of the training loss, where they are known in closed form."""
        return None

    def evaluate(self, run: TrainingRun, data: Data) -> dict[str, float]:
        """Quality on `data`, by name; called inside every layer's `eval_context`, in evaluation mode, without grad."""
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


def overrides(layer: Method, member: str) -> bool:
    """Whether a layer has a hook, or another member of Method, of its own."""
    return getattr(type(layer), member) is not getattr(Method, member)


def input_chain(run: TrainingRun, layers: Iterable[Method]) -> Callable[[Any], Any] | None:
    """Every layer's `prepare_inputs` after those further in; None where nobody overrides it.

    Args:
        layers: innermost first
    """
    changing = [layer for layer in layers if overrides(layer, "prepare_inputs")]
    if not changing:
        return None

    def prepare(inputs: Any) -> Any:
        for layer in changing:
            inputs = layer.prepare_inputs(run, inputs)
        return inputs

    return prepare


# ── members under their old names ─────────────────────────────────────────────────────────────────────────────────────


def _warn_renamed(owner: str, old: str, new: str, stacklevel: int) -> None:
    warnings.warn(f"{owner}.{old} is called {new} now", RenamedNameWarning, stacklevel=stacklevel)


def _read_under_old_name(old: str, new: str) -> Callable[..., Any]:
    """The old name as a method: calls the nearest definition under the new one. A definition under the old name is not
    called again, so that it may ask `super()`."""

    def call(self: Method, *args: Any) -> Any:
        _warn_renamed(type(self).__name__, old, new, stacklevel=3)
        native = next(
            vars(kind)[new]
            for kind in type(self).__mro__
            if new in vars(kind) and vars(kind).get(old) is not vars(kind)[new]
        )
        return native(self, *args)

    call.__name__, call.__doc__ = old, f"The old name of `{new}`."
    return call


for _old, _new in RENAMED.items():
    setattr(Method, _old, _read_under_old_name(_old, _new))
