"""stochastic_depth: leave whole residual blocks out of a step, later ones more often: x ← σ(x + b_l·f_l(x)).

b_l is 1 with the chance p_l = 1 − l/L·(1 − p_L), drawn for every block in every step, and else 0: at 0 the block is
not computed, forward or backward. Evaluation uses all blocks. So that it sees what training saw in the mean, kept
branches are divided by p_l in training, as libraries of models do it, or all branches are multiplied by p_l in
evaluation, as in the paper.

Paper: Huang et al. 2016, Deep Networks with Stochastic Depth, Eq. 2–5. Promises about a quarter of training at p_L =
0.5, and a better network. Here l counts blocks that can be left out, those whose output has the shape of their input: a
block with a projection always runs. A dropped block's weights stand still in that step: no decay, no momentum.
Composes with everything that leaves a forward pass. What looks at the whole model outside of its steps, such as a score
of samples from further out, sees all blocks. Compiled, each set of blocks is a graph of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from energybench import TrainingRun
from energybench.algorithms.block_dropping import BlockDropping
from energybench.algorithms.residual_blocks import ResidualBlock


@dataclass
class StochasticDepth(BlockDropping):
    """keep_last: p_L, the chance that the last block runs in a step; 1 is plain training

    scaling: "inverse": kept branches are divided by p_l in training, and the model stays what it is | "paper": all
             branches are multiplied by p_l in evaluation, and in the end in the weights of the layer in which each
             branch ends. That is for blocks with one branch, as in ResNets; of stacks with `ema` the outer one is ema
    """

    keep_last: Annotated[float, Field(gt=0, le=1)] = 0.5
    scaling: Literal["inverse", "paper"] = "inverse"

    def __post_init__(self) -> None:
        if not 0 < self.keep_last <= 1:
            raise ValueError(f"keep_last is a chance in (0, 1], not {self.keep_last}")
        if self.scaling not in ("inverse", "paper"):
            raise ValueError(f"scaling is inverse or paper, not '{self.scaling}'")

    def keep_probabilities(self, blocks: int) -> list[float]:
        return [1 - number / blocks * (1 - self.keep_last) for number in range(1, blocks + 1)]  # Eq. 4

    def incompatible_blocks(self, blocks: Sequence[ResidualBlock]) -> str | None:
        several = [block.name for block in blocks if block.end is None]
        if self.scaling == "paper" and several:
            return (
                f"the branch of '{several[0]}' ends in no single layer whose weights could be multiplied by p: "
                'scaling = "inverse"'
            )
        return None

    def setup(self, run: TrainingRun) -> None:
        super().setup(run)
        if self.scaling == "paper":
            for block, keep in zip(self._blocks, self._keep, strict=True):
                block.scale_in_evaluation = keep  # Eq. 5

    def scale_of_kept(self, keep: float) -> float:
        return 1 / keep if self.scaling == "inverse" else 1.0

    def finish(self, run: TrainingRun) -> None:
        super().finish(run)
        self._droppable.fold()

    def claims(self) -> tuple[float, str, str] | None:
        """Of many blocks that cost the same: the mean of p_l goes to (1 + p_L) / 2."""
        return (1 - self.keep_last) / 2, "training", "Huang et al. 2016, section 3: 25 % of training time at p_L = 0.5"
