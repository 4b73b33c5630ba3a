"""How the fuzz tests hunt: how many cases each is worth, hostile values, one seed, and what is printed of a failure.

A case must end in an error with a code or in a right answer; never in a traceback, a hang or a false number.
`make test` looks at a few hundred cases, always the same; `make soak` at ten thousand for each file, each time at
others. Where one fails, the smallest that fails is printed as a test to add to test_found.py. No clock decides: what a
case may cost is counted in calls (see `bounded`); only `make soak` also looks at the processor's time, for work that
is done inside one call.

    ENERGYBENCH_FUZZ_SEED=N     other cases than those of `make test`
    ENERGYBENCH_FUZZ_CASES=N    so many for each file, instead of the few
"""

from __future__ import annotations

import inspect
import json
import os
import pprint
import re
import signal
import sys
import time
import types
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from energybench.common.errors import EnergybenchError

Case = TypeVar("Case")
Way = tuple[str | int, ...]
Step = tuple[Way, str, Any]  # where, how ("set", "drop", "double", "rename"), and to what

CASES = {  # name: how many in `make test`, and its share of its file's cases in `make soak`
    "suites as text": (40, 0.45),
    "suites as tables": (30, 0.35),
    "settings": (20, 0.2),
    "records": (70, 0.5),
    "witnesses and run.json": (40, 0.3),
    "records as bytes": (30, 0.2),
    "traces": (50, 1.0),
    "command lines": (30, 0.75),
    "folders": (12, 0.25),
    "plans": (12, 1.0),
    "windows": (40, 0.5),
    "golden counts": (40, 0.5),
}
SEED = int(os.environ.get("ENERGYBENCH_FUZZ_SEED") or 20261121)
MANY = int(os.environ.get("ENERGYBENCH_FUZZ_CASES") or 0)
MOST_CALLS = 20_000_000  # of one case: a page with all its figures takes a few million, most cases some thousands
LONGEST_S = 30.0  # of the processor, in `make soak`: with every call counted a page takes three
HUNG_S = 300  # nobody waits longer for one case; nothing is measured by it
FOUND = "tests/fuzz/test_found.py"


class TooMuch(BaseException):
    """More work than the case can be worth, or no end of it. No code that is tested catches it."""


@contextmanager
def bounded(calls: int = MOST_CALLS) -> Iterator[None]:
    """At most so many calls of functions, Python's and C's, are made inside: a count that no load of the machine moves.

    What takes the square of its input makes millions of them; what never ends in one is ended by an alarm.
    Raises TooMuch.
    """
    left = calls

    def count(frame: types.FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event in ("call", "c_call"):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise TooMuch(f"more than {calls:,} calls")

    def hung(number: int, frame: types.FrameType | None) -> None:
        raise TooMuch(f"no end after {HUNG_S} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HUNG_S)
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def quota(name: str) -> int:
    few, share = CASES[name]
    return round(MANY * share) if MANY else few


def hunt(
    name: str,
    strategy: st.SearchStrategy[Case],
    check: Callable[..., None],
    plain: Callable[[Case], tuple[Any, ...]] = lambda case: (case,),
    **fixtures: Any,
) -> None:
    """`check` on as many cases as the name is worth, counted.

    plain:    what is drawn → the literal arguments of `check`, such that they can stand in a test by themselves
    fixtures: its first arguments, by the name of their fixture; what they hold is the same for all cases
    """
    seen, last = 0, tuple[Any, ...]()

    @seed(SEED)
    @settings(
        max_examples=quota(name),
        database=None,
        print_blob=False,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(strategy)
    def cases(case: Case) -> None:
        nonlocal seen, last
        seen += 1
        last = arguments = plain(case)
        before = time.process_time()
        with bounded():
            check(*fixtures.values(), *arguments)
        if MANY:
            assert time.process_time() - before < LONGEST_S, "more work than the case can be worth, in few calls"

    try:
        cases()
    except BaseException as error:
        error.test_to_add = test_to_add(name, check, last, fixtures)  # type: ignore[attr-defined]
        raise
    assert seen >= quota(name), f"{name}: {seen} of {quota(name)} cases"


def test_to_add(name: str, check: Callable[..., None], arguments: tuple[Any, ...], fixtures: dict[str, Any]) -> str:
    """A whole test function that fails as the case did, and where it belongs. Shown by conftest.py."""
    given_first = "".join(f"{fixture}, " for fixture in fixtures)
    parameters = ", ".join(f"{fixture}: {_type(value)}" for fixture, value in fixtures.items())
    literal = ",\n".join(_indented(pprint.pformat(each, width=100, sort_dicts=False)) for each in arguments)
    lines = [
        f"# Add it to {FOUND}, under a name that says what is wrong. The same cases again: {again()}",
        f"from {Path(inspect.getfile(check)).stem} import {check.__name__}",
        "",
        "",
        f"def test_{re.sub(r'[^a-z]+', '_', name)}_of_seed_{SEED}({parameters}) -> None:",
        f"    {check.__name__}(",
        *([f"        {given_first.strip()}"] if given_first else []),
        f"{literal},",
        "    )",
    ]
    return "\n".join(lines)


def again() -> str:
    """What runs the same cases once more."""
    return f"make soak SEED={SEED} CASES={MANY}" if MANY else f"ENERGYBENCH_FUZZ_SEED={SEED} make test"


test_to_add.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for one


def _type(value: Any) -> str:
    return "Path" if isinstance(value, Path) else "Any"


def _indented(text: str) -> str:
    return "\n".join(f"        {line}" for line in text.split("\n"))


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

RAW = (
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e-400",
    "9" * 400,
    "9" * 5000,
    '"\\ud800"',
    "01",
    "-",
    "[" * 300 + "]" * 300,
    '{"a":' * 40 + "1" + "}" * 40,
)


class Raw(str):
    """A piece of JSON that Python's own writer would not write."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Raw({super().__repr__()})"


TEXTS = (
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "\x00",
    "\x1b[2J",
    "\u202egnp",
    "\n# head",
    "<script>alert(1)</script>",
    "[red]x[/red]",
    "[link](javascript:alert(1))",
    "![](http://x.invalid/y)",
    "a|b",
    "`b`",
    "=cmd|' /C calc'!A0",
    "@someone",
    "x" * 300,
    "x" * 3000,
    "%s%n",
    "{0}",
    "os:system",
    "__import__('os').system('x')",
    "é",
    "名",
    "baseline",
    "twin",
    "plain training",
    "control",
    "ok",
    "accuracy",
)
NUMBERS = (
    0,
    -0.0,
    -1,
    -3.0,
    1,
    2,
    0.5,
    1e-9,
    1e-300,
    5e-324,
    1e12,
    1e30,
    1e300,
    -1e300,
    2**31,
    2**63,
    2**64,
    10**18,
    10**40,
    3,
    7,
    10_000_000,
)
NAMES = (
    "gpus",
    "name",
    "carbon",
    "tick_s",
    "period_s",
    "energy_j",
    "power_w",
    "mass_kg",
    "plain_flop",
    "size_b",
    "clock_mhz",
    "hot_c",
)
scalars = st.sampled_from([*NUMBERS, *TEXTS, True, False, None]) | st.floats(allow_nan=False, allow_infinity=False)
hostile = (
    scalars
    | st.sampled_from([Raw(text) for text in RAW])
    | st.lists(scalars, max_size=3)
    | st.dictionaries(st.sampled_from([*TEXTS, *NAMES]), scalars, max_size=3)
)


def places(value: Any, at: Way = ()) -> Iterator[Way]:
    """The way to everything in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (*at, key)
        yield from places(item, (*at, key))


def stepped(value: Any, step: Step) -> Any:
    """A copy with one thing set, taken out, doubled or renamed."""
    way, how, new = step
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = way[0]
    if len(way) > 1:
        copy[key] = stepped(value[key], (way[1:], how, new))
    elif how == "drop":
        del copy[key]
    elif how == "rename":
        copy[new] = copy.pop(key)
    elif how == "double":
        copy.insert(key, copy[key])
    else:
        copy[key] = new
    return copy


def changed(value: Any, steps: list[Step]) -> Any:
    for step in steps:
        value = stepped(value, step)
    return value


def held_at(value: Any, way: Way) -> Any:
    for key in way:
        value = value[key]
    return value


def steps_of(value: Any, drawn: list[tuple[int, str, Any]]) -> list[Step]:
    """What was drawn as numbers, told as places and values: it can be read, and stays when the drawing changes."""
    steps: list[Step] = []
    for number, how, new in drawn:
        ways = list(places(value))
        if not ways:
            break
        way = ways[number % len(ways)]
        named = isinstance(held_at(value, way[:-1]), dict)
        step: Step
        if how == "drop":
            step = (way, "drop", None)
        elif how == "rename" and named:
            step = (way, "rename", str(new))
        elif how == "double" and not named:
            step = (way, "double", None)
        else:
            step = (way, "set", _changed(held_at(value, way), how, new))
        steps.append(step)
        value = stepped(value, step)
    return steps


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


HOWS = ("kin", "kin", "kin", "kin", "set", "set", "set", "drop", "rename", "double", "negate", "scale", "wrap", "quote")
change = st.tuples(st.integers(0, 2**20), st.sampled_from(HOWS), hostile)
mutations = st.tuples(change).map(list) | st.lists(change, min_size=1, max_size=3)


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
