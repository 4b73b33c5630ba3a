"""fused_optimizer: the loop's weights by torch's other forms of an optimizer, whatever is released or laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import assert_same_state, digits, double_run, make_run, state, tiny_cnn, vectors
from test_method_members import method_named
from torch import nn

from energybench.common.errors import UsageError
from energybench.train.method import Method
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0, "decay": 0.01},
    "adam": {"betas": (0.8, 0.99), "lr": 0.01},
    "adamw": {"decay": 0.05, "lr": 0.01},
    "adagrad": {"decay": 0.01},
    "adadelta": {"lr": 1.0},
}
MOMENTA = {"momentum": {"momentum": 0.9, "decay": 0.01}, "nesterov": {"momentum": 0.9, "nesterov": True}}
RECIPES = {name: {"optimizer": name, **settings} for name, settings in OPTIMIZERS.items()}
RECIPES |= {name: {"optimizer": "sgd", **settings} for name, settings in MOMENTA.items()}
FUSED = [name for name in RECIPES if name != "adadelta"]
each_form = pytest.mark.parametrize(
    ("kind", "recipe"), [*(("foreach", name) for name in RECIPES), *(("fused", name) for name in FUSED)]
)


def fused(kind: str = "fused") -> Any:
    return method_named("fused_optimizer", kind=kind)


class Releases(Method):
    """The first layer is frozen until the second epoch."""

    name = "releases"

    def setup(self, run):
        run.model[0].requires_grad_(False)

    def epoch(self, run, data, inner):
        run.model[0].requires_grad_(run.epoch_number > 1)
        inner(data)


def assert_close(run: Any, plain: Any) -> None:
    assert state(run.model).keys() == state(plain.model).keys()
    for name, value in state(run.model).items():
        torch.testing.assert_close(value, state(plain.model)[name], rtol=1e-10, atol=1e-13)


def trained(methods: list[Method], **settings: Any) -> Any:
    run = double_run(methods, **{"epochs": 3} | settings)
    run.train()
    return run


@each_form
def test_the_weights_are_the_loops_to_rounding_and_the_settings_are_the_recipes(kind, recipe):
    settings = RECIPES[recipe] | {"clip": 1.0, "accumulate": 2, "schedule": "cosine"}
    run, plain = trained([method := fused(kind)], **settings), trained([], **settings)
    assert_close(run, plain)
    assert type(run.optimizer()) is type(plain.optimizer())
    for group, other in zip(run.optimizer().param_groups, plain.optimizer().param_groups, strict=True):
        without = {"params", "fused", "foreach"}
        assert {k: v for k, v in group.items() if k not in without} == {
            k: v for k, v in other.items() if k not in without
        }
        assert group[kind] is True
    assert method.acted is True
    assert method.diagnostics() == {"optimizers": {type(run.optimizer()).__name__: kind}}


@pytest.mark.parametrize("recipe", ["sgd", "momentum", "nesterov"])
def test_foreach_does_the_loops_operations_in_the_loops_order_so_the_bits_are_the_same(recipe):
    settings = RECIPES[recipe] | {"epochs": 2}
    runs = [make_run(methods, **settings) for methods in ([fused("foreach")], [])]
    for run in runs:
        run.train()
    assert_same_state(state(runs[0].model), state(runs[1].model))


class Withholds(Method):
    """The first layer has no gradient in the first epoch, although the optimizer holds it."""

    name = "withholds"

    def gradients(self, run, batch, inner):
        forward = inner(batch)
        for parameter in run.model[0].parameters() if run.epoch_number == 1 else ():
            parameter.grad = None
        return forward


@each_form
@pytest.mark.parametrize("later", [Releases, Withholds])
def test_what_is_released_later_learns_as_under_the_loop(kind, recipe, later):
    """Under momentum one kernel would be given buffers of some parameters and none of others."""
    run, plain = (trained([later(), *methods], **RECIPES[recipe]) for methods in ([fused(kind)], []))
    assert_close(run, plain)
    assert not torch.equal(run.model[0].weight, double_run().model[0].weight)
    assert run.untrained() == {}


@pytest.mark.parametrize("kind", ["fused", "foreach"])
def test_each_group_learns_at_its_own_multiple_of_the_rate(kind):
    settings = RECIPES["momentum"] | {"lr_multipliers": {"0.*": 0.1, "2.bias": 3.0}}
    run = trained([fused(kind), Releases()], **settings)
    assert_close(run, trained([Releases()], **settings))
    assert {group["lr_multiplier"] for group in run.optimizer().param_groups} == {0.1, 1.0, 3.0}


@pytest.mark.parametrize("recipe", FUSED)
def test_a_gradient_in_another_order_of_memory_than_its_weight_moves_the_right_numbers(recipe):
    """torch's fused kernel of a CPU pairs numbers by their place in memory."""

    class Planes(Method):
        name = "planes"

        def update(self, run, part, inner):
            for parameter in run.parameters(part):
                parameter.grad = parameter.grad.contiguous()
            inner(part)

    settings = RECIPES[recipe] | {"epochs": 2}
    kernels = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)]
    runs = []
    for stack in ([Planes(), fused(), method_named("channels_last")], [Planes(), method_named("channels_last")]):
        torch.manual_seed(0)
        run = make_run(stack, lambda: nn.Sequential(*(_again(layer) for layer in kernels)), **settings)
        run.train()
        run.finish()
        runs.append(run)
    for name, value in state(runs[0].model).items():
        torch.testing.assert_close(value, state(runs[1].model)[name], rtol=1e-3, atol=1e-5)


def _again(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)
    return nn.Linear(64, 10) if isinstance(layer, nn.Linear) else layer


def test_it_acts_at_the_first_update_and_not_before():
    run = double_run([method := fused()])
    assert method.acted is False
    run.gradients(batch := next(run.data.load([torch.arange(8)])))
    assert method.acted is False
    run.step(batch)
    assert method.acted is True


def test_who_owns_the_update_is_refused_in_words_in_either_order():
    assert "E310" in {problem.code for problem in check_stack([method_named("sgld"), fused()], Classification())}
    with pytest.raises(UsageError, match="'sgld' moves the weights itself"):
        make_run([fused(), method_named("sgld")])


@pytest.mark.parametrize("recipe", ["momentum", "adam", "adagrad"])
@pytest.mark.parametrize("outside", [True, False])
def test_hooks_that_other_methods_have_on_the_optimizer_stay_and_come_first(recipe, outside):
    """Gradients of low rank lie in place of the weights while the optimizer steps, which needs states as small."""
    stacks = [[fused(), method_named("low_rank_gradients", rank=2)], [method_named("low_rank_gradients", rank=2)]]
    if outside:
        stacks[0].reverse()
    run, plain = (trained(stack, epochs=2, **RECIPES[recipe] | {"decay": 0.0}) for stack in stacks)
    assert_close(run, plain)


def test_as_many_flops_are_counted_as_in_plain_training_and_the_step_hides_none():
    for kind in ("fused", "foreach"):
        counts = []
        for methods in ([fused(kind)], []):
            layer = StepCounter(10**9)
            run = make_run(methods, counter=layer)
            run.train()
            counts.append(layer.result(run))
        assert counts[0].counted_flop == counts[1].counted_flop
        assert counts[0].uncounted_calls == counts[1].uncounted_calls


def test_in_fp16_an_update_is_left_out_as_it_is_under_the_loop():
    runs = [make_run(methods, precision="fp16", momentum=0.9, lr=0.01) for methods in ([fused("foreach")], [])]
    for run in runs:
        run.loss_scaler.scale = 2.0**40  # of which the first gradients overflow
        run.train()
    assert runs[0].tally.updates_skipped == runs[1].tally.updates_skipped > 0
    assert_same_state(state(runs[0].model), state(runs[1].model))


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4, sparse=True), nn.Linear(4, 3)


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6)[:, ::2])


def test_what_has_no_fused_form_is_refused_in_words():
    assert fused().incompatible_recipe({"optimizer": "adadelta"}) == "torch has no fused kernel of adadelta"
    assert fused("foreach").incompatible_recipe({"optimizer": "adadelta"}) is None
    assert all(fused().incompatible_recipe({"optimizer": name}) is None for name in OPTIMIZERS if name != "adadelta")
    for model, words in (
        (Sparse, "an embedding of this model has one"),
        (Part, "weight is a part of another tensor"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), "no complex numbers, which weight has"),
    ):
        with pytest.raises(UsageError, match=words):
            make_run([fused()], model, vectors(dtype=torch.float32))
        make_run([fused("foreach")], model, vectors(dtype=torch.float32))
    with pytest.raises(UsageError, match="no fused kernel of adadelta on cpu"):
        make_run([fused()], optimizer="adadelta")
    assert "foreach already" in fused("foreach").incompatible_hardware("cuda")
    assert fused().incompatible_hardware("cuda") is None
    with pytest.raises(UsageError, match="kind"):
        fused("compiled")


def test_another_optimizer_further_in_is_refused_at_the_first_update():
    class Own(torch.optim.SGD):
        pass

    class Puts(Method):
        name = "puts"

        def optimizer(self, run, params, inner):
            return Own(params)

    batch = next(digits().load([torch.arange(8)]))
    with pytest.raises(ValueError, match="Own, the optimizer that lies further in, has no fused form"):
        make_run([fused(), Puts()], tiny_cnn).step(batch)
