"""A run's pages on disk: report.md with its figures, report.html. Written from the records, whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from energybench.common.errors import CannotWrite, UsageError
from energybench.common.held_folder import HeldFolder
from energybench.common.outputs import Kind, refuse_foreign_page
from energybench.records.record import Trial
from energybench.records.shards import SHARDS, shards_of
from energybench.report.album import FOLDER
from energybench.report.figures import album
from energybench.report.markdown import markdown
from energybench.report.places import Homes, record_path, with_traces
from energybench.verdict.figures import Summary
from energybench.verdict.run_parts import whole_run

PAGE, HTML = "report.md", "report.html"
# By what stands in each of them, those of earlier versions too.
_MARKS = (b"docs/glossary.md of energybench", b"\n## How to get these numbers again\n")
PAGE_KIND = Kind("a report", lambda text: text.startswith(b"# ") and any(mark in text for mark in _MARKS))
HTML_KIND = Kind("a report", lambda text: b"energybench</title>" in text)
PICTURE_KIND = Kind("a picture", lambda text: b'prefers-color-scheme:dark){[style*="fill: ' in text)


def contents(
    summary: Summary, trials: Sequence[Trial], folder: Path, homes: Homes = MappingProxyType({})
) -> dict[str, str]:
    """Path from the run's folder → text, for the Markdown page and its figures. homes: as `places` has them"""
    pictures = album(summary, with_traces(trials, folder, homes), folder)
    files = {f"{FOLDER}/{picture.file}": picture.svg for picture in pictures.pictures}
    return {PAGE: markdown(summary, pictures, record_path(folder, homes)), **files}


def write(
    summary: Summary,
    trials: Sequence[Trial],
    folder: Path,
    held: HeldFolder | None = None,
    homes: Homes = MappingProxyType({}),
) -> Path:
    """report.md and figures/; a figure that the records no longer give is removed. Returns the page's path.

    Args:
        held: The folder, by its handle, where it is held already.
        homes: Of the records that lie in other folders.

    Raises:
        CannotWrite: E612 where figures/ is a link; E632 where another page or picture has the name of ours; E620.
    """
    files = contents(summary, trials, folder, homes)
    with _opened(folder, held) as place:
        refuse_foreign_pages(place, files)
        for name, text in files.items():
            place.write_bytes(name, text.encode())
        for name in place.names(FOLDER, ".svg"):
            if name not in files and _is_ours(place, name):
                place.remove(name)
    return folder / PAGE


def refuse_foreign_pages(place: HeldFolder, names: Iterable[str] = (PAGE,)) -> None:
    """Raises CannotWrite E632 where one of these is not ours, E612 where figures/ is a link."""
    place.refuse_link(FOLDER, writing=True)
    for name in names:
        if not _is_link(place, name):  # which is replaced, and what it leads to stays
            refuse_foreign_page(place, name, _kind(name))


def _kind(name: str) -> Kind:
    return PICTURE_KIND if name.endswith(".svg") else PAGE_KIND


def _is_ours(place: HeldFolder, name: str) -> bool:
    try:
        refuse_foreign_page(place, name, PICTURE_KIND)
    except UsageError:
        return False
    return True


def _is_link(place: HeldFolder, name: str) -> bool:
    facts = place.facts(name)
    return facts is not None and stat.S_ISLNK(facts.st_mode)


@contextmanager
def _opened(folder: Path, held: HeldFolder | None = None) -> Iterator[HeldFolder]:
    """The folder that is held, else for this once."""
    if held is not None:
        yield held
        return
    try:
        place = HeldFolder(folder)
    except OSError as error:
        raise CannotWrite.of(error, folder) from None
    with place:
        yield place


def write_beside(folder: Path, name: str, text: str, kind: Kind) -> Path:
    """Another page of a run in its folder. Raises CannotWrite E620, E632."""
    with _opened(folder) as place:
        if not _is_link(place, name):
            refuse_foreign_page(place, name, kind)
        place.write_bytes(name, text.encode())
    return folder / name


def write_html(summary: Summary, trials: Sequence[Trial], folder: Path, homes: Homes = MappingProxyType({})) -> Path:
    """report.html: everything in one file. homes: of the records that lie in other folders"""
    from energybench.report.html import page

    return write_beside(folder, HTML, page(summary, trials, folder, homes=homes), HTML_KIND)


def rewrite(folder: Path, html: bool = False) -> Path:
    """A run's report.md and figures again, from its records; report.html too if asked for, or if there is one."""
    part = whole_run(folder)
    summary, trials = part.summary(), part.records[1]
    if html or (folder / HTML).exists():
        write_html(summary, trials, folder, part.homes)
    return write(summary, trials, folder, homes=part.homes)


def runs(root: Path) -> list[Path]:
    """Every run's folder at or below `root`, in order; a folder with shards is one run."""
    found = []
    for folder, below, files in os.walk(root):
        if "run.json" in files or (SHARDS in below and shards_of(Path(folder))):
            found.append(Path(folder))
            below[:] = [name for name in below if name != SHARDS]
    return sorted(found)
