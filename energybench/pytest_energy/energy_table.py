"""What pytest prints of energy: a table after pytest-benchmark's, in its look, and one of the budgets.

pytest-benchmark's own columns are a fixed list of statistics of time, so energy has a table of its own. Where it is
wider than the terminal, columns are left out, those least needed first; no figure is cropped.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from energybench.common.units import format_flop, format_si
from energybench.pytest_energy.budget import Judgement
from energybench.pytest_energy.metered_calls import KEY

NOTHING = "–"
SOURCE = "Source"  # left out first, because it then stands below the table


class Terminal(Protocol):
    """What is used of pytest's terminal reporter."""

    def write_line(self, line: str, **markup: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class EnergyColumn:
    title: str
    cell: Callable[[Mapping[str, Any]], str]
    order: int = 0  # left out first: the highest; 0: never


@dataclass(frozen=True, slots=True)
class EnergyRow:
    name: str
    facts: Mapping[str, Any]


def _joules(joules: float, digits: int = 3) -> str:
    return format_si(joules, "J", digits)


def _energy(facts: Mapping[str, Any]) -> str:
    if facts.get("energy_j") is not None:
        mark = " *" if facts.get("energy_no_verdict") else ""
        error_j = facts.get("energy_error_j")
        error = ", error unknown" if error_j is None else f" ± {_joules(error_j, 2)}"
        return f"{_joules(facts['energy_j'])}{error}{mark}"
    if facts.get("modelled_energy_j") is not None:
        return f"modelled {_joules(facts['modelled_energy_j'])}"
    return NOTHING


def _modelled_of(facts: Mapping[str, Any]) -> str | None:
    """Of a row that shows its modelled figure."""
    shown = facts.get("energy_j") is None and facts.get("modelled_energy_of")
    return f"modelled energy is {facts['modelled_energy_of']}" if shown else None


def _figure(key: str, form: Callable[[float], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda facts: NOTHING if facts.get(key) is None else form(facts[key])


COLUMNS = (
    EnergyColumn("Energy a call", _energy),
    EnergyColumn("Power", _figure("power_w", lambda w: format_si(w, "W")), 3),
    EnergyColumn("CO2e", _figure("co2e_kg", lambda kg: format_si(1e3 * kg, "g")), 1),
    EnergyColumn("FLOPs", _figure("flop", format_flop), 2),
    EnergyColumn(SOURCE, lambda facts: " + ".join(facts.get("energy_sources") or ()) or NOTHING, 4),
)


Groups = Iterable[tuple[str | None, Sequence[Mapping[str, Any]]]]


def rows_of(groups: Groups, saved: Mapping[Any, Any], sort: str = "min") -> dict[str, list[EnergyRow]]:
    """Group → its rows, from what pytest-benchmark has printed, in its order.

    saved: path → fullname → benchmark, of the runs that this one is compared with
    """
    rows: dict[str, list[EnergyRow]] = {}
    for group, benchmarks in groups:
        for bench in sorted(benchmarks, key=lambda bench: bench[sort]):
            facts = bench["extra_info"].get(KEY)
            if bench["path"] is not None:  # pytest-benchmark has put the extra_info of now beside the saved times
                runs = {str(path): run for path, run in saved.items()}
                facts = runs.get(bench["path"], {}).get(bench["fullname"], {}).get("extra_info", {}).get(KEY)
            if facts is not None:
                rows.setdefault(group or "", []).append(EnergyRow(bench["name"], facts))
    return rows


def write(terminal: Terminal, group: str, rows: Sequence[EnergyRow], width: int | None = None) -> None:
    """One group's table, and below it what each figure comes from, and why one is missing or may decide nothing."""
    width = width or shutil.get_terminal_size().columns
    title = f" energy{f' {group!r}' if group else ''}: {len(rows)} tests "
    shown = _grid(terminal, title, rows, COLUMNS, width)
    if SOURCE not in shown:
        _notes(terminal, rows, width, lambda facts: " + ".join(facts.get("energy_sources") or ()))
    _notes(terminal, rows, width, _modelled_of)
    _notes(terminal, rows, width, lambda facts: facts.get("energy_reason"))
    _notes(terminal, rows, width, lambda facts: facts.get("energy_error_reason"))
    _notes(
        terminal, rows, width, lambda facts: f"* {facts['energy_no_verdict']}" if facts.get("energy_no_verdict") else ""
    )
    terminal.write_line("")


def _notes(
    terminal: Terminal, rows: Sequence[EnergyRow], width: int, note: Callable[[Mapping[str, Any]], str | None]
) -> None:
    """Each note once, with the rows that it is about."""
    notes_of: dict[str, list[str]] = {}
    for row in rows:
        if text := note(row.facts):
            notes_of.setdefault(text, []).append(row.name)
    for text, names in notes_of.items():
        _wrapped(terminal, f"{text}: {', '.join(names)}" if len(names) < len(rows) else text, width)


def _wrapped(terminal: Terminal, text: str, width: int, indent: str = "") -> None:
    for line in textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    ):
        terminal.write_line(line)


def write_budgets(terminal: Terminal, judged: Sequence[Judgement], width: int | None = None) -> None:
    """Every test with a budget, those that passed too."""
    width = width or shutil.get_terminal_size().columns
    rows = [
        EnergyRow(
            each.name,
            {"budget_j": each.budget.joules, "verdict": each.verdict, **(each.bill.facts() if each.bill else {})},
        )
        for each in judged
    ]
    columns = (
        EnergyColumn("Budget", _figure("budget_j", _joules)),
        EnergyColumn("Energy", _energy, 1),
        EnergyColumn("Verdict", lambda facts: str(facts["verdict"])),
    )
    _grid(terminal, f" energy budgets: {len(rows)} tests ", rows, columns, width)
    terminal.write_line("")


def _grid(
    terminal: Terminal, title: str, rows: Sequence[EnergyRow], columns: Sequence[EnergyColumn], width: int
) -> set[str]:
    """Returns the titles of the columns that are shown."""
    columns = [
        column for column in columns if not column.order or any(column.cell(row.facts) != NOTHING for row in rows)
    ]
    names = ["Name", *(row.name for row in rows)]
    first = max(map(len, names))
    shown, cells = _fitting(rows, columns, width - first)
    widths = _widths(cells)
    whole = first + sum(widths.values())
    if whole > width:
        _list(terminal, title, rows, columns, width)
        return {column.title for column in columns}
    terminal.write_line(title.center(whole, "-"), yellow=True)
    for number, name in enumerate(names):
        line = name.ljust(first) + "".join(cells[c.title][number].rjust(widths[c.title]) for c in shown)
        terminal.write_line(line)
        if not number:
            terminal.write_line("-" * whole, yellow=True)
    terminal.write_line("-" * whole, yellow=True)
    return {column.title for column in shown}


def _fitting(
    rows: Sequence[EnergyRow], columns: Sequence[EnergyColumn], width: int
) -> tuple[list[EnergyColumn], dict[str, list[str]]]:
    """(columns that fit, title → cells), those least needed left out first; too wide where no other may be left out."""
    shown = list(columns)
    while True:
        cells = {column.title: [column.title, *(column.cell(row.facts) for row in rows)] for column in shown}
        left_out = max(shown, key=lambda column: column.order)
        if sum(_widths(cells).values()) <= width or not left_out.order:
            return shown, cells
        shown.remove(left_out)


def _widths(cells: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {title: 2 + max(map(len, column)) for title, column in cells.items()}


def _list(
    terminal: Terminal, title: str, rows: Sequence[EnergyRow], columns: Sequence[EnergyColumn], width: int
) -> None:
    """Each figure on a line of its own, and so all of them."""
    terminal.write_line(title.center(width, "-"), yellow=True)
    for row in rows:
        terminal.write_line(row.name)
        for column in columns:
            _wrapped(terminal, f"{column.title}: {column.cell(row.facts)}", width, "  ")
    terminal.write_line("-" * width, yellow=True)
