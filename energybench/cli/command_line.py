"""The command line: its verbs stand in the other files of this room, and each imports what it needs when it is called.

Tables go to stdout, messages to stderr. Exit codes: 0 fine · 1 regression or a requirement not met · 2 wrong usage or
invalid suite · 3 some trials failed, the rest is reported · 4 inconclusive under --strict · 5 this machine cannot
measure what the suite asks · 130 interrupted, run again continues.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from energybench.cli import gating, looking, measuring, overhead, reading, training
from energybench.cli.common import Verbs, show_warnings_as_notes
from energybench.cli.terminal_encoding import write_what_can_be_written
from energybench.common.errors import EXIT_INTERRUPTED, CannotWrite, EnergybenchError, Problem
from energybench.common.interrupts import Interrupted
from energybench.common.processes import restore_child_signals

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    """The console script: our own errors without a trace, Ctrl-C as exit 130."""
    write_what_can_be_written()
    show_warnings_as_notes()
    restore_child_signals()
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except EnergybenchError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as interrupt:
        click.echo(interrupt if isinstance(interrupt, Interrupted) else "interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # | head
        sys.stderr.close()
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise  # our bug
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered for it
        hint = "make room where it goes; the files of a run are written before its table is printed"
        click.echo(str(Problem("E620", f"cannot write the output: {error.strerror}", hint=hint)), err=True)
        sys.exit(CannotWrite.exit_code)


if __name__ == "__main__":
    main()
