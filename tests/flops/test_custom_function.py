"""Products inside a custom autograd.Function: the counter sees each one, the ledger sees none, and that is told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from energybench.flops.counter import Counter
from energybench.flops.ledger import trace
from energybench.verdict.flags import check_workload


class Product(torch.autograd.Function):
    """x (B, in) @ w (out, in)ᵀ, whose backward recomputes its forward and takes one product too many."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        again = x @ w.t()
        return (dy + 0 * again) @ w, dy.t() @ x + 0 * (dy.t() @ x)


class Model(nn.Module):
    def __init__(self, custom: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4, bias=False)
        self.custom = custom

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return Product.apply(hidden, self.second.weight) if self.custom else self.second(hidden)


def counted(model: nn.Module, batch: Tensor) -> int:
    with Counter() as counter:
        model(batch).sum().backward()
    return counter.total


BATCH = 3
FIRST, SECOND = 2 * BATCH * 6 * 5, 2 * BATCH * 5 * 4


def test_every_product_of_a_custom_backward_is_counted():
    """The first layer: forward and dW. The second: forward, again, dX, dW twice."""
    assert counted(Model(custom=True), torch.randn(BATCH, 6)) == 2 * FIRST + 5 * SECOND
    assert counted(Model(custom=False), torch.randn(BATCH, 6)) == 2 * FIRST + 3 * SECOND


def test_a_custom_backward_that_runs_autograd_itself_is_counted():

    class Nested(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x @ w.t()

        @staticmethod
        def backward(ctx, dy: Tensor) -> tuple[Tensor, ...]:
            x, w = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
            with torch.enable_grad():
                again = x @ w.t()
            return torch.autograd.grad(again, (x, w), dy)

    x, w = torch.randn(BATCH, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with Counter() as counter:
        Nested.apply(x, w).sum().backward()
    assert counter.total == 4 * SECOND


def test_that_the_ledger_lacks_them_is_told_and_not_hidden():
    batch = torch.randn(BATCH, 6)
    for custom, codes in ((True, ["ledger_differs"]), (False, [])):
        model = Model(custom)
        traced = trace(model, (batch,))
        plain = BATCH * sum(line.flop for line in traced.lines)
        found = check_workload(
            twin=None, margin=0.01, plain_flop=plain, counted_flop=counted(model, batch), not_in_ledger=traced.unknown
        )
        assert [flag.code for flag in found] == codes
        if custom:
            assert plain == 2 * FIRST
            line = Model.forward.__code__.co_firstlineno + 2
            assert found[0].detail == (
                f"{100 * 5 * SECOND / (2 * FIRST + 5 * SECOND):.2f} % apart; "
                f"the ledger has no formula for Product (test_custom_function.py:{line})"
            )
