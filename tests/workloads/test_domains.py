"""Adaptation and generalization: losses by hand and in closed form, their data, and every method that composes."""

from __future__ import annotations

import math
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import CPU, assert_same_state, data_settings, make_run, run_or_refusal, state
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_run
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.batch import Batch
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.method import Method
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import datasets, models
from energybench.workloads.datasets import domains
from energybench.workloads.datasets.domains import coloured_mnist, mnist_to_digits
from energybench.workloads.datasets.shipped import digits, mnist5k
from energybench.workloads.models.adaptation import GradientReversal, MDDNet, TwoHeads
from energybench.workloads.tasks.adaptation import (
    MarginDisparity,
    MinimumClassConfusion,
    SourceOnly,
    class_confusion,
    disparity,
    warmed_up,
)
from energybench.workloads.tasks.generalization import (
    GroupRobustness,
    RiskExtrapolation,
    RiskMinimization,
    by_domain,
    moved_weights,
    risks_of,
    variance_of_risks,
)

ROOT = Path(__file__).resolve().parents[2]
SIDE, CLASSES, SAMPLES, DOMAINS = 8, 3, 24, 3
SEED = st.integers(0, 2**32)
SOURCES = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}
ADAPTATIONS = {"source_only": SourceOnly, "mcc": MinimumClassConfusion, "mdd": MarginDisparity}
GENERALIZATIONS = {"erm": RiskMinimization, "vrex": RiskExtrapolation, "group_dro": GroupRobustness}
TASKS = ADAPTATIONS | GENERALIZATIONS


@pytest.fixture(autouse=True)
def _digits_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second each time."""
    monkeypatch.setattr(domains, "mnist5k", _mnist5k)


_mnist5k = cache(mnist5k)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, seed: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """(count, 1, SIDE, SIDE): a bright band, whose place is the class, on a ground that is the domain's."""
    labels = torch.arange(count) % CLASSES
    images = torch.randn(count, 1, SIDE, SIDE, generator=generator(seed)) * 0.3 + shift
    for number, label in enumerate(labels.tolist()):
        images[number, 0, 2 * label : 2 * label + 2] += 2
    return images, labels


def pair(also: bool = True) -> Data:
    """A source with labels, and a target of another ground without."""
    images, labels = pictures(SAMPLES, 1)
    other = Data(Resident(pictures(10, 2, 0.7)[0], None, CPU), facts=Facts("none", CLASSES))
    return Data(Resident(images, labels, CPU), facts=Facts("class", CLASSES), parts={"target": other} if also else {})


def several(count: int = SAMPLES) -> Data:
    """Samples of three domains in turns, each with as many."""
    images, labels = pictures(count, 3)
    domain = torch.arange(count) // CLASSES % DOMAINS
    facts = Facts("class", CLASSES, extra={"domains": DOMAINS, "domain_names": "a, b, c"})
    return Data(Resident(images + domain[:, None, None, None], {"class": labels, "domain": domain}, CPU), facts=facts)


def small_net() -> nn.Module:
    """Convolution, BatchNorm, ReLU, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


def two_heads(dropout: float = 0.0) -> nn.Module:
    settings = {"body": {"use": "cnn", "channels": [4]}, "bottleneck": 6, "width": 5, "dropout": dropout}
    return models.build("mdd_net", (1, SIDE, SIDE), CLASSES, settings)


def domain_run(name: str, methods: Any = (), parameters: dict[str, Any] | None = None, **given: Any) -> Any:
    """Of one of TASKS, on data of its kind."""
    plain = {
        "data": pair() if name in ADAPTATIONS else several(),
        "task": discovery.build(TASKS[name], name, parameters or {}),
        "model": two_heads if name == "mdd" else small_net,
        "batch": 8,
        "epochs": 3,
        "lr": 0.05,
    }
    return make_run(methods, **plain | given)


def first_batch(run: Any, count: int = 8) -> Batch:
    return next(iter(run.data.load([torch.arange(count)])))


# ── minimum class confusion ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [1, 1, 1, 1]])  # of the second, two classes occur nowhere
def test_predictions_that_are_all_certain_confuse_nothing(dtype, labels):
    logits = (10_000 * F.one_hot(torch.tensor(labels), 3)).to(dtype).requires_grad_()
    confusion = class_confusion(logits, 2.5)
    confusion.backward()
    assert confusion.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_predictions_that_know_nothing_confuse_every_class_with_all_others(classes):
    assert class_confusion(torch.zeros(7, classes), 2.5).item() == pytest.approx(1 - 1 / classes)


@given(chance=st.floats(0.01, 0.99), temperature=st.floats(0.5, 5))
def test_two_samples_that_mirror_each_other_confuse_two_classes_by_2pq(chance, temperature):
    """Their entropies are alike, so both weigh 1: C = [[p² + q², 2pq], [2pq, p² + q²]], whose rows sum to 1."""
    logit = temperature * math.log(chance / (1 - chance))
    logits = torch.tensor([[logit, 0.0], [0.0, logit]], dtype=torch.float64)
    assert class_confusion(logits, temperature).item() == pytest.approx(2 * chance * (1 - chance), rel=1e-9)


@given(seed=SEED, temperature=st.sampled_from([1.0, 2.5]))
@settings(max_examples=20, deadline=None)
def test_the_confusion_is_that_of_the_papers_equations_one_by_one(seed, temperature):
    count, classes = 5, 4
    logits = 3 * torch.randn(count, classes, generator=generator(seed), dtype=torch.float64)
    chance = [[math.exp(z / temperature) for z in row] for row in logits.tolist()]
    chance = [[value / sum(row) for value in row] for row in chance]
    raw = [1 + math.exp(sum(p * math.log(p) for p in row)) for row in chance]  # 1 + exp(−entropy)
    weight = [count * value / sum(raw) for value in raw]
    loss = 0.0
    for j in range(classes):
        row = [sum(w * p[j] * p[k] for w, p in zip(weight, chance, strict=True)) for k in range(classes)]
        loss += sum(value / sum(row) for k, value in enumerate(row) if k != j)
    assert class_confusion(logits, temperature).item() == pytest.approx(loss / classes, rel=1e-9)


def test_no_gradient_goes_through_the_weights_of_samples():
    """They are constants of a step: the gradient is that of the same sum with fixed weights."""
    logits = torch.randn(6, 3, generator=generator(4), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(class_confusion(logits, 1.0), logits)
    chance = logits.softmax(1)
    raw = (1 + (chance * chance.log()).sum(1).exp()).detach()
    matrix = (chance * (6 * raw / raw.sum())[:, None]).T @ chance
    normalised = matrix / matrix.sum(1, keepdim=True)
    (wanted,) = torch.autograd.grad((normalised.sum() - normalised.trace()) / 3, logits)
    torch.testing.assert_close(found, wanted)


def test_the_loss_is_the_sources_cross_entropy_and_the_targets_confusion():
    run = domain_run("mcc", parameters={"temperature": 1.5, "trade_off": 0.7})
    batch = first_batch(run)
    forward = run.forward(batch)
    run.model.train()
    with torch.no_grad():
        logits = run.model(torch.cat([batch.inputs, batch.also["target"].inputs]))
    wanted = F.cross_entropy(logits[:8], batch.targets) + 0.7 * class_confusion(logits[8:], 1.5)
    assert forward.value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert forward.each.mean().item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(forward.outputs.detach(), logits[:8])


# ── margin disparity ──────────────────────────────────────────────────────────────────────────────────────────────────


@given(seed=SEED, coefficient=st.floats(0, 10))
@settings(max_examples=20, deadline=None)
def test_the_gradient_comes_back_times_minus_the_coefficient_and_what_goes_forward_is_the_same(seed, coefficient):
    x = torch.randn(4, 5, generator=generator(seed), dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 2, generator=generator(seed + 1), dtype=torch.float64)
    layer = GradientReversal(coefficient)
    assert torch.equal(layer(x), x)
    found, plain = (torch.autograd.grad((each @ weights).tanh().sum(), x)[0] for each in (layer(x), x))
    torch.testing.assert_close(found, -coefficient * plain)


def test_the_coefficient_rises_from_nothing_as_the_public_code_has_it():
    assert warmed_up(0.1, 1000, 0) == 0
    assert warmed_up(0.1, 1000, 1000) == pytest.approx(2 * 0.1 / (1 + math.exp(-1)) - 0.1)
    assert warmed_up(0.1, 1000, 10**6) == pytest.approx(0.1)
    rising = [warmed_up(0.1, 50, step) for step in range(200)]
    assert rising == sorted(rising)
    assert warmed_up(0.3, 0, 0) == 0.3


def test_the_disparity_by_hand():
    """The source's prediction has an adversary's chance of 1/4; the target's, one of 3/5, so 2/5 for the rest."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    adversary = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 3.0]]).log()
    of_source, of_target = disparity(logits, adversary, 1)
    assert of_source.tolist() == pytest.approx([math.log(4)])
    assert of_target.tolist() == pytest.approx([-math.log(2 / 5)])


def test_an_adversary_that_is_sure_of_the_targets_prediction_has_a_finite_loss():
    logits = torch.tensor([[5.0, 0.0]])
    adversary = torch.tensor([[200.0, 0.0]], requires_grad=True)
    _, of_target = disparity(logits, adversary, 0)
    of_target.sum().backward()
    assert of_target.item() == pytest.approx(200)  # −log of e⁻²⁰⁰, which single precision has not
    assert adversary.grad.tolist() == [pytest.approx([1, -1])]


def test_body_classifier_and_adversary_have_the_gradients_of_the_game():
    """The adversary descends its loss, the body ascends it by λ, and the classifier does not see it."""
    settings = {"margin": 4.0, "trade_off": 0.5, "reversal": 0.2, "reversal_steps": 0}
    run = domain_run("mdd", parameters=settings)
    model: Any = run.model
    batch = first_batch(run)
    run.gradients(batch)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    features = model.bottleneck(model.body(torch.cat([batch.inputs, batch.also["target"].inputs])))
    logits, adversary = model.classifier(features), model.adversary(features)
    of_source, of_target = disparity(logits, adversary, 8)
    cross, game = F.cross_entropy(logits[:8], batch.targets), 0.5 * (4 * of_source.mean() + of_target.mean())
    names = list(found)
    parameters = [model.get_parameter(name) for name in names]
    of_cross, of_game = (
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (cross, game)
    )
    for name, one, other in zip(names, of_cross, of_game, strict=True):
        part, zero = name.partition(".")[0], torch.zeros_like(found[name])
        one, other = (zero if each is None else each for each in (one, other))
        wanted = {"classifier": one, "adversary": other}.get(part, one - 0.2 * other)
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6)


def test_the_warm_up_goes_by_the_steps_of_the_schedule():
    run = domain_run("mdd", parameters={"reversal": 1.0, "reversal_steps": 10})
    (layer,) = (module for module in run.model.modules() if isinstance(module, GradientReversal))
    for epoch, step, steps in ((1, 0, 0), (1, 2, 2), (3, 1, 7)):  # of three steps each
        run.epoch_number, run.step_in_epoch = epoch, step
        run.forward(first_batch(run))
        assert layer.coefficient == warmed_up(1.0, 10, steps)


def test_a_model_without_an_adversary_is_refused_in_words():
    with pytest.raises(UsageError, match="GradientReversal") as refused:
        domain_run("mdd", model=small_net)
    assert "mdd_net" in refused.value.problems[0].hint
    reversing = nn.Sequential(nn.Flatten(), GradientReversal(), nn.Linear(SIDE * SIDE, CLASSES))
    with pytest.raises(TypeError, match="TwoHeads"):
        domain_run("mdd", model=lambda: reversing).train()


def test_the_network_is_its_body_with_two_equal_heads():
    model = models.build("mdd_net", (3, 32, 32), 5, {"body": "resnet18", "bottleneck": 16, "width": 8})
    assert isinstance(model, MDDNet)
    assert model.body.fc.out_features == 16
    answer = model.eval()(torch.zeros(2, 3, 32, 32))
    assert isinstance(answer, TwoHeads)
    assert [tuple(each.shape) for each in answer] == [(2, 5), (2, 5)]
    per_head = 16 * 8 + 8 + 8 * 5 + 5
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.body.parameters()) == (
        2 * per_head + 2 * 16
    )


def test_the_body_for_digits_halves_its_images_and_has_two_linear_layers():
    model = models.build("digit_net", (1, 28, 28), 10, {})
    convolutions = (25 * 1 + 1) * 16 + 2 * 16 + (25 * 16 + 1) * 32 + 2 * 32
    assert sum(p.numel() for p in model.parameters()) == convolutions + (32 * 7 * 7 + 1) * 64 + 65 * 10
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UsageError, match="cannot be halved"):
        models.build("digit_net", (1, 2, 2), 10, {})


@pytest.mark.parametrize(
    "wrong", [{"body": "resnet19"}, {"body": {"channels": [4]}}, {"body": 3}, {"dropout": 1.0}, {"width": 0}]
)
def test_a_network_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError) as refused:
        models.build("mdd_net", (1, SIDE, SIDE), CLASSES, {"body": "cnn"} | wrong)
    assert refused.value.problems[0].code == "E401"


# ── the target beside the source ──────────────────────────────────────────────────────────────────────────────────────


class Watch(Method):
    """Keeps what it is trained on."""

    name = "watch"

    def setup(self, run):
        self.seen: list[Batch] = []

    def gradients(self, run, batch, inner):
        self.seen.append(batch)
        return inner(batch)


@pytest.mark.parametrize("name", ["mcc", "mdd"])
def test_as_many_of_the_target_lie_beside_each_batch_and_none_has_a_label(name):
    watch = Watch()
    domain_run(name, [watch], batch=7).train()
    assert [len(batch) for batch in watch.seen] == [7, 7, 7, 3] * 3
    assert all(len(batch.also["target"]) == len(batch) for batch in watch.seen)
    assert all(batch.also["target"].targets is None for batch in watch.seen)


@pytest.mark.parametrize("name", ["mcc", "mdd"])
def test_without_the_part_an_adaptation_is_refused_and_source_only_is_not(name):
    with pytest.raises(UsageError, match="part 'target'"):
        domain_run(name, data=pair(also=False))
    domain_run("source_only", data=pair(also=False)).step(first_batch(domain_run("source_only")))


@pytest.mark.parametrize("name", ["mcc", "mdd"])
def test_a_pass_that_is_handed_the_source_alone_has_the_sources_loss(name):
    run = domain_run(name)
    batch = next(iter(run.data.in_order(8)))
    forward = run.forward(batch, "eval", grad=False)
    wanted = F.cross_entropy(forward.outputs, batch.targets)
    assert forward.value.item() == pytest.approx(wanted.item())


def test_weighing_the_source_weighs_it_alone():
    """Weights whose mean is 1 leave the target's term as it is."""
    run = domain_run("mcc")
    batch = first_batch(run)
    weights = torch.tensor([0.0, 2.0] * 4)
    forward = run.forward(batch)
    each = F.cross_entropy(forward.outputs, batch.targets, reduction="none")
    confusion = forward.value - each.mean()
    assert forward.weighted(weights).item() == pytest.approx(((weights * each).mean() + confusion).item(), rel=1e-5)


# ── risks of domains ──────────────────────────────────────────────────────────────────────────────────────────────────


@given(seed=SEED, count=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_the_variance_is_that_of_the_mean_losses_of_the_domains_that_are_there(seed, count):
    each = torch.randn(count, generator=generator(seed), dtype=torch.float64).abs()
    domain = torch.randint(4, (count,), generator=generator(seed + 1))
    sums, counts = by_domain(each, domain, 4)
    means = [each[domain == number].mean().item() for number in range(4) if (domain == number).any()]
    centre = sum(means) / len(means)
    wanted = sum((mean - centre) ** 2 for mean in means) / len(means)
    assert variance_of_risks(sums, counts).item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    there = [risk for risk, number in zip(risks_of(sums, counts).tolist(), counts.tolist(), strict=True) if number]
    assert there == pytest.approx(means)


def test_with_a_beta_of_zero_it_is_erm_to_the_bit():
    trained = []
    for name, parameters in (("erm", {}), ("vrex", {"beta": 0.0, "anneal_steps": 2})):
        run = domain_run(name, parameters=parameters, batch=7)  # of which domains have unequal shares
        run.train()
        trained.append(state(run.model))
    assert_same_state(*trained)


@pytest.mark.parametrize(("beta", "before"), [(3.0, 1.0), (0.5, 0.5)])
def test_the_weight_of_the_variance_is_one_until_it_is_beta(beta, before):
    run = domain_run("vrex", parameters={"beta": beta, "anneal_steps": 5})
    batch = first_batch(run)
    for epoch, step, weight in ((1, 0, before), (2, 1, before), (2, 2, beta), (3, 0, beta)):  # of three steps each
        run.epoch_number, run.step_in_epoch = epoch, step
        run.model.train()
        each = run.task.losses(run, run.model(batch.inputs), batch)
        variance = variance_of_risks(*by_domain(each, batch.targets["domain"], DOMAINS))
        assert run.forward(batch).value.item() == pytest.approx((each.mean() + weight * variance).item(), rel=1e-5)


@given(eta=st.floats(0, 2), one=st.floats(0, 5), other=st.floats(0, 5), steps=st.integers(1, 400))
@settings(max_examples=50, deadline=None)
def test_the_weights_of_two_domains_of_constant_risk_are_a_logistic_curve(eta, one, other, steps):
    """q₁ = 1 / (1 + exp(−n·η·(R₁ − R₂))), and neither becomes nothing for good."""
    weights = torch.full((2,), -math.log(2), dtype=torch.float64)
    risks = torch.tensor([one, other], dtype=torch.float64)
    for _ in range(steps):
        weights = moved_weights(weights, risks, eta)
    wanted = -math.log1p(math.exp(min(700, -steps * eta * (one - other))))
    if abs(steps * eta * (one - other)) < 700:
        assert weights[0].item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert weights.isfinite().all()
    assert weights.exp().sum().item() == pytest.approx(1)


def test_a_run_moves_them_once_a_step_by_the_risks_that_it_trains_on():
    """At a rate of next to nothing the risks stay what they are, whatever the order."""
    run = domain_run("group_dro", parameters={"eta": 0.5}, lr=1e-12, momentum=0.0, batch=24, epochs=5)
    run.model.train()
    batch = first_batch(run, 24)
    with torch.no_grad():
        each = F.cross_entropy(run.model(batch.inputs), batch.targets["class"], reduction="none")
    risks = torch.stack([each[batch.targets["domain"] == number].mean() for number in range(DOMAINS)])
    for _ in range(3):
        run.forward(batch)  # of no step
    run.train()
    found = run.task.diagnostics()["domain_weights"]
    assert list(found) == ["a", "b", "c"]
    assert list(found.values()) == pytest.approx((0.5 * 5 * risks).softmax(0).tolist(), rel=1e-4)


def test_the_loss_is_weighed_by_weights_that_know_the_batch():
    run = domain_run("group_dro", parameters={"eta": 2.0})
    batch = first_batch(run)
    run.model.train()
    each = run.task.losses(run, run.model(batch.inputs), batch)
    risks = risks_of(*by_domain(each, batch.targets["domain"], DOMAINS))
    wanted = ((2.0 * risks).softmax(0) * risks).sum()
    assert run.forward(batch).value.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_with_an_eta_of_zero_it_is_the_mean_of_the_domains_which_is_erms_where_all_have_as_many():
    batches = [first_batch(domain_run(name), count) for name, count in (("group_dro", 18), ("erm", 18))]
    group, erm = (
        domain_run(name, parameters=given).forward(batch).value.item()
        for name, given, batch in zip(("group_dro", "erm"), ({"eta": 0.0}, {}), batches, strict=True)
    )
    assert group == pytest.approx(erm, rel=1e-6)


def test_micro_batches_move_the_weights_as_their_batch_does():
    found = []
    for pieces in (1, 4):
        run = domain_run("group_dro", parameters={"eta": 1.0}, model=partial(nn_without_statistics), accumulate=pieces)
        run.step(first_batch(run))
        found.append(list(run.task.diagnostics()["domain_weights"].values()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert max(found[0]) > 1 / DOMAINS + 1e-4


def nn_without_statistics() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))


@pytest.mark.parametrize("name", ["vrex", "group_dro"])
def test_data_that_do_not_say_their_domains_are_refused_in_words(name):
    for extra in ({}, {"domains": 1}):
        data = pair()
        data.facts = Facts("class", CLASSES, extra=extra)
        with pytest.raises(UsageError, match="needs two domains") as refused:
            domain_run(name, data=data)
        assert '"domain": (N,)' in refused.value.problems[0].hint
    data.facts = Facts("class", CLASSES, extra={"domains": 2})
    with pytest.raises(UsageError, match="domain of each sample"):
        domain_run(name, data=data).train()


def test_erm_takes_labels_with_or_without_a_domain():
    with_domain, without = several(), several()
    without.store.targets = without.store.targets["class"]
    trained = []
    for data in (with_domain, without):
        run = domain_run("erm", data=data)
        run.train()
        trained.append(state(run.model))
        assert set(run.evaluate(data)) == {"accuracy", "loss"}
    assert_same_state(*trained)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mcc", {"temperature": 0}),
        ("mcc", {"trade_off": -1.0}),
        ("mdd", {"margin": -1.0}),
        ("mdd", {"reversal_steps": -1}),
        ("vrex", {"beta": -0.1}),
        ("vrex", {"anneal_steps": -1}),
        ("group_dro", {"eta": -1.0}),
        ("erm", {"eta": 1.0}),
    ],
)
def test_parameters_that_cannot_be_are_refused(name, wrong):
    with pytest.raises(UsageError):
        discovery.build(TASKS[name], name, wrong)
    kind: Any = TASKS[name]
    if name != "erm":
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kind(**wrong)


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", TASKS)
def test_it_learns_and_its_ledger_is_what_is_counted_with_the_targets_passes(name):
    counter = StepCounter(10**9)
    model = partial(two_heads, 0.3) if name == "mdd" else small_net
    run = domain_run(name, counter=counter, epochs=8, optimizer="adam", lr=0.02, model=model)
    traced = trace_run(run, CPU)
    assert (traced.unknown, traced.note) == ((), "")
    before = run.evaluate(run.data)["loss"]
    run.train()
    assert run.evaluate(run.data)["loss"] < before
    work = Work(traced.lines, epochs=8, samples=SAMPLES, batch=8)
    assert work.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-3)
    if name == "mcc":
        alone = Work(trace_run(domain_run("source_only"), CPU).lines, epochs=8, samples=SAMPLES, batch=8)
        confusion = 3 * 2 * CLASSES**2 * 8 * SAMPLES  # a product of (classes × B)(B × classes), and its two gradients
        assert work.flop == pytest.approx(2 * alone.flop + confusion, rel=1e-6)


def fresh(name: str) -> Method:
    kind = discovery.load(SOURCES[name])
    return discovery.build(kind, name, dict(kind.example))


OF_SAMPLES = ("importance", "dlis", "low", "curriculum", "selective_backprop")
REFUSED = {
    **{(method, task): "E312" for method in OF_SAMPLES for task in ("vrex", "group_dro")},
    ("mezo", "mdd"): "E313",
}


@pytest.mark.parametrize("task", ["mcc", "mdd", "erm", "vrex", "group_dro"])
@pytest.mark.parametrize("name", SOURCES)
def test_every_method_trains_it_or_is_refused_in_words(name, task):
    method = fresh(name)
    problems = check_stack([method], TASKS[task]())
    assert {problem.code for problem in problems} == {REFUSED[name, task]} if (name, task) in REFUSED else not problems
    if problems:
        assert all(name in problem.message for problem in problems)
        return
    run = run_or_refusal(lambda: domain_run(task, [method], batch=6, epochs=4, lr=0.02))
    if run is None:
        return
    run.train()
    assert run.uncalled_overrides() == []
    losses = [point["loss"] for point in run.curve if point["loss"] is not None]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    assert set(run.evaluate(run.data)) == {"accuracy", "loss"}
    model = two_heads if task == "mdd" else small_net
    run.finish()
    assert [type(module) for module in run.model.modules()] == [type(module) for module in model().modules()]


def test_what_cannot_train_a_game_of_two_heads_is_told_why():
    (problem,) = check_stack([fresh("mezo")], MarginDisparity())
    assert "'mdd' acts on the backward pass" in problem.message
    assert problem.hint == "'mezo' cannot train the task 'mdd'"


@pytest.mark.parametrize("score", ["last-layer-gradient", "parameter-gradient"])
def test_a_score_that_takes_a_batch_apart_is_refused_beside_a_target(score):
    kind = discovery.load(SOURCES["importance"])
    method = discovery.build(kind, "importance", dict(kind.example) | {"score": score})
    with pytest.raises(UsageError, match="beside"):
        domain_run("mcc", [method])


@pytest.mark.parametrize("name", ["mcc", "mdd", "vrex", "group_dro"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_losses_in_single(name, precision):
    run = domain_run(name, precision=precision, accumulate=2, clip=1.0)
    assert run.forward(first_batch(run)).value.dtype == torch.float32
    run.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _adapted() -> dict[str, Any]:
    return mnist_to_digits()


def test_mnist_to_digits_has_the_targets_images_without_a_label_in_another_order():
    found = _adapted()
    images, labels = found["test"]
    unlabelled, nothing = found["target"]
    assert nothing is None
    assert images.shape == unlabelled.shape == (1797, 1, 28, 28)
    assert found["train"][0].shape == (5000, 1, 28, 28)
    assert sorted(labels.unique().tolist()) == sorted(found["train"][1].unique().tolist()) == list(range(10))
    key = torch.randint(10**6, (784,), generator=generator(0))
    flat, other = ((each.flatten(1).long() * key).sum(1) for each in (images, unlabelled))
    assert torch.equal(flat.sort().values, other.sort().values)  # the same images
    assert (flat == other).float().mean() < 0.01  # elsewhere
    small = torch.cat([digits()[part][0] for part in ("train", "test")])
    assert images.float().mean().item() == pytest.approx(small.float().mean().item(), rel=0.02)


def test_what_trains_holds_no_label_of_the_target(tmp_path):
    table = data_settings({"use": "mnist_to_digits", "batch": 16, "subset": 32})
    described = datasets.prepare(table, tmp_path)
    assert (described.parts, described.classes, described.train, described.test) == ({"target": 1797}, 10, 32, 1797)
    train = datasets.open_part(described, table, CPU, "train")
    part = train.parts["target"]
    assert part.store.targets is None
    assert part.facts.targets == "none"
    batch = next(iter(train.zipped(("target",)).load([torch.arange(16)])))
    assert batch.also["target"].targets is None
    assert batch.also["target"].inputs.shape == batch.inputs.shape


@pytest.mark.parametrize("seed", [0, 1])
def test_colours_and_labels_agree_as_often_as_they_are_said_to(seed):
    """Within four standard deviations of a share of so many."""
    found = coloured_mnist(seed=seed)
    images, targets = found["train"]
    assert images.shape == (4000, 2, 14, 14)
    assert not (images[:, 0].flatten(1).any(1) & images[:, 1].flatten(1).any(1)).any()  # one colour each
    colour = images[:, 1].flatten(1).any(1).long()
    for domain, share in enumerate((0.8, 0.9)):
        here = targets["domain"] == domain
        assert int(here.sum()) == 2000
        agrees = (colour == targets["class"])[here].float().mean().item()
        assert agrees == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2000))
    test, labels = found["test"]
    agrees = (test[:, 1].flatten(1).any(1).long() == labels).float().mean().item()
    assert agrees == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 1000))
    wrong = (labels != (_mnist5k()["test"][1] >= 5).long()).float().mean().item()
    assert wrong == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / 1000))
    assert torch.equal(test.sum(1).to(torch.uint8), _mnist5k()["test"][0][:, 0, ::2, ::2])


def test_without_chance_colours_are_what_they_are_said_to_be():
    found = coloured_mnist(label_noise=0.0, agreement=(1.0, 0.0, 1.0), test_agreement=1.0)
    images, targets = found["train"]
    colour = images[:, 1].flatten(1).any(1).long()
    assert torch.equal(colour == targets["class"], targets["domain"] != 1)
    test, labels = found["test"]
    assert torch.equal(labels, (_mnist5k()["test"][1] >= 5).long())
    assert torch.equal(test[:, 1].flatten(1).any(1).long(), labels)
    assert found["facts"]["extra"]["domains"] == 3
    assert torch.equal(coloured_mnist()["train"][0], coloured_mnist()["train"][0])


@pytest.mark.parametrize("wrong", [{"label_noise": 1.5}, {"agreement": [0.8]}, {"agreement": [0.8, -0.1]}])
def test_chances_that_are_none_are_refused(wrong, tmp_path):
    with pytest.raises(UsageError, match="from 0 to 1"):
        datasets.prepare(data_settings({"use": "coloured_mnist", "options": wrong}), tmp_path)


def domain_tree(folder: Path, name: str = "pacs", inside: str = "", domains: Any = ("art", "photo", "sketch")) -> None:
    """Two classes of two or three images in each domain, whose brightness is the domain's and the class's."""
    for number, domain in enumerate(domains):
        for label, kind in enumerate(("cat", "dog")):
            place = folder / name / domain / inside / kind
            place.mkdir(parents=True)
            for copy in range(2 + label):
                pixels = np.full((6, 8, 3), 60 * number + 20 * label + copy, dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{copy}.png")


@pytest.mark.parametrize(("name", "inside"), [("pacs", ""), ("office31", "images")])
def test_a_folder_of_domains_gives_a_pair(name, inside, tmp_path, monkeypatch):
    domain_tree(tmp_path, name, inside)
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    table = data_settings({"use": name, "options": {"source": "photo", "target": "sketch", "size": 4}})
    described = datasets.prepare(table, tmp_path / "cache")
    assert (described.train, described.test, described.parts) == (5, 5, {"target": 5})
    assert (described.shape, described.classes, described.class_names) == ((3, 4, 4), 2, ("cat", "dog"))
    assert described.extra == {}
    train, test = datasets.open_data(described, table, CPU)
    assert next(iter(train.in_order())).targets.tolist() == [0, 0, 1, 1, 1]
    assert train.store.inputs[:, 0, 0, 0].tolist() == [60, 61, 80, 81, 82]
    assert test.store.inputs[:, 0, 0, 0].tolist() == [120, 121, 140, 141, 142]
    assert sorted(train.parts["target"].store.inputs[:, 0, 0, 0].tolist()) == [120, 121, 140, 141, 142]
    assert train.parts["target"].store.targets is None


def test_a_folder_of_domains_gives_all_but_one(tmp_path, monkeypatch):
    domain_tree(tmp_path)
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    table = data_settings({"use": "pacs", "options": {"left_out": "photo", "size": 4}})
    described = datasets.prepare(table, tmp_path / "cache")
    assert (described.train, described.test, described.parts, described.classes) == (10, 5, {}, 2)
    assert described.extra == {"domains": 2, "domain_names": "art, sketch"}
    train, test = datasets.open_data(described, table, CPU)
    batch = next(iter(train.in_order()))
    assert batch.targets["class"].tolist() == [0, 0, 1, 1, 1] * 2
    assert batch.targets["domain"].tolist() == [0] * 5 + [1] * 5
    assert next(iter(test.in_order())).targets.tolist() == [0, 0, 1, 1, 1]
    run = make_run((), lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), train, GroupRobustness(), batch=4)
    run.train()
    assert set(run.evaluate(test)) == {"accuracy", "loss"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "options name none"),
        ({"source": "photo"}, "options have source"),
        ({"source": "photo", "target": "sketch", "left_out": "art"}, "source and target and left_out"),
        ({"source": "photo", "target": "photo"}, "one domain"),
        ({"source": "foto", "target": "sketch"}, "did you mean 'photo'"),
        ({"left_out": "sketches"}, "did you mean 'sketch'"),
        ({"left_out": "photo", "size": 0}, "options.size"),
    ],
)
def test_options_that_name_no_domains_are_refused_in_words(options, words, tmp_path, monkeypatch):
    domain_tree(tmp_path)
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    with pytest.raises(UsageError) as refused:
        datasets.prepare(data_settings({"use": "pacs", "options": options}), tmp_path / "cache")
    (problem,) = refused.value.problems
    assert problem.code == "E402"
    assert words in f"{problem.message} {problem.hint}"


def test_domains_that_do_not_fit_are_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    domain_tree(tmp_path, domains=("art", "photo"))
    told = {}
    for step, options in (
        ("two", {"left_out": "art"}),
        ("strange", {"source": "art", "target": "photo"}),
        ("flat", {"source": "art", "target": "photo"}),
    ):
        if step == "strange":
            (tmp_path / "pacs" / "photo" / "dog").rename(tmp_path / "pacs" / "photo" / "hound")
        if step == "flat":
            (tmp_path / "pacs").rename(tmp_path / "gone")
            (tmp_path / "pacs" / "art").mkdir(parents=True)
        with pytest.raises(UsageError) as refused:
            datasets.prepare(data_settings({"use": "pacs", "options": options}), tmp_path / "cache")
        told[step] = str(refused.value.problems[0].message)
    assert "no two to learn from" in told["two"]
    assert "differ in a class: 'dog'" in told["strange"]
    assert "a folder for each domain" in told["flat"]


@pytest.mark.parametrize(
    ("name", "options", "train", "test"),
    [
        ("pacs", {"source": "photo", "target": "sketch"}, 1670, 3929),
        ("pacs", {"left_out": "photo"}, 2048 + 2344 + 3929, 1670),
        ("office31", {"source": "amazon", "target": "webcam"}, 2817, 795),
    ],
)
def test_a_set_by_its_name_has_its_published_facts_where_it_is_not(name, options, train, test, tmp_path, monkeypatch):
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    table = data_settings({"use": name, "options": options | {"size": 16}, "batch": 4})
    described = datasets.prepare(table, tmp_path, known=True)
    assert (described.kind, described.train, described.test) == ("stand-in", train, test)
    assert (described.shape, described.classes) == ((3, 16, 16), {"pacs": 7, "office31": 31}[name])
    data, _ = datasets.open_data(described, table, CPU)
    if "left_out" in options:
        batch = next(iter(data.load([torch.arange(4)])))
        assert {key: value.tolist() for key, value in batch.targets.items()} == {"class": [0] * 4, "domain": [0] * 4}
        assert described.extra["domains"] == 3
    else:
        batch = next(iter(data.zipped(("target",)).load([torch.arange(4)])))
        assert (batch.targets.tolist(), batch.also["target"].targets) == ([0] * 4, None)
        assert described.parts == {"target": test}
    with pytest.raises(UsageError):
        datasets.prepare(table, tmp_path)
    wrong = data_settings({"use": name, "options": {"left_out": "fotos"}})
    with pytest.raises(UsageError, match="no domain 'fotos'"):
        datasets.prepare(wrong, tmp_path, known=True)


# ── suites ────────────────────────────────────────────────────────────────────────────────────────────────────────────

SUITES = {
    "tasks-adaptation": (5, ["mdd-digits", "mcc-art-to-photo"]),
    "tasks-adaptation-pairs": (36, ["mdd-sketch[target=art_painting]"]),
    "tasks-generalization": (6, ["vrex-colours", "group-dro-photo"]),
    "paper-gradsamp-adaptation": (12, ["mdd-amazon[target=webcam]"]),
    "paper-gradsamp-generalization": (12, ["group-dro[left_out=photo]"]),
}


@cache
def traced_suite(name: str) -> dict[str, Any]:
    """What is known of some workloads of a shipped suite where there are no data."""
    count, wanted = SUITES[name]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.delenv("ENERGYBENCH_DATA", raising=False)
        spec = spec_of(load(ROOT / "suites" / f"{name}.toml"), Path(folder), device="cpu", download=False)
        plan = planner.Plan(spec.model_copy(update={"purpose": "trace"}))
        trainings = {each.name: (number, each) for number, each in spec.trainings}
        assert len(trainings) == count
        found = {each: plan.workload(*trainings[each]) for each in wanted}
        assert plan.problems == []
        return found


@pytest.mark.parametrize("name", SUITES)
def test_its_suites_are_traced_where_there_are_no_data(name):
    for workload, known in traced_suite(name).items():
        assert known.ledger, workload


def test_a_step_of_the_papers_adaptation_takes_source_and_target_through_the_network():
    """ResNet-50 at 224 pixels has 4.09 G multiply-adds with its last layer of 2,048 × 1,000."""
    known = traced_suite("paper-gradsamp-adaptation")["mdd-amazon[target=webcam]"]
    forward = sum(line.flop for line in known.ledger if line.phase == "forward")
    heads = 2 * (1024 * 1024 + 1024 * 31)
    body = 4.0892e9 - 2048 * 1000 + 2048 * 1024
    assert forward == pytest.approx(2 * 2 * (body + heads), rel=2e-3)
    assert (known.samples, known.data.parts) == (2817, {"target": 795})
