"""The command line: its verbs stand in `commands/`, and each imports what it needs when it is called.

Tables go to stdout, messages to stderr. Exit codes: 0 fine · 1 a regression · 2 wrong usage or invalid suite · 3 some
trials failed, the rest is reported · 5 this machine cannot measure what the suite asks · 130 interrupted, run again
continues.
"""

from __future__ import annotations

import sys

import click

from energybench.commands import looking, overhead, reading, training
from energybench.commands.common import Verbs
from energybench.errors import EXIT_INTERRUPTED, EnergybenchError


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="energybench", message="%(prog)s %(version)s")
def app() -> None:
    """Train the same model twice, once with the trick. See what the meter says."""


for verb in (training.run, training.check, training.flops, training.cell, reading.show, reading.report,
             reading.export, looking.list_, looking.new, looking.doctor, looking.claims, looking.schema,
             overhead.overhead):  # fmt: skip
    app.add_command(verb)


def main() -> None:
    """The console script: our own errors without a trace, Ctrl-C as exit 130."""
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
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # | head
        sys.stderr.close()


if __name__ == "__main__":
    main()
