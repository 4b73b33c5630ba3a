"""What a comparison found, for a terminal and as Markdown: a headline, a table per level, what stands out in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from energybench.common.errors import typed
from energybench.gate.compare_runs import Gate
from energybench.gate.regression import FAILS, OPEN, Finding
from energybench.report import grid, terminal
from energybench.report.markdown_syntax import escape, table
from energybench.verdict import wording

TITLES = {
    "counts": "Counts",
    "savings": "Savings, each against its own plain training",
    "absolute": "Seconds and joules on one device",
    "require": "What the suite requires",
}
STYLES = dict.fromkeys(FAILS, "bold red") | dict.fromkeys(OPEN, "yellow") | {"better": "green", "met": "green"}
ORDER = ("regression", "suspected", "changed", "gone", "not met", "not confirmed", "undecided", "cannot tell")
RANKS = {"sees from": 3, "BASE": 2, "HEAD": 1}  # what a narrow terminal loses first; the others stay
SAID = {
    "counts": ("cell", "BASE", "HEAD", "change"),
    "savings": ("method", "BASE", "HEAD", "cost grew by [95 %]", "sees from", "outcome"),
    "absolute": ("cell", "BASE", "HEAD", "grew by [95 %]", "sees from", "outcome"),
    "require": ("method", "must", "saves", "outcome"),
}


def headline(found: Gate) -> str:
    """The one sentence that decides, and what to type next."""
    by = Counter(each.outcome for each in found.findings)
    told = []
    if by["regression"]:
        told.append(f"Regression: {_count(by['regression'], 'comparison')} worse than BASE, found again in the rerun.")
    if changed := by["changed"] + by["gone"]:
        meant = ""
        if found.base and found.base.endswith(".json"):
            meant = f" If that is meant: energybench compare {typed(found.base, found.head)} --accept"
        told.append(f"Counts changed: {_count(changed, 'count')} other than in BASE.{meant}")
    if by["not met"]:
        told.append(f"Not met: {_count(by['not met'], 'requirement')} of the suite.")
    if by["suspected"]:
        again = f"energybench compare {typed(found.base, found.head)} --rerun HEAD2"
        told.append(
            f"Suspected: {_count(by['suspected'], 'comparison')} worse than BASE in one run, which is no regression "
            f"yet. Run HEAD's suite once more, with --new --out HEAD2, then: {again}"
        )
    if by["not confirmed"]:
        told.append(f"Not confirmed: {_count(by['not confirmed'], 'suspicion')} that the rerun did not find again.")
    if told:
        return " ".join(told)
    held = by["held"] + by["better"] + by["same"] + by["met"]
    left = [f"{by[word]} {word}" for word in ("undecided", "cannot tell", "new") if by[word]]
    if not held:
        return f"Nothing could be decided: {', '.join(left) or 'nothing was compared'}."
    return f"Nothing got worse: {held} held{''.join(f', {text}' for text in left)}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _value(finding: Finding, value: float | None) -> str:
    if value is None:
        return wording.NOTHING
    if finding.level == "counts":
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:.10g}"
    if finding.level == "absolute":
        return wording.duration(value) if finding.of == "time" else wording.si(value, "J")
    if _of_quality(finding):
        return wording.number(value, 4, sign=True)
    return wording.percent(value)


def _of_quality(finding: Finding) -> bool:
    return finding.level == "savings" and finding.of != "time" and not finding.of.startswith("energy")


def change(finding: Finding) -> str:
    """12.0 % [9.1, 15.0]; of quality the difference, of counts the ratio."""
    value, low, high = finding.change_rel, finding.low_rel, finding.high_rel
    if value is None:
        return wording.NOTHING
    if _of_quality(finding):
        return wording.number(value, 4, sign=True)
    text = f"{wording.number(100 * value, 1, sign=True)}{wording.NB}%"
    if low is None or high is None:
        return text
    return f"{text}{wording.NB}{wording.interval(low, high, 1)}"


def _label(finding: Finding) -> str:
    name = f"{finding.workload}: {finding.method}"
    return name if finding.of in ("time", "saving", "cell", "all counts") else f"{name}, {finding.of}"


def rows(level: str, found: Sequence[Finding]) -> list[list[str]]:
    """One level's table, columns as in SAID; of counts only those that differ."""
    result = []
    for each in found:
        before, after = _value(each, each.base), _value(each, each.head)
        if level == "require":
            result.append([f"{each.workload}: {each.method}", each.of, _saved(each), each.outcome])
        elif level == "counts":
            if each.outcome != "same":
                told = change(each) if each.outcome == "changed" else each.outcome
                result.append([_label(each), before, after, told])
        else:
            seen = wording.NOTHING if each.detectable_rel is None else _rough(each.detectable_rel)
            result.append([_label(each), before, after, change(each), seen, each.outcome])
    return result


def _rough(value: float) -> str:
    return wording.percent(value, 0 if abs(value) >= 0.1 else 1)


def _saved(finding: Finding) -> str:
    if finding.head is None:
        return wording.NOTHING
    return wording.saving(finding.head, finding.low_rel, finding.high_rel)


def sentence(finding: Finding) -> str:
    """What happened to one comparison, whole in itself."""
    place, why = f"{finding.workload}: {finding.method}", finding.because
    before, after = _value(finding, finding.base), _value(finding, finding.head)
    tail = f" ({why})" if why else ""
    if finding.level == "require":
        return f"{place}: {finding.of}: {finding.outcome}{f': {why}' if why else ''}"
    if finding.outcome == "changed":
        return f"{place}: {finding.of} was {before}, now {after}{tail}"
    if finding.change_rel is None:
        return f"{place}: {finding.outcome}{f': {why}' if why else ''}"
    if _of_quality(finding):
        return f"{place}: {finding.of} against plain training was {before}, now {after}: {finding.outcome}{tail}"
    if finding.level == "absolute":
        verb = "takes" if finding.of == "time" else f"uses {finding.of}:"
        return f"{place} {verb} {after}, before {before}: {change(finding)}: {finding.outcome}{tail}"
    return (
        f"{place} saved {before} of the {finding.of}, now {after}: its cost relative to plain training changed by "
        f"{change(finding)}: {finding.outcome}{tail}"
    )


def _levels(found: Gate) -> list[tuple[str, list[Finding]]]:
    by_level = {level: [each for each in found.findings if each.level == level] for level in TITLES}
    return [(level, here) for level, here in by_level.items() if here]


def _out(findings: Sequence[Finding]) -> list[Finding]:
    """What stands out, gravest first; whatever the table says whole is not said again."""
    found = (f for f in findings if f.outcome in ORDER and (f.because or f.outcome != "undecided"))
    return sorted(found, key=lambda f: ORDER.index(f.outcome))


def _open(findings: Sequence[Finding]) -> str:
    if not any(f.outcome == "undecided" and not f.because for f in findings):
        return ""
    return 'undecided: a change smaller than "sees from" may hide in the scatter of the blocks; more blocks show it.'


def _same(findings: Sequence[Finding]) -> str:
    same = sum(each.outcome == "same" for each in findings)
    return f"{_count(same, 'cell')} with the same counts." if same else ""


def title(found: Gate) -> str:
    against = f"{found.base} → " if found.base else ""
    rerun = f", rerun {found.rerun}" if found.rerun else ""
    margin = f" · margin {wording.as_written(found.margin)}" if found.margin is not None and found.base else ""
    return wording.plain(f"{found.suite} · {against}{found.head}{rerun}{margin}")


def render(found: Gate, console: Console) -> None:
    """For a terminal: narrow ones get a figure a line."""
    grid.say(console, title(found), "dim")
    worst = next((STYLES[word] for word in ORDER if any(f.outcome == word for f in found.findings)), "bold green")
    grid.say(console, headline(found), worst if worst != "yellow" else "bold yellow")
    for note in found.notes:
        grid.say(console, f"note: {note}", "yellow")
    for level, here in _levels(found):
        console.print()
        grid.say(console, TITLES[level], "bold underline")
        if shown := rows(level, here):
            head = SAID[level]
            columns = [
                terminal.Column(
                    name,
                    tuple(Text(wording.plain(row[place])) for row in shown),
                    RANKS.get(name, 0),
                    "left" if name in ("outcome", "must") else "right",
                )
                for place, name in enumerate(head)
                if place
            ]
            terminal.show(console, [row[0] for row in shown], columns)
        for told in filter(None, (_same(here), _open(here))):
            grid.say(console, told, "dim")
        if level != "counts":
            for each in _out(here):
                grid.say(console, f"• {sentence(each)}", STYLES.get(each.outcome, ""))


def markdown(found: Gate, heading: str = "##") -> str:
    """For a pull request's summary: the same, ending in one newline."""
    page = [f"{heading} energybench: {escape(found.suite)}", f"**{escape(headline(found))}**", escape(title(found))]
    page += [f"- {escape(note)}" for note in found.notes]
    for level, here in _levels(found):
        page.append(f"{heading}# {TITLES[level]}")
        if shown := rows(level, here):
            page.append(table([escape(text) for text in SAID[level]], [list(map(escape, row)) for row in shown]))
        page += filter(None, (_same(here), escape(_open(here))))
        if level != "counts" and (out := _out(here)):
            page.append("\n".join(f"- {escape(sentence(each))}" for each in out))
    return wording.plain("\n\n".join(page)) + "\n"
