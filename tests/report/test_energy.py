"""What reports make of sensors: which figures are added, what is net of idle, how far off, and what is said first."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from faults import fault
from rich.console import Console
from synthetic import GPU, JOULES, MODEL, SECONDS, Run

from energybench.cli import paired_commands_page
from energybench.meter.combine import metered
from energybench.meter.reading import Energy, Reading
from energybench.records.record import Estimate, Layer
from energybench.report import html, markdown, terminal
from energybench.verdict import explanations, sentences, wording
from energybench.verdict.pairing import energies
from energybench.verdict.summary import summarise
from energybench.windows.file import WindowLine, sentence

INTEGRAL, RAPL, DRAM = ("gpu_power_integral", "gpu"), ("rapl", "cpu"), ("rapl", "dram")


def reading(*energy: Energy, wall_s: float = 1.0) -> Reading:
    return Reading(wall_s=wall_s, energy=list(energy))


def energy(source: str, scope: str, joules: float | None, **more: Any) -> Energy:
    return Energy(source=source, scope=scope, energy_j=joules, **more)


def note(*sensors: tuple[str, str], **run: Any) -> str:
    return summarise(*Run(sensors=sensors, **run).method("half", energy=0.5).records()).energy_note


def test_one_channel_of_a_card_counts_and_parts_of_the_machine_are_added() -> None:
    found = metered(
        reading(
            energy(*GPU, 100.0, error_j=1.0),
            energy(*INTEGRAL, 103.0),
            energy(*RAPL, 40.0, error_j=0.5),
            energy(*DRAM, 5.0, error_j=0.25),
            energy(*MODEL, 999.0),
        )
    )
    assert found.joules == 145.0
    assert found.error_j == 1.75
    assert found.sensors == {GPU, RAPL, DRAM}


def test_without_a_counter_the_integral_counts() -> None:
    found = metered(reading(energy("unavailable", "gpu", None), energy(*INTEGRAL, 103.0)))
    assert (found.joules, found.sensors) == (103.0, {INTEGRAL})


def test_a_meter_that_sees_the_whole_machine_is_not_added_to_its_parts() -> None:
    found = metered(reading(energy("meter(plug)", "machine", 300.0), energy(*GPU, 100.0), energy(*RAPL, 40.0)))
    assert (found.joules, found.sensors) == (300.0, {("meter(plug)", "machine")})


def test_a_part_of_which_one_device_has_no_figure_has_no_sum() -> None:
    """Two cards were used and one was metered: its joules are not the training's."""
    one = energy(*GPU, 100.0, device="GPU-1")
    blind = [energy("unavailable", "gpu", None, device="GPU-2", reason=why) for why in ("no counter", "no power")]
    found = metered(reading(one, *blind, energy(*RAPL, 40.0, device="package-0")))
    assert (found.joules, found.sensors) == (40.0, {RAPL})
    second = energy(*INTEGRAL, 60.0, device="GPU-2")
    assert metered(reading(one, blind[0], second)).joules == 160.0
    assert metered(reading(one, energy(*MODEL, 5.0, device="cpu"))).sensors == {GPU}


def test_a_figure_of_all_cards_is_not_added_to_those_of_each() -> None:
    """A meter of another package that names no device."""
    whole = energy("meter(other)", "gpu", 205.0)
    cards = [energy(*GPU, 100.0, device=f"GPU-{n}") for n in (1, 2)]
    assert metered(reading(whole, *cards)).joules == 200.0
    assert metered(reading(whole)).joules == 205.0
    lost = energy("gpu_counter", "gpu", None, device="GPU-3", reason="lost")
    assert metered(reading(whole, *cards, lost)).joules == 205.0


@pytest.mark.parametrize(
    ("sensors", "said"),
    [
        ((GPU,), "Energy is measured: gpu by the card's energy counter."),
        ((GPU, INTEGRAL), "Energy is measured: gpu by the card's energy counter."),
        ((RAPL, DRAM), "Energy is measured: cpu by RAPL, dram by RAPL."),
        ((INTEGRAL, RAPL), "Energy is measured: gpu by the card's integrated power, cpu by RAPL."),
        ((("meter(plug)", "machine"),), "Energy is measured: machine by plug."),
    ],
)
def test_the_first_screen_says_what_was_measured_by_what(sensors: tuple[Any, ...], said: str) -> None:
    assert note(*sensors) == said


def test_the_first_screen_says_modelled_or_not_available_and_why_in_a_few_words() -> None:
    missing = energy("unavailable", "cpu", None, reason="RAPL absent: there is no folder of that name")
    run = Run(sensors=(MODEL,))
    modelled = run.energies(5.0)
    for block in range(3):
        for label in ("baseline", "twin"):
            run.change(label, block, phases={"train": Reading(wall_s=9, cpu_s=9, energy=[*modelled, missing])})
    said = summarise(*run.records()).energy_note
    assert said.startswith("Energy is modelled, not measured")
    assert said.endswith("Not seen: cpu (RAPL absent).")
    assert wording.energy_not_measured(False, [missing]).startswith("Energy is not available")


CARDS = [
    energy(
        "unavailable",
        "gpu",
        None,
        device=f"0000:{bus}:00.0",
        reason="AMD GPU (amdgpu) is there and nothing meters it: no power file",
        detail={"unmetered": True, "vendor": "AMD", "kind": "gpu", "driver": "amdgpu"},
    )
    for bus in ("03", "43", "83", "c3")
]


def beside_cards(*sensors: tuple[str, str]) -> Run:
    """A run whose every window lists four cards that nothing meters."""
    run = Run(sensors=sensors).method("half", time=0.5, energy=0.5)
    for label in ("baseline", "twin", "half"):
        for block in range(3):
            share = 0.5 if label == "half" else 1.0
            figures = [e.model_copy(update={"error_j": 1.0}) for e in run.energies(share * JOULES)]
            phases = {"train": reading(*figures, *CARDS, wall_s=SECONDS * share)}
            run.change(label, block, phases=phases)
    return run


@fault("unmetered cards")
def test_the_first_screen_names_the_cards_that_nothing_metered_and_the_headline_the_part_that_was() -> None:
    summary = summarise(*beside_cards(RAPL).records())
    assert summary.energy_note == "Energy is measured: cpu by RAPL. Not seen: 4 AMD GPUs (amdgpu)."
    assert "of the processor's energy that" in summary.headline
    assert "energy (cpu)" not in summary.headline
    (row,) = summary.workloads[0].rows
    assert (row.measured.quantity, row.measured.scope) == ("energy", "cpu")  # type: ignore[union-attr]


def test_every_page_has_that_note(tmp_path: Path) -> None:
    records = beside_cards(RAPL).records()
    summary = summarise(*records)
    console = Console(width=80, record=True, file=io.StringIO())
    terminal.render(summary, console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    for page in (shown, markdown.markdown(summary), html.page(summary, records[1], tmp_path)):
        assert "Not seen: 4 AMD GPUs" in " ".join(page.replace("\\", "").split())


def test_cards_beside_a_model_are_named_as_well() -> None:
    note = summarise(*beside_cards(MODEL).records()).energy_note
    assert note.startswith("Energy is modelled, not measured")
    assert note.endswith("Not seen: 4 AMD GPUs (amdgpu).")


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        ("cpu", "the processor's energy"),
        ("gpu", "the card's energy"),
        ("cpu + gpu", "the processor's and the card's energy"),
        ("module", "the module's energy"),
        ("machine", "the whole machine's energy"),
        ("novel", "novel's energy"),
    ],
)
def test_a_sentence_says_whose_energy_it_is(scope: str, said: str) -> None:
    assert wording.whose(scope) == said


def test_hwmon_is_named_with_its_driver() -> None:
    assert note(("hwmon(amdgpu)", "gpu")) == "Energy is measured: gpu by hwmon (amdgpu)."
    assert note(("hwmon(ina3221)", "module")) == "Energy is measured: module by hwmon (ina3221)."


def test_the_line_of_a_window_and_of_a_command_name_what_nothing_metered() -> None:
    window = reading(energy(*RAPL, 100.0, error_j=1.0), *CARDS, wall_s=5.0)
    line = sentence(WindowLine(name="train", start_s=0.0, stop_s=5.0, reading=window))
    assert line.endswith("not seen: 4 AMD GPUs (amdgpu)")
    assert "100 J" in line
    (trial, *_) = beside_cards(RAPL).records()[1]
    told = paired_commands_page.line(trial)
    assert "not seen: 4 AMD GPUs (amdgpu)" in told
    assert "no gpu energy" not in told
    short = energy("unavailable", "gpu", None, device="GPU-1", reason="gpu_counter: a window too short")
    alone = sentence(WindowLine(name="train", start_s=0.0, stop_s=1.0, reading=reading(short, *CARDS)))
    assert alone.count("a window too short") == 1
    assert alone.endswith("not seen: 4 AMD GPUs (amdgpu)")


def test_a_suite_that_wants_no_energy_is_told_so() -> None:
    meta, trials, counting_runs = Run(sensors=()).method("half", time=0.5).records()
    off = meta.model_copy(update={"resolved": {**meta.resolved, "measure": {"energy": "off"}}})
    assert summarise(off, trials, counting_runs).energy_note == wording.ENERGY_OFF


def test_net_of_idle_is_gross_less_idle_power_times_the_window_and_may_be_negative() -> None:
    def trial(gross: float, before_w: float, after_w: float) -> Any:
        phases = {
            "idle_before": reading(energy(*GPU, 2 * before_w), wall_s=2.0),
            "train": reading(energy(*GPU, gross, error_j=3.0), wall_s=10.0),
            "idle_after": reading(energy(*GPU, 4 * after_w), wall_s=4.0),
        }
        return Run().change("baseline", 0, phases=phases).records()[1][0]

    (found,) = energies([trial(3000.0, 100.0, 140.0)])
    assert found.net_j is not None
    assert found.net_j.mean == pytest.approx(3000 - 120 * 10)
    assert found.error_j == 3.0
    (below,) = energies([trial(500.0, 100.0, 140.0)])
    assert below.net_j is not None
    assert below.net_j.mean == pytest.approx(-700)


def test_an_idle_figure_that_is_missing_leaves_net_open_and_gross_standing() -> None:
    phases = {"idle_before": reading(energy(*GPU, None), wall_s=2.0), "train": reading(energy(*GPU, 50.0))}
    (found,) = energies([Run().change("baseline", 0, phases=phases).records()[1][0]])
    assert found.net_j is None
    assert found.energy_j is not None


def test_a_budget_wider_than_the_noise_strikes_the_verdict() -> None:
    def row(error_rel: float) -> Any:
        run = Run(sensors=(GPU,)).method("half", time=0.5, energy=0.5)
        for label in ("baseline", "twin", "half"):
            for block in range(3):
                ratio = 0.5 if label == "half" else 1.0
                figure = energy(*GPU, JOULES * ratio, error_j=error_rel * JOULES * ratio)
                run.change(label, block, phases={"train": reading(figure, wall_s=SECONDS * ratio)})
        return summarise(*run.records()).workloads[0].rows[0]

    assert row(0.009).verdict == "saves"
    struck = row(0.011)
    assert (struck.verdict, struck.verdict_forbidden) == ("no verdict", True)
    assert "error budget" in struck.reason


def estimate(flop: float, moved: float | None, *layers: Layer) -> Estimate:
    return Estimate(
        plain_flop=100.0,
        estimated_flop=100 * flop,
        plain_b=None if moved is None else 50.0,
        estimated_b=None if moved is None else 50 * moved,
        layers=list(layers),
    )


def test_bytes_are_spoken_of_where_they_are_not_saved_as_flops_are() -> None:
    layer = Layer(name="conv 3", flop_saved_rel=0.8, bytes_saved_rel=0.12, intensity_flop_b=14.2)
    said = wording.plain(explanations.bytes_note([estimate(0.7, 0.95, layer)]))
    assert said == (
        "By its formulas 30.0 % fewer FLOPs move 5.0 % fewer bytes; conv 3: 80.0 % fewer FLOPs, 12.0 % fewer bytes, "
        "14 FLOP per byte in plain training."
    )
    assert "10.0 % more bytes" in wording.plain(explanations.bytes_note([estimate(0.7, 1.1)]))


@pytest.mark.parametrize("same", [estimate(0.5, 0.5), estimate(1.0, 1.0), estimate(0.5, None)])
def test_where_bytes_follow_flops_or_are_not_known_nothing_is_said(same: Estimate) -> None:
    assert explanations.bytes_note([same]) == ""
    assert explanations.bytes_note([]) == ""


def test_the_roofline_is_told_where_the_machine_was_timed_and_the_formulas_save_anything() -> None:
    def said(**truth: Any) -> str:
        run = Run().method("half", **truth)
        roof = {"balance_flop_b": 12.4, "memory_bound_rel": 0.41, "roofline_saved_rel": 0.223}
        for block in range(3):
            told = run.estimate(next(t for t in run.truths if t.label == "half"))
            run.change("half", block, estimate=told.model_copy(update=roof if truth.get("epochs") else {}))
        (row,) = summarise(*run.records()).workloads[0].rows
        return wording.plain(" ".join(sentences.notes(row, "accuracy")))

    sentence = (
        "At this machine's 12 FLOP per byte, 41 % of plain training's kernel time waits for memory, and the formulas "
        "save at most 22.3 % of it all."
    )
    assert sentence in said(time=0.8, flop=0.5, epochs=1)
    assert "FLOP per byte" not in said(time=0.8, flop=0.5)  # a record of before
    assert "FLOP per byte" not in said(time=0.8, flop=1.0, epochs=1)
