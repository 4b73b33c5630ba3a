"""Every pass over data has an order of its own, and plain training's only pass the one that it always had."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import FedProx
from support import assert_same_state, digits, double_run, make_run, state, vectors
from torch import Tensor

from energybench.common.hashing import stable_seed
from energybench.train.method import Method


def as_before(count: int, epoch: int, seed: int = 7) -> Tensor:
    """Plain training's order, as every version has drawn it."""
    generator = torch.Generator().manual_seed(stable_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator)


def taken(batches) -> list[int]:
    return [place for batch in batches for place in batch.index.tolist()]


def different(orders: list[list[int]]) -> bool:
    return all(one != other for one, other in itertools.combinations(orders, 2))


@given(st.integers(1, 40), st.integers(1, 10))
def test_plain_training_s_order_is_what_it_was(count: int, epoch: int) -> None:
    run = double_run(data=vectors(count), batch=4)
    run.epoch_number = epoch
    expected = as_before(count, epoch)
    assert run.order(run.data).tolist() == expected.tolist()  # who asks before changes nothing
    assert run.order(run.data).tolist() == expected.tolist()
    assert taken(run.batches(run.data)) == expected.tolist()


def test_a_method_that_leaves_samples_out_keeps_their_order_too() -> None:
    """One pass an epoch: to the bit what it was, whatever part of the set it is over."""
    run = double_run(data=vectors(24), batch=4)
    part = run.data.subset(torch.arange(3, 23))
    for epoch in (1, 2):
        run.epoch_number = epoch
        assert taken(run.batches(part)) == (as_before(20, epoch) + 3).tolist()


def test_clients_of_one_size_and_local_epochs_of_one_client_differ() -> None:
    run = double_run(data=vectors(60), batch=4)
    clients = [run.data.subset(places) for places in torch.arange(60).split(20)]
    orders = [
        [place - 20 * number for place in taken(run.batches(client))]
        for number, client in enumerate(clients)
        for _ in range(3)
    ]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert different(orders)


def test_loops_of_order_and_load_differ_from_pass_to_pass_too() -> None:
    run = double_run(data=vectors(20), batch=4)
    orders = [taken(run.load(run.data, run.data.cut(run.order(run.data), 4))) for _ in range(3)]
    assert different(orders)
    assert orders[0] == as_before(20, 1).tolist()


def test_two_passes_at_once_differ() -> None:
    run = double_run(data=vectors(20), batch=4)
    first, second = run.batches(run.data), run.batches(run.data)
    pairs = [(one.index.tolist(), other.index.tolist()) for one, other in zip(first, second, strict=True)]
    one, other = ([place for pair in pairs for place in pair[side]] for side in (0, 1))
    assert one == as_before(20, 1).tolist()
    assert sorted(other) == sorted(one)
    assert one != other


def test_a_pass_that_was_broken_off_is_over() -> None:
    run = double_run(data=vectors(20), batch=4)
    firsts = []
    for _ in range(3):
        for batch in run.batches(run.data):
            firsts.append(batch.index.tolist())
            break
    assert different(firsts)


def test_an_order_depends_on_the_data_and_the_pass_and_not_on_who_came_before() -> None:
    def of_last(others: int) -> list[list[int]]:
        run = double_run(data=vectors(60), batch=4)
        clients = [run.data.subset(places) for places in torch.arange(60).split(20)]
        for client in clients[:others]:
            list(run.batches(client))
        return [taken(run.batches(clients[2])) for _ in range(2)]

    assert of_last(1) == of_last(2)


def test_the_same_pass_of_another_epoch_differs_and_of_another_run_is_the_same() -> None:
    def orders(epochs: int) -> list[list[int]]:
        run = double_run(data=vectors(40), batch=4)
        part = run.data.subset(torch.arange(20))
        found = []
        for epoch in range(1, epochs + 1):
            run.epoch_number = epoch
            found += [taken(run.batches(part)) for _ in range(2)]
        return found

    assert different(orders(3))
    assert orders(3) == orders(3)


def test_augmentation_differs_from_pass_to_pass_and_plain_training_s_is_what_it_was() -> None:
    run = make_run(data=digits(32, ["flip", "crop2"]), batch=32)
    passes = [next(iter(run.batches(run.data))) for _ in range(2)]
    straight = [batch.inputs[batch.index.argsort()] for batch in passes]
    assert not torch.equal(*straight)
    generator = torch.Generator().manual_seed(stable_seed(7, "augment", 1, 0))
    expected = next(run.data.load([as_before(32, 1)], lambda number: generator))
    assert torch.equal(passes[0].inputs, expected.inputs)


def test_a_probe_is_loaded_as_before_and_takes_no_pass() -> None:
    run = make_run(data=digits(64, ["flip"]), batch=32)
    probe = run.data.subset(torch.arange(16))
    generator = torch.Generator().manual_seed(stable_seed(7, "augment", 1, 0))
    expected = next(probe.load([torch.arange(16)], lambda number: generator))
    assert torch.equal(next(iter(run.load(probe, [torch.arange(16)]))).inputs, expected.inputs)
    assert taken(run.batches(run.data)) == as_before(64, 1).tolist()


@pytest.mark.parametrize("name", ["importance", "dlis", "low"])
def test_methods_that_ask_for_the_order_themselves_train_the_first_epoch_in_plain_order(name: str) -> None:
    from energybench.train import discovery

    kind = discovery.load(discovery.find(name, None, ""))
    run = double_run([discovery.build(kind, name, dict(kind.example))], data=vectors(20), batch=4)
    if name == "dlis":
        run.methods[0].threshold = 100.0  # shut
    assert taken(run.batches(run.data)) == as_before(20, 1).tolist()


def test_rounds_train_alike_twice_and_a_method_that_does_nothing_changes_none_of_them() -> None:
    class Nothing(Method):
        name = "nothing-at-all"

        def batches(self, run, data, inner):
            run.order(data)
            return inner(data)

    runs = [double_run(stack, task=FedProx(), batch=4, epochs=3) for stack in ([], [], [Nothing()])]
    for run in runs:
        run.train()
    assert_same_state(state(runs[0].model), state(runs[1].model))
    assert_same_state(state(runs[0].model), state(runs[2].model))
    assert runs[0].samples_sha256() == runs[2].samples_sha256()
