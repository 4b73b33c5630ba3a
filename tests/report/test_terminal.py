"""What is printed is whole at any width, and means the same without colour."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from synthetic import GPU, Run, Truth, merge

from energybench.records.reader import read_folder
from energybench.records.record import Claim
from energybench.report.terminal import fold, partial, render, wrap
from energybench.verdict import sentences, wording
from energybench.verdict.figures import Summary
from energybench.verdict.glance import Glance
from energybench.verdict.summary import summarise

WIDTHS = [60, 80, 100, 140, 200]
LONG = "slow+dropout skip=random:0.25,period=12,depth=0.875"


def made(**options: object) -> Run:
    run = Run(noise=0.02, quality_noise=0.001, **options)  # type: ignore[arg-type]
    run.method("half", time=0.7, flop=0.5, claim=Claim(saving_rel=0.4, of="backward", source="Table 4"))
    run.method(LONG, time=1.53, flop=0.9, energy=1.2).method("ssprop", time=1.002, flop=0.61)
    return run.control("half", time=0.71).skip("other", "no convolution here")


def example(**options: object) -> Summary:
    return summarise(*made(**options).records())


def printed(summary: Summary, width: int, show: object = render) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=False)
    show(summary, console)  # type: ignore[operator]
    return console.export_text()


def so_far(summary: Summary, console: Console) -> None:
    """Of the same records, as after its last block."""
    run, trials, _ = made().records()
    glance = Glance(run)
    for block in range(summary.blocks):
        glance.block(block, [trial for trial in trials if trial.block == block])
    partial(glance.so_far(), summary.blocks, console)


def everything(summary: Summary, console: Console) -> None:
    render(summary, console, verbose=True)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("show", [render, everything, so_far])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(width: int, show: object) -> None:
    text = printed(example(), width, show)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [*WIDTHS, 24, 30, 40])
@pytest.mark.parametrize("sensors", [(("model(x)", "cpu"),), (GPU,)])
def test_every_measured_figure_and_verdict_is_whole_on_its_line_at_any_width(
    width: int, sensors: tuple[tuple[str, str], ...]
) -> None:
    summary = example(sensors=sensors)
    text = printed(summary, width)
    for row in summary.workloads[0].rows:
        assert wording.plain(wording.measured(row.measured)) in text
        assert row.verdict in text


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_in_the_notes_is_whole_on_its_line(width: int) -> None:
    summary = example(sensors=(GPU,))
    text = printed(summary, width, everything)
    for row in summary.workloads[0].rows:
        for note in sentences.notes(row, "accuracy"):
            assert all(wording.plain(figure) in text for figure in note.split(" ") if wording.NB in figure)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_column_is_shown_whole_or_not_at_all(width: int) -> None:
    summary = example()
    text = printed(summary, width)
    table = text[text.index("Method") : text.index("• ")]
    columns = {
        "claimed": [wording.percent(r.claimed_rel) for r in summary.workloads[0].rows],
        "counted": [wording.percent(r.counted_rel) for r in summary.workloads[0].rows],
        "realised": [wording.realised(r) for r in summary.workloads[0].rows],
        "accuracy Δ": [wording.quality_change(r.quality) for r in summary.workloads[0].rows],
    }
    shown = " ".join(" ".join(text[: text.index("───")].splitlines()[-2:]).split())
    for title, cells in columns.items():
        if title in shown:
            assert all(wording.plain(cell) in table for cell in cells)
        else:
            assert title in " ".join(text[text.index("Left out at this width") :].split())


def head(text: str) -> str:
    return text[: text.index("───")].split("\n\n")[-1]


def test_a_wide_terminal_shows_every_column_and_a_narrow_one_fewer() -> None:
    def shown(width: int) -> int:
        return sum(title in head(printed(example(), width)) for title in TITLES)

    counts = [shown(width) for width in WIDTHS]
    assert counts == sorted(counts)
    assert counts[-1] == len(TITLES)
    assert counts[0] < len(TITLES)


TITLES = ["verdict", "measured", "quality", "accuracy Δ", "claimed", "estimated", "counted", "realised"]


@pytest.mark.parametrize("width", WIDTHS)
def test_verdict_measured_and_quality_come_first_at_every_width(width: int) -> None:
    above, below = head(printed(example(), width)).splitlines()[-2:]
    places = {title: max(above.find(title), below.find(title)) for title in TITLES}
    assert 0 < places["verdict"] < places["measured"] < places["quality"]
    rest = [places[title] for title in TITLES[3:] if places[title] >= 0]
    assert all(place > places["quality"] for place in rest)


def test_an_estimate_that_the_counter_confirms_in_every_row_has_one_column_with_it() -> None:
    one = Run().method("half", time=0.7, flop=0.5).method("third", time=0.7, flop=0.3)
    assert re.search(r"estimated +\n.*= counted", head(printed(summarise(*one.records()), 140)))
    two = Run().method("half", time=0.7, flop=0.5).method("third", time=0.7, flop=0.3, estimate=0.4)
    assert "= counted" not in head(printed(summarise(*two.records()), 140))


def test_what_nobody_claims_has_no_column_and_what_saves_nothing_realises_nothing() -> None:
    run = Run().method("half", time=0.5, flop=0.5).method("dear", time=2.0, flop=0.9)
    summary = summarise(*run.records())
    assert "claimed" not in head(printed(summary, 200))
    assert [wording.realised(row) for row in summary.workloads[0].rows] == ["100\u00a0%", wording.NOTHING]


def test_names_that_begin_alike_say_it_once_above_them() -> None:
    run = Run().method("drop[rate=0.1]", time=0.9).method("drop[rate=0.5]", time=0.7)
    table = printed(summarise(*run.records()), 100).split("• ")[0]
    assert table.count("drop") == 2  # of the headline, and above the names
    assert "drop[…]" in table
    assert re.search(r"^rate=0.1 +faster", table, re.M)


@pytest.mark.parametrize(
    ("names", "heading", "rest"),
    [
        (["a b", "a c"], "a …", ["b", "c"]),
        (["m[x=1]", "m[x=2]"], "m[…]", ["x=1", "x=2"]),
        (["m[x=1]", "m[x=2]+n"], "", ["m[x=1]", "m[x=2]+n"]),
        (["ssprop", "ssprop+dropout"], "", ["ssprop", "ssprop+dropout"]),
        (["a ", "a b"], "", ["a ", "a b"]),
        (["alone in here"], "", ["alone in here"]),
        (["same x", "same x"], "", ["same x", "same x"]),
        ([], "", []),
    ],
)
def test_a_common_beginning_ends_at_a_separator_and_leaves_something(names, heading, rest) -> None:
    assert wording.without_common_prefix(names) == (heading, rest)


QUICK = Path(__file__).parents[2] / "reports" / "quick"


@pytest.mark.parametrize("folder", sorted(file.parent for file in QUICK.glob("*/run.json")), ids=str)
def test_quicks_report_is_one_screen_and_ends_with_what_fired(folder: Path) -> None:
    lines = printed(summarise(*read_folder(folder)), 80).splitlines()
    assert len(lines) <= 40
    assert re.search(r"\d+ (other )?checks clear", lines[-1])


def test_what_stands_behind_a_figure_is_told_when_it_is_asked_for_and_not_before() -> None:
    summary = example()
    short, long = printed(summary, 100), printed(summary, 100, everything)
    for told in ("Plain training: 3 blocks", "Claimed by: Table 4"):
        assert told in " ".join(long.split())
        assert told not in " ".join(short.split())
    assert len(short.splitlines()) < len(long.splitlines())


def test_several_workloads_share_one_table_and_each_method_has_one_sentence() -> None:
    first = Run(workload="one", noise=0.001).method("half", time=0.5).method("dear", time=2.0)
    second = Run(workload="two", noise=0.001).method("half", time=1.0).method("dear", time=2.0)
    text = printed(summarise(*merge(first, second)), 100)
    assert text.count("verdict") == 1
    assert re.search(r"^one *$", text, re.M)
    assert re.search(r"^  half  +faster", text, re.M)
    sentences_told = re.findall(r"^• (\w+): (.*)$", text, re.M)
    assert [method for method, _ in sentences_told] == ["half", "dear"]
    assert sentences_told[0][1].startswith("faster on one; no difference on two; quality held on both workloads")
    assert sentences_told[1][1].startswith("slower on both workloads")


def test_the_headline_comes_first_and_modelled_energy_is_named_on_the_first_screen() -> None:
    summary = example()
    lines = printed(summary, 200).splitlines()
    assert summary.headline in lines[1]
    assert any("Energy is modelled" in line for line in lines[:4])


def test_without_colour_the_words_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal is always 80 wide to rich
    out = io.StringIO()
    render(example(), Console(file=out, width=100, force_terminal=True))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", out.getvalue())
    bare = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert bare == printed(example(), 100)


def test_markup_and_escapes_in_a_name_are_printed_as_they_are_or_blanked() -> None:
    run = Run().method("[red]x[/red]", time=0.8).method("a\x1b[31mb\nc", time=0.8)
    text = printed(summarise(*run.records()), 140)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def test_after_a_block_no_verdict_is_given() -> None:
    text = printed(example(), 100, so_far)
    assert "3 of 3" in text
    assert "verdict" not in text
    assert "slower" not in text


def test_a_struck_row_says_why_in_words() -> None:
    run = Run(blocks=5)
    run.truths = [Truth("baseline", "baseline"), Truth("twin", "twin", time=0.9), Truth("half", time=0.5)]
    text = printed(summarise(*run.records()), 140)
    assert "no verdict" in text
    assert "Plain training differs from itself" in text


def test_an_empty_run_prints() -> None:
    meta, _, _ = Run().method("half").records()
    assert "nothing to compare" in printed(summarise(meta, [], []), 100)


@pytest.mark.parametrize("width", [8, 12, 20])
def test_a_name_is_folded_without_losing_a_character_but_spaces_at_a_fold(width: int) -> None:
    lines = fold(LONG, width).splitlines()
    assert max(map(len, lines)) <= width
    assert "".join(lines).replace(" ", "") == LONG.replace(" ", "")


def test_a_number_inside_a_name_is_not_broken_where_there_is_room() -> None:
    for line in fold(LONG, 20).splitlines():
        assert not line.startswith(".")
        assert "0.875" in LONG
    assert any("0.875" in line for line in fold(LONG, 20).splitlines())


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(20, 40), st.sampled_from(["", "  ", "    "]))
def test_whatever_is_no_wider_than_the_terminal_stays_whole_indented_or_not(sizes, width, indent) -> None:
    figures = [f"{letter * size}\u00a0[{letter * size}]" for letter, size in zip("abcdefgh", sizes, strict=False)]
    lines = wrap(" ".join(figures), width, indent, first="• ")
    assert max(map(cell_len, lines)) <= width
    for figure in figures:
        if cell_len(figure) <= width:
            assert any(figure in line for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 J"),
        (1.0, "1.00 J"),
        (999.6, "1.00 kJ"),
        (1234.5, "1.23 kJ"),
        (0.0456, "45.6 mJ"),
        (-2500, "−2.50 kJ"),
        (3.6e6, "3.60 MJ"),
    ],
)
def test_joules_have_three_figures_and_a_prefix(value: float, text: str) -> None:
    assert wording.plain(wording.si(value, "J")) == text


@pytest.mark.parametrize(("value", "text"), [(0.12345, "12.3 %"), (-0.0001, "0.0 %"), (-0.123, "−12.3 %"), (None, "–")])
def test_percent_has_a_real_minus_and_no_negative_zero(value: float | None, text: str) -> None:
    assert wording.plain(wording.percent(value)) == text


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@settings(max_examples=20)
@given(NAMES, NAMES, st.integers(20, 220), st.floats(0.01, 20), st.sampled_from([(GPU,), (("model(x)", "cpu"),)]))
def test_any_name_at_any_width_breaks_no_line_and_crops_no_number(
    workload: str, method: str, width: int, time: float, sensors: tuple[tuple[str, str], ...]
) -> None:
    run = Run(workload=f"w{workload}", noise=0.03, sensors=sensors).method(f"m{method}", time=time, energy=time)
    summary = summarise(*run.method("plainly named", time=0.9, energy=0.8).records())
    out = io.StringIO()
    render(summary, Console(file=out, width=width, force_terminal=False))
    lines = out.getvalue().split("\n")
    assert all(c.isprintable() for line in lines for c in line)
    assert max(map(cell_len, lines)) <= width
    flat = " ".join(out.getvalue().split())
    for row in summary.workloads[0].rows:
        assert wording.plain(wording.measured(row.measured)) in flat
        assert row.verdict in flat
