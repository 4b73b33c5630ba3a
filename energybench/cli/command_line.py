"""The command line: its verbs stand in the other files of this room, and each imports what it needs when it is called.

Tables go to stdout, messages to stderr. Exit codes: 0 fine · 1 regression or a requirement not met · 2 wrong usage or
invalid suite · 3 some trials failed, the rest is reported · 4 inconclusive under --strict · 5 this machine cannot
measure what the suite asks · 70 a mistake of energybench itself · 130 interrupted, run again continues. `measure` ends
as its command does.
"""

from __future__ import annotations

import errno
import sys
import traceback

import click

from energybench.cli import gating, looking, measuring, overhead, reading, training
from energybench.cli.common import Verbs, show_warnings_as_notes
from energybench.cli.streams import Streams
from energybench.common.command_start import EXIT_OUR_BUG
from energybench.common.errors import EXIT_INTERRUPTED, EXIT_USAGE, CannotWrite, EnergybenchError, Problem
from energybench.common.interrupts import Interrupted
from energybench.common.processes import restore_child_signals

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# What one wants → the verbs for it; those that other programs call, last.
GROUPS = {
    "Run": ("run", "check", "flops", "measure"),
    "Read": ("report", "show", "export", "reread"),
    "Compare": ("compare", "overhead"),
    "Look things up": ("list", "doctor", "claims"),
    "Write your own": ("new", "schema"),
    "For energybench itself": ("cell",),
}
EXAMPLE = """energybench run quick            two methods on handwritten digits, in minutes
energybench report               the report of the newest run
energybench list gradsamp        all about one method
energybench new suite mine       a suite of your own"""


class GroupedVerbs(Verbs):
    """Its help groups the verbs by what one wants, and ends with examples and where the docs are."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, self.commands))
        for title, names in GROUPS.items():
            with formatter.section(title):
                room = formatter.width - 6 - longest
                rows = [(name.ljust(longest), self.commands[name].get_short_help_str(room)) for name in names]
                formatter.write_dl(rows)
        with formatter.section("Examples"):
            for line in EXAMPLE.splitlines():
                formatter.write(f"  {line}\n")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(
            "More of one: energybench VERB --help. The docs lie in docs/ of the repository: suite.md has every key of "
            "a suite and recipes, python.md the same from Python, ci.md and gates.md gates of a build."
        )


@click.group(cls=GroupedVerbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="energybench", message="%(prog)s %(version)s")
def app() -> None:
    """Train the same model twice, once with the trick. See what the meter says."""


for verb in (
    training.run,
    training.check,
    training.flops,
    training.cell,
    measuring.measure,
    training.reread,
    reading.show,
    reading.report,
    reading.export,
    gating.compare,
    overhead.overhead,
    looking.list_,
    looking.new,
    looking.doctor,
    looking.claims,
    looking.schema,
):
    app.add_command(verb)


def main() -> None:
    """The console script: our own errors without a trace, Ctrl-C as exit 130, and 1 for a regression alone."""
    streams = Streams()
    show_warnings_as_notes()
    restore_child_signals()
    code = _code()
    sys.exit(streams.end(code, next((word for word in sys.argv[1:] if word in app.commands), "")))


def _code() -> int:
    """The exit code of the command line, after all is said."""
    try:
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except EnergybenchError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort) as interrupt:
        click.echo(interrupt if isinstance(interrupt, Interrupted) else "interrupted", err=True)
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in NO_ROOM:
            return _our_bug()
        hint = "make room where it goes; the files of a run are written before its table is printed"
        click.echo(str(Problem("E620", f"cannot write the output: {error.strerror}", hint=hint)), err=True)
        return CannotWrite.exit_code
    except Exception:
        return _our_bug()


def _our_bug() -> int:
    """The trace, and a code that no verdict has: Python's own is 1."""
    traceback.print_exc()
    click.echo("this is a mistake of energybench: please report it with the lines above", err=True)
    return EXIT_OUR_BUG


if __name__ == "__main__":
    main()
