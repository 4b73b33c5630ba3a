"""When a neuron is at equilibrium: similarity and velocity against geometry and closed forms; probe and neurons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CLASSES, MODELS, assert_same_state, digits, make_run, state, velocity
from torch import Tensor, nn

from energybench.algorithms.equilibrium import Motion, Probe, _Sums, similarity
from energybench.algorithms.neurons import find

# ── similarity ────────────────────────────────────────────────────────────────────────────────────────────────────


def outputs(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    return one, other


@given(seed=st.integers(0, 999), shape=st.sampled_from([(4, 3, 5), (1, 2, 3), (6, 1, 1), (5, 4)]))
def test_concat_is_the_cosine_of_all_outputs_of_a_neuron_as_one_vector(seed, shape):
    one, other = outputs(seed, shape)
    found = similarity(one, other, "concat")
    for neuron in range(shape[1]):
        a, b = one[:, neuron].flatten(), other[:, neuron].flatten()
        assert found[neuron].item() == pytest.approx((a @ b / (a.norm() * b.norm())).item(), abs=1e-12)


@given(seed=st.integers(0, 999))
def test_per_sample_is_the_mean_of_each_samples_own_cosine(seed):
    one, other = outputs(seed, (4, 3, 5))
    expected = torch.cosine_similarity(one, other, dim=2).mean(0)
    torch.testing.assert_close(similarity(one, other, "per_sample"), expected)


def test_with_one_output_a_sample_per_sample_is_concat():
    """A cosine of two numbers is their sign."""
    one, other = outputs(3, (7, 4))
    torch.testing.assert_close(similarity(one, other, "per_sample"), similarity(one, other, "concat"))


@given(seed=st.integers(0, 99), by=st.floats(0.01, 100), kind=st.sampled_from(["concat", "per_sample"]))
def test_similarity_is_of_direction_alone(seed, by, kind):
    one, _ = outputs(seed, (3, 2, 4))
    ones = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(similarity(one, by * one, kind), ones)
    torch.testing.assert_close(similarity(one, -by * one, kind), -ones)


@pytest.mark.parametrize("kind", ["concat", "per_sample"])
def test_two_dead_neurons_are_alike_and_a_dead_and_a_live_one_are_not(kind):
    live, dead = torch.ones(2, 1, 3), torch.zeros(2, 1, 3)
    assert similarity(dead, dead, kind).item() == 1
    assert similarity(dead, live, kind).item() == 0
    assert similarity(live, dead, kind).item() == 0


def test_outputs_that_came_batch_by_batch_are_as_if_they_had_come_at_once():
    one, other = outputs(1, (6, 3, 4))
    for kind in ("concat", "per_sample"):
        sums = _Sums(kind)
        sums.add(one[:4], other[:4])
        sums.add(one[4:], other[4:])
        torch.testing.assert_close(sums.similarity(), similarity(one, other, kind))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="concat"):
        similarity(torch.ones(1, 1), torch.ones(1, 1), "sum")
    with pytest.raises(ValueError, match="reference"):
        Motion(0.5, "other")


# ── velocity ──────────────────────────────────────────────────────────────────────────────────────────────────────


def by_hand(similarities: list[float], momentum: float, recursion: str) -> list[float]:
    """The recursion, written out with φ₋₁ = 1, v₋₁ = 0 and Δφ₋₁ = 0."""
    changes = [b - a for a, b in zip([1.0, *similarities], similarities, strict=False)]
    found: list[float] = []
    for epoch, change in enumerate(changes):
        before = found[-1] if found else 0.0
        if recursion == "paper":
            found.append(change - momentum * before)
        else:
            found.append(change - (changes[epoch - 1] if epoch else 0.0) + momentum * before)
    return found


@given(
    phi=st.lists(st.floats(-1, 1), min_size=1, max_size=8),
    momentum=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    recursion=st.sampled_from(["paper", "reference"]),
)
def test_the_velocity_is_its_recursion(phi, momentum, recursion):
    found = velocity(torch.tensor(phi, dtype=torch.float64)[:, None], momentum, recursion)
    assert found.shape == (len(phi), 1)
    assert found.flatten().tolist() == pytest.approx(by_hand(phi, momentum, recursion), abs=1e-12)


def test_the_first_velocity_is_the_first_similarity_less_one():
    for recursion in ("paper", "reference"):
        assert velocity(torch.tensor([[0.25]]), 0.5, recursion).item() == -0.75


def test_by_the_paper_the_velocity_is_a_sum_of_changes_with_alternating_geometric_weights():
    """v_e = Σ_k (−μ)^k Δφ_{e−k}."""
    phi = torch.tensor([0.5, 0.9, 0.7, 0.95], dtype=torch.float64)
    changes = torch.cat([phi[:1] - 1, phi.diff()])
    expected = sum((-0.5) ** k * changes[3 - k] for k in range(4))
    assert velocity(phi, 0.5)[-1].item() == pytest.approx(expected.item())


@given(phi=st.floats(-1, 1), momentum=st.floats(0, 0.9))
def test_a_neuron_whose_similarity_stays_comes_to_rest(phi, momentum):
    for recursion in ("paper", "reference"):
        found = velocity(torch.full((200, 1), phi, dtype=torch.float64), momentum, recursion)
        assert abs(found[-1].item()) <= 3 * momentum**198 + 1e-12


# ── neurons ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_neurons_are_the_output_channels_of_every_convolution_linear_and_normalisation_layer():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.Conv1d(4, 6, 1, groups=2),
        nn.Conv3d(1, 2, 1),
        nn.ConvTranspose2d(4, 5, 3),
        nn.Linear(3, 7),
        nn.LayerNorm(7),
        nn.RMSNorm(7),
        nn.InstanceNorm1d(3, affine=True),
    )
    found = find(model)
    assert [(n.name, n.count) for n in found] == [
        ("0", 4),
        ("1", 4),
        ("2", 4),
        ("3", 6),
        ("4", 2),
        ("5", 5),
        ("6", 7),
        ("7", 7),
        ("8", 7),
        ("9", 3),
    ]
    for neurons in found:
        for parameter, dim in neurons.rows:
            assert parameter.shape[dim] == neurons.count
    assert [n.fan_in for n in found if n.name in "036"] == [2 * 9, 2, 3]


class Odd(nn.Module):
    """What is left alone: nothing to learn, nothing to tell apart, weights of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(3, 3).requires_grad_(False)
        self.plain = nn.BatchNorm2d(3, affine=False)
        self.wide = nn.LayerNorm((3, 3))
        self.grouped = nn.ConvTranspose2d(4, 4, 3, groups=2)
        self.one, self.other = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.other.weight = self.one.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
        self.partly = nn.Linear(3, 2)
        self.partly.bias.requires_grad_(False)


def test_what_cannot_rest_row_by_row_is_left_out():
    model = Odd()
    (partly,) = find(model)
    assert (partly.name, [p is model.partly.weight for p, _ in partly.rows]) == ("partly", [True])


def test_outputs_are_samples_by_neurons_by_positions_and_survive_what_is_done_in_place():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(2), nn.Linear(4, 6))
    conv, linear = find(model)
    y = model[0](torch.randn(2, 1, 4, 4))
    kept = conv.outputs(y)
    assert kept.shape == (2, 4, 4)
    expected = y.detach().flatten(2).clone()
    torch.relu_(y)
    assert torch.equal(kept, expected)
    tokens = torch.randn(2, 5, 6)
    assert torch.equal(linear.outputs(tokens), tokens.transpose(1, 2))
    assert torch.equal(linear.outputs(tokens[:, 0]), tokens[:, 0, :, None])


# ── the probe ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", MODELS.values())
def test_a_model_that_did_not_move_is_alike_and_looking_leaves_no_trace(model):
    run, data = make_run(model=model), digits(40)
    probe = Probe(find(run.model), "concat")
    before, random = state(run.model), torch.get_rng_state()
    assert probe.observe(run, data) == {}
    found = probe.observe(run, data)
    assert set(found) == {n.name for n in find(run.model)}
    for phi in found.values():
        torch.testing.assert_close(phi, torch.ones_like(phi))
    assert_same_state(state(run.model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert (run.tally.forwards, run.tally.samples_forward, run.tally.backwards) == (2, 80, 0)
    assert not any(m._forward_hooks for m in run.model.modules())
    assert probe.memory_b > 0


def test_the_probe_sees_the_outputs_of_the_layer_as_they_were_an_epoch_ago():
    run, data = make_run(), digits(20)
    probe = Probe(find(run.model), "concat")
    run.set_mode("eval")
    seen = []
    for scale in (1.0, 0.5):
        with torch.no_grad():
            run.model[0].weight[0] *= scale
            run.model[0].weight[1] *= -scale if scale < 1 else 1
            run.model[0].bias.zero_()
            seen.append(run.model[0](next(data.in_order()).inputs).flatten(2))
        found = probe.observe(run, data)
    assert found["0"][0].item() == pytest.approx(1, abs=1e-6)
    assert found["0"][1].item() == pytest.approx(-1, abs=1e-6)
    torch.testing.assert_close(found["0"], similarity(*seen), rtol=1e-6, atol=1e-6)


def test_operations_are_multiply_adds_and_twice_the_elements_of_a_normalisation():
    run = make_run()
    probe = Probe(find(run.model), "concat")
    probe.observe(run, digits(12))
    assert probe.operations == {
        "0": 64 * 8 * 9,
        "1": 2 * 64 * 8,
        "4": 16 * 16 * 8 * 9,
        "5": 2 * 16 * 16,
        "9": 16 * CLASSES,
    }


class Called(nn.Module):
    """One layer twice in a pass, and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.head, self.never = nn.Linear(64, 64), nn.Linear(64, CLASSES), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(x.flatten(1)).relu()))


def test_a_layer_called_twice_is_seen_twice_and_one_never_called_has_no_similarity():
    run = make_run(model=Called)
    probe = Probe(find(run.model), "concat")
    for _ in range(2):
        found: dict[str, Any] = probe.observe(run, digits(8))
    assert set(found) == {"twice", "head"}
    assert probe.operations["twice"] == 2 * 64 * 64
