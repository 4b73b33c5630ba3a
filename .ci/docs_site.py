"""What makes docs/ a site: a page of cards from the methods' own docstrings, and links that stay inside of the site.

mkdocs calls the functions that are named on_... (mkdocs.yml has this file under `hooks`); the others need no mkdocs.
"""

from __future__ import annotations

import re
from typing import Any

from energybench.cli.described import describe
from energybench.common.shipped import shipped

PAGE = "cards.md"
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")


def methods_page() -> str:
    """Every shipped method: what its docstring says, its parameters, an example."""
    parts = [
        "# Cards of the methods",
        "Each in its own words, from its file in `methods/`; in a terminal, `energybench list NAME`.",
    ]
    for path in sorted(shipped("methods").glob("[!_]*.py")):
        parts += _card(describe(path.stem))
    return "\n\n".join(parts) + "\n"


def _card(facts: dict[str, Any]) -> list[str]:
    text = facts["text"].removeprefix(f"{facts['name']}: ")
    rows = [
        f"| `{each['name']}` | {_cell(each['allowed'])} | {_default(each)} | {_cell(each['about'])} |"
        for each in facts["parameters"]
    ]
    table = (
        ["\n".join(["| parameter | what it may be | default | meaning |", "|---|---|---|---|", *rows])] if rows else []
    )
    return [f"## {facts['name']}", text[:1].upper() + text[1:], *table, f"```toml\n{facts['example']}\n```"]


def _default(parameter: dict[str, Any]) -> str:
    return "*required*" if parameter["required"] else f"`{parameter['default']}`" if parameter["default"] else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def inside(markdown: str) -> str:
    """A page whose links to files beside docs/ are words: a method's leads to its card, another's path is told."""

    def told(link: re.Match[str]) -> str:
        words, path = link.groups()
        if method := re.fullmatch(r"methods/(\w+)\.py", path):
            return f"[{words}]({PAGE}#{method[1]})"
        return words if words.strip("`") == path else f"{words} (`{path}` in the repository)"

    return OUTSIDE.sub(told, markdown)


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=methods_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return inside(markdown)
