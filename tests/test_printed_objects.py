"""JSON and Python dicts on a line, behind a prefix or not; nothing in them is run."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.trial.printed_objects import objects

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False)
    | st.text("ab{}'\" ", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=3), inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(st.text("abc_", min_size=1, max_size=4), VALUES, min_size=1, max_size=4)
PREFIXES = st.sampled_from(["", "INFO:root:", "[rank0]: ", "2026-11-30 12:00:00,123 - train - ", "step {3}: "])


@given(TABLES, PREFIXES)
def test_what_json_writes_is_read_behind_any_prefix(table: dict[str, Any], prefix: str) -> None:
    assert list(objects(prefix + json.dumps(table)))[-1] == table


@given(TABLES, PREFIXES)
def test_what_python_prints_is_read_behind_any_prefix(table: dict[str, Any], prefix: str) -> None:
    found = list(objects(f"{prefix}{table!r}"))
    assert found
    assert json.dumps(found[-1], sort_keys=True) == json.dumps(table, sort_keys=True)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("{'eval_loss': 1.25, 'epoch': 3.0}", 1.25),  # transformers
        ("{'eval_loss': np.float64(1.25)}", 1.25),  # NumPy 2
        ("{'eval_loss': tensor(1.25, device='cuda:0')}", 1.25),
        ("{'eval_loss': -1.25}", -1.25),
        ("{'eval_loss': '1.25'}", "1.25"),
        ("{'eval_loss': 1.25} done", 1.25),
        ("{'step': 1} {'eval_loss': 1.25}", 1.25),
        ("{'a': {'x': 1}} | {'eval_loss': 1.25, 'b': {'y': 2}}", 1.25),
    ],
)
def test_dicts_as_libraries_print_them(line: str, value: Any) -> None:
    assert [found["eval_loss"] for found in objects(line) if "eval_loss" in found] == [value]


def test_what_has_diverged_is_no_number() -> None:
    for line in ("{'loss': nan}", '{"loss": NaN}', "{'loss': inf}"):
        (found,) = objects(line)
        assert not math.isfinite(found["loss"])


def test_no_code_is_run(tmp_path: Any) -> None:
    file = tmp_path / "made"
    list(objects(f"{{'loss': open({str(file)!r}, 'w')}}"))
    list(objects("{'loss': (lambda: 1)()}"))
    assert not file.exists()


@given(st.text("{}[]'\":,1ae( )", max_size=40))
def test_no_line_breaks_it(line: str) -> None:
    assert all(isinstance(found, dict) for found in objects(line))
    assert list(objects("{" * 20_000)) == []
