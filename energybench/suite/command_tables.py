"""The tables of a suite whose trials are commands: a workload that is a command, a method that is another one.

Each trial is the user's command itself, metered; its quality is read from what it prints, writes or reports. Commands
are split into words as a shell splits them, and run without a shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from energybench.common.errors import nearest
from energybench.suite.messages import KeyedError
from energybench.suite.placeholders import ALWAYS, Value, fill_words, placeholders
from energybench.suite.quality_source import QualitySourceTable, from_word
from energybench.suite.quality_tables import WorkloadAcceptTable
from energybench.suite.sweep_keys import plain_name
from energybench.suite.table import Name, SuiteTable
from energybench.suite.tables import SWEPT, ClaimsTable, TunedTable, without_empty_sweep

OPERATOR = re.compile(r"\d*[|&;<>]+[&\d]*")  # a shell's own, where no quotation holds it
QUOTED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
PLAIN = re.compile(r"[\w@%+=:,./{}-]+")
VARIABLE_NAME = re.compile(r"[^\x00-\x1f=]+")
COPY = "copy"  # of cwd


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
    """The words of a command with each {name} of `values` replaced; others are filled in when it runs."""
    return fill_words(_split(command), values, last=False)


def written(words: Sequence[str]) -> str:
    """A command as one would type it; braces need no quotes."""
    return " ".join(word if PLAIN.fullmatch(word) else shlex.quote(word) for word in words)


class RunTable(SuiteTable):
    """How a command is run; a method's own stands over its workload's."""

    env: dict[Name, str] = Field(
        default_factory=dict, examples=[{"OMP_NUM_THREADS": "1"}], description="variables that are set for it"
    )
    cwd: Name | None = Field(
        default=None, description='the folder it runs in, else the suite\'s; "copy": a copy of that for each trial'
    )
    stdin: Name | None = Field(default=None, description="a file that it reads, from the folder it runs in")

    @model_validator(mode="after")
    def _can_be_set(self) -> RunTable:
        for name, value in self.env.items():
            if not VARIABLE_NAME.fullmatch(name):
                raise KeyedError(f"no variable can be called '{name}'", "env", 'env = { NAME = "value" }')
            if name.startswith("ENERGYBENCH_"):
                raise KeyedError(f"energybench sets {name} itself", f"env.{name}", "give it another name")
            if "\0" in value:
                raise KeyedError("a variable cannot hold a NUL", f"env.{name}", "leave it out")
        return self

    def over(self, workload: RunTable) -> RunTable:
        """How a method's command is run in this workload's place."""
        return RunTable(
            env={**workload.env, **self.env}, cwd=self.cwd or workload.cwd, stdin=self.stdin or workload.stdin
        )

    @property
    def how(self) -> RunTable:
        """These keys alone."""
        return RunTable(env=self.env, cwd=self.cwd, stdin=self.stdin)

    @property
    def texts(self) -> list[str]:
        """Everything in it that may hold a {name}."""
        return [*self.env.values(), *filter(None, (self.cwd, self.stdin))]

    def told(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """What of it is set, for a record."""
        given = self.filled(values).model_dump(mode="json")
        return {key: value for key, value in given.items() if value}

    def filled(self, values: Mapping[str, Value], *, last: bool = True) -> RunTable:
        """With each {name} of `values` replaced, as `fill_words` does it."""
        known = dict(zip(self.env, fill_words([*self.env.values()], values, last=last), strict=True))
        cwd, stdin = (fill_words([text], values, last=last)[0] if text else None for text in (self.cwd, self.stdin))
        return RunTable(env=known, cwd=cwd, stdin=stdin)


class CommandWorkloadTable(RunTable):
    """A command that is metered as it is: no model, no data and no recipe of ours."""

    name: Name = Field(examples=["training"], description="as the report and --set call it")
    extends: Name | None = Field(default=None, description="a workload whose other keys it takes")
    command: Command = Field(
        description="run in the suite's folder, without a shell; {seed}, {trial}, {block} are told"
    )
    options: dict[str, Value] = Field(
        default_factory=dict, description="{name} in the command and in its methods' commands, the same in all"
    )
    quality: Annotated[QualitySourceTable, BeforeValidator(from_word)] = Field(
        examples=[{"from": "json"}], description='where it is read; "none": there is no quality that could be lost'
    )
    accept: WorkloadAcceptTable | None = None
    sweep: dict[str, Any] = Field(
        default_factory=dict,
        description='such as { "options.epochs" = [5, 10] }: one workload for each value, and for each combination',
        json_schema_extra={"additionalProperties": SWEPT},
    )

    @model_validator(mode="after")
    def _options_are_used(self) -> CommandWorkloadTable:
        texts = [self.command, *self.texts, *self.quality.paths]
        used = {name for text in texts for name in placeholders(text)}
        for name in self.options:
            if name in ALWAYS:
                raise KeyedError(f"{{{name}}} is energybench's own", f"options.{name}", "give it another name")
            if name not in used:
                near = nearest(name, used - {*self.options, *ALWAYS})
                meant = f"{near} It stands there in braces, and nothing gives a value to it" if near else ""
                hint = meant or f"write {{{name}}} in the command, or remove it"
                raise KeyedError(f"the command does not use {{{name}}}", f"options.{name}", hint)
        return self

    @property
    def plain_name(self) -> str:
        """Without its sweep: "script" of "script[epochs=5]"."""
        return plain_name(self.name, self.sweep)

    def settings(self) -> dict[str, Any]:
        """JSON-able; where a value came from is no setting."""
        settings = self.model_dump(mode="json", by_alias=True)
        return {key: value for key, value in settings.items() if key not in ("extends", "sweep")}

    @model_serializer(mode="wrap")
    def _without_a_sweep_that_there_is_not(self, as_table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A suite without one is resolved to what it always was."""
        return without_empty_sweep(as_table(self))


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


class CommandMethodTable(RunTable):
    """Another command in the workload's place: the same work, with the trick."""

    name: Name = Field(examples=["trick"], description="in the report")
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
        used = {name for text in self.texts for name in placeholders(text)}
        for name in self.sweep:
            if name in ALWAYS:
                raise KeyedError(f"{{{name}}} is energybench's own", f"sweep.{name}", "give it another name")
            if name not in used and not all(name in placeholders(text) for text in texts):
                hint = f"write {{{name}}} where its value belongs"
                raise KeyedError(f"the command does not use {{{name}}}", f"sweep.{name}", hint)
        return self
