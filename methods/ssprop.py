"""ssprop: in the backward of every convolution keep only the output channels whose gradient is largest.

Importance of channel c is the mean over batch, height and width of |∂L/∂Y|; ∂L/∂X, ∂L/∂W and ∂L/∂B come from the K
most important channels alone, by smaller matrices, not by multiplying zeros. The same as ordinary autograd with ∂L/∂Y
masked to those channels.

Paper: Zhong et al., ssProp, Eq. 6–9. Promises its mean drop rate of the convolutions' backward FLOPs (80 % in every
second epoch: 40 %). Choosing and gathering are not free: narrow layers can come out slower than dense, which
`dense_below` is for. Measured on two CPU cores, layers of 64 and 128 channels on MNIST, 3 blocks: a constant 80 % took
20 % [5, 33] less time for half of the FLOPs, every second epoch where it pays 5.6 % [3.7, 7.5] for 26 %
(reports/ssprop/2026-11-30-194938).
Composes with everything that leaves a backward pass; a second backward through it is refused.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from energybench import Batch, Forward, Line, Method, TrainingRun, Work
from energybench.algorithms.channel_sparse import LANES, Choice, memory_format
from energybench.algorithms.drop_in_layers import swap, swap_back
from energybench.algorithms.sparse_layers import SPARSE, SparseLayer
from energybench.common.units import Period, Quantity
from energybench.flops.work import BACKWARD
from energybench.train.trees import split

# `refuse` was fitted to the timing of 300 layers on two cores of an AMD EPYC: of 8 to 512 channels, kernels 1 to 5,
# batches 16 to 128, drop rates 0.4 and 0.8. All in FLOPs, of the time that a dense backward takes for them.
CALLS_FLOP = 25e6  # per thread: calling the dozen small operators of a selection, a quarter of a millisecond
PLANES_FLOP = 20  # per element of dY, read and gathered
ROWS_FLOP = 150  # the same where channels are adjacent: channels_last and linear layers
FEW_SLOWER = 1.4  # a kernel for few channels, per FLOP
GPU_CALLS_FLOP, GPU_ELEMENT_FLOP = 4e9, 100  # not measured

KINDS = 5  # of steps whose rate changes step by step
ALTERNATE_PERIOD = Quantity(2, "epochs")  # the paper's
SCHEDULES = ("constant", "linear", "cosine", "bar", "alternate")
DIMENSIONS = ("channel", "spatial", "all")


@dataclass
class SsProp(Method):
    """drop: share of channels dropped, 0–1, at full rate

    schedule:       "constant" | "linear" | "cosine" (growing over training) | "bar" (full in the second half) |
                    "alternate" (dense in the first half of each period, full in the second: the paper's choice)
    period:         after which the schedule begins anew: "2 epochs", "300 steps". Linear and cosine are at 0 in the
                    first epoch (or step, as the period is written) of each period and at the full rate in its last; a
                    bar is what alternate is. Without one alternate has 2 epochs and the others span the training
    warmup_epochs:  dense epochs before the schedule begins; it then spans the epochs that are left
    dimension:      what is dropped: "channel" | "spatial" (positions, importance averaged over batch and channels) |
                    "all" (elements, averaged over the batch). The last two only mask ∂L/∂Y, for the paper's ablation:
                    the matrices stay whole, so they promise and are estimated to save 0
    select:         "topk" | "random" (as many, whatever their importance)
    dense_below:    layers that stay dense: 0 (none), those with fewer output channels than a number, "auto" or "timed".
                    "auto": where the FLOPs dropped would not pay for choosing and gathering, by a rule of each layer's
                    geometry (`refuse`, below), so that every run of a seed decides alike.
                    "timed": where the sparse backward of a random input took longer than the dense one before the
                    metered window. Two runs may decide differently where the two are close, and then differ in their
                    weights and from their counting run
    linear:         act on nn.Linear too, channels being its output features: the authors' future work
    """

    needs: ClassVar[frozenset[str]] = frozenset({"backward"})
    trains_less: ClassVar[bool | None] = False
    differs_on_devices: ClassVar[str | None] = (
        "each rank keeps the channels that matter most to its own samples: another choice than that of the whole batch"
    )

    drop: Annotated[float, Field(ge=0, lt=1)] = 0.8
    schedule: Literal["constant", "linear", "cosine", "bar", "alternate"] = "alternate"
    period: Period | None = None
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    dimension: Literal["channel", "spatial", "all"] = "channel"
    select: Literal["topk", "random"] = "topk"
    dense_below: Annotated[int, Field(ge=0)] | Literal["auto", "timed"] = 0
    linear: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is a share of channels in [0, 1), not {self.drop}")
        words = {"schedule": SCHEDULES, "dimension": DIMENSIONS, "select": ("topk", "random")}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'")
        if self.schedule == "alternate" and self.period is None:
            self.period = ALTERNATE_PERIOD
        if self.period is not None and self.schedule == "constant":
            raise ValueError("a constant rate has no period: take it out, or choose another schedule")
        rising = self.period if self.schedule in ("linear", "cosine") else None
        if rising is not None and (rising.count < 2 or not float(rising.count).is_integer()):
            raise ValueError(
                f"a {self.schedule} schedule rises over whole steps or epochs, 2 at least, and not over {self.period}"
            )
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs is 0 or more, not {self.warmup_epochs}")
        if isinstance(self.dense_below, int) and self.dense_below < 0:
            raise ValueError(f"dense_below is 0 channels or more, not {self.dense_below}")
        if isinstance(self.dense_below, str):
            if self.dense_below not in ("auto", "timed"):
                raise ValueError(f"dense_below is a number, auto or timed, not '{self.dense_below}'")
            if self.dimension != "channel":
                raise ValueError(
                    f"dimension '{self.dimension}' only masks, which never pays: dense_below is a number there"
                )
        self.swaps = frozenset({"conv", "linear"} if self.linear else {"conv"})

    def incompatible_devices(self, devices: int) -> str | None:
        if self.dense_below != "timed":
            return None
        return 'each rank would time its layers and leave others dense: dense_below = "auto", or a number'

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._samples: Counter[float] = Counter()
        draw = None
        if self.select == "random":
            generator = run.rng(self.name, "select", device=run.device)
            draw = lambda count: torch.rand(count, generator=generator, device=run.device)  # noqa: E731
        choice = Choice(self.dimension, draw, refuse if self.dense_below == "auto" else None)
        kinds = {kind: made for kind, made in SPARSE.items() if self.linear or kind is not nn.Linear}
        self._layers = swap(run.model, kinds)
        for layer in self._layers.values():
            layer.choice = choice
            if isinstance(self.dense_below, int) and len(layer.weight) < self.dense_below:
                layer.stays_dense, layer.because = True, f"has fewer than {self.dense_below} output channels"
        if self.dense_below == "timed":
            self._time(run)
        for layer in self._layers.values():
            layer.log = Counter()

    def _time(self, run: TrainingRun) -> None:
        """Let the layers stay dense whose sparse backward is not faster; equal layers are timed once."""
        positions = run.data.cut(torch.arange(len(run.data)), run.recipe.batch)[0]
        batch = split(next(iter(run.data.load([positions]))), run.recipe.accumulate)[0]
        times: dict[Any, tuple[float, float]] = {}
        with run.recipe.autocast(run.device):
            inputs = inputs_of(run.model, self._layers, lambda: run.task.forward(run, batch))
            for name, given in inputs.items():
                layer = self._layers[name]
                key = (type(layer), layer.extra_repr(), given)
                if key not in times:
                    times[key] = time_backward(layer, given, self.drop)
                dense_s, sparse_s = times[key]
                layer.stays_dense = sparse_s >= dense_s
                layer.because = f"timed: {1e3 * dense_s:.3g} ms dense, {1e3 * sparse_s:.3g} ms sparse"

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        drop = round(self._rate(run), 6)
        for layer in self._layers.values():
            layer.drop = drop
        before = self._dropping(drop)
        forward = inner(batch)
        self._mark(run, drop, dropped=bool(drop) and self._dropping(drop) > before)  # not if every layer stayed dense
        self._samples[drop] += len(batch)
        return forward

    def _mark(self, run: TrainingRun, drop: float, *, dropped: bool) -> None:
        """Steps of one rate are of one kind. Where every step has a rate of its own they are of a few kinds, so that a
        counter which sees some of them has seen each: steps of a kind cost about the same, and a few are dense."""
        rising = self.period if self.schedule in ("linear", "cosine") else None
        if rising is None or rising.unit != "steps" or rising.count <= KINDS or not self.drop:
            if dropped:
                run.tally.mark(self, f"drop={drop:g}")
            return
        acted, kind = self.acted, min(int(KINDS * drop / self.drop), KINDS - 1)
        low, high = (self.drop * end / KINDS for end in (kind, kind + 1))
        run.tally.mark(self, f"drop={low:g} to {high:g}")
        self.acted = acted or dropped

    def _dropping(self, drop: float) -> float:
        return sum(layer.log[drop] for layer in self._layers.values() if layer.log is not None)

    def _rate(self, run: TrainingRun) -> float:
        epoch, epochs = run.epoch_number - self.warmup_epochs, run.epochs - self.warmup_epochs
        if epoch < 1:
            return 0.0
        if self.schedule == "constant":
            return self.drop
        per_epoch = run.steps_per_epoch
        now = (epoch - 1) * per_epoch + run.step_in_epoch
        if self.schedule in ("bar", "alternate"):
            if self.period is None:
                return self.drop if epoch > epochs / 2 else 0.0
            steps = self.period.count * (per_epoch if self.period.unit == "epochs" else 1)
            return self.drop if now % steps >= steps / 2 else 0.0
        if self.period is None:
            progress = (epoch - 1) / max(1, epochs - 1)
        else:
            place = epoch - 1 if self.period.unit == "epochs" else now
            progress = place % self.period.count / (self.period.count - 1)
        return self.drop * (progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2)

    def estimate(self, work: Work) -> Work:
        """Backward FLOPs of each layer × the mean share of its channels kept; masks alone keep all.

        Bytes: dW reads x and the kept channels of dY and writes the kept of dW; dX reads the kept of dY and of the
        weight and writes dX. So x and dX move whole, and choosing the channels reads dY once more.
        """

        def sparse(line: Line) -> bool:
            known = line.op in ("conv", "linear") and line.module in self._layers
            return known and line.phase in BACKWARD

        def share(line: Line) -> float:
            return self._layers[line.module].kept_share() if sparse(line) else 1.0

        def bytes_share(line: Line, operand: str) -> float:
            return 1.0 if operand in ("x", "dx") else share(line)

        read = {} if self.select == "random" else {n: x.sparse_share() for n, x in self._layers.items()}
        choosing = {
            line.module: Line(
                "selection", line.module, "reduction", 0.0, sample_b={"dy": read[line.module] * line.sample_b["dy"]}
            )
            for line in work.lines
            if sparse(line) and read.get(line.module) and "dy" in line.sample_b
        }  # dW and dX share one choice
        return work.change(share, bytes_share).add(*choosing.values())

    def claims(self) -> tuple[float, str, str] | None:
        """Of the schedule, warm-up epochs aside. The paper promises a saving for dropped channels alone."""
        if self.dimension != "channel":
            return None
        mean = self.drop if self.schedule == "constant" else self.drop / 2
        return mean, "backward", "ssProp, the schedule's mean drop rate"

    def finish(self, run: TrainingRun) -> None:
        swap_back(run.model, self._layers)

    def diagnostics(self) -> dict[str, Any]:
        total = sum(self._samples.values())
        sparse = {name for name, layer in self._layers.items() if layer.sparse_share()}
        would = sum(layer.logged() for layer in self._layers.values())
        left = sum(layer.logged() * layer.kept_share() for layer in self._layers.values())
        return {
            "layers": len(self._layers),
            "layers_sparse": len(sparse),
            "layers_dense": {name: x.because for name, x in self._layers.items() if x.because and name not in sparse},
            "mean_drop": sum(drop * count for drop, count in self._samples.items()) / max(1, total),
            "backward_flop_dropped": 1 - left / would if would else 0.0,  # share of these layers' backward
            "samples_by_drop_rate": {f"{k:g}": v for k, v in sorted(self._samples.items())},
        }


class Prices(NamedTuple):
    """What "auto" weighs in one backward of a layer, in FLOPs of a dense backward's time.

    saved:   dropped, less what a kernel for few channels is slower
    chosen:  elements of dY among which it chooses
    factor:  by which choosing costs more where FLOPs are as much cheaper or less of them are saved
    calls:   the price of calling the operators of a selection
    element: the price of an element
    """

    saved: float
    chosen: int
    factor: int
    calls: float
    element: float

    @property
    def spent(self) -> float:
        return self.factor * (self.calls + self.element * self.chosen)


def prices(layer: nn.Module, x: Tensor, positions: int, keep: int) -> Prices:
    """Of `keep` channels out of all, at so many positions of the output."""
    weight: Any = layer.weight
    out = len(weight)
    computed = min(out, -(-keep // (LANES // 2)) * (LANES // 2))  # channels, in half blocks
    flop = 2.0 * positions * weight.numel() * (x.requires_grad + weight.requires_grad)
    saved = flop * max(0.0, 1 - FEW_SLOWER * computed / out)
    calls, element = CALLS_FLOP * torch.get_num_threads(), PLANES_FLOP
    if isinstance(layer, nn.Linear) or memory_format(x) is not torch.contiguous_format:
        element = ROWS_FLOP
    if x.is_cuda:
        calls, element = GPU_CALLS_FLOP, GPU_ELEMENT_FLOP
    factor = 1
    if any(step > 1 for step in getattr(layer, "stride", ())):
        factor *= 2  # kernels for strides gain less
    if torch.is_autocast_enabled(x.device.type) or x.element_size() < 4:
        factor *= 2  # FLOPs are as much faster
    return Prices(saved, positions * out, factor, calls, element)


def refuse(layer: nn.Module, x: Tensor, positions: int, keep: int) -> str:
    """Why a layer stays dense under "auto": the time saved by dropped FLOPs against that of choosing and gathering.

    A function of shapes, memory format, precision and the number of threads alone, so that every run of a cell decides
    alike. What is slower than dense is refused, with some that is not: so are all grouped convolutions, where gathering
    the inputs of the groups that are left takes what the others would.
    """
    if getattr(layer, "groups", 1) > 1:
        return "auto: a grouped convolution"
    found = prices(layer, x, positions, keep)
    saved, spent = found.saved, found.spent
    return "" if saved > spent else f"auto: {saved / 1e6:.3g} MFLOP saved, {spent / 1e6:.3g} spent on choosing"


class LayerInput(NamedTuple):
    """What a layer is given in a step: enough to make another input like it."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    strides: tuple[int, ...]
    learns: bool

    def random(self) -> Tensor:
        """Standard normal, from a generator of its own."""
        generator = torch.Generator(self.device).manual_seed(0)
        values = torch.randn(self.shape, generator=generator, device=self.device, dtype=torch.float32)
        x = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return x.copy_(values).requires_grad_(self.learns)


def inputs_of(model: nn.Module, layers: dict[str, SparseLayer], forward: Callable[[], object]) -> dict[str, LayerInput]:
    """What each layer is given when `forward` runs the model: as in evaluation, so that no statistic moves, and with
    the random streams put back. A layer that is not called is not in it."""
    inputs_by_name: dict[str, LayerInput] = {}

    def keep_input(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            inputs_by_name.setdefault(name, LayerInput(x.shape, x.dtype, x.device, x.stride(), x.requires_grad))

        return hook

    hooks = [layer.register_forward_pre_hook(keep_input(name)) for name, layer in layers.items()]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            model.eval()
            forward()
    finally:
        for module, mode in training.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    return inputs_by_name


def time_backward(layer: SparseLayer, given: LayerInput, drop: float, rounds: int = 7) -> tuple[float, float]:
    """Median seconds of the layer's backward, (dense, dropping `drop`): in turns, after a round that does not count."""
    seconds: dict[float, list[float]] = {0.0: [], drop: []}
    probe = type(layer).from_dense(layer.dense())
    probe.__dict__.update({name: {} for name in vars(layer) if name.endswith("_hooks")})  # they are not timed
    x = given.random()
    for number in range(rounds + 1):
        for rate in seconds:
            probe.drop = rate
            y = probe(x)
            wanted = [tensor for tensor in (x, *probe.parameters()) if tensor.requires_grad]
            dy = torch.ones_like(y)
            _wait(x.device)
            started = time.perf_counter()
            torch.autograd.grad(y, wanted, dy)
            _wait(x.device)
            if number:
                seconds[rate].append(time.perf_counter() - started)
    return statistics.median(seconds[0.0]), statistics.median(seconds[drop])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
