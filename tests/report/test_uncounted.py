"""Work without a FLOP count stands with its calls on every page, and what may hide products marks its cell."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic import Run

from energybench.cli import flops_page
from energybench.report import terminal
from energybench.report.html import page as html_page
from energybench.report.markdown import markdown
from energybench.verdict.figures import Summary
from energybench.verdict.summary import summarise, to_json

CALLS = {"aten.topk": 1200, "mylib.<op>": 3}


def of(calls: dict[str, int], method: str = "half", **changes: Any) -> Summary:
    meta, trials, counting_runs = Run().method("half", flop=0.5).records()
    changes |= {"uncounted_calls": calls}
    return summarise(meta, trials, [w.model_copy(update=changes) if w.method == method else w for w in counting_runs])


def printed(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=200)
    terminal.render(summary, console, verbose=True)
    return console.file.getvalue().replace("\u00a0", " ")  # type: ignore[attr-defined]


def flagged(summary: Summary) -> list[str]:
    (workload,) = summary.workloads
    raised = [*workload.flags, *(flag for row in workload.rows for flag in row.flags)]
    return [flag.where for flag in raised if flag.code == "unpriced_work"]


def test_every_page_lists_the_operators_with_their_calls() -> None:
    summary = of(CALLS)
    text = printed(summary)
    assert "aten.topk × 1,200, mylib.<op> × 3" in text
    page = markdown(summary)
    assert "## Work without a FLOP count" in page
    assert "| cnn-digits | half | aten.topk × 1,200, mylib.&lt;op&gt; × 3 | mylib.&lt;op&gt; |" in page.replace(
        "\\", ""
    )
    (listed,) = to_json(summary)["uncounted"]
    assert listed["calls"] == CALLS
    assert listed["may_hide_products"] == ["mylib.<op>"]


def test_the_html_page_lists_them_and_no_name_is_a_tag(tmp_path: Path) -> None:
    meta, trials, counting_runs = Run().method("half", flop=0.5).records()
    runs = [w.model_copy(update={"uncounted_calls": CALLS}) for w in counting_runs]
    page = html_page(summarise(meta, trials, runs), trials, tmp_path)
    assert "Work without a FLOP count" in page
    assert "mylib.&lt;op&gt; × 3" in page
    assert "mylib.<op>" not in page.split("<script")[0]


def test_what_may_hide_products_marks_the_cell_and_of_the_baseline_the_workload() -> None:
    assert flagged(of(CALLS)) == ["cnn-digits: half"]
    assert flagged(of(CALLS, "baseline")) == ["cnn-digits"]
    assert flagged(of({"aten.topk": 5})) == []
    for summary in (of(CALLS), of(CALLS, "baseline")):
        (check,) = [check for check in summary.checks if check.code == "unpriced_work"]
        assert (check.result, check.severity) == ("raised", "marked")
        assert check.detail == "mylib.<op> × 3"
        assert not summary.workloads[0].rows[0].verdict_forbidden  # marked, not struck


def test_what_an_earlier_schema_did_not_look_for_is_not_called_none() -> None:
    assert of({"aten.topk": 5}, schema_=1).uncounted[0].may_hide_products is None
    assert of({"aten.topk": 5}).uncounted[0].may_hide_products == ()
    assert of(CALLS, schema_=1).uncounted[0].may_hide_products == ("mylib.<op>",)
    assert "not looked for" in markdown(of({"aten.topk": 5}, schema_=1))


def test_a_run_that_calls_none_has_no_section() -> None:
    assert of({}).uncounted == ()
    assert "Work without a FLOP count" not in markdown(of({}))
    assert "without a FLOP count" not in printed(of({}))


@pytest.mark.parametrize("hidden", [True, False])
def test_energybench_flops_says_it_of_each_cell(hidden: bool) -> None:
    calls = CALLS if hidden else {"aten.topk": 2}
    cell = {
        "workload": "w",
        "method": "m",
        "uncounted_calls": calls,
        "unpriced_matrix": ["mylib.<op>"] if hidden else [],
    }
    (line,) = flops_page._uncounted([cell, cell | {"uncounted_calls": {}}])
    assert line.startswith("w · m: without a FLOP count: aten.topk × ")
    assert ("the count is not the whole: mylib.<op>" in line) is hidden
