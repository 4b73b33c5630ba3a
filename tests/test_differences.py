"""Where two trees of data differ: what mathematics says of any two of them, and settings under old and new names."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from energybench.common.differences import Difference, differences
from energybench.gate.comparable import settings_differ
from energybench.records.record import RunFile
from energybench.suite.renamed_keys import with_new_keys

SCALARS = st.none() | st.integers(-3, 3) | st.text("ab", max_size=2)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=1), inner),
    max_leaves=12,
)
CASES = settings(max_examples=300, deadline=None, derandomize=True)


def without_nones(tree: Any) -> Any:
    """The same tree where an absent key and a None are one thing."""
    if isinstance(tree, dict):
        return {key: without_nones(value) for key, value in tree.items() if value is not None}
    return [without_nones(value) for value in tree] if isinstance(tree, list) else tree


def at(tree: Any, path: tuple[str | int, ...]) -> Any:
    """What stands there; None below a key that does not exist."""
    for part in path:
        if tree is None:
            return None
        tree = tree.get(part) if isinstance(tree, dict) else tree[part]
    return tree


@CASES
@given(TREES, TREES)
def test_there_is_no_difference_if_and_only_if_the_trees_are_equal(one: Any, other: Any) -> None:
    assert (not list(differences(one, other))) == (without_nones(one) == without_nones(other))
    assert list(differences(one, one)) == []


@CASES
@given(TREES, TREES)
def test_turned_round_the_same_places_differ_with_before_and_after_exchanged(one: Any, other: Any) -> None:
    there = {(each.path, repr(each.before), repr(each.after)) for each in differences(one, other)}
    back = {(each.path, repr(each.after), repr(each.before)) for each in differences(other, one)}
    assert there == back


@CASES
@given(TREES, TREES)
def test_each_difference_has_what_stands_at_its_path_and_no_path_is_named_twice(one: Any, other: Any) -> None:
    found = list(differences(one, other))
    assert len({each.path for each in found}) == len(found)
    for each in found:
        assert (at(one, each.path), at(other, each.path)) == (each.before, each.after)
        assert each.before != each.after
    paths = [each.path for each in found]
    assert not any(a != b and a == b[: len(a)] for a in paths for b in paths)  # leaves lie below no leaf


@CASES
@given(TREES, TREES)
def test_lists_taken_whole_differ_where_any_of_their_items_does(one: Any, other: Any) -> None:
    """Each place at which items differ lies below exactly one place at which whole lists do, or is one itself."""
    whole = {each.path for each in differences(one, other, into_lists=False)}
    for each in differences(one, other):
        assert sum(each.path[: len(path)] == path for path in whole) == 1


@CASES
@given(TREES, TREES, st.sets(st.sampled_from("abc")))
def test_ignored_keys_are_those_without_which_the_others_stay_as_they_were(
    one: Any, other: Any, keys: set[str]
) -> None:
    left = [each for each in differences(one, other) if not keys & set(each.path)]
    assert list(differences(one, other, ignored_keys=keys)) == left


def test_what_is_the_same_is_for_the_caller_to_say() -> None:
    near = lambda a, b: abs(a - b) < 0.1  # noqa: E731
    assert list(differences({"a": 1.0, "b": 1.0}, {"a": 1.05, "b": 1.2}, same=near)) == [Difference(("b",), 1.0, 1.2)]


def run_with(accept: dict[str, Any]) -> RunFile:
    return RunFile(
        suite="s",
        run="r",
        digest="",
        stamp=[],
        suite_path="",
        suite_text="",
        resolved={"accept": accept},
        cells=[],
        blocks=3,
    )


def test_a_setting_that_was_renamed_differs_by_its_value_alone() -> None:
    """Under its old name, under its new one, and under both, as one version writes it."""
    spellings = [{"noise": 0.01}, {"margin": 0.01}, {"noise": 0.01, "margin": 0.01}]
    for before in spellings:
        for after in spellings:
            assert settings_differ(run_with(before), run_with(after)) == []
        assert settings_differ(run_with(before), run_with({"margin": 0.02})) == ["accept.margin: 0.01, then 0.02"]
    assert settings_differ(run_with({"noise": 0.02}), run_with({"margin": 0.01})) == ["accept.margin: 0.02, then 0.01"]
    settings_of_before = {"accept": {"noise": 0.01}, "trials": {"noise": 1}}
    assert with_new_keys(settings_of_before) == {"accept": {"margin": 0.01}, "trials": {"noise": 1}}
    assert "noise" in settings_of_before["accept"]  # it was not changed in place
