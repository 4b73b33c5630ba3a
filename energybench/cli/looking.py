"""`list`, `new`, `doctor`, `claims`, `schema`: what there is, and what this machine can do."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from energybench.cli.common import Finite, Verbs, console, print_json
from energybench.cli.completion import names_of_all
from energybench.common.errors import EXIT_TRIALS_FAILED


@click.command("list")
@click.argument("what", metavar="[methods|suites|tasks|models|data|NAME]", required=False, shell_complete=names_of_all)
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
@click.option(
    "--markdown",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Of methods: write a page of what each promises and what the reports found.",
)
@click.option(
    "--reports",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --markdown: where the runs lie; default: reports.",
)
def list_(what: str | None, as_json: bool, page: Path | None, reports: Path | None) -> None:
    """Methods, suites, tasks, models and data sets that can be used by name; with a NAME, all about that one.

    `energybench list gradsamp` prints its parameters with allowed values and defaults, what it needs, and an example.
    """
    from energybench.cli.listing import KINDS, listing, print_listing

    if reports is not None and page is None:
        raise click.UsageError("--reports is about --markdown.")
    if page is not None:
        if what != "methods" or as_json:
            raise click.UsageError("--markdown is a page of methods: energybench list methods --markdown FILE")
        _write_methods_page(page, reports or Path("reports"))
        return
    if what is not None and what not in KINDS:
        from energybench.cli.described import describe, print_described

        facts = describe(what)
        if as_json:
            print_json(facts)
        else:
            print_described(facts)
        return
    entries = listing()
    entries = {what: entries[what]} if what else entries
    if as_json:
        print_json(entries)
    else:
        print_listing(entries)
        if what is None:
            click.echo("more of one: energybench list NAME")


def _write_methods_page(page: Path, reports: Path) -> None:
    """Raises UsageError E601 where no run lies below the folder: a slip would empty the page."""
    from energybench.common.errors import Problem, UsageError
    from energybench.common.escaping import printable
    from energybench.common.outputs import refuse_foreign, write_output
    from energybench.report import measured_cells, pages
    from energybench.report.methods_page import KIND, markdown
    from energybench.train.discovery import cards

    refuse_foreign(page, KIND)
    runs = measured_cells.read(pages.runs(reports), lambda text: click.echo(printable(text), err=True))
    if not runs:
        hint = "energybench list methods --markdown FILE --reports FOLDER"
        raise UsageError(Problem("E601", "there is no run that can be read below it", str(reports), hint))
    own = [card for card in cards() if not card.package]
    write_output(page, markdown(own, runs, page, Path.cwd()).encode(), KIND)
    click.echo(f"{page} written", err=True)


@click.group(cls=Verbs)
def new() -> None:
    """Start a file of your own: a suite, a method, a task, a model, a data set. Each works as it is written."""


@new.command("method")
@click.argument("name")
def new_method(name: str) -> None:
    """Write methods/NAME.py: a method that works, to be changed."""
    from energybench.cli.starting import write_method

    path = write_method(name, Path.cwd())
    click.echo(f'{path} written. Try it with a suite that has:\n\n    [[method]]\n    use = "{name}"\n')


@new.command("suite")
@click.argument("name")
def new_suite(name: str) -> None:
    """Write NAME.toml: a suite that runs in a minute, to be changed; and the schema by which an editor completes it."""
    from energybench.cli.starting import write_suite
    from energybench.common.errors import typed

    paths = write_suite(name, Path.cwd(), _schema)
    click.echo(f"{' and '.join(map(str, paths))} written. Try it:\n\n    {typed('energybench', 'run', paths[0])}\n")


@new.command("task")
@click.argument("name")
def new_task(name: str) -> None:
    """Write NAME.py: a task that trains, with a metric that is better when lower, to be changed."""
    from energybench.cli.starting import class_name, write_task

    path = write_task(name, Path.cwd())
    quality = 'quality = { metric = "brier", loses_at_most = "0.02 units" }'
    lines = f'task   = "{path}:{class_name(name)}"\n    accept = {{ {quality} }}'
    click.echo(f"{path} written. In a [[workload]] of a suite of the same folder:\n\n    {lines}\n")


@new.command("model")
@click.argument("name")
def new_model(name: str) -> None:
    """Write NAME.py: a function that builds a model, to be changed."""
    from energybench.cli.starting import write_model

    path = write_model(name, Path.cwd())
    click.echo(f'{path} written. In a suite of the same folder:\n\n    model = {{ use = "{path}:{name}" }}\n')


@new.command("data")
@click.argument("name")
def new_data(name: str) -> None:
    """Write NAME.py: a function that makes a data set, to be changed. A folder of images needs none."""
    from energybench.cli.starting import write_data

    path = write_data(name, Path.cwd())
    use = f'data = {{ use = "{path}:{name}", batch = 32 }}'
    click.echo(f"{path} written. In a suite of the same folder:\n\n    {use}\n")


@click.command()
@click.option(
    "--calibrate",
    is_flag=True,
    help="Also train the same thing again and again: how well this machine repeats itself, and the smallest "
    "saving that it can show.",
)
@click.option("--seconds", type=Finite(min=1), metavar="N", help="How long to calibrate, about; default: 30.")
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def doctor(calibrate: bool, seconds: float | None, as_json: bool) -> None:
    """What this machine can measure, what it cannot, and what would change that."""
    from energybench.cli import doctor
    from energybench.cli.show import print_doctor, waiting
    from energybench.common.units import format_seconds
    from energybench.records import calibration

    facts = doctor.examine()
    calibrate = calibrate or seconds is not None
    if calibrate:
        seconds = seconds or doctor.CALIBRATE_S
        about = format_seconds(doctor.expected_s(facts, seconds), 2)
        with waiting(console(to_stderr=True), f"calibrating, about {about}") as tick:
            facts = doctor.calibrate(facts, seconds, tick)
        if facts["calibration"] is not None:
            calibration.keep(facts["calibration"], facts["machine"] | facts["calibration"])
    if as_json:
        print_json(facts)
    else:
        print_doctor(facts, console())
    if calibrate and facts["calibration"] is None:
        click.echo(f"error[E504]: {facts['calibration_reason']}", err=True)
        sys.exit(EXIT_TRIALS_FAILED)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
@click.option("--markdown", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write the page to a file.")
def claims(as_json: bool, page: Path | None) -> None:
    """The papers' own tables, counted again by their own rules, and where they contradict themselves."""
    from energybench.common.outputs import refuse_foreign, write_output
    from energybench.papers.page import KIND, markdown, print_claims
    from energybench.papers.published_tables import facts

    if page:
        refuse_foreign(page, KIND)
    checked = facts()
    if page:
        write_output(page, markdown(checked).encode(), KIND)
        click.echo(f"{page} written", err=True)
    if as_json:
        print_json(checked)
    elif not page:
        print_claims(checked, console())


@click.command()
@click.option(
    "--markdown",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the tables of docs/suite.md into it.",
)
def schema(page: Path | None) -> None:
    """The suite's JSON Schema, so that an editor can complete and check one."""
    if page is None:
        click.echo(_schema(), nl=False)
        return
    from energybench.cli.suite_page import KIND, markdown
    from energybench.common.limits import SUITE_B
    from energybench.common.outputs import refuse_foreign, write_output
    from energybench.common.safe_read import read_bytes

    refuse_foreign(page, KIND)
    so_far = read_bytes(page, SUITE_B).decode("utf-8") if page.is_file() else ""
    write_output(page, markdown(so_far).encode(), KIND)
    click.echo(f"{page} written", err=True)


def _schema() -> bytes:
    from energybench.cli.suite_schema import suite_schema
    from energybench.common.data_folder import names
    from energybench.common.escaping import json_text

    return f"{json_text(suite_schema(folders=names()))}\n".encode()
