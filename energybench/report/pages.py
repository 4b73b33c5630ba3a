"""A run's pages on disk: report.md with its figures, report.html. Written from the records, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from energybench.common.safe_read import path_inside
from energybench.common.sealed_files import write_text
from energybench.records.reader import read_folder
from energybench.records.record import Trial
from energybench.report.album import FOLDER
from energybench.report.figures import album
from energybench.report.markdown import markdown
from energybench.verdict.figures import Summary
from energybench.verdict.summary import summarise


def contents(summary: Summary, trials: Sequence[Trial], folder: Path) -> dict[str, str]:
    """Path from the run's folder → text, for the Markdown page and its figures."""
    pictures = album(summary, trials, folder)
    files = {f"{FOLDER}/{picture.file}": picture.svg for picture in pictures.pictures}
    return {"report.md": markdown(summary, pictures), **files}


def write(summary: Summary, trials: Sequence[Trial], folder: Path) -> Path:
    """report.md and figures/; a figure that the records no longer give is removed. Returns the page's path.

    Raises UsageError E612 where figures/ is a link out of the folder.
    """
    files = contents(summary, trials, folder)
    if (folder / FOLDER).is_symlink():  # whoever follows it would write, and remove, somewhere else
        path_inside(folder, folder / FOLDER)
    for path, text in files.items():
        write_text(folder / path, text)
    for old in (folder / FOLDER).glob("*.svg"):
        if f"{FOLDER}/{old.name}" not in files:
            old.unlink()
    return folder / "report.md"


def write_html(summary: Summary, trials: Sequence[Trial], folder: Path) -> Path:
    """report.html: everything in one file."""
    from energybench.report.html import page

    path = folder / "report.html"
    write_text(path, page(summary, trials, folder))
    return path


def rewrite(folder: Path, html: bool = False) -> Path:
    """A run's report.md and figures again, from its records; report.html too if asked for, or if there is one."""
    run, trials, counting_runs = read_folder(folder)
    summary = summarise(run, trials, counting_runs)
    if html or (folder / "report.html").exists():
        write_html(summary, trials, folder)
    return write(summary, trials, folder)


def runs(root: Path) -> list[Path]:
    """Every run's folder at or below `root`, in order."""
    return sorted(Path(folder) for folder, _, files in os.walk(root) if "run.json" in files)
