"""The command line. Each verb imports what it needs when it is called, so that `--help` and `list` answer at once.

Tables go to stdout, messages to stderr. Exit codes: 0 fine · 2 wrong usage or invalid suite · 3 some trials failed, the
rest is reported · 5 this machine cannot measure what the suite asks · 130 interrupted, run again continues.
"""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from energybench.errors import (
    EXIT_INTERRUPTED,
    EXIT_TRIALS_FAILED,
    EnergybenchError,
    Problem,
    UsageError,
    in_order,
    nearest,
)

if TYPE_CHECKING:
    from rich.console import Console

    from energybench.planned import Planned
    from energybench.suite import Suite


class Verbs(click.Group):
    """A group whose unknown verbs name the nearest known one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = nearest(args[0], self.list_commands(ctx))
            click.echo(f"error[E100]: there is no verb '{args[0]}'\nhint: {hint}", err=True)
            ctx.exit(2)
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="energybench", message="%(prog)s %(version)s")
def app() -> None:
    """Train the same model twice, once with the trick. See what the meter says."""


def suite_options(function: Any) -> Any:
    """What `run` and `check` share."""
    for option in (
        click.option("--device", metavar="NAME", help="cpu, cuda or cuda:1; by default a GPU if there is one."),
        click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True,
                     help="Change a setting: workload.train.epochs=2. Said in the report's title."),
        click.option("--quick", is_flag=True, help="The suite's own [quick] overlay: a smoke test, stamped so."),
        click.argument("suite"),
    ):  # fmt: skip
        function = option(function)
    return function


@app.command()
@suite_options
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder; default: reports/<suite>/<time>."
)
@click.option(
    "--new", "fresh", is_flag=True, help="Start a new run even if an interrupted one could be continued."
)
@click.option(
    "--until-decided",
    is_flag=True,
    help="Up to the suite's blocks_max, looking only as it declares; ends when every comparison is decided.",
)
@click.option("--max-time", metavar="TIME", help="End after the block in progress past it: 4h, 30min.")
@click.option(
    "--add-blocks",
    type=click.IntRange(min=1),
    metavar="N",
    help="N blocks beyond a finished run's: exploratory, in no verdict.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON on stdout.")
def run(suite: str, quick: bool, overrides: tuple[str, ...], device: str | None, out: Path | None, fresh: bool,
        until_decided: bool, max_time: str | None, add_blocks: int | None, as_json: bool) -> None:  # fmt: skip
    """Train every cell of SUITE (a file, or a shipped one's name) and report. Run again to continue."""
    from energybench import runner
    from energybench.progress import Progress

    max_s = None if max_time is None else _seconds("--max-time", max_time)
    loaded = _load(suite, quick, overrides, device)
    tables = console(to_stderr=as_json)
    progress = Progress(console(to_stderr=True), tables)
    code, folder = runner.run(loaded, out=out, fresh=fresh, device=device, progress=progress, max_s=max_s,
                              until_decided=until_decided, add_blocks=add_blocks or 0)  # fmt: skip
    if as_json and code != EXIT_INTERRUPTED:
        _print_json(_report(folder))
    sys.exit(code)


@app.command()
@suite_options
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def check(suite: str, quick: bool, overrides: tuple[str, ...], device: str | None, as_json: bool) -> None:
    """Validate SUITE without training or downloading, and print the plan: cells, trials, FLOPs, time."""
    from energybench.planned import plan_facts
    from energybench.show import print_plan

    try:
        planned = _plan(_load(suite, quick, overrides, device), device)
    except EnergybenchError as error:
        if as_json:
            _print_json({"ok": False, "problems": [problem.as_dict() for problem in error.problems]})
            sys.exit(error.exit_code)
        raise
    if as_json:
        _print_json({"ok": True, **plan_facts(planned)})
    else:
        print_plan(plan_facts(planned), console())


@app.command()
@suite_options
@click.option(
    "--no-count",
    is_flag=True,
    help="Plain training's FLOPs alone, from the ledger, without running anything.",
)
@click.option("--by", type=click.Choice(["module"]), help="Also layer by layer, with bytes.")
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def flops(suite: str, quick: bool, overrides: tuple[str, ...], device: str | None, no_count: bool, by: str | None,
          as_json: bool) -> None:  # fmt: skip
    """FLOPs of each cell of SUITE: baseline, estimated, counted. Counting takes one unmetered run of each."""
    from energybench.cost_page import examine, print_flops

    loaded = _load(suite, quick, overrides, device)
    facts = examine(loaded, device=device, count=not no_count, by_module=by == "module",
                    say=lambda text: click.echo(text, err=True))  # fmt: skip
    if as_json:
        _print_json(facts)
    else:
        print_flops(facts, console())
    sys.exit(EXIT_TRIALS_FAILED if any(cell["status"] == "failed" for cell in facts["cells"]) else 0)


@app.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
def show(path: Path) -> None:
    """Print one record, or the trials of a run's folder."""
    from energybench.show import print_record, print_run

    (print_run if path.is_dir() else print_record)(path, console())


@app.command()
@click.argument("folders", metavar="FOLDER...", nargs=-1,
                type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
@click.option("--write", is_flag=True, help="Write FOLDER/report.md and figures/ again from its records.")
@click.option("--html", is_flag=True, help="Write FOLDER/report.html: one page that needs no network.")
@click.option("--all", "every", is_flag=True,
              help="Write every report below FOLDER again; default: reports.")  # fmt: skip
@click.option(
    "--carbon", is_flag=True, help="Energy by source, CO2e, what a measured saving means for many runs."
)
@click.option("--zones", metavar="FRA,USA", help="With --carbon: countries side by side, by ISO 3166 code.")
def report(folders: tuple[Path, ...], as_json: bool, write: bool, html: bool, every: bool, carbon: bool,
           zones: str | None) -> None:  # fmt: skip
    """Print the report of a run from its records. Needs no torch.

    Several folders of one suite: copies of one run's blocks are merged, other devices stand side by side.
    """
    if every:
        _write_all(folders or (Path("reports"),), html)
        return
    if not folders:
        raise click.UsageError("Name a run's folder, or --all.")
    folder = folders[0]
    if write or html or carbon or zones:
        _one_folder(folders, "--write" if write else "--html" if html else "--carbon")
    if carbon or zones:
        from energybench.report.carbon_page import report_carbon

        facts = report_carbon(folder, zones, None if as_json else console(), write=write)
        if as_json:
            _print_json(facts)
        return
    from energybench.report import merge
    from energybench.report.summary import summarise, to_json

    parts = merge.read(folders)
    if len(parts) > 1:
        if as_json:
            _print_json(merge.to_json(parts))
        else:
            merge.side_by_side(parts, console())
        return
    summary = summarise(*parts[0].records)
    if write or html:
        from energybench.report import pages

        trials = parts[0].records[1]
        if write:
            click.echo(f"{pages.write(summary, trials, folder)} written", err=True)
        if html:
            click.echo(f"{pages.write_html(summary, trials, folder)} written", err=True)
    if as_json:
        _print_json(to_json(summary))
    else:
        from energybench.report.terminal import render

        render(summary, console())


@app.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--to",
    "form",
    type=click.Choice(["csv", "parquet", "emissions", "model-card", "sci"]),
    required=True,
    help="csv, parquet: every trial; emissions: codecarbon's emissions.csv; model-card: Hugging Face's "
    "co2_eq_emissions; sci: Software Carbon Intensity (ISO/IEC 21031).",
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
@click.option("--embodied", metavar="KG", type=click.FloatRange(min=0),
              help="sci: kg CO2e of making the machine.")  # fmt: skip
@click.option("--lifespan", metavar="YEARS", type=click.FloatRange(min=0, min_open=True),
              help="sci: years over which --embodied is spread.")  # fmt: skip
def export(folder: Path, form: str, out: Path | None, **options: Any) -> None:
    """A run for other tools. Only what was measured is exported as emissions."""
    from energybench.export import export as make
    from energybench.record import write_bytes

    content, notes = make(folder, form, **options)
    if out is not None:
        write_bytes(out, content)
        notes = [*notes, f"{out} written"]
    elif form == "parquet" and sys.stdout.isatty():
        raise UsageError(Problem("E609", "Parquet is no text for a terminal", hint="-o trials.parquet"))
    else:
        sys.stdout.buffer.write(content)
    for note in notes:
        click.echo(note, err=True)


@app.command("list")
@click.argument("what", required=False, type=click.Choice(["methods", "suites", "models", "data"]))
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def list_(what: str | None, as_json: bool) -> None:
    """Methods, suites, models and data sets that can be used by name."""
    from energybench.listing import listing, print_listing

    found = listing()
    found = {what: found[what]} if what else found
    if as_json:
        _print_json(found)
    else:
        print_listing(found)


@app.group(cls=Verbs)
def new() -> None:
    """Start a file of your own."""


@new.command("method")
@click.argument("name")
def new_method(name: str) -> None:
    """Write methods/NAME.py: a method that works, to be changed."""
    from energybench.listing import write_method

    path = write_method(name, Path.cwd())
    click.echo(f'{path} written. Try it with a suite that has:\n\n    [[method]]\n    use = "{name}"\n')


@app.command()
@click.option(
    "--calibrate",
    is_flag=True,
    help="Also train the same thing again and again: how well this machine repeats itself, and the smallest "
    "saving that it can show.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=1), metavar="N", help="How long to calibrate, about; default: 30."
)
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def doctor(calibrate: bool, seconds: float | None, as_json: bool) -> None:  # fmt: skip
    """What this machine can measure, what it cannot, and what would change that."""
    from energybench import doctor
    from energybench.show import print_doctor, waiting
    from energybench.units import format_seconds

    facts = doctor.examine()
    calibrate = calibrate or seconds is not None
    if calibrate:
        seconds = seconds or doctor.CALIBRATE_S
        about = format_seconds(doctor.expected_s(facts, seconds), 2)
        with waiting(console(to_stderr=True), f"calibrating, about {about}") as tick:
            facts = doctor.calibrate(facts, seconds, tick)
    if as_json:
        _print_json(facts)
    else:
        print_doctor(facts, console())
    if calibrate and facts["calibration"] is None:
        click.echo(f"error[E504]: {facts['calibration_reason']}", err=True)
        sys.exit(EXIT_TRIALS_FAILED)


@app.command()
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
@click.option(
    "--markdown", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write the page to a file."
)
def claims(as_json: bool, page: Path | None) -> None:
    """The papers' own tables, counted again by their own rules, and where they contradict themselves."""
    from energybench.claims_page import markdown, print_claims
    from energybench.flops.paper_tables import facts

    found = facts()
    if page:
        page.write_text(markdown(found), encoding="utf-8")
        click.echo(f"{page} written", err=True)
    if as_json:
        _print_json(found)
    elif not page:
        print_claims(found, console())


@app.command()
def schema() -> None:
    """The suite's JSON Schema, so that an editor can complete and check one."""
    from energybench.suite import schema_json

    _print_json(schema_json())


@app.command()
@click.argument("in_path", metavar="IN.json", type=click.Path(exists=True, dir_okay=False))
@click.argument("out_path", metavar="OUT.json", type=click.Path(dir_okay=False))
def cell(in_path: str, out_path: str) -> None:
    """Run one trial described by IN.json and write its record: what `run` does in each child process."""
    from energybench.cell import main as run_cell

    run_cell(in_path, out_path)


def _seconds(option: str, text: str) -> float:
    from energybench.units import UnitError, parse_seconds

    try:
        return parse_seconds(text)
    except UnitError as error:
        raise UsageError(Problem("E204", f"{option}: {error}", hint=error.hint)) from None


def _write_all(roots: tuple[Path, ...], html: bool) -> None:
    """Every run's pages below the roots, from their records."""
    from energybench.report import pages

    found = dict.fromkeys(folder for root in roots for folder in pages.runs(root))
    if not found:
        where = ", ".join(map(str, roots))
        raise UsageError(
            Problem("E601", "there is no run's folder below it", where, "energybench report FOLDER --all")
        )
    for folder in found:
        click.echo(f"{pages.rewrite(folder, html)} written", err=True)


def _one_folder(folders: tuple[Path, ...], option: str) -> None:
    if len(folders) > 1:
        message = f"{option} is about one folder, and {len(folders)} are named"
        raise UsageError(
            Problem("E609", message, hint=f"one after the other: energybench report {folders[0]}")
        )


def _load(suite: str, quick: bool, overrides: tuple[str, ...], device: str | None) -> Suite:
    """The suite; or every mistake in it, those too that only show where methods and models are built."""
    from energybench.suite import SuiteError, load

    try:
        return load(suite, quick=quick, overrides=overrides)
    except SuiteError as error:
        if error.rest is None or all(problem.code == "E206" for problem in error.problems):
            raise  # nothing left to look at, or only --set is wrong: answer at once
        try:
            _plan(error.rest, device)
        except EnergybenchError as more:
            told = {problem.where for problem in error.problems}
            raise SuiteError(
                in_order([*error.problems, *(p for p in more.problems if p.where not in told)])
            ) from None
        raise


def _plan(suite: Suite, device: str | None) -> Planned:
    from energybench.folder import scratch
    from energybench.launch import Launcher
    from energybench.planned import plan

    with scratch() as place:
        launcher = Launcher()
        launcher.warm()
        return plan(suite, launcher, place, device=device, download=False)


def console(to_stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False)


def _report(folder: Path) -> dict[str, Any]:
    from energybench.record import read_folder
    from energybench.report.summary import summarise, to_json

    return to_json(summarise(*read_folder(folder)))


def _print_json(value: Any) -> None:
    click.echo(json_module.dumps(value, indent=2, ensure_ascii=False))


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
