"""Line and column of every key in a TOML text, for error messages.

tomllib validates the text and gives the values; this module gives positions only, and assumes valid text.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Loc = tuple[str | int, ...]
Position = tuple[int, int]

_TOKEN = re.compile(
    r"""
    (?P<space>   [ \t]+ | \#[^\n]* )
  | (?P<newline> \r?\n )
  | (?P<string>  \"{3}(?:\\[\s\S]|[^\\])*?\"{3,5} | '{3}[\s\S]*?'{3,5} | \"(?:\\.|[^\"\\\n])*\" | '[^'\n]*' )
  | (?P<mark>    [\[\]{},=.] )
  | (?P<bare>    [^\s\[\]{},=.\#\"']+ )
    """,
    re.VERBOSE,
)


def positions(text: str) -> dict[Loc, Position]:
    """(line, column), from 1, of each key path of a valid TOML text.

    A table's position is its key in its header, an array element's is its value; `[[name]]` gives element i
    of `name` the position of the key in its own header. Columns count characters.
    """
    return _Reader(text).read()


class _Reader:
    """Recursive descent over the tokens; `index` is the next token's that is neither blank nor a comment."""

    def __init__(self, text: str) -> None:
        self.lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self.tokens = [
            (match.lastgroup or "", match.group(), match.start())
            for match in _TOKEN.finditer(text)
            if match.lastgroup != "space"
        ]
        self.tokens.append(("end", "", len(text)))
        self.index = 0
        self.places: dict[Loc, Position] = {}
        self.elements: dict[Loc, int] = {}  # arrays of tables: how many so far

    def read(self) -> dict[Loc, Position]:
        table: Loc = ()
        while self.kind != "end":
            if self.kind == "newline":
                self.index += 1
            elif self.text == "[":
                table = self.read_header()
            else:
                self.read_pair(table)
        return self.places

    @property
    def kind(self) -> str:
        return self.tokens[self.index][0]

    @property
    def text(self) -> str:
        return self.tokens[self.index][1]

    def position(self) -> Position:
        offset = self.tokens[self.index][2]
        line = bisect_right(self.lines, offset)
        return line, offset - self.lines[line - 1] + 1

    def read_header(self) -> Loc:
        """`[a.b]` or `[[a.b]]`; returns the path of the table that it opens."""
        self.index += 1
        element = self.text == "["
        self.index += element
        keys = self.read_keys()
        self.index += 1 + element
        path: Loc = ()
        for key, position in keys[:-1]:
            self.places.setdefault((*path, key), position)
            path = self.into_newest_element((*path, key))
        path, position = (*path, keys[-1][0]), keys[-1][1]
        if not element:
            self.places[path] = position
            return path
        self.places.setdefault(path, position)
        self.elements[path] = self.elements.get(path, 0) + 1
        path = self.into_newest_element(path)
        self.places[path] = position
        return path

    def into_newest_element(self, path: Loc) -> Loc:
        """A path into an array of tables continues in its newest element."""
        return (*path, self.elements[path] - 1) if path in self.elements else path

    def read_pair(self, table: Loc) -> None:
        """`a.b = value`"""
        path = table
        for key, position in self.read_keys():
            path = (*path, key)
            self.places.setdefault(path, position)
        self.index += 1
        self.read_value(path)

    def read_keys(self) -> list[tuple[str, Position]]:
        """A dotted key up to the mark that ends it."""
        keys = []
        while self.text not in ("=", "]"):
            if self.text != ".":
                keys.append((_key(self.text), self.position()))
            self.index += 1
        return keys

    def read_value(self, path: Loc) -> None:
        if self.text == "[":
            self.index += 1
            index = 0
            while self.skip_to_item() != "]":
                self.places[*path, index] = self.position()
                self.read_value((*path, index))
                index += 1
            self.index += 1
        elif self.text == "{":
            self.index += 1
            while self.skip_to_item() != "}":
                self.read_pair(path)
            self.index += 1
        else:  # a scalar: 1.5 and 1979-05-27 07:32:00 are several tokens
            while self.kind in ("bare", "string") or self.text == ".":
                self.index += 1

    def skip_to_item(self) -> str:
        """The next token across lines and commas."""
        while self.kind == "newline" or self.text == ",":
            self.index += 1
        return self.text


def _key(written: str) -> str:
    if written[0] not in "\"'":
        return written
    return next(iter(tomllib.loads(f"{written} = 0")))  # tomllib knows the escapes
