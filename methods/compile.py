"""compile: let torch.compile turn the model's forward and backward pass into generated kernels, and train by those.

The task's forward pass, loss, gradients and update are those of plain training: f(x) is computed by other kernels,
which fuse what lies between the products. Evaluation runs uncompiled. With `backend = "eager"` only the tracing is
left, and the weights are plain training's bit for bit.

Source: Ansel et al. 2024, PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph
Compilation, and torch.compile's documentation. Promises the FLOPs of plain training, 0 % less, in a shorter time.
Costs seconds to minutes of compilation in every run. They lie in `setup`, where a batch of each size that an epoch has
goes forward and backward once, and leaves nothing behind: so they are in the verdict on this run, and apart from its
steady state. Every run compiles from nothing, into a folder that is removed, so that no earlier run hides the cost.
What is compiled later, because a layer further out changes the model or sends other shapes, lies in the window; the
record has both in seconds.
Composes with what does the same in every pass. It compiles the model as it finds it, so it comes first:
use = ["compile", "ssprop"]. It does not train tasks that make their own epochs.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from energybench import Batch, Method, TrainingRun
from energybench.common.hosts import this_process
from energybench.train.method import overrides
from energybench.train.trees import split

WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
OLDEST_CARD = (7, 0)  # compute capability for which Triton writes kernels
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}  # variable → folder


@dataclass
class Compile(Method):
    """mode: how long to look for faster kernels, and whether CUDA graphs launch them, as torch.compile has it

    backend: "inductor" writes C++ for a CPU and Triton for a card; "aot_eager" and "eager" run torch's own kernels
    dynamic: "auto": the second shape is compiled for all further ones | "always": the first | "never": each for itself
    """

    trains_less: ClassVar[bool | None] = False
    compiles: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"backend": "eager"}

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    dynamic: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        if self.mode != "default" and self.backend != "inductor":
            raise ValueError(f"mode = '{self.mode}' is the inductor's: backend '{self.backend}' has no modes")

    # ── what it cannot do ─────────────────────────────────────────────────────────────────────────────────────

    def incompatible_hardware(self, device: str) -> str | None:
        if self.backend != "inductor":
            return None
        if device == "cpu":
            compiler = os.environ.get("CXX", "g++")
            if shutil.which(shlex.split(compiler)[0]) is None:
                return (
                    f"torch.compile writes C++ for a CPU and there is no '{compiler}': install one, or name it in CXX"
                )
            return None
        if importlib.util.find_spec("triton") is None:
            return "torch.compile writes Triton for a card, which is not installed: pip install triton"
        if torch.cuda.is_available() and torch.cuda.get_device_capability() < OLDEST_CARD:
            wanted, found = (".".join(map(str, each)) for each in (OLDEST_CARD, torch.cuda.get_device_capability()))
            return f"Triton writes kernels from compute capability {wanted} on, and this card has {found}"
        return None

    def incompatible_run(self, run: TrainingRun) -> str | None:
        if "epoch" in run.task.replaces:
            return (
                f"the task '{run.task.name}' makes its own epochs: what sizes its batches have is not known in `setup`"
            )
        names = [layer.name for layer in run.methods]
        for place, layer in enumerate(run.methods):
            if not isinstance(layer, Method):
                continue
            if layer.passes_differ:
                return f"'{layer.name}' changes what layers do from pass to pass, which compiled code does not follow"
            outside = self.name in names and place < names.index(self.name)
            if outside and overrides(layer, "forward_context"):
                return f'\'{layer.name}\' is not set up when this compiles: use = ["{self.name}", "{layer.name}"]'
        if self._has_cuda_graphs(run) and run.recipe.accumulate > 1:
            return (
                f"mode = '{self.mode}' launches CUDA graphs, in which a micro-batch overwrites what the one before "
                'gave: train.accumulate = 1, or mode = "default"'
            )
        return None

    def incompatible_devices(self, devices: int) -> str | None:
        return "it compiles a model that DistributedDataParallel has not wrapped yet"

    def _has_cuda_graphs(self, run: TrainingRun) -> bool:
        return self.mode in WITH_CUDA_GRAPHS and run.device.type == "cuda"

    # ── before and after ──────────────────────────────────────────────────────────────────────────────────────

    def setup(self, run: TrainingRun) -> None:
        self._undo = ExitStack()
        self._graphs = self._graphs_in_setup = 0
        self._setup_s = self._before_s = 0.0
        self._breaks_before = 0
        if self.incompatible_hardware(run.device.type):
            return  # it is only checked or counted here: as plain training
        self.acted = False
        self._before_s, self._breaks_before = _stopwatch().listen().seconds, _graph_breaks()
        self._undo.callback(vars(run.model).pop, "_compiled_call_impl", None)
        if self.backend == "inductor":
            _use_own_caches(self._undo)
        # Hooks that a layer further out adds later would else be left out without a word.
        self._undo.enter_context(_setting("skip_nnmodule_hook_guards", value=False))
        dynamic = {"auto": None, "always": True, "never": False}[self.dynamic]
        run.model._compiled_call_impl = torch.compile(_call_of(run.model), backend=self._backend, dynamic=dynamic)
        self._make_ready(run)
        self._setup_s = _stopwatch().seconds - self._before_s
        self._graphs_in_setup = self._graphs

    def _backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        """Called by torch with every graph that it has traced."""
        self.acted = True  # and no mark: each step costs what it costs without
        self._graphs += 1
        if self.backend != "inductor":
            return torch._dynamo.lookup_backend(self.backend)(graph, inputs)
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, inputs, config_patches=list_mode_options(self.mode))

    def _make_ready(self, run: TrainingRun) -> None:
        """Compile for every size that a micro-batch of plain training has, the usual one first."""
        cards = [run.device] if run.device.type == "cuda" else []
        buffers = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
        done: set[int] = set()
        with torch.random.fork_rng(cards), cast(Any, run).aside():
            for size in dict.fromkeys(run.data.sizes(run.recipe.batch)):
                batch = next(iter(run.data.load([torch.arange(size)])))
                for piece in split(batch, run.recipe.accumulate):
                    if len(piece) not in done:
                        done.add(len(piece))
                        self._pass(run, piece)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter in run.model.parameters():
            parameter.grad = None

    def _pass(self, run: TrainingRun, batch: Batch) -> None:
        if self._has_cuda_graphs(run):
            torch.compiler.cudagraph_mark_step_begin()
        loss = run.forward(batch).value
        if loss.requires_grad:
            loss.backward()  # past the run, which would tally it

    def finish(self, run: TrainingRun) -> None:
        self._undo.close()

    # ── training ──────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        if self._has_cuda_graphs(run):  # what the last step gave may be overwritten now
            torch.compiler.cudagraph_mark_step_begin()
        inner(batch)

    @contextmanager
    def eval_context(self, run: TrainingRun) -> Iterator[None]:
        """Uncompiled: else the harness would compile another graph, in nobody's time, for every size of its batches."""
        compiled = vars(run.model).pop("_compiled_call_impl", None)
        try:
            yield
        finally:
            if compiled is not None:
                run.model._compiled_call_impl = compiled

    def diagnostics(self) -> dict[str, Any]:
        if self.acted is None:
            return {"compiled": False}
        return {
            "setup_compile_s": self._setup_s,
            "later_compile_s": _stopwatch().seconds - self._before_s - self._setup_s,
            "graphs_in_setup": self._graphs_in_setup,
            "graphs_later": self._graphs - self._graphs_in_setup,
            "graph_breaks": _graph_breaks() - self._breaks_before,
        }


def _call_of(model: nn.Module) -> Callable[..., Any]:
    """Calls the model. `model.compile()` would leave torch's own containers, such as Sequential, uncompiled: torch 2.13
    traces no frame of theirs unless a function that is not torch's own calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)

    # Code of its own: functions that share theirs share what was compiled, and how often it may be compiled anew.
    call.__code__ = call.__code__.replace(co_name=f"call_{id(model)}")
    return call


def _graph_breaks() -> int:
    """So far, in this process."""
    return sum(torch._dynamo.utils.counters["graph_break"].values())


class _Stopwatch:
    """seconds: that torch has spent compiling in this process, backward passes and autotuning included."""

    def __init__(self) -> None:
        self.seconds = self._started = 0.0

    def listen(self) -> _Stopwatch:
        """`torch._dynamo.reset()` forgets who listens."""
        handler = torch._dynamo.callback.callback_handler
        if self._start not in handler.start_callbacks:
            handler.register_start_callback(self._start)
            handler.register_end_callback(self._end)
        return self

    def _start(self, _: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, _: Any) -> None:
        self.seconds += time.perf_counter() - self._started


@cache
def _stopwatch() -> _Stopwatch:
    """The process's."""
    return _Stopwatch()


# ── where generated code lies ─────────────────────────────────────────────────────────────────────────────────────


@cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """Of this process, removed as it ends; the next run removes what a killed one left, by who is told in it."""
    folder = tempfile.TemporaryDirectory(prefix="energybench-", ignore_cleanup_errors=True)
    told = Path(folder.name, "maker")
    told.write_bytes(this_process().to_json())
    told.rename(told.with_name("alive"))
    return folder


def _use_own_caches(undo: ExitStack) -> None:
    """An empty folder for each kind of generated code, in place of torch's own, which outlive a run.

    undo: removes it, and takes back what is set for it
    """
    folder = Path(tempfile.mkdtemp(dir=_own_folder().name))
    undo.callback(shutil.rmtree, folder, ignore_errors=True)
    for variable, name in CACHES.items():
        undo.callback(_put_back, variable, os.environ.get(variable), str(folder / name))
        os.environ[variable] = str(folder / name)
    import torch._inductor.codecache  # which makes the folder that it is told of, or one of its own
    from torch._inductor.utils import clear_caches

    # Precompiled headers lie beside every cache that torch is told of; what a process has made it knows by its path.
    headers = os.path.join(_own_folder().name, "headers")
    torch._inductor.codecache._HEADER_DIR = headers
    torch._inductor.codecache._HEADER_LOCK_DIR = os.path.join(headers, "locks")
    clear_caches()  # those in memory


def _put_back(variable: str, before: str | None, own: str) -> None:
    """Unless somebody has set it to something else meanwhile."""
    if os.environ.get(variable) == own:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


@contextmanager
def _setting(name: str, *, value: Any) -> Iterator[None]:
    """One of torch._dynamo's while it is entered."""
    before = getattr(torch._dynamo.config, name)
    setattr(torch._dynamo.config, name, value)
    try:
        yield
    finally:
        setattr(torch._dynamo.config, name, before)
