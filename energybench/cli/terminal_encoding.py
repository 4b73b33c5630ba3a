"""Our output on a terminal whose letters are few: − is then -, × is x, and nothing ends in a UnicodeEncodeError.

Names in suites and records are anybody's, and half of our own signs (−, ×, →, …) are in neither ISO 8859 nor ASCII.
"""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from functools import partial

PLAIN = {
    "−": "-",
    "–": "-",
    "—": "-",
    "·": ".",
    "×": "x",
    "→": "->",
    "…": "...",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "•": "*",
    "μ": "u",
    "µ": "u",
    "Δ": "d",
    "∂": "d",
    "Σ": "sum ",
    "‖": "||",
    "⟨": "<",
    "⟩": ">",
    "°": "deg ",
    "─": "-",
    "│": "|",
    "├": "+",
    "└": "+",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "′": "'",
}


def plain(sign: str, encoding: str) -> str:
    """The nearest that can be encoded: a spelling, the letter without its accent, or a question mark."""
    for replacement in (PLAIN.get(sign), unicodedata.normalize("NFKD", sign)):
        encodable = (replacement or "").encode(encoding, "ignore").decode(encoding)
        if encodable.strip():
            return encodable
    return "?"


def write_what_can_be_written() -> None:
    """To be called once, before anything is printed: standard output and error lose no line to their encoding."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue  # None where it is closed; a notebook's is its own
        if (codecs.lookup(stream.encoding).name, stream.errors) != ("utf-8", "surrogateescape"):
            name = f"energybench.{stream.encoding}"
            codecs.register_error(name, partial(_in_place_of, stream.encoding))
            stream.reconfigure(errors=name)


def _in_place_of(encoding: str, error: UnicodeError) -> tuple[str, int]:
    """What the encoder takes for what it cannot write. (The error names a table, not the encoding.)"""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(plain(sign, encoding) for sign in error.object[error.start : error.end]), error.end
