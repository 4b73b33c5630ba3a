"""What a comparison found, for a terminal and as Markdown: a headline, a table per level, what stands out in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from energybench.common.errors import typed
from energybench.gate.compare_runs import GateResult
from energybench.gate.regression import FAILS, NOT_COMPARED, OPEN, Finding, Outcome
from energybench.report import grid, terminal
from energybench.report.markdown_syntax import escape, table
from energybench.stats.power import MOST_BLOCKS
from energybench.verdict import wording
from energybench.verdict.devices import Unit, plural

TITLES = {
    "counts": "Counts",
    "savings": "Savings, each against its own plain training",
    "absolute": "Seconds and joules on one device",
    "require": "What the suite requires",
}
STYLES = dict.fromkeys(FAILS, "bold red") | dict.fromkeys(OPEN, "yellow") | {"better": "green", "met": "green"}
ORDER = ("regression", "suspected", "changed", "gone", "not met", "not confirmed", "undecided", "cannot tell")
RANKS = {"sees from": 3, "BASE": 2, "HEAD": 1}  # what a narrow terminal loses first; the others stay
HEADINGS = {
    "counts": ("cell", "BASE", "HEAD", "change"),
    "savings": ("method", "BASE", "HEAD", "cost grew by [95 %]", "sees from", "outcome"),
    "absolute": ("cell", "BASE", "HEAD", "grew by [95 %]", "sees from", "outcome"),
    "require": ("method", "must", "saves", "outcome"),
}


def headline(result: GateResult) -> str:
    """The one sentence that decides, and what to type next."""
    by = Counter(each.outcome for each in result.findings)
    sentences = []
    if by["regression"]:
        worse = _count(by["regression"], "comparison")
        sentences.append(f"Regression: {worse} worse than BASE, found again in the rerun.")
    counts = Counter(each.outcome for each in result.findings if each.level == "counts")
    if changed := counts["changed"] + counts["gone"]:
        remedy = ""
        if result.base and result.base.endswith(".json"):
            remedy = f" If that is meant: energybench compare {typed(result.base, result.head)} --accept"
        sentences.append(f"Counts changed: {_count(changed, 'count')} other than in BASE.{remedy}")
    if by["gone"] and not changed:
        sentences.append(f"Gone: {_count(by['gone'], 'comparison')} of BASE that HEAD has not.")
    if by["not met"]:
        sentences.append(f"Not met: {_count(by['not met'], 'requirement')} of the suite.")
    if by["suspected"]:
        again = f"energybench compare {typed(result.base, result.head)} --rerun HEAD2"
        sentences.append(
            f"Suspected: {_count(by['suspected'], 'comparison')} worse than BASE in one run, which is no regression "
            f"yet. Run HEAD's suite once more, with --new --out HEAD2, then: {again}"
        )
    if by["not confirmed"]:
        suspicions = _count(by["not confirmed"], "suspicion")
        sentences.append(f"Not confirmed: {suspicions} that the rerun did not find again.")
    if not result.findings and result.levels == ("counts",) and any(note.endswith(" written") for note in result.notes):
        return "HEAD's counts are the golden values now; there were none before."
    return " ".join(sentences) or _nothing_worse(result, by)


def _nothing_worse(result: GateResult, by: Counter[Outcome]) -> str:
    held = by["held"] + by["better"] + by["same"] + by["met"]
    words: tuple[Outcome, ...] = ("undecided", "cannot tell", "new")
    others = [f"{by[word]} {word}" for word in words if by[word]]
    if not set(by) - NOT_COMPARED:
        return f"Nothing was compared: {', '.join(others) or 'there is nothing to compare'}."
    blind = [finding for finding in result.findings if finding.blind]
    if blind:
        could = f"a loss of {wording.as_written(result.sees)} could hide in {_count(len(blind), 'comparison')}"
        return f"Not passed: {could}{_to_see_it(result, blind)}."
    if not held:
        return f"Nothing got worse by {wording.as_written(result.sees)} or more: {', '.join(others)}."
    return f"Nothing got worse: {held} held{''.join(f', {text}' for text in others)}."


def _to_see_it(result: GateResult, blind: Sequence[Finding]) -> str:
    """How many blocks, and what to type; empty where blocks are not what is missing."""
    scattered = [each for each in blind if each.outcome == "undecided"]
    if not scattered:
        return ""
    counts = [each.blocks_to_see for each in scattered]
    known = [count for count in counts if count is not None]
    if (unit := _unit(scattered)) != "block":
        many = wording.units(max(known), unit) if len(known) == len(counts) else f"more {plural(unit)}"
        return f"; {many} a run, with as many blocks on each, would see it"
    if len(known) < len(counts):
        return f"; it would take more than {MOST_BLOCKS} blocks a run to see it: not on this machine"
    most = max(known)
    return f"; {most} blocks a run would see it: energybench run {result.suite} --new --set trials.blocks={most}"


def _unit(findings: Sequence[Finding]) -> Unit:
    """What they count: devices, where any does."""
    return next((each.unit for each in findings if each.unit != "block"), "block")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _value(finding: Finding, value: float | None) -> str:
    if value is None:
        return wording.NOTHING
    if finding.level == "counts":
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:.10g}"
    if finding.level == "absolute":
        return wording.duration(value) if finding.quantity == "time" else wording.si(value, "J")
    if _of_quality(finding):
        return wording.number(value, 4, sign=True)
    return wording.percent(value)


def _of_quality(finding: Finding) -> bool:
    return finding.level == "savings" and finding.quantity != "time" and not finding.quantity.startswith("energy")


def change(finding: Finding) -> str:
    """12.0 % [9.1, 15.0]; of quality the difference, of counts the ratio."""
    value, low, high = finding.change_rel, finding.low_rel, finding.high_rel
    if value is None:
        return wording.NOTHING
    if _of_quality(finding):
        return wording.number(value, 4, sign=True)
    text = f"{wording.number(100 * value, 1, sign=True)}{wording.NB}%"
    if value and abs(100 * value) < 0.05 and finding.outcome in FAILS:  # what fails is never said to be nothing
        text = f"{100 * value:+.1g}{wording.NB}%".replace("-", "−")
    if low is None or high is None:
        return text
    return f"{text}{wording.NB}{wording.interval(low, high, 1)}"


def _label(finding: Finding) -> str:
    name = f"{finding.workload}: {finding.method}"
    return name if finding.quantity in ("time", "saving", "cell", "all counts") else f"{name}, {finding.quantity}"


def rows(level: str, findings: Sequence[Finding]) -> list[list[str]]:
    """One level's table, columns as in HEADINGS; of counts only those that differ."""
    table_rows = []
    for each in findings:
        before, after = _value(each, each.base), _value(each, each.head)
        if level == "require":
            table_rows.append([f"{each.workload}: {each.method}", each.quantity, _saved(each), each.outcome])
        elif level == "counts":
            if each.outcome != "same":
                outcome = change(each) if each.outcome == "changed" else each.outcome
                table_rows.append([_label(each), before, after, outcome])
        else:
            detectable = wording.NOTHING if each.detectable_rel is None else _rough(each.detectable_rel)
            table_rows.append([_label(each), before, after, change(each), detectable, each.outcome])
    return table_rows


def _rough(value: float) -> str:
    return wording.percent(value, 0 if abs(value) >= 0.1 else 1)


def _saved(finding: Finding) -> str:
    if finding.head is None:
        return wording.NOTHING
    return wording.saving(finding.head, finding.low_rel, finding.high_rel)


def sentence(finding: Finding) -> str:
    """What happened to one comparison, whole in itself."""
    place, reason, quantity = f"{finding.workload}: {finding.method}", finding.reason, finding.quantity
    before, after = _value(finding, finding.base), _value(finding, finding.head)
    after_colon, in_brackets = (f": {reason}", f" ({reason})") if reason else ("", "")
    if finding.level == "require":
        return f"{place}: {quantity}: {finding.outcome}{after_colon}"
    if finding.outcome == "changed":
        return f"{place}: {quantity} was {before}, now {after}{in_brackets}"
    if finding.change_rel is None:
        return f"{place}: {finding.outcome}{after_colon}"
    if _of_quality(finding):
        return f"{place}: {quantity} against plain training was {before}, now {after}: {finding.outcome}{in_brackets}"
    if finding.level == "absolute":
        verb = "takes" if quantity == "time" else f"uses {quantity}:"
        return f"{place} {verb} {after}, before {before}: {change(finding)}: {finding.outcome}{in_brackets}"
    return (
        f"{place} saved {before} of the {quantity}, now {after}: its cost relative to plain training changed by "
        f"{change(finding)}: {finding.outcome}{in_brackets}"
    )


def _by_level(result: GateResult) -> dict[str, list[Finding]]:
    by_level = {level: [each for each in result.findings if each.level == level] for level in TITLES}
    return {level: findings for level, findings in by_level.items() if findings}


def _conspicuous(findings: Sequence[Finding]) -> list[Finding]:
    """What stands out, gravest first; whatever the table says whole is not said again."""
    shown = (f for f in findings if f.outcome in ORDER and (f.reason or f.outcome != "undecided"))
    return sorted(shown, key=lambda f: ORDER.index(f.outcome))


def _undecided_note(findings: Sequence[Finding]) -> str:
    undecided = [f for f in findings if f.outcome == "undecided" and not f.reason]
    if not undecided:
        return ""
    needed = [f.blocks_to_see for f in undecided if f.blind and f.blocks_to_see is not None]
    unit = _unit(undecided)
    what = plural(unit)
    more = f"; with {wording.units(max(needed), unit)} a run it would show" if needed else f"; more {what} show it"
    return f'undecided: a change smaller than "sees from" may hide in the scatter of the {what}{more}.'


def _same_note(findings: Sequence[Finding]) -> str:
    same = sum(each.outcome == "same" for each in findings)
    null = ", ".join(dict.fromkeys(each.reason for each in findings if each.outcome == "same" and each.reason))
    told = f" Not held, {null}." if null else ""
    return f"{_count(same, 'cell')} with the same counts.{told}" if same else ""


def title(result: GateResult) -> str:
    """The suite, the paths that were compared and the suite's margin, on one line."""
    base = f"{result.base} → " if result.base else ""
    rerun = f", rerun {result.rerun}" if result.rerun else ""
    margin = f" · margin {wording.as_written(result.margin)}" if result.margin is not None and result.base else ""
    return wording.plain(f"{result.suite} · {base}{result.head}{rerun}{margin}")


def render(result: GateResult, console: Console) -> None:
    """For a terminal: narrow ones get a figure a line."""
    grid.say(console, title(result), "dim")
    worst = next((STYLES[word] for word in ORDER if any(f.outcome == word for f in result.findings)), "bold green")
    grid.say(console, headline(result), worst if worst != "yellow" else "bold yellow")
    for note in result.notes:
        grid.say(console, f"note: {note}", "yellow")
    for level, findings in _by_level(result).items():
        console.print()
        grid.say(console, TITLES[level], "bold underline")
        if table_rows := rows(level, findings):
            show_rows(console, HEADINGS[level], table_rows, RANKS, left_aligned=("outcome", "must"))
        for note in filter(None, (_same_note(findings), _undecided_note(findings))):
            grid.say(console, note, "dim")
        if level != "counts":
            for each in _conspicuous(findings):
                grid.say(console, f"• {sentence(each)}", STYLES.get(each.outcome, ""))


def show_rows(
    console: Console,
    headings: Sequence[str],
    table_rows: Sequence[Sequence[str]],
    ranks: Mapping[str, int],
    left_aligned: Collection[str] = (),
) -> None:
    """A table whose first column labels its rows.

    Args:
        console:      where it is printed; on a narrow one columns go.
        headings:     one for each column.
        table_rows:   texts, one for each heading.
        ranks:        heading → how early its column goes; a column without one stays.
        left_aligned: headings of columns of words.
    """
    columns = [
        terminal.Column(
            heading,
            tuple(Text(wording.plain(row[place])) for row in table_rows),
            ranks.get(heading, 0),
            "left" if heading in left_aligned else "right",
        )
        for place, heading in enumerate(headings)
        if place
    ]
    terminal.show(console, [row[0] for row in table_rows], columns)


def markdown(result: GateResult, heading: str = "##") -> str:
    """For a pull request's summary: the same, ending in one newline."""
    page = [f"{heading} energybench: {escape(result.suite)}", f"**{escape(headline(result))}**", escape(title(result))]
    page += [f"- {escape(note)}" for note in result.notes]
    for level, findings in _by_level(result).items():
        page.append(f"{heading}# {TITLES[level]}")
        if table_rows := rows(level, findings):
            page.append(table(list(map(escape, HEADINGS[level])), [list(map(escape, row)) for row in table_rows]))
        page += filter(None, (_same_note(findings), escape(_undecided_note(findings))))
        if level != "counts" and (shown := _conspicuous(findings)):
            page.append("\n".join(f"- {escape(sentence(each))}" for each in shown))
    return wording.plain("\n\n".join(page)) + "\n"
