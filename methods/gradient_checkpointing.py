"""gradient_checkpointing: keep the inputs of blocks alone, and compute what lies inside again in the backward pass.

A piece y = f(x) keeps x in place of all that its gradient needs; when dy arrives f(x) runs again, up to the last tensor
that anybody needs, with the random numbers of the first time, and dx, dθ follow. Gradients are plain training's.

Paper: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, §4; torch.utils.checkpoint without re-entry.
Costs energy and says so: the forward FLOPs of every piece once more, up to a third of training's (phase "recompute").
Promises memory: of n layers O(√n) activations are kept. It pays where it makes room for a batch, or a model, that did
not fit; the record's memory has what it saved. Running statistics move once: the second pass leaves them alone.
Composes with what hooks or replaces layers: draws of other methods' generators are repeated too. Not for models
without repeated blocks or an nn.Sequential, and not for those whose forward pass changes other buffers of theirs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Annotated, Any, ClassVar, cast

import torch
import torch._dynamo  # a checkpoint looks into it: seconds that are no part of anybody's training
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from energybench import Batch, Line, Method, TrainingRun, Work
from energybench.algorithms.checkpoint_pieces import Pieces, pieces_of
from energybench.algorithms.traced_calls import SeenCall
from energybench.flops.work import FORWARD, RECOMPUTE
from energybench.train.method import overrides

Forward = Callable[..., Any]
Modes = tuple[list[bool], list[bool]]  # training, of modules; running statistics are kept, of normalisations
Shares = dict[tuple[str, str], float]  # (module within the piece, op) → how much of its forward is made again


@dataclass
class Piece:
    """One that is made again.

    names:      of its modules within the model
    forwarded:  samples that went through it and kept a graph
    recomputed: samples that went through it again
    """

    names: tuple[str, ...]
    modules: Callable[[], list[nn.Module]]
    forwarded: int = 0
    recomputed: int = 0
    call: SeenCall | None = None
    norms: list[_NormBase] | None = None
    looked: bool = False
    shares: Shares | None = None


@dataclass
class GradientCheckpointing(Method):
    """segments: into how many runs of children an nn.Sequential is cut; by default ⌈√children⌉

    keep: how many of the last pieces keep their activations, which would be made again at once

    Pieces are repeated blocks, such as residual ones, or runs of an nn.Sequential: whichever holds more of the model.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"backward"})
    trains_less: ClassVar[bool | None] = False

    segments: Annotated[int, Field(ge=2)] | None = None
    keep: Annotated[int, Field(ge=0)] = 1

    def __post_init__(self) -> None:
        if self.segments is not None and self.segments < 2:
            raise ValueError(f"segments is 2 or more runs of layers, not {self.segments}")
        if self.keep < 0:
            raise ValueError(f"keep is a number of pieces ≥ 0, not {self.keep}")
        self._plain: Pieces | None = None  # of the model before any layer has changed it

    def incompatible_run(self, run: TrainingRun) -> str | None:
        pieces = self._plain = pieces_of(run.model, self.segments)
        if pieces is None:
            return "no block of layers comes twice in this model, and it has no nn.Sequential that could be cut"
        if len(pieces) <= self.keep:
            return f"it has {len(pieces)} pieces, and keep = {self.keep} leaves none of them to be made again"
        return None

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._run = run
        self._others = [cast(Method, layer) for layer in run.layers if layer is not self]
        self._contexts_of = [layer for layer in reversed(self._others) if overrides(layer, "forward_context")]
        self._replaced: list[tuple[nn.Module, Forward | None]] = []
        self._pieces: list[Piece] = []
        self._begun = False
        found = self._plain or pieces_of(run.model, self.segments)
        self._found = found or Pieces(None, ())
        if found is None:
            return
        names = found.parts[: len(found) - self.keep]
        if found.owner is not None:
            self._cut(run.model.get_submodule(found.owner), names)
            return
        for (name,) in names:
            block = run.model.get_submodule(name)
            piece = Piece((name,), partial(list, [block]))
            self._pieces.append(piece)
            self._replace(block, partial(self._through_block, piece, block, vars(block).get("forward")))

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        if not self._begun:  # what other layers tried in their set-up was no training
            self._begun = True
            for piece in self._pieces:
                piece.forwarded = piece.recomputed = 0
        inner(batch)

    def _cut(self, sequential: nn.Module, names: tuple[tuple[str, ...], ...]) -> None:
        """Into runs of its children, which are asked for in every pass: other layers may put their own there."""
        ends = [sum(map(len, names[: number + 1])) for number in range(len(names))]

        def children(start: int, end: int | None) -> list[nn.Module]:
            return list(sequential.children())[start:end]

        spans = list(zip([0, *ends], ends, strict=False))
        self._pieces = [
            Piece(part, partial(children, start, end)) for part, (start, end) in zip(names, spans, strict=True)
        ]

        def forward(hidden: Any) -> Any:
            for piece in self._pieces:
                hidden = self._through(piece, partial(_in_order, piece.modules()), hidden)
            return _in_order(children(ends[-1], None), hidden)

        self._replace(sequential, forward)

    def _replace(self, module: nn.Module, forward: Forward) -> None:
        self._replaced.append((module, vars(module).get("forward")))

        @wraps(module.forward)  # others read its signature
        def through(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        # Code that is compiled breaks its graph here, and goes on inside the piece.
        setattr(module, "forward", torch.compiler.disable(through, recursive=False))  # noqa: B010

    def _through_block(self, piece: Piece, block: nn.Module, before: Forward | None, *args: Any, **kwargs: Any) -> Any:
        """By the forward of its class now: a layer further out may have given it another class."""
        return self._through(piece, before or partial(type(block).forward, block), *args, **kwargs)

    def _through(self, piece: Piece, function: Forward, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        if piece.call is None:
            piece.call = SeenCall(args, kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        size = next((len(leaf) for leaf in given if leaf.dim()), 1)
        contexts = partial(self._contexts, piece, size)
        output = checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if not all(any(leaf is each for each in given) for leaf in made):  # else another layer has left the block out
            piece.forwarded += size
        return output

    def _contexts(self, piece: Piece, size: int) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Around the first pass, and around the second, in which everything stands as it stands now."""
        if piece.norms is None:
            every = [part for module in piece.modules() for part in module.modules()]
            piece.norms = [part for part in every if isinstance(part, _NormBase) and part.running_mean is not None]
        modes = [module.training for module in piece.modules()], [norm.track_running_stats for norm in piece.norms]
        states = [(generator, generator.get_state()) for generator in self._generators()]
        return nullcontext(), self._again(piece, size, modes, states)

    def _generators(self) -> Iterator[torch.Generator]:
        """Those that other layers hold: torch repeats the draws of its own alone."""
        for layer in self._others:
            for value in vars(layer).values():
                held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
                yield from (each for each in (value, *held) if isinstance(each, torch.Generator))

    @contextmanager
    def _again(
        self, piece: Piece, size: int, modes: Modes, states: list[tuple[torch.Generator, Tensor]]
    ) -> Iterator[None]:
        """The second pass, inside the contexts that other layers had around the first. Running statistics move in
        copies that nobody keeps: a pass without any would save other tensors than the first, which torch refuses."""
        self.acted = True
        piece.recomputed += size
        modules, norms = piece.modules(), piece.norms or []
        modes_now = [module.training for module in modules], [norm.track_running_stats for norm in norms]
        now = [(generator, generator.get_state()) for generator, _ in states]
        buffers = [dict(norm._buffers) for norm in norms]
        versions = {} if piece.looked else _versions(modules)
        _set(modules, norms, modes)
        for norm, held in zip(norms, buffers, strict=True):
            norm._buffers.update({name: None if each is None else each.clone() for name, each in held.items()})
        try:
            with ExitStack() as stack:
                for layer in self._contexts_of:
                    stack.enter_context(layer.forward_context(self._run, _mode(modes)))
                for generator, state in states:
                    generator.set_state(state)
                yield
        finally:  # also where the pass is ended early, which torch does by an exception
            for generator, state in now:
                generator.set_state(state)
            for norm, held in zip(norms, buffers, strict=True):
                norm._buffers.update(held)
            _set(modules, norms, modes_now)
            piece.looked = True
            _refuse_changes(piece, versions)

    def finish(self, run: TrainingRun) -> None:
        for module, before in reversed(self._replaced):
            vars(module).pop("forward", None)
            if before is not None:
                setattr(module, "forward", before)  # noqa: B010
        self._replaced = []

    def estimate(self, work: Work) -> Work:
        """Of every forward line inside a piece as much again as ran again; of a product that ends one, nothing."""
        lines = [
            self._recomputed(piece, line) for line in work.lines if line.phase == FORWARD for piece in self._pieces
        ]
        return work.add(*(line for line in lines if line is not None))

    def _recomputed(self, piece: Piece, line: Line) -> Line | None:
        owner = next((name for name in piece.names if line.module == name or line.module.startswith(f"{name}.")), None)
        if owner is None or not piece.recomputed or not piece.forwarded:
            return None
        share = self._shares(piece).get((line.module, line.op), 1.0) * piece.recomputed / piece.forwarded
        return replace(line, phase=RECOMPUTE).times(share) if share else None

    def _shares(self, piece: Piece) -> Shares:
        """By a trace of the piece as it was called; where it cannot be traced, everything is made again."""
        if piece.shares is None:
            piece.shares = {} if piece.call is None else self._traced(piece, piece.call)
        return piece.shares

    def _traced(self, piece: Piece, call: SeenCall) -> Shares:
        lines = call.lines(nn.ModuleList(piece.modules()), self._run.device, self._run.recipe.precision, _checkpointed)
        before, after = (_amounts(lines, phase, call.samples) for phase in (FORWARD, RECOMPUTE))
        shares: Shares = {}
        for (module, op), amount in before.items():
            number, _, inside = module.partition(".")
            name = f"{piece.names[int(number)]}.{inside}".removesuffix(".")
            shares[name, op] = min(1.0, after.get((module, op), 0.0) / amount) if amount else 0.0
        return shares

    def diagnostics(self) -> dict[str, Any]:
        named = self._found.named()
        return {
            "recomputed": named[: len(self._pieces)],
            "kept": named[len(self._pieces) :],
            "of_sequential": self._found.owner,
            "samples_recomputed": [piece.recomputed for piece in self._pieces],
        }


def _in_order(modules: list[nn.Module], hidden: Any) -> Any:
    for module in modules:
        hidden = module(hidden)
    return hidden


def _checkpointed(parts: nn.ModuleList, *args: Any, **kwargs: Any) -> Any:
    """As `_through` calls a piece, for a trace."""
    function = partial(_in_order, list(parts)) if len(parts) > 1 else parts[0]
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def _mode(modes: Modes) -> str:
    """Of the run's pass that had these."""
    training, tracks = modes
    return ("train" if all(tracks) else "frozen_stats") if any(training) else "eval"


def _set(modules: list[nn.Module], norms: list[_NormBase], modes: Modes) -> None:
    for module, mode in zip(modules, modes[0], strict=True):
        if module.training != mode:
            module.train(mode)
    for norm, tracks in zip(norms, modes[1], strict=True):
        norm.track_running_stats = tracks


def _versions(modules: list[nn.Module]) -> dict[str, int]:
    """How often each buffer was written to."""
    return {name: buffer._version for module in modules for name, buffer in module.named_buffers()}


def _refuse_changes(piece: Piece, before: dict[str, int]) -> None:
    for name, version in _versions(piece.modules()).items() if before else ():
        if version != before.get(name, version):
            raise ValueError(f"{name} of {piece.names[0]} changes in each forward pass, and would change twice")


def _amounts(lines: tuple[Line, ...], phase: str, samples: int) -> dict[tuple[str, str], float]:
    """FLOPs, or bytes where an operator has none."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for line in lines:
        if line.phase == phase:
            found[line.module, line.op] += line.flop_in(samples) if line.has_flop else line.moved_b(samples)
    return found
