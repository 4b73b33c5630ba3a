"""`list`, `new`, `doctor`, `claims`, `schema`: what there is, and what this machine can do."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from energybench.cli.common import Finite, Verbs, console, print_json
from energybench.common.errors import EXIT_TRIALS_FAILED


@click.command("list")
@click.argument("what", required=False, type=click.Choice(["methods", "suites", "models", "data"]))
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def list_(what: str | None, as_json: bool) -> None:
    """Methods, suites, models and data sets that can be used by name."""
    from energybench.cli.listing import listing, print_listing

    entries = listing()
    entries = {what: entries[what]} if what else entries
    if as_json:
        print_json(entries)
    else:
        print_listing(entries)


@click.group(cls=Verbs)
def new() -> None:
    """Start a file of your own."""


@new.command("method")
@click.argument("name")
def new_method(name: str) -> None:
    """Write methods/NAME.py: a method that works, to be changed."""
    from energybench.cli.listing import write_method

    path = write_method(name, Path.cwd())
    click.echo(f'{path} written. Try it with a suite that has:\n\n    [[method]]\n    use = "{name}"\n')


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
    from energybench.common.sealed_files import write_out
    from energybench.papers.page import markdown, print_claims
    from energybench.papers.published_tables import facts

    checked = facts()
    if page:
        write_out(page, markdown(checked).encode())
        click.echo(f"{page} written", err=True)
    if as_json:
        print_json(checked)
    elif not page:
        print_claims(checked, console())


@click.command()
def schema() -> None:
    """The suite's JSON Schema, so that an editor can complete and check one."""
    from energybench.suite.suite import schema_json

    print_json(schema_json())
