"""Suites that were edited, made up or built to be large: every mistake with a code and a line, or what they say."""

from __future__ import annotations

import math
import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from fuzzing import TEXTS, Raw, bounded, changed, hunt, mutations, steps_of, told
from hypothesis import strategies as st

from energybench.common.errors import EnergybenchError
from energybench.suite.suite import Suite, load
from energybench.suite.variants import MOST_CELLS

ROOT = Path(__file__).parents[2]


@cache
def shipped() -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8") for path in sorted((ROOT / "suites").glob("*.toml")))


def a_suite(tmp_path: Path, text: str, quick: bool, overrides: tuple[str, ...] = ()) -> None:
    path = tmp_path / "s.toml"
    content = text.encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    try:
        suite = load(path, quick=quick, overrides=overrides)
    except EnergybenchError as error:
        told(error, "12")
        return
    as_it_says(suite, tomllib.loads(content.decode("utf-8-sig")), plain=not quick and not overrides)


def as_it_says(suite: Suite, raw: dict[str, Any], plain: bool) -> None:
    """What was accepted is what was written, finite, and no more than was allowed."""
    finite(suite.digest_source())
    pairs = suite.pairs()
    assert len(pairs) + len(suite.workloads) * (1 + suite.trials.twin) <= MOST_CELLS
    assert len({(w.name, v.label) for w, v, _ in pairs}) == len(pairs)
    if not plain:
        return
    assert suite.suite == raw["suite"]
    written = raw.get("trials", {})
    assert suite.trials.blocks == written.get("blocks", 5)
    assert suite.trials.seed == written.get("seed", 0)
    tables = {table["name"]: table for table in raw["workload"]}
    written_as = [each.name if each.name in tables else each.name.partition("[")[0] for each in suite.workloads]
    assert list(dict.fromkeys(written_as)) == list(tables)
    for workload, name in zip(suite.workloads, written_as, strict=True):
        table, swept = tables[name], sweep_of(name, tables)  # one workload for each of its values
        assert workload.name == name or swept
        for key in ("epochs", "lr", "momentum"):
            if key in table.get("train", {}) and f"train.{key}" not in swept:
                assert getattr(workload.train, key) == table["train"][key]
        if "batch" in table.get("data", {}) and "data.batch" not in swept:
            assert workload.data.batch == table["data"]["batch"]


def sweep_of(name: str, tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A workload's own, or that of the one that it extends."""
    while "sweep" not in tables[name] and "extends" in tables[name]:
        name = tables[name]["extends"]
    return dict(tables[name].get("sweep", {}))


def finite(value: Any) -> None:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        finite(item)
    assert not isinstance(value, float) or math.isfinite(value)


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────

PIECES = (
    "=",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    '"',
    "'",
    '"""',
    "\n",
    "#",
    ".",
    ",",
    "\\u0000",
    "\\u001b",
    "\x00",
    "\ud7ff",
    "inf",
    "-nan",
    "1e999",
    "-1",
    "0",
    "true",
    "9" * 30,
    "1979-05-27",
    '""',
    '"../../x.py:f"',
    '"os:system"',
    "[]",
    "{}",
    "\n[workload]\n",
    "\n[[workload]]\n",
    "\n[[method]]\n",
    "\n[quick]\n",
    '\nextends = "cnn-digits"\n',
    "a.b.c.d = 1\n",
    "\nblocks = 3\n",
    '\nname = "baseline"\n',
    '\nlimit = "10 min"\n',
    "\nsweep = { p = [1, 2, 3] }\n",
)
text_edits = st.lists(
    st.tuples(
        st.sampled_from(["insert", "cut", "copy", "line", "token"]),
        st.integers(0, 2**20),
        st.integers(0, 60),
        st.sampled_from([*PIECES, *TEXTS]),
    ),
    min_size=1,
    max_size=4,
)


def edited(text: str, how: str, at: int, length: int, new: str) -> str:
    at %= len(text) + 1
    if how == "insert":
        return text[:at] + new + text[at:]
    if how == "cut":
        return text[:at] + text[at + length :]
    if how == "copy":
        return text[:at] + text[at - length : at] + text[at:]
    lines = text.split("\n")
    row = at % len(lines)
    if how == "line":
        lines.insert(row, lines[length % len(lines)])
    elif "=" in lines[row]:
        lines[row] = lines[row].partition("=")[0] + "= " + new
    return "\n".join(lines)


@pytest.mark.soak
def test_an_edited_suite_is_told_its_mistakes_or_is_what_it_says(tmp_path: Path) -> None:
    def plain(drawn: Any) -> tuple[str, bool]:
        number, changes, quick = drawn
        text = shipped()[number % len(shipped())]
        for change in changes:
            text = edited(text, *change)
        return text, quick

    drawn = st.tuples(st.integers(0, 100), text_edits, st.booleans())
    hunt("suites as text", drawn, a_suite, plain, tmp_path=tmp_path)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────


def writable(value: Any) -> Any:
    """What TOML can hold: no null, no raw JSON."""
    if isinstance(value, Raw) or value is None:
        return str(value)[:50]
    if isinstance(value, dict):
        return {str(key): writable(item) for key, item in value.items()}
    return [writable(item) for item in value] if isinstance(value, list) else value


@pytest.mark.soak
def test_a_suite_of_any_tables_is_told_its_mistakes_or_is_what_it_says(tmp_path: Path) -> None:
    def plain(drawn: Any) -> tuple[str, bool]:
        number, changes, quick = drawn
        tables = tomllib.loads(shipped()[number % len(shipped())])
        text = tomli_w.dumps(writable(changed(tables, steps_of(tables, changes))))
        return text.encode("utf-8", "replace").decode("utf-8"), quick

    drawn = st.tuples(st.integers(0, 100), mutations, st.booleans())
    hunt("suites as tables", drawn, a_suite, plain, tmp_path=tmp_path)


KEYS = (
    "workload.train.epochs",
    "workload.train.lr",
    "trials.blocks",
    "trials.limit",
    "workload[cnn-digits].data.batch",
    "method.skip",
    "method[gradsamp].skip",
    "accept.margin",
    "accept.noise",
    "about",
    "suite",
    "quick",
    "workload.name",
    "measure",
    "workload.data.options",
    "trials",
    "x",
    "",
    ".",
    "workload[",
    "method[]",
)
settings = st.lists(
    st.builds(
        "{}{}{}".format,
        st.sampled_from([*KEYS, *TEXTS]),
        st.sampled_from(["=", ".", "[0]=", " = ", ""]),
        st.sampled_from([*PIECES, *TEXTS, "3", '"10 s"', "[1, 2]", "{ a = 1 }"]),
    ),
    min_size=1,
    max_size=3,
)


def settings_of_the_quick_suite(tmp_path: Path, overrides: list[str], quick: bool) -> None:
    text = (ROOT / "suites" / "quick.toml").read_text(encoding="utf-8")
    a_suite(tmp_path, text, quick, tuple(overrides))


@pytest.mark.soak
def test_any_setting_is_told_its_mistake_or_holds(tmp_path: Path) -> None:
    hunt(
        "settings",
        st.tuples(settings, st.booleans()),
        settings_of_the_quick_suite,
        lambda drawn: drawn,
        tmp_path=tmp_path,
    )


# ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────

WORKLOAD = """[[workload]]
name = "w"
model = { use = "cnn" }
data = { use = "digits", batch = 8 }
train = { epochs = 1, lr = 0.1 }
"""
HEAD = 'schema = 1\nsuite = "s"\n'


def swept(values: int, keys: int) -> str:
    lines = "".join(f"a{key} = {list(range(values))}\n" for key in range(keys))
    return f'[[method]]\nuse = "nothing"\n[method.sweep]\n{lines}'


def named(count: int, extends: bool = False) -> str:
    names = "".join(f'[[workload]]\nname = "w{i}"\nextends = "w{(i + 1) % count}"\n' for i in range(count))
    return names if extends else "".join(WORKLOAD.replace('"w"', f'"w{i}"') for i in range(count))


ONE = HEAD + WORKLOAD
FEW = "[trials]\nblocks = 1\ntwin = false\n"
SKIPS = '[[skip]]\nmethod = "nothing*a0=x*"\nbecause = "x"\n' * 50
FEW_CALLS = 2_000_000
UNREAD = 5_000  # for what a look at its text refuses: no reader gets it, whose work inside one call no count sees
ONLY_LOOKED_AT = ("a dotted key", "a dotted header", "many megabytes", "a number without end")
LARGE = {
    "a million variants": (ONE + FEW + swept(1000, 2), "E207", "1,000,000 variants"),
    "ten to the 300 variants": (ONE + swept(10, 300), "E207", "about 10^300 variants"),
    "many large sweeps": (ONE + swept(10, 4) * 100, "E207", "1,000,000 variants"),
    "a million blocks": (ONE + "[trials]\nblocks = 500_000\n", "E207", "1,000,000"),
    "more blocks than digits": (ONE + f"[trials]\nblocks = {'9' * 4299}\n", "E202", "64 bits"),
    "a number without end": (ONE + f"[trials]\nblocks = {'9' * 100_000}\n", "E102", "digits"),
    "variants that blocks make too many": (ONE + swept(200, 2) + SKIPS, "E207", "200,010"),
    # 200 × (1 + 12,100) pairs, of no more cells than are allowed
    "skips that are held against too many": (
        ONE + FEW + swept(110, 2) + SKIPS.replace("*a0=x*", "*a0=0*") * 4,
        "E207",
        "2,420,200 pairs",
    ),
    "arrays in arrays": (f"a = {'[' * 5000}{']' * 5000}", "E102", "deep"),
    "tables in tables": ("a = " + "{a = " * 3000 + "1" + "}" * 3000, "E102", "deep"),
    "a dotted key": (".".join("a" * 20_000) + " = 1", "E102", "deep"),
    "a dotted header": ("[" + ".".join("a" * 20_000) + "]", "E102", "deep"),
    "30,000 tables": ("[[a]]\n" * 30_000, "E102", "30,001"),
    "many megabytes": ("#" * 3_000_000, "E101", "250,000"),
    "many workloads": (HEAD + named(400), "E207", "400 [[workload]]"),
    "a circle of many": (HEAD + named(200, extends=True), "E205", "circle"),
    "keys that nobody knows": (ONE + "".join(f"key{i} = 1\n" for i in range(9000)), "E201", "key0"),
    "a label without end": (ONE + f'[[method]]\nuse = "m"\nsweep = {{ a = ["{"x" * 90_000}"] }}\n', "E205", "90,00"),
    "a stack without end": (ONE + f"[[method]]\nuse = {[f'm{i}' for i in range(3000)]}\n", "E205", "characters"),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_is_too_large_is_refused_before_it_is_expanded_with_its_size(name: str, tmp_path: Path) -> None:
    text, code, says = LARGE[name]
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EnergybenchError) as caught, bounded(UNREAD if name in ONLY_LOOKED_AT else FEW_CALLS):
        load(path)
    assert [p for p in caught.value.problems if p.code == code and says in p.message], caught.value.problems[:3]


def test_a_pattern_of_many_stars_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    skip = f'[[skip]]\nworkload = "{"*a" * 90}*b"\nbecause = "x"\n'
    path.write_text(HEAD + WORKLOAD.replace('"w"', f'"{"a" * 199}"') + skip, encoding="utf-8")
    with pytest.raises(EnergybenchError, match="skips nothing"), bounded(FEW_CALLS):
        load(path)


@pytest.mark.parametrize("text", ["workload.train." + ".".join("a" * 3000) + "=1", "a" * 20_000])
def test_a_setting_without_end_is_refused(text: str) -> None:
    with pytest.raises(EnergybenchError, match="E206"):
        load(ROOT / "suites" / "quick.toml", overrides=[text])


def test_a_pipe_is_no_suite_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.toml")
    with pytest.raises(EnergybenchError, match="E101"):
        load(tmp_path / "s.toml")
