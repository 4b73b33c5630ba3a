"""What may be caught, by class: the family of the problems, however and wherever the error is raised."""

from __future__ import annotations

import ast
import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

import energybench
from energybench import errors
from energybench.cli.paired_commands import CommandFailed
from energybench.common.errors import FAMILIES, EnergybenchError, Problem
from energybench.papers.arguments import BadClaim
from energybench.suite.suite import InvalidSuite

PACKAGE = Path(energybench.__file__).parent
SUITE = """\
schema = 1
suite = "s"
[[workload]]
name = "w"
model = { use = "cnn" }
data = { use = "digits", batch = 16, subset = 32 }
train = { epochs = 1, lr = 0.1 }
[[method]]
use = "dropout"
"""


# ── through what people call ──────────────────────────────────────────────────────────────────────────────────


def run(folder: Path, old: str = "", new: str = "") -> None:
    (folder / "s.toml").write_text(SUITE.replace(old, new) if old else SUITE)
    energybench.run(folder / "s.toml", out=folder / "run", quiet=True)


def measure(folder: Path) -> None:
    with energybench.measure("fit", energy="require"):
        raise AssertionError("the machine of the tests has no sensor")


CALLS: dict[str, tuple[Callable[[Path], Any], type[EnergybenchError], str]] = {
    "a file that is not there": (lambda folder: energybench.run(folder / "none.toml"), errors.FileError, "E101"),
    "no TOML": (lambda folder: run(folder, 'suite = "s"', "suite = s"), errors.FileError, "E102"),
    "an unknown key": (lambda folder: run(folder, "lr =", "rate ="), errors.SuiteError, "E20"),
    "an unknown method": (lambda folder: run(folder, '"dropout"', '"unheard-of"'), errors.MethodError, "E301"),
    "a parameter that it has not": (
        lambda folder: run(folder, '"dropout"', '"dropout"\nq = 1'),
        errors.MethodError,
        "E30",
    ),
    "an unknown model": (lambda folder: run(folder, '"cnn"', '"unheard-of"'), errors.WorkloadError, "E401"),
    "no sensor, for a window": (measure, errors.CannotMeasure, "E501"),
    "no sensor, for a run": (
        lambda folder: run(folder, "[[workload]]", '[measure]\nenergy = "require"\n[[workload]]'),
        errors.CannotMeasure,
        "E501",
    ),
    "an unknown meter": (
        lambda folder: run(folder, "[[workload]]", '[measure]\nmeters = ["unheard-of"]\n[[workload]]'),
        errors.MeteringError,
        "E503",
    ),
    "no run": (lambda folder: energybench.load(folder), errors.RunError, "E601"),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_error_of_each_family_is_caught_by_its_class_and_by_no_other(name: str, tmp_path: Path) -> None:
    call, family, code = CALLS[name]
    with pytest.raises(family) as caught:
        call(tmp_path)
    assert all(problem.code.startswith(code) for problem in caught.value.problems)
    others = [each for each in FAMILIES.values() if not issubclass(family, each)]
    assert not isinstance(caught.value, tuple(others))
    assert isinstance(caught.value, errors.UsageError) != isinstance(caught.value, errors.CannotMeasure)


def test_mistakes_of_several_families_are_of_none_of_them(tmp_path: Path) -> None:
    text = SUITE.replace('"dropout"', '"unheard-of"').replace('"cnn"', '"unheard-of"')
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(errors.UsageError) as caught:
        energybench.run(tmp_path / "s.toml")
    assert {problem.code[:2] for problem in caught.value.problems} == {"E3", "E4"}
    assert type(caught.value) is errors.UsageError


def test_a_suite_with_a_mistake_of_its_own_is_a_suite_error_whatever_else_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(errors.SuiteError) as caught:
        run(tmp_path, 'lr = 0.1 }\n[[method]]\nuse = "dropout"', 'lr = 0.1, rate = 1 }\n[[method]]\nuse = "unheard-of"')
    assert {problem.code[:2] for problem in caught.value.problems} == {"E2", "E3"}


# ── whatever a site raises ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("called", [EnergybenchError, errors.UsageError, InvalidSuite, CommandFailed])
@pytest.mark.parametrize("start", FAMILIES)
def test_any_class_gives_the_family_of_its_problems_and_keeps_its_own_exit_code(
    start: str, called: type[EnergybenchError]
) -> None:
    error = called([Problem(f"{start}07", "one"), Problem(f"{start}08", "two")])
    assert isinstance(error, called)
    assert isinstance(error, FAMILIES[start])
    assert error.exit_code == called.exit_code
    assert [problem.message for problem in error.problems] == ["one", "two"]
    assert str(error) == f"error[{start}07]: one\nerror[{start}08]: two"


@pytest.mark.parametrize(("one", "other"), list(combinations(FAMILIES, 2)))
def test_two_families_give_the_class_that_was_called(one: str, other: str) -> None:
    for called in (EnergybenchError, errors.UsageError, errors.SuiteError):
        assert type(called([Problem(f"{one}01", ""), Problem(f"{other}01", "")])) is called


def test_no_problem_and_a_code_of_no_family_give_it_too() -> None:
    assert type(EnergybenchError([])) is EnergybenchError
    assert type(errors.UsageError(Problem("X1", ""))) is errors.UsageError


def test_problems_may_come_from_a_generator() -> None:
    error = errors.UsageError(Problem("E301", name) for name in "ab")
    assert isinstance(error, errors.MethodError)
    assert [problem.message for problem in error.problems] == ["a", "b"]


@pytest.mark.parametrize(
    "error",
    [
        errors.UsageError(Problem("E301", "m", "s.toml:1:2", "h")),
        errors.UsageError([Problem("E301", ""), Problem("E401", "")]),
        errors.SuiteError(Problem("E306", "")),
        InvalidSuite(Problem("E201", "")),
        InvalidSuite(Problem("E306", "")),
        EnergybenchError(Problem("E403", "")),
        errors.CannotMeasure(Problem("E501", "")),
        errors.CannotWrite.of(OSError(28, "No space left"), "a/b"),
        CommandFailed(Problem("E640", "")),
        BadClaim("no number", "write one"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.problems[0].code}",
)
def test_an_error_crosses_a_process_border_with_its_class(error: EnergybenchError) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        arrived = pickle.loads(pickle.dumps(error, protocol))
        assert type(arrived) is type(error)
        assert (arrived.problems, arrived.exit_code, str(arrived)) == (error.problems, error.exit_code, str(error))
    assert type(copy.copy(error)) is type(error)


def test_a_trace_names_the_family() -> None:
    code = (
        "import energybench; raise energybench.errors.UsageError(energybench.errors.Problem('E301', 'no such method'))"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1].endswith("MethodError: error[E301]: no such method")
    assert "Warning" not in ran.stderr


# ── the tree ──────────────────────────────────────────────────────────────────────────────────────────────────


def drawn(text: str) -> dict[str, tuple[str, str]]:
    """class → (what it is drawn below, its codes)"""
    found: dict[str, tuple[str, str]] = {}
    above: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"((?:[│ ]  )*)([├└]─ )?([A-Z]\w+Error|Cannot\w+)(?: +(E\d(?:xx|\d\d)))?(?: |$)", line):
            depth = len(match[1] + (match[2] or "")) // 3
            if depth or match[3] == "EnergybenchError":
                above[depth:] = [match[3]]
                found[match[3]] = (above[depth - 1] if depth else "", match[4] or "")
    return found


@pytest.mark.parametrize("place", ["errors.py", "common/errors.py", "../docs/python.md"])
def test_the_tree_that_is_drawn_is_the_tree(place: str) -> None:
    tree = drawn((PACKAGE / place).read_text(encoding="utf-8"))
    assert set(tree) | {"Problem"} == set(errors.__all__)
    for name, (above, codes) in tree.items():
        kind = getattr(errors, name)
        assert issubclass(kind, getattr(errors, above) if above else Exception)
        if codes.endswith("xx"):
            assert FAMILIES[codes[:2]] is kind
        elif codes:
            assert issubclass(kind, FAMILIES[codes[:2]])
    assert len(list(pairwise(tree))) == len(FAMILIES) + 3


def test_every_code_of_energybench_has_a_family() -> None:
    codes = {
        node.value
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"E\d{3}", node.value)
    }
    assert {code[:2] for code in codes} == set(FAMILIES)
