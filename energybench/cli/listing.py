"""`list` and `new`: what can be used by name, read without running it; and a first file of one's own."""

from __future__ import annotations

import ast
import contextlib
import keyword
import shutil
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import click

from energybench.common.errors import Problem, UsageError
from energybench.common.escaping import printable
from energybench.common.limits import SUITE_B, too_deep
from energybench.common.safe_read import list_folder, read_bytes
from energybench.common.shipped import shipped
from energybench.train.discovery import cards, sources

TEMPLATE = '''"""{name}: one sentence that says what it does.

Paper: ... Promises: ... Composes with: ...
"""

from __future__ import annotations

from dataclasses import dataclass

from energybench import Method


@dataclass
class {class_name}(Method):
    """every: train on each batch but every n-th one"""

    every: int = 2

    def __post_init__(self) -> None:
        if self.every < 2:
            raise ValueError(f"every is at least 2, not {{self.every}}")

    def setup(self, run):
        self.acted = False
        self._seen = self._trained = 0

    def batches(self, run, data, inner):
        for batch in inner(data):
            self._seen += 1
            if self._seen % self.every == 0:
                run.tally.mark(self)  # it acted: a batch is left out
                continue
            self._trained += 1
            yield batch

    def estimate(self, work):
        return work.trained(work.epochs * self._trained / self._seen) if self._seen else work
'''


def listing(here: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """{methods, suites, models, data}: each entry has a name, a summary and where it comes from."""
    methods = [{key: value for key, value in asdict(card).items() if key != "text"} for card in cards(here)]
    anywhere = {"origin": "torchvision", "summary": "$ENERGYBENCH_DATA, or torchvision's download"}
    return {
        "methods": methods,
        "suites": _suites(here or Path.cwd()),
        "models": [
            *_functions("models.py", "OWN"),
            *_functions("paper_models.py", "PAPER"),
            {
                "name": "<torchvision's>",
                "summary": "resnet18, vit_b_16, … any classifier by its name",
                "origin": "torchvision",
            },
        ],
        "data": [
            *_functions("datasets.py", "SHIPPED"),
            *({"name": name, **anywhere} for name in _table("datasets.py", "TORCHVISION")),
            {
                "name": "<a folder's>",
                "summary": "$ENERGYBENCH_DATA/<name>/{train,test}/<class>/*.png",
                "origin": "yours",
            },
        ],
    }


def print_listing(entries_by_kind: dict[str, list[dict[str, Any]]]) -> None:
    width = shutil.get_terminal_size((100, 24)).columns
    for kind, entries in entries_by_kind.items():
        click.echo(click.style(kind, bold=True))
        longest = max((len(entry["name"]) for entry in entries), default=0)
        for entry in entries:
            summary = printable(entry["summary"].removeprefix(f"{entry['name']}: "))
            room = max(20, width - longest - 6)
            text = summary if len(summary) <= room else summary[: room - 1].rsplit(" ", 1)[0] + " …"
            click.echo(f"  {printable(entry['name']):<{longest}}  {text}")
            if entry.get("parameters"):
                shown = ", ".join(f"{name} = {default}" for name, _, default in entry["parameters"])
                click.echo(click.style(f"  {'':<{longest}}  {printable(shown)}", dim=True))


def write_method(name: str, here: Path) -> Path:
    """methods/NAME.py from a template that trains. Raises UsageError E305 for a name it cannot have."""
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise UsageError(
            Problem("E305", f"'{name}' cannot be a method's name", hint="use letters, digits and _, as my_method")
        )
    if name in sources(here):
        raise UsageError(Problem("E305", f"there is a method '{name}' already: {sources(here)[name].path}"))
    path = here / "methods" / f"{name}.py"
    class_name = "".join(part.capitalize() for part in name.split("_") if part)
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("x", encoding="utf-8") as file:  # never over what stands there, or where a link leads to
            file.write(TEMPLATE.format(name=name, class_name=class_name))
    except OSError as error:
        hint = "type it in another folder"
        raise UsageError(Problem("E605", f"cannot write there: {error.strerror}", str(path), hint)) from None
    return path.relative_to(here)


def _suites(here: Path) -> list[dict[str, Any]]:
    suites: dict[str, dict[str, Any]] = {}
    for origin, folder in (("./suites", here / "suites"), ("shipped", shipped("suites"))):
        for path in list_folder(folder, ".toml"):
            try:
                text = read_bytes(path, SUITE_B).decode("utf-8")
                about = _about(text)
            except (ValueError, OSError, RecursionError) as error:
                about = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            suites.setdefault(path.stem, {"name": path.stem, "summary": about, "origin": origin, "path": str(path)})
    return list(suites.values())


def _about(text: str) -> str:
    """Of a suite's first lines, before its first table: reading whole suites would take a third of the listing."""
    import tomllib

    head = text.partition("\n[")[0]
    if not too_deep(head):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            return str(tomllib.loads(head).get("about", ""))
    return "" if too_deep(text) else str(tomllib.loads(text).get("about", ""))


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((Path(__file__).parents[1] / "workloads" / file).read_text(encoding="utf-8"))


def _table(file: str, name: str) -> list[str]:
    """The keys of a module's table of names, read as text: importing it would import torch."""
    for node in _tree(file).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(node.value, ast.Dict):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if isinstance(target, ast.Name) and target.id == name:
            return [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
    return []


def _functions(file: str, table: str) -> list[dict[str, Any]]:
    texts = {node.name: ast.get_docstring(node) or "" for node in _tree(file).body if isinstance(node, ast.FunctionDef)}
    return [
        {"name": name, "summary": " ".join(texts.get(name, "").split("\n\n")[0].split()), "origin": "shipped"}
        for name in _table(file, table)
    ]
