"""cuda_graphs: record a step's forward and backward pass on a card once, and launch them as one graph ever after.

After some plain steps the model's passes for batches of the usual shape are recorded with
`torch.cuda.make_graphed_callables`: warmed up on a stream of their own, with inputs that stay where they are. A step
then copies its batch there and replays the same kernels. Loss, clipping, loss scaling and update are as ever. What has
another shape runs as in plain training: the smaller last batch, evaluation, probes, a step's second pass.

Source: torch's documentation, "CUDA semantics", CUDA Graphs, partial-network capture; Ng et al. 2021, Accelerating
PyTorch with CUDA Graphs. Promises the FLOPs of plain training, 0 % less, without the time in which a card waits for
Python; it pays where steps are short. Costs memory that no other tensor may use, and the recording, in every run.
Composes with what acts outside of the model's passes. Refused with what acts within them, by layers of its own or by
hooks on layers, since what it did in one step would be repeated in every other; with micro-batches; with a compiled
model, which has CUDA graphs by `mode = "reduce-overhead"`; and without a card. A step that somebody listens to operator
by operator, as the counter does, runs plainly.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from energybench import Batch, Method, TrainingRun

COMPILED = "a compiled model has CUDA graphs of its own: 'compile' with mode = \"reduce-overhead\""
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")  # of a module


@dataclass
class CudaGraphs(Method):
    """after: plain steps of a shape before its passes are recorded, in which kernels are chosen and memory is found"""

    trains_less: ClassVar[bool | None] = False

    after: Annotated[int, Field(ge=1)] = 3

    def __post_init__(self) -> None:
        if self.after < 1:
            raise ValueError(f"after is a number of steps ≥ 1, not {self.after}")

    # ── what it cannot do ─────────────────────────────────────────────────────────────────────────────────────

    def incompatible_hardware(self, device: str) -> str | None:
        return None if device == "cuda" else f"a CUDA graph is recorded on a card, and the device is '{device}'"

    def incompatible_recipe(self, train: Mapping[str, Any]) -> str | None:
        if train.get("accumulate", 1) > 1:
            return "a replay overwrites the gradient that the micro-batch before it left; set accumulate = 1"
        return None

    def incompatible_devices(self, devices: int) -> str | None:
        return "devices exchange gradients from within the backward pass, which would be recorded without that"

    def incompatible_run(self, run: TrainingRun) -> str | None:
        for layer in run.methods:
            if getattr(layer, "compiles", False):
                return COMPILED
            if getattr(layer, "passes_differ", False):
                return f"'{layer.name}' changes what layers do from pass to pass, and a replay repeats one of them"
            if layer is not self and getattr(layer, "swaps", None):
                return f"'{layer.name}' has layers of its own, and what they did in the recorded step would be repeated"
        return None

    # ── before and after ──────────────────────────────────────────────────────────────────────────────────────

    def setup(self, run: TrainingRun) -> None:
        self._run = run
        self._seen: Counter[Any] = Counter()  # shape of a call → steps with it, up to `after`
        self._recorded: Any = None  # what was recorded: shape and weights
        self._replay: Callable[..., Any] | None = None
        self._may_replay = self._trains = False  # in this step; in this pass
        self._recordings = self._replays = self._plain = 0
        self._recording_s = 0.0
        self._forward: Callable[..., Any] | None = None
        if self.incompatible_hardware(run.device.type):
            return  # it is only checked or counted here: as plain training
        self.acted = False
        self._forward = run.model.forward
        self._had_own = vars(run.model).get("forward")
        run.model.forward = self._call

    def finish(self, run: TrainingRun) -> None:
        self._replay = self._recorded = None  # and the memory of the graph with it
        if self._forward is None:
            return
        if self._had_own is None:
            del run.model.forward
        else:
            run.model.forward = self._had_own
        self._forward = None

    # ── which pass is replayed ────────────────────────────────────────────────────────────────────────────────

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        if self._forward is not None and run.model._compiled_call_impl is not None:
            raise ValueError(COMPILED)
        self._may_replay = self._forward is not None
        try:
            inner(batch)
        finally:
            self._may_replay = False

    @contextmanager
    def forward_context(self, run: TrainingRun, mode: str) -> Iterator[None]:
        self._trains = mode == "train" and torch.is_grad_enabled()
        try:
            yield
        finally:
            self._trains = False

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass: a replay where it may be one.

        One in each step: a second would overwrite what the first keeps for its backward pass, and its gradient, which
        lies in the graph's own memory until the next step.
        """
        assert self._forward is not None
        tensors = tree_leaves(args)
        if not (self._trains and self._may_replay) or kwargs or not all(isinstance(each, Tensor) for each in tensors):
            return self._forward(*args, **kwargs)
        self._may_replay = False
        shape = (*map(_shape, tensors), *_autocast(self._run.device.type))
        if torch._C._len_torch_dispatch_stack() or not self._is_usual(shape):
            self._plain += 1
            return self._forward(*args)
        state = (shape, *((id(p), p.data_ptr(), p.requires_grad) for p in self._run.model.parameters()))
        if self._replay is None or state != self._recorded:
            self._record_now(args)
            self._recorded = state
        assert self._replay is not None
        self._replays += 1
        self.acted = True  # and no mark: the step costs what it costs without
        # Of its own, since somebody may look at it after the next replay.
        return tree_map(torch.clone, self._replay(*args))

    def _is_usual(self, shape: Any) -> bool:
        """The first shape of which there were enough steps is the one that is recorded: a graph holds memory."""
        if self._recorded is not None:
            return bool(shape == self._recorded[0])
        self._seen[shape] += 1
        return self._seen[shape] > self.after

    def _record_now(self, args: tuple[Any, ...]) -> None:
        """Leaves the model as it was: warming up moves running statistics and draws for dropout."""
        for name, module in self._run.model.named_modules():
            if name and any(getattr(module, hooks) for hooks in HOOKS):  # those of the model itself run around a replay
                raise ValueError(f"a hook on '{name}' acts within a pass: what it does in one step would be repeated")
        self._replay = None  # its memory first
        device, model = self._run.device, self._run.model
        started = time.perf_counter()
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        inputs = tree_map(lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad), args)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._replay = self._record(_Passes(model, self._forward), inputs)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        self._recordings += 1
        self._recording_s += time.perf_counter() - started

    def _record(self, passes: nn.Module, inputs: tuple[Any, ...]) -> Callable[..., Any]:
        """What replays these passes for inputs like these, which are its own from now on.

        Raises:
            ValueError: they cannot be recorded
        """
        enabled, narrow = _autocast(self._run.device.type)
        # Weights that autocast has cached as narrow ones would stay those of this step.
        uncached = torch.autocast("cuda", narrow, cache_enabled=False) if enabled else nullcontext()
        try:
            with uncached:
                graphed = torch.cuda.make_graphed_callables(passes, inputs, allow_unused_input=True)
        except (RuntimeError, AssertionError, TypeError) as error:
            message = f"the model's passes cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}"
            raise ValueError(message) from error
        replay: Callable[..., Any] = graphed
        return replay

    def diagnostics(self) -> dict[str, Any]:
        return {
            "recordings": self._recordings,
            "recording_s": self._recording_s,
            "replayed_steps": self._replays,
            "plain_steps": self._plain,
        }


class _Passes(nn.Module):
    """A model's forward pass without the hooks on the model itself, which run around the replay; with its weights."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any] | None) -> None:
        super().__init__()
        self.model, self._plain = model, forward

    def forward(self, *args: Any) -> Any:
        assert self._plain is not None
        return self._plain(*args)


def _shape(tensor: Tensor) -> Any:
    """What a recorded pass takes for granted of what it is given."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
