"""`list`: what can be used by name, read without running it."""

from __future__ import annotations

import contextlib
import shutil
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import click

from energybench.common.escaping import printable
from energybench.common.limits import SUITE_B, too_deep
from energybench.common.remembered import Remembered
from energybench.common.safe_read import list_folder, read_bytes
from energybench.common.shipped import shipped
from energybench.train import discovery, parameter_schema
from energybench.train.discovery import Source, card, sources
from energybench.workloads import catalogue

READERS = (__file__, catalogue.__file__, discovery.__file__, parameter_schema.__file__)
KINDS = ("methods", "suites", "tasks", "models", "data")


def listing(here: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """{methods, suites, tasks, models, data}: each entry has a name, a summary and where it comes from."""
    of_torchvision = "resnet18, vit_b_16, … any classifier by its name"
    own = "a folder of images: {train,test}/<class>/*.png, or <class>/*.png with split = 0.2"
    there = "$ENERGYBENCH_DATA/<name>/{train,test}/<class>/*.png"
    remembered = Remembered("listing", READERS)
    found = {
        "methods": [_card(source, remembered) for _, source in sorted(sources(here).items())],
        "suites": _suites(here or Path.cwd(), remembered),
        "tasks": [
            *map(_named, [*catalogue.summaries("task", remembered), *catalogue.offered("task")]),
            {"name": "<file.py:Class>", "summary": "a task of your own: energybench new task NAME", "origin": "yours"},
        ],
        "models": [
            *map(_named, [*catalogue.summaries("model", remembered), *catalogue.offered("model")]),
            {"name": "<torchvision's>", "summary": of_torchvision, "origin": "torchvision"},
        ],
        "data": [
            *map(_named, [*catalogue.summaries("data", remembered), *catalogue.offered("data")]),
            {"name": "<a folder's>", "summary": there, "origin": "yours"},
            {"name": "./<folder>", "summary": own, "origin": "yours"},
        ],
    }
    remembered.save()
    return found


def _card(source: Source, remembered: Remembered) -> dict[str, Any]:
    """What a listing has of a method's card."""

    def read() -> dict[str, Any]:
        told = card(source)
        return {"summary": told.summary, "parameters": told.parameters}

    key = f"method {source.path}:{source.class_name or ''}"
    said = read() if source.problem else remembered.get(key, source.path, read)
    entry = {"name": source.name, "origin": source.origin, "path": str(source.path), **said}
    return entry | ({"package": source.package} if source.package else {})


def _named(named: catalogue.Named) -> dict[str, Any]:
    entry = {"name": named.name, "summary": named.summary, "origin": named.origin}
    more = {"package": named.package, "needs": named.needs, "problem": named.problem}
    return entry | {key: value for key, value in more.items() if value}


def print_listing(entries_by_kind: dict[str, list[dict[str, Any]]]) -> None:
    width = shutil.get_terminal_size((100, 24)).columns
    for kind, entries in entries_by_kind.items():
        click.echo(click.style(kind, bold=True))
        longest = max((len(entry["name"]) for entry in entries), default=0)
        longest = min(longest, max(10, width - 26))  # a longer name has a line of its own
        for entry in entries:
            summary = printable(_shown(entry))
            room = max(20, width - longest - 6)
            text = summary if len(summary) <= room else summary[: room - 1].rsplit(" ", 1)[0] + " …"
            name = printable(entry["name"])
            if len(name) > longest:
                click.echo(f"  {name}")
                name = ""
            click.echo(f"  {name:<{longest}}  {text}")
            if entry.get("parameters"):
                shown = ", ".join(f"{name} = {default}" for name, _, default in entry["parameters"])
                for line in textwrap.wrap(printable(shown), room, break_long_words=False, break_on_hyphens=False):
                    click.echo(click.style(f"  {'':<{longest}}  {line}", dim=True))


def _shown(entry: dict[str, Any]) -> str:
    """Its summary, behind what is to be known first: which package it is of, or what it needs that is not here."""
    summary = str(entry["summary"]).removeprefix(f"{entry['name']}: ")
    problem = entry.get("problem")
    if package := entry.get("package"):
        return f"[{package}] {f'cannot be used: {problem}' if problem else summary}"
    return f"(pip install 'energybench[{entry['needs']}]') {summary}" if problem else summary


def _suites(here: Path, remembered: Remembered) -> list[dict[str, Any]]:
    suites: dict[str, dict[str, Any]] = {}
    for origin, folder in (("./suites", here / "suites"), ("shipped", shipped("suites"))):
        for path in list_folder(folder, ".toml"):
            if path.stem not in suites:
                about = remembered.get(f"suite {path}", path, partial(_suite_about, path))
                suites[path.stem] = {"name": path.stem, "summary": about, "origin": origin, "path": str(path)}
    return list(suites.values())


def _suite_about(path: Path) -> str:
    try:
        return _about(read_bytes(path, SUITE_B).decode("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _about(text: str) -> str:
    """Of a suite's first lines, before its first table: reading whole suites would take a third of the listing."""
    import tomllib

    head = text.partition("\n[")[0]
    if not too_deep(head):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            return str(tomllib.loads(head).get("about", ""))
    return "" if too_deep(text) else str(tomllib.loads(text).get("about", ""))
