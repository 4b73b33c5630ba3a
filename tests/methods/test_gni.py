"""gni: normal noise on what hidden layers take in, while training and nowhere else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from support import MODELS, assert_same_state, digits, make_run, state, tiny_cnn
from torch import nn

from energybench.common.errors import UsageError
from energybench.train import discovery

KIND: Any = discovery.load(discovery.sources()["gni"])


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "gni", parameters)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 20), nn.Tanh(), nn.Linear(20, 10))


def seen_by(made: Any, mode: str = "train") -> tuple[Any, dict[str, torch.Tensor]]:
    """What modules of `mlp` put out and take in, in one forward pass of 64 samples."""
    seen: dict[str, torch.Tensor] = {}
    run = make_run([made], mlp)
    for name, module in run.model.named_children():
        module.register_forward_pre_hook(lambda m, inputs, name=name: seen.update({f"into {name}": inputs[0].detach()}))
        module.register_forward_hook(lambda m, inputs, out, name=name: seen.update({f"out of {name}": out.detach()}))
    run.forward(next(run.data.load([torch.arange(64)])), mode)
    return run, seen


@pytest.mark.parametrize("sigma", [0.01, 0.5])
def test_hidden_layers_take_in_activations_plus_normal_noise_of_that_deviation(sigma):
    _, seen = seen_by(method(sigma=sigma))
    for before, after in (("2", "3"), ("4", "5")):
        noise = (seen[f"into {after}"] - seen[f"out of {before}"]).double().flatten()
        assert stats.kstest(noise.numpy(), "norm", (0, sigma)).pvalue > 1e-3
        assert noise.var().item() == pytest.approx(sigma**2, rel=4 * math.sqrt(2 / noise.numel()) + 1e-4)


def test_the_data_and_what_lies_between_layers_are_left_alone():
    _, seen = seen_by(method())
    for before, after in (("0", "1"), ("1", "2"), ("3", "4")):
        assert torch.equal(seen[f"into {after}"], seen[f"out of {before}"])


def test_evaluation_is_not_noisy_and_batch_statistics_of_a_second_pass_are():
    test = digits(48, test=True)
    run, plain = make_run([method(sigma=1.0)]), make_run([])
    assert run.evaluate(test) == plain.evaluate(test)
    _, seen = seen_by(method(), "eval")
    assert torch.equal(seen["into 3"], seen["out of 2"])
    _, seen = seen_by(method(), "frozen_stats")
    assert not torch.equal(seen["into 3"], seen["out of 2"])


def test_without_deviation_the_weights_are_plain_trainings_bit_for_bit():
    run, plain = make_run([method(sigma=0.0)]), make_run([])
    for one in (run, plain):
        one.train()
    assert_same_state(state(run.model), state(plain.model))


def test_each_step_draws_another_noise_and_the_same_seed_the_same():
    def losses(seed: int) -> list[float]:
        run = make_run([method(sigma=0.5)], mlp, seed=seed)
        batch = next(run.data.load([torch.arange(32)]))
        return [run.gradients(batch).value.item() for _ in range(3)]

    assert len(set(losses(7))) == 3
    assert losses(7) == losses(7)


def test_it_draws_nothing_from_the_models_own_stream():
    def model():
        return nn.Sequential(tiny_cnn(), nn.Dropout(0.3))

    run, plain = make_run([method(sigma=0.0)], model), make_run([], model)
    noisy = make_run([method(sigma=0.3)], model)
    states = []
    for one in (run, plain, noisy):
        one.train()
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])


@pytest.mark.parametrize(("model", "layers"), [("cnn", 2), ("transformer", 5)])
def test_every_layer_but_the_first_is_hooked(model, layers):
    made = method()
    make_run([made], MODELS[model])
    assert made.diagnostics() == {"layers": layers}


def test_a_model_without_hidden_layers_leaves_it_inert():
    made = method()
    make_run([made], lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).train()
    assert made.acted is False


@pytest.mark.parametrize("sigma", [-0.1, math.inf, math.nan])
def test_a_deviation_that_means_nothing_is_refused(sigma):
    with pytest.raises((UsageError, ValueError)):
        KIND(sigma=sigma)
