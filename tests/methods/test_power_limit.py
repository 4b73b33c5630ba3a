"""power_limit: what it declares of the card, and that what it trains is plain training."""

from __future__ import annotations

import pytest
from support import assert_same_state, make_run, state, tiny_cnn
from test_contract import ledger_of_plain_training
from test_method_members import method_named

from energybench.common.errors import UsageError
from energybench.runner.plan_settings import refuse_settings, settings_of
from energybench.train.method import parameters
from energybench.train.refusals import refuse_hardware


@pytest.mark.parametrize(
    ("given", "declared"),
    [
        ({"limit": "200 W"}, {"power_limit_w": 200.0}),
        ({"limit": "0.3 kW"}, {"power_limit_w": 300.0}),
        ({"share": 0.6}, {"power_limit_rel": 0.6}),
    ],
)
def test_it_declares_watts_or_a_share_of_the_default(given, declared):
    method = method_named("power_limit", **given)
    assert method.card_settings() == declared
    again = method_named("power_limit", **parameters(method))
    assert (again.card_settings(), parameters(again)) == (declared, parameters(method))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "say how much"),
        ({"limit": "200 W", "share": 0.5}, "not both"),
        ({"limit": 200}, "watts or a share"),
        ({"limit": "200 MHz"}, "unknown unit"),
        ({"limit": "0 W"}, "more than 0"),
        ({"limit": "-5 W"}, "negative"),
        ({"share": 0.0}, "greater than 0"),
        ({"share": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_is_no_limit_is_refused_in_words(given, said):
    with pytest.raises(UsageError, match=said):
        method_named("power_limit", **given)


def test_on_a_processor_it_says_why_a_run_is_refused_and_on_a_card_nothing():
    method = method_named("power_limit", share=0.5)
    (problem,) = refuse_hardware([method], "cpu")
    assert (problem.code, "NVIDIA card" in problem.message) == ("E328", True)
    assert refuse_hardware([method], "cuda") == []


@pytest.mark.parametrize("stack", [["power_limit"], ["power_limit", "ema"], ["clock_limit", "power_limit"]])
def test_what_it_trains_is_what_is_trained_without_it_bit_for_bit(stack):
    given = {"power_limit": {"share": 0.5}, "clock_limit": {"share": 0.7}}
    runs = []
    for names in (stack, [name for name in stack if name not in given]):
        run = make_run([method_named(name, **given.get(name, {})) for name in names], tiny_cnn, epochs=2, batch=16)
        run.train()
        run.finish()
        runs.append(run)
    assert_same_state(state(runs[0].model), state(runs[1].model))
    assert all(method.acted is None for method in runs[0].methods if method.name in given)


def test_its_estimate_is_the_count_of_plain_training():
    method = method_named("power_limit", share=0.5)
    run = make_run([method], tiny_cnn, epochs=2, batch=16)
    run.train()
    work = ledger_of_plain_training("cnn", run)
    assert method.estimate(work).flop == work.flop > 0


def test_a_stack_sets_each_thing_once():
    power, clock = method_named("power_limit", limit="200 W"), method_named("clock_limit", limit="1.2 GHz")
    assert refuse_settings([power, clock]) == []
    assert settings_of([power, clock]) == {"power_limit_w": 200.0, "clock_limit_hz": 1.2e9}
    other = method_named("power_limit", share=0.5)
    other.name = "another"
    (problem,) = refuse_settings([power, clock, other])
    assert problem.code == "E329"
    assert "'power_limit' and 'another' both set the card's power limit" in problem.message


def test_what_a_card_does_not_have_is_refused():
    method = method_named("power_limit", share=0.5)
    method.card_settings = lambda: {"fan_speed": 1.0}
    (problem,) = refuse_settings([method])
    assert (problem.code, "fan_speed" in problem.message) == ("E329", True)
