"""The tables of a suite whose trials are commands: a workload that is a command, a method that is another one.

Each trial is the user's command itself, metered; its quality is read from what it prints, writes or reports. Commands
are split into words as a shell splits them, and run without a shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from energybench.suite.messages import KeyedError
from energybench.suite.tables import ClaimsTable, Name, SuiteTable, TunedTable

OPERATOR = re.compile(r"\d*[|&;<>]+[&\d]*")  # a shell's own, where no quotation holds it
QUOTED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
ALWAYS = ("seed", "block", "trial")  # placeholders that every command may use
PLAIN = re.compile(r"[\w@%+=:,./{}-]+")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
Value = str | int | float | bool


def _split(text: str) -> list[str]:
    """The words of a command. Raises KeyedError for an open quotation, an empty command or a shell's operator."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise KeyedError(f"{error} in {text}", "", "close the quotation, or write \\' for the mark") from None
    if not words:
        raise KeyedError("an empty command", "", 'command = "python train.py"')
    if operator := shell_operator(text):
        hint = f"command = '''sh -c {shlex.quote(text)}'''"
        raise KeyedError(f"no shell reads this, so '{operator}' would be an argument of {words[0]}", "", hint)
    return words


def shell_operator(text: str) -> str | None:
    """The first operator of a shell (`|`, `&&`, `;`, `2>`, ...) that stands outside of every quotation; None without
    one. What no shell reads would be handed to the program as an argument."""
    unquoted = QUOTED.sub(lambda match: "q" * len(match[0]), text)
    found = OPERATOR.search(unquoted)
    return found[0] if found else None


def _checked(text: str) -> str:
    _split(text)
    return text


Command = Annotated[str, Field(max_length=10_000, examples=["python train.py"]), AfterValidator(_checked)]


def fill(command: str, values: Mapping[str, Value]) -> list[str]:
    """The words of a command with each {name} of `values` replaced; other braces stay, as the command's own."""
    return fill_words(_split(command), values)


def fill_words(words: Sequence[str], values: Mapping[str, Value]) -> list[str]:
    """The same for a command that has been split."""

    def filled(match: re.Match[str]) -> str:
        return _shown(values[match[1]]) if match[1] in values else match[0]

    return [PLACEHOLDER.sub(filled, word) for word in words]


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def written(words: Sequence[str]) -> str:
    """A command as one would type it; braces need no quotes."""
    return " ".join(word if PLAIN.fullmatch(word) else shlex.quote(word) for word in words)


def placeholders(text: str) -> set[str]:
    """Names that stand in braces."""
    return set(PLACEHOLDER.findall(text))


KEYS: dict[str, tuple[str, ...]] = {
    "json": ("key",),
    "file": ("path", "key"),
    "regex": ("pattern",),
    "window": ("key",),
    "none": (),
}


class QualitySourceTable(SuiteTable):
    """Where the quality of a trial is read."""

    where: Literal["json", "file", "regex", "window", "none"] = Field(
        alias="from",
        description="the last JSON line on stdout that has the key; a JSON file; the last match on stdout or stderr; "
        "what energybench.measure() was given; none: there is no quality that could be lost",
    )
    key: Name | None = Field(default=None, description="of the JSON, dotted where nested; else the metric")
    path: Name | None = Field(default=None, description="of the file, from the suite's folder")
    pattern: Name | None = Field(default=None, examples=["acc=([0-9.]+)"], description="group 1 is the number")

    @model_validator(mode="after")
    def _fits(self) -> QualitySourceTable:
        given = {"key": self.key, "path": self.path, "pattern": self.pattern}
        wanted = KEYS[self.where]
        for key, value in given.items():
            if value is not None and key not in wanted:
                message = f'from = "{self.where}" has no {key}'
                raise KeyedError(message, key, f"its keys: {', '.join(wanted)}" if wanted else "remove it")
        example = {"path": 'path = "metrics.json"', "pattern": "pattern = 'accuracy: ([0-9.]+)'"}
        for key in ("path", "pattern"):
            if key in wanted and given[key] is None:
                raise KeyedError(f'from = "{self.where}" needs a {key}', "", f"add {example[key]}")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                hint = "single quotes keep the backslashes: pattern = 'acc=([0-9.]+)'"
                raise KeyedError(f"not a regular expression: {error}", "pattern", hint) from None
            if groups < 1:
                hint = "put brackets around the number: 'accuracy ([0-9.]+)'"
                raise KeyedError("the pattern has no group to read the number from", "pattern", hint)
        return self


def _source(value: Any) -> Any:
    if isinstance(value, str) and value != "none":
        hint = 'quality = { from = "json", key = "accuracy" }, or "none" where nothing can be lost'
        raise KeyedError(f"expected a table or 'none', not '{value}'", "", hint)
    return {"from": value} if isinstance(value, str) else value


class CommandWorkloadTable(SuiteTable):
    """A command that is metered as it is: no model, no data and no recipe of ours."""

    name: Name
    extends: Name | None = Field(default=None, description="a workload whose other keys it takes")
    command: Command
    options: dict[str, Value] = Field(
        default_factory=dict, description="{name} in the command and in its methods' commands, the same in all"
    )
    quality: Annotated[QualitySourceTable, BeforeValidator(_source)] = Field(
        examples=[{"from": "json"}], description='where it is read; "none": there is no quality that could be lost'
    )

    @model_validator(mode="after")
    def _options_are_used(self) -> CommandWorkloadTable:
        used = placeholders(self.command) | placeholders(self.quality.path or "")
        for name in self.options:
            if name in ALWAYS:
                raise KeyedError(f"{{{name}}} is energybench's own", f"options.{name}", "give it another name")
            if name not in used:
                hint = f"write {{{name}}} in the command, or remove it"
                raise KeyedError(f"the command does not use {{{name}}}", f"options.{name}", hint)
        return self

    def settings(self) -> dict[str, Any]:
        """JSON-able; where a value came from is no setting."""
        return self.model_dump(mode="json", by_alias=True, exclude={"extends"})


def _commands(value: Any) -> Any:
    good = isinstance(value, str) or (
        isinstance(value, dict) and value and all(isinstance(each, str) for each in value.values())
    )
    if not good:
        hint = 'command = "python train.py --trick", or command = { my-training = "python ..." }'
        raise KeyedError("expected a command, or a table of one for each workload", "", hint)
    for key, text in {"": value}.items() if isinstance(value, str) else value.items():
        try:
            _split(text)
        except KeyedError as error:
            raise KeyedError(str(error), key, error.hint) from None
    return value


class CommandMethodTable(SuiteTable):
    """Another command in the workload's place: the same work, with the trick."""

    name: Name
    command: Annotated[str | dict[str, str], BeforeValidator(_commands)] = Field(
        examples=["python train.py --trick"], description="or a table: workload = command"
    )
    sweep: dict[str, Any] = Field(
        default_factory=dict, description="{name} in the command = [values]: one variant for each"
    )
    claims: ClaimsTable | None = None
    tuned: TunedTable | None = None

    @model_validator(mode="after")
    def _sweep_is_used(self) -> CommandMethodTable:
        texts = [self.command] if isinstance(self.command, str) else list(self.command.values())
        for name in self.sweep:
            if name in ALWAYS:
                raise KeyedError(f"{{{name}}} is energybench's own", f"sweep.{name}", "give it another name")
            if not all(name in placeholders(text) for text in texts):
                hint = f"write {{{name}}} where its value belongs"
                raise KeyedError(f"the command does not use {{{name}}}", f"sweep.{name}", hint)
        return self
