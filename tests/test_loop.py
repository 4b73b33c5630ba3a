"""The loop: what a step computes, in which order its layers are entered, and that no layer moves another's draws."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes.replay import VirtualTime
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, assert_same_state, digits, double_run, make_run, state, tiny_cnn, tiny_mlp, vectors
from torch import Tensor, nn

from energybench.algorithms.neuron_freezing import Freezing
from energybench.common.errors import UsageError
from energybench.flops.counter import Counter
from energybench.runner.tracing import trace_task
from energybench.train import data as data_module
from energybench.train import discovery
from energybench.train.batch import Batch, Forward
from energybench.train.data import Data, Resident
from energybench.train.method import Method, Task
from energybench.train.recipe import Recipe
from energybench.train.run import Diverged
from energybench.train.trees import join, split
from energybench.workloads.tasks.classification import Classification

# ── what a step computes ──────────────────────────────────────────────────────────────────────────────────────────


def gradients(run, batch) -> list[Tensor]:
    run.gradients(batch)
    return [p.grad.clone() for p in run.model.parameters()]


@given(size=st.integers(1, 24), pieces=st.integers(1, 6), weighted=st.booleans())
def test_gradients_in_micro_batches_are_the_whole_batchs_gradients(size, pieces, weighted):
    batch = next(double_run().data.load([torch.arange(size)]))
    if weighted:
        batch = replace(batch, weights=torch.linspace(0, 3, size, dtype=torch.float64))
    whole = gradients(double_run(), batch)
    parts = gradients(double_run(accumulate=pieces), batch)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_the_whole_batchs_gradient_is_autograds_of_the_mean_loss():
    run = double_run(accumulate=3)
    batch = next(run.data.load([torch.arange(7)]))
    expected = torch.autograd.grad(
        F.cross_entropy(run.model(batch.inputs), batch.targets), list(run.model.parameters())
    )
    for one, other in zip(gradients(run, batch), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_weighted_loss_is_divided_by_the_number_of_samples_never_by_the_sum_of_weights():
    run = double_run()
    weights = torch.tensor([4.0, 0.0, 1.0, 2.5], dtype=torch.float64)
    batch = replace(next(run.data.load([torch.arange(4)])), weights=weights)
    each = F.cross_entropy(run.model(batch.inputs), batch.targets, reduction="none")
    expected = torch.autograd.grad(sum(weights[i] * each[i] for i in range(4)) / 4, list(run.model.parameters()))
    for one, other in zip(gradients(run, batch), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_task_without_losses_per_sample_refuses_weights():
    with pytest.raises(TypeError, match="per-sample"):
        Forward(torch.tensor(1.0), None, None).weighted(torch.ones(3))


def test_micro_batches_give_back_one_forward_for_the_whole_batch():
    batch = next(double_run().data.load([torch.arange(7)]))
    whole, parts = double_run().gradients(batch), double_run(accumulate=3).gradients(batch)
    torch.testing.assert_close(parts.value, whole.value.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.each, whole.each, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.outputs, whole.outputs, rtol=1e-12, atol=1e-15)


@given(size=st.integers(1, 30), other=st.integers(1, 30), pieces=st.integers(1, 8))
def test_splitting_a_batch_loses_and_repeats_no_sample_of_any_domain(size, other, pieces):
    def batch(count: int, **also: Batch) -> Batch:
        return Batch(
            {"a": torch.arange(count)}, torch.arange(count), torch.arange(count), torch.arange(count), also=also
        )

    cut = split(batch(size, probe=batch(other)), pieces)
    assert 1 <= len(cut) <= pieces
    assert all(len(piece) for piece in cut)
    for view in (lambda b: b.inputs["a"], lambda b: b.targets, lambda b: b.index, lambda b: b.weights):
        assert torch.cat([view(piece) for piece in cut]).tolist() == list(range(size))
        assert torch.cat([view(piece.also["probe"]) for piece in cut]).tolist() == list(range(other))


def test_joined_outputs_keep_their_tree():
    forwards = [
        Forward(torch.tensor(float(n)), None, {"x": torch.full((n, 2), n), "y": (torch.arange(n),)}) for n in (1, 3)
    ]
    whole = join(forwards, [1, 3])
    assert whole.value.item() == pytest.approx((1 * 1 + 3 * 3) / 4)
    assert whole.each is None
    assert whole.outputs["x"].shape == (4, 2)
    assert whole.outputs["y"][0].tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("clip", [0.01, 0.5])
def test_clipping_bounds_the_norm_of_the_update(clip):
    run = double_run(clip=clip, lr=1.0, epochs=1)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.step(next(run.data.load([torch.arange(8)])))
    moved = torch.cat([(p - b).flatten() for p, b in zip(run.model.parameters(), before, strict=True)]).norm()
    assert moved <= clip * (1 + 1e-9)
    assert moved > clip * 0.9


def test_plain_sgd_moves_by_the_learning_rate_times_the_gradient():
    run = double_run(lr=0.25)
    batch = next(run.data.load([torch.arange(8)]))
    before = state(run.model)
    run.step(batch)
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.25 * parameter.grad, rtol=1e-12, atol=1e-15)


# ── the learning rate ─────────────────────────────────────────────────────────────────────────────────────────────


class Recorder(Method):
    """Writes down what passes it, and may leave epochs out."""

    def __init__(self, name: str = "recorder", skip: frozenset[int] = frozenset()) -> None:
        self.name, self.skip = name, skip
        self.rates: list[tuple[int, int, float]] = []
        self.used: list[float] = []

    def epoch(self, run, data, inner):
        if run.epoch_number not in self.skip:
            inner(data)

    def update(self, run, part, inner):
        self.rates.append((run.epoch_number, run.step_in_epoch, run.lr(part)))
        inner(part)
        self.used += [group["lr"] for group in run.optimizer(part).param_groups]


CLOSED_FORMS = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1 - t,
    "cosine": lambda t: math.cos(math.pi * t / 2) ** 2,  # = (1 + cos πt) / 2
}


@pytest.mark.parametrize("schedule", CLOSED_FORMS)
@pytest.mark.parametrize("skip", [frozenset(), frozenset({2}), frozenset({2, 3})])
def test_the_learning_rate_is_a_function_of_progress_and_skipped_epochs_advance_it(schedule, skip):
    recorder = Recorder(skip=skip)
    run = double_run([recorder], schedule=schedule, lr=0.3, epochs=4)
    run.train()
    steps = 3  # 24 samples in batches of 8
    expected = [
        (epoch, step, 0.3 * CLOSED_FORMS[schedule](((epoch - 1) * steps + step) / (4 * steps)))
        for epoch in range(1, 5)
        if epoch not in skip
        for step in range(steps)
    ]
    assert [r[:2] for r in recorder.rates] == [e[:2] for e in expected]
    assert [r[2] for r in recorder.rates] == pytest.approx([e[2] for e in expected], abs=1e-15)
    assert recorder.used == pytest.approx([e[2] for e in expected], abs=1e-15)


def test_more_steps_than_planned_never_take_the_learning_rate_past_its_epoch():
    run = double_run(schedule="linear", lr=1.0, epochs=2)
    run.step_in_epoch = 1000
    assert run.lr() == pytest.approx(0.5)


# ── modes and evaluation ──────────────────────────────────────────────────────────────────────────────────────────


def test_frozen_statistics_normalise_by_the_batch_and_move_nothing():
    run = make_run()
    batch = next(run.data.load([torch.arange(16)]))
    before = state(run.model)
    frozen = run.forward(batch, mode="frozen_stats")
    assert_same_state(state(run.model), before)
    trained = run.forward(batch, mode="train")
    assert torch.equal(frozen.outputs, trained.outputs)
    after = state(run.model)
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert after["1.num_batches_tracked"] == before["1.num_batches_tracked"] + 1
    run.forward(batch, mode="eval", grad=False)
    assert_same_state(state(run.model), after)
    assert all(m.track_running_stats for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_forward_in_eval_mode_uses_the_running_statistics():
    run = make_run()
    batch = next(run.data.load([torch.arange(16)]))
    run.forward(batch, mode="train")
    outputs = run.forward(batch, mode="eval", grad=False).outputs
    run.model.eval()
    assert torch.equal(outputs, run.model(batch.inputs))
    assert not outputs.requires_grad


class Resting(Method):
    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    @contextmanager
    def eval_context(self, run):
        self.events.append(f"{self.name} rests")
        yield
        self.events.append(f"{self.name} wakes")


class Watched(Classification):
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def evaluate(self, run, data):
        self.events.append("evaluate")
        assert not run.model.training
        assert not torch.is_grad_enabled()
        return super().evaluate(run, data)


def test_every_evaluation_happens_inside_all_resting_contexts():
    events: list[str] = []
    run = make_run([Resting("a", events), Resting("b", events)], task=Watched(events))
    quality = run.evaluate(digits(32, test=True))
    assert events == ["a rests", "b rests", "evaluate", "b wakes", "a wakes"]
    assert set(quality) == {"accuracy", "loss"}


def test_evaluating_between_epochs_changes_nothing_that_follows():
    model = lambda: nn.Sequential(nn.Dropout(0.3), *tiny_cnn())  # noqa: E731
    quiet, watched = make_run(model=model, epochs=3), make_run(model=model, epochs=3)
    quiet.train()
    watched.train(lambda run: run.evaluate(digits(48, test=True)))
    assert_same_state(state(quiet.model), state(watched.model))


def test_accuracy_and_loss_are_the_naive_ones():
    run, test = make_run(label_smoothing=0.2), digits(50, test=True)
    run.train()
    quality = run.evaluate(test)
    logits = torch.cat([run.model(batch.inputs) for batch in test.in_order()])
    labels = torch.cat([batch.targets for batch in test.in_order()])
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True))
    assert quality["accuracy"] == pytest.approx(right / 50)
    assert quality["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


# ── updates and optimizers ────────────────────────────────────────────────────────────────────────────────────────


class Skips(Method):
    name = "skips"

    def __init__(self, steps: set[int]) -> None:
        self.steps, self.built = steps, 0

    def gradients(self, run, batch, inner):
        run.skip_update = run.step_in_epoch in self.steps
        return inner(batch)

    def optimizer(self, run, params, inner):
        self.built += 1
        return inner(params)


def test_a_skipped_update_moves_nothing_and_the_next_step_updates_again():
    method = Skips({0, 2})
    run = double_run([method], epochs=1)
    batch = next(run.data.load([torch.arange(8)]))
    before = state(run.model)
    run.step(batch)
    assert_same_state(state(run.model), before)
    assert method.built == 0  # nothing was updated yet, so there is no optimizer yet
    run.step(batch)
    assert any(not torch.equal(before[name], value) for name, value in state(run.model).items())
    assert (run.tally.updates, run.tally.steps, method.built) == (1, 2, 1)
    assert run.tally.passes().keys == {"1f1b0u": {"steps": 1, "samples": 8}, "plain": {"steps": 1, "samples": 8}}


class ForwardOnly(Method):
    """Owns gradients and update: two probes, a hand-made move."""

    name = "forward-only"
    replaces = frozenset({"gradients", "update"})
    runs = frozenset({"forward"})

    def __init__(self) -> None:
        self.built = 0

    def optimizer(self, run, params, inner):
        self.built += 1
        return inner(params)

    def gradients(self, run, batch, inner):
        run.forward(batch, grad=False)
        return run.forward(batch, grad=False)

    @torch.no_grad()
    def update(self, run, part, inner):
        for parameter in run.parameters(part):
            parameter -= run.lr(part)


def test_a_forward_only_method_builds_no_optimizer_and_its_passes_are_tallied():
    method = ForwardOnly()
    run = double_run([method], epochs=2)
    run.train()
    passes = run.tally.passes()
    assert method.built == 0
    assert (passes.forwards, passes.backwards, passes.updates) == (2 * 6, 0, 6)
    assert passes.samples_forward == 2 * 48
    assert passes.keys == {"2f0b1u": {"steps": 6, "samples": 48, "forwarded": 96}}


def test_the_optimizer_is_built_once_from_inside_out():
    order: list[str] = []

    class Builds(Skips):
        def optimizer(self, run, params, inner):
            order.append(f"{self.name} asks")
            made = inner(params)
            order.append(f"{self.name} has")
            return made

    outer, inner = Builds(set()), Builds(set())
    outer.name, inner.name = "outer", "inner"
    double_run([outer, inner], epochs=2).train()
    assert order == ["outer asks", "inner asks", "inner has", "outer has"]


# ── the wrapper chain ─────────────────────────────────────────────────────────────────────────────────────────────


class Layer(Method):
    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def _around(self, hook: str, inner, argument):
        self.events.append(f"{hook} {self.name}(")
        result = inner(argument)
        self.events.append(f"){self.name} {hook}")
        return result

    def setup(self, run):
        self.events.append(f"setup {self.name}")

    def finish(self, run):
        self.events.append(f"finish {self.name}")

    def epoch(self, run, data, inner):
        self._around("epoch", inner, data)

    def batches(self, run, data, inner):
        return self._around("batches", inner, data)

    def step(self, run, batch, inner):
        self._around("step", inner, batch)

    def gradients(self, run, batch, inner):
        return self._around("gradients", inner, batch)

    def update(self, run, part, inner):
        self._around("update", inner, part)


def test_each_hook_enters_the_outermost_layer_first_and_setup_begins_inside():
    events: list[str] = []
    run = double_run([Layer("a", events), Layer("b", events)], epochs=1, batch=24)
    assert events == ["setup b", "setup a"]
    events.clear()
    run.train()
    run.finish()

    def around(hook: str, *inside: str) -> list[str]:
        return [f"{hook} a(", f"{hook} b(", *inside, f")b {hook}", f")a {hook}"]

    one_step = around("step", *around("gradients"), *around("update"))
    assert events == [*around("epoch", *around("batches"), *one_step), "finish a", "finish b"]


def test_a_layer_that_was_never_entered_is_dead_and_named():
    class Deaf(Method):
        name = "deaf"
        replaces = frozenset({"step"})

        def step(self, run, batch, inner):
            pass

    run = double_run([Deaf(), Layer("inside", [])], epochs=1)
    run.train()
    assert run.uncalled_overrides() == ["inside.step", "inside.gradients", "inside.update"]


# ── draws ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Noisy(nn.Module):
    """Two convolutional layers behind a dropout of the model's own, which writes its masks down."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.body = nn.Dropout(0.4), tiny_cnn()
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = self.drop(torch.ones_like(x))
        self.masks.append(mask)
        return self.body(x * mask)


class Spy(Method):
    """Records by (epoch, step) what the baseline would see: samples, augmented inputs, the model's own masks."""

    name = "spy"

    def setup(self, run):
        self.initial = state(run.model)
        self.seen: dict[tuple[int, int], list[Tensor]] = {}

    def step(self, run, batch, inner):
        run.model.masks.clear()
        inner(batch)
        # Of the step's first pass: a method may pass more than once, and the next step must not notice.
        self.seen[run.epoch_number, run.step_in_epoch] = [batch.index, batch.inputs, *run.model.masks[:1]]


KINDS = {n: discovery.load(s) for n, s in discovery.sources().items() if s.path.parent.name == "methods"}
# The others choose samples of their own, or keep some of them for a probe, or train on images of another size.
CHOOSING = {"curriculum", "early_stopping", "progressive_resizing", "selective_backprop"}
SHIPPED = sorted(
    n for n, kind in KINDS.items() if not ("batches" in kind.replaces or issubclass(kind, Freezing) or n in CHOOSING)
)
APART = (1, 2, 5, 11)  # in the alphabet: each method stands outside of so many others, and inside of as many
STACKS = [(name,) for name in SHIPPED] + [
    (name, SHIPPED[(place + apart) % len(SHIPPED)]) for place, name in enumerate(SHIPPED) for apart in APART
]


def built(names: tuple[str, ...]) -> list[Method]:
    return [discovery.build(KINDS[name], name, dict(KINDS[name].example)) for name in names]


def spied(names: tuple[str, ...], seed: int = 7, outermost: bool = True) -> Spy | None:
    """None where the stack is refused."""
    spy, methods = Spy(), built(names)
    data = digits(64, ["flip", "crop1"])
    try:
        run = make_run([spy, *methods] if outermost else [*methods, spy], Noisy, data, seed=seed, epochs=5)
    except UsageError:
        return None
    run.train()
    return spy


def together(names: list[str]) -> tuple[str, ...]:
    """Of these as many as can stand in one stack, in their order."""
    found: tuple[str, ...] = ()
    for name in names:
        try:
            make_run(built((*found, name)), Noisy, digits(64), epochs=5)
        except UsageError:
            continue
        found = (*found, name)
    return found


def assert_same_draws(plain: Spy | None, other: Spy | None) -> None:
    assert plain is not None
    assert other is not None
    # A method may have made parameters of its own by then.
    assert_same_state(plain.initial, {name: other.initial[name] for name in plain.initial})
    common = plain.seen.keys() & other.seen.keys()
    assert len(common) >= 6  # at least three epochs of two steps
    for key in common:
        for a, b in zip(plain.seen[key], other.seen[key], strict=True):
            assert torch.equal(a, b), f"epoch and step {key}"


@pytest.mark.parametrize("names", STACKS, ids="+".join)
def test_no_stack_of_methods_moves_initial_weights_order_augmentation_or_the_models_own_dropout(names):
    if other := spied(names):
        assert_same_draws(spied(()), other)


@pytest.mark.parametrize("order", [SHIPPED, SHIPPED[::-1]], ids=["forwards", "backwards"])
def test_nor_do_as_many_methods_together_as_can_be(order):
    names = together(order)
    assert len(names) >= len(SHIPPED) // 2
    assert_same_draws(spied(()), spied(names))
    assert_same_draws(spied(()), spied(names, outermost=False))


def test_another_seed_draws_everything_anew():
    one, other = spied(()), spied((), seed=8)
    assert not torch.equal(one.initial["body.0.weight"], other.initial["body.0.weight"])
    for a, b in zip(one.seen[1, 0], other.seen[1, 0], strict=True):
        assert not torch.equal(a, b)


def test_each_epoch_sees_every_sample_once_in_an_order_of_its_own():
    spy = spied(())
    orders = [torch.cat([spy.seen[epoch, step][0] for step in (0, 1)]).tolist() for epoch in range(1, 6)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5


def test_passing_every_hook_on_gives_the_baselines_weights_bit_for_bit():
    plain, through = make_run(epochs=3), make_run([Layer("a", []), Layer("b", [])], epochs=3)
    plain.train()
    through.train()
    assert_same_state(state(plain.model), state(through.model))
    assert plain.tally.passes() == through.tally.passes()
    assert plain.curve == through.curve


def test_a_stream_depends_on_seed_name_and_key_alone():
    run, other = double_run(), double_run(seed=8)
    torch.manual_seed(1)
    first = torch.rand(5, generator=run.rng("a", 1))
    torch.manual_seed(2)
    assert torch.equal(torch.rand(5, generator=run.rng("a", 1)), first)
    for stream in (run.rng("a", 2), run.rng("b", 1), run.rng("a", "1"), other.rng("a", 1)):
        assert not torch.equal(torch.rand(5, generator=stream), first)


# ── tally, divergence ─────────────────────────────────────────────────────────────────────────────────────────────


@given(count=st.integers(1, 40), batch=st.integers(1, 16), pieces=st.integers(1, 3), epochs=st.integers(1, 3))
def test_plain_training_has_one_forward_and_backward_a_micro_batch_and_one_update_a_step(count, batch, pieces, epochs):
    run = double_run(data=vectors(count), batch=batch, accumulate=pieces, epochs=epochs)
    run.train()
    passes, steps = run.tally.passes(), -(-count // batch)
    sizes = [min(batch, count - start) for start in range(0, count, batch)]
    micro = sum(min(size, pieces) for size in sizes)
    assert (passes.updates, run.tally.steps) == (steps * epochs, steps * epochs)
    assert passes.forwards == passes.backwards == micro * epochs
    assert passes.samples_forward == count * epochs
    assert passes.epochs_trained == epochs
    assert sum(counts["samples"] for counts in passes.keys.values()) == count * epochs


def test_a_step_is_named_by_its_marks_and_by_passes_that_are_not_the_usual_ones():
    class Probes(Method):
        name, acted = "probes", False

        def gradients(self, run, batch, inner):
            if run.step_in_epoch == 1:
                run.forward(batch, mode="frozen_stats", grad=False)
                run.tally.mark(self, "probe")
            if run.step_in_epoch == 2:
                run.tally.mark(self, "narrow")
                run.tally.mark(self, "early")
            return inner(batch)

    method = Probes()
    run = double_run([method], epochs=2)
    run.train()
    each = {"steps": 2, "samples": 16}
    probed = each | {"forwarded": 32}
    assert run.tally.passes().keys == {"plain": each, "probe 2f1b1u": probed, "early narrow": each}
    assert method.acted is True


def test_a_loss_that_is_not_finite_ends_the_run_in_its_epoch():
    class Explodes(Classification):
        def forward(self, run, batch):
            forward = super().forward(run, batch)
            return replace(forward, value=forward.value / (run.epoch_number != 2))

    run = double_run(task=Explodes(), epochs=4)
    with pytest.raises(Diverged, match="epoch 2"):
        run.train()
    assert [point["epoch"] for point in run.curve] == [1, 2]


def test_an_epoch_without_a_step_has_no_loss_and_is_not_counted_as_trained():
    run = double_run([Recorder(skip=frozenset({2}))], epochs=3)
    run.train()
    assert [point["loss"] is None for point in run.curve] == [False, True, False]
    assert run.tally.passes().epochs_trained == 2


def test_the_curve_is_the_mean_loss_of_the_epochs_steps():
    losses: list[float] = []

    class Keeps(Method):
        def gradients(self, run, batch, inner):
            forward = inner(batch)
            losses.append(forward.value.item())
            return forward

    run = double_run([Keeps()], epochs=2)
    run.train()
    assert [p["loss"] for p in run.curve] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


# ── other kinds of tasks ──────────────────────────────────────────────────────────────────────────────────────────


class Gan(Task):
    """A critic and a generator in turn, each with an optimizer of its own."""

    name = "gan"
    parts = ("critic", "generator")
    provides = frozenset({"forward", "backward"})

    def parameters(self, run, part):
        return run.model[part].parameters()

    def batches(self, run, data, inner):
        for batch in inner(data):
            for part in self.parts:
                yield replace(batch, part=part)

    def forward(self, run, batch):
        noise = torch.randn(len(batch), 2, generator=run.rng("noise", run.epoch_number, run.step_in_epoch))
        made = run.model["generator"](noise.double())
        if batch.part == "generator":
            return Forward(F.softplus(-run.model["critic"](made)).mean(), None, made)
        real, fake = run.model["critic"](batch.inputs), run.model["critic"](made.detach())
        return Forward(F.softplus(-real).mean() + F.softplus(fake).mean(), None, made)


def gan_model() -> nn.Module:
    return nn.ModuleDict({"critic": tiny_mlp(6, 1), "generator": tiny_mlp(2, 6)}).double()


def test_a_task_of_two_parts_updates_each_by_its_own_optimizer():
    moved: list[tuple[str, set[str]]] = []

    class Looks(Method):
        name = "looks"

        def step(self, run, batch, inner):
            before = state(run.model)
            inner(batch)
            changed = {
                name.split(".")[0] for name, value in state(run.model).items() if not torch.equal(value, before[name])
            }
            moved.append((batch.part, changed))

    run = double_run([Looks()], task=Gan(), model=gan_model, epochs=2, optimizer="adam", momentum=0.0)
    run.train()
    assert moved == [("critic", {"critic"}), ("generator", {"generator"})] * 6
    assert run.optimizer("critic") is not run.optimizer("generator")
    assert run.tally.passes().updates == 12
    assert run.tally.passes().keys == {"plain": {"steps": 12, "samples": 96}}


class Scene(Task):
    """Dict inputs, dict targets and two losses, as in detection."""

    name = "scene"

    def forward(self, run, batch):
        outputs = run.model(batch.inputs)
        kind = F.cross_entropy(outputs["kind"], batch.targets["kind"], reduction="none")
        place = F.mse_loss(outputs["place"], batch.targets["place"], reduction="none").mean(1)
        return Forward((kind + place).mean(), kind + place, outputs)

    def evaluate(self, run, data):
        right = sum(int((run.model(b.inputs)["kind"].argmax(1) == b.targets["kind"]).sum()) for b in data.in_order())
        return {"accuracy": right / len(data)}


class SceneModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.look, self.listen = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(5, 4)
        self.kind, self.place = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = self.look(inputs["image"]).relu().mean((2, 3))
        both = torch.cat([seen, self.listen(inputs["sound"])], 1)
        return {"kind": self.kind(both), "place": self.place(both)}


def scenes(count: int = 40) -> Data:
    random = torch.Generator().manual_seed(5)
    inputs = {"image": torch.randn(count, 1, 6, 6, generator=random), "sound": torch.randn(count, 5, generator=random)}
    targets = {"kind": torch.randint(3, (count,), generator=random), "place": torch.rand(count, 2, generator=random)}
    return Data(Resident(inputs, targets, CPU))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_task_with_trees_of_inputs_and_targets_trains_and_evaluates(accumulate):
    run = make_run(task=Scene(), model=SceneModel, data=scenes(), batch=16, epochs=8, accumulate=accumulate)
    run.train()
    assert run.curve[-1]["loss"] < run.curve[0]["loss"]
    assert 0 <= run.evaluate(scenes())["accuracy"] <= 1


def test_the_ledger_of_such_a_task_equals_the_counter():
    data, recipe = scenes(), Recipe(epochs=1, batch=16)
    batch = next(data.load([torch.arange(16)]))
    lines = trace_task(Scene(), SceneModel(), recipe, batch, CPU).lines
    run = make_run(task=Scene(), model=SceneModel, data=data, batch=16)
    with Counter() as counter:
        run.gradients(batch)
    # conv: forward and dW, no dX for the first layer; sound: likewise; heads: forward, dW and dX
    conv, sound, heads = 2 * 9 * 4 * 36, 2 * 5 * 4, 2 * 8 * 5
    assert sum(line.flop for line in lines) == 2 * conv + 2 * sound + 3 * heads
    assert sum(line.flop for line in lines) * 16 == pytest.approx(counter.total, rel=1e-3)
    assert {line.module for line in lines if line.flop} == {"look", "listen", "kind", "place"}


@dataclass
class Also(Method):
    """Attaches a batch of another domain to each step."""

    name: str = field(default="also", init=False)

    def step(self, run, batch, inner):
        probe = next(run.data.load([torch.arange(5)]))
        inner(replace(batch, also={"probe": probe}))


def test_a_step_may_carry_batches_of_other_domains():
    seen: list[int] = []

    class Adapts(Classification):
        def forward(self, run, batch):
            seen.append(len(batch.also["probe"]))
            return super().forward(run, batch)

    double_run([Also()], task=Adapts(), epochs=1, accumulate=2).train()
    assert [seen[i] + seen[i + 1] for i in range(0, 6, 2)] == [5, 5, 5]


class NoLoss(Task):
    name = "unfinished"


def test_an_unfinished_task_says_what_it_must_define():
    run: Any = double_run(task=NoLoss())
    with pytest.raises(NotImplementedError, match="NoLoss must define forward"):
        run.train()
    with pytest.raises(NotImplementedError, match="NoLoss must define evaluate"):
        run.evaluate(run.data)


# ── waiting for data ──────────────────────────────────────────────────────────────────────────────────────────────


TIME = VirtualTime()


class Slow(Method):
    """Takes 20 ms to choose each batch."""

    name = "slow"
    replaces = frozenset({"batches"})

    def batches(self, run, data, inner):
        def positions():
            for piece in data.cut(run.order(data), run.recipe.batch):
                TIME.sleep(0.02)
                yield piece

        return run.load(data, positions())


class SlowStore(Resident):
    """Takes 20 ms to fetch each batch."""

    def fetch(self, batches):
        for item in super().fetch(batches):
            TIME.sleep(0.02)
            yield item


def test_only_the_wait_for_data_counts_as_one_and_not_the_choice_of_samples(monkeypatch):
    monkeypatch.setattr(data_module, "time", SimpleNamespace(perf_counter_ns=TIME.now_ns))
    chosen = make_run([Slow()], epochs=1, batch=16)
    chosen.train()
    plain = digits()
    fetched = make_run(
        [], data=Data(SlowStore(plain.store.inputs, plain.store.targets, CPU), plain.images), epochs=1, batch=16
    )
    fetched.train()
    steps = 6
    assert chosen.tally.steps == fetched.tally.steps == steps
    assert chosen.tally.data_wait_ns == 0
    assert fetched.tally.data_wait_ns == steps * 20e6


def test_who_owns_gradients_and_zeroes_nothing_trains_as_who_zeroes() -> None:
    class Forgets(Method):
        replaces = frozenset({"gradients"})

        def gradients(self, run, batch, inner):
            forward = run.forward(batch)
            run.backward(forward.value)
            run.add_loss(forward.value)
            return forward

    plain, forgets = double_run(epochs=2), double_run([Forgets()], epochs=2)
    plain.train()
    forgets.train()
    assert_same_state(state(forgets.model), state(plain.model))


def test_forward_passes_aside_are_in_no_tally_and_no_hash() -> None:
    run, plain = double_run(epochs=1), double_run(epochs=1)
    with run.aside():
        run.forward(next(run.data.in_order()), mode="eval", grad=False)
    run.train()
    plain.train()
    assert run.tally.passes() == plain.tally.passes()
    assert run.samples_sha256() == plain.samples_sha256()


def test_the_hash_of_samples_tells_another_order_and_another_number() -> None:
    class Turns(Method):
        def batches(self, run, data, inner):
            return list(inner(data))[::-1]

    class Leaves(Method):
        def batches(self, run, data, inner):
            return list(inner(data))[:-1]

    hashes = set()
    for stack in ([], [Turns()], [Leaves()], []):
        run = double_run(stack, epochs=2)
        run.train()
        hashes.add(run.samples_sha256())
    assert len(hashes) == 3
