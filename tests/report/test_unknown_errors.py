"""An unknown error stays unknown wherever a figure is given: it is never taken for 0, nor for its known part."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import GPU, JOULES, SECONDS, Run

from energybench.meter.combine import metered
from energybench.meter.reading import Energy, Reading
from energybench.records.record import Trial
from energybench.report import rows
from energybench.report.export import ExportedRun
from energybench.report.export import rows as exported
from energybench.report.markdown import markdown
from energybench.verdict import pairing, wording
from energybench.verdict.carbon import Span, carbon_report
from energybench.verdict.figures import Row
from energybench.verdict.pairing import Pair
from energybench.verdict.summary import summarise

RAPL = ("rapl", "cpu")
errors = st.none() | st.floats(0, 1e3)


def run_with(*of_sensors: float | None, blocks: int = 3, unknown_in: int | None = None) -> Run:
    """A method of half the joules; each sensor of a trial errs by so many joules. `unknown_in`: a block of which the
    method's first sensor does not say."""
    run = Run(blocks=blocks).method("half", time=0.5, energy=0.5)
    for label, ratio in (("baseline", 1.0), ("twin", 1.0), ("half", 0.5)):
        for block in range(blocks):
            known = [None, *of_sensors[1:]] if (block, label) == (unknown_in, "half") else of_sensors
            parts = [
                Energy(source=source, scope=scope, device=str(number), energy_j=JOULES * ratio, error_j=error)
                for number, error in enumerate(known)
                for source, scope in [GPU]
            ]
            run.change(label, block, phases={"train": Reading(wall_s=SECONDS * ratio, energy=parts)})
    return run


def row(run: Run) -> Row:
    return summarise(*run.records()).workloads[0].rows[0]


def of_cell(run: Run, label: str = "half") -> list[Trial]:
    return [trial for trial in run.records()[1] if trial.method == label]


# ── the sum of a window, and of a source ──────────────────────────────────────────────────────────────────


@given(st.lists(errors, max_size=5))
def test_the_error_of_a_window_is_the_sum_of_its_parts_or_unknown(parts: list[float | None]) -> None:
    energy = [Energy(source="rapl", scope="cpu", device=str(n), energy_j=1.0, error_j=e) for n, e in enumerate(parts)]
    found = metered(Reading(wall_s=1.0, energy=energy)).error_j
    assert found == (None if None in parts else pytest.approx(math.fsum(e for e in parts if e is not None)))


def test_a_window_without_a_measured_part_errs_by_nothing() -> None:
    assert metered(Reading(wall_s=1.0, energy=[])).error_j == 0.0
    assert metered(None).error_j == 0.0


def test_two_cards_of_which_one_does_not_say_have_a_figure_and_no_error() -> None:
    (known,) = pairing.energies(of_cell(run_with(1.0, 2.0)))
    (unknown,) = pairing.energies(of_cell(run_with(1.0, None)))
    assert known.error_j == 3.0
    assert unknown.error_j is None
    assert known.energy_j == unknown.energy_j


def test_the_widest_error_of_trials_is_not_known_where_that_of_one_is_not() -> None:
    assert pairing.energies(of_cell(run_with(2.0)))[0].error_j == 2.0
    assert pairing.energies(of_cell(run_with(2.0, unknown_in=1)))[0].error_j is None


@given(errors, errors, errors, errors)
def test_the_error_of_pairs_is_the_widest_share_or_unknown_and_its_known_part_never_wider(
    a: float | None, b: float | None, c: float | None, d: float | None
) -> None:
    def trial(*parts: float | None) -> Trial:
        energy = [Energy(source="rapl", scope=s, energy_j=50.0, error_j=e) for s, e in zip("xy", parts, strict=True)]
        made = Run().records()[1][0]
        return made.model_copy(update={"phases": {"train": Reading(wall_s=1.0, energy=energy)}})

    pairs = [Pair(trial(a, b), trial(c, d))]
    known = pairing.known_error_rel(pairs)
    assert known == pytest.approx(max((a or 0.0) + (b or 0.0), (c or 0.0) + (d or 0.0)) / 100)
    whole = pairing.error_rel(pairs)
    assert whole == (None if None in (a, b, c, d) else pytest.approx(known))


# ── what is made of it ────────────────────────────────────────────────────────────────────────────────────


def test_an_error_that_is_too_wide_by_its_known_part_alone_forbids_a_verdict_and_says_so() -> None:
    wide = row(run_with(0.03 * JOULES, None))
    assert (wide.verdict, wide.verdict_forbidden) == ("no verdict", True)
    (flag,) = [flag for flag in wide.flags if flag.code == "sensor_error"]
    assert flag.detail == "3.0 % or more: not every sensor says how far off it may be"
    assert "±" not in flag.detail


def test_an_unknown_error_alone_forbids_nothing() -> None:
    assert row(run_with(None)).verdict == "saves"
    assert row(run_with(0.001 * JOULES, None)).verdict == "saves"


def test_the_page_prints_a_dash_where_an_error_is_not_known() -> None:
    column = rows.ENERGY_HEAD.index("sensor error")
    for run, text in ((run_with(1.0, 2.0), "±\u00a03.00\u00a0J"), (run_with(1.0, None), wording.NOTHING)):
        summary = summarise(*run.records())
        printed = [cells[column] for cells in rows.energy_rows(summary)]
        assert printed == [text, text]
        line = next(line for line in markdown(summary).splitlines() if "| measured | gpu\\_counter |" in line)
        assert line.count("±") == 1 + (text != wording.NOTHING)  # the spread over blocks, and the error


def test_an_export_leaves_an_unknown_error_empty() -> None:
    known, unknown = (exported(ExportedRun(run.records()))[0] for run in (run_with(1.0, 2.0), run_with(1.0, None)))
    assert (known["measured_j"], known["measured_error_j"]) == (2 * JOULES, 3.0)
    assert (unknown["measured_j"], unknown["measured_error_j"]) == (2 * JOULES, None)


def test_what_is_saved_has_no_bounds_where_an_error_is_not_known() -> None:
    """The bounds hold the sensors' errors of both sides: 2 · 0.5 J a side, and 0 J of scatter."""
    (known,), (unknown,) = (carbon_report(*run.records()).gains for run in (run_with(0.5, 0.5), run_with(0.5, None)))
    assert known.per_run_j == Span(JOULES, JOULES - 2, JOULES + 2)
    assert unknown.per_run_j == Span(JOULES)
    assert unknown.runs_j == Span(1000 * JOULES)
    (one_block,) = carbon_report(*run_with(0.5, 0.5, unknown_in=2).records()).gains
    assert one_block.per_run_j == Span(JOULES)


def test_what_a_run_takes_has_no_bounds_where_its_error_is_not_known() -> None:
    uses = {use.label: use.measured_j for use in carbon_report(*run_with(1.0, unknown_in=0).records()).uses}
    assert uses == {"baseline": Span(JOULES, JOULES - 1, JOULES + 1), "half": Span(JOULES / 2)}
