"""clock_limit: what it declares of the card; what it trains is held to plain training in test_power_limit.py."""

from __future__ import annotations

import pytest
from support import make_run, tiny_cnn
from test_contract import ledger_of_plain_training
from test_method_members import method_named

from energybench.common.errors import UsageError
from energybench.train.method import parameters
from energybench.train.refusals import refuse_hardware


@pytest.mark.parametrize(
    ("given", "declared"),
    [
        ({"limit": "1200 MHz"}, {"clock_limit_hz": 1.2e9}),
        ({"limit": "1.2 GHz"}, {"clock_limit_hz": 1.2e9}),
        ({"share": 0.7}, {"clock_limit_rel": 0.7}),
    ],
)
def test_it_declares_hertz_or_a_share_of_the_highest(given, declared):
    method = method_named("clock_limit", **given)
    assert method.card_settings() == declared
    again = method_named("clock_limit", **parameters(method))
    assert (again.card_settings(), parameters(again)) == (declared, parameters(method))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "say how much"),
        ({"limit": "1200 MHz", "share": 0.5}, "not both"),
        ({"limit": 1200}, "megahertz or a share"),
        ({"limit": "1200 mhz"}, "unknown unit 'mhz'"),
        ({"limit": "200 W"}, "unknown unit"),
        ({"share": 0.0}, "greater than 0"),
    ],
)
def test_what_is_no_limit_is_refused_in_words(given, said):
    with pytest.raises(UsageError) as refused:
        method_named("clock_limit", **given)
    assert said in str(refused.value)


def test_on_a_processor_it_says_why_a_run_is_refused_and_on_a_card_nothing():
    method = method_named("clock_limit", share=0.5)
    (problem,) = refuse_hardware([method], "cpu")
    assert (problem.code, "NVIDIA card" in problem.message) == ("E328", True)
    assert refuse_hardware([method], "cuda") == []


def test_its_estimate_is_the_count_of_plain_training():
    method = method_named("clock_limit", share=0.5)
    run = make_run([method], tiny_cnn, epochs=2, batch=16)
    run.train()
    work = ledger_of_plain_training("cnn", run)
    assert method.estimate(work).flop == work.flop > 0
