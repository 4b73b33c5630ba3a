"""Where the time goes: a clock that the test moves, so that every phase's seconds are known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, MODELS, assert_same_state, digits, make_run, state, tiny_cnn

from energybench.common.hashing import stable_seed
from energybench.records.record import Estimate
from energybench.train import discovery
from energybench.train.method import Method
from energybench.train.recipe import Recipe
from energybench.trial.phase_profile import STEPS, Stopwatch, TimedRun, in_turns, other_work, scaled, steps_per_epoch
from energybench.workloads.tasks.classification import Classification

EPOCHS, BATCH = 4, 32
SECOND = 1_000_000_000
KINDS = {n: discovery.load(s) for n, s in discovery.sources().items() if s.path.parent.name == "methods"}


class Hand:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def pass_(self, seconds: float) -> None:
        self.ns += round(seconds * SECOND)


class Task(Classification):
    """Each forward takes 3 s."""

    def __init__(self, clock: Hand) -> None:
        self.clock = clock

    def forward(self, run: Any, batch: Any) -> Any:
        self.clock.pass_(3)
        return super().forward(run, batch)


class Busy(Method):
    """Spends seconds of its own around every hook, and in one forward pass more per step."""

    name = "busy"

    def __init__(self, clock: Hand) -> None:
        self.clock = clock

    def epoch(self, run: Any, data: Any, inner: Any) -> None:
        self.clock.pass_(100)
        inner(data)
        self.clock.pass_(50)

    def batches(self, run: Any, data: Any, inner: Any) -> Iterator[Any]:
        for batch in inner(data):
            self.clock.pass_(5)
            yield batch

    def gradients(self, run: Any, batch: Any, inner: Any) -> Any:
        run.forward(batch, "eval", grad=False)
        self.clock.pass_(7)
        return inner(batch)

    def update(self, run: Any, part: str, inner: Any) -> None:
        inner(part)
        self.clock.pass_(11)


def timed(clock: Hand, methods: list[Method], limit: int = 2, task: Any = None, **recipe: Any) -> TimedRun:
    torch.manual_seed(stable_seed(7, "init"))
    watch = Stopwatch(lambda: None, clock)
    settings = Recipe(epochs=EPOCHS, batch=BATCH, **{"lr": 0.05, "momentum": 0.9} | recipe)
    return TimedRun(
        task or Task(clock), methods, settings, tiny_cnn(), digits(96), seed=7, device=CPU, watch=watch, limit=limit
    )


def test_a_phase_inside_another_stops_the_outer_one():
    clock = Hand()
    watch = Stopwatch(lambda: None, clock)
    with watch.phase("outer"):
        clock.pass_(1)
        with watch.phase("inner"):
            clock.pass_(10)
        clock.pass_(2)
        with watch.phase("outer"):
            clock.pass_(4)
    clock.pass_(1000)
    assert watch.seconds == {"outer": 7, "inner": 10}


@given(st.recursive(st.integers(1, 9), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=12))
def test_no_second_is_lost_or_counted_twice(tree: Any):
    clock = Hand()
    watch = Stopwatch(lambda: None, clock)

    def walk(node: Any, depth: int) -> None:
        if isinstance(node, int):
            clock.pass_(node)
            return
        with watch.phase(f"depth {depth}"):
            for child in node:
                walk(child, depth + 1)

    walk([tree], 0)
    assert sum(watch.seconds.values()) == pytest.approx(clock.ns / SECOND)


def test_every_border_waits_for_the_device_before_it_looks_at_the_clock():
    seen: list[str] = []
    watch = Stopwatch(lambda: seen.append("wait"), lambda: seen.append("look") or 0)
    with watch.phase("one"), watch.phase("two"):
        pass
    assert seen == ["wait", "look"] * 4


def test_the_seconds_of_a_method_are_its_own_and_a_forward_is_a_forward_whoever_asks():
    clock = Hand()
    run = timed(clock, [Busy(clock)])
    run.train_epoch(1)
    assert run.watch.seconds["forward"] == 2 * 2 * 3  # two steps, its probe and the training pass
    assert run.watch.seconds["method_overhead"] == 150 + 2 * (5 + 7 + 11)
    assert sum(run.watch.seconds.values()) == clock.ns / SECOND
    assert run.outside()["method_overhead"] == 150


def test_a_shadow_is_scaled_to_the_whole_run_by_its_tally():
    clock = Hand()
    plain, ours = timed(clock, []), timed(clock, [Busy(clock)])
    found = in_turns(plain, ours, {"2f1b1u": EPOCHS * 3})  # three steps an epoch: two are run, one is looked at
    assert found.steps == 2 * EPOCHS
    assert found.plain_s["forward"] == EPOCHS * 3 * 3
    assert found.method_s["forward"] == EPOCHS * 3 * 6
    assert found.method_s["method_overhead"] == EPOCHS * (150 + 3 * (5 + 7 + 11))
    assert found.plain_s.get("method_overhead", 0.0) == 0


def test_loading_is_a_wait_for_data_whoever_asks_and_choosing_is_the_methods_own():
    clock = Hand()

    class Choosing(Method):
        name = "choosing"
        replaces = frozenset({"batches"})

        def batches(self, run: Any, data: Any, inner: Any) -> Any:
            def positions() -> Iterator[Any]:
                for piece in data.cut(run.order(data), run.recipe.batch):
                    clock.pass_(5)
                    yield piece

            return run.load(data, positions())

    for methods, own in (([], 0), ([Choosing()], 2 * 5)):
        run = timed(clock, methods)
        fetch = run.data.store.fetch

        def slowly(batches: Any, fetch: Any = fetch) -> Iterator[Any]:
            for item in fetch(batches):
                clock.pass_(2)
                yield item

        run.data.store.fetch = slowly
        run.train_epoch(1)
        assert run.watch.seconds["data"] == 2 * 2
        assert run.watch.seconds.get("method_overhead", 0) == own


def test_an_epochs_first_step_is_cold_and_not_looked_at():
    """What ran before has the caches; here the first forward of every epoch takes 40 s more."""
    clock = Hand()

    class Cold(Task):
        def forward(self, run: Any, batch: Any) -> Any:
            clock.pass_(40 if run.step_in_epoch == 0 else 0)
            return super().forward(run, batch)

    run = timed(clock, [], limit=3, task=Cold(clock))
    run.train_epoch(1)
    assert scaled(run, {"plain": 10}) == pytest.approx(
        {"forward": 30, "backward": 0, "update": 0, "data": 0, "loop": 0}
    )


def test_a_kind_of_step_that_was_not_met_counts_as_an_average_one():
    clock = Hand()
    run = timed(clock, [])
    run.train_epoch(1)
    assert scaled(run, {"never": 10})["forward"] == 30


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_watching_changes_no_step_of_any_method(name: str, model: str):
    """With no limit on its steps a timed run trains to the same weights as a run that nobody times."""
    methods = [discovery.build(KINDS[name], name, dict(KINDS[name].example)) for _ in range(2)]
    if methods[0].incompatible_run(make_run([], MODELS[model], epochs=EPOCHS, batch=BATCH)):
        return
    plain = make_run([methods[0]], MODELS[model], epochs=EPOCHS, batch=BATCH)
    torch.manual_seed(stable_seed(7, "init"))
    watch = Stopwatch(lambda: None)
    recipe = Recipe(epochs=EPOCHS, batch=BATCH, lr=0.05, momentum=0.9)
    run = TimedRun(
        Classification(), [methods[1]], recipe, MODELS[model](), digits(), seed=7, device=CPU, watch=watch, limit=1000
    )
    plain.train()
    run.train()
    assert_same_state(state(plain.model), state(run.model))
    assert run.tally.passes() == plain.tally.passes()
    assert sum(len(steps) for steps in run.by_key.values()) == run.tally.steps - run.tally.epochs_trained
    assert all(seconds > -1e-9 for seconds in run.outside().values())


@pytest.mark.parametrize(("ours", "whole", "told"), [(0.35, 0.11, True), (0.11, 0.35, True), (0.12, 0.11, False)])
def test_a_shadow_that_saves_other_flops_than_the_run_does_not_stand_for_it(ours: float, whole: float, told: bool):
    one, other = (Estimate(plain_flop=1e9, estimated_flop=(1 - saved) * 1e9) for saved in (ours, whole))
    assert bool(other_work(one, other)) is told
    assert not other_work(None, other)


@given(st.integers(1, 500))
def test_a_shadow_looks_at_a_few_steps_of_every_epoch(epochs: int):
    each = steps_per_epoch(epochs)
    assert each >= 3  # one is cold
    assert STEPS <= epochs * each <= STEPS + 3 * epochs
