"""The templates of the HTML page and of a notebook, in which every text is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from energybench.verdict import wording

if TYPE_CHECKING:
    from jinja2 import Template

ASSETS = Path(__file__).parent / "page"


@cache
def template(name: str, keep_trailing_newline: bool = False) -> Template:
    """A template of page/, by its file's name; a name in it that nobody gave is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=keep_trailing_newline,
    )
    environment.filters |= {"percent": wording.percent, "clean": lambda text: wording.clean(str(text))}
    return environment.get_template(name)
