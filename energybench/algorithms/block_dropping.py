"""What methods share that leave whole residual blocks out of a step: the draw, the tally of blocks, the promise.

Each step draws anew which blocks run, one number of one stream for each, so that all micro-batches of a step and all
ranks draw alike. Outside of a step the model is whole. A block that is left out costs nothing in that step, forward or
backward; its parameters get no gradient, so the optimizer leaves them alone: no decay, no momentum; its running
statistics stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from energybench.algorithms.residual_blocks import Droppable, ResidualBlock, find
from energybench.flops.work import IN_EVALUATION
from energybench.train.method import Method

if TYPE_CHECKING:
    from energybench.flops.work import Line, Work
    from energybench.train.batch import Batch
    from energybench.train.interface import TrainingRun

NO_BLOCKS = (
    "it has no residual block, a module that returns its input as it is once its parameters are 0; a sum that is "
    "written in the forward pass of the whole model is none"
)
NOTHING_ELSE = "all that learns lies in its residual blocks, and a step that drops them all would have no gradient"


class BlockDropping(Method):
    """Base of the methods. Below it: `keep_probabilities`."""

    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    trains_less: ClassVar[bool | None] = False
    passes_differ: ClassVar[bool] = True
    by_epoch: ClassVar[bool] = True
    gap_because: str | None = (
        "each step drops other blocks, so what is counted of some steps is a sample's mean, as its interval says"
    )

    def keep_probabilities(self, blocks: int) -> list[float]:
        """With which chance each block runs in a step, in the order of the forward pass."""
        raise NotImplementedError

    def incompatible_run(self, run: TrainingRun) -> str | None:
        blocks = find(run)
        if not blocks:
            return NO_BLOCKS
        inside = {p for block in blocks for p in run.model.get_submodule(block.name).parameters()}
        if not any(p.requires_grad and p not in inside for p in run.model.parameters()):
            return NOTHING_ELSE
        return self.incompatible_blocks(blocks)

    def incompatible_blocks(self, blocks: Sequence[ResidualBlock]) -> str | None:
        """Why it cannot drop these; None if it can."""
        return None

    def setup(self, run: TrainingRun) -> None:
        self.acted = False
        self._droppable = Droppable(run.model, find(run))
        self._blocks = self._droppable.blocks
        self._keep = self.keep_probabilities(len(self._blocks))
        self._generator = run.rng(self.name, "blocks")  # the same on every rank

    def step(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], None]) -> None:
        draws = torch.rand(len(self._blocks), generator=self._generator, dtype=torch.float64).tolist()
        for block, keep, draw in zip(self._blocks, self._keep, draws, strict=True):
            block.kept, block.counts, block.epoch = draw < keep, True, run.epoch_number
            block.scale = self.scale_of_kept(keep)
        if min(self._keep) < 1:
            acted = self.acted
            run.tally.mark(
                self
            )  # one kind of step: a kind for each set of blocks would be met too rarely to be counted
            self.acted = acted or not all(block.kept for block in self._blocks)
        try:
            inner(batch)
        finally:
            for block in self._blocks:
                block.kept, block.counts, block.scale = True, False, 1.0

    def scale_of_kept(self, keep: float) -> float:
        """By what a block's branch is multiplied in a step that runs it."""
        return 1.0

    def estimate(self, work: Work) -> Work:
        """Of every line within a block, the share of its samples, steps and pairs in which it ran."""

        def kept(line: Line) -> Line:
            block = None if line.phase in IN_EVALUATION else self._droppable.find_block(line)
            return line if block is None else line.times(*block.shares(work.of_epochs))

        return replace(work, lines=tuple(kept(line) for line in work.lines))

    def finish(self, run: TrainingRun) -> None:
        self._droppable.restore()

    def diagnostics(self) -> dict[str, Any]:
        return {
            "blocks": {
                block.name: {"keep": round(keep, 4), "kept": round(block.shares()[0], 4)}
                for block, keep in zip(self._blocks, self._keep, strict=True)
            }
        }
