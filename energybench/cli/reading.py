"""`show`, `report`, `export`: what a run left, read again."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from energybench.cli.common import Excluded, Finite, console, print_json, refuse_together
from energybench.common.errors import Problem, UsageError, typed
from energybench.common.escaping import printable

if TYPE_CHECKING:
    from energybench.verdict.run_parts import Part

PAGES = ("--write", "--html")  # of one run, in the order in which they are written
CARBON = ("--carbon", "--zones", "--intensity", "--pue")  # each asks for the page on carbon
# What build servers set that do not set CI.
BUILD_SERVERS = {"GITHUB_ACTIONS", "TF_BUILD", "TEAMCITY_VERSION", "JENKINS_URL"}
_OWN_PAGE = ("is a page of its own", ("--require", "--html", "--strict"))
EXCLUDED: Excluded = {
    "--all": ("writes pages and holds nothing", ("--require", "--json", *CARBON, "--strict")),
    **dict.fromkeys(CARBON, _OWN_PAGE),
}


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
def show(path: Path) -> None:
    """Print one record, or the trials of a run's folder."""
    from energybench.cli.show import print_record, print_run

    (print_run if path.is_dir() else print_record)(path, console())


@click.command()
@click.argument("names", metavar="[FOLDER|SUITE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
@click.option("-v", "--verbose", is_flag=True, help="All that stands behind it: each method's figures, plain training.")
@click.option("--require", "hold", is_flag=True, help="Exit code 1 where the suite's [[require]] is not met.")
@click.option("--strict", is_flag=True, help="With --require: exit code 4 where one is left undecided.")
@click.option("--write", is_flag=True, help="Write FOLDER/report.md and figures/ again from its records.")
@click.option(
    "--html",
    metavar="[OUT]",
    is_flag=False,
    flag_value="",
    help="Write FOLDER/report.html: one page that needs no network. With --all: of every run; to OUT, one site of all.",
)
@click.option("--all", "every", is_flag=True, help="Write every report below FOLDER again; default: reports.")
@click.option("--carbon", is_flag=True, help="Energy by source, CO2e, what a measured saving means for many runs.")
@click.option("--zones", metavar="FR,US-CA", help="With --carbon: countries, states, cloud regions, side by side.")
@click.option("--intensity", metavar='"56 g/kWh"', help="With --carbon: a carbon intensity of your own.")
@click.option("--pue", metavar="1.2", type=Finite(min=1, max=1000), help="With --carbon: in place of the suite's PUE.")
def report(
    names: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    hold: bool,
    strict: bool,
    write: bool,
    html: str | None,
    every: bool,
    carbon: bool,
    zones: str | None,
    intensity: str | None,
    pue: float | None,
) -> None:
    """Print the report of a run from its records: of the newest, of a suite's newest, of a folder. Needs no torch.

    Several folders of one suite, or one with shards: what is one run is merged, and pooled from three devices of one
    kind on; what is not stands side by side, with the reason.
    """
    flags = {
        "--all": every,
        "--require": hold,
        "--html": html is not None,
        "--json": as_json,
        "--carbon": carbon,
        "--zones": zones is not None,
        "--intensity": intensity is not None,
        "--pue": pue is not None,
        "--strict": strict,
        "--write": write,
    }
    given = [name for name, value in flags.items() if value]
    refuse_together(given, EXCLUDED)
    if strict and not hold:
        raise click.UsageError("--strict is about --require.")
    if "" in names:  # an unset variable of a shell means no folder, and surely not the current one
        raise UsageError(Problem("E601", "a folder has a name", "''", "energybench report, without it: the newest run"))
    if every:
        _write_all(names or ("reports",), html)
        return
    if html and names:
        raise click.UsageError(
            "--html takes a folder to write to with --all alone; a run's page lies beside its records."
        )
    if html:  # `report --html FOLDER`
        names = (html,)

    from energybench.report import newest
    from energybench.verdict import run_parts

    folders = newest.folders(names, lambda text: click.echo(printable(text), err=True))
    parts = run_parts.read(folders)
    pages = [name for name in PAGES if name in given]
    if len(parts) > 1 and pages:
        _refuse_one_page(pages[0], parts, folders)
    if any(name in given for name in CARBON):
        _carbon(parts, folders[0], (zones, intensity, pue), write, as_json)
    elif len(parts) > 1:
        _side_by_side(parts, as_json, hold, strict)
    else:
        _one_run(parts[0], folders[0], pages, as_json, hold, strict, verbose)


def _refuse_one_page(flag: str, parts: Sequence[Part], folders: Sequence[Path]) -> NoReturn:
    """Raises UsageError E609: a page is of one run, pooled or not, and a site has one for each."""
    message = f"{flag} writes the page of one run, and these are {len(parts)} side by side: {parts[1].apart}"
    site = typed("energybench", "report", "--all", *folders, "--html", "site")
    hint = f"{site} — a site with a page for each; without {flag} they are printed side by side"
    raise UsageError(Problem("E609", message, hint=hint))


def _carbon(
    parts: Sequence[Part], folder: Path, wanted: tuple[str | None, str | None, float | None], write: bool, as_json: bool
) -> None:
    """wanted: what --zones, --intensity and --pue say; folder: where a page of one run is written"""
    from energybench.common.units import UnitError, parse_intensity
    from energybench.report.carbon_page import report_carbon
    from energybench.verdict.carbon import Asked

    zones, intensity, pue = wanted
    try:
        own = None if intensity is None else parse_intensity(intensity)
    except UnitError as error:
        raise UsageError(Problem("E204", f"--intensity: {error}", hint=error.hint)) from None
    names = () if zones is None else tuple(name.strip() for name in zones.split(",") if name.strip()) or ("",)
    facts = report_carbon(parts, Asked(names, own, pue), None if as_json else console(), folder if write else None)
    if as_json:
        print_json(facts)


def _side_by_side(parts: Sequence[Part], as_json: bool, hold: bool, strict: bool) -> None:
    """Each run by itself; with `hold` the exit code of the requirements of all of them."""
    from energybench.report import merge

    summaries = [part.summary() for part in parts]
    if hold and not any(summary.required for summary in summaries):
        _refuse_nothing_required(parts[0].folders[0])
    if as_json:
        print_json(merge.to_json(parts, summaries))
    else:
        merge.side_by_side(parts, console(), summaries)
    if hold:
        from energybench.verdict import requirements

        sys.exit(requirements.exit_code([each for summary in summaries for each in summary.required], strict))


def _refuse_nothing_required(folder: Path | str) -> NoReturn:
    hint = 'add a [[require]] with saves_at_least = "5 %" to the suite, and run it'
    raise UsageError(Problem("E631", "the suite of this run requires nothing", str(folder), hint))


def _one_run(
    part: Part, folder: Path, wanted: list[str], as_json: bool, hold: bool, strict: bool, verbose: bool
) -> None:
    """Its pages, its table, and with `hold` the exit code of its requirements."""
    from energybench.verdict.summary import to_json

    summary = part.summary()
    if hold and not part.records[0].resolved.get("require"):
        _refuse_nothing_required(folder)
    if wanted:
        from energybench.report import pages

        of_all = f", of {len(part.folders)} folders" if len(part.folders) > 1 else ""
        for name in wanted:
            write = pages.write if name == "--write" else pages.write_html
            click.echo(f"{write(summary, part.records[1], folder, homes=part.homes)} written{of_all}", err=True)
    if as_json:
        print_json(to_json(summary))
    else:
        from energybench.report.terminal import render

        render(summary, console(), verbose)
    if hold:
        from energybench.verdict import requirements

        sys.exit(requirements.exit_code(summary.required, strict))


@click.command()
@click.argument(
    "folders",
    metavar="FOLDER...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--to",
    "form",
    type=click.Choice(["csv", "parquet", "curves", "emissions", "model-card", "sci"]),
    required=True,
    help="csv, parquet: every trial; curves: every epoch of each, as csv; emissions: codecarbon's emissions.csv; "
    "model-card: Hugging Face's co2_eq_emissions; sci: Software Carbon Intensity (ISO/IEC 21031).",
)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="A file; default: stdout.")
@click.option("--workload", metavar="NAME", help="model-card: of which one, where there are several.")
@click.option("--method", metavar="NAME", help="model-card: of which one; baseline is plain training.")
@click.option(
    "--per",
    type=click.Choice(["run", "epoch", "sample"]),
    default="run",
    show_default=True,
    help="sci: the functional unit.",
)
@click.option("--embodied", metavar="KG", type=Finite(min=0), help="sci: kg CO2e of making the machine.")
@click.option(
    "--lifespan", metavar="YEARS", type=Finite(min=0, min_open=True), help="sci: years over which --embodied is spread."
)
def export(folders: tuple[Path, ...], form: str, out: Path | None, **options: Any) -> None:
    """A run for other tools, or several of one suite. Only what was measured is exported as emissions."""
    from energybench.common.outputs import refuse_foreign, write_output
    from energybench.report.export import KINDS
    from energybench.report.export import export as make

    if out is not None:
        refuse_foreign(out, KINDS[form])
    content, notes = make(folders, form, **options)
    if out is not None:
        write_output(out, content, KINDS[form])
        notes = [*notes, f"{out} written"]
    elif form == "parquet" and sys.stdout.isatty():
        raise UsageError(Problem("E609", "Parquet is no text for a terminal", hint="-o trials.parquet"))
    else:
        sys.stdout.buffer.write(content if form == "parquet" else _for_a_log(content))
    for note in notes:
        click.echo(note, err=True)


def _for_a_log(content: bytes) -> bytes:
    """In a build server's log, where standard output goes there, no line of it is a command."""
    if "CI" not in os.environ and not os.environ.keys() & BUILD_SERVERS:
        return content
    from energybench.common.build_logs import inert

    return inert(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _write_all(roots: tuple[str, ...], html: str | None) -> None:
    """Every run's pages below the roots, from their records; with a folder in `html`, one site of all of them there.

    A folder with shards is one run.
    """
    from energybench.report import pages

    folders = dict.fromkeys(folder for root in roots for folder in pages.runs(Path(root)))
    if not folders:
        where = ", ".join(roots)
        raise UsageError(Problem("E601", "there is no run's folder below it", where, "energybench report FOLDER --all"))
    if html:
        _write_site(list(folders), Path(html))
        return
    for folder in folders:
        click.echo(f"{pages.rewrite(folder, html is not None)} written", err=True)


def _write_site(folders: list[Path], out: Path) -> None:
    from energybench.report import pages, site

    if next(iter(pages.runs(out)), None) is not None:
        message = "runs lie in it; a site goes to a folder of its own"
        beside = typed("energybench", "report", "--all", out, "--html")
        hint = f"energybench report --all --html site — or each page beside its run: {beside}"
        raise UsageError(Problem("E609", message, str(out), hint))
    site.write(folders, out, lambda text: click.echo(printable(text), err=True))
