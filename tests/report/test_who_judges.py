"""verdict/ judges and prints nothing; report/ prints what was judged and decides nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = Path(__file__).parents[2] / "energybench"
JUDGES, PRINTERS = sorted((ROOMS / "verdict").glob("*.py")), sorted((ROOMS / "report").glob("*.py"))
WHAT_PRINTS = {"rich", "jinja2", "markupsafe", "matplotlib", "click"}
STYLES = {"bold", "dim", "red", "green", "yellow", "strike", "underline", "italic"}
WHAT_DECIDES = {  # of stats/paired.py
    *("verdict", "verdict_at_equal_quality", "detectable", "blocks_needed", "quality_blocks_needed", "pool"),
    *("FEWEST_BLOCKS", "CLAIM", "QUALITY", "POWER"),
}
WHO_CHECKS = ("energybench.verdict.flags", "energybench.verdict.checks", "energybench.verdict.workload")


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[str]:
    """Absolute names of whatever a file imports, deferred imports and those for type checkers too."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strings(file: Path) -> Iterator[str]:
    yield from (n.value for n in ast.walk(tree(file)) if isinstance(n, ast.Constant) and isinstance(n.value, str))


@pytest.mark.parametrize("file", JUDGES, ids=lambda file: file.stem)
def test_who_judges_imports_nothing_that_prints_and_names_no_style(file: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(file)} & WHAT_PRINTS
    styled = [text for text in strings(file) if text.split() and set(text.split()) <= STYLES]
    assert not styled
    calls = [n.func for n in ast.walk(tree(file)) if isinstance(n, ast.Call)]
    assert "print" not in {func.id for func in calls if isinstance(func, ast.Name)}


@pytest.mark.parametrize("file", PRINTERS, ids=lambda file: file.stem)
def test_who_prints_decides_no_verdict_and_raises_no_flag(file: Path) -> None:
    names = set(imports(file))
    assert not [name for name in names if name.startswith(WHO_CHECKS)]
    decided = {name.removeprefix("energybench.stats.paired.") for name in names}
    decided |= {
        node.attr
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "paired"
    }
    assert not decided & WHAT_DECIDES


@pytest.mark.parametrize("file", PRINTERS, ids=lambda file: file.stem)
def test_which_trials_may_be_used_is_asked_of_the_examination_alone(file: Path) -> None:
    """Else a page would examine the trials again, and could forget to."""
    asked = {
        node.attr
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pairing"
    }
    assert not asked & {"unusable", "partners_of", "pairs"}
