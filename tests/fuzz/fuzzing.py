"""How the fuzz tests hunt: how many cases each is worth, hostile values, one seed that finds a failure again.

A case must end in an error with a code or in a right answer; never in a traceback, a hang or a false number. The fast
pass looks at a few hundred cases, the slow one at ten thousand, each run at others. Hypothesis prints the smallest
failing case and a blob; ENERGYBENCH_FUZZ_SEED=N runs the same cases again.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from energybench.errors import EnergybenchError

Case = TypeVar("Case")

CASES = {  # name: in the fast pass, in the slow pass
    "suites as text": (40, 1800),
    "suites as tables": (30, 1400),
    "settings": (20, 700),
    "records": (70, 2400),
    "folders": (8, 300),
    "records as bytes": (30, 900),
    "witnesses and run.json": (40, 1300),
    "traces": (50, 700),
    "command lines": (20, 500),
}
SLOW_TOTAL = 10_000
LONGEST_S = 5.0  # of the processor, for one case; most take milliseconds
SEED = int(os.environ.get("ENERGYBENCH_FUZZ_SEED") or random.SystemRandom().randrange(2**32))


def hunt(name: str, strategy: st.SearchStrategy[Case], check: Callable[[Case], None], *, slow: bool) -> None:
    """`check` on as many cases as the name is worth, counted."""
    quota, seen = CASES[name][slow], 0

    @seed(SEED)
    @settings(
        max_examples=quota, database=None, print_blob=True, deadline=None, derandomize=False,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def cases(case: Case) -> None:
        nonlocal seen
        seen += 1
        started, worked = time.monotonic(), time.process_time()
        note(f"ENERGYBENCH_FUZZ_SEED={SEED}")
        check(case)
        assert time.process_time() - worked < LONGEST_S, "a case took too long"
        assert time.monotonic() - started < 20 * LONGEST_S, "a case hung"

    cases()
    assert seen >= quota, f"{name}: {seen} of {quota} cases"


def told(error: EnergybenchError, rooms: str) -> None:
    """An error that a user can mend: a code of the right rooms, a sentence, nothing that moves a terminal."""
    assert error.problems
    for problem in error.problems:
        assert re.fullmatch(f"E[{rooms}][0-9][0-9]", problem.code), problem
        assert problem.message.strip(), problem
        harmless(str(problem))


def harmless(text: str) -> None:
    """Nothing in it moves a cursor, hides or turns what stands beside it."""
    found = {c for c in text if not c.isprintable()} - {"\n", "\u00a0"}
    assert not found, f"control characters in the output: {found!r}"


def finite(text: str) -> None:
    """No figure that is none."""
    assert not re.search(r"(?i)(?<![\w'\"])[-+−]?(nan|inf|infinity)(?!\w)|∞", text), text


# ── hostile values ────────────────────────────────────────────────────────────────────────────────────────────

RAW = ("1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1e-400", "9" * 400, "9" * 5000, '"\\ud800"', "01", "-",
       "[" * 300 + "]" * 300, '{"a":' * 40 + "1" + "}" * 40)  # fmt: skip


class Raw(str):
    """A piece of JSON that Python's own writer would not write."""

    __slots__ = ()


TEXTS = (
    "", " ", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "\x00", "\x1b[2J", "\u202egnp", "\n# head",
    "<script>alert(1)</script>", "[red]x[/red]", "[link](javascript:alert(1))", "![](http://x.invalid/y)", "a|b", "`b`",
    "=cmd|' /C calc'!A0", "@someone", "x" * 300, "x" * 3000, "%s%n", "{0}", "os:system", "__import__('os').system('x')",
    "é", "名", "baseline", "twin", "plain training", "control", "ok", "accuracy",
)  # fmt: skip
NUMBERS = (0, -0.0, -1, -3.0, 1, 2, 0.5, 1e-9, 1e-300, 5e-324, 1e12, 1e30, 1e300, -1e300, 2**31, 2**63, 2**64, 10**18,
           10**40, 3, 7, 10_000_000)  # fmt: skip
scalars = st.sampled_from([*NUMBERS, *TEXTS, True, False, None]) | st.floats(
    allow_nan=False, allow_infinity=False
)
hostile = (
    scalars
    | st.sampled_from([Raw(text) for text in RAW])
    | st.lists(scalars, max_size=3)
    | st.dictionaries(st.sampled_from([*TEXTS, "gpus", "name", "carbon", "tick_s"]), scalars, max_size=3)
)


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to everything in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (*at, key)
        yield from places(item, (*at, key))


def mutated(value: Any, way: tuple[str | int, ...], how: str, new: Any) -> Any:
    """A copy with one thing changed, taken out, doubled or renamed."""
    if len(way) > 1:
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[way[0]] = mutated(value[way[0]], way[1:], how, new)
        return copy
    key = way[0]
    if isinstance(value, dict):
        copy = dict(value)
        if how == "drop":
            del copy[key]
        elif how == "rename":
            copy[str(new)] = copy.pop(key)
        else:
            copy[key] = _changed(copy[key], how, new)
        return copy
    items = list(value)
    if how == "drop":
        del items[key]
    elif how == "double":
        items.insert(key, items[key])
    else:
        items[key] = _changed(items[key], how, new)
    return items


def _changed(old: Any, how: str, new: Any) -> Any:
    number = isinstance(old, (int, float)) and not isinstance(old, bool)
    if how == "negate" and number:
        return -old
    if how == "scale" and number:
        return old * 3
    if how == "kin":
        return new_of_its_kind(old, new)
    if how == "wrap":
        return [old]
    if how == "quote":
        return str(old)
    return new


def new_of_its_kind(old: Any, new: Any) -> Any:
    """What might well be let in: a number for a number, a text for a text."""
    chosen = zlib.crc32(repr(new).encode("utf-8", "surrogatepass"))
    if isinstance(old, bool) or old is None:
        return [True, False, None, 1.5, "x"][chosen % 5]
    if isinstance(old, int):
        return [0, 1, 2, 3, 5, 2**31, 10**6, 2**53][chosen % 8]
    if isinstance(old, float):
        return [0.0, -0.0, 1e-9, 0.5, 1.0, 3.7, 1e5, 1e11, 1e18, 1e-15, 1e36, -1.0, 1e100][chosen % 13]
    if isinstance(old, str):
        return TEXTS[chosen % len(TEXTS)]
    return new


HOWS = (
    "kin",
    "kin",
    "kin",
    "kin",
    "set",
    "set",
    "set",
    "drop",
    "rename",
    "double",
    "negate",
    "scale",
    "wrap",
    "quote",
)
change = st.tuples(st.integers(0, 2**20), st.sampled_from(HOWS), hostile)
mutations = st.tuples(change).map(list) | st.lists(change, min_size=1, max_size=3)


def mutate(value: Any, changes: list[tuple[int, str, Any]]) -> Any:
    for number, how, new in changes:
        ways = list(places(value))
        if not ways:
            break
        value = mutated(value, ways[number % len(ways)], how, new)
    return value


def as_json(value: Any) -> str:
    """JSON text; a Raw stands as it is written."""
    marks: list[str] = []

    def marked(item: Any) -> Any:
        if isinstance(item, Raw):
            marks.append(str(item))
            return f"@raw{len(marks) - 1}@"
        if isinstance(item, dict):
            return {str(key): marked(inner) for key, inner in item.items()}
        return [marked(inner) for inner in item] if isinstance(item, list) else item

    text = json.dumps(marked(value), ensure_ascii=False)
    return re.sub(r'"@raw(\d+)@"', lambda match: marks[int(match[1])], text)
