"""What a shell completes after a verb: names of suites and their files, and of whatever a suite may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


def names_of_suites(context: click.Context, parameter: Any, typed: str) -> list[CompletionItem]:
    """Names in ./suites and of those shipped; and files, which the shell completes itself."""
    from energybench.common.safe_read import list_folder
    from energybench.common.shipped import shipped

    stems = {path.stem for folder in (Path("suites"), shipped("suites")) for path in list_folder(folder, ".toml")}
    found = [CompletionItem(name) for name in sorted(stems) if name.startswith(typed)]
    return [*found, CompletionItem(typed, type="file")] if not found or "/" in typed or _has_files(typed) else found


def _has_files(typed: str) -> bool:
    from energybench.common.safe_read import list_folder

    return any(path.name.startswith(typed) for path in list_folder(Path(), ".toml"))


def names_of_all(context: click.Context, parameter: Any, typed: str) -> list[CompletionItem]:
    """What `list` takes."""
    from energybench.cli.listing import KINDS, listing
    from energybench.workloads import catalogue

    every = [entry["name"] for entries in listing().values() for entry in entries]
    words = [*KINDS, *(name for name in every if name[0] not in "<."), *catalogue.data_set_names()]
    words += catalogue.torchvision_models() if typed else []  # eighty of them
    return [CompletionItem(word) for word in dict.fromkeys(words) if word.startswith(typed)]
