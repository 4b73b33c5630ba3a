"""Text that a build server may read as a command, made inert: names in suites and records are anybody's.

    ::add-mask::, ::stop-commands::, ::error   GitHub, Gitea, Forgejo: at the start of a line, blanks before it or none
    ##[error], ##[group]                       GitHub, Azure: anywhere in a line
    ##vso[task.setvariable]                    Azure: anywhere in a line
    ##teamcity[setParameter]                   TeamCity: anywhere in a line
    section_start:, section_end:               GitLab: anywhere in a line
    travis_fold:, travis_time:                 Travis: anywhere in a line
    --- , +++ , ~~~                            Buildkite: at the start of a line

A space is put before the last sign of each, so that a reader still sees what was written. What counts as a line's
start is decided on what is written, after wrapping: `InertWriter` does it for a stream.
"""

from __future__ import annotations

import re
from typing import Any

# A line's start as a build server sees it: after a line feed or a carriage return, blanks and sequences of colours.
_START = r"(?:^|(?<=[\r\n]))(?:\s|\ufeff|\x1b\[[0-9;]*[A-Za-z])*"
_COMMAND = re.compile(
    rf"(?P<at>{_START}:)(?P<last>:)"
    r"|(?P<hash>##[A-Za-z]*)(?P<bracket>\[)"
    r"|(?P<fold>\b(?:section_(?:start|end)|travis_(?:fold|time)))(?P<colon>:)"
    rf"|(?P<head>{_START}(?:--|\+\+|~~|\^\^))(?P<sign>[-+~^])(?=[ \t])",
    re.IGNORECASE,
)
LONGEST = 64  # of a beginning that may wait for its last sign in the next write


def inert(text: str) -> str:
    """The text, in which no build server finds a command of its own."""
    return _COMMAND.sub(_split, text)


def _split(found: re.Match[str]) -> str:
    return f"{found[0][:-1]} {found[0][-1]}"


class InertWriter:
    """Where a stream's line stands, so that a command that is written in two parts is none either."""

    def __init__(self) -> None:
        self._open = ""

    def inert(self, text: str) -> str:
        """What to write in the place of `text`, after all that was given before."""
        before = self._open
        made = _COMMAND.sub(lambda found: _split(found) if found.end() > len(before) else found[0], before + text)
        line = re.split(r"[\r\n]", made)[-1]
        self._open = line if len(line) <= LONGEST else "x" + line[-LONGEST:]  # no line's start any more
        return made[len(before) :]


class InertFile:
    """A text file of others, to which nothing is written that a build server takes for a command."""

    def __init__(self, file: Any) -> None:
        self._file, self._writer = file, InertWriter()

    def write(self, text: str) -> int:
        self._file.write(self._writer.inert(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
