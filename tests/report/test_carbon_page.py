"""Joules, kilograms and runs: products and sums done by hand, simulated truth, and nothing modelled in them."""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from synthetic import GPU, JOULES, MODEL, Run

from energybench.common.errors import UsageError
from energybench.meter.reading import Energy, Reading
from energybench.report import carbon_page
from energybench.verdict import carbon, wording
from energybench.verdict.carbon import Asked, CarbonReport, Gain, Span, carbon_report

ZONE = {
    "zone": "FRA",
    "country": "France",
    "intensity_kg_per_j": 0.056 / 3.6e6,
    "year": 2023,
    "source": "a table",
    "pue": 1.5,
}
EVIL = "a|b`c<script>alert(1)</script>\n# d [x](http://evil) @someone"


def of(
    run: Run,
    *zones: str,
    tuned: int | None = None,
    grams: float | None = None,
    pue: float | None = None,
    **changes: Any,
) -> CarbonReport:
    meta, trials, counting_runs = run.records()
    cells = [cell.model_copy(update={"tuned_trials": tuned}) if cell.role == "method" else cell for cell in meta.cells]
    meta = meta.model_copy(update={"machine": {**meta.machine, "carbon": ZONE}, "cells": cells} | changes)
    own = None if grams is None else grams / 3.6e9
    return carbon_report(meta, trials, counting_runs, Asked(zones, own, pue))


def half(**options: Any) -> Run:
    return Run(**{"blocks": 5, "sensors": (GPU,)} | options).method("half", time=0.6, energy=0.5)


def gain(found: CarbonReport) -> Gain:
    (only,) = found.gains
    return only


def printed(found: CarbonReport, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    carbon_page.render(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


# ── products ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_saving_without_scatter_is_exact_per_run_and_for_a_thousand() -> None:
    found = gain(of(half()))
    assert found.verdict == "saves"
    assert found.per_run_j == Span(JOULES / 2, JOULES / 2, JOULES / 2)
    assert found.runs_j is not None
    assert (found.runs_j.low, found.runs_j.mean, found.runs_j.high) == pytest.approx([1000 * JOULES / 2] * 3)


def test_co2_is_energy_times_pue_times_intensity_in_every_zone() -> None:
    found = of(half(noise=0.02), "FRA", "USA", "POL")
    assert [zone.zone for zone in found.zones] == ["FRA", "USA", "POL"]
    span = gain(found).runs_j
    assert span is not None
    assert found.zones[0].kg(span).mean == pytest.approx(span.mean / 3.6e6 * 0.056 * 1.5)
    usa, poland = found.zones[1:]
    assert usa.intensity_kg_j * 3.6e9 == pytest.approx(369.473)  # codecarbon's table, g/kWh
    assert poland.intensity_kg_j * 3.6e9 == pytest.approx(661.926)
    assert poland.kg(span).low == pytest.approx(span.low * poland.intensity_kg_j * 1.5)  # type: ignore[operator]


def test_the_runs_own_zone_is_the_recorded_one_and_never_todays_table() -> None:
    assert of(half()).zones[0].source == "a table"
    assert of(half(), "FRA").zones[0].intensity_kg_j == ZONE["intensity_kg_per_j"]


def test_a_zone_may_be_written_in_any_form_and_the_runs_own_stays_the_recorded_one() -> None:
    found = of(half(), "fr", "FRA", "us-ca", "USA-CA", "aws:eu-west-3")
    assert [zone.zone for zone in found.zones] == ["FRA", "US-CA", "aws:eu-west-3"]
    assert found.zones[0].source == "a table"
    assert found.zones[1].intensity_kg_j == pytest.approx(394.769 * 0.45359237 / 3.6e9)  # eGRID 2023, lb/MWh
    text = carbon_page.markdown(found)
    assert "US-CA: 179.1 g CO₂e/kWh, the mean of what is generated in California, United States, 2023, by" in text
    assert "the grid of France, where aws:eu-west-3 (Paris) lies, 2023" in text


def test_an_intensity_of_ones_own_stands_alone_or_beside_the_zones_that_are_named() -> None:
    alone = of(half(), grams=56.0)
    assert [(zone.zone, zone.country) for zone in alone.zones] == [("own", "")]
    span = gain(alone).runs_j
    assert span is not None
    assert alone.zones[0].kg(span).mean == pytest.approx(span.mean / 3.6e6 * 0.056 * 1.5)
    assert "own: 56.0 g CO₂e/kWh, given by --intensity" in carbon_page.markdown(alone)
    assert [zone.zone for zone in of(half(), "POL", grams=56.0).zones] == ["POL", "own"]


def test_a_recorded_intensity_of_the_suites_own_is_told_as_such() -> None:
    own = {
        "zone": "own",
        "intensity_kg_per_j": 0.04 / 3.6e6,
        "year": None,
        "source": "RTE 2023",
        "basis": "given in the suite",
        "pue": 1.1,
    }
    meta, trials, counting_runs = half().records()
    report = carbon_report(meta.model_copy(update={"machine": {"carbon": own}}), trials, counting_runs)
    assert "own: 40.0 g CO₂e/kWh, given in the suite, by RTE 2023; PUE 1.1, in every CO₂e." in carbon_page.markdown(
        report
    )


def test_a_pue_that_is_asked_for_replaces_the_runs_own_and_says_so() -> None:
    found = of(half(), "FRA", "POL", pue=1.2)
    assert {zone.pue for zone in found.zones} == {1.2}
    assert carbon_page.markdown(found).count("PUE 1.2 (given by --pue), in every CO₂e") == 2


def test_the_first_records_intensity_by_kilowatt_hour_is_read_too() -> None:
    old = {"zone": "FRA", "intensity_kg_per_kwh": 0.056, "source": "a table"}
    meta, trials, counting_runs = half().records()
    (zone,) = carbon_report(meta.model_copy(update={"machine": {"carbon": old}}), trials, counting_runs).zones
    assert (zone.intensity_kg_j, zone.pue) == (pytest.approx(0.056 / 3.6e6), 1.0)


@given(st.lists(st.sampled_from(["FR", "POL", "US-WY", "CA-QC", "gcp:europe-west9"]), max_size=3), st.floats(1, 3000))
def test_no_percentage_and_no_verdict_depends_on_the_grid(zones: list[str], grams: float) -> None:
    """Equal for both arms: what is saved of the baseline's CO2e is what is saved of its energy, in every zone."""
    found = of(half(), *zones, grams=grams)
    baseline, method = (use.measured_j for use in found.uses)
    assert baseline is not None
    assert method is not None
    saved = 1 - method.mean / baseline.mean
    for zone in found.zones:
        assert 1 - zone.kg(method).mean / zone.kg(baseline).mean == pytest.approx(saved)
    assert gain(found).verdict == gain(of(half())).verdict


def test_a_country_that_the_table_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        of(half(), "XYZ")
    assert caught.value.problems[0].code == "E502"


def test_without_a_country_energy_is_told_and_co2_is_not() -> None:
    meta, trials, counting_runs = half().records()
    found = carbon_report(meta, trials, counting_runs)
    assert found.zones == ()
    assert gain(found).per_run_j is not None
    text = printed(found)
    assert "names no country" in text
    assert "CO₂e FRA" not in text


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=3, max_size=8))
def test_what_is_saved_a_run_is_the_mean_of_the_differences(pairs: list[tuple[float, float]]) -> None:
    span = carbon._bounded([plain - ours for plain, ours in pairs], 0.0)
    mean = math.fsum(plain - ours for plain, ours in pairs) / len(pairs)
    assert span.mean == pytest.approx(mean, abs=1e-6)
    assert span.low is not None
    assert span.high is not None
    assert span.low <= span.mean <= span.high


# ── uncertainty ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_sensors_budgets_of_both_sides_widen_the_bounds() -> None:
    run = half()
    for label, joules in (("baseline", JOULES), ("twin", JOULES), ("half", JOULES / 2)):
        for block in range(5):
            figure = Energy(source=GPU[0], scope=GPU[1], energy_j=joules, error_j=1.0)
            run.change(label, block, phases={"train": Reading(wall_s=10 * joules / JOULES, energy=[figure])})
    found = gain(of(run, tuned=4))
    assert found.per_run_j == Span(JOULES / 2, JOULES / 2 - 2, JOULES / 2 + 2)
    assert found.runs_j == Span(500 * JOULES, 500 * JOULES - 2000, 500 * JOULES + 2000)
    assert found.tuning_j == Span(2 * JOULES, 2 * JOULES - 4, 2 * JOULES + 4)


def test_the_bounds_of_a_thousand_runs_hold_the_truth_of_a_thousand_runs() -> None:
    """Each run's saving is normal(100, 20): what 1,000 more save, predicted from 5 blocks, 95 times in 100."""
    random, inside, once, repeats = np.random.default_rng(2), 0, 0, 3000
    for _ in range(repeats):
        blocks = list(random.normal(100, 20, 5))
        many, one = carbon._bounded(blocks, 0.0, 1000), carbon._bounded(blocks, 0.0)
        truth = random.normal(1000 * 100, math.sqrt(1000) * 20)
        inside += many.low <= truth <= many.high  # type: ignore[operator]
        once += one.low <= 100 <= one.high  # type: ignore[operator]
    assert 0.935 <= inside / repeats <= 0.965
    assert 0.935 <= once / repeats <= 0.965


def test_one_run_to_come_is_less_certain_than_the_mean_of_runs() -> None:
    mean, one = carbon._bounded([90.0, 100.0, 110.0], 0.0), carbon._bounded([90.0, 100.0, 110.0], 0.0, 1)
    assert one.high - one.low == pytest.approx(2 * (mean.high - mean.low))  # type: ignore[operator]  # √(1 + 3)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3), st.floats(-1e6, 1e6), st.floats(0, 1e3))
def test_a_difference_of_two_spans_holds_every_difference_of_their_members(
    a: float, x: float, b: float, y: float
) -> None:
    found = Span(a, a - x, a + x).less(Span(b, b - y, b + y))
    assert found == Span(a - b, (a - x) - (b + y), (a + x) - (b - y))


def test_one_block_has_a_figure_and_no_bounds() -> None:
    assert carbon._bounded([5.0], 1.0, 10) == Span(50.0)


def test_a_method_that_is_called_plain_training_is_not_taken_for_it() -> None:
    found = of(Run(blocks=3, sensors=(GPU,)).method("plain training", energy=0.5))
    assert [(use.label, use.measured_j.mean) for use in found.uses if use.measured_j] == [
        ("baseline", JOULES),
        ("plain training", JOULES / 2),
    ]


def test_a_command_is_not_said_to_be_a_training() -> None:
    meta, trials, counting_runs = half().records()
    cells = [cell.model_copy(update={"command": ["python", "train.py"]}) for cell in meta.cells]
    found = carbon_report(meta.model_copy(update={"cells": cells}), trials, counting_runs)
    assert [use.method for use in found.uses] == ["the plain command", "half"]


# ── tuning ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tuned", [1, 7, 40])
def test_tuning_is_repaid_by_the_first_run_that_makes_up_for_it(tuned: int) -> None:
    found = gain(of(half(noise=0.01), tuned=tuned))
    assert found.per_run_j is not None
    assert found.tuning_j is not None
    assert found.repaid is not None
    assert found.repaid * found.per_run_j.mean >= found.tuning_j.mean > (found.repaid - 1) * found.per_run_j.mean
    assert found.repaid_bounds is not None
    best, worst = found.repaid_bounds
    assert worst is not None
    assert best <= found.repaid <= worst
    assert found.net_j is not None
    assert found.runs_j is not None
    assert found.net_j.mean == pytest.approx(found.runs_j.mean - found.tuning_j.mean)


def test_tuning_that_nobody_declared_is_said_to_be_missing() -> None:
    found = of(half())
    assert gain(found).tuning_j is None
    assert "tuning is not in it" in printed(found)


def test_what_costs_more_is_negative_and_its_tuning_is_never_repaid() -> None:
    found = of(Run(blocks=5, sensors=(GPU,)).method("half", energy=1.5), tuned=3)
    assert gain(found).verdict == "costs more"
    assert gain(found).per_run_j is not None
    assert gain(found).per_run_j.mean == -JOULES / 2  # type: ignore[union-attr]
    assert gain(found).repaid is None
    text = printed(found)
    assert "−250 J" in text
    assert "no number of runs repays" in text


# ── what may not be multiplied ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "options", "verdict"),
    [
        ({"energy": 0.97}, {"noise": 0.1}, "inconclusive"),
        ({"energy": 0.5, "quality": -0.05}, {}, "quality lost"),
        ({"energy": 1.0}, {}, "no saving"),
    ],
)
def test_only_a_verdict_is_multiplied(method: dict[str, float], options: dict[str, float], verdict: str) -> None:
    found = of(Run(blocks=5, sensors=(GPU,), **options).method("half", **method))  # type: ignore[arg-type]
    assert gain(found).verdict == verdict
    assert (gain(found).per_run_j, gain(found).runs_j) == (None, None)
    text = printed(found)
    assert "nothing is multiplied" in " ".join(text.split())
    assert "1,000 runs" not in text


@pytest.mark.parametrize("energy", [0.01, 0.5, 3.0])
def test_modelled_energy_is_shown_and_multiplied_by_nothing(energy: float) -> None:
    found = of(Run(blocks=5, sensors=(MODEL,)).method("half", time=0.5, energy=energy), "FRA", "POL", tuned=3)
    assert all(use.measured_j is None for use in found.uses)
    assert (gain(found).per_run_j, gain(found).tuning_j, found.whole_j) == (None, None, None)
    facts = carbon.to_json(found)
    assert all(use["measured_kg"] is None for use in facts["uses"])
    text = printed(found)
    assert "Modelled" in text
    assert wording.plain(wording.si(JOULES * energy, "J")) in text
    assert not re.search(r"\d [nµm]?g\b(?! CO)", text)  # no mass but the grids' own
    assert "1,000 runs" not in text


def modelled(load: float, joules: float) -> list[Energy]:
    cpu = Energy(source="model(codecarbon cpu_load)", scope="cpu", energy_j=joules, detail={"load_rel": load})
    ram = Energy(source="model(codecarbon ram)", scope="dram", energy_j=2 * joules)
    return [cpu, ram, Energy(source="unavailable", scope="gpu", reason="no driver: libnvidia-ml is missing")]


def test_where_nothing_was_measured_the_page_is_why_what_was_modelled_and_what_to_do() -> None:
    run = Run(blocks=2, sensors=(MODEL,)).method("half")
    for label, joules in (("baseline", 4.0), ("twin", 4.0), ("half", 2.0)):
        for block, load in enumerate((0.5, 0.7)):
            run.change(label, block, phases={"train": Reading(wall_s=9, energy=modelled(load, joules))})
    found = of(run, "FRA", "POL")
    assert carbon_page.unmeasured(found) == [
        "Nothing was measured: gpu (no driver).",
        "Modelled by codecarbon, of the whole machine at a mean load of 60\N{NO-BREAK SPACE}%, time in another unit "
        "and multiplied by nothing: cnn-digits: plain training 12.0\N{NO-BREAK SPACE}J, half 6.00\N{NO-BREAK SPACE}J.",
        carbon_page.WHAT_TO_DO,
    ]
    for page in (printed(found), carbon_page.markdown(found)):
        assert "energybench doctor" in page
        assert "not measured" not in page
        assert "|" not in page
        assert "kWh" not in page
    assert len(printed(found).splitlines()) < 12


def test_the_loads_that_methods_were_modelled_at_are_not_averaged_where_they_differ() -> None:
    run = Run(blocks=1, sensors=(MODEL,)).method("half")
    for label, load in (("baseline", 0.4), ("twin", 0.4), ("half", 0.9)):
        run.change(label, 0, phases={"train": Reading(wall_s=9, energy=modelled(load, 1.0))})
    assert "at mean loads from 40 % to 90 %" in wording.plain(" ".join(carbon_page.unmeasured(of(run))))


def test_without_a_usable_trial_or_with_energy_off_that_is_said() -> None:
    failed = Run(blocks=1, sensors=(GPU,)).method("half")
    for label in ("baseline", "twin", "half"):
        failed.change(label, 0, status="failed", reason="out of memory", phases={})
    assert carbon_page.unmeasured(of(failed))[0] == "No trial is usable, so there is nothing to add up."
    off = Run(blocks=1, sensors=()).method("half")
    assert carbon_page.unmeasured(of(off))[0].startswith("Nothing was measured")


def test_a_model_beside_a_sensor_is_told_to_be_of_the_whole_machine_at_its_load() -> None:
    run = half(sensors=(GPU,))
    for label in ("baseline", "twin", "half"):
        for block in range(5):
            joules = run.energies(JOULES / 2 if label == "half" else JOULES)
            run.change(label, block, phases={"train": Reading(wall_s=9, energy=[*joules, *modelled(0.25, 3.0)])})
    found = of(run)
    assert carbon_page.unmeasured(found) == []
    assert "of the whole machine at a mean load of 25 %" in " ".join(carbon_page.markdown(found).split())


def test_a_model_beside_a_sensor_changes_no_measured_figure() -> None:
    beside, alone = of(half(sensors=(GPU, MODEL))), of(half())
    assert [use.measured_j for use in beside.uses] == [use.measured_j for use in alone.uses]
    assert gain(beside).per_run_j == gain(alone).per_run_j
    assert beside.whole_j == alone.whole_j


def test_blocks_since_the_last_look_and_blocks_added_later_are_not_in_it() -> None:
    from energybench.records.record import Looks

    closed = {"blocks": 20, "looks": Looks(at=[5, 10, 20], taken=[5]), "closed": 5}
    wide = half(blocks=8, noise=0.02)
    assert of(wide, **closed).uses[0].n == 5
    assert gain(of(wide, **closed)).per_run_j == gain(of(half(blocks=5, noise=0.02), **closed)).per_run_j


def test_the_whole_benchmark_adds_every_window_of_every_trial() -> None:
    run = half()
    idle = {
        "train": Reading(wall_s=9, energy=run.energies(7.0)),
        "idle_before": Reading(wall_s=1, energy=run.energies(3.0)),
    }
    run.change("half", 0, phases=idle)
    blocks = 5
    assert of(run).whole_j == pytest.approx(blocks * 2 * JOULES + (blocks - 1) * JOULES / 2 + 10.0)


def test_a_command_is_added_once_whatever_windows_of_its_own_lie_inside_it() -> None:
    run = Run(blocks=1, sensors=(GPU,))
    windows = {"idle_before": 3.0, "command": 100.0, "train": 60.0, "evaluate": 20.0, "idle_after": 4.0}
    for label in ("baseline", "twin"):
        phases = {name: Reading(wall_s=1, energy=run.energies(joules)) for name, joules in windows.items()}
        run.change(label, 0, phases=phases)
    assert of(run).whole_j == pytest.approx(2 * (100.0 + 3.0 + 4.0))


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_windows_inside_a_command_are_not_added_to_it_again() -> None:
    """10 J at rest before it, 100 J of the whole command: 60 of training, 30 of evaluation and 10 of starting up."""

    def window(joules: float) -> Reading:
        return Reading(wall_s=1.0, energy=[Energy(source="gpu_counter", scope="gpu", energy_j=joules)])

    inside = {"idle_before": 10.0, "command": 100.0, "train": 60.0, "evaluate": 30.0}
    phases = {name: window(joules) for name, joules in inside.items()}
    whole = {"command": window(7.0), "train": window(7.0)}  # one that marks no training
    run = Run(blocks=1, sensors=(GPU,)).change("baseline", 0, phases=phases).change("twin", 0, phases=whole)
    assert of(run).whole_j == pytest.approx(117.0)


def test_what_is_not_in_it_is_said_part_by_part() -> None:
    found = " ".join(of(half()).not_in_it)
    for word in ("embodied", "network", "PUE", "warm-up", "year's mean", "processors, memory"):
        assert word in found
    whole = Run(blocks=3, sensors=(("meter(plug)", "machine"),)).method("half", energy=0.5)
    assert "no sensor here sees" not in " ".join(of(whole).not_in_it)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_figure_is_cropped_or_broken_at_any_width(width: int) -> None:
    found = of(half(noise=0.02), "FRA", "USA", "POL", tuned=20)
    text = printed(found, width)
    assert "…" not in text
    figures = re.findall(r"−?[\d.,]+ [nµmk]?[Jg]\b|\[−?[\d.]+, −?[\d.]+\]", text)  # bounds may stand below
    for _, rows in (carbon_page.uses(found, "cnn-digits"), carbon_page.gains(found, gain(found))):
        for row in rows:
            for cell in row[1:]:
                figure, bracket, bounds = wording.plain(cell).partition(" [")
                assert figure in figures or figure in text
                assert not bracket or f"[{bounds}" in figures


def test_the_page_is_written_the_same_each_time_with_zone_year_and_intensity() -> None:
    found = of(half(noise=0.02), tuned=3)
    text = carbon_page.markdown(found)
    assert text == carbon_page.markdown(of(half(noise=0.02), tuned=3))
    assert "FRA: France, 56.0 g CO₂e/kWh, the mean of 2023, by a table; PUE 1.5" in text
    assert "## What is not in it" in text
    for rows in re.findall(r"(?:^\|.*\n?)+", text, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows.strip().splitlines()}) == 1


def test_a_hostile_name_adds_no_cell_tag_link_or_heading() -> None:
    run = Run(workload=EVIL, blocks=3, sensors=(GPU,)).method(EVIL, energy=0.5)
    text = carbon_page.markdown(of(run))
    assert "<script" not in text
    assert "http://evil" not in text
    assert "\n# d" not in text
    assert "@someone" not in text


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Span(150.04, 140.2, 160.6), "150 J [140, 161]"),
        (Span(-0.5, -0.6, 0.4), "−500 mJ [−600, 400]"),
        (Span(999.6, 10.0, 1000.4), "1.00 kJ [0.01, 1.00]"),
        (Span(5.0), "5.00 J"),
        (Span(0.0, 0.0, 0.0), "0 J"),
        (None, "–"),
    ],
)
def test_a_span_is_written_with_one_prefix(figure: Span | None, text: str) -> None:
    assert wording.plain(carbon_page.span(figure, "J")) == text


def test_the_facts_for_machines_are_json_with_kilograms_beside_joules() -> None:
    facts = carbon.to_json(of(half(noise=0.02), "FRA", "POL", tuned=3))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    (only,) = facts["gains"]
    assert set(only["runs_kg"]) == {"FRA", "POL"}
    assert only["runs_kg"]["FRA"]["mean"] == pytest.approx(only["runs_j"]["mean"] * ZONE["intensity_kg_per_j"] * 1.5)
