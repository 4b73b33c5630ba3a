"""Federated classification: splits by mathematics, rounds against formulas written out by hand, every method in it."""

from __future__ import annotations

import io
import math
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from support import (
    CPU,
    assert_same_state,
    digits,
    double_run,
    make_run,
    run_or_refusal,
    state,
    tiny_cnn,
    tiny_mlp,
    vectors,
)
from torch import Tensor, nn

from energybench.cli import show, show_rounds
from energybench.common.errors import UsageError
from energybench.meter.reading import Energy
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import time_step, trace_run
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.data import Data, Resident, StandIn
from energybench.train.facts import Facts
from energybench.train.method import Method
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.trial.estimate import works
from energybench.workloads import models
from energybench.workloads.tasks.client_splits import SPLITS, labels_of, mixed, shared_out, split
from energybench.workloads.tasks.federated import FedAvg, Federated, FedProx, FedSpeed, MeanWeights

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}
ALGORITHMS = {"fedavg": FedAvg, "fedprox": FedProx, "fedspeed": FedSpeed}
each_algorithm = pytest.mark.parametrize("kind", ALGORITHMS.values(), ids=ALGORITHMS)


def small(kind: type = FedAvg, **given: Any) -> Any:
    return kind(**{"clients": 4, "active": 3, "local_epochs": 2} | given)


class Steps(Method):
    """Keeps every step's batch and rate."""

    name = "steps"

    def __init__(self) -> None:
        self.seen: list[tuple[int, Any]] = []
        self.rates: list[float] = []

    def step(self, run, batch, inner):
        self.seen.append((run.epoch_number, batch))
        self.rates.append(run.lr())
        inner(batch)


def method(name: str, **settings: Any) -> Method:
    kind = discovery.load(SOURCES[name])
    return discovery.build(kind, name, dict(kind.example) | settings)


def classed(labels: Any) -> Data:
    targets = torch.as_tensor(labels)
    return Data(Resident(torch.zeros(len(targets), 1), targets, CPU))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ── splits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    how=st.sampled_from(SPLITS[:2]),
    clients=st.integers(1, 12),
    concentration=st.sampled_from([1e-3, 0.1, 0.6, 50.0]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_every_sample_lies_with_one_client_and_clients_are_of_one_size(labels, how, clients, concentration, seed):
    clients = min(clients, len(labels))
    places = split(classed(labels), how, clients, concentration, generator(seed))
    assert sorted(torch.cat(places).tolist()) == list(range(len(labels)))
    sizes = [len(each) for each in places]
    assert len(places) == clients
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert all(each.tolist() == sorted(each.tolist()) for each in places)  # so that one client has the set's own order


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_shares_of_classes_leave_no_sample_out_and_no_client_without(seed, clients):
    labels = np.arange(120) % 4
    places = split(classed(labels), "dirichlet-by-class", clients, 5.0, generator(seed))
    assert sorted(torch.cat(places).tolist()) == list(range(120))
    assert min(len(each) for each in places) >= 1


@pytest.mark.parametrize("how", SPLITS)
def test_a_split_follows_from_the_seed(how):
    data = classed(np.arange(200) % 10)
    one, again, other = (split(data, how, 10, 2.0, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def concentrated(labels: np.ndarray, owners: np.ndarray, clients: int) -> float:
    """The mean over clients of Σ p², p the share of each class in a client's samples."""
    counts = np.zeros((clients, labels.max() + 1))
    np.add.at(counts, (owners, labels), 1)
    return float(((counts / counts.sum(1, keepdims=True)) ** 2).sum(1).mean())


@pytest.mark.parametrize("concentration", [0.3, 0.6, 2.0])
def test_mixes_have_the_second_moment_of_a_dirichlet_distribution(concentration):
    """E Σ p² = (c + 1)/(K·c + 1) of Dirichlet(c, …, c); drawn n times, plus (1 − it)/n. K = 10.

    Classes that are used up bend the last places filled, some in twenty: the moment by as little.
    """
    labels = np.arange(40_000) % 10
    found = [
        concentrated(labels, mixed(labels, 100, concentration, np.random.default_rng(seed)), 100) for seed in range(4)
    ]
    moment = (concentration + 1) / (10 * concentration + 1)
    assert np.mean(found) == pytest.approx(moment + (1 - moment) / 400, rel=0.1)


@pytest.mark.parametrize("concentration", [0.6, 2.0])
def test_shares_of_a_class_have_the_second_moment_of_a_dirichlet_distribution(concentration):
    """Of each class over clients, K = 20 of them; cutting 2,000 samples rounds shares by less than 1/1,000."""
    labels = np.arange(200_000) % 100
    owners = shared_out(labels, 20, concentration, np.random.default_rng(5))
    moment = (concentration + 1) / (20 * concentration + 1)
    assert concentrated(owners, labels, 100) == pytest.approx(moment, rel=0.1)


def test_an_even_split_is_as_even_as_drawing_without_regard_to_classes():
    """Hypergeometric: E p̂² = p² + p(1 − p)/n · (N − n)/(N − 1)."""
    labels = np.arange(10_000) % 10
    places = split(classed(labels), "iid", 100, 0.6, generator(3))
    owners = np.empty(10_000, int)
    for client, each in enumerate(places):
        owners[each.numpy()] = client
    expected = 10 * (0.01 + 0.09 / 100 * 9_900 / 9_999)
    assert concentrated(labels, owners, 100) == pytest.approx(expected, rel=0.03)


def test_the_ends_of_concentration_are_one_class_a_client_and_all_alike():
    labels = np.arange(20_000) % 10
    alone, alike = (mixed(labels, 10, c, np.random.default_rng(0)) for c in (1e-3, 1e6))
    assert concentrated(labels, alike, 10) == pytest.approx(0.1, rel=0.01)
    counts = np.zeros((10, 10))
    np.add.at(counts, (alone, labels), 1)
    # Who draws a class that is used up takes what is left, so some are mixed: more than half of each on average is one.
    assert (counts.max(1) / 2_000).mean() > 0.5


def test_what_cannot_be_split_is_told():
    with pytest.raises(ValueError, match="9 clients cannot share 8 samples"):
        split(classed(range(8)), "iid", 9, 0.6, generator(0))
    with pytest.raises(ValueError, match="fewer clients, or a higher concentration"):
        split(classed([0] * 50), "dirichlet-by-class", 40, 1e-3, generator(0))
    for targets in (torch.zeros(8), torch.zeros(8, 2, dtype=torch.long)):
        data = Data(Resident(torch.zeros(8, 1), targets, CPU))
        with pytest.raises(TypeError, match='split = "iid"'):
            split(data, "dirichlet", 2, 0.6, generator(0))
        assert len(split(data, "iid", 2, 0.6, generator(0))) == 2


def test_labels_are_those_of_the_samples_that_the_data_hold():
    data = classed(range(10)).subset(torch.tensor([7, 2, 5]))
    assert labels_of(data).tolist() == [7, 2, 5]
    absent = Data(StandIn((1, 2, 2), 7, CPU), facts=Facts("class", 3))
    assert labels_of(absent).tolist() == [0, 1, 2, 0, 1, 2, 0]


# ── rounds ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_client_of_one_local_epoch_is_plain_training_to_the_bit():
    """With BatchNorm, its statistics, augmentation, clipping and decay; without momentum, which would begin anew."""
    recipe: dict[str, Any] = {"momentum": 0.0, "clip": 1.0, "decay": 1e-3, "schedule": "exponential", "factor": 0.9}
    runs = []
    for task in (None, FedAvg(clients=1, active=1, local_epochs=1)):
        run = make_run((), tiny_cnn, digits(80, ("flip", "crop2")), task, epochs=3, **recipe)
        run.train()
        runs.append(run)
    assert_same_state(*(state(run.model) for run in runs))
    assert runs[0].curve == runs[1].curve
    assert runs[0].samples_sha256() == runs[1].samples_sha256()


def test_a_client_s_optimizer_begins_anew_in_each_round():
    plain = double_run(epochs=1, momentum=0.9)
    first = state(plain.model)
    federated = double_run(task=FedAvg(clients=1, active=1, local_epochs=1), epochs=2, momentum=0.9)
    federated.train_epoch(1)
    plain.train_epoch(1)
    assert_same_state(state(federated.model), state(plain.model))
    after = state(plain.model)
    assert any(not torch.equal(first[name], after[name]) for name in after)
    fresh = double_run(epochs=2, momentum=0.9)  # the same weights with an optimizer that has seen nothing
    fresh.model.load_state_dict(after)
    fresh.train_epoch(2)
    federated.train_epoch(2)
    assert_same_state(state(federated.model), state(fresh.model))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adagrad", "adadelta"])
def test_no_client_meets_another_s_moments(optimizer):
    """Two clients with the same samples end alike, though one comes after the other."""
    once = vectors(8)
    inputs, targets = once.store.inputs.repeat(2, 1), once.store.targets.repeat(2)

    class Ends(FedAvg):
        def setup(self, run):
            super().setup(run)
            self._clients = [run.data.subset(torch.arange(start, start + 8)) for start in (0, 8)]
            self.ends: list[list[Tensor]] = []

        def end_client(self, run, client):
            self.ends.append([parameter.detach().clone() for parameter in run.parameters()])

    task = Ends(clients=2, active=2, local_epochs=1)
    run = double_run(task=task, data=Data(Resident(inputs, targets, CPU)), batch=8, epochs=1, optimizer=optimizer)
    run.train()
    one, other = task.ends
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(one, other, strict=True))


@given(
    shares=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_the_mean_of_weights_is_numpys_average(shares, seed, dtype):
    sent = [torch.randn(3, 4, generator=generator(seed + k), dtype=dtype) for k in range(len(shares))]
    counts = [torch.tensor(7 * k % 5) for k in range(len(shares))]
    mean = MeanWeights()
    for tensor, count, share in zip(sent, counts, shares, strict=True):
        mean.add([tensor, count], share / sum(shares))
    found, largest = mean.values()
    wanted = np.average(np.stack([each.double().numpy() for each in sent]), axis=0, weights=shares)
    scale = max(float(each.abs().max()) for each in sent)
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=0, atol=8 * scale * torch.finfo(dtype).eps)
    assert (found.dtype, largest) == (dtype, max(counts))


def test_a_mean_of_one_or_of_all_alike_is_it_to_the_bit():
    tensors = [torch.randn(50, generator=generator(1)), torch.tensor(3)]
    for count in (1, 10):
        mean = MeanWeights()
        for _ in range(count):
            mean.add(tensors, 1 / count)
        assert all(torch.equal(a, b) for a, b in zip(mean.values(), tensors, strict=True))


def test_complex_weights_are_averaged_and_truth_values_are_whether_any_is_true():
    mean = MeanWeights()
    mean.add([torch.tensor([1 + 2j, 4j]), torch.tensor([False, True, False])], 0.25)
    mean.add([torch.tensor([5 - 2j, 0j]), torch.tensor([False, False, True])], 0.75)
    weights, truth = mean.values()
    assert weights.tolist() == [4 - 1j, 1j]
    assert truth.tolist() == [False, True, True]


def flat(parameters: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def gradient(weights: Tensor, batch: Any) -> Tensor:
    """Of the mean cross-entropy at a vector of weights, by autograd."""
    model = tiny_mlp().double()
    given = weights.clone().requires_grad_()
    parts = given.split([parameter.numel() for parameter in model.parameters()])
    named = {
        name: part.view_as(parameter) for (name, parameter), part in zip(model.named_parameters(), parts, strict=True)
    }
    loss = F.cross_entropy(torch.func.functional_call(model, named, (batch.inputs,)), batch.targets)
    (found,) = torch.autograd.grad(loss, given)
    return found


def clipped(vector: Tensor, most: float | None) -> Tensor:
    return vector if most is None else vector * min(1.0, most / (vector.norm().item() + 1e-6))


def by_hand(run: Any, start: Tensor, steps: list[Any]) -> Tensor:
    """Every round of a run written out: its server's weights, from the batches that its steps were given."""
    task, recipe = run.task, run.recipe
    server, left, kept = start, list(steps), {}
    for epoch in range(1, run.epochs + 1):
        run.epoch_number = epoch
        rate = recipe.lr * recipe.factor ** (epoch - 1) if recipe.schedule == "exponential" else recipe.lr
        ends, sizes = [], []
        for client in task.chosen(run):
            weights = server.clone()
            for _ in range(task.local_epochs * task._clients[client].steps(recipe.batch)):
                at, batch = left.pop(0)
                assert at == epoch
                assert set(batch.index.tolist()) <= set(task._clients[client].indices.tolist())
                here = gradient(weights, batch)
                if isinstance(task, FedAvg):
                    direction = clipped(here, recipe.clip)
                elif isinstance(task, FedProx):
                    direction = clipped(here + task.proximal * (weights - server), recipe.clip)
                else:
                    ahead = gradient(weights + task.rho * here / (here.norm() + 1e-7), batch)
                    looked = (1 - task.alpha) * here + task.alpha * ahead
                    h = kept.get(client, torch.zeros_like(server))
                    direction = clipped(looked + task.proximal * (h - server), recipe.clip) + task.proximal * weights
                weights = weights - rate * (direction + recipe.decay * weights)
            kept[client] = kept.get(client, torch.zeros_like(server)) + weights - server
            ends.append(weights)
            sizes.append(len(task._clients[client]))
        uniform = task.weighting == "uniform"
        shares = [1 / len(ends)] * len(ends) if uniform else [size / sum(sizes) for size in sizes]
        server = sum((share * end for share, end in zip(shares, ends, strict=True)), torch.zeros_like(server))
        if isinstance(task, FedSpeed):
            server = server + sum(kept.values(), torch.zeros_like(server)) / task.clients
    assert not left
    return server


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (FedAvg, {}),
        (FedAvg, {"weighting": "size", "split": "dirichlet-by-class", "concentration": 3.0}),
        (FedProx, {"proximal": 0.7}),
        (FedProx, {"proximal": 0.7, "weighting": "size", "split": "dirichlet-by-class", "concentration": 3.0}),
        (FedSpeed, {"proximal": 0.7, "rho": 0.3}),
        (FedSpeed, {"proximal": 0.7, "rho": 0.3, "alpha": 0.4, "split": "dirichlet"}),
    ],
)
@pytest.mark.parametrize(("clip", "accumulate"), [(None, 1), (0.05, 2)])
def test_rounds_are_their_formulas(kind, given, clip, accumulate):
    """Of 5 clients 3 are active, so that in 4 rounds some come back with what they kept."""
    task, steps = small(kind, clients=5, **given), Steps()
    run = double_run(
        [steps], task=task, data=vectors(50), batch=4, epochs=4, lr=0.3, clip=clip, accumulate=accumulate,
        decay=0.01, schedule="exponential", factor=0.9,
    )  # fmt: skip
    start = flat(run.model.parameters())
    run.train()
    assert len({tuple(task.chosen(_at(run, epoch))) for epoch in range(1, 5)}) > 1
    torch.testing.assert_close(flat(run.model.parameters()), by_hand(run, start, steps.seen), rtol=1e-9, atol=1e-11)


def _at(run: Any, epoch: int) -> Any:
    run.epoch_number = epoch
    return run


def test_without_its_term_fedprox_is_fedavg_to_the_bit():
    runs = [double_run(task=task, epochs=3) for task in (small(), small(FedProx, proximal=0.0))]
    for run in runs:
        run.train()
    assert_same_state(*(state(run.model) for run in runs))


def test_one_seed_splits_and_chooses_alike_for_every_algorithm_and_another_otherwise():
    def drawn(kind: type, seed: int) -> Any:
        run = double_run(task=small(kind, split="dirichlet"), seed=seed)
        return [each.indices.tolist() for each in run.task._clients], [run.task.chosen(_at(run, e)) for e in (1, 2, 3)]

    found = [drawn(kind, 7) for kind in ALGORITHMS.values()]
    assert found[0] == found[1] == found[2]
    assert drawn(FedAvg, 8) != found[0]


def test_local_epochs_and_clients_of_one_size_take_their_samples_in_other_orders():
    steps = Steps()
    run = double_run([steps], task=FedAvg(clients=2, active=2, local_epochs=3), data=vectors(40), batch=20, epochs=2)
    run.train()
    within = [
        tuple(run.task._clients[client].indices.tolist().index(place) for place in batch.index.tolist())
        for client, (_, batch) in zip([0, 0, 0, 1, 1, 1] * 2, steps.seen, strict=True)
    ]
    assert len(set(within)) == len(within) == 12


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential"])
def test_the_learning_rate_is_one_for_all_clients_of_a_round(schedule):
    steps = Steps()
    run = double_run([steps], task=small(), epochs=5, lr=1.0, schedule=schedule, factor=0.998)
    run.train()
    for epoch in range(1, 6):
        rates = {rate for rate, (at, _) in zip(steps.rates, steps.seen, strict=True) if at == epoch}
        (rate,) = rates
        assert rate == run.recipe.lr_at((epoch - 1) / 5)
        if schedule == "exponential":
            assert rate == pytest.approx(0.998 ** (epoch - 1))


def test_running_statistics_are_averaged_and_batches_seen_are_the_most():
    sizes = (4, 12)

    class Two(FedAvg):
        def setup(self, run):
            super().setup(run)
            self._clients = [run.data.subset(part) for part in torch.arange(16).split(sizes)]
            self.ends: list[dict[str, Tensor]] = []

        def end_client(self, run, client):
            self.ends.append(state(run.model))

    task = Two(clients=2, active=2, local_epochs=1, weighting="size")
    run = make_run((), tiny_cnn, digits(16), task, batch=4, epochs=1)
    run.train()
    found, (one, other) = state(run.model), task.ends
    torch.testing.assert_close(found["1.running_var"], one["1.running_var"] / 4 + other["1.running_var"] * 3 / 4)
    assert not torch.equal(one["1.running_var"], other["1.running_var"])
    assert (one["1.num_batches_tracked"], found["1.num_batches_tracked"]) == (1, 3)


def test_looking_ahead_shows_a_batch_to_the_running_statistics_once():
    run = make_run((), tiny_cnn, digits(24), FedSpeed(clients=1, active=1, local_epochs=1), batch=8, epochs=1)
    run.train()
    assert run.model[1].num_batches_tracked == 3


def test_what_a_client_keeps_is_its_own_moves_and_stays_where_it_is_not_active():
    task = small(FedSpeed, clients=6, active=2)
    run = double_run(task=task, epochs=2)
    run.train_epoch(1)
    first = task.chosen(run)
    assert sorted(task._moves) == first
    before = {client: flat(moves.values()) for client, moves in task._moves.items()}
    run.train_epoch(2)
    second = task.chosen(run)
    for client in first:
        assert torch.equal(flat(task._moves[client].values()), before[client]) == (client not in second)
    total = sum(flat(moves.values()) for moves in task._moves.values())
    torch.testing.assert_close(flat(task._moves_sum.values()), total)


@each_algorithm
def test_a_run_begins_with_nothing_kept_though_its_task_was_used(kind):
    """A trial that is begun again is another run: the same seed, the same weights."""
    task = small(kind)
    ends = []
    for _ in range(2):
        run = double_run(task=task, epochs=2)
        run.train()
        ends.append(state(run.model))
    assert_same_state(*ends)


def test_a_parameter_that_rests_stays_and_is_not_sent():
    for kind in ALGORITHMS.values():
        run = double_run(task=small(kind), epochs=2)
        frozen = run.model[0].weight.requires_grad_(False)
        before = frozen.clone()
        run.train()
        assert torch.equal(frozen, before)
        learning = sum(p.numel() for p in run.model.parameters() if p is not frozen)
        assert run.task.diagnostics()["rounds"][0]["sent_up_b"] == 3 * 8 * learning


# ── what a round is and sends ─────────────────────────────────────────────────────────────────────────────────────────


@each_algorithm
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_estimate_is_what_is_counted_and_an_epoch_is_a_round(kind, accumulate):
    """Clients of other sizes: 90 FLOPs forward, 90 for dW and 30 for dX a sample and pass."""
    counter = StepCounter(10**6)
    task = small(kind, split="dirichlet-by-class", concentration=3.0)
    run = double_run(task=task, data=vectors(50), batch=4, epochs=4, counter=counter, accumulate=accumulate)
    ledger = trace_run(run, CPU).lines
    samples = sum(len(task._clients[c]) for e in range(1, 5) for c in task.chosen(_at(run, e)))
    run.train()
    plain, work = works(ledger, run)
    passes = 2 if kind is FedSpeed else 1
    counted = counter.result(run).counted_flop
    assert counted == 210 * samples * task.local_epochs * passes
    assert plain.flop == pytest.approx(counted, rel=1e-9)
    assert work.flop == pytest.approx(counted, rel=1e-9)
    assert run.tally.samples_forward == samples * task.local_epochs * passes
    assert (run.tally.epochs_trained, run.tally.steps) == (
        4,
        sum(task.passes(_at(run, e)).updates for e in range(1, 5)),
    )


@each_algorithm
def test_a_sampled_round_draws_the_server_s_update_and_visits_no_client(kind):
    counter = StepCounter(10**6)
    sampled, steps, task = method("gradsamp", skip="every:3"), Steps(), small(kind, split="dirichlet")
    # Hundreds of elements in each tensor, so that it is fitted, and clients that move
    wide = lambda: nn.Sequential(nn.Linear(6, 60), nn.Tanh(), nn.Linear(60, 3)).double()  # noqa: E731
    run = double_run([sampled, steps], model=wide, task=task, data=vectors(60), epochs=6, counter=counter, lr=0.2)
    ledger = trace_run(run, CPU).lines
    servers = {0: flat(run.model.parameters())}
    run.train(lambda run: servers.__setitem__(run.epoch_number, flat(run.model.parameters())))
    assert {epoch for epoch, _ in steps.seen} == {1, 2, 4, 5}
    torch.testing.assert_close(flat(sampled._update), servers[5] - servers[4])  # of the round before the last draw
    assert not torch.equal(servers[6], servers[5])
    told = task.diagnostics()
    assert [each["epoch"] for each in told["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert [each["clients"] for each in told["rounds"]] == [3, 3, 0, 3, 3, 0]
    model_b = 8 * sum(parameter.numel() for parameter in run.model.parameters())
    assert [each["sent_down_b"] for each in told["rounds"]] == [3 * model_b * real for real in (1, 1, 0, 1, 1, 0)]
    assert told["summary"] | {"sent_up_b": 12 * model_b, "sent_down_b": 12 * model_b} == told["summary"]
    assert (told["summary"]["rounds"], told["summary"]["rounds_without_clients"]) == (6, 2)
    assert run.tally.epochs_trained == 4
    result = counter.result(run)
    assert works(ledger, run)[1].flop == pytest.approx(result.counted_flop - result.outside_steps_flop, rel=1e-3)


def test_what_is_sent_are_weights_and_running_statistics():
    run = make_run((), tiny_cnn, digits(48), small(), batch=8, epochs=2)
    run.train()
    of_model = [*run.model.parameters(), *run.model.buffers()]
    one_b = sum(tensor.numel() * tensor.element_size() for tensor in of_model)
    assert [each["sent_up_b"] for each in run.task.diagnostics()["rounds"]] == [3 * one_b] * 2
    assert run.task.diagnostics()["rounds"][0]["samples"] == 36


def test_timing_a_step_trains_nothing():
    for kind in ALGORITHMS.values():
        run = double_run(task=small(kind))
        before = state(run.model)
        assert time_step(run) > 0
        assert_same_state(state(run.model), before)


def test_show_prints_what_was_summed_up():
    trial: Any = SimpleNamespace(
        diagnostics={"gradsamp": {"fits": []}, "fedavg": {"summary": {"rounds": 1200, "sent_up_b": 15_500_000}}}
    )
    console = Console(file=io.StringIO(), width=200)
    show._print_summaries(trial, console)
    assert console.file.getvalue() == "  fedavg: rounds 1,200, sent up 15.5 MB\n"  # type: ignore[attr-defined]


def test_rounds_add_up_to_the_training_and_scopes_stand_side_by_side():
    """A round's FLOPs go by samples, its joules by seconds; a module's joules hold its GPU's and are not added."""
    rounds = [
        {"epoch": 1, "clients": 2, "samples": 30, "sent_down_b": 80, "sent_up_b": 80},
        {"epoch": 2, "clients": 0, "samples": 0, "sent_down_b": 0, "sent_up_b": 0},
        {"epoch": 3, "clients": 2, "samples": 10, "sent_down_b": 80, "sent_up_b": 80},
    ]
    energy = [
        Energy(source="gpu_counter", scope="gpu", device="0", energy_j=500.0),
        Energy(source="meter(board)", scope="module", energy_j=800.0),
        Energy(source="model(codecarbon cpu_load)", scope="cpu", energy_j=77.0),
        Energy(source="unavailable", scope="dram", reason="none"),
    ]
    trial: Any = SimpleNamespace(
        diagnostics={"gradsamp": {"rounds": "no list"}, "fedavg": {"rounds": rounds}},
        estimate=SimpleNamespace(estimated_flop=4e9),
        curve=[{"epoch": 1.0, "wall_s": 6.0}, {"epoch": 2.0, "wall_s": 6.5}, {"epoch": 3.0, "wall_s": 10.0}],
        train=SimpleNamespace(wall_s=10.0, energy=energy),
    )
    told = show_rounds.rounds_of(trial)
    assert [each.flop for each in told] == [3e9, 0.0, 1e9]
    assert [each.wall_s for each in told] == pytest.approx([6.0, 0.5, 3.5])
    assert [each.energy_j["gpu 0"] for each in told] == pytest.approx([300.0, 25.0, 175.0])
    assert sum(each.energy_j["module"] for each in told) == pytest.approx(800.0)
    assert set(told[0].energy_j) == {"gpu 0", "module"}  # what is modelled is not beside what is measured
    console = Console(file=io.StringIO(), width=100)
    show_rounds.print_rounds(trial, console)
    assert "FLOPs by a round's samples, energy by its seconds" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_only_looks_like_rounds_and_what_is_not_known_is_not_made_up():
    noted = {"epoch": 1, "clients": 1, "samples": 4, "sent_down_b": 8, "sent_up_b": 8}
    bare: Any = SimpleNamespace(diagnostics={"fedavg": {"rounds": [noted]}}, estimate=None, curve=[], train=None)
    (only,) = show_rounds.rounds_of(bare)
    assert (only.flop, only.wall_s, only.energy_j, only.sent_up_b) == (None, None, {}, 8)
    for odd in ([noted | {"samples": -1}], [noted | {"clients": "x"}], [3], [], {"epoch": 1}):
        bare.diagnostics = {"other": {"rounds": odd}}
        assert show_rounds.rounds_of(bare) == []


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


@each_algorithm
@pytest.mark.parametrize(
    "wrong",
    [
        {"active": 5, "clients": 4},
        {"clients": 0},
        {"local_epochs": 0},
        {"split": "pathological"},
        {"concentration": 0.0},
        {"rounds": 3},
        {"proximal": -1.0},
    ],
)
def test_parameters_that_cannot_be_are_refused(kind, wrong):
    with pytest.raises(UsageError):
        discovery.build(kind, kind.name, wrong)


@pytest.mark.parametrize(("kind", "wrong"), [(FedAvg, "proximal"), (FedProx, "rho"), (FedSpeed, "weighting")])
def test_a_parameter_of_another_algorithm_is_none(kind, wrong):
    with pytest.raises(UsageError, match=f"takes no parameter '{wrong}'"):
        discovery.build(kind, kind.name, {wrong: 0.1})


def test_a_warm_up_and_too_few_samples_are_refused_in_words():
    with pytest.raises(UsageError, match="in a warm-up's first it would be 0"):
        double_run(task=small(), warmup_epochs=1.0, epochs=4)
    with pytest.raises(UsageError, match="'fedavg': 100 clients cannot share 24 samples"):
        double_run(task=FedAvg())


def test_rates_by_name_are_refused_where_the_task_moves_the_weights_itself():
    with pytest.raises(UsageError, match="'fedspeed' replaces `update`"):
        double_run(task=small(FedSpeed), lr_multipliers={"0.*": 0.5}).train()
    double_run(task=small(FedProx), lr_multipliers={"0.*": 0.5}).train()


# ── every method ──────────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED = {"fedavg": set[str](), "fedprox": {"mezo", "low"}, "fedspeed": {"mezo", "low", "ultimate", "scotti", "sgld"}}


@each_algorithm
@pytest.mark.parametrize("name", SOURCES)
def test_every_method_trains_it_or_is_refused_in_words(name, kind):
    stacked, task = method(name), small(kind, split="dirichlet")
    problems = check_stack([stacked], task)
    if name in REFUSED[kind.name]:
        assert {problem.code for problem in problems} == {"E310"}
        assert all(f"'{name}' cannot train the task '{kind.name}'" in problem.hint for problem in problems)
        return
    assert problems == []
    run = run_or_refusal(
        lambda: make_run([stacked], tiny_cnn, digits(64, ("flip",)), task, batch=8, epochs=5, momentum=0.9, lr=0.02)
    )
    if run is None:
        return
    run.train()
    assert run.uncalled_overrides() == []
    assert all(math.isfinite(point["loss"]) for point in run.curve if point["loss"] is not None)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    assert set(run.evaluate(run.data)) == {"accuracy", "loss"}
    run.finish()
    assert [type(module) for module in run.model.modules()] == [type(module) for module in tiny_cnn().modules()]


@pytest.mark.parametrize("name", ["importance", "with_replacement", "dlis"])
def test_what_a_method_draws_is_drawn_anew_for_each_client_and_local_epoch(name):
    given: dict[str, Any] = {"threshold": 0.0} if name == "dlis" else {}
    steps, task = Steps(), FedAvg(clients=2, active=2, local_epochs=3)
    run = double_run([method(name, **given), steps], task=task, data=vectors(40), batch=20, epochs=3, lr=0.0)
    run.train()
    last = [batch for epoch, batch in steps.seen if epoch == 3]
    homes = [task._clients[client].indices.tolist() for client in (0, 0, 0, 1, 1, 1)]
    within = [
        tuple(home.index(place) for place in batch.index.tolist()) for batch, home in zip(last, homes, strict=True)
    ]
    assert len(set(within)) == 6


def test_a_memory_of_importances_is_each_client_s_own():
    kept = method("importance")
    run = double_run([kept], task=FedAvg(clients=3, active=3, local_epochs=2), data=vectors(30), batch=5, epochs=3)
    run.train()
    assert kept.diagnostics()["parts"] == 3
    assert [len(memory.sampler) for memory in kept._memories] == [10, 10, 10]


def test_learned_rates_begin_anew_with_each_client_and_do_not_pile_up():
    learned, counter = method("ultimate", hyper_lr=0.01), StepCounter(10**6)
    run = double_run([learned], task=small(), data=vectors(50), batch=4, epochs=4, counter=counter)
    ledger = trace_run(run, CPU).lines
    run.train()
    assert len(learned._optimizers) == 1
    assert len(learned.diagnostics()["epochs"]) == 4
    assert works(ledger, run)[1].flop == pytest.approx(counter.result(run).counted_flop, rel=1e-3)


@each_algorithm
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_micro_batches_and_clipping(kind, precision):
    run = make_run(
        (), tiny_cnn, digits(48), small(kind), batch=8, epochs=2, precision=precision, accumulate=2, clip=1.0
    )
    run.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


@each_algorithm
def test_it_learns(kind):
    task = small(kind, split="dirichlet", proximal=1.0) if kind is not FedAvg else small(split="dirichlet")
    run = make_run(
        (), lambda: models.build("mlp", (1, 8, 8), 10, {}), digits(400), task, batch=10, epochs=8, momentum=0.0
    )
    before = run.evaluate(run.data)["accuracy"]
    run.train()
    assert run.evaluate(run.data)["accuracy"] > max(0.6, before)


# ── models and suites ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_lenet_has_the_parameters_of_the_simulator_s():
    model = models.build("lenet", (3, 32, 32), 10, {})
    convolutions = (3 * 25 + 1) * 64 + (64 * 25 + 1) * 64
    linear = (64 * 5 * 5 + 1) * 384 + (384 + 1) * 192 + (192 + 1) * 10
    assert sum(parameter.numel() for parameter in model.parameters()) == convolutions + linear
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    narrow = models.build("lenet", (1, 28, 20), 3, {"channels": [4], "hidden": []})
    assert narrow(torch.zeros(1, 1, 28, 20)).shape == (1, 3)


def test_its_normalisation_is_group_wise_and_keeps_no_statistics():
    ours, plain = (models.build(name, (3, 32, 32), 10, {}) for name in ("resnet18_groupnorm", "resnet18"))
    kinds = [[type(module) for module in model.modules()] for model in (ours, plain)]
    assert kinds[0] == [nn.GroupNorm if kind is nn.BatchNorm2d else kind for kind in kinds[1]]
    assert not list(ours.buffers())
    assert ours.layer4[0].bn1.num_groups == 2
    assert models.build("resnet18_groupnorm", (1, 32, 32), 4, {})(torch.zeros(1, 1, 32, 32)).shape == (1, 4)
    grouped = models.build("lenet", (1, 28, 28), 10, {"channels": [6, 8], "groups": 2})
    assert [m.num_channels for m in grouped.modules() if isinstance(m, nn.GroupNorm)] == [6, 8]


@pytest.mark.parametrize("wrong", [{"channels": [4, 4, 4, 4]}, {"channels": [5], "groups": 2}, {"depth": 3}])
def test_a_lenet_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError) as refused:
        models.build("lenet", (1, 28, 28), 10, wrong)
    assert refused.value.problems[0].code == "E401"


@cache
def traced_suite(name: str) -> Any:
    """What is known of a shipped suite where there are no data."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.delenv("ENERGYBENCH_DATA", raising=False)
        spec = spec_of(load(ROOT / "suites" / f"{name}.toml"), Path(folder), device="cpu", download=False)
        return planner.Plan(spec.model_copy(update={"purpose": "trace"})).result()


@pytest.mark.parametrize("name", ["tasks-federated", "paper-gradsamp-federated"])
def test_its_suites_are_traced_where_there_are_no_data(name):
    found = traced_suite(name)
    assert not found.problems
    assert all(known.ledger for known in found.workloads.values())


def test_the_paper_s_rounds_have_their_samples_and_steps():
    """10 clients of 500 samples, 5 local epochs, batch 50."""
    for workload, known in traced_suite("paper-gradsamp-federated").workloads.items():
        assert (known.steps, known.epochs) == (500, 1000), workload


def test_all_algorithms_are_federated_and_say_what_they_are():
    for name, kind in ALGORITHMS.items():
        assert issubclass(kind, Federated)
        assert (kind.name, kind.lr_per_epoch) == (name, True)
