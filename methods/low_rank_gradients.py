"""low_rank_gradients: let the optimizer see the gradient of a matrix in its r strongest directions, G → PᵀG.

Of W (m, n) with m ≤ n, P (m, r) are the first r left singular vectors of G; R = PᵀG is the optimizer's gradient, N its
step, and W moves by `scale`·PN. Where m > n, Q (n, r) are right ones and R = GQ. P is found anew at every `refresh`-th
update; what the optimizer keeps, such as momentum, stays as it is then. Weight decay is plain training's: Adam's and
SGD's is a part of G, AdamW's shrinks W itself.

Paper: Zhao et al. 2024, GaLore, Algorithm 2, with its defaults. Promises memory, r/m of the optimizer's state of each
such matrix, and no FLOP: it costs 4·r·m·n more in every update, for PᵀG and PN, and the singular vectors, which are
metered and have no price in a count: its cell is marked so. Composes with what leaves `update` to the recipe's
optimizer: who replaces it leaves nothing to act on. Only matrices whose both sides exceed r are projected: no
convolutions, no embeddings, and none that is released later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from energybench import Line, Method, TrainingRun, Work

PROJECTION = "projection"


class Projected:
    """One matrix: its directions, and what is put aside of it while the optimizer steps."""

    def __init__(self, weight: nn.Parameter, rank: int) -> None:
        self.weight, self.rank = weight, rank
        rows, columns = weight.shape  # kept, since the weight has another shape while the optimizer steps
        self.left = rows <= columns
        self.low_shape = (rank, columns) if self.left else (rows, rank)
        self.product_flop = 4 * rank * rows * columns  # of PᵀG and PN, or GQ and NQᵀ, together
        self.basis: Tensor | None = None  # (m, r) of orthonormal columns, or (n, r)
        self.updates = 0
        self._aside: tuple[Tensor, Tensor | None] | None = None

    def find_basis(self, gradient: Tensor) -> None:
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        finite = torch.nan_to_num(wide, posinf=0.0, neginf=0.0)  # of a loss that diverges the run tells by itself
        left, _, right = torch.linalg.svd(finite, full_matrices=False)
        basis = left[:, : self.rank] if self.left else right[: self.rank].T
        self.basis = basis.to(gradient.dtype).contiguous()

    def down(self, gradient: Tensor) -> Tensor:
        assert self.basis is not None
        return self.basis.T @ gradient if self.left else gradient @ self.basis

    def up(self, step: Tensor) -> Tensor:
        assert self.basis is not None
        return self.basis @ step if self.left else step @ self.basis.T

    def put_aside(self, gradient: Tensor) -> None:
        """In place of the weight the optimizer is given a matrix of zeros, so that it leaves its step there."""
        weight = self.weight
        self._aside = weight.data, weight.grad
        low = self.down(gradient)
        weight.grad = None
        weight.data = torch.zeros_like(low)
        weight.grad = low

    def put_back(self, scale: float) -> None:
        if self._aside is None:
            return
        whole, gradient = self._aside
        step, self._aside = self.weight.data, None
        self.weight.grad = None
        self.weight.data = whole.add_(self.up(step), alpha=scale)
        self.weight.grad = gradient


@dataclass
class LowRankGradients(Method):
    """rank:    r, of gradients of matrices whose both sides are larger

    refresh: updates after which a matrix's directions are found anew
    scale:   by which the projected step is multiplied
    """

    needs: ClassVar[frozenset[str]] = frozenset({"backward"})
    example: ClassVar[Mapping[str, Any]] = {"rank": 4, "refresh": 5, "scale": 1.0}
    trains_less: ClassVar[bool | None] = False

    rank: Annotated[int, Field(ge=1)] = 128
    refresh: Annotated[int, Field(ge=1)] = 200
    scale: Annotated[float, Field(gt=0)] = 0.25

    def __post_init__(self) -> None:
        for name in ("rank", "refresh"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more, not {getattr(self, name)}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is > 0, not {self.scale}")

    def incompatible_run(self, run: TrainingRun) -> str | None:
        if any(self._fits(p) for p in run.model.parameters() if p not in _embeddings(run.model)):
            return None
        return f"none of its weights that is a matrix has more than {self.rank} rows and columns"

    def _fits(self, parameter: nn.Parameter) -> bool:
        return parameter.dim() == 2 and min(parameter.shape) > self.rank

    def setup(self, run: TrainingRun) -> None:
        self._run = run
        self.acted = False
        self._matrices: dict[nn.Parameter, Projected] = {}
        self._hooks: list[Any] = []
        self._flop = self._bases = 0

    def optimizer(
        self, run: TrainingRun, params: list[nn.Parameter], inner: Callable[[list[nn.Parameter]], Optimizer]
    ) -> Optimizer:
        optimizer = inner(params)
        embeddings = _embeddings(run.model)
        found = {p: Projected(p, self.rank) for p in params if self._fits(p) and p not in embeddings}
        self._matrices |= found
        for parameter, matrix in found.items():  # Adagrad's, which is made with it
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    optimizer.state[parameter][name] = value.new_zeros(matrix.low_shape)
        self._hooks.append(optimizer.register_step_pre_hook(self._project))
        self._hooks.append(optimizer.register_step_post_hook(self._project_back))
        return optimizer

    @torch.no_grad()
    def _project(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                matrix = self._matrices.get(weight)
                if matrix is None or weight.grad is None or not weight.requires_grad:
                    continue
                gradient = _decayed(weight, optimizer, group)
                if matrix.updates % self.refresh == 0:
                    matrix.find_basis(gradient)
                    self._bases += 1
                matrix.updates += 1
                matrix.put_aside(gradient)
                self._flop += matrix.product_flop
                self._run.tally.mark(self)

    @torch.no_grad()
    def _project_back(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if matrix := self._matrices.get(weight):
                    matrix.put_back(self.scale)

    def finish(self, run: TrainingRun) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def estimate(self, work: Work) -> Work:
        """4·r·m·n of every matrix at each of its updates, spread over the samples that were trained."""
        samples = self._run.tally.samples
        return work.add(Line(PROJECTION, "", "matmul", self._flop / samples)) if samples else work

    def diagnostics(self) -> dict[str, Any]:
        whole = sum(matrix.weight.numel() for matrix in self._matrices.values())
        low = sum(math.prod(matrix.low_shape) for matrix in self._matrices.values())
        return {
            "matrices": len(self._matrices),
            "bases_found": self._bases,
            "state_share": low / whole if whole else 1.0,  # of a state of the optimizer, over these matrices
        }


def _embeddings(model: nn.Module) -> set[Tensor]:
    """Tables of which a step sees some rows, not as a product."""
    tables = (module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag)))
    return {module.weight for module in tables}


def _decayed(weight: nn.Parameter, optimizer: Optimizer, group: Mapping[str, Any]) -> Tensor:
    """The gradient with its weight decay; a decoupled one is done to the weight here, since the optimizer sees none."""
    gradient = weight.grad
    assert gradient is not None
    if not (decay := group.get("weight_decay", 0.0)):
        return gradient
    if group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW)):
        weight.mul_(1 - group["lr"] * decay)
        return gradient
    return gradient.add(weight, alpha=decay)
