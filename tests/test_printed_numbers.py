"""Numbers as scripts print them, caught by patterns: whole or refused, and a pattern that works."""

from __future__ import annotations

import math
import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.trial.printed_numbers import printed, working

LOOSE = r"acc[=: ]+(\S+)"
DIGITS = r"acc[=: ]+([0-9.]+)"


def read(pattern: str, line: str) -> tuple[float | None, str]:
    match = re.search(pattern, line)
    assert match is not None
    found = printed(match)
    return found.figure, found.wrong


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["", " end", ", loss 1", ")", "; x"]))
def test_a_number_that_python_prints_is_read_exactly_or_refused_and_never_another_one(value: float, after: str) -> None:
    for pattern in (LOOSE, DIGITS, r"acc=(-?\d+)", r"acc=(-?\d\.\d\d)", r".*([\d.]+)", r"acc=-?([\d.e]+)"):
        line = f"epoch 3 acc={value!r}{after}"
        match = re.search(pattern, line)
        if match is None:
            continue
        figure = printed(match).figure
        assert figure is None or figure == value or (figure == 1 and after == ", loss 1"), (pattern, line, figure)


@pytest.mark.parametrize("text", ["0,948", "94,8", "1.234,5", "-0,5"])
@pytest.mark.parametrize("pattern", [LOOSE, DIGITS, r"acc=(-?\d+)", r"acc=-?\d+,(\d+)"])
def test_a_decimal_comma_is_told_and_never_a_part_of_the_number(pattern: str, text: str) -> None:
    match = re.search(pattern, f"acc={text}")
    if match is None:
        return
    found = printed(match)
    if (pattern, text) == (DIGITS, "1.234,5"):  # it might be two numbers with a comma between them
        return
    assert found.figure is None
    assert "decimal point" in found.wrong


@pytest.mark.parametrize(
    ("line", "figure"),
    [
        ("acc=94.8%", 94.8),
        ("acc=0.94]", 0.94),
        ("acc=0.94),", 0.94),
        ("acc: [0.94", 0.94),
        ("acc=\x1b[32m0.94\x1b[0m", 0.94),
        ("acc=\x1b[1;31m94.8%\x1b[0m done", 94.8),
        ("acc='0.94',", 0.94),
        ("acc=tensor(0.94)", 0.94),
    ],
)
def test_what_is_no_number_is_told_with_a_pattern_that_works_on_this_line(line: str, figure: float) -> None:
    value, wrong = read(LOOSE, line)
    assert value is None
    written = re.search(r"pattern = ('''.*'''|'[^']*')", wrong)
    assert written is not None, wrong
    pattern = tomllib.loads(f"pattern = {written[1]}")["pattern"]
    assert read(pattern, line) == (figure, "")
    assert ('scale = "percent"' in wrong) == ("%" in line)


@pytest.mark.parametrize("line", ["acc=nan", "acc=inf", "acc=-inf", "acc=NaN"])
def test_a_diverged_figure_is_a_figure(line: str) -> None:
    value, _ = read(LOOSE, line)
    assert value is not None
    assert not math.isfinite(value)


def test_a_percent_sign_behind_the_number_is_seen() -> None:
    for line, percent in (("acc=94.8%", True), ("acc=94.8 %", True), ("acc=94.8 of 100 %", False)):
        match = re.search(DIGITS, line)
        assert match is not None
        assert printed(match).percent == percent


def test_numbers_beside_each_other_are_told_apart() -> None:
    assert read(r"acc=([\d.]+)", "acc=0.94,0.95")[0] == 0.94  # behind a decimal point a comma ends the number
    assert read(r"resnet-(\d+)", "resnet-18 done")[0] == 18
    assert read(r"acc=([\d.]+?)\.?$", "acc=0.94.")[0] == 0.94  # the end of a sentence
    assert "this one works" in read(r"acc=([\d.]+)", "acc=0.94.")[1]


def test_no_pattern_is_proposed_where_there_is_no_number() -> None:
    assert working(LOOSE, "acc=high") is None
    assert read(LOOSE, "acc=high")[1] == "the pattern matched 'high', which is no number"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # a nested set
@given(st.text("ac(?:)[]\\|d0-9. =+P<x>", max_size=16), st.text("ac=0123456789.,%-e ", max_size=16))
def test_no_pattern_and_no_line_break_the_search_for_a_better_one(pattern: str, line: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError):
        return
    if groups and (better := working(pattern, line)) is not None:
        assert re.search(better, line)
