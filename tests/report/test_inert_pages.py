"""Names from strangers, on every page and terminal: they are shown, and do nothing."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from synthetic import GPU, Run

from energybench.cli import show
from energybench.cli.common import print_json
from energybench.common.errors import Problem
from energybench.common.escaping import json_text
from energybench.records.record import Claim, CountingRun, RunFile, Trial, write_json
from energybench.report.carbon_page import markdown as carbon_markdown
from energybench.report.carbon_page import render as carbon_render
from energybench.report.markdown import markdown
from energybench.report.markdown_syntax import details, escape
from energybench.report.rows import GLOSSARY
from energybench.report.terminal import partial, render
from energybench.verdict.carbon import carbon_report
from energybench.verdict.glance import Glance
from energybench.verdict.summary import summarise, to_json

NAMES = (
    "a|b`c",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![](http://evil.invalid/x)",
    "[x](javascript:alert(1))",
    "<javascript:alert(1)>",
    "[x]: http://evil.invalid",
    "[x][y]",
    "```\n<b>out</b>\n```",
    "line\n\n<b>break</b>\n\n# head",
    "http://evil.invalid",
    "www.evil.invalid",
    "&lt;b&gt;&#60;b&#62;",
    "\\<b>",
    "\\`<b>`",
    "**bold** _em_ ~~gone~~",
    "<!-- hidden",
    "-->",
    "@someone",
    "$x$",
    "a\u202egnp.exe",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b2J",
    "\x00\x07\r",
    "[red]red[/red]",
    "[link=http://evil.invalid]x[/link]",
    ":boom:",
    "{{ 7*7 }}",
    "%s%n",
    "' onload='x",
)
ALLOWED = {
    "h1",
    "h2",
    "h3",
    "p",
    "strong",
    "em",
    "s",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "ul",
    "li",
    "a",
    "img",
    "code",
    "pre",
    "hr",
    "br",
}


FOLDED = r"<details>\n<summary>[^<>\n@\[\]`|]*</summary>\n|</details>\n"  # the tags that are our own, around plain text


def hostile(name: str) -> tuple[RunFile, list[Trial], list[CountingRun]]:
    """A run in which everything that others choose is this name."""
    machine = {
        "cpu": name,
        name: name,
        "carbon": {"zone": "FRA", "country": name, "intensity_kg_per_j": 1e-8, "source": name},
    }
    run = Run(workload=name, sensors=(GPU, (f"model({name})", name)), machine=machine, stamp=[name], noise=0.01)
    run.method(name, time=0.7, flop=0.5, claim=Claim(saving_rel=0.4, source=name)).skip(f"skip {name}", name)
    run.method(f"2 {name}").change(f"2 {name}", 0, status="failed", reason=name)
    meta, trials, counting_runs = run.records()
    meta = meta.model_copy(
        update={
            "suite": name,
            "run": name,
            "about": name,
            "sources": {name: name},
            "digest": name,
            "invocations": [call.model_copy(update={"argv": ["energybench", name]}) for call in meta.invocations],
        }
    )
    return meta, [t.model_copy(update={"flags": [*t.flags, flag(name)]}) for t in trials], counting_runs


def flag(name: str) -> Any:
    from energybench.records.record import Flag

    return Flag(code=name, detail=name)


def rendered(text: str) -> Any:
    """A real renderer with tables, strikethrough and raw HTML: the most that a page's host may allow."""
    return MarkdownIt("commonmark", {"html": True, "linkify": False}).enable(["table", "strikethrough"]).parse(text)


def tokens(found: Any) -> Any:
    for token in found:
        yield token
        yield from tokens(token.children or [])


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("make", ["report.md", "carbon.md"])
def test_a_hostile_name_renders_to_no_tag_link_or_image(make: str, name: str) -> None:
    records = hostile(name)
    text = markdown(summarise(*records)) if make == "report.md" else carbon_markdown(carbon_report(*records))
    for token in tokens(rendered(text)):
        assert not token.type.startswith("html") or re.fullmatch(FOLDED, token.content), token.content
        assert not token.tag or token.tag in ALLOWED, token.tag
        for attribute in ("href", "src"):
            target = str((token.attrs or {}).get(attribute, "records/"))
            assert target.startswith(("records/", "figures/")) or target == GLOSSARY, target
    assert not [c for c in text if not c.isprintable() and c not in "\n\u00a0"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_what_is_escaped_reads_as_it_was_written(name: str) -> None:
    """Inert and not mangled: whoever reads the page sees the name."""
    inline = [token for token in rendered(f"x {escape(name)} x") if token.type == "inline"]
    shown = "".join(child.content for child in inline[0].children if child.type == "text")
    expected = "".join(c if c.isprintable() else " " for c in name)
    assert " ".join(shown.split()) == " ".join(f"x {expected} x".split())


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_what_is_folded_away_is_named_as_it_was_written(name: str) -> None:
    (begin,) = [token for token in rendered(details(name, ["inside"])) if token.content.startswith("<details>")]
    shown = html.unescape(begin.content.removeprefix("<details>\n<summary>").removesuffix("</summary>\n"))
    assert " ".join(shown.split()) == " ".join("".join(c if c.isprintable() else " " for c in name).split())


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_hostile_name_moves_no_terminal(name: str, tmp_path: Path) -> None:
    run, trials, counting_runs = hostile(name)
    summary, glance = summarise(run, trials, counting_runs), Glance(run)
    for block in {trial.block for trial in trials}:
        glance.block(block, [trial for trial in trials if trial.block == block])
    write_json(tmp_path / "run.json", run)
    for number, trial in enumerate(trials):
        write_json(tmp_path / "records" / f"{number}.json", trial)
    out = io.StringIO()
    for width in (60, 120):
        console = Console(file=out, width=width, force_terminal=False)
        render(summary, console, verbose=width > 60)
        partial(glance.so_far(), 3, console)
        carbon_render(carbon_report(run, trials, counting_runs), console)
        show.print_run(tmp_path, console)
        show.print_record(tmp_path / "records" / "0.json", console)
    out.write(str(Problem("E101", name, name, name)))
    printed = out.getvalue()
    assert not [c for c in printed if not c.isprintable() and c not in "\n\u00a0"]
    if "[red]" in name:
        assert "[red]red[/red]" in printed  # shown, not obeyed


def test_colours_are_ours_alone() -> None:
    out = io.StringIO()
    render(
        summarise(*hostile("\x1b[31mred [red]x[/red]")),
        Console(file=out, width=100, force_terminal=True, color_system="standard"),
    )
    codes = set(re.findall(r"\x1b\[([\d;]*)m", out.getvalue()))
    assert not re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).count("\x1b")
    assert " [31mred [red]x[/red]" in re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert codes


def test_json_on_a_terminal_is_inert_and_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    for name in (*NAMES, "é 名 \U0001f4a5 \U000e0001"):
        value = to_json(summarise(*hostile(name))) if len(name) < 12 else {name: [name]}
        print_json(value)
        printed = capsys.readouterr().out
        assert json.loads(printed) == value
        assert json.loads(json_text(value)) == value
        assert not [c for c in printed if not c.isprintable() and c != "\n"]
