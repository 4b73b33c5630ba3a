"""The witness: it counts what runs, changes nothing, and says how sure a sample of the steps makes it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from support import assert_same_state, digits, double_run, make_run, state, tiny_mlp, vectors
from torch import nn

from energybench.records.record import CountingRun, Passes
from energybench.train import discovery
from energybench.train.method import Method
from energybench.trial.counting_layer import StepCounter, StepCounts


def witnessed(*methods: Method, budget: int = 10**6, **settings: Any) -> tuple[StepCounter, Any, StepCounts]:
    layer = StepCounter(budget)
    run = double_run([*methods], counter=layer, **settings)
    run.train()
    return layer, run, layer.result(run)


# tiny_mlp: 6 → 5 → 3; the first layer has no dX
FORWARD = 2 * (6 * 5 + 5 * 3)
PER_SAMPLE = FORWARD + 2 * (6 * 5 + 5 * 3) + 2 * 5 * 3


def test_plain_training_is_counted_whole():
    _, _, result = witnessed(epochs=2)
    assert result.counted_flop == PER_SAMPLE * 24 * 2
    assert result.counted_error_flop == 0
    assert result.outside_steps_flop == 0
    assert result.keys["plain"].flop_per_sample == PER_SAMPLE
    assert result.keys["plain"].flop_per_sample_sd == 0


@pytest.mark.parametrize("budget", [1, 2, 4, 100])
def test_a_sample_of_equal_steps_gives_the_same_total_without_an_error(budget):
    _, _, result = witnessed(budget=budget, epochs=4)
    assert result.counted_flop == pytest.approx(PER_SAMPLE * 24 * 4)
    assert result.counted_error_flop == 0
    counted = result.keys["plain"].counted_steps
    assert counted >= 4  # every epoch contributes
    assert counted <= max(budget, 4) + 4  # rounded up, and the first step


def test_the_last_smaller_batch_is_scaled_by_its_samples():
    _, _, result = witnessed(data=vectors(20), batch=8, budget=3, epochs=3)
    assert result.counted_flop == pytest.approx(PER_SAMPLE * 20 * 3)
    assert result.passes.keys == {"plain": {"steps": 9, "samples": 60}}


class PerStep(Method):
    """A product that costs 2·10⁶ FLOPs in every step, however many samples it has."""

    name = "per-step"

    def update(self, run, part, inner):
        torch.dot(torch.ones(10**6), torch.ones(10**6))
        inner(part)


def test_where_every_step_was_counted_the_total_is_what_was_counted_also_of_unequal_steps():
    """9 samples in steps of 8 and 1: a price that each step pays alike is paid as often as there are steps."""
    layer, _, result = witnessed(PerStep(), data=vectors(9), batch=8, epochs=3)
    assert result.counted_flop == layer.counter.total == PER_SAMPLE * 27 + 6 * 2 * 10**6
    assert result.counted_error_flop == 0


class Probes(Method):
    """A forward pass over the whole set before each epoch, and another in every third step."""

    name = "probes"

    def epoch(self, run, data, inner):
        run.forward(next(data.load([torch.arange(len(data))])), grad=False)
        inner(data)

    def step(self, run, batch, inner):
        if run.step_in_epoch % 3 == 2:
            run.forward(batch, grad=False)
            run.tally.mark(self, "probe")
        inner(batch)


def test_each_kind_of_step_has_its_own_price_and_what_runs_outside_steps_is_counted_too():
    _, _, result = witnessed(Probes(), epochs=2, batch=4)  # 6 steps an epoch, 2 of them with a probe
    keys = result.keys
    assert keys["plain"].flop_per_sample == PER_SAMPLE
    assert keys["probe 2f1b1u"].flop_per_sample == PER_SAMPLE + FORWARD
    assert (keys["plain"].steps, keys["probe 2f1b1u"].steps) == (8, 4)
    assert result.outside_steps_flop == FORWARD * 24 * 2
    assert result.counted_flop == PER_SAMPLE * 48 + FORWARD * 16 + FORWARD * 48


def test_what_runs_outside_steps_is_counted_even_where_steps_are_sampled():
    _, _, result = witnessed(Probes(), epochs=4, batch=4, budget=12)
    if result.counted_flop is not None:
        assert result.outside_steps_flop == FORWARD * 24 * 4
        assert result.counted_flop == pytest.approx(PER_SAMPLE * 96 + FORWARD * 32 + FORWARD * 96)


def test_a_kind_of_step_that_no_sample_met_makes_the_total_unknown_and_is_named():
    class Once(Method):
        name = "once"

        def step(self, run, batch, inner):
            if (run.epoch_number, run.step_in_epoch) in rare:
                run.tally.mark(self, "rare")
            inner(batch)

    layer, _, _ = witnessed(budget=2, epochs=1, batch=2)
    rare = {(1, step) for step in range(1, 12)} - {(1, step) for step in layer._chosen}
    _, _, result = witnessed(Once(), budget=2, epochs=1, batch=2)
    assert result.counted_flop is None
    assert "'rare'" in result.reason


class Pools(Method):
    """Trains every second step on the samples of two."""

    name = "pools"

    def step(self, run, batch, inner):
        if run.step_in_epoch % 2 == 0:
            self.left = batch
            return
        pooled = [torch.cat([getattr(b, name) for b in (self.left, batch)]) for name in ("inputs", "targets", "index")]
        inner(replace(batch, inputs=pooled[0], targets=pooled[1], index=pooled[2]))


@pytest.mark.parametrize("budget", [6, 10**6])
def test_a_step_is_priced_by_the_samples_that_it_sends_forward_whatever_batch_it_was_handed(budget):
    """22 samples in steps of 6, 6, 6 and 4, trained as 12 and 10. By the samples that each step was handed, 6 and 4, a
    pooled step has no one price."""
    _, _, result = witnessed(Pools(), data=vectors(22), batch=6, budget=budget, epochs=3)  # 6 + 6, 6 + 4
    assert result.counted_flop == pytest.approx(PER_SAMPLE * 22 * 3)
    assert result.counted_error_flop == pytest.approx(0, abs=1e-6)
    assert result.keys["plain"].flop_per_forwarded == PER_SAMPLE


class Cheaper(Method):
    """Every third step does a product more, and says that it acted without saying how."""

    name = "cheaper"

    def gradients(self, run, batch, inner):
        if run.step_in_epoch % 3 == 0:
            run.tally.mark(self)
            torch.dot(torch.ones(1000), torch.ones(1000))
        return inner(batch)


@pytest.mark.parametrize("budget", [8, 10**6])
def test_a_mark_without_a_word_is_a_kind_of_its_own(budget):
    _, _, result = witnessed(Cheaper(), data=vectors(24), batch=4, budget=budget, epochs=4)
    assert set(result.keys) == {"plain", "cheaper"}
    assert result.counted_flop == pytest.approx(PER_SAMPLE * 96 + 2 * 4 * 2 * 1000)
    assert result.counted_error_flop == 0


def test_nothing_that_a_method_may_use_of_a_run_tells_the_counting_run_apart():
    seen: list[Any] = []

    class Looks(Method):
        name = "looks"

        def epoch(self, run, data, inner):
            seen.append(([m.name for m in run.methods], [m.name for m in run.layers], sorted(run.tally.entered)))
            inner(data)

    for counter in (None, StepCounter(2)):
        double_run([Looks()], counter=counter, epochs=1).train()
    assert seen[0] == seen[1]


class Uneven(nn.Module):
    """Every second batch by its first label costs another layer: steps of one kind that differ in price."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra = tiny_mlp(), nn.Linear(6, 6, bias=False)

    def forward(self, x):
        return self.body(self.extra(x) if x[0, 0] > 0 else x)


@pytest.mark.slow
def test_the_interval_covers_the_whole_count_about_as_often_as_it_says():
    covered = 0
    for seed in range(40):
        settings = {"model": lambda: Uneven().double(), "data": vectors(80), "batch": 2, "epochs": 2, "seed": seed}
        _, _, whole = witnessed(**settings)
        _, _, part = witnessed(budget=30, **settings)
        assert whole.counted_error_flop == 0
        assert part.counted_error_flop > 0
        covered += abs(part.counted_flop - whole.counted_flop) <= part.counted_error_flop
    assert covered >= 33  # 95 % of 40 is 38; fewer than 33 has a chance of 0.3 % if 90 % are covered


@pytest.mark.parametrize("budget", [3, 10**6])
def test_the_witness_changes_neither_weights_nor_tally(budget):
    plain, layer = make_run(epochs=2, data=digits(64, ["flip"])), StepCounter(budget)
    seen = make_run(counter=layer, epochs=2, data=digits(64, ["flip"]))
    plain.train()
    seen.train()
    assert_same_state(state(seen.model), state(plain.model))
    assert seen.tally.passes() == plain.tally.passes()
    assert layer.result(seen).passes == Passes(**asdict(plain.tally.passes()))


def test_the_tally_as_plain_data_is_the_records_to_the_letter():
    """`flops --json` prints the one, a record holds the other."""
    run = make_run(epochs=2, data=digits(64))
    run.train()
    told = asdict(run.tally.passes())
    assert json.dumps(told) == json.dumps(Passes(**told).model_dump(mode="json"))


def test_a_skipped_epoch_has_no_step_and_what_its_method_computes_instead_is_counted_outside():
    kind = discovery.load(discovery.sources()["gradsamp"])
    _, _, result = witnessed(discovery.build(kind, "gradsamp", {"skip": "every:2"}), epochs=4)
    assert result.keys["plain"].steps == 6
    assert result.counted_flop - result.outside_steps_flop == PER_SAMPLE * 24 * 2
    assert result.outside_steps_flop > 0  # the fit's dot products
    assert result.passes.epochs_trained == 2


def test_work_that_nobody_prices_is_listed_with_its_calls():
    class Sorts(Method):
        name = "sorts"

        def gradients(self, run, batch, inner):
            forward = inner(batch)
            forward.each.detach().topk(2)
            return forward

    _, _, result = witnessed(Sorts(), epochs=1)
    assert result.uncounted_calls["aten.topk"] == 3
    assert sum(result.by_op.values()) == result.counted_flop


def test_the_result_is_what_a_witness_record_holds():
    _, _, result = witnessed(epochs=1)
    assert set(asdict(result)) <= set(CountingRun.model_fields)


def test_an_error_inside_a_counted_step_leaves_no_counter_behind():
    class Breaks(Method):
        def gradients(self, run, batch, inner):
            raise RuntimeError("on purpose")

    for budget in (1, 10**6):
        layer = StepCounter(budget)
        run = double_run([Breaks()], counter=layer, epochs=1)
        with pytest.raises(RuntimeError, match="on purpose"):
            run.train()
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
        assert torch.backends.mha.get_fastpath_enabled()


def test_a_single_sample_is_a_step():
    _, _, result = witnessed(data=vectors(1), batch=8, epochs=2)
    assert result.counted_flop == PER_SAMPLE * 2
