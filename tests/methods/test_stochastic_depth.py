"""stochastic_depth: which blocks a step leaves out, what the others weigh, and what evaluation sees of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import CPU, MODELS, StackedTransformer, assert_same_state, digits, make_run, state
from test_method_members import method_named
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner.tracing import trace_task
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

LAYERS = 3


def depth(**parameters: Any) -> Any:
    return method_named("stochastic_depth", **parameters)


class SmallResidual(nn.Module):
    """σ(x + f(x)) as in ResNets, f a convolution and a normalisation."""

    def __init__(self, width: int, last: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.norm(self.conv(x)))


def small_resnet(last: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Four blocks behind a convolution; 8×8 images."""
    stem = (nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU())
    blocks = (SmallResidual(6, last()) for _ in range(4))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))


class Steps(Method):
    """Keeps what each step moved and which blocks the method of the stack had it run."""

    name = "steps"

    def __init__(self, method: Any) -> None:
        self.method, self.kept, self.moved = method, [], []

    def gradients(self, run: Any, batch: Any, inner: Any) -> Any:
        self.kept.append([block.kept for block in self.method._blocks])
        return inner(batch)

    def update(self, run: Any, part: str, inner: Any) -> None:
        before = state(run.model)
        inner(part)
        after = state(run.model)
        self.moved.append({name for name in before if not torch.equal(before[name], after[name])})


def observed(method: Any, model: Any = StackedTransformer, **settings: Any) -> tuple[Steps, Any]:
    steps = Steps(method)
    run = make_run([method, steps], model, **settings)
    run.train()
    return steps, run


# ── the draw ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_every_block_is_kept_it_is_plain_training_bit_for_bit():
    for scaling in ("inverse", "paper"):
        model = small_resnet if scaling == "paper" else StackedTransformer
        with_it, without = make_run([depth(keep_last=1.0, scaling=scaling)], model), make_run([], model)
        with_it.train()
        without.train()
        assert_same_state(state(with_it.model), state(without.model))
        assert with_it.tally.passes() == without.tally.passes()


def test_chances_fall_linearly_to_that_of_the_last_block():
    keep = depth(keep_last=0.4).keep_probabilities(6)
    assert keep == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert depth(keep_last=0.5).keep_probabilities(1) == [0.5]
    many = depth(keep_last=0.5).keep_probabilities(10_000)
    assert 1 - sum(many) / len(many) == pytest.approx(depth(keep_last=0.5).claims()[0], abs=1e-4)


def test_blocks_are_drawn_independently_with_their_chances():
    """Of S steps the share that kept a block lies within 4.5 standard deviations of its chance; so do pairs."""
    method = depth(keep_last=0.3)
    steps, _ = observed(method, lambda: rows(3), data=digits(64), epochs=40, batch=4, lr=1e-3)
    kept = torch.tensor(steps.kept, dtype=torch.float64)
    for one, chance in enumerate(method._keep):
        for other, another in list(enumerate(method._keep))[one:]:
            expected = chance if one == other else chance * another
            within = 4.5 * math.sqrt(expected * (1 - expected) / len(kept))
            assert (kept[:, one] * kept[:, other]).mean().item() == pytest.approx(expected, abs=within)


class Rows(nn.Module):
    """Tiny residual layers on 64 pixels."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(64, 4), nn.Linear(4, 10)
        self.layers = nn.ModuleList(Plus() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def rows(layers: int) -> Any:
    return nn.Sequential(nn.Flatten(1), Rows(layers))


class Plus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


# ── a step ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_dropped_blocks_parameters_stand_still_in_that_step_alone(accumulate):
    """Momentum and decay would move them; all micro-batches of a step drop the same blocks."""
    steps, _ = observed(depth(keep_last=0.3), epochs=5, decay=0.1, accumulate=accumulate)
    assert any(not all(kept) for kept in steps.kept)
    for kept, moved in zip(steps.kept, steps.moved, strict=True):
        for number, runs in enumerate(kept):
            assert any(name.startswith(f"layers.{number}.") for name in moved) == runs


def test_a_kept_blocks_branch_is_divided_by_its_chance():
    """One step from the same weights, against the same network written out."""
    method = depth(keep_last=0.5)
    run = make_run([method], lambda: rows(LAYERS))
    twin = copy.deepcopy(make_run([], lambda: rows(LAYERS)).model)[1]
    batch = next(iter(run.data.load([torch.arange(8)])))
    seen: dict[str, Any] = {}

    def look(batch: Any) -> None:
        seen["outputs"] = run.forward(batch).outputs.detach()
        seen["kept"] = [block.kept for block in method._blocks]

    for _ in range(6):
        method.step(run, batch, look)
        x = twin.enter(batch.inputs.flatten(1))
        for layer, kept, keep in zip(twin.layers, seen["kept"], method._keep, strict=True):
            x = x + layer.branch(x) / keep if kept else x
        torch.testing.assert_close(seen["outputs"], twin.head(x))
    whole = run.forward(batch).outputs.detach()
    torch.testing.assert_close(whole, twin(batch.inputs.flatten(1)))  # outside of a step it is whole


def test_the_mean_over_all_draws_is_what_evaluation_computes():
    """Of one residual block in front of a linear head: Σ_b P(b)·y_b = y, by enumeration."""
    method = depth(keep_last=0.25)
    run = make_run([method], lambda: rows(1))
    batch = next(iter(run.data.load([torch.arange(5)])))
    (block,), means = method._blocks, torch.zeros(5, 10)
    for kept, chance in ((True, 0.25), (False, 0.75)):
        block.kept, block.scale = kept, method.scale_of_kept(0.25)
        means += chance * run.forward(batch).outputs.detach()
    torch.testing.assert_close(means, run.forward(batch, "eval").outputs.detach())


def test_running_statistics_of_a_dropped_block_stay():
    class Statistics(Method):
        name = "statistics"

        def gradients(self, run: Any, batch: Any, inner: Any) -> Any:
            before = [run.model[n].norm.running_mean.clone() for n in range(2, 6)]
            forward = inner(batch)
            for block, number, old in zip(method._blocks, range(2, 6), before, strict=True):
                assert torch.equal(run.model[number].norm.running_mean, old) != block.kept
            return forward

    method = depth(keep_last=0.2)
    make_run([method, Statistics()], small_resnet, epochs=3).train()
    assert 0 < sum(block.shares()[0] for block in method._blocks) < 4


# ── evaluation ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_by_the_papers_scaling_evaluation_multiplies_each_branch_by_its_chance():
    """Eq. 5: H_l = ReLU(p_l·f_l(H_{l−1}) + H_{l−1})."""
    method = depth(keep_last=0.4, scaling="paper")
    run = make_run([method], small_resnet, epochs=2)
    run.train()
    batch = next(iter(run.data.load([torch.arange(7)])))
    found = run.forward(batch, "eval").outputs.detach()
    x = run.model[1](run.model[0](batch.inputs))
    for number, keep in enumerate(method._keep):
        block = run.model[2 + number]
        x = torch.relu(keep * nn.functional.batch_norm(
            block.conv(x), block.norm.running_mean, block.norm.running_var, block.norm.weight, block.norm.bias
        ) + x)  # fmt: skip
    torch.testing.assert_close(found, run.model[6:](x))
    before = run.evaluate(digits(64, test=True))
    run.finish()
    torch.testing.assert_close(run.model.eval()(batch.inputs), found)  # the weights have the scale now
    plain = small_resnet()
    plain.load_state_dict(run.model.state_dict())
    assert make_run(model=lambda: plain).evaluate(digits(64, test=True)) == pytest.approx(before)


def test_inverse_scaling_leaves_evaluation_as_it_is():
    run = make_run([depth()], small_resnet, epochs=2)
    run.train()
    plain = small_resnet()
    plain.load_state_dict(run.model.state_dict())
    batch = next(iter(run.data.load([torch.arange(7)])))
    assert torch.equal(run.forward(batch, "eval").outputs, plain.eval()(batch.inputs))


def test_where_ema_is_further_out_the_model_that_is_left_is_the_one_that_was_judged():
    run = make_run([method_named("ema", decay=0.5), depth(keep_last=0.3, scaling="paper")], small_resnet, epochs=3)
    run.train()
    before = run.evaluate(digits(64, test=True))
    run.finish()
    plain = small_resnet()
    plain.load_state_dict(run.model.state_dict())
    assert make_run(model=lambda: plain).evaluate(digits(64, test=True)) == pytest.approx(before)


# ── the promise ───────────────────────────────────────────────────────────────────────────────────────────────────


def assert_estimate_is_counted(methods: Callable[[], list[Any]], model: Any, **recipe: Any) -> float:
    """Every step is counted; to 0.1 % of plain training's FLOPs. Returns the share of them that was counted."""
    counted, settings = [], {"epochs": 3, "batch": 32, **recipe}
    stack = methods()
    for layers in (stack, []):
        counter = StepCounter(10**9)
        run = make_run(layers, model, digits(80), counter=counter, **settings)
        run.train()
        counted.append(counter.result(run).counted_flop)
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), model(), Recipe(**settings), batch, CPU).lines
    work = Work(lines, 3, run.data.samples(32), 32, settings.get("accumulate", 1))
    assert work.flop == pytest.approx(counted[1], rel=1e-3)
    changed = work
    for method in reversed(stack):
        changed = method.estimate(changed)
    assert changed.flop / work.flop == pytest.approx(counted[0] / counted[1], abs=1e-3)
    return counted[0] / counted[1]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("model", [StackedTransformer, small_resnet], ids=["transformer", "resnet"])
def test_the_estimate_is_what_is_counted(model, accumulate):
    """Batches of 32, 32 and 16."""
    share = assert_estimate_is_counted(lambda: [depth(keep_last=0.3)], model, accumulate=accumulate)
    assert share < 0.9


@pytest.mark.parametrize("outer", [True, False])
def test_so_it_is_beside_a_method_that_makes_each_backward_smaller(outer):
    def stack() -> list[Any]:
        both = [depth(keep_last=0.3), method_named("ssprop", drop=0.5, schedule="constant")]
        return both if outer else both[::-1]

    assert_estimate_is_counted(stack, small_resnet)


def test_each_block_of_the_ledger_has_its_own_share():
    method = depth(keep_last=0.3)
    _, run = observed(method, epochs=3)
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), StackedTransformer(), Recipe(epochs=3, batch=32), batch, CPU).lines
    work = Work(lines, 3, 96, 32)
    changed = method.estimate(work)
    shares = [block.shares()[0] for block in method._blocks]
    for old, new in zip(work.lines, changed.lines, strict=True):
        inside = old.module.startswith("layers.")
        assert new.flop == pytest.approx(old.flop * (shares[int(old.module[7])] if inside else 1.0))


# ── what it refuses ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_residual_blocks_is_refused_in_words(name):
    with pytest.raises(UsageError, match="no residual block"):
        make_run([depth()], MODELS[name])


def test_several_branches_have_no_layer_for_the_papers_scaling():
    with pytest.raises(UsageError, match=r"'layers.0' ends in no single layer .* scaling = \"inverse\""):
        make_run([depth(scaling="paper")], StackedTransformer)


def test_a_model_whose_blocks_are_all_that_learns_is_refused():
    def frozen() -> nn.Module:
        model = rows(2)
        model[1].enter.requires_grad_(False)
        model[1].head.requires_grad_(False)
        return model

    with pytest.raises(UsageError, match="all that learns lies in its residual blocks"):
        make_run([depth()], frozen)


@pytest.mark.parametrize(
    "parameters", [{"keep_last": 0.0}, {"keep_last": 1.5}, {"scaling": "none"}, {"keep_last": float("nan")}], ids=str
)
def test_parameters_out_of_their_range_are_refused(parameters):
    with pytest.raises((ValueError, UsageError)):
        depth(**parameters)


def test_it_has_not_acted_until_a_block_was_dropped():
    method = depth(keep_last=1.0)
    observed(method)
    assert method.acted is False
    method = depth(keep_last=0.05)
    steps, _ = observed(method)
    assert method.acted is (not all(map(all, steps.kept)))
    told = method.diagnostics()["blocks"]
    shares = [sum(column) / len(column) for column in zip(*steps.kept, strict=True)]
    assert [each["kept"] for each in told.values()] == pytest.approx(shares, abs=1e-4)  # batches of one size
