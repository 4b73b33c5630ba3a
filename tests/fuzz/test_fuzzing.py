"""The hunts themselves: the same cases wherever they run, bounds without a clock, and a test to add that fails."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from fuzzing import CASES, Raw, TooMuch, bounded, changed, hostile, hunt, mutations, steps_of
from hypothesis import strategies as st

HERE = Path(__file__).parent
TRICKY: list[Any] = [
    Raw("1e400"),
    -0.0,
    5e-324,
    b"\xff\x00",
    "\ud800",
    "\x1b[2J",
    {"a": [Raw("01")]},
    (1, ("x",)),
    None,
]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda count: monkeypatch.setitem(CASES, "x", (count, 1.0))


def lacks_a_tick(tmp_path: Path, value: Any, *more: Any) -> None:
    """A check with a fault: what names a tick is refused."""
    assert "tick_s" not in str(value), "a tick"


def test_the_smallest_case_that_fails_is_told_as_a_test_that_fails(tmp_path: Path, few: Any) -> None:
    few(300)
    drawn = st.lists(st.dictionaries(st.sampled_from(["tick_s", "b", "c"]), hostile, max_size=3), max_size=5)
    with pytest.raises(AssertionError, match="a tick") as caught:
        hunt("x", drawn, lacks_a_tick, lambda case: (case, *TRICKY), tmp_path=tmp_path)
    text = caught.value.test_to_add
    (function,) = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    room: dict[str, Any] = {"Path": Path, "Raw": Raw}
    exec(text.replace("import lacks_a_tick", "import lacks_a_tick as told").replace(" lacks_a_tick(", " check("), room)
    seen: list[Any] = []
    room["check"] = lambda *arguments: seen.extend(arguments)
    room[function.name](tmp_path)
    assert seen[0] == tmp_path
    assert len(seen[1]) == 1, "not the smallest: one table is enough"
    assert list(seen[1][0]) == ["tick_s"]
    assert [repr(value) for value in seen[2:]] == [repr(value) for value in TRICKY]
    with pytest.raises(AssertionError, match="a tick"):
        lacks_a_tick(*seen)
    assert "tests/fuzz/test_found.py" in text
    assert f"SEED={fuzzing.SEED}" in text


def cases_of(count: int) -> list[str]:
    seen: list[str] = []
    hunt(
        "x", st.tuples(st.integers(), st.floats(), st.text(), st.binary(), mutations), seen.append, lambda c: (repr(c),)
    )
    assert len(seen) >= count
    return seen


def test_a_seed_draws_the_same_whatever_ran_before(tmp_path: Path, few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis would also draw constants that stand in modules which other tests have loaded."""
    few(200)
    first = cases_of(200)
    (tmp_path / "constants.py").write_text(
        "".join(f"A{i} = {i * 7919 + 10**9}\nB{i} = {i + 0.123}\nC{i} = 'odd{i}'\n" for i in range(200))
    )
    spec = importlib.util.spec_from_file_location("constants", tmp_path / "constants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "constants", module)
    spec.loader.exec_module(module)
    assert cases_of(200) == first
    monkeypatch.setattr(fuzzing, "SEED", fuzzing.SEED + 1)
    assert cases_of(200) != first


def test_work_is_bounded_by_its_calls_and_not_by_a_clock() -> None:
    with bounded(1000):
        sum(len(str(i)) for i in range(200))  # two calls and a step of the generator each
    with pytest.raises(TooMuch, match="more than 1,000 calls"), bounded(1000):
        sum(len(str(i)) for i in range(2000))
    assert sys.getprofile() is None

    def catching() -> None:
        try:
            sum(len(str(i)) for i in range(2000))
        except Exception:  # as the code that is tested might
            return

    with pytest.raises(TooMuch), bounded(1000):
        catching()


def test_what_does_not_end_in_one_call_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "HUNG_S", 1)
    with pytest.raises(TooMuch, match="no end"), bounded():
        time.sleep(60)


def test_steps_change_what_was_drawn_and_nothing_else() -> None:
    value = {"a": [1, 2, {"b": 3.0}], "c": "x"}
    assert changed(value, [(("a", 2, "b"), "set", -1)]) == {"a": [1, 2, {"b": -1}], "c": "x"}
    assert changed(value, [(("a", 0), "drop", None), (("c",), "rename", "d")]) == {"a": [2, {"b": 3.0}], "d": "x"}
    assert changed(value, [(("a", 1), "double", None)]) == {"a": [1, 2, 2, {"b": 3.0}], "c": "x"}
    assert value == {"a": [1, 2, {"b": 3.0}], "c": "x"}
    drawn = [(number, how, "new") for number in range(6) for how in fuzzing.HOWS]
    for one in drawn:
        steps = steps_of(value, [one])
        assert len(steps) == 1
        changed(value, steps)


def test_every_file_of_hunts_gets_all_of_its_cases() -> None:
    """Their shares make a whole in each file, every name is hunted once, by a test that `make test` runs too."""
    found: dict[str, list[str]] = {}
    for file in HERE.glob("test_fuzz_*.py"):
        text = file.read_text(encoding="utf-8")
        names = re.findall(r'\bhunt\(\s*"([^"]+)"', text)
        assert text.count("@pytest.mark.soak") == len(names), file.name
        found[file.name] = names
        assert sum(CASES[name][1] for name in names) == pytest.approx(1), file.name
    assert sorted(name for names in found.values() for name in names) == sorted(CASES)
    assert 300 <= sum(few for few, _ in CASES.values()) <= 600
