"""SGD whose learning rate and momentum are learned by SGD while it runs, without a graph of its steps.

A step is w_t = w_{t−1} − α·d_{t−1}, so the next gradient g_t says what another α would have been worth:

    ∂L/∂α = −⟨g_t, d_{t−1}⟩        d = μ·b + ĝ, the direction; ĝ = g + decay·w, b the momentum buffer before the step
    ∂L/∂μ = −α·⟨g_t, b_{t−2}⟩      b_{t−2} the buffer that μ multiplied in that step

That is what automatic differentiation through the last step gives (Chandra et al. 2022, Gradient Descent: The Ultimate
Optimizer, there with `create_graph`; Baydin et al. 2018, Eq. 5), as one dot product per tensor. Everything that is
learned stays on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from energybench.common.renamed import renamed
from energybench.flops.work import Line
from energybench.train.method import Method

if TYPE_CHECKING:
    from energybench.train.interface import TrainingRun


def hyper_step(
    value: Tensor, gradient: Tensor, rate: float, momentum: float = 0.0, buffer: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of SGD on a hyperparameter: (value − rate·b, b) with b = momentum·buffer + gradient."""
    moved = gradient if buffer is None else momentum * buffer + gradient
    return value - rate * moved, moved


def check_rates(hyper_lr: float, hyper_momentum: float) -> None:
    """Raises ValueError for rates with which nothing is learned, or without end."""
    if not 0 < hyper_lr < math.inf:
        raise ValueError(f"hyper_lr is > 0, not {hyper_lr}")
    if not 0 <= hyper_momentum < 1:
        raise ValueError(f"hyper_momentum is in [0, 1), not {hyper_momentum}")


def refusal(train: Mapping[str, Any], learn_momentum: bool) -> str | None:
    """Why a recipe, the suite's [train] table, cannot be learned upon; None if it can."""
    if train["optimizer"] != "sgd":
        return f"it learns the learning rate of SGD, not of {train['optimizer']}"
    if train.get("nesterov") and learn_momentum:
        return "it does not learn the momentum of Nesterov's step"
    return None


def inner_products(ones: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> Tensor:
    """⟨one, other⟩ of each pair, (n,) in double precision; 0 where one is missing."""
    device = next((t.device for t in (*ones, *others) if t is not None), None)
    zero = torch.zeros((), dtype=torch.float64, device=device)
    products = [
        zero if one is None or other is None else _dot(one, other).double()
        for one, other in zip(ones, others, strict=True)
    ]
    return torch.stack(products) if products else zero.new_zeros(0)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    if one.is_contiguous() and other.is_contiguous():
        return torch.dot(one.view(-1), other.view(-1))  # reads both once and writes nothing
    return (one * other).sum()


@renamed(look="compute_hypergradients", turn="update_hyperparameters", move="update_parameters")
class HyperSGD(Optimizer):
    """torch's SGD with a learning rate that is learned, and a momentum that may be.

    lr:              where the learning rate α starts
    hyper_lr:        η of the steps on α and μ; 0 is plain SGD
    hyper_momentum:  momentum of those steps
    learn_momentum:  learn μ too; not with nesterov
    multiplier:      m of each parameter, whose step is w −= α·m·d, so that its products count m-fold; None: 1

    The first step leaves α and μ alone. `rate` and `momentum` are tensors () in double precision on the parameters'
    device. The direction of the last step is in each parameter's state: "momentum_buffer", with nesterov "direction".
    `products` holds the last ⟨g_t, d_{t−1}⟩, (n,) for the n parameters; 0 for one that had no gradient in both steps.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.0,
        decay: float = 0.0,
        nesterov: bool = False,
        hyper_lr: float = 0.0,
        hyper_momentum: float = 0.0,
        learn_momentum: bool = False,
        multiplier: Callable[[nn.Parameter], float] | None = None,
    ) -> None:
        if nesterov and learn_momentum:
            raise ValueError("the momentum of nesterov's step is not learned: turn one of them off")
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum")
        super().__init__(params, {"lr": lr})
        if len(self.param_groups) > 1:
            raise ValueError("one learning rate is learned, so there is one group of parameters")
        self.decay, self.nesterov = decay, nesterov
        self.hyper_lr, self.hyper_momentum, self.learn_momentum = hyper_lr, hyper_momentum, learn_momentum
        self.multiplier = multiplier
        self.parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        device = self.parameters[0].device
        self.rate = torch.tensor(lr, dtype=torch.float64, device=device)
        self.momentum = torch.tensor(momentum, dtype=torch.float64, device=device)
        self.products: Tensor | None = None
        self.product_flop = 0  # multiply-adds of all inner products so far, as 2 FLOPs each
        self._has_momentum = bool(momentum) or learn_momentum
        self._buffers: dict[str, Tensor] = {}  # of the hyperparameters' own momentum
        self._moved: set[nn.Parameter] = set()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Hyperparameters first, with the gradients that are there; then the parameters with the new ones."""
        self.compute_hypergradients()
        self.update_hyperparameters()
        self.update_parameters()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Parameters that come later join the one group that there is: they share its learning rate."""
        if not hasattr(self, "parameters"):  # while it is built, where a second group is a mistake
            super().add_param_group(param_group)
            return
        self.parameters.extend(param_group["params"])

    def compute_hypergradients(self) -> Tensor:
        """⟨g_t, d_{t−1}⟩ of every parameter, times its multiplier, (n,)."""
        self.products = self._product("direction" if self.nesterov else "momentum_buffer")
        return self.products

    def update_hyperparameters(self) -> None:
        """One step on α, and on μ if it is learned; nothing before there was a direction."""
        if not self._moved or not self.hyper_lr or self.products is None:
            return
        for_momentum = self.rate * self._product("before").sum() if self.learn_momentum else None
        self.rate = self.adjust("rate", self.rate, -self.products.sum(), self.hyper_lr)
        if for_momentum is not None:
            self.momentum = self.adjust("momentum", self.momentum, -for_momentum, self.hyper_lr)

    def adjust(self, name: str, value: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """`hyper_step` with this optimizer's hyper-momentum; `name` keys its buffer."""
        value, moved = hyper_step(value, gradient, rate, self.hyper_momentum, self._buffers.get(name))
        if self.hyper_momentum:
            self._buffers[name] = moved
        return value

    @torch.no_grad()
    def update_parameters(self) -> None:
        """w −= α·d, as torch's SGD does it."""
        moving: Any = [p for p in self.parameters if p.grad is not None]
        self._moved = set(moving)
        if not moving:
            return
        gradients: Any = [p.grad for p in moving]
        if self.decay:
            gradients = torch._foreach_add(gradients, moving, alpha=self.decay)
        self._update_buffers(moving, gradients)
        directions = self._directions(moving, gradients)
        if self.multiplier is not None:
            directions = list(torch._foreach_mul(directions, [self.multiplier(p) for p in moving]))
        if self.rate.is_cuda:
            by: Any = torch._foreach_mul(directions, self.rate.to(directions[0].dtype))
            torch._foreach_sub_(moving, by)
        else:
            torch._foreach_add_(moving, directions, alpha=-self.rate.item())

    def _update_buffers(self, moving: list[nn.Parameter], gradients: list[Tensor]) -> None:
        """b := μ·b + ĝ of the parameters that have a buffer, ĝ of those that move for the first time."""
        old = [p for p in moving if "momentum_buffer" in self.state[p]]
        if old:
            self._update_old_buffers(old, _of(old, moving, gradients))
        for parameter, gradient in zip(moving, gradients, strict=True):
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = gradient.clone()
                if self.learn_momentum:
                    state["before"] = torch.zeros_like(gradient)

    def _update_old_buffers(self, old: list[nn.Parameter], gradients: list[Tensor]) -> None:
        buffers = [self.state[p]["momentum_buffer"] for p in old]
        if self.learn_momentum:
            torch._foreach_copy_([self.state[p]["before"] for p in old], buffers)
        if self._has_momentum:
            torch._foreach_mul_(buffers, _scalar(self.momentum))
            torch._foreach_add_(buffers, gradients)
        else:
            torch._foreach_copy_(buffers, gradients)

    def _directions(self, moving: list[nn.Parameter], gradients: list[Tensor]) -> list[Tensor]:
        """d of every parameter: its buffer, with nesterov μ·b + ĝ, which is kept as "direction"."""
        directions = [self.state[p]["momentum_buffer"] for p in moving]
        if not self.nesterov:
            return directions
        ahead = torch._foreach_mul(directions, _scalar(self.momentum))
        torch._foreach_add_(ahead, gradients)
        for parameter, direction in zip(moving, ahead, strict=True):
            self.state[parameter]["direction"] = direction
        return list(ahead)

    def _product(self, key: str) -> Tensor:
        ones: list[Tensor | None] = []
        others: list[Tensor | None] = []
        for parameter in self.parameters:
            has_both = parameter in self._moved and parameter.grad is not None
            ones.append(parameter.grad if has_both else None)
            others.append(self.state[parameter][key] if has_both else None)
            self.product_flop += 2 * parameter.numel() * has_both
        products = inner_products(ones, others)
        if self.multiplier is None:
            return products
        return products * products.new_tensor([self.multiplier(p) for p in self.parameters])


def _of(some: list[nn.Parameter], moving: list[nn.Parameter], gradients: list[Tensor]) -> list[Tensor]:
    """The gradients of `some` of the moving parameters, in their order."""
    if len(some) == len(moving):
        return gradients
    wanted = set(some)
    return [gradient for parameter, gradient in zip(moving, gradients, strict=True) if parameter in wanted]


def _scalar(value: Tensor) -> Any:
    """A number where reading it waits for nothing: on a CPU."""
    return value if value.is_cuda else value.item()


# ── what methods share that train by it ───────────────────────────────────────────────────────────────────────────────


class LearnedRate(Method):
    """Base of methods whose optimizer is HyperSGD. `update` is theirs, and how the samples are counted that it saw."""

    # Parameters, which each method declares.
    hyper_lr: float
    hyper_momentum: float
    learn_momentum: bool

    def incompatible_recipe(self, train: Mapping[str, Any]) -> str | None:
        return refusal(train, self.learn_momentum)

    def setup(self, run: TrainingRun) -> None:
        recipe = {"optimizer": run.recipe.optimizer, "nesterov": run.recipe.nesterov}
        if reason := self.incompatible_recipe(recipe):
            raise ValueError(f"{self.name}: {reason}")
        super().setup(run)
        self._optimizers: list[HyperSGD] = []  # one per part, in the order of their first use
        self._world = run.world
        self._flop_before = 0  # of those whose turn is over: a federated client has one of its own

    def optimizer(
        self, run: TrainingRun, params: list[nn.Parameter], inner: Callable[[list[nn.Parameter]], Optimizer]
    ) -> HyperSGD:
        optimizer = HyperSGD(
            params,
            run.recipe.lr,
            momentum=run.recipe.momentum,
            decay=run.recipe.decay,
            nesterov=run.recipe.nesterov,
            hyper_lr=self.hyper_lr,
            hyper_momentum=self.hyper_momentum,
            learn_momentum=self.learn_momentum,
            multiplier=run.lr_multiplier if run.recipe.lr_multipliers else None,
        )
        for number, before in enumerate(self._optimizers):
            if before.parameters[0] is params[0]:
                self._flop_before += before.product_flop
                self._optimizers[number] = optimizer
                return optimizer
        self._optimizers.append(optimizer)
        return optimizer

    def clipped(self, run: TrainingRun, part: str) -> HyperSGD:
        """The optimizer of `part`, whose gradients are clipped as the recipe says."""
        optimizer = run.optimizer(part)
        if not isinstance(optimizer, HyperSGD):
            raise TypeError(f"'{self.name}' trains by an optimizer of its own, and '{part}' has {optimizer!r}")
        if run.recipe.clip is not None:
            nn.utils.clip_grad_norm_(run.parameters(part), run.recipe.clip)
        return optimizer

    def inner_products_line(self, samples: int) -> Line:
        """What the inner products cost, per sample of `samples`: of several ranks each computes them."""
        flop = self._flop_before + sum(optimizer.product_flop for optimizer in self._optimizers)
        return Line("hypergradient", "", "dot", self._world * flop / max(1, samples))

    @staticmethod
    def learned(optimizer: HyperSGD) -> dict[str, float]:
        """For the record. Waits for the device."""
        return {"learning_rate": optimizer.rate.item(), "momentum": optimizer.momentum.item()}
