"""The templates of HTML pages and of a notebook, in which every text is escaped; styles and scripts of whole pages."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energybench.verdict import wording

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

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
    environment.filters |= {"clean": lambda text: wording.clean(str(text)), "breakable": _breakable}
    return environment.get_template(name)


def _breakable(name: str) -> Markup:
    """A method's name, escaped, with places where a narrow column may break it: gradsamp|[skip=|every:|5]."""
    import markupsafe

    return markupsafe.Markup("<wbr>").join(re.split(r"(?<=[+=,:_/])|(?=\[)", wording.clean(name)))


def whole_page(scripts: Sequence[str], styles: Sequence[str]) -> dict[str, Any]:
    """What every whole page is given: its styles, its scripts, and the policy under which these alone run.

    Args:
        scripts: names of files of page/, in their order
        styles: the same
    """
    import markupsafe

    codes = [asset(name) for name in scripts]
    return {
        "styles": markupsafe.Markup("\n".join(map(asset, styles))),
        "scripts": [markupsafe.Markup(code) for code in codes],
        "policy": _policy(codes),
    }


@cache
def asset(name: str) -> str:
    """A file of page/; uPlot's code with its licence."""
    text = (ASSETS / name).read_text(encoding="utf-8").strip()
    return f"/*! uPlot\n{asset('uPlot.LICENSE')}\n*/\n{text}" if name == "uPlot.iife.min.js" else text


def _policy(scripts: Iterable[str]) -> str:
    """A Content-Security-Policy under which these scripts run and nothing is asked of any network."""
    hashed = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    rules = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "script-src " + " ".join(f"'sha256-{digest}'" for digest in hashed),
    ]
    return "; ".join(rules)
