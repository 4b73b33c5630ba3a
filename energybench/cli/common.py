"""What several verbs share: options, checks of flags, consoles, messages."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import click

from energybench.cli.completion import names_of_suites
from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.escaping import json_text, printable
from energybench.common.renamed import RenamedKeyWarning

if TYPE_CHECKING:
    from rich.console import Console


class Finite(click.FloatRange):
    """A finite number; click's ranges admit nan and inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


FEWEST_COLUMNS, MOST_COLUMNS = 10, 10_000  # of a terminal; what is said to be smaller or larger is no size
REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENXIO,
    errno.ENODEV,
)


class Verbs(click.Group):
    """A group that suggests the nearest verb for an unknown one, and reports what the system refuses as a mistake."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any("\0" in word for word in args):  # no shell can pass one
            raise UsageError(Problem("E100", "a word holds a NUL", hint="leave it out"))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:  # click takes it for an answer that nobody gave, and so for Ctrl-C
            raise RuntimeError("a file or a process ended early") from error
        except OSError as error:
            if (problem := system_refusal(error)) is None:
                raise
            raise UsageError(problem) from error

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = nearest(args[0], self.list_commands(ctx))
            click.echo(f"error[E100]: there is no verb '{printable(args[0])}'\nhint: {hint}", err=True)
            ctx.exit(2)
        return super().resolve_command(ctx, args)


def system_refusal(error: OSError) -> Problem | None:
    """The Problem of an OSError about a path that the user named; None for one that is a bug of ours."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return Problem("E613", "the folder that you are in is gone", hint="cd to one that is there")
    if error.errno not in REFUSED or error.filename is None:
        return None
    hint = "name another path, or change what is not allowed there"
    return Problem("E613", f"{error.strerror}", os.fsdecode(error.filename), hint)


Excluded = Mapping[str, tuple[str, tuple[str, ...]]]  # a flag → why, and the flags that it cannot stand beside


def refuse_together(given: Collection[str], excluded: Excluded) -> None:
    """Raises click's UsageError where a flag is given with one that it excludes."""
    for flag, (because, others) in excluded.items():
        if flag in given and (refused_flags := [other for other in others if other in given]):
            raise click.UsageError(f"{flag} {because}, so it takes no {refused_flags[0]}.")


def suite_options(function: Any) -> Any:
    """What `run` and `check` share."""
    for option in (
        click.option("--device", metavar="NAME", help="cpu, cuda or cuda:1; by default a GPU if there is one."),
        click.option(
            "--set",
            "overrides",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change a setting: workload.train.epochs=2. Said in the report's title.",
        ),
        click.option(
            "--no-user-code",
            is_flag=True,
            help="Refuse a suite that names code of its own: .py files, methods in ./methods.",
        ),
        click.option("--quick", is_flag=True, help="The suite's own [quick] overlay: a smoke test, stamped so."),
        click.argument("suite", shell_complete=names_of_suites),
    ):
        function = option(function)
    return function


def console(to_stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False, _environ=terminal_environment())


def terminal_environment() -> dict[str, str]:
    """The environment without a size of the terminal that none can have: COLUMNS=0, ², a million."""
    sizes = {"COLUMNS": MOST_COLUMNS, "LINES": MOST_COLUMNS}
    return {name: text for name, text in os.environ.items() if name not in sizes or _is_size(text, sizes[name])}


def _is_size(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and FEWEST_COLUMNS <= int(text) <= most


def show_warnings_as_notes() -> None:
    """Of old names in the user's files, on stderr as the other notes are; other warnings as Python shows them."""
    show = warnings.showwarning

    def show_as_note(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, RenamedKeyWarning):
            click.echo(f"note: {printable(str(message))}", err=True)
        else:
            show(message, category, *place, **options)

    warnings.showwarning = show_as_note


def print_json(value: Any) -> None:
    click.echo(json_text(value).encode())  # JSON is UTF-8, whatever the terminal is


def say_if_heard(text: str) -> None:
    """A line on stderr. Where nobody reads that any more, as when the terminal was closed, what follows goes on."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)
