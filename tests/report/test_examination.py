"""Each trial is examined once for a report, whatever asks about it; and what is found is what a lone trial shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from synthetic import GPU, Run

from energybench.records.record import Flag, Trial
from energybench.verdict import flags, pairing
from energybench.verdict.carbon import carbon_report
from energybench.verdict.examination import Examination, examine
from energybench.verdict.summary import summarise


def run() -> Run:
    """Plain training, its twin, two methods and a control; flags, and trials that are set aside."""
    made = Run(blocks=4, sensors=(GPU,)).method("half", time=0.8, energy=0.7).method("other", time=1.2)
    made.control("half", time=0.75, energy=0.7)
    made.change("half", 1, status="diverged", reason="the loss is NaN")
    made.change("twin", 2, flags=[Flag(code="inert", detail="")])
    made.change("other", 0, flags=[Flag(code="dead_layer", detail="")])
    return made


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each trial's flags were computed, by its name."""
    calls: Counter[str] = Counter()
    check_trial = flags.check_trial

    def counted(trial: Trial) -> list[Flag]:
        calls[trial.trial] += 1
        return check_trial(trial)

    monkeypatch.setattr(flags, "check_trial", counted)
    return calls


def once(trials: list[Trial]) -> dict[str, int]:
    return dict.fromkeys((trial.trial for trial in trials), 1)


def test_a_summary_examines_each_trial_once(examined: Counter[str]) -> None:
    records = run().records()
    summarise(*records)
    assert examined == once(records[1])


def test_so_it_does_where_blocks_were_added_and_every_comparison_is_made_twice(examined: Counter[str]) -> None:
    meta, trials, counting_runs = run().records()
    assert summarise(meta.model_copy(update={"blocks": 3}), trials, counting_runs).added
    assert examined == once(trials)


def test_the_carbon_report_asks_its_summary_and_examines_nothing_again(examined: Counter[str]) -> None:
    records = run().records()
    carbon_report(*records)
    assert examined == once(records[1])


def test_a_trial_that_is_remembered_is_what_it_is_alone() -> None:
    trials = run().records()[1]
    examination = Examination(trials)
    assert [examination[trial] for trial in trials] == [examine(trial) for trial in trials]
    assert examination.usable(trials) == [trial for trial in trials if pairing.unusable(trial) is None]
    assert [t.trial for t in trials if t not in examination.usable(trials)] == [
        "b0-i0-cnn-digits.other",
        "b1-i0-cnn-digits.half",
    ]


def test_two_trials_of_one_name_are_two() -> None:
    good = run().records()[1][0]
    bad = good.model_copy(update={"status": "failed", "reason": "killed"})
    examination = Examination([good, bad])
    assert [examination.reason_unusable(trial) for trial in (good, bad)] == [None, "killed"]


def test_a_trial_that_was_not_handed_in_is_no_trial_of_the_run() -> None:
    trial: Any = run().records()[1][0]
    with pytest.raises(KeyError):
        Examination([])[trial]
