import tomllib
from typing import Any

import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from energybench.suite.toml_positions import Loc, positions

KEYS = st.one_of(
    st.sampled_from(["a", "b", "model", "x-1", "3"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=0, max_size=6),
    st.sampled_from(['"', "'", "=", "]", "[a]", "a.b", "# no", "\n", "", "é"]),
)
SCALARS = st.one_of(
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    st.booleans(),
    st.dates(),
    st.datetimes(),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(['say "no"', "a = 1\n[b]\n", "'''", '"""', "\\", "# not a comment", "[1, 2]"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=5)


def paths(value: Any, at: Loc = ()) -> set[Loc]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path for key, child in children for path in ({(*at, key)} | paths(child, (*at, key)))}


def at(text: str, position: tuple[int, int]) -> str:
    line, column = position
    return "\n".join(text.split("\n")[line - 1 :])[column - 1 :]


def starts_with_key(text: str, key: str) -> bool:
    if text.startswith(key) and key:
        return True
    quoted = text[: text.find("=")] if text.startswith(key) else text
    for end in range(1, len(quoted) + 1):
        try:
            parsed = tomllib.loads(f"{quoted[:end]} = 0")
        except tomllib.TOMLDecodeError:
            continue
        if parsed == {key: 0}:
            return True
    return False


@given(DOCUMENTS, st.booleans())
def test_every_path_that_tomllib_sees_has_a_position_and_no_other(document: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(document, multiline_strings=multiline)
    assert set(positions(text)) == paths(tomllib.loads(text))


@given(DOCUMENTS)
def test_the_text_at_a_key_s_position_starts_with_that_key(document: dict[str, Any]) -> None:
    text = tomli_w.dumps(document)
    for path, position in positions(text).items():
        if isinstance(path[-1], str):
            assert starts_with_key(at(text, position), path[-1]), (path, position)


SAMPLE = '''\
# comment with [brackets] and = "signs"
schema = 1
a.b . "c d" = 2   # dotted
"quo\\"ted" = """
[not.a.table]
x = "1" """
other = \'\'\'it's \'\'\'\'\'

[trials]
  blocks = 5
when = 1979-05-27 07:32:00

[[workload]]
name = "one"
data = { use = "cifar10", "augment" = ["flip", "crop4"] }
list = [
  1.5, # [
  { deep = [[], [2]] },
]
[[workload]]
name = "two"
  [workload.train]
  lr = 0.1
[[workload.extra]]
k = 1
'''


def test_positions_in_a_text_with_every_construct() -> None:
    found = positions(SAMPLE)
    assert set(found) == paths(tomllib.loads(SAMPLE))
    assert found["schema",] == (2, 1)
    assert found["a",] == (3, 1)
    assert found["a", "b"] == (3, 3)
    assert found["a", "b", "c d"] == (3, 7)
    assert found['quo"ted',] == (4, 1)
    assert found["other",] == (7, 1)
    assert found["trials",] == (9, 2)
    assert found["trials", "blocks"] == (10, 3)
    assert found["trials", "when"] == (11, 1)
    assert found["workload",] == (13, 3)
    assert found["workload", 0] == (13, 3)
    assert found["workload", 0, "data", "use"] == (15, 10)
    assert found["workload", 0, "data", "augment"] == (15, 27)
    assert found["workload", 0, "data", "augment", 1] == (15, 48)
    assert found["workload", 0, "list", 1, "deep", 1, 0] == (18, 18)
    assert found["workload", 1] == (20, 3)
    assert found["workload", 1, "train"] == (22, 13)
    assert found["workload", 1, "train", "lr"] == (23, 3)
    assert found["workload", 1, "extra", 0, "k"] == (25, 1)


def test_a_table_declared_after_its_child_is_placed_at_its_own_header() -> None:
    assert positions("[a.b]\nx = 1\n[a]\ny = 2\n")["a",] == (3, 2)


def test_windows_line_ends_do_not_move_positions() -> None:
    assert positions(SAMPLE.replace("\n", "\r\n")) == positions(SAMPLE)
