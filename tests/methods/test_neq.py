"""neq: who rests, that it rests bit for bit, what that leaves out of the backward, and whom it gets along with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support import CLASSES, CPU, MODELS, assert_same_state, digits, make_run, state, tiny_cnn, velocity
from torch import Tensor, nn

from energybench.algorithms.frozen_layers import FrozenLayer
from energybench.algorithms.neurons import find
from energybench.common.errors import UsageError
from energybench.flops.work import Line, Work
from energybench.papers.counting_rules import neq_saved, thop_forward
from energybench.runner.tracing import trace_task
from energybench.train import discovery
from energybench.train.data import Data, Resident
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import datasets
from energybench.workloads.tasks.classification import Classification

KIND: Any = discovery.load(discovery.sources()["neq"])


class EverySecond(KIND):
    """Every second neuron rests from the second epoch on, whatever its velocity."""

    def live(self, run):
        return torch.arange(len(self._velocity)) % 2 == 0


class OneInEight(KIND):
    """So few rest that an epoch's update still has a shape to draw from."""

    def live(self, run):
        return torch.arange(len(self._velocity)) % 8 != 0


def method(kind: Any = KIND, **parameters: Any) -> Any:
    return discovery.build(kind, "neq", parameters)


def other(name: str, **parameters: Any) -> Any:
    return discovery.build(discovery.load(discovery.sources()[name]), name, parameters)


def resting_rows(made: Any) -> list[tuple[nn.Parameter, int, Tensor]]:
    """(parameter, dimension, positions) of what rests now."""
    return [
        (p, dim, (~live).nonzero().flatten())
        for neurons, live in zip(made._gated, made._live, strict=True)
        for p, dim in neurons.rows
        if not live.all()
    ]


class Samples(Method):
    """Innermost: which samples are trained on."""

    name = "samples"

    def setup(self, run):
        self.seen: set[int] = set()

    def step(self, run, batch, inner):
        self.seen |= set(batch.index.tolist())
        inner(batch)


# ── who rests ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Outside(Method):
    """Outermost: its own account of outputs, velocities and of what moved, from plain forward passes."""

    name = "outside"

    def __init__(self, made: Any) -> None:
        self.made = made

    def setup(self, run):
        self.outputs: list[dict[str, Tensor]] = []
        self.moved: list[dict[str, Tensor]] = []

    def epoch(self, run, data, inner):
        if not self.outputs:
            self.look(run)
        before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        inner(data)
        self.moved.append(
            {
                name: (p != before[name]).flatten(1 if p.dim() > 1 else 0).reshape(len(p), -1).any(1)
                for name, p in run.model.named_parameters()
            }
        )
        self.look(run)

    def look(self, run):
        found: dict[str, Tensor] = {}
        hooks = [m.register_forward_hook(partial(self.keep, found, name)) for name, m in run.model.named_modules()]
        training = run.model.training
        run.model.eval()
        with torch.no_grad():
            for batch in self.made._probe_data.in_order():
                run.model(batch.inputs)
        run.model.train(training)
        for hook in hooks:
            hook.remove()
        self.outputs.append(found)

    @staticmethod
    def keep(found: dict[str, Tensor], name: str, module: Any, inputs: Any, y: Tensor) -> None:
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            found[name] = y.transpose(0, 1).flatten(1).double().clone()
        elif isinstance(module, (nn.Linear, nn.LayerNorm)):
            found[name] = y.movedim(-1, 0).flatten(1).double().clone()


@pytest.mark.parametrize("mode", ["sliced", "released"])
@pytest.mark.parametrize("model", MODELS)
def test_a_neuron_rests_in_the_epoch_after_its_velocity_fell_to_epsilon_and_only_then(mode, model):
    """Velocities from outputs that the test takes itself; a neuron that does not rest moves."""
    made = method(mode=mode, epsilon=0.02)
    watch = Outside(made)
    run = make_run([watch, made], MODELS[model], epochs=6, decay=0.01)
    run.train()
    rested = 0
    for name in watch.outputs[0]:
        phi = torch.stack(
            [
                torch.nan_to_num(torch.cosine_similarity(now[name], before[name], dim=1, eps=0), nan=1.0)
                for before, now in zip(watch.outputs, watch.outputs[1:], strict=False)
            ]
        )
        speed = velocity(phi, 0.5).abs()
        assert watch.moved[0][f"{name}.weight"].all()  # nothing rests in the first epoch
        for epoch in range(1, 6):
            at_rest = speed[epoch - 1] <= 0.02
            sure = (speed[epoch - 1] - 0.02).abs() > 1e-5
            for key in ("weight", "bias"):
                if f"{name}.{key}" in watch.moved[epoch]:
                    moved = watch.moved[epoch][f"{name}.{key}"]
                    assert not moved[at_rest & sure].any()
                    assert moved[~at_rest & sure].all()
            rested += int((at_rest & sure).sum())
    assert rested > 10


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adagrad"])
@pytest.mark.parametrize("mode", ["sliced", "released"])
def test_what_rests_stays_bit_for_bit_under_every_optimizer(optimizer, mode):
    made = method(EverySecond, mode=mode)
    run = make_run([made], optimizer=optimizer, lr=0.01, momentum=0.9 if optimizer == "sgd" else 0.0, decay=0.1)
    run.train_epoch(1)
    before = {p: p.detach().clone() for p in run.model.parameters()}
    run.train_epoch(2)
    rows = resting_rows(made)
    assert len(rows) == len(before)
    for parameter, dim, positions in rows:
        kept, was = parameter.index_select(dim, positions), before[parameter].index_select(dim, positions)
        assert torch.equal(kept, was)
        assert not torch.equal(parameter, before[parameter])


def test_momentum_of_what_rests_is_zero_so_it_starts_anew():
    made = method(EverySecond)
    run = make_run([made], decay=0.1)
    run.train()
    optimizer = run.optimizer()
    for parameter, dim, positions in resting_rows(made):
        assert not optimizer.state[parameter]["momentum_buffer"].index_select(dim, positions).any()
        assert optimizer.state[parameter]["momentum_buffer"].any()


def test_batch_statistics_of_what_rests_go_on():
    made = method(EverySecond)
    run = make_run([made])
    run.train_epoch(1)
    before = run.model[1].running_mean.clone()
    run.train_epoch(2)
    assert (run.model[1].running_mean != before).all()


# ── the two modes ─────────────────────────────────────────────────────────────────────────────────────────────────


def in_double() -> Data:
    images, labels = datasets.digits()["train"]
    return Data(Resident(images[:96].double() / 16, labels[:96], CPU))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_both_modes_train_alike(model, clip):
    """In double precision; what one does not compute, the other computes and throws away."""
    states = []
    for mode in ("sliced", "released"):
        run = make_run(
            [method(EverySecond, mode=mode, slice_from=0.0)],
            lambda: MODELS[model]().double(),
            in_double(),
            epochs=4,
            decay=0.01,
            clip=clip,
        )
        run.train()
        states.append(state(run.model))
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-9, atol=1e-11)


class Without(Method):
    """Plain training on the data less another method's probe."""

    name = "without"

    def __init__(self, probe: Any) -> None:
        self.probe = probe

    def epoch(self, run, data, inner):
        keep = ~torch.isin(data.indices, self.probe.indices)
        inner(data.subset(keep.nonzero().flatten()))


@pytest.mark.parametrize("mode", ["sliced", "released"])
def test_where_nothing_rests_it_is_plain_training_on_the_data_without_the_probe(mode):
    made = method(mode=mode, epsilon=0.0)
    run = make_run([made], epochs=3)
    run.train()
    assert not any(made._held)
    plain = make_run([Without(made._probe_data)], epochs=3)
    plain.train()
    assert_same_state(state(run.model), state(plain.model))
    assert made.acted is False
    assert run.tally.passes().keys == plain.tally.passes().keys


def test_the_probe_is_split_off_and_never_trained_on():
    made, samples = method(probe=0.5), Samples()
    run = make_run([made, samples], epochs=3)
    run.train()
    probe = set(made._probe_data.indices.tolist())
    assert len(probe) == 48
    assert not probe & samples.seen
    assert probe | samples.seen == set(range(96))


@pytest.mark.parametrize(("count", "share", "size"), [(96, 0.01, 32), (96, 0.4, 38), (40, 0.01, 20), (1000, 0.05, 50)])
def test_the_probe_is_a_share_of_the_data_at_least_32_samples_and_at_most_half(count, share, size):
    made = method(probe=share)
    made.setup(make_run([], data=digits(count)))
    assert len(made._probe_data) == size


def test_it_looks_once_before_training_and_after_every_epoch_but_the_last():
    made = method()
    run = make_run([made], epochs=5)
    run.train()
    assert made.diagnostics()["probe_looks"] == 5
    assert run.tally.samples_forward == 5 * 32 + 5 * 64


# ── what it saves ─────────────────────────────────────────────────────────────────────────────────────────────────


def counted_and_estimated(
    model: Callable[[], nn.Module], *made: Any, epochs: int = 4, count: int = 96
) -> tuple[float, float]:
    """Shares of plain training's FLOPs that an independent counter saw and that the formulas give."""
    totals = []
    for stack in (made, ()):
        layer = StepCounter(10**9)
        run = make_run([*stack], model, counter=layer, data=digits(count), epochs=epochs)
        run.train()
        totals.append(layer.result(run).counted_flop)
    batch = next(iter(run.data.load([torch.arange(2)])))
    lines = trace_task(Classification(), model(), Recipe(epochs=epochs, batch=32), batch, run.device).lines
    plain = work = Work(lines, epochs=epochs, samples=count)
    for layer_of_stack in reversed(made):
        work = layer_of_stack.estimate(work)
    return totals[0] / totals[1], work.flop / plain.flop


@pytest.mark.parametrize("slice_from", [0.0, 0.6])
@pytest.mark.parametrize("model", MODELS.values())
def test_what_is_counted_is_what_is_estimated(model, slice_from):
    counted, estimated = counted_and_estimated(model, method(EverySecond, slice_from=slice_from))
    assert counted == pytest.approx(estimated, abs=1e-3)


@pytest.mark.parametrize("model", MODELS.values())
def test_where_everything_rests_no_backward_is_left_but_of_one_small_parameter(model):
    made = method(epsilon=2.0)
    counted, estimated = counted_and_estimated(model, made)
    assert counted == pytest.approx(estimated, abs=5e-3)
    run = make_run([made := method(epsilon=2.0)], model, epochs=3)
    run.train_epoch(1)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train_epoch(2)
    resting = {f"{n.name}.{key}" for n in find(run.model) for key in ("weight", "bias")}
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters() if name in resting)


def test_the_estimate_by_hand():
    """tiny_cnn, 96 samples, 32 of them the probe; every second neuron rests in 3 of 4 epochs.

    dW of conv 0, conv 4 and the linear layer: (1 + 3/2)/4 of a plain epoch's; dX whole; the probe: 4 looks at 32.
    """
    made = method(EverySecond, slice_from=0.0)
    run = make_run([made], epochs=4)
    run.train()
    lines = tuple(
        Line(phase, module, op, 100.0)
        for phase in ("forward", "weight_gradient", "input_gradient")
        for module, op in (("0", "conv"), ("4", "conv"), ("9", "linear"))
    )
    found: dict[tuple[str, str], float] = {}
    for line in made.estimate(Work(lines, 4, 96)).lines:
        found[line.phase, line.module] = line.flop
    for module in "049":
        assert found["forward", module] == pytest.approx(100 * 64 / 96)
        assert found["weight_gradient", module] == pytest.approx(100 * 64 / 96 * 0.625)
        assert found["probe", module] == pytest.approx(100 * 32 / 96)
    # The first layer's input learns nothing.
    assert [found["input_gradient", module] for module in "049"] == pytest.approx([0, 200 / 3, 200 / 3])


def test_bytes_of_a_sliced_product_are_those_of_its_live_rows_and_of_all_of_x():
    made = method(EverySecond, slice_from=0.0)
    make_run([made], epochs=4).train()
    line = Line("weight_gradient", "4", "conv", 1.0, sample_b={"x": 8.0, "dy": 8.0}, step_b={"dw": 8.0})
    (found,) = [x for x in made.estimate(Work((line,), 4, 96)).lines if x.phase == "weight_gradient"]
    trained = 64 / 96
    assert found.sample_b == pytest.approx({"x": 8 * trained, "dy": 8 * trained * 0.625})
    assert found.step_b == pytest.approx({"dw": 8 * trained * 0.625})


@pytest.mark.parametrize("model", MODELS.values())
def test_as_released_nothing_is_saved_and_the_estimate_is_the_papers_rule(model):
    made = method(EverySecond, mode="released")
    counted, estimated = counted_and_estimated(model, made)
    trained, looked = 64 / 96, 32 / 96
    backward = 2 / 3  # about: the first layer has no dX
    assert counted == pytest.approx(trained + looked * (1 - backward), abs=0.02)
    operations = thop_forward(model(), (1, 1, 8, 8))
    frozen = [dict.fromkeys(operations, 0.5 * (epoch > 0)) for epoch in range(4)]
    assert made.saved_by_the_papers_rule() == pytest.approx(neq_saved(operations, frozen) / 100, abs=0.02)
    assert estimated < counted - 0.1
    assert "zeroes" in made.gap_because
    assert method().gap_because is None


def test_a_step_says_whether_anything_rested():
    each = {"steps": 2, "samples": 64}
    for mode, word in (("sliced", "frozen"), ("released", "masked")):
        run = make_run([method(EverySecond, mode=mode)], epochs=2)
        run.train()
        assert run.tally.passes().keys == {"plain": each, word: each}


def test_the_record_has_the_share_that_rested_by_layer_and_epoch():
    made = method(EverySecond, slice_from=0.0)
    run = make_run([made], epochs=3)
    run.train()
    found = made.diagnostics()
    assert found["frozen_by_layer"] == {name: [0.0, 0.5, 0.5] for name in "01459"}
    assert [entry["frozen"] for entry in found["epochs"]] == [0, 0.5, 0.5]
    assert found["weight_gradients_computed"] == {name: pytest.approx(2 / 3, abs=1e-4) for name in "049"}
    assert found["probe_samples"] == 32
    assert found["probe_memory_b"] == 4 * 32 * (2 * 8 * 64 + 2 * 16 * 16 + CLASSES)


# ── parameters ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "fast"},
        {"epsilon": -1e-3},
        {"epsilon": float("inf")},
        {"velocity_momentum": 1.0},
        {"probe": 0.0},
        {"probe": 1.0},
        {"recursion": "other"},
        {"similarity": "sum"},
        {"slice_from": 1.5},
    ],
)
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError) as refused:
        method(**wrong)
    assert refused.value.problems[0].code == "E304"


@pytest.mark.parametrize(
    "parameters", [{"recursion": "reference"}, {"similarity": "per_sample"}, {"velocity_momentum": 0.0}]
)
def test_the_velocity_is_the_one_that_was_asked_for(parameters):
    """With ε = 0 nothing rests, so the weights are the same."""
    found = []
    for settings in ({}, parameters):
        made = method(epsilon=0.0, **settings)
        run = make_run([made], epochs=4)
        run.train()
        found.append((state(run.model), made._velocity))
    assert_same_state(found[0][0], found[1][0])
    assert (found[0][1] != found[1][1]).float().mean() > 0.8


# ── with others ───────────────────────────────────────────────────────────────────────────────────────────────────


class Twin(nn.Module):
    """A model whose first layer is outside of what rests, as a class token is."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.body = nn.Parameter(torch.zeros(64)), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1) + self.shift)


def test_a_parameter_of_no_layer_learns_on_and_the_gradient_reaches_it():
    run = make_run([method(epsilon=2.0)], Twin, epochs=2)
    run.train_epoch(1)
    before = run.model.shift.detach().clone()
    run.train_epoch(2)
    assert (run.model.shift != before).any()


@pytest.mark.parametrize("order", [["neq", "ssprop"], ["ssprop", "neq"]])
def test_sliced_and_a_method_that_swaps_the_same_layers_are_refused_with_a_remedy_that_works(order):
    def stack(mode: str) -> list[Any]:
        return [method(mode=mode) if name == "neq" else other("ssprop", drop=0.5) for name in order]

    (problem,) = check_stack(stack("sliced"), Classification())
    assert problem.code == "E314"
    assert "give 'neq' mode = \"released\"" in problem.hint
    assert check_stack(stack("released"), Classification()) == []
    made = stack("released")
    run = make_run(made, epochs=6)
    run.train()
    neq, ssprop = (made[order.index(name)] for name in ("neq", "ssprop"))
    assert neq.diagnostics()["probe_memory_b"] > 0
    assert ssprop.acted
    run.finish()
    assert [type(m) for m in run.model.modules()] == [type(m) for m in tiny_cnn().modules()]


def test_two_methods_that_swap_different_layers_may_stand_together():
    assert check_stack([other("ssprop"), other("dropout")], Classification()) == []


@pytest.mark.parametrize("order", [["neq", "gradsamp"], ["gradsamp", "neq"]])
def test_skipped_epochs_move_only_what_is_live_or_stand_outside(order):
    """Inside, a drawn update may not move what rests. Outside, it moves all, and then the next epoch holds it there."""
    made = method(OneInEight)
    stack = [made if name == "neq" else other("gradsamp", skip="every:3") for name in order]
    run = make_run(stack, epochs=5)
    for epoch in range(1, 6):
        before = {p: p.detach().clone() for p in run.model.parameters()}
        run.train_epoch(epoch)
        if epoch == 1 or (epoch == 3 and order[0] == "gradsamp"):
            continue
        for parameter, dim, positions in resting_rows(made):
            was = before[parameter].index_select(dim, positions)
            assert torch.equal(parameter.index_select(dim, positions), was)
        assert any(not torch.equal(p, was) for p, was in before.items())
    assert run.uncalled_overrides() == []


@pytest.mark.parametrize("order", [["neq", "gradsamp"], ["gradsamp", "neq"]])
def test_with_skipped_epochs_what_is_counted_is_what_is_estimated(order):
    made = {"neq": method(EverySecond), "gradsamp": other("gradsamp", skip="every:3")}
    counted, estimated = counted_and_estimated(tiny_cnn, *(made[name] for name in order), epochs=6)
    assert counted == pytest.approx(estimated, abs=0.01)


def narrow() -> nn.Module:
    """Few samples to a parameter, so that what costs the same in every step shows."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, CLASSES))


@pytest.mark.parametrize("order", [["neq", "ultimate"], ["ultimate", "neq"]])
def test_what_a_learned_learning_rate_costs_is_estimated_whole_in_either_order(order):
    """48 of 96 samples are the probe: whose steps are fewer, not cheaper."""
    made = {"neq": method(EverySecond, probe=0.5), "ultimate": other("ultimate", hyper_lr=1e-6)}
    counted, estimated = counted_and_estimated(narrow, *(made[name] for name in order))
    assert counted == pytest.approx(estimated, abs=1e-6)


@pytest.mark.parametrize("order", [["neq", "ultimate"], ["ultimate", "neq"]])
def test_with_a_learned_learning_rate_in_either_order(order):
    states = []
    for names in (order, order[::-1]):
        made = {"neq": method(EverySecond), "ultimate": other("ultimate", hyper_lr=1e-3)}
        stack = [made[name] for name in names]
        assert check_stack(stack, Classification()) == []
        run = make_run(stack, epochs=3, decay=0.1)
        run.train_epoch(1)
        run.train_epoch(2)
        before = {p: p.detach().clone() for p in run.model.parameters()}
        run.train_epoch(3)
        for parameter, dim, positions in resting_rows(made["neq"]):
            was = before[parameter].index_select(dim, positions)
            assert torch.equal(parameter.index_select(dim, positions), was)
        assert made["ultimate"].acted
        assert made["neq"].acted
        states.append(state(run.model))
    assert_same_state(*states)


def test_noise_does_not_move_what_rests():
    made = method(EverySecond)
    run = make_run([made, other("sgld")], epochs=3)
    run.train_epoch(1)
    before = {p: p.detach().clone() for p in run.model.parameters()}
    run.train_epoch(2)
    for parameter, dim, positions in resting_rows(made):
        was = before[parameter].index_select(dim, positions)
        assert torch.equal(parameter.index_select(dim, positions), was)


def test_warming_up_needs_no_epoch():
    """Steps without an epoch around them, as a warm-up takes them: nothing rests, so they are plain training's."""
    run, plain = make_run([method()]), make_run([])
    for each in (run, plain):
        for batch in each.batches(each.data):
            each.step(batch)
    assert run.tally.steps == plain.tally.steps > 0
    assert_same_state(state(run.model), state(plain.model))


def test_finish_lets_everything_learn_again():
    made = method(epsilon=2.0)
    learning: list[bool] = []

    class Looks(Method):
        def gradients(self, run, batch, inner):
            learning.append(all(p.requires_grad for p in run.model.parameters()))
            return inner(batch)

    run = make_run([Looks(), made], epochs=3)
    run.train()
    assert (learning[0], learning[-1]) == (True, False)
    assert any(isinstance(m, FrozenLayer) for m in run.model.modules())
    run.finish()
    assert all(p.requires_grad for p in run.model.parameters())
    assert not any(isinstance(m, FrozenLayer) for m in run.model.modules())


def test_counted_steps_leave_the_same_weights_under_decay_and_a_learned_rate() -> None:
    """The counter of operators sees the optimizer's `_foreach_` ones; resting neurons rest all the same."""

    def trained(counter: StepCounter | None) -> dict[str, Tensor]:
        run = make_run([method(EverySecond), other("ultimate")], epochs=3, decay=0.01, counter=counter)
        run.train()
        return state(run.model)

    assert_same_state(trained(None), trained(StepCounter(10**9)))
