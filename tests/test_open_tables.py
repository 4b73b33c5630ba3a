"""Open tables take what each of their checks takes, however many were seen before and in whichever order."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from energybench.common.limits import DEPTH
from energybench.common.open_tables import Detail, DetailKnown, Environment, EnvironmentKnown, Known
from energybench.common.quantities import physical

NUMBERS = st.one_of(
    st.sampled_from([0, 0.0, 1, 1.0, True, False, -1, -0.5, 1e301, -1e301, 10**400, math.nan, math.inf, 2**21, 0.5]),
    st.floats(),
    st.integers(),
)
KEYS = st.sampled_from(
    ["tick_s", "period_s", "wraps", "load_rel", "threads", "load_average", "gpus", "x", "x_j", "t_c"]
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, st.sampled_from(["", "a"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=5,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=4)


def finite(value: Any, depth: int = 0) -> bool:
    """Neither too deep nor with a number beyond 1e300."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return depth <= DEPTH and all(finite(each, depth + 1) for each in inner)
    return not isinstance(value, int | float) or abs(value) <= 1e300


def sound(kind: type[Known], table: dict[str, Any]) -> bool:
    """By each check alone."""
    try:
        kind.model_validate(table, strict=True)
        physical(table)
    except ValueError:
        return False
    return finite(table)


@pytest.mark.parametrize(("taken", "kind"), [(Detail, DetailKnown), (Environment, EnvironmentKnown)])
@settings(max_examples=300, deadline=None)
@given(table=TABLES)
def test_a_table_is_taken_if_and_only_if_all_checks_take_it(
    taken: Any, kind: type[Known], table: dict[str, Any]
) -> None:
    adapter = TypeAdapter(taken)
    for _ in range(2):  # the second time it may be remembered
        try:
            found = adapter.validate_python(table, strict=True)
        except ValidationError:
            assert not sound(kind, table)
        else:
            assert sound(kind, table)
            assert found == table


@pytest.mark.parametrize(("known", "other"), [(1, True), (0.0, False), (1, "1"), (3, -3)])
def test_a_value_that_is_equal_to_a_valid_one_and_of_another_kind_is_not_taken_for_it(known: Any, other: Any) -> None:
    adapter = TypeAdapter(Detail)
    key = "load_rel" if known == 0.0 else "wraps"
    assert adapter.validate_python({key: known}, strict=True) == {key: known}
    with pytest.raises(ValidationError):
        adapter.validate_python({key: other}, strict=True)
