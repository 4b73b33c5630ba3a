"""Names in braces: what is filled in, what stays, and what is a mistake."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.suite.placeholders import fill_words, placeholders


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("{seed}", "7"),
        ("--seed={seed}.{seed}", "--seed=7.7"),
        ("{{seed}}", "{seed}"),  # escaped
        ("{{ a + b }}", "{ a + b }"),
        ("{{{seed}}}", "{7}"),
        ("${seed}", "${seed}"),  # a shell's
        ("${HOME:-x}/{seed}", "${HOME:-x}/7"),
        ("${{ seed }}", "${{ seed }}"),
        ("{print $1}", "{print $1}"),  # awk's
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),  # JSON
        ("{}", "{}"),  # find's
        ("{other}", "{other}"),
    ],
)
def test_braces_are_ours_only_where_they_hold_a_name(word: str, filled: str) -> None:
    assert fill_words([word], {"seed": 7}) == [filled]


def test_what_is_escaped_outlives_every_filling_but_the_last() -> None:
    """Options are filled in when a suite is checked, the seed when a trial begins: {{seed}} stays {seed}."""
    once = fill_words(["{{seed}} {steps} {seed}"], {"steps": 3}, last=False)
    assert once == ["{{seed}} 3 {seed}"]
    assert fill_words(once, {"seed": 7}) == ["{seed} 3 7"]


@given(st.text(string.ascii_letters + " $+-*/.,:;'\"", max_size=20))
def test_any_text_can_be_put_in_braces_by_doubling_them(text: str) -> None:
    assert fill_words([f"{{{{{text}}}}}"], {text: "filled"}) == [f"{{{text}}}"]


@given(st.lists(st.text("ab{} $", max_size=8), max_size=4))
def test_what_names_no_value_holds_no_placeholder_after_filling(words: list[str]) -> None:
    values = {name: "x" for word in words for name in placeholders(word)}
    assert not {name for word in fill_words(words, values, last=False) for name in placeholders(word)}
