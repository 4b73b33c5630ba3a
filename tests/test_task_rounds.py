"""Tasks whose epochs are rounds: what plan, estimate, counter, budget, control and warm-up make of them, by hand.

A sample of the model of two layers, 6 → 5 → 3, costs 90 FLOPs forward, 90 for dW and 30 for dX: 210.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import FedProx, TwoDomains, Watched
from support import CPU, assert_same_state, double_run, make_run, state, vectors
from torch import nn

from energybench import Passes
from energybench.common.errors import UsageError
from energybench.common.units import Quantity
from energybench.flops.work import Work
from energybench.runner.tracing import time_step, time_threads, trace_run
from energybench.train import discovery
from energybench.train.method import Method
from energybench.train.passes import every_epoch, mean_epoch
from energybench.train.run import Run
from energybench.trial.budget import budget
from energybench.trial.control_run import ControlRun
from energybench.trial.counting_layer import StepCounter
from energybench.trial.estimate import works
from energybench.trial.phase_profile import Stopwatch, TimedRun, in_turns
from energybench.trial.warmup import warm_up
from energybench.workloads.tasks.classification import Classification

FORWARD, BACKWARD = 90, 120  # FLOPs of a sample
BATCH = 4


def shipped(name: str, **settings: object) -> Method:
    return discovery.build(discovery.load(discovery.find(name, None, "")), name, settings)


def counted(task: Classification, *methods: Method, **settings):
    """(run, its ledger, plain work, work, what was counted)"""
    counter = StepCounter(10**6)
    run = double_run([*methods], task=task, counter=counter, **{"batch": BATCH, "epochs": 4} | settings)
    ledger = trace_run(run, CPU).lines
    run.train()
    return run, ledger, *works(ledger, run), counter.result(run)


# ── what an epoch is ──────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 3), st.integers(0, 3))
def test_passes_of_steps_add_up(sizes: list[int], forwards: int, backwards: int) -> None:
    passes = Passes.of(sizes, forwards, backwards)
    assert passes.forward == forwards * sum(sizes)
    assert passes.backward == backwards * sum(sizes)
    assert (passes.updates, passes.samples) == (len(sizes), sum(sizes))


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(1, 3),
    st.floats(0, 5),
)
def test_work_of_rounds_is_that_of_their_passes_one_by_one(
    rounds: list[list[int]], accumulate: int, backward: float
) -> None:
    """A ledger with FLOPs per sample, per pass and per pair of samples, held against every pass of every round."""
    from energybench.flops.work import Line, micro_batches

    lines = (
        Line("forward", "a", "linear", 3.0, step_flop=5.0, pair_flop=2.0),
        Line("weight_gradient", "a", "linear", 7.0, step_flop=11.0),
    )
    mean = mean_epoch([Passes.of(sizes) for sizes in rounds])
    work = Work.of_rounds(lines, len(rounds), mean.sizes, backward, 4, accumulate)
    pieces = [piece for sizes in rounds for size in sizes for piece in micro_batches(size, accumulate)]
    forward = sum(3 * piece + 5 + 2 * piece**2 for piece in pieces)
    assert work.flop == pytest.approx(forward + backward * sum(7 * piece + 11 for piece in pieces))
    assert work.samples * len(rounds) == pytest.approx(sum(map(sum, rounds)))
    assert mean.updates * len(rounds) == pytest.approx(sum(map(len, rounds)))


def test_sums_alone_are_steps_of_one_size() -> None:
    mean = mean_epoch([Passes(forward=60, backward=30, updates=6), Passes(forward=20, backward=10, updates=2)])
    assert mean.sizes == ((10, 4),)
    assert (mean.updates, mean.backward_rel) == (4, 0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Passes(10, 10, 0),
        lambda: Passes(0, 0, 3),
        lambda: Passes(10, -1, 3),
        lambda: Passes(10, 10, 3, (5, 5)),
        lambda: Passes(10, 10, 2, (10, 0)),
        lambda: Passes.of([]),
    ],
)
def test_an_epoch_without_steps_or_with_other_sizes_than_steps_is_none(wrong) -> None:
    with pytest.raises(ValueError, match="step"):
        wrong()


def test_what_is_no_passes_is_refused_with_the_task_s_name() -> None:
    class Wrong(Classification):
        name = "wrong"

        def passes(self, run):
            return 300

    with pytest.raises(UsageError, match="'wrong' gives a int from `passes`") as caught:
        double_run(task=Wrong())
    assert caught.value.problems[0].code == "E323"


# ── federated rounds ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_estimate_of_federated_rounds_is_what_is_counted_and_what_the_clients_have(accumulate: int) -> None:
    task = FedProx()
    run, _, plain, work, result = counted(task, accumulate=accumulate)
    samples = sum(task.shares[client] * task.local for clients in task.trained for client in clients)
    assert len({tuple(sorted(clients)) for clients in task.trained}) > 1  # rounds differ
    assert result.counted_flop == (FORWARD + BACKWARD) * samples
    assert plain.flop == pytest.approx(result.counted_flop)
    assert work.flop == pytest.approx(result.counted_flop)
    assert run.tally.samples_forward == samples
    assert run.tally.epochs_trained == 4  # rounds
    assert isinstance(run.tally.epochs_trained, int)


class Merged(nn.Module):
    """A weight that is made from two: a product of every step, whatever its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 6))

    def forward(self, x):
        return x @ (self.a @ self.b).T


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_each_step_costs_once_is_counted_by_the_clients_own_steps(accumulate: int) -> None:
    counter = StepCounter(10**6)
    run = make_run(
        model=Merged, data=vectors(dtype=torch.float32), task=FedProx(), counter=counter, batch=BATCH, epochs=3,
        accumulate=accumulate,
    )  # fmt: skip
    ledger = trace_run(run, CPU).lines
    assert any(line.step_flop for line in ledger)
    run.train()
    assert works(ledger, run)[1].flop == pytest.approx(counter.result(run).counted_flop, rel=1e-9)


@pytest.mark.parametrize("skip", ["every:2", "prob:0.5"])
def test_skipped_rounds_are_not_those_of_the_mean(skip: str) -> None:
    """Rounds have other clients, so other samples: the estimate starts from those that were trained."""
    task = FedProx(shares=(1, 1, 2, 12, 3, 5), active=2)
    run, _, plain, work, result = counted(task, shipped("gradsamp", skip=skip), epochs=6)
    samples = sum(task.shares[client] * task.local for clients in task.trained for client in clients)
    in_steps = result.counted_flop - result.outside_steps_flop
    assert in_steps == (FORWARD + BACKWARD) * samples
    assert work.flop == pytest.approx(in_steps)
    assert plain.flop != pytest.approx(6 * in_steps / run.tally.epochs_trained)


def test_the_learning_rate_moves_by_the_steps_of_a_round() -> None:
    rates: list[float] = []

    class Notes(Method):
        name = "notes"

        def update(self, run, part, inner):
            rates.append(run.lr())
            inner(part)

    task = FedProx(shares=(4,) * 6, active=3, local=2)  # 6 steps a round
    run = double_run([Notes()], task=task, batch=BATCH, epochs=2, schedule="linear", lr=1.0)
    run.train()
    assert run.steps_per_epoch == 6
    assert rates == pytest.approx([1 - step / 12 for step in range(12)])


def test_few_counted_steps_are_scaled_to_the_round() -> None:
    counter = StepCounter(6)
    task = FedProx(shares=(4,) * 6, active=3, local=2)
    run = double_run(task=task, counter=counter, batch=BATCH, epochs=4)
    run.train()
    result = counter.result(run)
    assert sum(each.counted_steps for each in result.keys.values()) < run.tally.steps == 24
    assert result.counted_flop == pytest.approx((FORWARD + BACKWARD) * 24 * 4)


# ── two domains ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("size", [None, 6])
def test_other_domains_batches_are_traced_and_counted(size: int | None, accumulate: int) -> None:
    """24 samples in 6 steps of 4; beside each, as many of the other domain, or 6."""
    _, _, plain, work, result = counted(TwoDomains(vectors(30), size), accumulate=accumulate)
    assert result.counted_flop == (FORWARD + BACKWARD) * 4 * (24 + 6 * (size or BATCH))
    assert plain.flop == work.flop == pytest.approx(result.counted_flop)


def test_a_pass_that_learns_nothing_is_a_forward_alone() -> None:
    run, ledger, plain, work, result = counted(Watched(), data=vectors(22))
    assert result.counted_flop == (2 * FORWARD + BACKWARD) * 22 * 4
    assert plain.flop == pytest.approx(result.counted_flop)
    assert work.by_phase()["forward"] == pytest.approx(2 * FORWARD * 22 * 4)
    paid = budget(ledger, run)
    assert (paid.steps, paid.planned_steps) == (24, 24)
    assert paid.paid_rel == pytest.approx(1)


# ── matched controls ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ledger", [True, False])
def test_a_plain_federated_run_has_paid_for_all_of_its_rounds(ledger: bool) -> None:
    run, lines, *_ = counted(FedProx())
    paid = budget(lines if ledger else (), run)
    assert paid.steps == paid.planned_steps == run.tally.steps
    assert paid.paid_rel == pytest.approx(1)


class EverySecond(Method):
    name = "every-second"

    def epoch(self, run, data, inner):
        if run.epoch_number % 2:
            inner(data)


def control(steps: int, task: FedProx, epochs: int) -> ControlRun:
    plain = double_run(batch=BATCH, epochs=epochs, schedule="linear")
    return ControlRun(task, [], plain.recipe, plain.model, plain.data, seed=7, device=CPU, steps=steps)


def test_a_control_of_rounds_trains_whole_rounds_and_is_plain_training_of_so_many() -> None:
    equal = {"shares": (4,) * 6, "active": 3, "local": 2}
    run = double_run([EverySecond()], task=FedProx(**equal), batch=BATCH, epochs=4)
    run.train()
    paid = budget((), run)
    assert (paid.steps, paid.planned_steps, paid.paid_rel) == (12, 24, pytest.approx(0.5))
    trained = control(paid.steps, FedProx(**equal), 4)
    trained.train()
    assert (trained.epochs, trained.tally.steps, trained.tally.epochs_trained) == (2, 12, 2)
    plain = double_run(batch=BATCH, epochs=4, schedule="linear")
    shorter = Run(
        FedProx(**equal), [], plain.recipe, plain.model, plain.data, seed=7, device=CPU, epochs=2
    )  # the recipe's schedule over two rounds
    shorter.train()
    assert_same_state(state(trained.model), state(shorter.model))


@given(st.floats(0, 1.2))
def test_a_budget_of_rounds_is_the_nearest_whole_number_of_them(share: float) -> None:
    from energybench.trial.budget import _in_rounds

    rounds = [Passes.of([4] * updates) for updates in (2, 3, 5)]
    whole, parts = double_run(task=FedProx()), double_run(task=Watched())
    flop = [2.0, 3.0, 5.0]  # 1 a step
    paid = 10 * share
    rounded = _in_rounds(paid, flop, rounds, whole)
    assert rounded.steps in (2, 5, 10)
    assert abs(rounded.steps - paid) <= min(abs(each - paid) for each in (2, 5, 10)) + 1e-6
    steps = _in_rounds(paid, flop, rounds, parts).steps
    assert steps == pytest.approx(max(1, min(10, paid)), abs=0.5 + 1e-6)


# ── steps outside of training ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_warm_up_steps_find_what_a_round_has_set_up(count: int) -> None:
    run = double_run(task=FedProx(), batch=BATCH, epochs=6)
    assert warm_up(run, Quantity(count, "steps"), lambda: None).steps == count
    assert run.tally.steps == count


def test_a_warm_up_ends_a_task_s_epoch_though_it_catches_errors_and_gives_the_run_its_step_back() -> None:
    class Careful(Classification):
        name = "careful"
        replaces = frozenset({"epoch"})

        def epoch(self, run, data, inner):
            for batch in run.batches(data):
                try:
                    run.step(batch)
                except Exception:
                    raise AssertionError("an end was taken for an error") from None

    run = double_run(task=Careful(), batch=BATCH)
    step = run.step
    assert warm_up(run, Quantity(9, "steps"), lambda: None).steps == 9
    assert run.step is step


def test_timing_a_step_finds_what_a_round_has_set_up_and_trains_nothing() -> None:
    run = double_run(task=FedProx(), batch=BATCH)
    before = state(run.model)
    assert time_step(run) > 0
    assert set(time_threads(run, [1])) == {1}
    assert_same_state(state(run.model), before)
    assert run.tally.steps == 0


def test_an_error_of_a_step_that_is_timed_is_told_though_the_task_catches_errors() -> None:
    class Catches(Classification):
        name = "catches"
        replaces = frozenset({"epoch"})

        def epoch(self, run, data, inner):
            for batch in run.batches(data):
                try:
                    run.step(batch)
                except Exception:
                    continue

        def losses(self, run, outputs, batch):
            raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        time_step(double_run(task=Catches()))


def test_a_task_whose_epoch_makes_no_step_is_told() -> None:
    class Idle(Classification):
        name = "idle"
        replaces = frozenset({"epoch"})

        def epoch(self, run, data, inner):
            pass

    with pytest.raises(ValueError, match="an epoch of the task 'idle' makes no step"):
        time_step(double_run(task=Idle()))


def test_a_profile_of_rounds_is_scaled_by_their_steps() -> None:
    """A clock that moves by 1 µs a look: what is asked here is that every phase of the rounds is in it."""
    ticks = iter(range(0, 10**12, 1000))

    def timed(stack: list[Method]) -> TimedRun:
        plain = double_run(batch=BATCH, epochs=2)
        watch = Stopwatch(lambda: None, lambda: next(ticks))
        return TimedRun(
            FedProx(), stack, plain.recipe, plain.model, plain.data, seed=7, device=CPU, watch=watch, limit=3
        )

    baseline = timed([])
    profile = in_turns(baseline, timed([EverySecond()]), {"plain": 10})
    assert {"forward", "backward", "update", "data"} <= profile.plain_s.keys()
    assert profile.plain_s["forward"] > profile.method_s["forward"] > 0
    expected = sum(each.updates for each in every_epoch(baseline, (1, 2)))
    assert baseline.tally.steps == expected
