"""Further parts of a data set: as many samples beside each batch, in endless passes of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, assert_same_state, make_run, state, tiny_mlp

from energybench.common.errors import UsageError
from energybench.common.hashing import stable_seed
from energybench.train import discovery
from energybench.train.batch import Batch, Forward
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.images import Images
from energybench.train.method import Method
from energybench.train.part_streams import PartStreams
from energybench.train.run import Run
from energybench.train.trees import split
from energybench.trial.control_run import ControlRun
from energybench.workloads.tasks.classification import Classification

SAMPLES, TARGET, BATCH = 20, 7, 8


class Adapting(Classification):
    """Cross-entropy on the batch, and the entropy of the predictions on what is beside it."""

    name = "adapting"
    batch_parts = ("target",)

    def forward(self, run, batch):
        plain = super().forward(run, batch)
        other = batch.also["target"]
        assert len(other) == len(batch)
        assert other.targets is None
        chances = run.model(other.inputs).softmax(1)
        entropy = -(chances * chances.log()).sum(1).mean()
        each = plain.each + 0.1 * entropy
        return Forward(each.mean(), each, plain.outputs)


class Spy(Method):
    """Every batch as it is trained on."""

    name = "spy"

    def setup(self, run):
        self.batches_seen: list[Batch] = []

    def gradients(self, run, batch, inner):
        self.batches_seen.append(batch)
        return inner(batch)

    def beside(self, name: str = "target") -> list[int]:
        return [index for batch in self.batches_seen for index in batch.also[name].index.tolist()]


def data(samples: int = SAMPLES, target: int = TARGET) -> Data:
    random = torch.Generator().manual_seed(3)
    inputs = torch.randn(samples, 6, generator=random)
    part = Data(Resident(torch.randn(target, 6, generator=random), None, CPU), facts=Facts("none"))
    labels = torch.randint(3, (samples,), generator=random)
    return Data(Resident(inputs, labels, CPU), parts={"target": part})


def method(use: str, **parameters: Any) -> Method:
    kind = discovery.load(discovery.sources()[use])
    return discovery.build(kind, use, dict(kind.example) | parameters)


def trained(*methods: Method, **settings: Any) -> tuple[Run, Spy]:
    spy = Spy()
    defaults = {"model": tiny_mlp, "data": data(), "task": Adapting(), "batch": BATCH, "epochs": 3}
    run = make_run([spy, *methods], **defaults | settings)
    run.train()
    return run, spy


# ── the stream ────────────────────────────────────────────────────────────────────────────────────────────────────────


def seeded(*key: Any) -> torch.Generator:
    return torch.Generator().manual_seed(stable_seed(*key))


@given(st.integers(1, 12), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_every_pass_has_each_sample_once_whatever_the_batches(count, sizes):
    part = Data(Resident(torch.arange(count), None, CPU))
    streams = PartStreams(seeded)
    batches = [streams.batch("target", part, size) for size in sizes]
    assert [len(batch) for batch in batches] == sizes
    seen = [index for batch in batches for index in batch.index.tolist()]
    for start in range(0, len(seen), count):
        one_pass = seen[start : start + count]
        assert len(set(one_pass)) == len(one_pass)  # whole passes, and a beginning
    assert all(torch.equal(batch.inputs, batch.index) for batch in batches)


def test_without_a_source_of_chance_a_part_comes_in_order():
    part = Data(Resident(torch.arange(3), None, CPU))
    streams = PartStreams()
    assert streams.batch("a", part, 5).index.tolist() == [0, 1, 2, 0, 1]
    assert streams.batch("a", part, 2).index.tolist() == [2, 0]
    assert streams.batch("b", part, 1).index.tolist() == [0]


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_batch_has_as_many_samples_of_the_part_and_its_passes_go_on_over_the_epochs():
    _, spy = trained()
    assert [len(batch) for batch in spy.batches_seen] == [8, 8, 4] * 3
    assert [len(batch.also["target"]) for batch in spy.batches_seen] == [8, 8, 4] * 3
    seen = spy.beside()
    passes = [seen[start : start + TARGET] for start in range(0, len(seen), TARGET)]
    assert all(sorted(one) == list(range(TARGET)) for one in passes[:-1])
    assert len({tuple(one) for one in passes[:-1]}) > 1  # each in an order of its own


def test_the_orders_are_the_seeds_own_and_do_not_move_the_batches():
    (_, first), (_, again), (_, other) = trained(), trained(), trained(seed=8)
    assert first.beside() == again.beside() != other.beside()
    plain = Spy()
    run = make_run([plain], model=tiny_mlp, data=data(), batch=BATCH, epochs=3)
    run.train()
    assert all(not batch.also for batch in plain.batches_seen)
    indices = [[batch.index.tolist() for batch in spy.batches_seen] for spy in (plain, first)]
    assert indices[0] == indices[1]


@pytest.mark.parametrize(
    ("use", "parameters"),
    [
        ("importance", {}),
        ("dlis", {"threshold": 0.0}),
        ("low", {}),
        ("with_replacement", {}),
        ("importance", {"score": "loss"}),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_methods_that_choose_samples_have_the_part_beside_theirs(use, parameters, accumulate):
    run, spy = trained(method(use, **parameters), accumulate=accumulate)
    assert [len(batch.also["target"]) for batch in spy.batches_seen] == [8, 8, 4] * 3
    assert run.methods[1].acted is not False


@pytest.mark.parametrize("score", ["parameter-gradient", "last-layer-gradient"])
def test_a_score_that_takes_a_batch_apart_is_refused_where_it_has_something_beside_it(score):
    with pytest.raises(UsageError) as refused:
        trained(method("importance", score=score))
    assert refused.value.problems[0].code == "E312"
    assert "beside" in refused.value.problems[0].message


def test_a_control_of_so_many_steps_trains_as_plain_training_does():
    whole, spy = trained()
    control = ControlRun(Adapting(), [watch := Spy()], whole.recipe, tiny_mlp(), data(), seed=7, device=CPU, steps=9)
    control.model.load_state_dict(trained_from(whole))
    control.train()
    assert watch.beside() == spy.beside()
    assert_same_state(state(control.model), state(whole.model))


def trained_from(run: Run) -> dict[str, Any]:
    """The weights that a run of the same seed begins with."""
    return make_run(model=tiny_mlp, data=data(), task=Adapting(), batch=BATCH, epochs=run.epochs).model.state_dict()


class Forgetful(Adapting):
    """What it adds for the batch is in its loss, and in no sample's."""

    def forward(self, run, batch):
        whole = super().forward(run, batch)
        return Forward(whole.value, whole.each - 0.5, whole.outputs)


def test_a_task_whose_samples_losses_lack_what_it_adds_is_refused_before_a_method_weighs_them():
    with pytest.raises(UsageError) as refused:
        trained(task=Forgetful())
    (problem,) = refused.value.problems
    assert problem.code == "E403"
    assert "each sample's loss" in problem.hint


def test_weighted_samples_keep_what_the_task_adds_for_the_part():
    """The gradient of a batch whose weights are all 1 is that of the batch without weights."""
    gradients = []
    for weights in (None, torch.ones(BATCH)):
        run = make_run(model=tiny_mlp, data=data(), task=Adapting(), batch=BATCH)
        batch = next(iter(run.data.load([torch.arange(BATCH)])))
        run.gradients(replace(batch, weights=weights))
        gradients.append([parameter.grad.clone() for parameter in run.model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_skipped_epoch_leaves_the_part_where_it_was():
    class Skips(Method):
        def epoch(self, run, data, inner):
            if run.epoch_number != 2:
                inner(data)

    (_, skipping), (_, plain) = trained(Skips()), trained(epochs=2)
    assert skipping.beside() == plain.beside()


def test_a_clients_share_of_the_data_keeps_the_parts_beside_it():
    whole = data().zipped(("target",))
    client = whole.subset(torch.tensor([4, 2]), "client 1")
    batch = next(client.load([torch.arange(2)]))
    assert (batch.index.tolist(), batch.also["target"].index.tolist()) == ([4, 2], [0, 1])


def test_micro_batches_share_what_is_beside_their_batch():
    batch = next(data().zipped(("target",)).load([torch.arange(8)]))
    pieces = split(batch, 3)
    shared = torch.cat([piece.also["target"].index for piece in pieces])
    assert shared.tolist() == [*range(TARGET), 0]


def test_in_order_has_nothing_beside_it():
    assert all(not batch.also for batch in data().zipped(("target",)).in_order())


def test_layers_that_change_inputs_change_those_of_the_part_too():
    class Negates(Method):
        name = "negates"

        def prepare_inputs(self, run, inputs):
            return -inputs

    (_, plain), (_, negated) = trained(), trained(Negates())
    for one, other in zip(plain.batches_seen, negated.batches_seen, strict=True):
        assert torch.equal(one.also["target"].inputs, -other.also["target"].inputs)


def test_a_part_is_augmented_anew_in_each_batch_and_normalised_as_the_training_set():
    pixels = torch.arange(2 * 36).view(2, 1, 6, 6).to(torch.uint8)
    images = Images([0.5], [0.25], ["flip", "crop2"], CPU)
    part = Data(Resident(pixels, None, CPU), images, facts=Facts("none"))
    streams = PartStreams(seeded)
    batches = [streams.batch("target", part, 2) for _ in range(6)]
    whole = {tuple(image.flatten().tolist()) for batch in batches for image in batch.inputs}
    assert len(whole) > 4
    again = PartStreams(seeded)
    for batch in batches:
        assert torch.equal(batch.inputs, again.batch("target", part, 2).inputs)
    plain = PartStreams().batch("target", part, 2).inputs
    assert torch.allclose(plain, (pixels / 255 - 0.5) / 0.25, atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "words"),
    [(("targets",), "did you mean 'target'"), (("probe",), "{'probe': (inputs, None)}"), ("target", "a tuple")],
)
def test_a_task_that_wants_a_part_that_is_not_there_is_refused_in_words(parts, words):
    with pytest.raises(UsageError) as refused:
        data().zipped(parts)
    (problem,) = refused.value.problems
    assert problem.code == "E403"
    assert words in f"{problem.message} {problem.hint}"
    with pytest.raises(UsageError, match="none but train and test"):
        Data(Resident(torch.zeros(2, 1), None, CPU)).zipped(("target",))


def test_a_run_of_such_a_task_is_refused_before_it_trains():
    alone = Data(data().store)
    with pytest.raises(UsageError, match="part 'target'"):
        make_run(model=tiny_mlp, data=alone, task=Adapting(), batch=BATCH)
