"""A history of simulated runs whose truth is known: nothing moved, a level moved, or the runs themselves scatter."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from runs_on_disk import settings, written
from synthetic import Run

from energybench.cli import main
from energybench.common.errors import UsageError
from energybench.gate import history, history_page
from energybench.gate.compare_runs import Side
from energybench.gate.history import History, of_sides
from energybench.verdict import wording
from energybench.verdict.summary import summarise

METHODS = ("a", "b", "c", "d")


def runs(
    seed: int,
    count: int,
    *,
    between: float = 0.0,
    step: tuple[int, str, float] | None = None,
    noise: float = 0.02,
    blocks: int = 5,
) -> list[Side]:
    """`between`: sd of a factor that all blocks of one run and method share; step: run, method, factor since."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        run = Run(blocks=blocks, noise=noise, seed=1000 * seed + number)
        for method in METHODS:
            time = 0.7 * (1 + rng.gauss(0, between))
            if step and method == step[1] and number >= step[0]:
                time *= step[2]
            run.method(method, time=time)
        meta, trials, counting_runs = run.records()
        at = f"2026-01-{number + 1:02d}T00:00:00+00:00"
        call = meta.invocations[0].model_copy(update={"started_at": at})
        meta = meta.model_copy(update={"resolved": settings(run), "invocations": [call], "run": f"r{number}"})
        trials = [trial.model_copy(update={"started_at": at}) for trial in trials]
        found.append(Side(Path(f"r{number}"), (meta, trials, counting_runs), summarise(meta, trials, counting_runs)))
    return found


def looked(seed: int, count: int, **truth: Any) -> History:
    return of_sides("synthetic", runs(seed, count, **truth))


# ── simulated ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_nothing_moves_and_blocks_tell_the_whole_scatter_the_gate_holds() -> None:
    found = [looked(seed, 8) for seed in range(25)]
    assert sum(each.noise_found for each in found) <= 2  # 1 % each for flags and for scatter
    assert sum(bool(trend.steps) for each in found for trend in each.trends) <= 2


def test_where_runs_scatter_more_than_their_blocks_the_gate_itself_is_called_noise() -> None:
    """5 % between runs that no block can see, 1 % between blocks: neighbours differ, and nothing lasts."""
    found = [looked(seed, 10, between=0.05, noise=0.01) for seed in range(12)]
    assert sum(each.noise_found for each in found) >= 11
    assert sum(bool(each.kinds) for each in found) >= 9
    assert sum("returning" in each.kinds for each in found) >= 6
    wide = [trend.scatter for each in found for trend in each.trends if trend.scatter]
    # the truth: sd of run means √(0.05² + s²) over s, where s = √2 × 1 % / √5 of the paired blocks
    assert sum(wide) / len(wide) == pytest.approx(8, rel=0.25)


def test_a_level_that_moved_and_stayed_is_found_at_the_run_where_it_did() -> None:
    found = [looked(seed, 10, step=(6, "b", 1.15)) for seed in range(15)]
    at = [[(trend.method, step.run) for trend in each.trends for step in trend.steps] for each in found]
    assert sum(each == [("b", 6)] for each in at) >= 13
    assert not any(each.noise_found for each in found)
    steps = [step.change_rel for each in found for trend in each.trends for step in trend.steps if trend.method == "b"]
    assert sum(steps) / len(steps) == pytest.approx(0.15, abs=0.02)
    lasting = [flag.lasting for each in found for flag in each.flags if (flag.run, flag.method) == (6, "b")]
    assert len(lasting) >= 12
    assert all(lasting)


def test_two_steps_of_one_method_are_both_found() -> None:
    sides = runs(3, 6, noise=0.005) + runs(4, 6, step=(0, "b", 1.2), noise=0.005)
    again = runs(5, 6, step=(0, "b", 1.5), noise=0.005)
    found = of_sides("synthetic", [_on(side, day) for day, side in enumerate([*sides, *again], 1)])
    assert [step.run for trend in found.trends for step in trend.steps] == [6, 12]


def _on(side: Side, day: int) -> Side:
    meta, trials, counting_runs = side.records
    at = f"2026-02-{day:02d}T00:00:00+00:00"
    call = meta.invocations[0].model_copy(update={"started_at": at})
    trials = [trial.model_copy(update={"started_at": at}) for trial in trials]
    return Side(Path(f"d{day}"), (meta.model_copy(update={"invocations": [call]}), trials, counting_runs), side.summary)


def test_a_step_in_the_newest_run_is_left_open() -> None:
    found = looked(2, 8, step=(7, "c", 1.4), noise=0.005)
    (flag,) = [flag for flag in found.flags if flag.run == 7]
    assert (flag.method, flag.lasting) == ("c", None)
    assert not found.noise_found
    assert "wait for another run" in " ".join(history_page.flagged(found))


def test_a_loss_that_was_mended_in_the_next_run_is_no_noise() -> None:
    """Out and back again: two flags, one event; and without that run nothing scatters."""
    sides = [each if number != 4 else _other(number) for number, each in enumerate(runs(6, 8, noise=0.005))]
    found = of_sides("synthetic", sides)
    assert [(flag.run, flag.method, flag.lasting) for flag in found.flags] == [(4, "c", False), (5, "c", False)]
    assert not found.noise_found
    assert not any(trend.steps for trend in found.trends)
    assert history_page.headline(found) == "The gate holds. 2 flags, and no level that moved and stayed."
    assert "c cost +4" in " ".join(history_page.flagged(found))


def _other(number: int) -> Side:
    return runs(6, 8, noise=0.005, step=(0, "c", 1.4))[number]


def _shaped(factors: list[dict[str, float]]) -> History:
    """One run for each table of factors on the methods' cost."""
    steps = [list(table.items()) for table in factors]
    sides = []
    for number, table in enumerate(steps):
        run = Run(blocks=5, noise=0.003, seed=number)
        for method in METHODS:
            run.method(method, time=0.7 * dict(table).get(method, 1.0))
        meta, trials, counting_runs = run.records()
        meta = meta.model_copy(update={"resolved": settings(run)})
        sides.append(
            _on(Side(Path("x"), (meta, trials, counting_runs), summarise(meta, trials, counting_runs)), number + 1)
        )
    return of_sides("synthetic", sides)


def test_a_step_explains_the_flag_where_it_happened_and_no_other() -> None:
    """Up by 15 % for good at run 6; and 10 % cheaper in run 3 alone, which no step explains."""
    found = _shaped([{"a": (1.15 if number >= 6 else 1.0) * (0.9 if number == 3 else 1.0)} for number in range(14)])
    assert [(step.run, trend.method) for trend in found.trends for step in trend.steps] == [(6, "a")]
    assert {(flag.run, flag.lasting) for flag in found.flags} == {(3, False), (4, False), (6, True)}
    assert not found.noise_found


def test_accusations_of_another_method_each_time_are_called_rotating() -> None:
    found = _shaped([{METHODS[number % 4]: 1.15} for number in range(12)])
    assert found.noise_found
    assert "rotating" in found.kinds
    assert "one-sided" not in found.kinds


def test_flags_of_one_direction_over_a_level_that_goes_nowhere_are_called_one_sided() -> None:
    """A sawtooth: 1 % better seven times, each within the noise, then 7.3 % worse at once."""
    teeth = [0.99 ** (number % 8) for number in range(24)]
    found = _shaped([{"a": tooth} for tooth in teeth])
    unexplained = [flag for flag in found.flags if flag.lasting is False]
    assert {(flag.run, flag.method, flag.change_rel > 0) for flag in unexplained} == {(8, "a", True), (16, "a", True)}
    assert found.noise_found
    assert found.kinds == ("one-sided",)


def test_the_noise_that_is_advised_would_have_raised_no_flag() -> None:
    sides = runs(1, 10, between=0.05, noise=0.01)
    found = of_sides("synthetic", sides)
    advised = max(flag.margin_rel for flag in found.flags if flag.lasting is False)
    for margin, silent in ((advised * 1.001, True), (advised * 0.97, False)):
        wider = [_with_noise(side, margin) for side in sides]
        bad = [flag for flag in of_sides("synthetic", wider).flags if flag.lasting is False]
        assert (not bad) == silent


def _with_noise(side: Side, noise: float) -> Side:
    meta, trials, counting_runs = side.records
    accept = meta.resolved["accept"] | {"noise": noise}
    meta = meta.model_copy(update={"resolved": meta.resolved | {"accept": accept}})
    return Side(side.path, (meta, trials, counting_runs), summarise(meta, trials, counting_runs))


# ── what enters ───────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_of_other_settings_copies_and_unfinished_ones_are_left_out_with_the_reason() -> None:
    sides = runs(1, 5)
    meta, trials, counting_runs = sides[1].records
    other = meta.model_copy(update={"resolved": meta.resolved | {"accept": {"noise": 0.5}}})
    sides[1] = Side(Path("other"), (other, trials, counting_runs), sides[1].summary)
    sides.append(Side(Path("copy"), sides[2].records, sides[2].summary))
    open_, some, counted = sides[3].records
    open_ = open_.model_copy(update={"finished": False})
    some = [trial for trial in some if trial.block < 3]
    sides[3] = Side(Path("open"), (open_, some, counted), summarise(open_, some, counted))
    found = of_sides("synthetic", sides)
    assert [run.path for run in found.runs] == ["copy", "r0", "r2", "r4"] or len(found.runs) == 3
    assert {why.partition(":")[0].split(" of ")[0] for _, why in found.left_out} >= {"it is not finished"}
    reasons = " ".join(why for _, why in found.left_out)
    assert "accept.margin: 0.5, then 0.01" in reasons
    assert "a copy of another run" in reasons


def test_runs_are_put_in_the_order_in_which_they_began_whatever_their_folders_are_called() -> None:
    sides = runs(1, 4)
    mixed = [Side(Path(name), side.records, side.summary) for name, side in zip("dbca", sides, strict=True)]
    assert [run.path for run in of_sides("s", mixed[::-1]).runs] == ["d", "b", "c", "a"]


def test_two_runs_are_no_history_and_are_told_so() -> None:
    found = looked(1, 2)
    assert not found.noise_found
    assert found.chance is None
    assert "a history needs 3" in history_page.headline(found)


def test_a_folder_without_runs_is_an_error_that_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        history.read([tmp_path])
    assert caught.value.problems[0].code == "E601"


# ── shown ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_spark_rises_with_the_saving_and_a_flat_line_stays_flat() -> None:
    point = history.Point
    rising = [point(value, None, None) for value in (0.1, 0.2, 0.3)]
    assert history_page.sparkline(rising, 0.02) == "▁▅█"
    assert len(set(history_page.sparkline([point(0.3, None, None), point(0.3001, None, None)], 0.02))) == 1
    assert history_page.sparkline([rising[0], None, rising[2]], 0.02) == "▁·█"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_page_names_the_run_of_a_step_and_fits_the_terminal(width: int) -> None:
    page = io.StringIO()
    history_page.render(looked(1, 8, step=(5, "b", 1.2)), Console(file=page, width=width))
    told = " ".join(page.getvalue().split())
    assert "cnn-digits: b is worse since r5" in told
    assert "The gate holds." in told
    assert all(len(line) <= width for line in page.getvalue().splitlines())


def test_the_page_of_a_noisy_gate_says_so_first_and_what_would_mend_it() -> None:
    page = io.StringIO()
    history_page.render(looked(1, 10, between=0.05, noise=0.01), Console(file=page, width=100))
    told = " ".join(page.getvalue().split())
    assert "The gate itself is noise: do not fail a build by it." in told
    assert "times as far" in told
    assert "[accept] margin above" in told


def test_the_last_saving_is_told_as_in_its_own_report() -> None:
    sides = runs(3, 4, noise=0.1)
    page = io.StringIO()
    history_page.render(of_sides("synthetic", sides), Console(file=page, width=200))
    for row in sides[-1].summary.workloads[0].rows:
        assert wording.plain(wording.measured(row.measured)) in page.getvalue()


@pytest.mark.parametrize("seed", range(1, 7))
def test_the_noise_that_is_printed_would_have_raised_no_flag_either(seed: int) -> None:
    found = looked(seed, 10, between=0.05, noise=0.01)
    flags = [flag.margin_rel for flag in found.flags if flag.lasting is False]
    advised = re.findall(r"margin above ([\d.]+)\u00a0%", " ".join(history_page.reasons(found)))
    assert [float(text) / 100 >= max(flags) for text in advised] == [True]


def test_the_command_reads_folders_and_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        run = Run(blocks=3, noise=0.01, seed=number).method("it", time=0.7)
        written(tmp_path / "synthetic" / f"r{number}", run, day=number + 1)
    monkeypatch.setattr(sys, "argv", ["energybench", "compare", "--history", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    (found,) = json.loads(capsys.readouterr().out)["histories"]
    assert [Path(run["path"]).name for run in found["runs"]] == ["r0", "r1", "r2", "r3"]
    (trend,) = found["trends"]
    assert [point["saving_rel"] for point in trend["points"]] == pytest.approx([0.3] * 4, abs=0.03)
