"""The verdict on quality: by an interval, whatever the cost is, in the cases where there is hardly any interval too."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console
from synthetic import Run, Truth

from energybench.records.record import Flag
from energybench.report import terminal
from energybench.report.markdown import markdown
from energybench.verdict import interim_notes, wording
from energybench.verdict.figures import Row, Summary
from energybench.verdict.summary import summarise, to_json


def of(run: Run) -> Summary:
    return summarise(*run.records())


def row(run: Run, label: str = "it") -> Row:
    return next(row for workload in of(run).workloads for row in workload.rows if row.method == label)


def reaching(*accuracies: float | None, plain: float = 0.9, **truth: Any) -> Run:
    """One method whose accuracy is these, block by block, beside plain training's."""
    run = Run(blocks=len(accuracies)).method("it", **truth)
    for block, accuracy in enumerate(accuracies):
        run.change("baseline", block, quality={"accuracy": plain})
        run.change("it", block, quality={} if accuracy is None else {"accuracy": accuracy})
    return run


@pytest.mark.parametrize(
    ("accuracies", "word"),
    [
        ([0.9, 0.9, 0.9], "held"),
        ([0.895, 0.895, 0.895], "held"),  # exactly what is accepted, without any scatter
        ([0.8949, 0.8949, 0.8949], "lost"),
        ([0.062, 0.065, 0.059], "lost"),
        ([0.93, 0.89, 0.88], "open"),
        ([0.89, 0.84, 0.88], "open"),  # 3 points lost in the mean
        ([0.062], "open"),
        ([0.062, 0.062], "open"),
        ([0.9, 0.9, None], "open"),
        ([None, None, None], "open"),
    ],
)
@pytest.mark.parametrize("time", [0.5, 1.0, 1.5])
def test_quality_is_held_lost_or_open_whatever_the_cost(accuracies: list[Any], word: str, time: float) -> None:
    found = row(reaching(*accuracies, time=time))
    assert found.quality_verdict == word
    if len(accuracies) >= 3:
        cost = {0.5: "faster", 1.0: "no difference", 1.5: "slower"}[time]
        assert found.cost_verdict == cost
        lost = "quality lost" if time <= 1 else "slower"
        unproven = "quality unproven" if time < 1 else cost
        assert found.verdict == {"held": cost, "lost": lost, "open": unproven}[word]


def test_a_great_loss_is_never_inconclusive_and_stands_in_the_headline() -> None:
    run = reaching(0.06, 0.07, 0.056)
    for block, seconds in enumerate((7.0, 14.0, 9.0)):  # of a cost that nobody can tell
        trial = run.trial(run.truth("it"), block)
        run.change("it", block, phases={"train": trial.train.model_copy(update={"wall_s": seconds})})  # type: ignore[union-attr]
    summary = of(run)
    (found,) = summary.workloads[0].rows
    assert (found.cost_verdict, found.quality_verdict, found.verdict) == ("inconclusive", "lost", "quality lost")
    assert "loses quality on cnn-digits: accuracy −83.8 pp" in summary.headline


def test_a_proven_saving_hides_no_loss_of_another_method() -> None:
    run = reaching(0.9, 0.9, 0.9, time=0.5).method("other", time=0.4, quality=-0.5)
    for block in range(3):
        run.change("other", block, quality={"accuracy": 0.4})
    headline = of(run).headline
    assert "it takes" in headline
    assert "other loses quality on cnn-digits" in headline


@pytest.mark.parametrize(("blocks", "verdict"), [(1, "quality lost"), (3, "quality lost")])
def test_what_diverged_lost_its_quality_in_however_many_blocks(blocks: int, verdict: str) -> None:
    run = Run(blocks=3).method("it", time=0.5)
    for block in range(blocks):
        run.change("it", block, status="diverged", reason="loss is nan")
    summary = of(run)
    (found,) = summary.workloads[0].rows
    assert (found.quality_verdict, found.verdict) == ("lost", verdict)
    if blocks < 3:
        assert "training diverged" in summary.headline


def test_what_ran_past_its_limit_in_a_block_leaves_its_quality_open() -> None:
    run = reaching(0.9, 0.9, 0.9, 0.9).change("it", 3, status="timeout", reason="9 s")
    assert row(run).quality_verdict == "open"
    run = reaching(0.1, 0.1, 0.1, 0.1).change("it", 3, status="timeout", reason="9 s")
    assert row(run).quality_verdict == "lost"


def test_a_machine_too_unsteady_to_compare_says_nothing_of_quality_and_quality_is_judged_all_the_same() -> None:
    run = Run(blocks=5)
    run.truths = [Truth("baseline", "baseline"), Truth("twin", "twin", time=0.8), Truth("it", time=0.5, quality=-0.3)]
    summary = of(run)
    (found,) = summary.workloads[0].rows
    assert (found.verdict, found.quality_verdict) == ("no verdict", "lost")
    assert summary.headline.startswith("No verdict: this machine was too unsteady to compare; run it quiet. ")
    assert "it loses quality" in summary.headline


def test_a_trial_that_did_other_work_has_no_verdict_on_quality_either() -> None:
    run = Run().method("it", time=0.8)
    passes = run.passes(run.truth("it")).model_copy(update={"updates": 59})
    assert row(run.change("it", 0, passes=passes)).quality_verdict == "no verdict"
    foreign = Run().method("it", time=0.8).change("it", 0, flags=[Flag(code="foreign_process", detail="GPU-1: 7")])
    assert (row(foreign).verdict, row(foreign).quality_verdict) == ("no verdict", "held")


def test_a_run_goes_on_until_cost_and_quality_are_both_decided() -> None:
    def left(run: Run) -> list[str]:
        return [each.method for each in interim_notes.undecided(of(run))]

    assert left(reaching(0.9, 0.9, 0.9, time=0.5)) == []
    assert left(reaching(0.1, 0.1, 0.1, time=0.5)) == []
    assert left(reaching(0.93, 0.89, 0.88, time=0.5)) == ["it"]
    assert left(reaching(0.93, 0.89, 0.88, time=1.5)) == ["it"]  # slower for sure, and its quality is open
    assert left(reaching(0.9, None, 0.9, time=0.5)) == []  # which no block can mend


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
def test_the_narrowest_terminal_says_whether_quality_was_lost(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    terminal.render(of(reaching(0.062, 0.065, 0.059)), console)
    table = console.file.getvalue().split("• ")[0].partition("verdict")[2]  # type: ignore[attr-defined]
    assert "lost" in table.split("───")[-1] or "quality: lost" in " ".join(table.split())


def test_every_page_has_the_verdict_on_quality() -> None:
    summary = of(reaching(0.062, 0.065, 0.059, time=1.5))
    page = markdown(summary)
    head = next(line for line in page.splitlines() if line.startswith("| Method | verdict"))
    line = next(line for line in page.splitlines() if line.startswith("| [it]"))
    titles, cells = ([cell.strip() for cell in text.split("|")] for text in (head, line))
    assert cells[titles.index("quality")] == "**lost**"
    assert cells[titles.index("verdict")] == "**slower**"
    facts = json.loads(json.dumps(to_json(summary)))["workloads"][0]["rows"][0]
    assert (facts["verdict"], facts["cost_verdict"], facts["quality_verdict"]) == ("slower", "slower", "lost")
    assert facts["quality"]["bound"] <= facts["quality"]["change"] <= facts["quality"]["best"]


# ── metrics as they were declared ─────────────────────────────────────────────────────────────────────────────────


def declared(metric: str, values: tuple[float, float], loses_at_most: float, **facts: Any) -> Row:
    """A method's verdict where plain training and the method have these values of a declared metric in each block."""
    accept = {"quality": {"metric": metric, "loses_at_most": loses_at_most}, "margin": 0.01}
    run = Run(accept=accept, metrics={"cnn-digits": {metric: facts}} if facts else {}).method("it", time=0.5)
    for block in range(3):
        run.change("baseline", block, quality={metric: values[0] + block / 1e6})
        run.change("it", block, quality={metric: values[1]})
    return row(run)


@pytest.mark.parametrize(
    ("better", "values", "word"),
    [("lower", (0.1, 0.3), "lost"), ("lower", (0.3, 0.1), "held"), ("higher", (0.3, 0.1), "lost")],
)
def test_the_declared_direction_decides_whatever_the_name(better: str, values: tuple[float, float], word: str) -> None:
    for name in ("regret", "accuracy", "loss"):
        assert declared(name, values, 0.05, better=better).quality_verdict == word


def test_a_percentage_is_told_in_points_like_a_fraction() -> None:
    found = declared("score", (94.8, 94.2), 0.005, better="higher", scale="percent")
    assert found.quality_verdict == "lost"
    assert "−0.60 pp" in wording.plain(wording.quality_interval(found.quality)).replace("−0.6 pp", "−0.60 pp")  # type: ignore[arg-type]


def test_a_figure_out_of_its_range_decides_nothing_and_says_why() -> None:
    found = declared("accuracy", (94.8, 10.0), 0.005)
    assert found.quality_verdict == "open"
    told = wording.plain(found.quality_reason)
    assert 'lies out of its range, 0 to 1; where it is a percentage, scale = "percent"' in told
    assert "pp" not in told


def test_a_metric_that_nobody_declared_decides_nothing() -> None:
    found = declared("regret", (0.1, 0.9), 0.005)
    assert found.quality_verdict == "open"
    assert "nobody declared which way regret is better" in found.quality_reason


def test_a_workload_may_accept_otherwise_than_its_suite_and_keep_further_metrics() -> None:
    run, trials, counting_runs = Run().method("it", time=0.5).records()
    own = {"metric": "psnr", "loses_at_most": 0.5, "also": ["accuracy"]}
    resolved = run.resolved | {"workload": [{"name": "cnn-digits", "accept": {"quality": own}}]}
    metrics = {"cnn-digits": {"psnr": {"better": "higher", "unit": "dB"}}}
    run = run.model_validate(run.model_dump(by_alias=True) | {"resolved": resolved, "metrics": metrics})
    trials = [
        t.model_copy(update={"quality": {**t.quality, "psnr": 24.0 if t.role == "method" else 25.1}}) for t in trials
    ]
    (found,) = summarise(run, trials, counting_runs).workloads[0].rows
    assert found.quality_verdict == "lost"
    assert "psnr −1.100 dB" in wording.plain(found.quality_reason)
    assert [(each.metric, each.limit) for each in found.also] == [("accuracy", None)]
