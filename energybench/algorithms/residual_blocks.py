"""Residual blocks, found by what they do, and left out of single forward passes.

    a block        y = σ(x + f(x)), a module that has parameters; σ the identity, or a ReLU that leaves x ≥ 0 as it is
    left out       y = x: f is not computed, neither forward nor backward
    scaled by s    y = σ(x + s·f(x))

Whether a module is one is tried on two samples: with all parameters 0 it returns its input, bit for bit. So are
torchvision's BasicBlock, Bottleneck, InvertedResidual, CNBlock, EncoderBlock and SwinTransformerBlock, the blocks of
this project's ResNets and ViTs, transformers' GPT-2 blocks and pre-norm layers. Where a normalisation comes last, as in
torch's TransformerEncoderLayer by default and in BERT, it returns its input normalised instead, once normalisations
neither scale nor shift; left out, it returns the input as it is. A block that projects its shortcut returns something
else, and is none of these: it is never left out. Of nested ones the innermost count.

f ends in a layer e (a convolution, a linear layer, a normalisation) if e's own parameters alone, set to 0, do the same.
Then scaling f is scaling what e puts out. Where f has several ends, as attention and MLP of a transformer, it is
y = x + s·(σ(x + f(x)) − x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from energybench.algorithms.forward_calls import input_of, watch_forward

if TYPE_CHECKING:
    from energybench.flops.work import Line
    from energybench.train.interface import TrainingRun

ENDS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
LAST_NORMS = (nn.LayerNorm, nn.RMSNorm)
CLOSE = 1e-2  # of normalised inputs, whose deviation is 1; in low precision too


@dataclass(eq=False)
class ResidualBlock:
    """One of a model, and whether it runs now.

    name:   in `named_modules()`
    end:    name in the model of the layer e in which f ends; None: it has several ends
    several: the type of what it returns, and how many things, where that is no tensor: the others are None
    kept:   False: left out of passes in training
    pruned: left out of passes in evaluation
    scale:  s in training, where it is kept
    scale_in_evaluation: s there, of a block with an end
    counts: whether its calls in training are tallied now
    epoch: of which they are
    """

    name: str
    end: str | None = None
    several: tuple[type, int] | None = None
    kept: bool = True
    pruned: bool = False
    scale: float = 1.0
    scale_in_evaluation: float = 1.0
    counts: bool = False
    epoch: int = 0
    _end_scale: float = 1.0  # of the call that runs
    # Σ over its calls of what it was given, in elements n of x: n, 1 and n²; all calls, and those that were computed.
    _asked: dict[int, list[float]] = field(default_factory=dict)  # by epoch
    _computed: dict[int, list[float]] = field(default_factory=dict)

    def shares(self, epochs: Iterable[int] | None = None) -> tuple[float, float, float]:
        """Of its calls in training, what was computed: shares of their samples, of the calls, of pairs of samples.

        epochs: in which; None: in all
        """
        numbers = list(self._asked) if epochs is None else [each for each in epochs if each in self._asked]
        asked, computed = (
            [math.fsum(sums[number][part] for number in numbers) for part in range(3)]
            for sums in (self._asked, self._computed)
        )
        first, second, third = (done / all_ if all_ else 1.0 for done, all_ in zip(computed, asked, strict=True))
        return first, second, third

    def holds(self, module: str) -> bool:
        """Whether it is the block, or lies in it, by name."""
        return module == self.name or module.startswith(f"{self.name}.")

    def call(self, forward: Callable[..., Any], training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of the block's own forward."""
        x = input_of(args, kwargs)
        assert x is not None
        computed = self.kept if training else not self.pruned
        again = torch._C._current_graph_task_id() != -1  # a checkpoint's second pass, in the backward: tallied already
        if training and self.counts and not again:
            self._tally(x.numel(), computed)
        if not computed:
            return self._returned(x)
        self._end_scale = self.scale if training else self.scale_in_evaluation
        output = forward(*args, **kwargs)
        if not training or self.scale == 1 or self.end is not None:
            return output
        return self._returned(x + self.scale * (output_of(output) - x))

    def scaled(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """A hook behind the layer in which f ends."""
        return output if self._end_scale == 1 else output * self._end_scale

    def _tally(self, elements: int, computed: bool) -> None:
        for number, amount in enumerate((elements, 1, elements**2)):
            self._asked.setdefault(self.epoch, [0.0, 0.0, 0.0])[number] += amount
            self._computed.setdefault(self.epoch, [0.0, 0.0, 0.0])[number] += amount * computed

    def _returned(self, y: Tensor) -> Any:
        if self.several is None:
            return y
        kind, count = self.several
        return kind((y, *[None] * (count - 1)))


class Droppable:
    """The blocks of a model, each under a class of its own that asks before it computes; undone by `restore`."""

    def __init__(self, model: nn.Module, blocks: list[ResidualBlock]) -> None:
        self.blocks = blocks
        self._kinds: list[tuple[nn.Module, type]] = []
        self._ends = [model.get_submodule(block.end) if block.end else None for block in blocks]
        self._hooks = [
            end.register_forward_hook(block.scaled)
            for block, end in zip(blocks, self._ends, strict=True)
            if end is not None
        ]
        for block in blocks:
            module = model.get_submodule(block.name)
            kind: Any = type(module)
            self._kinds.append((module, kind))
            module.__class__ = type(kind)(kind.__name__, (kind,), {"forward": _asking(block, kind.forward)})

    def restore(self) -> None:
        """Leave the model as it was."""
        for module, kind in reversed(self._kinds):
            module.__class__ = kind
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def fold(self) -> None:
        """Let every end have its scale of evaluation in its own parameters."""
        for block, end in zip(self.blocks, self._ends, strict=True):
            if end is not None and block.scale_in_evaluation != 1:
                for parameter in end.parameters(recurse=False):
                    parameter.mul_(block.scale_in_evaluation)

    def find_block(self, line: Line) -> ResidualBlock | None:
        """In which a line of the ledger lies."""
        return next((block for block in self.blocks if block.holds(line.module)), None)


def _asking(block: ResidualBlock, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)  # whoever asks for its parameters finds the block's own
    def asked(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return block.call(partial(forward, self), self.training, args, kwargs)

    return asked


def output_of(output: Any) -> Any:
    """What a block makes of x: what it returns, or the first of that."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


# ── which modules are residual blocks ─────────────────────────────────────────────────────────────────────────────


def find(run: TrainingRun) -> list[ResidualBlock]:
    """Those of the run's model, in the order in which they are called; nothing of the model is changed."""
    search = _Search()
    watch_forward(run, search.before, search.after)
    found = {name: block for name, block in search.found.items() if name not in search.refused}
    return [block for block in found.values() if not any(block.holds(other) for other in found if other != block.name)]


class _Search:
    """Tries every module as its call ends, on what it was given."""

    def __init__(self) -> None:
        self.found: dict[str, ResidualBlock] = {}
        self.refused: set[str] = set()  # one call of it is none of a residual block
        self._trying = False  # calls are those of a trial
        self._versions: dict[str, int] = {}
        self._called: dict[str, nn.Module] = {}  # those that may be ends, in the order in which their last calls ended

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = input_of(args, kwargs)
        if not self._trying and x is not None:
            self._versions[name] = x._version

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._trying:
            return
        if isinstance(module, ENDS):
            self._called.pop(name, None)
            self._called[name] = module
        self._trying = True
        try:
            block = self._tried(name, module, args, kwargs, output)
        finally:
            self._trying = False
        if block is None:
            self.refused.add(name)
        else:
            self.found.setdefault(name, block)

    @torch.no_grad()
    def _tried(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> ResidualBlock | None:
        x, y = input_of(args, kwargs), output_of(output)
        if x is None or not isinstance(y, Tensor) or x.shape != y.shape or not x.is_floating_point() or not name:
            return None
        parameters = dict(module.named_parameters())
        if not parameters or x._version != self._versions[name]:  # one that changes its input cannot give it back
            return None
        several = None
        if y is not output:
            if type(output) not in (tuple, list) or any(other is not None for other in output[1:]):
                return None
            several = (type(output), len(output))

        def given(values: Mapping[str, Tensor]) -> Tensor:
            """What it makes of x with other parameters."""
            made: Tensor = output_of(torch.func.functional_call(module, dict(values), args, kwargs))
            return made

        zeros = {key: torch.zeros_like(value) for key, value in parameters.items()}
        if torch.equal(given(zeros), x):
            return ResidualBlock(name, self._end(name, x, zeros, given), several)
        return ResidualBlock(name, None, several) if _normalises_last(module, x, zeros, given) else None

    def _end(
        self, name: str, x: Tensor, zeros: Mapping[str, Tensor], given: Callable[[Mapping[str, Tensor]], Tensor]
    ) -> str | None:
        """The layer in which f ends, if there is one: the last one called with which f is 0 where its own are."""
        inside = [called for called in reversed(self._called) if called.startswith(f"{name}.")]
        for called in inside:
            own = [f"{called.removeprefix(f'{name}.')}.{key}" for key in self._called[called]._parameters]
            own_zeros = {key: zeros[key] for key in own if key in zeros}
            if own_zeros and torch.equal(given(own_zeros), x):
                return called
        return None


def _normalises_last(
    module: nn.Module, x: Tensor, zeros: Mapping[str, Tensor], given: Callable[[Mapping[str, Tensor]], Tensor]
) -> bool:
    """Whether it gives its input normalised where all but its normalisations is 0."""
    values = dict(zeros)
    for name, part in module.named_modules():
        if isinstance(part, LAST_NORMS) and part.weight is not None:
            key = f"{name}.weight".removeprefix(".")
            values[key] = torch.ones_like(zeros[key])
    norms = sum(isinstance(part, LAST_NORMS) for part in module.modules())
    if not norms or all(isinstance(part, LAST_NORMS) for part in module.modules() if part._parameters):
        return False
    expected, found = (F.layer_norm(each.float(), each.shape[-1:]) for each in (x, given(values)))
    return bool(expected.abs().max() > CLOSE) and torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE)
