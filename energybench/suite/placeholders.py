"""Names in braces that stand for values in a suite's commands, paths and environment: {seed}, and how braces stay.

{name}      the value of that name; a name that nothing gives is a mistake, so that a typo runs no trial
{{text}}    {text}, as it is; {{{name}}} is a value in braces
${name}     a shell's own: it stays as it is, and so does ${{ … }}
{ text }    anything else in braces is no name, and stays: awk's '{print $1}', a JSON object, {} of find
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Value = str | int | float | bool
ALWAYS = ("seed", "block", "trial", "scratch")  # that every command may use
_SHELLS = r"\$\{\{[^{}]*\}\}|\$\{[^{}]*\}"
_OURS = r"\{\{\{(?P<inner>\w+)\}\}\}|\{\{(?P<kept>[^{}]*)\}\}|\{(?P<name>\w+)\}"
_TOKEN = re.compile(f"{_SHELLS}|{_OURS}")


def placeholders(text: str) -> set[str]:
    """Names that stand in braces for a value."""
    return {name for match in _TOKEN.finditer(text) if (name := match["name"] or match["inner"])}


def fill_words(words: Sequence[str], values: Mapping[str, Value], *, last: bool = True) -> list[str]:
    """The words with each {name} of `values` replaced; other names stay.

    last: nothing is filled in afterwards, so {{text}} becomes {text}
    """

    def filled(match: re.Match[str]) -> str:
        if match["name"] in values:
            return _shown(values[match["name"]])
        if match["inner"] in values:  # braces around a value
            shown = _shown(values[match["inner"]])
            return f"{{{shown}}}" if last else f"{{{{{shown}}}}}"
        return f"{{{match['kept']}}}" if last and match["kept"] is not None else match[0]

    return [_TOKEN.sub(filled, word) for word in words]


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
