"""A suite's file: found by name or path, read within limits, and parsed with the place of every key."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.limits import DEPTH, SUITE_B, SUITE_VALUES, too_deep
from energybench.common.names import known_as
from energybench.common.safe_read import list_folder, read_bytes, unreadable_reason
from energybench.common.shipped import shipped
from energybench.suite.node import Node, build_tree
from energybench.suite.toml_positions import positions


def find_suite(path_or_name: str | Path, search: Sequence[Path] | None) -> Path:
    """The file of that path, or of that name in ./suites or among those shipped. Raises UsageError E101.

    search: folders to look for a name in, instead of those
    """
    name, folders = str(path_or_name), search if search is not None else (Path("suites"), shipped("suites"))
    if re.fullmatch(r"[\w.+-]+", name) and not name.endswith(".toml"):
        for folder in folders:
            if os.path.isfile(folder / f"{name}.toml"):
                return folder / f"{name}.toml"
        if not os.path.isfile(name):
            listed = [file for folder in folders for file in list_folder(folder, ".toml")]
            known = {file.stem: file for file in reversed(listed)}
            if (meant := known_as(name, known)) in known and os.path.isfile(known[meant]):
                return known[meant]
            here = f"{name}.toml"  # a name means ./suites or a shipped one, so that a file here never takes its place
            hint = f"the file of that name in this folder: {here}" if os.path.isfile(here) else nearest(name, known)
            raise UsageError(Problem("E101", f"no suite is called '{name}'", "", hint))
    path = Path(name)
    if not os.path.isfile(path):
        what = unreadable_reason(path)
        files = set() if what == "is a folder" else set(map(str, list_folder(path.parent, ".toml")))
        hint = nearest(name, files) or "name a suite's file, or one of: energybench list suites"
        raise UsageError(Problem("E101", f"'{name}' {what}", "", hint))
    return path


def read_tree(path: Path) -> tuple[str, Node]:
    """The text, and its tree with the place of every key. Raises UsageError E101, E102."""
    shown = os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
    try:
        text = read_bytes(path, SUITE_B).decode("utf-8-sig")
        if too_deep(text):
            raise RecursionError
        raw = tomllib.loads(text)
        if (values := _size(raw)) > SUITE_VALUES:
            message = f"it holds {values:,} keys and values; at most {SUITE_VALUES:,} are read"
            raise UsageError(Problem("E102", message, shown, "sweep fewer values, or write several suites"))
        places = positions(text) if raw else {}
    except OSError as error:
        hint = "a suite is a file of text that you may read"
        raise UsageError(Problem("E101", f"cannot read it: {error.strerror}", shown, hint)) from None
    except UnicodeDecodeError as error:
        raise UsageError(Problem("E102", f"not UTF-8 at byte {error.start}", shown, "save it as UTF-8")) from None
    except RecursionError:
        raise UsageError(Problem("E102", "nested too deeply", shown)) from None
    except tomllib.TOMLDecodeError as error:
        located = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error), re.DOTALL)
        last = text.rstrip().count("\n") + 1
        message, line, column = located.groups() if located else (str(error).partition(" (at")[0], last, 1)
        hint = 'text needs quotes: key = "value"' if "Invalid value" in message else ""
        raise UsageError(Problem("E102", f"not TOML: {message}", f"{shown}:{line}:{column}", hint)) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise UsageError(Problem("E102", str(error).partition(";")[0], shown)) from None
    return text, Node(build_tree(raw, places, shown).value, f"{shown}:1:1")


def _size(value: Any, depth: int = 0) -> int:
    """Keys and values in it. Raises RecursionError below DEPTH tables."""
    if depth > DEPTH:
        raise RecursionError
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return len(items) + sum(_size(item, depth + 1) for item in items)
