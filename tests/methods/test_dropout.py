"""dropout: a share p of zeros after every normalisation while training, the rest scaled so that nothing shifts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CLASSES, TinyTransformer, digits, make_run, tiny_cnn
from torch import nn

from energybench.common.errors import UsageError
from energybench.train import discovery

KIND: Any = discovery.load(discovery.sources()["dropout"])


def method(p: float = 0.2) -> Any:
    return discovery.build(KIND, "dropout", {"p": p})


class Ones(nn.BatchNorm2d):
    """A normalisation whose output is known."""

    def forward(self, x):
        return torch.ones_like(x)


def ones_and_after(p: float, count: int = 64) -> torch.Tensor:
    """What leaves one normalisation that puts out ones, in a training step."""
    seen: list[torch.Tensor] = []

    class Keeps(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return x

    def model():
        return nn.Sequential(nn.Conv2d(1, 16, 1), Ones(16), Keeps(), nn.Flatten(), nn.Linear(1024, CLASSES))

    run = make_run([method(p)], model)
    run.step(next(run.data.load([torch.arange(count)])))
    return seen[0]


@given(percent=st.integers(0, 95))
def test_zeros_are_near_their_share_and_the_expectation_is_kept(percent):
    p = percent / 100
    out = ones_and_after(p)
    zeros, count = (out == 0).double().mean().item(), out.numel()
    assert abs(zeros - p) <= 5 * math.sqrt(p * (1 - p) / count)
    assert abs(out.double().mean().item() - 1) <= 5 * math.sqrt(p / (1 - p) / count) + 1e-6
    kept = out[out != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))


def test_evaluation_is_untouched():
    test = digits(48, test=True)
    run, plain = make_run([method(0.5)]), make_run([])
    assert run.evaluate(test) == plain.evaluate(test)
    run.step(next(run.data.load([torch.arange(32)])))
    assert run.evaluate(test) == run.evaluate(test)


def test_each_step_draws_another_mask_and_the_same_seed_the_same_ones():
    def losses(seed: int) -> list[float]:
        run = make_run([method(0.5)], seed=seed)
        batch = next(run.data.load([torch.arange(32)]))
        return [run.gradients(batch).value.item() for _ in range(3)]

    assert len(set(losses(7))) == 3
    assert losses(7) == losses(7)


class WithItsOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.body = nn.Dropout(0.5), tiny_cnn()
        self.masks: list[torch.Tensor] = []

    def forward(self, x):
        mask = self.drop(torch.ones_like(x))
        self.masks.append(mask)
        return self.body(x * mask)


def test_the_models_own_dropout_draws_what_it_draws_without_the_method():
    with_it, without = make_run([method(0.4)], WithItsOwn), make_run([], WithItsOwn)
    with_it.train()
    without.train()
    assert len(with_it.model.masks) == 6
    assert all(torch.equal(a, b) for a, b in zip(with_it.model.masks, without.model.masks, strict=True))


@pytest.mark.parametrize(
    ("model", "layers"),
    [(tiny_cnn, 2), (TinyTransformer, 3), (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0)],
)
def test_it_acts_after_every_batchnorm_or_else_every_layernorm(model, layers):
    made = method()
    run = make_run([made], model, epochs=1)
    run.train()
    assert made.diagnostics() == {"layers": layers}
    assert made.acted is (layers > 0)


def test_where_both_kinds_stand_batchnorm_is_the_one():
    model = lambda: nn.Sequential(*list(tiny_cnn())[:-1], nn.LayerNorm(16), nn.Linear(16, CLASSES))  # noqa: E731
    made = method()
    make_run([made], model)
    assert made.diagnostics() == {"layers": 2}


def test_a_share_of_zero_drops_nothing_and_is_inert():
    made, plain = method(0.0), make_run([])
    run = make_run([made])
    run.train()
    plain.train()
    assert made.acted is False
    assert run.curve == plain.curve


@pytest.mark.parametrize("p", [-0.1, 1.0, math.nan])
def test_a_share_that_is_none_is_refused(p):
    with pytest.raises(UsageError, match=r"greater than or equal to 0|less than 1"):
        method(p)


def test_it_promises_nothing():
    assert method().claims() is None
