"""Level 0: counts are exact, on any machine, and whatever differs is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs_on_disk import settings, written
from synthetic import FLOP, Run

from energybench.common.errors import UsageError
from energybench.gate import gate_page, golden_counts
from energybench.gate.regression import Finding, exit_code

ROOT = Path(__file__).resolve().parent.parent
QUICK = ROOT / "reports" / "quick" / "2026-11-21-170504"


def run(**truth: Any) -> Run:
    return Run(blocks=2).method("it", **{"time": 0.7, "flop": 0.5} | truth)


def counts(run: Run) -> golden_counts.Counts:
    meta, trials, counting_runs = run.records()
    data = {run.workload: {"parameters": 1234}}
    return golden_counts.of_run(
        meta.model_copy(update={"resolved": settings(run), "data": data}), trials, counting_runs
    )


def test_a_committed_run_counts_as_itself_and_a_golden_file_gives_it_back(tmp_path: Path) -> None:
    found = golden_counts.read(QUICK)
    golden_counts.write(tmp_path / "g.json", found)
    again = golden_counts.read(tmp_path / "g.json")
    assert again == found
    assert {f.outcome for f in golden_counts.compare(found, again)} == {"same"}
    before = (tmp_path / "g.json").read_bytes()
    golden_counts.write(tmp_path / "g.json", again)
    assert (tmp_path / "g.json").read_bytes() == before


def test_every_kind_of_count_is_held_and_nothing_that_was_timed() -> None:
    facts = counts(run()).cells["cnn-digits", "it"]
    assert facts == {
        "parameters": 1234,
        "plain_flop": FLOP,
        "estimated_flop": FLOP / 2,
        "counted_flop": FLOP / 2,
        "forwards": 60,
        "backwards": 60,
        "updates": 60,
        "samples_forward": 6000,
        "epochs_trained": 6.0,
        "steps of kind 'sparse'": 60,
        "samples of kind 'sparse'": 6000,
    }
    assert counts(run(time=0.2)) == counts(run(time=0.9))


def test_twins_have_no_counts_of_their_own_and_a_control_has_those_of_its_block() -> None:
    cells = counts(run().control("it", epochs=3.0)).cells
    assert {method for _, method in cells} == {"baseline", "it", "it@control"}
    control = cells["cnn-digits", "it@control"]
    assert control["epochs_trained"] == 3.0
    assert "counted_flop" not in control


@pytest.mark.parametrize(("factor", "outcome"), [(1 + 1e-10, "same"), (1 + 1e-8, "changed"), (0.5, "changed")])
def test_counts_are_equal_to_a_billionth(factor: float, outcome: str) -> None:
    base = counts(run())
    cells = {key: dict(facts) for key, facts in base.cells.items()}
    flop = cells["cnn-digits", "it"]["counted_flop"]
    assert flop is not None
    cells["cnn-digits", "it"]["counted_flop"] = flop * factor
    found = [f for f in golden_counts.compare(base, replace(base, cells=cells)) if f.method == "it"]
    assert [f.outcome for f in found] == [outcome]
    if outcome == "changed":
        assert (found[0].quantity, found[0].base, found[0].head) == ("counted_flop", flop, flop * factor)
        assert found[0].change_rel == pytest.approx(factor - 1, rel=1e-3)
        assert exit_code(found) == 1


def counted(flop: float, error: float = 0.0, outside: float = 0.0) -> golden_counts.Counts:
    """Of a method whose counting run says this."""
    meta, trials, counting_runs = run().records()
    said = {"counted_flop": flop, "counted_error_flop": error, "outside_steps_flop": outside}
    of_method = [each.model_copy(update=said) if each.method == "it" else each for each in counting_runs]
    return golden_counts.of_run(meta.model_copy(update={"resolved": settings(run())}), trials, of_method)


@pytest.mark.parametrize(
    ("error", "outside", "moved", "outcome"),
    [
        (0.0, 0.0, 1e-6, "changed"),  # every step counted, nothing outside: shapes alone
        (0.0, 0.05, 1e-6, "same"),  # a fit that took another iteration
        (0.0, 0.05, 2e-3, "changed"),  # more than a thousandth of all is no iteration
        (0.0, 1e-5, 1e-4, "changed"),  # ten times what ran outside of steps
        (0.01, 0.0, 0.009, "same"),  # within the count's own error
        (0.01, 0.0, 0.011, "changed"),
        (0.0, 0.0, 0.0, "same"),
    ],
)
def test_a_count_that_depends_on_numbers_may_move_by_as_much(
    error: float, outside: float, moved: float, outcome: str, tmp_path: Path
) -> None:
    base = counted(1e9, error * 1e9, outside * 1e9)
    golden_counts.write(tmp_path / "golden.json", base)
    for before in (base, golden_counts.read(tmp_path / "golden.json")):
        for sign in (1, -1):
            head = counted(1e9 * (1 + sign * moved), error * 1e9, outside * 1e9)
            (found,) = [f for f in golden_counts.compare(before, head) if f.method == "it"]
            assert found.outcome == outcome


def test_energybench_flops_says_how_open_a_count_is_too() -> None:
    facts = {**FLOPS, "cells": [{**cell, "outside_steps_flop": FLOP / 100} for cell in FLOPS["cells"]]}
    counts = golden_counts.of_flops(facts)
    assert set(counts.tolerance_flop.values()) == {
        golden_counts.OPEN_REL * cell["counted_flop"] for cell in FLOPS["cells"] if cell["counted_flop"]
    }


@pytest.mark.parametrize("change_rel", [1e-8, -3e-6, 2e-4])
def test_what_fails_is_never_said_to_have_changed_by_nothing(change_rel: float) -> None:
    finding = Finding("counts", "w", "m", "counted_flop", "changed", 1e12, 1e12 * (1 + change_rel), change_rel)
    (row,) = gate_page.rows("counts", [finding])
    assert float(row[-1].replace("−", "-").split("\xa0")[0]) == pytest.approx(100 * change_rel, rel=0.1)


def test_a_count_that_is_lost_is_a_change_and_never_a_zero() -> None:
    base = counts(run())
    cells = {key: facts | {"counted_flop": None} for key, facts in base.cells.items()}
    for one, other, side in ((base, replace(base, cells=cells), "HEAD"), (replace(base, cells=cells), base, "BASE")):
        lost = golden_counts.compare(one, other)
        assert [(f.quantity, f.outcome) for f in lost] == [("counted_flop", "changed")] * 2
        assert all(side in f.reason for f in lost)
        assert all(0 not in (f.base, f.head) for f in lost)


def test_a_cell_that_is_new_is_said_and_one_that_is_gone_fails() -> None:
    base, head = counts(run()), counts(run().method("more", time=0.9))
    (new,) = [f for f in golden_counts.compare(base, head) if f.outcome != "same"]
    assert (new.method, new.outcome, exit_code(golden_counts.compare(base, head))) == ("more", "new", 0)
    (gone,) = [f for f in golden_counts.compare(head, base) if f.outcome != "same"]
    assert (gone.method, gone.outcome, exit_code([gone])) == ("more", "gone", 1)


def test_a_kind_of_step_that_only_one_side_took_is_a_change() -> None:
    base = counts(run())
    cells = {key: dict(facts) for key, facts in base.cells.items()}
    cells["cnn-digits", "it"]["steps of kind 'probe'"] = 3
    found = [
        f for f in golden_counts.compare(base, replace(base, cells=cells, source="flops")) if f.outcome == "changed"
    ]
    assert [(f.quantity, f.base, f.head) for f in found] == [("steps of kind 'probe'", None, 3)]


@pytest.mark.parametrize("change", [{"seed": 7}, {"stamp": ("quick",)}, {"suite": "other"}])
def test_counts_of_other_runs_are_refused_with_what_differs(change: dict[str, Any]) -> None:
    base = counts(run())
    with pytest.raises(UsageError) as caught:
        golden_counts.compare(base, replace(base, **change))
    (problem,) = caught.value.problems
    assert problem.code == "E630"
    assert next(iter(change)) in problem.message


FLOPS: dict[str, Any] = {
    "suite": "synthetic",
    "stamp": [],
    "seed": 2026,
    "torch": "2.11.0",
    "counted": True,
    "workloads": {"cnn-digits": {"parameters": 1234}},
    "cells": [
        {
            "workload": "cnn-digits",
            "method": "baseline",
            "role": "baseline",
            "skipped": None,
            "baseline_flop": FLOP,
            "estimated_flop": FLOP,
            "counted_flop": FLOP,
            "passes": None,
        },
        {
            "workload": "cnn-digits",
            "method": "it",
            "role": "method",
            "skipped": None,
            "baseline_flop": FLOP,
            "estimated_flop": FLOP / 2,
            "counted_flop": FLOP / 2,
            "passes": None,
        },
        {
            "workload": "cnn-digits",
            "method": "out",
            "role": "method",
            "skipped": "why",
            "baseline_flop": FLOP,
            "estimated_flop": None,
            "counted_flop": None,
            "passes": None,
        },
    ],
}


def test_what_flops_prints_stands_in_for_a_run_and_what_it_cannot_know_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps(FLOPS))
    folder = written(tmp_path / "run", run())
    for base, head in ((folder, tmp_path / "f.json"), (tmp_path / "f.json", folder)):
        assert {f.outcome for f in golden_counts.compare(golden_counts.read(base), golden_counts.read(head))} == {
            "same"
        }
    FLOPS["cells"][1]["counted_flop"] = FLOP / 4
    (tmp_path / "f.json").write_text(json.dumps(FLOPS))
    (changed,) = [
        f
        for f in golden_counts.compare(golden_counts.read(folder), golden_counts.read(tmp_path / "f.json"))
        if f.outcome == "changed"
    ]
    assert changed.quantity == "counted_flop"
    FLOPS["cells"][1]["counted_flop"] = FLOP / 2


GOLDEN = json.dumps(
    {
        "golden": 1,
        "suite": "s",
        "stamp": [],
        "seed": 7,
        "source": "run",
        "cells": [{"workload": "w", "method": "m", "counts": {"plain_flop": 8}}],
    }
)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[" * 100_000, "E632"),
        (GOLDEN.replace("8", '"8"'), "E632"),
        (GOLDEN.replace("8", "true"), "E632"),
        ("{", "E632"),
        ("[]", "E632"),
        ('{"a": 1}', "E632"),
        ('{"golden": 9, "cells": []}', "E632"),
        ('{"golden": 1, "cells": [3]}', "E632"),
        (json.dumps(FLOPS | {"counted": False}), "E632"),
        ('"x"', "E632"),
    ],
)
def test_a_file_that_holds_no_counts_is_refused_without_a_trace(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        golden_counts.read(tmp_path / "f.json")
    assert [problem.code for problem in caught.value.problems] == [code]


@pytest.mark.parametrize("count", ["Infinity", "-Infinity", "NaN", "1e400", "1" + "0" * 400, '"60"', "true", "[60]"])
def test_a_golden_file_whose_count_is_no_number_is_refused(tmp_path: Path, count: str) -> None:
    """An infinite count lies within any tolerance of every other, and would be "the same"."""
    golden_counts.write(tmp_path / "g.json", counts(run()))
    text = (tmp_path / "g.json").read_text()
    (tmp_path / "g.json").write_text(text.replace('"forwards": 60', f'"forwards": {count}', 1))
    with pytest.raises(UsageError) as caught:
        golden_counts.read(tmp_path / "g.json")
    assert caught.value.problems[0].code == "E632"


def test_a_golden_file_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UsageError) as caught:
        golden_counts.read(tmp_path / "g.json")
    assert caught.value.problems[0].code == "E632"


def test_counts_that_are_null_on_both_sides_are_never_said_to_be_held() -> None:
    facts: Any = {"parameters": 10, "plain_flop": None, "counted_flop": None}
    nothing: Any = dict.fromkeys(facts)

    def compared(*cells: Any) -> list[Finding]:
        named = {("w", str(number)): each for number, each in enumerate(cells)}
        both = golden_counts.Counts("s", (), 1, named, "run")
        return golden_counts.compare(both, both)

    (some,) = compared(facts)
    assert (some.outcome, some.reason) == ("same", "null on both sides: plain_flop, counted_flop")
    (none,) = compared(nothing)
    assert none.outcome == "cannot tell"
    assert exit_code(compared(nothing, nothing)) == 2  # nothing was compared
    assert exit_code(compared(facts, nothing)) == 0
