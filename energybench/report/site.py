"""Every run on one static site: an index of suites, methods and devices with verdicts, each linked to its report.

All of it works from a disk and from any host of static files: pages ask for nothing but each other, and links are
relative. Names from records stand in no path as they are.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from energybench.common.errors import CannotWrite, EnergybenchError, Problem, UsageError
from energybench.common.held_folder import HeldFolder
from energybench.common.outputs import Kind, refuse_foreign_page
from energybench.records.reader import read_folder
from energybench.records.whole_run import folders_of
from energybench.report import page_tables
from energybench.report.html import index_page, page
from energybench.report.page_tables import Column, Listed, Result
from energybench.suite.suite import slug
from energybench.verdict import run_parts, wording
from energybench.verdict.figures import Summary
from energybench.verdict.merging import Records
from energybench.verdict.run_parts import Part

PAGES = "runs"  # the folder of the runs' pages, beside index.html
HOME = "../../index.html"  # from one of them
INDEX = "index.html"
PAGE_KIND = Kind("a page of a site", lambda text: b'<meta name="generator" content="energybench">' in text)


@dataclass(frozen=True, slots=True)
class Entry:
    """One run on one device, and its page."""

    folder: Path
    part: Part
    summary: Summary
    page: str  # its path below PAGES

    @property
    def href(self) -> str:
        """From the index."""
        return f"{PAGES}/{quote(self.page)}"

    @property
    def began(self) -> str:
        calls = self.part.records[0].invocations
        return calls[0].started_at if calls else ""

    @property
    def date(self) -> str:
        """To the minute."""
        return self.began[:16].replace("T", " ") or wording.NOTHING

    @property
    def marks(self) -> str:
        """What keeps its verdicts from being results: a smoke test, a changed setting, an unfinished run."""
        return ", ".join([*self.summary.stamp, *([] if self.summary.finished else ["unfinished"])])


Cell = tuple[Entry, Result]


def write(folders: Iterable[Path], out: Path, say: Callable[[str], None]) -> Path:
    """The site's pages; a page of ours whose run is gone is removed. Returns the index.

    Args:
        folders: of runs; one that cannot be read is said, and listed as left out
        out: the site's folder, made if it is missing
        say: is told each page that was written

    Raises:
        UsageError: E601 where no run can be read; E632 where there is an index.html that is not ours.
        CannotWrite: E612 where a part of `out` is a link; E632 for a page in `out` that is not ours; E620.
    """
    readable, left_out = _read(folders, say)
    entries = _entries([part for suite in sorted(readable) for part in run_parts.joined(readable[suite])])
    with _opened(out) as site:
        refuse_foreign_page(site, INDEX, PAGE_KIND)
        site.refuse_link(PAGES, writing=True)
        for entry in entries:  # all of them, before any is written
            refuse_foreign_page(site, f"{PAGES}/{entry.page}", PAGE_KIND)
        written = set()
        for entry in entries:
            name = f"{PAGES}/{entry.page}"
            text = page(entry.summary, entry.part.records[1], entry.folder, home=HOME, homes=entry.part.homes)
            site.write_bytes(name, text.encode())
            say(f"{out / name} written")
            written.add(name)
        _remove_old(site, written)
        site.write_bytes(INDEX, index_page(verdicts(entries), runs(entries), left_out).encode())
    say(f"{out / INDEX} written")
    return out / INDEX


def _opened(out: Path) -> HeldFolder:
    """The site's folder, by its handle; made if it is missing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return HeldFolder(out)
    except OSError as error:
        raise CannotWrite.of(error, out) from None


def _remove_old(site: HeldFolder, written: set[str]) -> None:
    """Pages of ours whose runs are gone, with the folders that they leave empty."""
    for part in site.names(PAGES):
        facts = site.facts(part)
        if facts is None or not stat.S_ISDIR(facts.st_mode):
            continue
        for name in set(site.names(part, ".html")) - written:
            with suppress(OSError, UsageError):  # not ours
                refuse_foreign_page(site, name, PAGE_KIND)
                site.remove(name)
        with suppress(OSError):  # there is more in it
            site.remove_empty_folder(part)


Readable = dict[str, list[tuple[Path, Records]]]  # suite → its runs' folders with what is in them


def _read(folders: Iterable[Path], say: Callable[[str], None]) -> tuple[Readable, list[tuple[str, str]]]:
    """The runs that can be read, and (folder, why) of those that cannot. Raises UsageError where none can."""
    readable: Readable = {}
    problems: list[tuple[str, Problem]] = []
    for folder in (each for named in folders for each in folders_of(named)):
        try:
            records = read_folder(folder)
        except EnergybenchError as error:
            problems.append((str(folder), error.problems[0]))
            say(f"note: left out: {problems[-1][1].where or folder}: {problems[-1][1].message}")
        else:
            readable.setdefault(records[0].suite, []).append((folder, records))
    if not readable and problems:
        raise UsageError([problem for _, problem in problems])
    return readable, [(folder, problem.message) for folder, problem in problems]


def _entries(parts: Iterable[Part]) -> list[Entry]:
    """Each with a page of its own, in the order of the parts."""
    entries: list[Entry] = []
    taken: set[str] = set()
    for part in parts:
        run = part.records[0]
        stem = name = f"{slug(run.suite).lstrip('_')}/{slug(run.run).lstrip('_')}"
        number = 2
        while name.casefold() in taken:  # one run on two devices, or a file system that does not tell A from a
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.casefold())
        entries.append(Entry(Path(part.folders[0]), part, part.summary(), f"{name}.html"))
    return entries


def verdicts(entries: Sequence[Entry]) -> Listed:
    """The newest result of each method on each workload and device; a marked run only where there is no other."""
    newest: dict[tuple[str, str, str, str], Cell] = {}
    for entry in sorted(entries, key=lambda entry: (not entry.marks, entry.began)):
        for result in page_tables.results(entry.summary).rows:
            key = (entry.summary.suite, result.workload.name, result.row.method, entry.part.device)
            newest[key] = (entry, result)
    order = {id(entry): number for number, entry in enumerate(entries)}
    cells = sorted(newest.values(), key=lambda cell: order[id(cell[0])])
    rows = [result.row for _, result in cells]

    def text(title: str, say: Callable[[Entry, Result], str], kind: str = "text") -> Column:
        return Column(title, kind, tuple(say(*cell) for cell in cells))

    columns = [
        text("method", lambda entry, result: result.row.method, "method"),
        text("verdict", lambda entry, result: result.row.verdict, "verdict"),
        page_tables.measured_column("measured [95 %]", rows),
        page_tables.quality_column("quality Δ", rows),
        page_tables.claimed_column(rows),
        text("of", lambda entry, result: page_tables.measured_of(result.row)),
        text("suite", lambda entry, result: entry.summary.suite, "workload"),
        text("workload", lambda entry, result: result.workload.name, "workload"),
        text("device", lambda entry, result: entry.part.device, "workload"),
        text("marks", lambda entry, result: entry.marks or wording.NOTHING),
        text("began", lambda entry, result: entry.date, "date"),
    ]
    shown, said = page_tables.without_constants(columns, keep={"method", "verdict", "measured"})
    hrefs = tuple(f"{entry.href}#{result.anchor}" for entry, result in cells)
    told = [column for column in shown if column.kind == "workload"]
    places = tuple(" · ".join(column.cells[at] for column in told) for at in range(len(cells)))
    return Listed(tuple(shown), said, hrefs, tuple(rows), places)


def runs(entries: Sequence[Entry]) -> Listed:
    """Every run, the newest first."""
    ordered = sorted(entries, key=lambda entry: entry.began, reverse=True)

    def text(title: str, say: Callable[[Entry], str], kind: str = "text") -> Column:
        return Column(title, kind, tuple(say(entry) for entry in ordered))

    columns = [
        text("run", lambda entry: entry.summary.run, "method"),
        text("suite", lambda entry: entry.summary.suite),
        text("in short", lambda entry: entry.summary.headline),
        text("device", lambda entry: entry.part.device),
        text("began", lambda entry: entry.date, "date"),
        Column(
            "blocks",
            "number",
            tuple(str(entry.summary.blocks) for entry in ordered),
            tuple(float(entry.summary.blocks) for entry in ordered),
        ),
        text("marks", lambda entry: entry.marks or wording.NOTHING),
    ]
    shown, said = page_tables.without_constants(columns, keep={"method", "suite", "in short"})
    return Listed(tuple(shown), said, tuple(entry.href for entry in ordered))
