"""What the harness set of a card is a part of the cell: what records say of it, and what no flag says because of it."""

from __future__ import annotations

from typing import Any

import pytest

from energybench.meter.card_settings import CLOCK_HZ, ENFORCED_W, IN_RECORD, POWER_W
from energybench.meter.reading import CardState, Reading
from energybench.process.card_keeper import Held
from energybench.records.record import Cell, RunFile, Trial
from energybench.runner.card_knobs import kept, reason_alone
from energybench.verdict import devices, flags

CARD, OTHER = "GPU-1", "GPU-2"
FACTS = {"name": "Card 400", "driver": "550.54", "power_limit_w": 400.0, "ecc": True}
RUN = RunFile(
    run="r",
    suite="s",
    suite_path="s.toml",
    suite_text="",
    resolved={},
    machine={},
    order_seed=0,
    blocks=3,
    cells=[],
    digest="",
)
SECONDS = 60.0


def trial(
    *,
    facts: dict[str, Any] = FACTS,
    settings: dict[str, Any] | None = None,
    state: CardState | None = None,
    **more: Any,
) -> Trial:
    environment: dict[str, Any] = {"gpus": {CARD: facts}, "torch": "2"}
    if settings is not None:
        environment[IN_RECORD] = settings
    return Trial(
        trial="t",
        workload="w",
        method="m",
        role="method",
        digest="",
        block=0,
        seed=0,
        invocation=0,
        position=0,
        started_at="2026-01-01T00:00:00+00:00",
        status="ok",
        device=CARD,
        environment=environment,
        phases={"train": Reading(wall_s=SECONDS, cards={CARD: state or CardState()})},
    )


def knob(limit_w: float = 200.0, before_w: float = 400.0, uuid: str = CARD) -> dict[str, Any]:
    return {uuid: {"set": {POWER_W: limit_w}, "before": {POWER_W: 450.0, ENFORCED_W: before_w}}}


def codes(found: list[Any]) -> list[str]:
    return [flag.code for flag in found]


LIMITED = {**FACTS, "power_limit_w": 200.0}


@pytest.mark.parametrize(
    ("facts", "settings", "expected"),
    [
        (LIMITED, knob(), []),  # the cell's own
        (LIMITED, None, ["unlike"]),  # somebody else's
        (LIMITED, knob(before_w=300.0), ["unlike"]),  # and the card was another before
        (LIMITED, knob(uuid=OTHER), ["unlike"]),  # of another card
        ({**LIMITED, "driver": "560"}, knob(), ["unlike"]),
        ({**LIMITED, "ecc": False}, knob(), ["unlike"]),
        (LIMITED, {CARD: {"set": {CLOCK_HZ: 1e9}, "before": {}}}, ["unlike"]),  # a clock was set, no power limit
    ],
)
def test_a_pair_is_alike_but_for_the_limit_that_the_cell_declares(
    facts: dict[str, Any], settings: dict[str, Any] | None, expected: list[str]
) -> None:
    method, plain = trial(facts=facts, settings=settings), trial()
    assert codes(flags.check_pair(method, plain)) == expected
    assert codes(flags.check_pair(plain, method)) == expected


@pytest.mark.parametrize(
    ("throttled_s", "settings", "expected"),
    [
        ({"software power cap": 50.0}, knob(), []),
        ({"software power cap": 50.0}, None, ["throttled"]),
        ({"software power cap": 50.0}, knob(uuid=OTHER), ["throttled"]),
        ({"software power cap": 50.0, "hardware thermal": 50.0}, knob(), ["throttled"]),
        ({"power brake": 50.0}, knob(), ["throttled"]),
        # a lower clock draws less: a power cap beside it is nobody's wish
        ({"software power cap": 50.0}, {CARD: {"set": {CLOCK_HZ: 1e9}, "before": {}}}, ["throttled"]),
    ],
)
def test_a_card_that_throttles_by_the_cells_own_limit_is_not_flagged_and_any_other_is(
    throttled_s: dict[str, float], settings: dict[str, Any] | None, expected: list[str]
) -> None:
    state = CardState(throttled_s=throttled_s)
    found = trial(settings=settings, state=state)
    assert codes(flags.check_trial(found)) == expected
    assert found.train is not None
    assert found.train.cards[CARD].throttled_s == throttled_s  # the record keeps what was seen


def test_devices_are_pooled_by_the_limit_that_the_baseline_has() -> None:
    plain, limited, other = trial(), trial(facts=LIMITED, settings=knob()), trial(facts=LIMITED)
    assert devices.facts(RUN, limited) == devices.facts(RUN, plain) != devices.facts(RUN, other)
    kinds = devices.kinds([(RUN, [plain, limited])], devices.devices_of([plain, limited]))
    assert dict(kinds[CARD])["power limit"] == "400 W"
    assert devices.unknown(kinds[CARD]) == ""


@pytest.mark.parametrize("nonsense", ["yes", [1], {CARD: "200 W"}, {CARD: {"set": 5, "before": None}}, {CARD: {}}])
def test_a_record_that_says_something_else_there_is_read_all_the_same(nonsense: Any) -> None:
    found = trial(settings=nonsense)
    assert codes(flags.check_pair(found, trial())) == []
    assert codes(flags.check_trial(found)) == []


# ── what the run adds to a record ─────────────────────────────────────────────────────────────────────────────────────


def held(**changes: Any) -> Held:
    found = Held({CARD: {POWER_W: 200.0, CLOCK_HZ: 1.2e9}}, before={CARD: {POWER_W: 400.0, ENFORCED_W: 400.0}})
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def test_a_record_says_what_was_set_and_what_was_there_before() -> None:
    record = kept(trial(), held())
    told = {"set": {POWER_W: 200.0, CLOCK_HZ: 1.2e9}, "before": {POWER_W: 400.0, ENFORCED_W: 400.0}}
    assert record.environment[IN_RECORD] == {CARD: told}
    assert (record.status, record.reason) == ("ok", None)
    assert Trial.model_validate_json(record.model_dump_json(by_alias=True)) == record
    assert kept(trial(), Held({})) == trial()


@pytest.mark.parametrize(
    ("mean_mhz", "status"), [(900.0, "ok"), (1200.0, "ok"), (1212.0, "ok"), (1213.0, "invalid"), (None, "ok")]
)
def test_a_mean_clock_above_its_limit_makes_the_trial_invalid(mean_mhz: float | None, status: str) -> None:
    record = kept(trial(state=CardState(sm_clock_mhz=mean_mhz)), held())
    assert record.status == status
    assert ("above the limit of 1200 MHz" in (record.reason or "")) == (status == "invalid")


def test_a_limit_that_somebody_changed_makes_the_trial_invalid_and_a_failed_one_keeps_its_reason() -> None:
    changed = held(changed="its power limit is 300 W, not 200 W,")
    record = kept(trial(), changed)
    assert record.status == "invalid"
    assert "300 W, not 200 W" in (record.reason or "")
    failed = trial().model_copy(update={"status": "failed", "reason": "it broke"})
    assert (kept(failed, changed).status, kept(failed, changed).reason) == ("failed", "it broke")


def test_the_trials_of_a_workload_run_alone_where_a_cell_of_it_sets_the_card() -> None:
    plain = Cell(workload="w", method="baseline", role="baseline")
    setting = Cell(workload="w", method="power_limit", role="method", card_settings={POWER_W: 200.0, CLOCK_HZ: 1e9})
    assert reason_alone([plain]) == ""
    assert reason_alone([plain, setting]) == "power_limit sets the card's power limit and clock limit"
    assert reason_alone([plain, setting.model_copy(update={"skipped": "no card"})]) == ""
