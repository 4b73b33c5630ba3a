"""No text of others is a command of a build server, wherever a line is cut or wrapped."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from command_line import energybench
from faults import fault
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from energybench.common.build_logs import InertFile, InertWriter, inert
from energybench.common.escaping import json_text

COMMANDS = [
    "::error::x",
    "::add-mask::a",
    "::stop-commands::t",
    "##[error]x",
    "##[group]x",
    "##vso[task.setvariable variable=a]b",
    "##teamcity[setParameter name='a' value='b']",
    "section_start:1560896352:a\r\x1b[0K",
    "section_end:1:a",
    "travis_fold:start:a",
    "travis_time:end:a",
    "--- folded",
    "+++ open",
    "~~~ muted",
    "^^^ +++",
]
# As the servers' own documents say, written here a second time: where a command begins in a log.
READ = re.compile(
    r"(?:^|[\r\n])[\s\ufeff]*::[a-zA-Z-]+|##\[|##(?:vso|teamcity)\[|section_(?:start|end):\d|travis_(?:fold|time):"
    r"|(?:^|[\r\n])[\s\ufeff]*(?:---|\+\+\+|~~~|\^\^\^)[ \t]",
    re.IGNORECASE,
)
PIECES = st.sampled_from(
    [*COMMANDS, "\n", "\r", " ", "\t", ":", "::", "#", "##", "[", "-", "a", "\x1b[1m", "ok\n", "é"]
)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_read_by_its_server_and_by_none_when_it_is_inert(command: str) -> None:
    for before in ("", "\n", "a\n  ", "a\r", "x\n\t"):
        assert READ.search(before + command)
        assert not READ.search(inert(before + command))
    assert inert(command).replace(" ", "") == command.replace(" ", "")  # nothing but a space is added


@pytest.mark.parametrize(
    "text", ["a::b", "std::vector", "## heading", "#[a]", "1 - 2", "-- x", "--- ", "a --- b", "----"]
)
def test_other_text_stays(text: str) -> None:
    assert inert(text) in (text, "-- - ")


@given(st.lists(PIECES, max_size=12))
def test_no_text_holds_a_command_when_it_is_inert_and_that_once_is_enough(pieces: list[str]) -> None:
    made = inert("".join(pieces))
    assert not READ.search(made)
    assert inert(made) == made


@given(st.lists(PIECES, max_size=10), st.data())
def test_nor_what_is_written_in_any_parts(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    writer, file = InertWriter(), io.StringIO()
    while text:
        length = data.draw(st.integers(1, len(text)))
        file.write(writer.inert(text[:length]))
        text = text[length:]
    assert not READ.search(file.getvalue())


@given(st.lists(st.sampled_from(["::error::x", "##[group]", "word", "long-word-of-many-letters", "a"]), max_size=12))
def test_nor_where_a_narrow_terminal_wraps_it(words: list[str]) -> None:
    file = io.StringIO()
    console = Console(file=InertFile(file), width=20, force_terminal=False)  # type: ignore[arg-type]
    console.print(Text(" ".join(words)))
    assert not READ.search(file.getvalue())


@given(st.recursive(PIECES, lambda inner: st.lists(inner) | st.dictionaries(PIECES, inner), max_leaves=8))
def test_json_keeps_its_values_and_holds_no_command(value: object) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert not READ.search(text)


SUITE = """schema = 1
suite = "s"
[[workload]]
name = "{name}"
command = "true"
quality = "none"
[[method]]
name = "{other}"
command = "true"
"""


@fault("workflow command")
def test_no_verb_prints_a_name_or_a_mistake_of_a_suite_as_a_command(tmp_path: Path) -> None:
    """A name, a key that is not known, a file's own name, and the text of an error."""
    (tmp_path / "::error::.toml").write_text(SUITE.format(name="::error::a", other="##[group]b"), encoding="utf-8")
    (tmp_path / "wrong.toml").write_text('"::warning::k" = 1\n"##[error]k" = 2\n', encoding="utf-8")
    (tmp_path / "cut.toml").write_text("::error::x\n", encoding="utf-8")
    for words in (
        ("check", "./::error::.toml"),
        ("check", "wrong.toml"),
        ("check", "cut.toml"),
        ("::error::verb",),
        ("report", "::error::folder"),
        ("list", "##teamcity[a]"),
        ("run", "./::error::.toml", "--out", "::error::out"),
        ("report", "::error::out"),
        ("report", "::error::out", "--json"),
        ("export", "::error::out", "--to", "csv"),
        ("measure", "--", "./::error::program"),
    ):
        done = energybench(*words, cwd=tmp_path, COLUMNS="20", CI="true", GITHUB_ACTIONS="true")
        assert "Traceback" not in done.stderr
        assert not READ.search(done.stdout), words
        assert not READ.search(done.stderr), words
