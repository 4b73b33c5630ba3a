"""Budgets judged on figures of known error, and the table that says so at any width."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from fakes.clock import put_behind
from fakes.nvml import FakeDriver, FakeGpu
from hypothesis import given
from hypothesis import strategies as st

from energybench.common.units import format_si, parse_joules
from energybench.meter.reading import CardState, Energy, Reading
from energybench.pytest_energy import energy_table
from energybench.pytest_energy.budget import Budget, judge, read_marker
from energybench.pytest_energy.energy_table import EnergyRow
from energybench.pytest_energy.metered_calls import KEY, Bill, Metering


def bill(joules: float, error_j: float, **changed: Any) -> Bill:
    part = Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=joules, error_j=error_j)
    return Bill(
        **{"calls": 1, "window_s": 10.0, "timed_s": 10.0, "energy_j": joules, "error_j": error_j, "parts": (part,)}
        | changed
    )


def test_the_bill_of_a_part_is_that_parts_in_watts_and_carbon_too() -> None:
    card = Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=3000.0, error_j=3.0)
    package = Energy(source="rapl", scope="cpu", device="package-0", energy_j=1000.0, error_j=1.0)
    whole = bill(
        400.0,
        0.4,
        calls=10,
        parts=(card, package),
        power_w=400.0,
        co2e_kg=400.0 * 2e-8,
        carbon={"intensity_kg_per_j": 2e-8},
    )
    part = whole.of(("cpu",))
    assert (part.energy_j, part.error_j, part.power_w) == (100.0, 0.1, 100.0)
    assert part.co2e_kg == pytest.approx(100.0 * 2e-8)
    assert bill(400.0, 0.4, parts=(card, package)).of(("gpu",)).co2e_kg is None


@pytest.mark.parametrize(
    ("joules", "error_j", "verdict"),
    [
        (10.0, 2.0, "within"),  # even its upper end keeps to 12 J
        (9.0, 0.5, "within"),
        (10.1, 2.0, "undecided"),
        (13.9, 2.0, "undecided"),
        (14.0, 2.0, "undecided"),  # 12 J may still be the truth
        (14.1, 2.0, "over"),
        (13.0, 0.0, "over"),
    ],
)
def test_only_what_is_proven_to_keep_to_the_budget_is_within(joules: float, error_j: float, verdict: str) -> None:
    assert judge("t", Budget(12.0), bill(joules, error_j)).verdict == verdict


@given(st.floats(1e-6, 1e6), st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_within_and_over_are_never_said_of_a_truth_that_the_error_allows(
    joules: float, error_j: float, budget: float
) -> None:
    verdict = judge("t", Budget(budget), bill(joules, error_j)).verdict
    assert (verdict == "within") <= (joules + error_j <= budget)
    assert (verdict == "over") <= (joules - error_j > budget)


def test_an_undecided_budget_says_what_would_decide() -> None:
    assert "longer window" in judge("t", Budget(12.0), bill(12.0, 1.0)).sentence


def test_what_may_decide_nothing_is_not_measured_for_a_budget() -> None:
    assert judge("t", Budget(1e9), bill(1.0, 0.1, no_verdict="too short")).verdict == "not measured"
    assert judge("t", Budget(1e9), None, "switched off").sentence == "not measured: switched off"
    modelled = Bill(calls=1, window_s=1.0, timed_s=1.0, reason="no sensor", modelled_j=0.1)
    assert judge("t", Budget(1e9), modelled).verdict == "not measured"


UNTOLD = Energy(source="meter(x)", scope="machine", energy_j=1000.0)


@pytest.mark.parametrize("budget", [1e-3, 10.0, 1e9])
def test_no_budget_is_kept_or_broken_by_a_figure_of_unknown_error(budget: float) -> None:
    made = billed(UNTOLD)
    assert (made.energy_j, made.error_j) == (10.0, None)
    judged = judge("t", Budget(budget), made)
    assert judged.verdict == "undecided"
    assert "meter(x) (machine) does not say how far off it may be" in judged.sentence
    assert "±" not in judged.sentence


def test_a_sum_with_one_unknown_error_has_an_unknown_one_and_its_known_part_has_its_own() -> None:
    card = Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=300.0, detail={"tick_s": 0.1})
    made = billed(card, rapl(200.0), cards=(CARD,), timed_s=10.0)
    assert (made.energy_j, made.error_j) == (5.0, None)
    assert judge("t", Budget(1e9), made).verdict == "undecided"
    assert made.error_reason == "gpu_counter (gpu) does not say how far off it may be"
    part = made.of(("cpu",))
    assert (part.energy_j, part.error_j, part.error_reason) == (2.0, 0.01, None)
    assert judge("t", Budget(2.5, ("cpu",)), made).verdict == "within"


def test_an_unknown_error_is_null_with_its_reason_in_the_facts_and_no_zero_in_the_table() -> None:
    facts = billed(UNTOLD).facts()
    assert facts["energy_error_j"] is None
    assert "does not say" in facts["energy_error_reason"]
    terminal = Lines()
    energy_table.write(terminal, "", [EnergyRow("t", facts)], 120)
    text = " ".join(" ".join(terminal.lines).split())
    assert "10 J, error unknown" in text
    assert "±" not in text
    assert facts["energy_error_reason"] in text


def test_a_part_of_the_machine_is_judged_by_its_own_joules() -> None:
    parts = (
        Energy(source="rapl", scope="cpu", device="package-0", energy_j=60.0, error_j=1.0),
        Energy(source="gpu_counter", scope="gpu", device="GPU-1", energy_j=300.0, error_j=2.0),
        Energy(source="gpu_power_integral", scope="gpu", device="GPU-1", energy_j=310.0, error_j=9.0),
    )
    made = bill(360.0, 3.0, parts=parts, calls=10)
    assert made.of(("gpu",)).energy_j == 30.0  # one channel per device
    assert made.of(("cpu", "gpu")).energy_j == 36.0
    assert made.of(("gpu",)).error_j == pytest.approx(0.2)
    assert made.of(("dram",)).energy_j is None
    assert made.of(("cpu", "dram")).energy_j is None  # never a part of what was asked for


def test_a_marker_takes_its_budget_by_name_or_by_place() -> None:
    assert read_marker(("12 J",), {}) == Budget(12.0)
    assert read_marker((), {"budget": "5 mWh", "of": "gpu + cpu"}) == Budget(18.0, ("gpu", "cpu"))


@pytest.mark.parametrize(
    ("written", "joules"),
    [
        ("12 J", 12.0),
        ("3 kJ", 3000.0),
        ("5 mWh", 18.0),
        ("1 kWh", 3.6e6),
        ("7 µJ", 7e-6),
        ("7 μJ", 7e-6),
        ("2 MJ", 2e6),
    ],
)
def test_joules_and_watt_hours_are_read(written: str, joules: float) -> None:
    assert parse_joules(written) == pytest.approx(joules, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12e-6, "12 µJ"),
        (0.9996, "1 J"),
        (0.0123, "12.3 mJ"),
        (1.5e-9, "1.5 nJ"),
        (1.5e-12, "0.0015 nJ"),
        (0.0, "0 J"),
        (1234.0, "1.23 kJ"),
        (999.9, "1 kJ"),
        (12.34, "12.3 J"),
    ],
)
def test_small_energies_are_shown_with_their_prefix(value: float, shown: str) -> None:
    assert format_si(value, "J") == shown


# ── what a window's figures add up to ─────────────────────────────────────────────────────────────────────

CARD, OTHER = "GPU-1", "GPU-2"


def billed(
    *energy: Energy, cards: tuple[str, ...] = (), came: tuple[str, ...] = (), timed_s: float = 10.0, **card: Any
) -> Bill:
    reading = Reading(wall_s=10.0, energy=list(energy), cards={CARD: CardState(**card)} if card else {})
    return Metering().bill(reading, 100, timed_s, cards, came)


def counter(joules: float | None, device: str = CARD, **more: Any) -> Energy:
    return Energy(
        source="gpu_counter", scope="gpu", device=device, energy_j=joules, error_j=1.0, detail={"tick_s": 0.1}, **more
    )


def rapl(joules: float) -> Energy:
    return Energy(source="rapl", scope="cpu", device="package-0", energy_j=joules, error_j=1.0)


def test_a_card_among_all_that_has_no_figure_leaves_the_bill_without_one() -> None:
    blind = [
        Energy(source="unavailable", scope="gpu", device=OTHER, reason=f"{what}: Not Supported")
        for what in ("energy counter", "power")
    ]
    for others in ((), (rapl(200.0),)):
        made = billed(counter(1000.0), *others, *blind)
        assert (made.energy_j, made.power_w, made.co2e_kg) == (None, None, None)
        assert "Not Supported" in str(made.reason)
    integral = Energy(source="gpu_power_integral", scope="gpu", device=OTHER, energy_j=500.0, error_j=1.0)
    assert billed(counter(1000.0), blind[0], integral).energy_j == 15.0


def test_the_calls_share_what_the_window_took_and_what_else_ran_is_in_the_error() -> None:
    made = billed(counter(1000.0), rapl(200.0), cards=(CARD,), timed_s=9.5)
    assert (made.energy_j, made.power_w) == (12.0, 120.0)
    assert made.error_j == pytest.approx((2.0 + 0.05 * 1200) / 100)


def test_a_total_without_the_card_in_use_does_not_exist() -> None:
    absent = Energy(source="unavailable", scope="gpu", device=CARD, reason="not supported")
    assert billed(absent, rapl(200.0), cards=(CARD,)).energy_j is None
    assert billed(rapl(200.0), came=(CARD,)).energy_j is None
    assert billed(counter(None, reason="GPU is lost"), rapl(200.0), cards=(CARD,)).energy_j is None
    assert billed(rapl(200.0)).energy_j == 2.0


def test_memory_alone_is_no_figure_of_what_a_processor_does() -> None:
    dram = Energy(source="rapl", scope="dram", device="package-0/dram", energy_j=20.0, error_j=0.1)
    assert billed(dram).energy_j is None


def test_channels_that_contradict_each_other_leave_no_figure() -> None:
    integral = Energy(
        source="gpu_power_integral", scope="gpu", device=CARD, energy_j=1300.0, error_j=1.0, detail={"period_s": 0.2}
    )
    made = billed(counter(1000.0), integral, cards=(CARD,))
    assert made.energy_j is None
    assert "apart" in (made.reason or "")


@pytest.mark.parametrize("state", [{"mig": True}, {"mps": True}, {"foreign_pids": [7]}])
def test_a_card_that_others_share_has_a_figure_that_decides_nothing(state: dict[str, Any]) -> None:
    made = billed(counter(1000.0), cards=(CARD,), **state)
    assert made.energy_j == 10.0
    assert made.no_verdict


@pytest.mark.parametrize(("since_s", "flagged"), [(1.3, False), (0.0, True)])
def test_a_process_that_came_after_us_is_ours_by_another_number_and_one_before_us_a_stranger(
    fake_driver: Callable[..., FakeDriver], since_s: float, flagged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container numbers processes otherwise than the driver; its own appears when it first uses the card."""
    monkeypatch.setenv("ENERGYBENCH_POWERCAP", "nowhere")
    gpu = FakeGpu(tick_s=0.01, compute=[(777_777, since_s)])
    clock = put_behind(monkeypatch, fake_driver(gpu, start_s=1.0).time)
    metering = Metering("all")
    clock.sleep(0.4)
    with metering.window() as window:
        window.start()
        clock.sleep(0.2)
        window.stop()
        made = window.bill(1, timed_s=0.2)
    assert made is not None
    assert made.window_s == pytest.approx(0.2)
    assert made.error_j is not None
    assert made.energy_j == pytest.approx(100 * 0.2, abs=made.error_j)
    assert made.error_j < 1.0
    assert ("foreign_process" in made.flags) == flagged


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write_line(self, line: str, **markup: bool) -> None:
        self.lines.append(line)


FACTS = [
    {
        "energy_j": 0.0123,
        "energy_error_j": 0.0004,
        "power_w": 61.2,
        "co2e_kg": 1.9e-10,
        "flop": 7_100_000_000,
        "energy_sources": ["gpu_counter (gpu)", "rapl (cpu)"],
    },
    {"energy_j": None, "modelled_energy_j": 2.5, "energy_reason": "RAPL absent", "energy_sources": ["model(x) (cpu)"]},
    {"energy_j": 1.0, "energy_error_j": 0.5, "energy_no_verdict": "too short", "energy_sources": ["rapl (cpu)"]},
]


@pytest.mark.parametrize("width", range(40, 201, 8))
def test_at_any_width_no_figure_is_cropped_and_every_source_and_reason_is_told(width: int) -> None:
    terminal = Lines()
    rows = [EnergyRow(f"test_of_some_length_{number}", facts) for number, facts in enumerate(FACTS)]
    energy_table.write(terminal, "", rows, width)
    text = " ".join(" ".join(terminal.lines).split())
    for figure in (
        "12.3 mJ ± 400 µJ",
        "modelled 2.5 J",
        "1 J ± 500 mJ *",
        "gpu_counter (gpu) + rapl (cpu)",
        "model(x) (cpu)",
        "RAPL absent",
        "* too short",
    ):
        assert figure in text, text
    assert all(len(line) <= width for line in terminal.lines), terminal.lines
    for unit in ("W", "GFLOP", "ng", "µg"):
        assert all(re.search(r"[\d.]+$", part) for part in text.split(f" {unit} ")[:-1])  # each with its figure


def test_saved_runs_show_their_own_figures_and_runs_without_ours_none() -> None:
    now = {"name": "t (NOW)", "fullname": "f::t", "path": None, "extra_info": {KEY: FACTS[0]}, "min": 1.0}
    saved = now | {"name": "t (0001)", "path": "a.json", "min": 2.0}
    files = {"a.json": {"f::t": {"extra_info": {KEY: FACTS[2]}}}}
    rows = energy_table.rows_of([(None, [saved, now])], files)
    assert [(row.name, row.facts["energy_j"]) for row in rows[""]] == [("t (NOW)", 0.0123), ("t (0001)", 1.0)]
    before = energy_table.rows_of([(None, [saved, now])], {"a.json": {"f::t": {"extra_info": {}}}})
    assert [row.name for row in before[""]] == ["t (NOW)"]
