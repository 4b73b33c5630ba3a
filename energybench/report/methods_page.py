"""docs/methods.md: every method of a project, what is promised of it, what was counted, measured and held, and where.

Made of the methods' cards, which are read without being run, and of the newest committed run of each suite. The same
cards and records give the same bytes; links are relative to the page.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from energybench.common.outputs import Kind
from energybench.report.markdown_syntax import brackets, escape, table
from energybench.report.measured_cells import Measured, Run, energy_of, measured
from energybench.train.discovery import MethodCard
from energybench.verdict import wording
from energybench.verdict.figures import Row

COMMAND = "energybench list methods --markdown docs/methods.md"
KIND = Kind("the page of methods", lambda found: b"<!-- written by `energybench list methods " in found)
NOT_YET = "not yet measured here"
STACKS, OTHERS = "Several methods at once", "Other methods"
ABOUT = """\
What each method promises, what it was counted to leave out, what it was measured to save, whether the trained model was
as good, and where. The same model is trained on the same data plainly and with the method, in pairs that are repeated
block after block; a *saving* is the share of what plain training took that was not needed, a negative one is a cost.
Brackets hold the 95 % interval. *Counted* is the share of the whole training's FLOPs that was left out, by an
independent counter. Every figure of a row stands in the report that the row links to; words are explained in
{glossary}."""
NO_ENERGY = (
    "No run on this page measured energy: where a sensor is missing it is modelled from time and load, and a modelled "
    "figure proves nothing. So **time decides** here. At the same load on the same machine, less time is less energy; "
    "how much less, only a machine with a sensor can say."
)
SOME_ENERGY = (
    "Where a figure is of energy, a sensor measured it. Everywhere else energy is modelled or not known; a modelled "
    "figure proves nothing, so that **time decides** there."
)
SAVES = (
    "Proven savings at held quality, the largest first: the whole interval lies beyond the margin of the suite. *Than "
    "training less*: what skips work is also held against plain training that ends after as much work, which saves too."
)
NO_SAVING = "No saving at held quality is proven yet."
DECIDED = (
    "What else is decided, by method: how many of its rows came out so, and the measured savings among them, from the "
    "least to the most. Rows that are not here are undecided; all of them stand below."
)
PROMISES = r"\b[Pp]romises,? "
ABBREVIATED = "".join(
    rf"(?<!\b{word})" for word in ("al", "Eq", "Eqs", "Fig", "Sec", "Alg", "vs", "cf", "e\\.g", "i\\.e")
)
PLACES = "Where it was measured"


def markdown(cards: Sequence[MethodCard], runs: Sequence[Run], page: Path, root: Path) -> str:
    """The page.

    Args:
        cards: of the project's methods, each of which is listed
        runs: the newest of each suite and device
        page: where it will lie
        root: the project's folder; a method whose file lies elsewhere has no link
    """
    return wording.plain("\n\n".join(_Page(cards, runs, page.resolve().parent, root.resolve()).blocks())) + "\n"


class _Page:
    def __init__(self, cards: Sequence[MethodCard], runs: Sequence[Run], home: Path, root: Path) -> None:
        self.cards, self.runs, self.home, self.root = cards, runs, home, root
        self.cells = measured(runs)
        self.names = {card.name for card in cards}
        self.of: dict[str, list[Measured]] = {name: [] for name in (*(card.name for card in cards), STACKS, OTHERS)}
        for cell in self.cells:
            self.of[self._section(cell)].append(cell)
        quantities = {cell.row.measured.quantity for cell in self.cells if cell.row.measured}
        self.energy = "energy" in quantities
        self.one_device = len({run.part.device for run in runs}) < 2

    def blocks(self) -> list[str]:
        page = ["# What each method saves", f"<!-- written by `{COMMAND}` -->", ABOUT.format(glossary=self._glossary())]
        page += ["## What saves energy?", *self._what_saves()]
        page += ["## All methods", self._index()]
        for card in self.cards:
            page += self._method(card)
        if self.of[STACKS]:
            page += [
                f"### {STACKS}",
                "The outermost first; what a stack saves is no one method's.",
                self._rows(self.of[STACKS]),
            ]
        if self.of[OTHERS]:
            page += [f"### {OTHERS}", "Of suites that brought their own.", self._rows(self.of[OTHERS])]
        return [*page, *self._places()]

    # ── at the top ────────────────────────────────────────────────────────────────────────────────────────────────

    def _what_saves(self) -> list[str]:
        if not self.cells:
            return ["Nothing was measured yet."]
        page = [SOME_ENERGY if self.energy else NO_ENERGY]
        saving = sorted((cell for cell in self.cells if cell.row.verdict in wording.BETTER), key=_saved, reverse=True)
        if saving:
            rows = [
                [
                    self._measured(cell.row),
                    self._label(cell),
                    escape(_model_and_data(cell)),
                    _quality(cell),
                    _against_less(cell.row),
                    self._where(cell),
                ]
                for cell in saving
            ]
            head = [self._head, "method", "model, data", "quality", "than training less", "where"]
            page += [SAVES, table(head, rows, right={0})]
        else:
            page.append(NO_SAVING)
        decided = self._decided()
        return [*page, DECIDED, decided] if decided else page

    def _decided(self) -> str:
        """A row for each method and outcome; empty where nothing but savings is decided."""
        groups: dict[tuple[str, str], list[Measured]] = {}
        for name, cells in self.of.items():
            for cell in cells:
                if word := _outcome(cell.row):
                    groups.setdefault((name, word), []).append(cell)
        rows = []
        for (name, word), cells in sorted(groups.items(), key=lambda item: -max(map(_saved, item[1]))):
            ends = [min(cells, key=_saved), max(cells, key=_saved)] if len(cells) > 1 else cells
            shown = " to ".join(f"[{self._measured(cell.row)}]({self._report(cell.run)})" for cell in ends)
            rows.append([self._to_section(name), word, f"{len(cells)} of {len(self.of[name])}", shown])
        return table(["method", "decided", "rows", self._head], rows, right={2}) if rows else ""

    def _index(self) -> str:
        rows = [[self._to_section(c.name), _prose(promise(c)), _tally(self.of[c.name])] for c in self.cards]
        return table(["method", "promises", "found here"], rows)

    # ── one method ────────────────────────────────────────────────────────────────────────────────────────────────

    def _method(self, card: MethodCard) -> list[str]:
        path = Path(card.path)
        inside = path.is_absolute() and path.resolve().is_relative_to(self.root)
        title = f"[{escape(card.name)}]({self._to(path.resolve())})" if inside else escape(card.name)
        does = card.summary.removeprefix(f"{card.name}: ")
        page = [f"### {title}", _prose(does[:1].upper() + does[1:])]
        paper = re.split(PROMISES, card.paper)[0].strip()
        said = [f"{word} {text}" for word, text in (("Source:", paper), ("Promises", promise(card))) if text]
        page += [" ".join(_prose(text.rstrip(".") + ".") for text in said)] if said else []
        cells = self.of[card.name]
        return [*page, self._rows(cells), *_claims(cells)] if cells else [*page, f"*{NOT_YET.capitalize()}.*"]

    def _rows(self, cells: Sequence[Measured]) -> str:
        columns: list[tuple[str, list[str], bool]] = [("setting", [escape(cell.label) for cell in cells], False)]
        if any(cell.row.claimed_rel is not None for cell in cells):
            columns.append(("promised", [wording.percent(cell.row.claimed_rel) for cell in cells], True))
        columns += [
            ("counted", [escape(wording.counted(cell.row)) for cell in cells], True),
            (self._head, [self._measured(cell.row) for cell in cells], True),
            ("verdict", [f"**{cell.row.verdict}**" for cell in cells], False),
            ("quality", [_quality(cell) for cell in cells], False),
        ]
        if any(cell.row.to_target is not None for cell in cells):
            columns.append(("to the target", [_to_target(cell.row) for cell in cells], False))
        if not self.one_device:
            columns.append(("device", [escape(cell.run.part.device) for cell in cells], False))
        columns.append(("where", [self._where(cell) for cell in cells], False))
        figures = {place for place, (_, _, figure) in enumerate(columns) if figure}
        return table([head for head, _, _ in columns], zip(*(texts for _, texts, _ in columns), strict=True), figures)

    # ── where ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _places(self) -> list[str]:
        if not self.runs:
            return []
        page = [f"## {PLACES}", "The newest run of each suite; plain training's own figures stand in its report."]
        if self.one_device:
            page.append(f"All on one device: {escape(self.runs[0].part.device)}.")
        rows = []
        for run in self.runs:
            for workload in (each for each in run.summary.workloads if each.rows):
                settings = run.table(workload.name)
                names = [escape(_name(settings.get(key))) for key in ("model", "data")]
                device = [] if self.one_device else [escape(run.part.device)]
                blocks = str(run.summary.blocks)
                rows.append([self._suite(run), escape(workload.name), *names, *device, blocks, energy_of(workload)])
        head = ["suite", "workload", "model", "data", *([] if self.one_device else ["device"]), "blocks", "energy"]
        return [*page, table(head, rows, right={len(head) - 2})]

    def _where(self, cell: Measured) -> str:
        return f"{self._suite(cell.run)}: {escape(cell.workload.name)}"

    def _suite(self, run: Run) -> str:
        marks = f" ({escape(run.marks)})" if run.marks else ""
        return f"[{escape(run.summary.suite)}]({self._report(run)}){marks}"

    def _report(self, run: Run) -> str:
        return self._to(run.folder.resolve() / "report.md")

    def _to(self, path: Path) -> str:
        return quote(os.path.relpath(path, self.home).replace(os.sep, "/"))

    def _glossary(self) -> str:
        beside = (self.home / "glossary.md").is_file()
        return "[the glossary](glossary.md)" if beside else "docs/glossary.md of energybench"

    # ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _head(self) -> str:
        return "measured \\[95 %\\]" if self.energy else "time saved \\[95 %\\]"

    def _measured(self, row: Row) -> str:
        """A saving as its report prints it, struck where that is; of what, where the page has both."""
        text = brackets(wording.measured(row.measured))
        if row.measured is None:
            return text
        text = f"~~{text}~~" if row.verdict_forbidden else text
        return f"{text} {escape(wording.what(row.measured.quantity, row.measured.scope))}" if self.energy else text

    def _label(self, cell: Measured) -> str:
        return f"[{escape(cell.label)}](#{_anchor(self._section(cell))})"

    def _section(self, cell: Measured) -> str:
        """Where it is listed."""
        if len(cell.row.stack) > 1:
            return STACKS
        return cell.alone if cell.alone in self.names else OTHERS

    def _to_section(self, name: str) -> str:
        return f"[{escape(name)}](#{_anchor(name)})"


def promise(card: MethodCard) -> str:
    """The sentence of a card that says what the method promises, without that word; empty where there is none."""
    text = " ".join(card.text.split())
    found = re.search(rf"{PROMISES}(.*?){ABBREVIATED}\.(?:\s|$)", text)
    return found[1] if found else ""


def _claims(cells: Iterable[Measured]) -> list[str]:
    """By whom, and of what, the figures under *promised* are stated."""
    said = dict.fromkeys(
        f"{cell.row.claim_source or 'no source'} (of the {cell.row.claim_of})"
        for cell in cells
        if cell.row.claim_rel is not None
    )
    return [f"*Promised*, as a share of the whole training, by: {escape('; '.join(said))}."] if said else []


def _outcome(row: Row) -> str:
    """A decided cost that is no proven saving, in words; empty for what is undecided, and for a saving."""
    if row.verdict in wording.BETTER:
        return ""
    if row.cost_verdict in wording.BETTER:
        return f"{row.cost_verdict}, quality {wording.quality_word(row)}"
    return row.cost_verdict if row.cost_verdict in wording.WORSE | wording.SAME else ""


def _saved(cell: Measured) -> float:
    return cell.row.measured.saving_rel if cell.row.measured else 0.0


def _tally(cells: Sequence[Measured]) -> str:
    """ "2 faster, 5 inconclusive", the most frequent first"""
    counts = Counter(sorted(cell.row.verdict for cell in cells))
    return ", ".join(f"{n} {word}" for word, n in counts.most_common()) or NOT_YET


def _quality(cell: Measured) -> str:
    """ "held: accuracy −0.2 pp" """
    word, quality = wording.quality_word(cell.row), cell.row.quality
    if quality is None:
        return word
    return escape(f"{word}: {quality.metric} {wording.quality_change(quality)}")


def _against_less(row: Row) -> str:
    """How it stands against the matched control, plain training at the budget that the method paid for."""
    return wording.NOTHING if row.control is None else "better" if row.control.better else "not proven better"


def _to_target(row: Row) -> str:
    if row.to_target is None:
        return wording.NOTHING
    cost = row.to_target.cost
    figure = f" {brackets(wording.measured(cost))} {cost.quantity}" if cost else ""
    return f"{row.to_target.verdict}{figure}"


def _model_and_data(cell: Measured) -> str:
    settings = cell.run.table(cell.workload.name)
    return f"{_name(settings.get('model'))}, {_name(settings.get('data'))}"


def _name(settings: object) -> str:
    """Of a model or of data, as the suite has it."""
    use = settings.get("use") if isinstance(settings, Mapping) else settings
    return str(use) if use else wording.NOTHING


def _anchor(heading: str) -> str:
    """As GitHub and mkdocs make it."""
    return quote(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))


def _prose(text: str) -> str:
    """A card's words, escaped but for its code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return "".join(escape(part) if at % 2 == 0 else f"`{part.replace('|', '&#124;')}`" for at, part in enumerate(parts))
