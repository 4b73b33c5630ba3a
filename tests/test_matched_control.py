"""What a method's own tally paid for, and plain training for as much: budgets derived by hand.

20 samples in batches of 8 are steps of 8, 8 and 4; four epochs are 12 steps and 80 samples. Without a ledger a sample
costs 1 forward and 2 backward.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same_state, double_run, state, vectors

from energybench.common.units import Quantity
from energybench.flops.work import Line
from energybench.train import discovery
from energybench.train.batch import Batch, Forward
from energybench.train.method import Method, Task
from energybench.train.run import Run
from energybench.train.trees import take
from energybench.trial.budget import budget, plain_steps
from energybench.trial.control_run import ControlRun
from energybench.trial.warmup import warm_up
from energybench.workloads.tasks.classification import Classification

SAMPLES, BATCH, EPOCHS = 20, 8, 4
SIZES = [8, 8, 4]


def part(batch: Batch, size: int) -> Batch:
    where = slice(size)
    return replace(
        batch, inputs=take(batch.inputs, where), targets=take(batch.targets, where), index=batch.index[where]
    )


class SkipsEpochs(Method):
    def epoch(self, run, data, inner):
        if run.epoch_number != 2:
            inner(data)


class SkipsSteps(Method):
    def step(self, run, batch, inner):
        if run.step_in_epoch != 1:
            inner(batch)


class SkipsBatches(Method):
    def batches(self, run, data, inner):
        yield from (batch for number, batch in enumerate(inner(data)) if number != 1)


class Halves(Method):
    def step(self, run, batch, inner):
        inner(part(batch, len(batch) // 2))


class HalvesInGradients(Method):
    def gradients(self, run, batch, inner):
        return inner(part(batch, len(batch) // 2))


class Drops(Method):
    def epoch(self, run, data, inner):
        inner(data.subset(torch.arange(len(data) // 4)))


class Looks(Method):
    """At every sample, by a forward of which a graph is kept, and trains on half of them."""

    def gradients(self, run, batch, inner):
        run.forward(batch)
        return inner(part(batch, len(batch) // 2))


class LooksWithoutAGraph(Method):
    def gradients(self, run, batch, inner):
        run.forward(batch, "eval", grad=False)
        return inner(part(batch, len(batch) // 2))


class Masks(Method):
    """Half of the losses of a whole forward: the backward is that of all."""

    replaces = frozenset({"gradients"})

    def gradients(self, run, batch, inner):
        forward = run.forward(batch)
        run.backward(forward.each[: len(batch) // 2].mean())
        return forward


class LeadsNowhere(Method):
    """Calls a backward pass that is none."""

    replaces = frozenset({"gradients"})

    def gradients(self, run, batch, inner):
        forward = run.forward(batch)
        run.backward(torch.ones((), requires_grad=True) * 1)
        run.backward(torch.ones((), requires_grad=True) * 1)
        return forward


class BacksEverySecond(Method):
    """A backward pass in every second step alone."""

    replaces = frozenset({"gradients"})

    def gradients(self, run, batch, inner):
        forward = run.forward(batch)
        if run.step_in_epoch % 2 == 0:
            run.backward(forward.value)
        return forward


class Stops(Method):
    def update(self, run, part, inner):
        inner(part)
        if run.epoch_number == 3:
            run.stop_after_epoch("good enough")


class Pools(Method):
    """Steps of twice the samples, half as many."""

    replaces = frozenset({"batches"})

    def batches(self, run, data, inner):
        return run.load(data, data.cut(run.order(data), 2 * run.recipe.batch))


class Lazy(Method):
    """Leaves updates out, which are the least of a step: it pays for its passes."""

    def step(self, run, batch, inner):
        run.skip_update = run.step_in_epoch == 1
        inner(batch)


class Evaluates(Method):
    """Passes outside of training are nobody's."""

    def epoch(self, run, data, inner):
        inner(data)
        with run.aside():
            run.forward(next(iter(data.load([torch.arange(4)]))), "eval", grad=False)


def trained(*methods: Method, **settings) -> Run:
    run = double_run(list(methods), data=vectors(SAMPLES), batch=BATCH, epochs=EPOCHS, **settings)
    run.train()
    return run


def shipped(name: str, **settings: object) -> Method:
    source = discovery.find(name, None, "")
    return discovery.build(discovery.load(source), name, settings)


@pytest.mark.parametrize(
    ("method", "steps", "paid_rel"),
    [
        (SkipsEpochs(), 9, 3 / 4),
        (SkipsSteps(), 7, 48 / 80),  # of 8, 8, 4 it trains 8 and 4: 48 samples are two epochs and a batch of 8
        (SkipsBatches(), 7, 48 / 80),
        (Halves(), 6, 1 / 2),  # 4, 4 and 2 of every epoch: two epochs
        (HalvesInGradients(), 6, 1 / 2),
        (Drops(), 3, 1 / 4),  # 5 of 20 in every epoch: one
        (Stops(), 9, 3 / 4),
        # Forward of 3/2, backward of 1/2 of the samples: (1.5 + 2 · 0.5) / 3 of 80 are 66.7: three epochs and 6.7 of 8.
        (Looks(), 10, 2.5 / 3),
        (LooksWithoutAGraph(), 10, 2.5 / 3),
        (LeadsNowhere(), 4, 1 / 3),  # 26.7 samples: an epoch and 6.7 of 8
        (BacksEverySecond(), 9, (80 + 2 * 48) / 240),  # 58.7 of 80: two epochs, 8, 8, and 2.7 of 4
        (shipped("mezo"), 8, 2 / 3),  # two forwards, no backward: 53.3 samples are two epochs, 8, and 5.3 of 8
        (shipped("gradsamp", skip="every:2"), 6, 1 / 2),
        (Masks(), 12, 1.0),
        (Pools(), 12, 1.0),
        (Lazy(), 12, 1.0),
        (Evaluates(), 12, 1.0),
        (shipped("nothing"), 12, 1.0),
        (shipped("with_replacement"), 12, 1.0),
    ],
    ids=lambda each: getattr(each, "name", None) or type(each).__name__ if isinstance(each, Method) else None,
)
def test_a_method_s_tally_pays_for_so_many_plain_steps(method: Method, steps: int, paid_rel: float) -> None:
    paid = budget((), trained(method))
    assert (paid.steps, paid.planned_steps) == (steps, 12)
    assert paid.paid_rel == pytest.approx(paid_rel)


def test_plain_training_pays_for_all_of_its_steps_and_micro_batches_change_no_share() -> None:
    for pieces in (1, 2, 3):
        assert budget((), trained(accumulate=pieces)).steps == 12
        assert budget((), trained(Halves(), accumulate=pieces)).steps == 6


def test_who_presamples_pays_more_and_is_given_no_more_than_plain_training() -> None:
    paid = budget((), trained(shipped("dlis", threshold=0.0)))
    assert paid.paid_rel > 1
    assert paid.steps == paid.planned_steps == 12


# ── by a ledger ───────────────────────────────────────────────────────────────────────────────────────────────


def line(phase: str, flop: float = 0.0, **more: float) -> Line:
    return Line(phase, "", "linear", flop, **more)


@pytest.mark.parametrize(
    ("method", "ledger", "steps"),
    [
        # 6 → 5 → 3: forward 90 FLOPs a sample, dW 90, dX of the second layer 30. (1.5 · 90 + 0.5 · 120) / 210 of 80
        # samples are 74.3: three epochs, 8, and 6.3 of the next 8.
        (Looks(), [line("forward", 90), line("weight_gradient", 90), line("input_gradient", 30)], 11),
        (Looks(), [line("forward", 90), line("weight_gradient", 90), line("recompute", 30)], 11),
        # What every pass costs once, however few samples it has: half of a batch pays it whole.
        (Halves(), [line("forward", step_flop=100), line("weight_gradient", step_flop=200)], 12),
        # 10 a sample and 20 a pass: an epoch of halves is 160, of plain training 260. 640 are two epochs, 100, 20.
        (Halves(), [line("forward", 10, step_flop=20)], 7),
        # Pairs of samples: 16 + 16 + 4 of 64 + 64 + 16.
        (Halves(), [line("forward", pair_flop=1), line("input_gradient", pair_flop=3)], 3),
        (SkipsSteps(), [line("forward", pair_flop=1)], 7),  # 80 of 144 each: 320 are two epochs and 32 of 64
        (Halves(), [Line("forward", "", "relu", 0.0)], 6),  # a ledger without a FLOP is none
    ],
)
def test_passes_are_paid_by_the_ledger_s_flops_of_their_own_sizes(method: Method, ledger: list[Line], steps: int):
    assert budget(tuple(ledger), trained(method)).steps == steps


@given(st.lists(st.floats(0.01, 1e15), min_size=1, max_size=9), st.integers(0, 5), st.data())
def test_what_whole_steps_cost_is_paid_back_in_as_many_steps(costs: list[float], epochs: int, data) -> None:
    # No step may vanish beside an epoch in double precision.
    costs = [max(cost, max(costs) * 1e-3) for cost in costs]
    more = data.draw(st.integers(0, len(costs) - 1))
    steps, paid = epochs * len(costs) + more, epochs * sum(costs) + sum(costs[:more])
    assert plain_steps(paid, costs) == max(1, steps)
    upcoming = costs[more]
    assert plain_steps(paid + 0.4 * upcoming, costs) == max(1, steps)
    assert plain_steps(paid + 0.6 * upcoming, costs) == steps + 1


# ── plain training for as much ────────────────────────────────────────────────────────────────────────────────


def control(steps: int, task: Task | None = None, **settings) -> ControlRun:
    plain = double_run(data=vectors(SAMPLES), batch=BATCH, epochs=EPOCHS, **settings)
    return ControlRun(
        task or Classification(), [], plain.recipe, plain.model, plain.data, seed=7, device=plain.device, steps=steps
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_budget_of_whole_epochs_is_plain_training_of_so_many_to_the_bit(schedule: str) -> None:
    run = control(6, schedule=schedule)
    run.train()
    plain = double_run(data=vectors(SAMPLES), batch=BATCH, epochs=4, schedule=schedule)
    shorter = Run(
        plain.task, [], plain.recipe, plain.model, plain.data, seed=7, device=plain.device, epochs=2
    )  # the recipe's schedule over two epochs
    shorter.train()
    assert_same_state(state(run.model), state(shorter.model))
    assert run.curve == shorter.curve
    assert run.tally.passes() == shorter.tally.passes()


@pytest.mark.parametrize("steps", range(1, 13))
def test_it_trains_exactly_its_steps_in_plain_order_and_the_schedule_ends_with_them(steps: int) -> None:
    rates: list[float] = []

    class Notes(Classification):
        def update(self, run, part, inner):
            rates.append(run.lr())
            inner(part)

    run = control(steps, Notes(), schedule="linear", lr=1.0)
    run.train()
    assert run.tally.steps == run.tally.updates == steps
    assert rates == pytest.approx([1 - step / steps for step in range(steps)])
    sizes = SIZES * EPOCHS
    assert run.tally.samples == sum(sizes[:steps])
    assert run.tally.epochs_trained == pytest.approx(sum(sizes[:steps]) / SAMPLES)
    assert len(run.curve) == -(-steps // 3)
    paid = budget((), run)  # what it paid is its budget
    assert (paid.steps, paid.planned_steps) == (steps, 12)


def test_it_begins_as_plain_training_of_a_constant_rate_does() -> None:
    run, plain = control(7), double_run(data=vectors(SAMPLES), batch=BATCH, epochs=EPOCHS)
    run.train()
    for number in (1, 2):
        plain.train_epoch(number)
    plain.epoch_number, plain.step_in_epoch = 3, 0
    plain.step(next(iter(plain.batches(plain.data))))
    assert_same_state(state(run.model), state(plain.model))


def test_a_task_with_an_epoch_of_its_own_ends_with_the_budget_too() -> None:
    class Own(Classification):
        parts = ("main", "again")
        replaces = frozenset({"epoch"})

        def parameters(self, run, part):
            return run.model.parameters()

        def epoch(self, run, data, inner):
            for batch in run.load(data, data.cut(torch.arange(len(data)), run.recipe.batch)):
                for name in self.parts:
                    try:
                        run.step(replace(batch, part=name))
                    except Exception:  # a task that hides its mistakes hides no end of a budget
                        pytest.fail("the end of a budget is no error of a step")

    run = control(10, Own())  # six steps an epoch
    run.train()
    assert run.tally.steps == 10
    assert run.epochs == 2
    assert budget((), run).planned_steps == 24


def test_a_warm_up_of_a_control_takes_the_steps_that_it_is_asked_for() -> None:
    assert warm_up(control(1), Quantity(9, "steps"), lambda: None).steps == 9


def test_passes_that_torch_func_makes_are_paid_by_their_samples() -> None:
    from energybench.algorithms.sample_scores import parameter_gradient

    run = double_run(data=vectors(SAMPLES), batch=BATCH)
    batch = next(iter(run.data.load([torch.arange(8)])))
    parameter_gradient(run, batch)
    sizes = run.tally.pass_sizes
    assert (+sizes.forward, +sizes.backward) == ({8: 1}, {8: 1})


def test_a_backward_pass_through_several_forwards_is_billed_each_of_them() -> None:
    run = double_run(data=vectors(SAMPLES), batch=BATCH)
    batches = [next(iter(run.data.load([torch.arange(size)]))) for size in (8, 4, 2)]
    given: list[Forward] = [run.forward(batch) for batch in batches]
    run.backward(given[0].value + given[1].outputs.sum())
    assert run.tally.pass_sizes.forward == {8: 1, 4: 1, 2: 1}
    assert run.tally.pass_sizes.backward == {8: 1, 4: 1}
