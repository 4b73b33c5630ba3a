"""`list NAME`: everything about one method, suite, task, model or data set, read without running it."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from energybench.cli.listing import KINDS, listing
from energybench.common.data_folder import names
from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.escaping import printable
from energybench.common.names import known_as
from energybench.train.discovery import MethodCard, cards
from energybench.train.parameter_schema import MISSING, Parameter
from energybench.workloads import catalogue

NEEDS = {
    "forward": "a forward pass of its own in every step",
    "backward": "a backward pass in every step",
    "per_sample_loss": "a task that has a loss for each sample",
}
LONGEST_COMMENT = 50
SENTENCES = {"needs": "needs", "replaces": "replaces the hooks", "swaps": "swaps layers of the kinds"}


def describe(name: str) -> dict[str, Any]:
    """Everything about it, as plain data: kind, name, origin, summary, text, parameters, example.

    Raises UsageError E615 for a name that nothing has.
    """
    methods = {card.name: card for card in cards()}
    tasks, models, data = (catalogue.by_name(kind) for kind in ("task", "model", "data"))
    torchvision = catalogue.torchvision_models()
    suites = {entry["name"]: entry for entry in listing()["suites"]}
    every = [*methods, *suites, *tasks, *models, *data, *torchvision, *catalogue.data_set_names(), *names()]
    wanted = known_as(name, every)
    if wanted in methods:
        return _method(methods[wanted]) | ({"also": f"energybench check {wanted}"} if wanted in suites else {})
    if wanted in suites:
        entry = suites[wanted]
        return {"kind": "suite", **entry, "text": "", "example": f"energybench check {wanted}"}
    if wanted in tasks:
        return _task(tasks[wanted])
    if wanted in models:
        return _model(models[wanted])
    if wanted in torchvision:
        return _torchvision(wanted, torchvision[wanted])
    if wanted in every:
        return _data(wanted, data.get(wanted))
    close = nearest(name, {*KINDS, *every})
    close = f"{close} all there is: " if close.startswith("did you mean") else ""  # and not a list of some sixty
    raise UsageError(Problem("E615", f"nothing is called '{name}'", hint=f"{close}energybench list"))


def _method(card: MethodCard) -> dict[str, Any]:
    return {
        "kind": "method",
        "name": card.name,
        "origin": card.origin,
        "path": card.path,
        "summary": card.summary,
        "text": card.text,
        "paper": card.paper,
        **({"package": card.package} if card.package else {}),
        "parameters": [_parameter(each) for each in card.details],
        "declared": {
            key: sorted(value) if isinstance(value, (set, frozenset)) else value
            for key, value in card.declared.items()
            if value and key != "example"
        },
        "example": example(card),
    }


def example(card: MethodCard) -> str:
    """A [[method]] with every parameter that has a value to show, as a suite holds it."""
    given = card.declared.get("example") or {}
    lines = [("use", json.dumps(card.name), "")]
    for each in card.details:
        if each.value is not MISSING or each.name in given:
            value = given[each.name] if each.value is MISSING else each.value
            lines.append((each.name, _toml(value), each.allowed if len(each.allowed) <= LONGEST_COMMENT else ""))
    return _table("[[method]]", lines)


def _task(task: catalogue.Named) -> dict[str, Any]:
    values = [(each.name, _toml(each.value)) for each in task.parameters if each.value is not MISSING]
    given = "".join(f", {key} = {value}" for key, value in values)
    example = f'task = {{ use = "{task.name}"{given} }}' if given else f'task = "{task.name}"'
    return {**_said("task", task), "parameters": [_parameter(each) for each in task.parameters], "example": example}


def _model(model: catalogue.Named) -> dict[str, Any]:
    lines = [("use", json.dumps(model.name), "")]
    lines += [(each.name, _toml(each.value), each.allowed) for each in model.parameters if each.value is not MISSING]
    example = f"model = {{ {', '.join(f'{key} = {value}' for key, value, _ in lines)} }}"
    return {**_said("model", model), "parameters": [_parameter(each) for each in model.parameters], "example": example}


def _said(kind: str, named: catalogue.Named) -> dict[str, Any]:
    """What a thing says of itself, and where it comes from."""
    facts = {"kind": kind, "name": named.name, "origin": named.origin, "summary": named.summary, "text": named.text}
    if named.problem:
        facts["text"] = f"Cannot be used here: {named.problem}.\n\n{named.text}"
    return facts | ({"package": named.package} if named.package else {})


def _torchvision(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    stem = ', stem = "small"' if name.startswith(("resnet", "wide_resnet", "resnext")) else ""
    return {
        "kind": "model",
        "name": name,
        "origin": "torchvision",
        "summary": "torchvision's classifier, untrained",
        "text": f"Its own arguments can be set: {', '.join(arguments)}." if arguments else "",
        "example": f'model = {{ use = "{name}"{stem} }}',
    }


def _data(name: str, known: catalogue.Named | None) -> dict[str, Any]:
    there = "$ENERGYBENCH_DATA"
    known = known or catalogue.Named(name, f"{there}/{name}", there)
    values = ", ".join(f"{each.name} = {_toml(each.value)}" for each in known.parameters if each.value is not MISSING)
    options = f", options = {{ {values} }}" if values else ""
    facts = _said("data", known) | {"example": f'data = {{ use = "{name}", batch = 64{options} }}'}
    return facts | ({"parameters": [_parameter(each) for each in known.parameters]} if known.parameters else {})


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "type": parameter.type,
        "allowed": parameter.allowed,
        "required": parameter.required,
        "default": parameter.shown_default,
        "about": parameter.about,
        "schema": parameter.schema,
    }


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _table(head: str, lines: Sequence[tuple[str, str, str]]) -> str:
    """Lines of `key = value  # comment`, aligned."""
    wide = max(len(key) for key, _, _ in lines)
    wider = max(len(value) for _, value, _ in lines)
    rows = (f"{key:<{wide}} = {value:<{wider}}{f'  # {said}' if said else ''}".rstrip() for key, value, said in lines)
    return "\n".join([head, *rows])


# ── on a terminal ─────────────────────────────────────────────────────────────────────────────────────────────────────


def print_described(facts: dict[str, Any]) -> None:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    for line in _lines(facts, max(width, 40)):
        click.echo(line)


def _lines(facts: dict[str, Any], width: int) -> Iterator[str]:
    place = facts.get("path")
    origin = f"{facts['origin']} of {facts['package']}" if facts.get("package") else facts["origin"]
    where = f"{origin}, {_short(place)}" if place else origin
    yield click.style(printable(facts["name"]), bold=True) + printable(f"  {facts['kind']}, {where}")
    text = facts["text"] or facts["summary"]
    for paragraph in printable_lines(text.removeprefix(f"{facts['name']}: ")):
        if _lists_parameters(paragraph, facts):
            continue  # they stand below, with their bounds
        yield ""
        yield from _wrapped(paragraph, width)
    if facts.get("parameters"):
        yield ""
        yield click.style("parameters", bold=True)
        for each in facts["parameters"]:
            default = f"; default: {each['default']}" if each["default"] else ""
            need = " (required)" if each["required"] else ""
            yield from _hanging(f"  {each['name']}{need}: {each['allowed']}{default}", width, 6)
            if each["about"]:
                yield from _hanging(f"      {each['about']}", width, 6)
    for key, words in (facts.get("declared") or {}).items():
        if key in SENTENCES:
            yield ""
            shown = (NEEDS.get(word, word) for word in words) if key == "needs" else words
            yield from _hanging(f"{SENTENCES[key]} {', '.join(shown)}", width, 2)
    if facts["kind"] == "method" and not (facts["declared"] or {}).get("needs"):
        yield ""
        yield "needs nothing that a workload could lack"
    yield ""
    yield click.style("example", bold=True)
    for line in facts["example"].splitlines():
        yield f"  {printable(line)}"
    if also := facts.get("also"):
        yield ""
        yield f"a suite of the same name is shipped too: {also}"


def printable_lines(text: str) -> list[list[str]]:
    """Paragraphs, each as its lines."""
    blocks = text.strip().split("\n\n")
    return [[printable(line) for line in block.splitlines()] for block in blocks]


def _lists_parameters(paragraph: Sequence[str], facts: dict[str, Any]) -> bool:
    """Whether it is a docstring's list, "name: ..." or "name, other: ...", of parameters that say so below too."""
    head, colon, _ = paragraph[0].partition(":") if paragraph else ("", "", "")
    known = {each["name"] for each in facts.get("parameters") or () if each["about"]}
    return bool(colon) and {name.strip() for name in head.split(",")} <= known


def _wrapped(paragraph: list[str], width: int) -> Iterator[str]:
    """Prose is filled again; what is indented or a list stays as it is."""
    if any(line.startswith((" ", "\t")) for line in paragraph):
        yield from paragraph
    else:
        yield from textwrap.wrap(" ".join(paragraph), width, break_long_words=False, break_on_hyphens=False)


def _hanging(text: str, width: int, indent: int) -> Iterator[str]:
    filled = textwrap.wrap(
        printable(text), width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    lead = text[: len(text) - len(text.lstrip())]
    yield from (line if number or line.startswith(lead) else lead + line for number, line in enumerate(filled))


def _short(path: str) -> str:
    """From here where it is below, else whole."""
    place = Path(path)
    return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else path
