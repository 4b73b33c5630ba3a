"""layer_drop: leave whole layers of a transformer out of a step, each with the same chance: x ← x + b_l·f_l(x).

b_l is 0 with the chance `drop`, drawn for every layer in every step, and else 1: at 0 the layer is not computed,
forward or backward. Nothing is scaled. Evaluation uses all layers, or a part of them: what was trained like this bears
being pruned to every other layer without fine-tuning.

Paper: Fan et al. 2020, Reducing Transformer Depth on Demand with Structured Dropout, section 3. Promises
regularisation and networks of any depth from one training, and no share of that; what it leaves out is `drop` of the
layers' FLOPs. A layer is a residual block of whatever kind, ResNets' too; one with a projection always runs. A dropped
layer's weights stand still in that step: no decay, no momentum.
Composes with everything that leaves a forward pass. What looks at the whole model outside of its steps, such as a score
of samples from further out, sees all layers. Compiled, each set of layers is a graph of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from energybench import TrainingRun
from energybench.algorithms.block_dropping import BlockDropping


@dataclass
class LayerDrop(BlockDropping):
    """drop: the chance that a layer is left out of a step; 0 is plain training

    keep_at_eval: share of the layers that evaluation uses, from 0.5 to 1. By the paper's rule for a share r = 1 −
                  keep_at_eval to be pruned, each ⌊1/r⌋-th layer is left out: at 0.5 every other one. The model that is
                  left in the end has all layers
    """

    drop: Annotated[float, Field(ge=0, lt=1)] = 0.2
    keep_at_eval: Annotated[float, Field(ge=0.5, le=1)] = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is a chance in [0, 1), not {self.drop}")
        if not 0.5 <= self.keep_at_eval <= 1:
            raise ValueError(f"keep_at_eval is a share of the layers in [0.5, 1], not {self.keep_at_eval}")

    def keep_probabilities(self, blocks: int) -> list[float]:
        return [1 - self.drop] * blocks

    def pruned(self, layers: int) -> list[int]:
        """Numbers of the layers, from 1, that evaluation leaves out."""
        rate = 1 - self.keep_at_eval
        every = int(1 / rate + 1e-9) if rate > 1e-9 else layers + 1
        return list(range(every, layers + 1, every))

    @contextmanager
    def eval_context(self, run: TrainingRun) -> Iterator[None]:
        pruned = [self._blocks[number - 1] for number in self.pruned(len(self._blocks))]
        for block in pruned:
            block.pruned = True
        try:
            yield
        finally:
            for block in pruned:
                block.pruned = False

    def diagnostics(self) -> dict[str, Any]:
        pruned = [self._blocks[number - 1].name for number in self.pruned(len(self._blocks))]
        return super().diagnostics() | {"pruned_at_eval": pruned}
