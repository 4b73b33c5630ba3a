"""One Markdown page of all parts' JSON: what was found first, then every table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu.results import read_all

PAGE = "README.md"
MARKS = {True: "yes", False: "**no**", None: "not seen"}


def write_page(folder: Path) -> Path:
    """The page of a folder, made again from the files that are there."""
    path = folder / PAGE
    path.write_text(page(read_all(folder)), encoding="utf-8")
    return path


def page(parts: Sequence[dict[str, Any]]) -> str:
    lines = [f"# {_title(parts)}", ""]
    if any(part["fake"] for part in parts):
        lines += [f"> **This is a fake.** Made of a {next(p['fake'] for p in parts if p['fake'])}.", ""]
    lines += _machine(parts)
    lines += ["| part | how it ended | seconds | checks |", "|---|---|---|---|"]
    lines += [f"| {_cell(p['title'])} | {_ended(p)} | {p['seconds']:.0f} | {_counted(p)} |" for p in parts]
    for part in parts:
        lines += ["", *_section(part)]
    return "\n".join(lines) + "\n"


def _title(parts: Sequence[dict[str, Any]]) -> str:
    names = {p["machine"]["sensors"]["name"] for p in parts if p["machine"].get("sensors")}
    name = ", ".join(sorted(names)) or "no card"
    return f"FAKE, no measurement: {name}" if any(p["fake"] for p in parts) else f"What was seen on {name}"


def _machine(parts: Sequence[dict[str, Any]]) -> list[str]:
    machine = next((p["machine"] for p in parts if p["machine"]), {})
    sensors = machine.get("sensors", {})
    known = {"driver": sensors.get("driver"), "power limit (W)": sensors.get("power_limit_w")}
    known |= {key.replace("_", " "): value for key, value in machine.items() if key != "sensors"}
    text = ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
    return [f"{text}. Made by `make gpu`; how to read it: docs/gpu.md.", ""] if text else []


def _ended(part: dict[str, Any]) -> str:
    return _cell(part["status"] + (f": {part['reason']}" if part["reason"] else ""))


def _counted(part: dict[str, Any]) -> str:
    passed = [check["passed"] for check in part["checks"]]
    words = {True: "held", False: "**failed**", None: "not seen"}
    return ", ".join(f"{passed.count(key)} {word}" for key, word in words.items() if key in passed) or "none"


def _section(part: dict[str, Any]) -> list[str]:
    lines = [f"## {part['title']}", ""]
    if part["fake"]:
        lines += ["Of the fake.", ""]
    lines += [f"- {_words(name)}: {_cell(value)}" for name, value in part["facts"].items()]
    for name, rows in part["tables"].items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", f"{name}:", "", "| " + " | ".join(map(_words, keys)) + " |", "|" + "---|" * len(keys)]
        lines += ["| " + " | ".join(_cell(row.get(key)) for key in keys) + " |" for row in rows]
    if part["checks"]:
        lines += ["", "| does it hold? | | |", "|---|---|---|"]
        lines += [f"| {_cell(c['name'])} | {MARKS[c['passed']]} | {_cell(c['detail'])} |" for c in part["checks"]]
    return lines


def _words(key: str) -> str:
    """A key with its unit as a heading: power_w → power (W)."""
    units = {"s": "s", "w": "W", "j": "J", "c": "°C", "mhz": "MHz", "rel": "relative", "flop": "FLOP"}
    stem, _, unit = key.rpartition("_")
    return f"{stem.replace('_', ' ')} ({units[unit]})" if stem and unit in units else key.replace("_", " ")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
