"""One sentence for each method, over all its workloads; and a headline that no table contradicts."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console
from synthetic import Run, Truth, merge

from energybench.report.markdown import _behind, markdown
from energybench.report.terminal import NAMED, render
from energybench.stats import power
from energybench.verdict import briefly, wording
from energybench.verdict.figures import Phase, Summary
from energybench.verdict.summary import summarise


def of(*runs: Run) -> Summary:
    return summarise(*(merge(*runs) if len(runs) > 1 else runs[0].records()))


def told(summary: Summary) -> dict[str, str]:
    return {
        method: briefly.method(places).replace("\u00a0", " ") for method, places in briefly.by_method(summary).items()
    }


def scattered(workload: str = "w", quality: tuple[float, ...] = (0.9, 0.9, 0.9), time: float = 0.5) -> Run:
    run = Run(workload=workload, noise=0.001).method("it", time=time)
    for block, value in enumerate(quality):
        run.change("it", block, quality={"accuracy": value}).change("baseline", block, quality={"accuracy": 0.9})
    return run


def test_what_was_decided_is_said_without_more() -> None:
    assert told(of(scattered())) == {"it": "faster; quality held."}
    assert told(of(scattered(time=2.0))) == {"it": "slower; quality held."}
    assert told(of(scattered(time=1.0))) == {"it": "no difference; quality held."}


def test_what_is_lost_says_how_much_and_what_is_accepted() -> None:
    assert told(of(scattered(quality=(0.8, 0.8, 0.8)))) == {
        "it": "faster; quality lost (accuracy −10.0 pp [−10.0, −10.0], −0.5 pp is accepted)."
    }


def test_what_is_open_says_how_many_blocks_would_decide_it_or_that_none_would_here() -> None:
    sentence = told(of(scattered(quality=(0.91, 0.88, 0.905))))["it"]
    needed = of(scattered(quality=(0.91, 0.88, 0.905))).workloads[0].rows[0].quality_blocks_needed
    assert needed is None or needed <= power.MOST_BLOCKS
    expected = f"over {power.MOST_BLOCKS} blocks: not on this machine" if needed is None else f"about {needed} blocks"
    assert sentence.startswith(f"faster; quality open ({expected}")


def test_several_workloads_are_named_where_they_differ_and_counted_where_they_do_not() -> None:
    one, two, three = scattered("one"), scattered("two", time=2.0), scattered("three", quality=(0.8, 0.8, 0.8))
    assert told(of(one, two))["it"] == "faster on one; slower on two; quality held on both workloads."
    assert told(of(one, two, three))["it"] == (
        "faster on one, three; slower on two; quality lost on three (accuracy −10.0 pp [−10.0, −10.0]); "
        "quality held on one, two."
    )


def test_of_what_diverged_the_loss_comes_from_the_end_and_not_from_a_figure() -> None:
    run = scattered().change("it", 2, status="diverged", reason="loss is NaN")
    assert "quality lost (training diverged in 1 block)" in told(of(run))["it"]


def test_a_saving_that_is_no_better_than_training_less_says_so() -> None:
    run = Run(noise=0.001).method("half", time=0.5, epochs=3).control("half", time=0.4)
    assert told(of(run))["half"].startswith("faster, not proven better than training less; quality held")


def test_a_struck_row_says_its_reason() -> None:
    run = Run(blocks=5)
    run.truths = [Truth("baseline", "baseline"), Truth("twin", "twin", time=0.9), Truth("half", time=0.5)]
    sentence = told(of(run))["half"]
    assert sentence.startswith(
        "no verdict (Plain training differs from itself: this machine was too unsteady to compare"
    )


@pytest.mark.parametrize("quality", [(0.8, 0.8, 0.8), (0.91, 0.88, 0.905)])
def test_the_headline_of_what_costs_less_without_held_quality_is_no_claim_that_nothing_is_faster(quality) -> None:
    headline = of(scattered(quality=quality)).headline
    assert headline.startswith("No saving at held quality was proven: it takes 50.0 %")
    assert "was proven faster" not in headline
    assert headline.count("it loses quality on w") == (quality[0] == 0.8)
    assert headline.count("its quality is open") == (quality[0] != 0.8)


def test_the_checks_line_counts_codes_once_and_sums_to_the_list() -> None:
    summary = of(scattered("one"), scattered("two"))
    line = briefly.checks(summary)
    counts = [int(number) for number in re.findall(r"\d+", line)]
    raised = {check.code for check in summary.checks if check.result == "raised"}
    assert sum(counts) == len({check.code for check in summary.checks} - raised)


def test_what_is_open_names_one_command_and_what_is_decided_none() -> None:
    assert of(scattered()).decide == ""
    run, trials, counting_runs = scattered(quality=(0.9, 0.9, 0.891)).records()
    run = run.model_copy(update={"resolved": {**run.resolved, "trials": {"blocks": 3, "blocks_max": 20}}})
    summary = summarise(run, trials, counting_runs)
    needed = summary.workloads[0].rows[0].quality_blocks_needed
    assert needed is not None
    assert needed > 20
    asked = f"energybench run synthetic --until-decided --set trials.blocks_max={needed}"
    assert summary.decide == asked


def test_a_reason_that_many_places_share_names_the_first_of_them() -> None:
    run = Run(blocks=2)
    for number in range(NAMED + 3):
        run.method(f"m{number}", time=0.5)
    out = io.StringIO()
    summary = of(run)
    render(summary, Console(file=out, width=200))
    line = next(line for line in out.getvalue().splitlines() if line.startswith("! marked: Fewer than 3 blocks"))
    assert line.endswith(f"; and {NAMED + 3 - (NAMED - 1)} more")
    out = io.StringIO()
    render(summary, Console(file=out, width=200), verbose=True)
    assert "more\n" not in out.getvalue().split("! marked: Fewer than 3 blocks")[1].split("checks clear")[0]


def test_the_page_begins_with_the_screen_and_folds_the_rest_under_each_methods_name() -> None:
    page = markdown(of(scattered("one"), scattered("two")))
    first, _, rest = page.partition("\n## one\n")
    assert "| workload | Method | verdict | measured time" in first
    assert "- **it**: faster on both workloads; quality held on both workloads." in first
    assert re.search(r"^\d+ (other )?checks clear.*stand below\.$", first, re.M)
    assert "<details>" not in first
    assert rest.count("<summary>it: faster, 50") == 2
    assert page.count("<details>") == page.count("</details>")


def test_where_the_time_went_is_a_small_table_of_before_and_after() -> None:
    row = of(scattered()).workloads[0].rows[0]
    phases = (Phase("forward", 0.4, 0.2), Phase("method_overhead", 0.0, 0.1))
    folded = wording.plain(_behind(dataclasses.replace(row, phases=phases), "accuracy"))
    assert "| forward | 40.0 % | 20.0 % |" in folded
    assert "| its own work | 0.0 % | 10.0 % |" in folded
    assert "In profiled steps" not in folded
