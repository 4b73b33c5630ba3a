"""token_dropping: let each middle layer of a stack see a random part of the tokens; the others go past it unchanged.

Of T tokens a layer sees k = keep(p)·T, drawn anew for each layer and pass, in their order, the same for all samples of
a batch; h_S ← layer(h_S) and h elsewhere stays. The first and the last layer see all tokens. With "linear" growth
keep(p) rises from `keep` to 1 at the progress `until`; with "constant" it stays until then. An epoch has one k, and the
last has all tokens, as evaluation has. Masks of attention and of padding are cut alike; causal layers stay causal.

Sources: Yao et al. 2022, Random-LTD, with its growing length; Hou et al. 2022, Token dropping for efficient BERT
pretraining, drops by importance and once for all middle layers. Promises, of a middle layer, k/T of its linear layers
and (k/T)² of its attention's products, forward and backward. Costs drawing, gathering and putting back, and quality.
Composes with what leaves the stack's layers their places, not with a compiled model. Layers are found as a list of
three or more of one kind that map (batch, tokens, width) to as much; a model without, or whose layers need every token,
is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from energybench import Batch, Line, Method, TrainingRun, Work
from energybench.algorithms.epoch_counter import EpochCounter
from energybench.algorithms.retraced import META, failure, in_a_line, on_meta
from energybench.algorithms.token_layers import look, on_some_tokens, random_tokens, stacks, tokens_kept
from energybench.flops.ledger import copy_on
from energybench.flops.work import IN_EVALUATION

QUADRATIC = ("attention", "matmul")  # in a layer of a stack: queries × keys, and that × values
PARAMETERS = ("w", "bias", "dw", "dbias")


@dataclass
class TokenDropping(Method):
    """keep:   share of the tokens that a middle layer sees at the beginning, in (0, 1]

    growth: "linear" (to all of them at `until`) | "constant" (up to `until`)
    until:  share of training in which tokens are dropped
    first:  tokens at the beginning that are never dropped, such as a class token
    """

    by_epoch: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    trains_less: ClassVar[bool | None] = False
    passes_differ: ClassVar[bool] = True
    differs_on_devices: ClassVar[str | None] = "each rank draws the tokens that its own samples keep"

    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    growth: Literal["linear", "constant"] = "linear"
    until: Annotated[float, Field(ge=0, le=1)] = 1.0
    first: Annotated[int, Field(ge=0)] = 1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is a share of the tokens in (0, 1], not {self.keep}")
        if self.growth not in ("linear", "constant"):
            raise ValueError(f"growth is linear or constant, not '{self.growth}'")
        if not 0 <= self.until <= 1:
            raise ValueError(f"until is a share of training in [0, 1], not {self.until}")
        if self.first < 0:
            raise ValueError(f"first is 0 tokens or more, not {self.first}")
        self._found: dict[str, int] = {}  # middle layers, and the tokens that each is given

    def share(self, epoch: int, epochs: int) -> float:
        """Of the tokens, in an epoch, counted from 1; progress is 0 in the first and 1 in the last."""
        progress = (epoch - 1) / (epochs - 1) if epochs > 1 else 1.0
        if progress >= self.until:
            return 1.0
        return self.keep if self.growth == "constant" else self.keep + (1 - self.keep) * progress / self.until

    def incompatible_run(self, run: TrainingRun) -> str | None:
        batch = next(iter(run.data.load([torch.arange(min(2, len(run.data)))])))
        model, tried = copy_on(run.model, META), on_meta(batch)
        if failure(run, model, tried) is not None:  # it needs numbers
            model, tried = copy_on(run.model, run.device), batch
        self._found = self._middle_layers(run, model, tried)
        if not self._found:
            return "it has no stack of three or more layers of one kind that map (batch, tokens, width) to as much"
        if self.keep == 1:
            return None
        if run.epochs < 2:
            return "an epoch has one share of the tokens, the last has them all, and there is one epoch"
        if all(tokens_kept(tokens, self.keep, self.first) == tokens for tokens in self._found.values()):
            return f"keep = {self.keep:g} of {max(self._found.values())} tokens are all of them"
        generator = torch.Generator().manual_seed(0)  # of a trial whose result nobody sees
        layers = {name: model.get_submodule(name) for name in self._found}
        with on_some_tokens(layers, lambda tokens: random_tokens(tokens, self.keep, self.first, generator)):
            error = failure(run, model, tried)
        return None if error is None else f"its layers need every token ({in_a_line(error)})"

    def _middle_layers(self, run: TrainingRun, model: nn.Module, batch: Batch) -> dict[str, int]:
        found: dict[str, int] = {}
        for names in stacks(model):
            seen = look(model, names, lambda: failure(run, model, batch))
            calls = [each for name in names for each in seen[name]]
            shapes = {shape for each in calls for shape in (each.given, each.result)}
            if any(len(seen[name]) != 1 for name in names) or len(shapes) != 1:
                continue
            shape = shapes.pop()
            inside = any(names[0].startswith(f"{name}.") for name in found)
            if shape is not None and len(shape) == 3 and shape[0] == len(batch) and not inside:
                found |= dict.fromkeys(names[1:-1], shape[1])
        return found

    def setup(self, run: TrainingRun) -> None:
        self.acted = False if self.keep < 1 else None
        self._generator = run.rng(self.name, "tokens", *run.rank_key)
        self._layers = {name: run.model.get_submodule(name) for name in self._found}
        self._share = 1.0
        self._samples: EpochCounter[float] = EpochCounter(run)  # by share of the tokens

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        self._share = self.share(run.epoch_number, run.epochs)
        self._samples.add(self._share, len(batch))
        if any(tokens_kept(tokens, self._share, self.first) < tokens for tokens in self._found.values()):
            run.tally.mark(self, f"tokens={self._share:.4g}")
        inner(batch)

    def forward_context(self, run: TrainingRun, mode: str) -> AbstractContextManager[Any]:
        if mode != "train" or self._share == 1:
            return nullcontext()
        if getattr(run.model, "_compiled_call_impl", None) is not None:  # its code keeps the first pass's hooks
            raise ValueError(
                f"'{self.name}' gives layers other tokens in every pass, which compiled code does not follow: "
                "leave out what compiles the model"
            )
        return on_some_tokens(
            self._layers, lambda tokens: random_tokens(tokens, self._share, self.first, self._generator)
        )

    def estimate(self, work: Work) -> Work:
        """Of each middle layer: its linear layers by the share of tokens that it saw, its attention by the square."""
        samples = self._samples.of(work)
        total = samples.total()

        def seen(module: str, power: int) -> float:
            layer = next((name for name in self._found if f"{module}.".startswith(f"{name}.")), None)
            if layer is None or not total:
                return 1.0
            tokens = self._found[layer]
            shares = ((tokens_kept(tokens, s, self.first) / tokens, n) for s, n in samples.items())
            return math.fsum(n * kept**power for kept, n in shares) / total

        def power(line: Line) -> int:
            return 2 if line.op in QUADRATIC else 1

        def ratio(line: Line) -> float:
            return 1.0 if line.phase in IN_EVALUATION else seen(line.module, power(line))

        def bytes_ratio(line: Line, operand: str) -> float:
            whole = operand in PARAMETERS or line.phase in IN_EVALUATION
            return 1.0 if whole else seen(line.module, 1)

        return work.change(ratio, bytes_ratio)

    def diagnostics(self) -> dict[str, Any]:
        return {
            "layers": self._found,  # with their tokens
            "samples_by_share": {f"{share:.4g}": count for share, count in sorted(self._samples.whole().items())},
        }
