"""importance: what is drawn, how it is weighed, what is remembered; unbiased by enumeration."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import CPU, MODELS, assert_same_state, digits, double_run, make_run, state, tiny_cnn, vectors
from torch import Tensor, nn

from energybench import Forward, Method, Task
from energybench.algorithms.sample_scores import norms, output_gradient
from energybench.common.errors import UsageError
from energybench.common.units import Quantity
from energybench.flops.work import Work
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_task
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.data import Data, Resident
from energybench.train.recipe import Recipe
from energybench.train.stack_check import check_stack
from energybench.trial import trial
from energybench.trial.counting_layer import StepCounter
from energybench.trial.warmup import warm_up
from energybench.workloads.models import mlp
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["importance"])
ALPHA, EPSILON = 0.25, 0.125  # exact in binary


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "importance", {"alpha": ALPHA, "epsilon": EPSILON} | parameters)


def other(name: str) -> Any:
    kind = discovery.load(discovery.sources()[name])
    return discovery.build(kind, name, dict(kind.example))


class Spy(Method):
    """Every batch as it comes to the step, with the importances from which it was drawn and the scores it gave."""

    name = "spy"

    def __init__(self, spied: Any = None) -> None:
        self.spied = spied
        self.batches_seen: list[Any] = []
        self.before: list[Tensor] = []
        self.scores: list[Tensor] = []

    def step(self, run, batch, inner):
        self.batches_seen.append((run.epoch_number, batch))
        if self.spied is not None:
            self.before.append(self.spied._memory.sampler.importance.clone())
        inner(batch)

    def gradients(self, run, batch, inner):
        forward = inner(batch)
        self.scores.append(norms(output_gradient(run, forward.outputs, batch)).double())
        return forward


def spied(made: Any, epochs: int = 3, **settings: Any) -> tuple[Spy, Any]:
    spy = Spy(made)
    run = double_run([spy, made], epochs=epochs, **settings)
    run.train()
    return spy, run


# ── an epoch ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("estimator", ["importance", "adaptive"])
def test_the_first_epoch_is_plain_training_bit_for_bit_and_the_second_is_not(estimator):
    plain, run = make_run(epochs=1), make_run([method(estimator=estimator)], epochs=1)
    plain.train()
    run.train()
    assert_same_state(state(plain.model), state(run.model))
    assert plain.curve == run.curve
    assert run.methods[0].acted is False  # a run of one epoch only watches
    plain, run = make_run(epochs=2), make_run([method(estimator=estimator)], epochs=2)
    plain.train()
    run.train()
    assert not torch.equal(state(plain.model)["0.weight"], state(run.model)["0.weight"])
    assert run.methods[0].acted is True


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_as_many_steps_and_samples_as_a_plain_one(drop_last):
    data = Data(vectors(27).store, drop_last=drop_last)
    spy, run = spied(method(), data=data, batch=8)
    plain = double_run(data=data, batch=8, epochs=3)
    plain.train()
    sizes = [8, 8, 8] if drop_last else [8, 8, 8, 3]
    assert [len(batch) for _, batch in spy.batches_seen] == 3 * sizes
    assert run.tally.samples_forward == plain.tally.samples_forward
    assert run.tally.updates == plain.tally.updates


def test_kinds_of_steps_have_keys_of_their_own():
    _, run = spied(method())
    keys = run.tally.passes().keys
    assert {key: counts["steps"] for key, counts in keys.items()} == {"scored": 3, "drawn": 6}


def test_a_batch_is_drawn_by_the_importances_of_that_very_step():
    """A single sample that has nearly all importance fills the next batch, and loses it by being scored."""
    made = method(alpha=0.0, epsilon=1e-6)
    drawn: list[list[int]] = []

    class Push(Method):
        name = "push"

        def step(self, run, batch, inner):
            inner(batch)
            if run.epoch_number == 2:
                drawn.append(batch.index.tolist())
                target = torch.tensor([run.step_in_epoch])
                made._memory.sampler.set(target, torch.tensor([1e12], dtype=torch.float64))

    double_run([Push(), made], data=vectors(40), batch=8, epochs=2).train()
    assert drawn[1:] == [[0] * 8, [1] * 8, [2] * 8, [3] * 8]


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


def expected_memory(spy: Spy, count: int, per_epoch: int) -> Tensor:
    """The rule once more, sample by sample."""
    q = [0.0] * count
    for step, ((epoch, batch), scores) in enumerate(zip(spy.batches_seen, spy.scores, strict=True)):
        new: dict[int, list[float]] = {}
        for index, score in zip(batch.index.tolist(), scores.tolist(), strict=True):
            new.setdefault(index, []).append(score)
        for index, values in new.items():
            mean = sum(values) / len(values)
            q[index] = mean if epoch == 1 else ALPHA * q[index] + (1 - ALPHA) * mean
        if (step + 1) % per_epoch == 0:
            q = [value + EPSILON for value in q]
    return torch.tensor(q, dtype=torch.float64)


def test_importances_follow_the_papers_rule_with_repeated_samples_averaged():
    made = method()
    spy, _ = spied(made, epochs=4, data=vectors(20), batch=6)
    drawn = [batch.index for epoch, batch in spy.batches_seen if epoch > 1]
    assert any(len(index.unique()) < len(index) for index in drawn)  # there are repeats to average
    expected = expected_memory(spy, 20, 4)
    torch.testing.assert_close(made._memory.sampler.importance, expected, rtol=1e-12, atol=0)
    repeats = sum(len(index) - len(index.unique()) for index in drawn)
    assert made.diagnostics()["repeat_share"] == pytest.approx(repeats / 80)


def test_the_scores_of_the_first_epoch_are_the_importances_plus_epsilon():
    spy, _ = spied(made := method(), epochs=1)
    index = torch.cat([batch.index for _, batch in spy.batches_seen])
    assert sorted(index.tolist()) == list(range(24))
    torch.testing.assert_close(made._memory.sampler.importance[index], torch.cat(spy.scores) + EPSILON)


def test_weights_are_one_over_n_times_the_probability_at_the_draw():
    spy, _ = spied(method())
    for before, (epoch, batch) in zip(spy.before, spy.batches_seen, strict=True):
        if epoch == 1:
            assert batch.weights is None
        else:
            expected = before.sum() / (24 * before[batch.index])
            torch.testing.assert_close(batch.weights, expected, rtol=1e-12, atol=0)


def test_adaptive_sampling_draws_by_the_same_importances_and_weighs_nothing():
    one, _ = spied(method(), epochs=2, lr=0.0)
    two, _ = spied(method(estimator="adaptive"), epochs=2, lr=0.0)
    for (_, mine), (_, theirs) in zip(one.batches_seen, two.batches_seen, strict=True):
        assert torch.equal(mine.index, theirs.index)
        assert theirs.weights is None


def test_samples_that_the_first_epoch_leaves_out_get_the_mean_importance():
    made = method()
    spy, _ = spied(made, data=Data(vectors(27).store, drop_last=True), batch=8, epochs=2, lr=0.0)
    seen = torch.cat([batch.index for epoch, batch in spy.batches_seen if epoch == 1])
    left = [i for i in range(27) if i not in seen.tolist()]
    before = spy.before[3]  # at the first draw
    assert len(left) == 3
    torch.testing.assert_close(before[left], before[seen].mean().expand(3))


def test_each_part_of_the_data_has_a_memory_of_its_own_and_finds_it_again():
    class Clients(Method):
        """Two parts in turns, cut anew each time, as a federated method has them."""

        name = "clients"

        def epoch(self, run, data, inner):
            part = torch.arange(10, 24) if run.epoch_number % 2 else torch.tensor([3, 1, 0, 5, 7])
            inner(data.subset(part))

    made, spy = method(), Spy()
    run = double_run([Clients(), spy, made], epochs=6, batch=4, lr=0.0)
    run.train()
    one, two = made._memories
    assert [len(one.sampler), len(two.sampler)] == [14, 5]
    for epoch, batch in spy.batches_seen:
        inside = set(range(10, 24)) if epoch % 2 else {3, 1, 0, 5, 7}
        assert set(batch.index.tolist()) <= inside
        assert (batch.weights is None) == (epoch < 3)  # each begins with an epoch that only looks
    whole = next(run.data.load([torch.arange(24)]))
    scores = norms(output_gradient(run, run.forward(whole).outputs, whole)).double()  # nothing learned: the same
    growth = one.sampler.importance - scores[10:]
    assert (growth >= EPSILON - 1e-9).all()
    assert (two.sampler.importance - scores[[3, 1, 0, 5, 7]] >= EPSILON - 1e-9).all()
    assert made.diagnostics()["parts"] == 2


class ReadsAhead(Resident):
    """Asks for three batches before it gives the first, as worker processes do."""

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any, Any]]:
        ready: list[Any] = []
        for item in super().fetch(batches):
            ready.append(item)
            if len(ready) > 3:
                yield ready.pop(0)
        yield from ready


def test_where_batches_are_read_ahead_weights_are_those_of_the_draw():
    store = vectors(24).store
    made = method(epsilon=1e-3)
    spy, _ = spied(made, data=Data(ReadsAhead(store.inputs, store.targets, CPU)), lr=2.0, epochs=2)
    then = spy.before[3]  # importances when the second epoch began
    for _, batch in spy.batches_seen[3:6]:
        weights = then.sum() / (24 * then[batch.index])
        torch.testing.assert_close(batch.weights, weights, rtol=1e-12, atol=0)
    assert not torch.equal(spy.before[4], spy.before[3])  # though the memory had moved on


# ── unbiased ──────────────────────────────────────────────────────────────────────────────────────────────────────


def flat_gradient(run: Any, batch: Any) -> Tensor:
    run.gradients(batch)
    return torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_mean_gradient_over_all_batches_that_can_be_drawn_is_the_whole_sets(accumulate):
    """All 5² batches of two with their probabilities, weighed by the method; repeats included."""
    made = method()
    data = vectors(5)
    trained = double_run([made], data=data, batch=2, epochs=2)
    trained.train()
    run = double_run(data=data, batch=2, accumulate=accumulate)
    run.model.load_state_dict(trained.model.state_dict())
    sampler = made._memory.sampler
    share = sampler.importance / sampler.total
    assert share.max() > 1.2 * share.min()  # else this is uniform sampling
    weight_of: dict[int, float] = {}
    for seed in range(40):  # the weights as the method gives them
        trained.epoch_number = 100 + seed
        batch = next(iter(made.batches(trained, data, None)))
        weight_of |= dict(zip(batch.index.tolist(), batch.weights.tolist(), strict=True))
    mean = torch.zeros(())
    for pair in itertools.product(range(5), repeat=2):
        batch = next(data.load([torch.tensor(pair)]))
        weights = torch.tensor([weight_of[i] for i in pair], dtype=torch.float64)
        mean = mean + share[pair[0]] * share[pair[1]] * flat_gradient(run, replace(batch, weights=weights))
    whole = flat_gradient(run, next(data.load([torch.arange(5)])))
    torch.testing.assert_close(mean, whole, rtol=1e-9, atol=1e-12)


def test_the_curve_of_a_weighted_run_is_that_of_the_whole_sets_loss():
    """Nothing is learned, so the mean over many drawn batches is the mean over the set, within its standard error."""
    made = method(alpha=0.0)
    run = double_run([made], data=vectors(24), batch=8, epochs=400, lr=0.0)
    run.train()
    whole = run.forward(next(run.data.load([torch.arange(24)]))).value.item()
    drawn = torch.tensor([point["loss"] for point in run.curve[1:]])
    assert abs(drawn.mean().item() - whole) < 4 * drawn.std().item() / math.sqrt(len(drawn))


# ── scores, tasks ─────────────────────────────────────────────────────────────────────────────────────────────────


class Squares(Task):
    name = "squares"

    def forward(self, run, batch):
        outputs = run.model(batch.inputs)
        each = self.losses(run, outputs, batch)
        return Forward(each.mean(), each, outputs)

    def losses(self, run, outputs, batch):
        return (outputs - batch.targets).square().sum(1)


def test_any_loss_is_scored_through_autograd():
    data = Data(Resident(torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64), CPU))
    made = method()
    run = double_run([made], model=lambda: nn.Linear(3, 2).double(), data=data, task=Squares(), batch=4, lr=0.0)
    run.train()
    residual = (run.model(data.store.inputs) - data.store.targets).detach()
    importance = made._memory.sampler.importance
    assert (importance >= 2 * residual.norm(dim=1) + EPSILON - 1e-9).all()


@pytest.mark.parametrize("score", ["output-gradient", "last-layer-gradient"])
def test_closed_form_and_autograd_train_alike(score):
    runs = [double_run([method(score=score, form=form)], epochs=3) for form in ("analytic", "autograd")]
    for run in runs:
        run.train()
    for mine, theirs in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", ["loss", "last-layer-gradient", "parameter-gradient"])
def test_every_score_trains_a_convolutional_network_and_leaves_it_plain(score):
    made = method(score=score)
    run = make_run([made], epochs=3)
    run.train()
    run.finish()
    assert run.curve[-1]["loss"] < run.curve[0]["loss"]
    assert not [module for module in run.model.modules() if module._forward_hooks]


def test_the_model_sees_its_own_dropout_masks_whatever_is_drawn_or_scored():
    """A method's draws and its scoring passes move no random number of the model."""

    class Masked(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Dropout(0.5), *tiny_cnn())
            self.masks: list[Tensor] = []
            self[0].register_forward_hook(self.keep)

        def keep(self, layer, inputs, output):
            if layer.training:
                self.masks.append((output != 0) | (inputs[0] == 0))

    drawn = torch.ones(64, 1, 8, 8, dtype=torch.uint8) * 255
    data = Data(Resident(drawn, torch.arange(64) % 10, CPU), digits().images)
    masks = []
    for methods in ([], [method()], [method(score="parameter-gradient")]):
        run = make_run(methods, Masked, data, epochs=3)
        run.train()
        masks.append(torch.cat(run.model.masks))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


# ── cost ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", [MODELS["cnn"], lambda: mlp((1, 8, 8), 10, [32])], ids=["cnn", "mlp"])
@pytest.mark.parametrize("score", ["output-gradient", "parameter-gradient"])
def test_the_estimate_is_what_is_counted_and_the_reference_costs_a_second_pass(model, score):
    counted, epochs = [], 3
    made = method(score=score)
    for methods in ([], [made]):
        layer = StepCounter(10**9)
        run = make_run([*methods], model, counter=layer, epochs=epochs)
        run.train()
        counted.append(layer.result(run).counted_flop)
    batch = next(run.data.load([torch.arange(2)]))
    lines = trace_task(Classification(), model(), Recipe(epochs=epochs, batch=32), batch, CPU).lines
    work = Work(lines, epochs=epochs, samples=run.data.samples(32))
    assert counted[1] / counted[0] == pytest.approx(2 if score == "parameter-gradient" else 1)
    assert made.estimate(work).flop == pytest.approx(counted[1], rel=1e-3)
    if score == "parameter-gradient":
        assert run.tally.passes().keys.keys() == {"scored 2f2b1u", "drawn 2f2b1u"}
        assert made.estimate(work).moved_b(32) > 2 * work.moved_b(32)  # a weight gradient for each sample


def test_the_reference_pass_costs_no_second_probe_and_no_second_product_of_gradients():
    """What methods further in have added to the ledger is no part of a pass over the samples."""
    made, totals = method(score="parameter-gradient"), []
    inner = discovery.build(discovery.load(discovery.sources()["ultimate"]), "ultimate", {"hyper_lr": 1e-6})
    for methods in ([], [made, inner]):
        layer = StepCounter(10**9)
        run = make_run([*methods], lambda: mlp((1, 8, 8), 10, [32]), counter=layer, epochs=3)
        run.train()
        totals.append(layer.result(run).counted_flop)
    batch = next(run.data.load([torch.arange(2)]))
    recipe = Recipe(epochs=3, batch=32)
    lines = trace_task(Classification(), mlp((1, 8, 8), 10, [32]), recipe, batch, CPU).lines
    work = Work(lines, epochs=3, samples=run.data.samples(32))
    estimated = made.estimate(inner.estimate(work)).flop
    assert estimated == pytest.approx(totals[1], rel=1e-6)
    assert totals[1] > 2 * totals[0]


def test_a_warm_up_of_a_few_steps_has_drawn_too():
    made = method()
    run = make_run([made], epochs=6)
    warm_up(run, Quantity(4, "steps"), lambda: None)
    assert {"drawn", "scored"} <= run.tally.passes().keys.keys()


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_alpha_and_epsilon_have_no_default_and_the_error_says_what_to_type(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        discovery.build(KIND, "importance", {}, lambda key: f"here:{key}")
    assert [(p.code, p.where, p.hint) for p in caught.value.problems] == [
        ("E304", "here:alpha", "for example: alpha = 0.1"),
        ("E304", "here:epsilon", "for example: epsilon = 0.01"),
    ]
    file = tmp_path / "s.toml"
    file.write_text(
        'schema = 1\nsuite = "s"\n[measure]\nenergy = "off"\n[[workload]]\nname = "w"\nmodel = { use = "mlp" }\n'
        'data = { use = "digits", batch = 16 }\ntrain = { epochs = 2, lr = 0.1 }\n\n[[method]]\n'
        'use = "importance"\nalpha = 0.1\n',
        encoding="utf-8",
    )
    found = planner.Plan(spec_of(load(file), tmp_path, device="cpu", download=False)).result()
    (problem,) = found.problems
    assert "requires its parameter 'epsilon'" in problem.message
    assert ":11:" in problem.where  # the line of its table
    assert problem.hint == "for example: epsilon = 0.01"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"alpha": 1.0}, "less than 1"),
        ({"alpha": -0.1}, "greater than or equal to 0"),
        ({"epsilon": 0.0}, "greater than 0"),
        ({"epsilon": -1.0}, "greater than 0"),
        ({"estimator": "biased"}, "'importance' or 'adaptive'"),
        ({"score": "gradient"}, "'output-gradient', 'loss'"),
        ({"form": "closed"}, "'analytic' or 'autograd'"),
    ],
)
def test_what_a_parameter_cannot_be_is_refused_in_words(wrong, says):
    with pytest.raises(UsageError, match=says):
        method(**wrong)


@pytest.mark.parametrize("name", ["dlis", "low", "with_replacement"])
def test_another_choice_of_samples_or_weights_is_refused_in_every_order(name):
    for stack in ([method(), other(name)], [other(name), method()]):
        problems = check_stack(stack, Classification())
        assert problems
        assert problems[0].code == "E310"
        assert "no order works" in problems[0].hint


@pytest.mark.parametrize("name", ["ssprop", "gradsamp", "dropout", "sgld"])
def test_methods_that_leave_the_samples_alone_stack_in_either_order(name):
    for stack in ([method(), other(name)], [other(name), method()]):
        assert check_stack(stack, Classification()) == []
        run = make_run(stack, epochs=6)
        run.train()
        assert run.uncalled_overrides() == []
        assert run.tally.passes().keys.keys() >= {"scored"}
        assert any("drawn" in key for key in run.tally.passes().keys)


def test_epochs_that_another_method_skips_are_not_drawn():
    made = method()
    run = make_run([other("gradsamp"), made], epochs=6)  # every fifth
    run.train()
    assert sum(counts["steps"] for counts in run.tally.passes().keys.values()) == 5 * 3


def test_a_forward_only_method_goes_inside_and_refuses_the_reference():
    inside = other("mezo")
    assert check_stack([method(), inside], Classification()) == []
    (problem, *_) = check_stack([inside, method()], Classification())
    assert problem.hint == 'this order works: use = ["importance", "mezo"]'
    problems = check_stack([method(score="parameter-gradient"), inside], Classification())
    assert [problem.code for problem in problems] == ["E313"]
    run = make_run([method(), inside], epochs=3)
    run.train()
    assert run.uncalled_overrides() == []


@pytest.mark.parametrize("outer", [True, False])
def test_the_reference_under_a_thinned_backward_is_the_dense_gradient(outer):
    """And leaves the thinned share as it was."""
    sparse = discovery.build(discovery.load(discovery.sources()["ssprop"]), "ssprop", {"schedule": "constant"})
    made = method(score="parameter-gradient")
    run = make_run([sparse, made] if outer else [made, sparse], epochs=3)
    run.train()
    found = sparse.diagnostics()
    assert found["mean_drop"] == pytest.approx(0.8)
    alone = discovery.build(discovery.load(discovery.sources()["ssprop"]), "ssprop", {"schedule": "constant"})
    make_run([alone], epochs=3).train()
    assert found["backward_flop_dropped"] == pytest.approx(alone.diagnostics()["backward_flop_dropped"])


def test_a_loss_that_is_negative_is_refused_as_an_importance():
    class Negative(Squares):
        def losses(self, run, outputs, batch):
            return super().losses(run, outputs, batch) - 1e6

    data = Data(Resident(torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64), CPU))
    run = double_run([method(score="loss")], model=lambda: nn.Linear(3, 2).double(), data=data, task=Negative())
    with pytest.raises(ValueError, match="finite and ≥ 0; 12 were not"):
        run.train()


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_memory_is_saved_in_a_file_beside_the_record(tmp_path: Path):
    made = method()
    run = double_run([made], data=vectors(24).subset(torch.arange(4, 20)), epochs=3)
    run.train()
    place = tmp_path / "traces" / "b0.w.importance.csv.gz", "b0.w.importance"
    kept = trial.keep_tensors(made, *place)
    assert kept == {"state": "state/b0.w.importance.importance.npz"}
    with np.load(tmp_path / kept["state"]) as file:
        assert np.array_equal(file["importance_0"], made._memory.sampler.importance.numpy())
        assert file["index_0"].tolist() == list(range(4, 20))
    assert trial.keep_tensors(other("low"), *place) == {}
    assert trial.keep_tensors(made, None, place[1]) == {}


def test_the_record_has_the_memorys_shape_in_a_few_numbers():
    made = method()
    double_run([made], epochs=3).train()
    found = made.diagnostics()
    json.dumps(found, allow_nan=False)
    importance = made._memory.sampler.importance
    assert found["samples"] == 24
    assert found["mean_importance"] == pytest.approx(importance.mean().item())
    ends = [found["importance_quantiles"][key] for key in ("0.0", "1.0")]
    assert ends == [importance.min().item(), importance.max().item()]
    shares = importance / importance.sum()
    assert found["effective_share"] == pytest.approx(1 / (24 * shares.square().sum().item()))


def test_a_score_by_loss_is_cross_entropy():
    made = method(score="loss")
    run = double_run([made], epochs=1, lr=0.0)
    run.train()
    whole = next(run.data.load([torch.arange(24)]))
    each = F.cross_entropy(run.model(whole.inputs), whole.targets, reduction="none").detach()
    torch.testing.assert_close(made._memory.sampler.importance, each + EPSILON)
