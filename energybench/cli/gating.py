"""`compare`: whether a build may pass. Two runs, a run and golden counts, a run and its own requirements, a history."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from energybench.cli.common import Excluded, console, print_json, refuse_together
from energybench.cli.reading_bar import shows_reading
from energybench.common.errors import EXIT_FINE, Problem, UsageError, nearest

if TYPE_CHECKING:
    from energybench.gate.compare_runs import GateResult

# As compare_runs.LEVELS, which --help does not import.
LEVELS = ("counts", "savings", "absolute")
OVERHEAD = "overhead"  # of two trees of energybench itself: a verb of its own
FORMATS = ("junit", "markdown", "smaller-is-better", "bigger-is-better", "pytest-benchmark")
EXCLUDED: Excluded = {
    "--history": (
        "shows a trend and holds nothing",
        ("--level", "--rerun", "--rerun-base", "--accept", "--to", "--strict"),
    )
}
SUMMARY = "GITHUB_STEP_SUMMARY"


@click.command()
@click.argument("paths", metavar="[BASE] HEAD", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--level",
    "levels",
    multiple=True,
    type=click.Choice((*LEVELS, OVERHEAD)),
    help="counts: exact, any machine. savings: each run against its own plain training. absolute: seconds and joules, "
    "one device only. overhead: by itself, BASE and HEAD are folders or git refs of energybench. Default: counts, and "
    "savings where both are runs.",
)
@click.option(
    "--rerun",
    metavar="HEAD2",
    type=click.Path(path_type=Path),
    help="A second run of HEAD: only what it finds again is a regression.",
)
@click.option(
    "--rerun-base",
    metavar="BASE2",
    type=click.Path(path_type=Path),
    help="With --rerun: a second run of BASE, so that nothing is shared.",
)
@click.option(
    "--sees",
    metavar="SIZE",
    default="10 %",
    show_default=True,
    help="The loss that this gate is there to see: exit code 4 where one of that size could hide.",
)
@click.option("--allow-gone", is_flag=True, help="Cells that BASE has and HEAD has not are meant to be gone.")
@click.option("--accept", is_flag=True, help="Write HEAD's counts to the golden file BASE and say what changed.")
@click.option("--strict", is_flag=True, help="Exit code 4 where anything is suspected, undecided or cannot be told.")
@click.option("--to", "outputs", metavar="FORMAT=FILE", multiple=True, help=f"Also write {', '.join(FORMATS)}.")
@click.option("--history", is_flag=True, help="All runs at and below the folders, in time: trends, steps, noise.")
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
@shows_reading
def compare(
    paths: tuple[Path, ...],
    levels: tuple[str, ...],
    rerun: Path | None,
    rerun_base: Path | None,
    sees: str,
    allow_gone: bool,
    accept: bool,
    strict: bool,
    outputs: tuple[str, ...],
    history: bool,
    as_json: bool,
) -> None:
    """Hold HEAD against BASE, and against what its own suite requires.

    HEAD is a run's folder; BASE another of the same suite, or golden counts (a JSON file). With HEAD alone only the
    suite's [[require]] is held. Exit code 1: a regression, found again in the rerun; changed counts; a cell that is
    gone; a requirement that is not met. 2: nothing was compared. 4: a loss of the size that --sees names could hide.
    """
    size = _size(sees)
    wanted = [_output(text) for text in outputs]
    flags = {
        "--history": history,
        "--level": levels,
        "--rerun": rerun,
        "--rerun-base": rerun_base,
        "--accept": accept,
        "--to": outputs,
        "--strict": strict,
    }
    refuse_together([name for name, value in flags.items() if value], EXCLUDED)
    if history:
        _history(paths, as_json)
        return
    if not 1 <= len(paths) <= 2:
        raise click.UsageError("Name BASE and HEAD; or HEAD alone, for what its suite requires.")
    if OVERHEAD in levels:
        _overhead(paths, strict, as_json, alone=len(levels) == 1 and not (rerun or rerun_base or accept or outputs))
        return
    from energybench.gate import compare_runs

    base, head = (paths[0] if len(paths) == 2 else None), paths[-1]
    _refuse_foreign(wanted)
    if accept:
        if base is None or set(levels) - {"counts"} or rerun or strict:
            raise click.UsageError("--accept writes counts: energybench compare GOLDEN.json HEAD --accept")
        gate = compare_runs.accept(base, head)
    else:
        gate = compare_runs.compare(
            base, head, levels=levels, rerun=rerun, rerun_base=rerun_base, sees=size, allow_gone=allow_gone
        )
    for form, path in wanted:
        _write(form, path, gate, head)
    _step_summary(gate)
    if as_json:
        print_json(compare_runs.to_json(gate, strict))
    else:
        from energybench.gate.gate_page import render

        render(gate, console())
    sys.exit(EXIT_FINE if accept else compare_runs.exit_code(gate, strict))


def _size(text: str) -> float:
    """A relative loss. Raises UsageError E637."""
    from energybench.common.units import UnitError, parse_ratio

    try:
        size = parse_ratio(text)
    except UnitError as error:
        raise UsageError(Problem("E637", f"--sees: {error}", hint='--sees "10 %"')) from None
    if size <= 0:
        raise UsageError(Problem("E637", "no comparison sees a loss of nothing", hint='--sees "10 %"'))
    return size


def _overhead(paths: tuple[Path, ...], strict: bool, as_json: bool, alone: bool) -> None:
    """Source trees instead of runs: the verb `overhead` with its defaults."""
    if not alone:
        raise click.UsageError("--level overhead compares source trees, not runs: it stands by itself.")
    from energybench.cli.overhead import overhead

    flags = [*(["--strict"] if strict else []), *(["--json"] if as_json else [])]
    overhead.main([*flags, "--", *map(str, paths)], prog_name="energybench overhead", standalone_mode=False)


def _output(text: str) -> tuple[str, Path]:
    form, _, path = text.partition("=")
    if form not in FORMATS or not path:
        message = f"--to {text}: expected FORMAT=FILE" if form in FORMATS else f"--to {text}: there is no such format"
        hint = f"--to {form}=FILE" if form in FORMATS else nearest(form, FORMATS)
        raise UsageError(Problem("E635", message, hint=hint))
    return form, Path(path)


def _refuse_foreign(wanted: list[tuple[str, Path]]) -> None:
    """Before anything is compared: what --to names must be absent, or an earlier output of the form."""
    from energybench.common.outputs import refuse_foreign
    from energybench.gate import ci_formats

    for form, path in wanted:
        refuse_foreign(path, ci_formats.KINDS[form])


def _write(form: str, path: Path, gate: GateResult, head: Path) -> None:
    from energybench.common.outputs import write_output
    from energybench.gate import ci_formats, compare_runs

    if form in ci_formats.OF_THE_GATE:
        text = ci_formats.OF_THE_GATE[form](gate)
    elif head.is_dir():
        text = ci_formats.OF_HEAD[form](compare_runs.read_side(head))
    else:
        raise UsageError(Problem("E633", f"--to {form} is about a run's folder, and HEAD is a file", str(head)))
    write_output(path, text.encode(), ci_formats.KINDS[form])
    click.echo(f"{path} written", err=True)


def _step_summary(gate: GateResult) -> None:
    """Added to the job's page where a build server names one."""
    path = os.environ.get(SUMMARY)
    if not path:
        return
    from energybench.common.outputs import run_that_owns
    from energybench.gate.gate_page import markdown

    if (owner := run_that_owns(Path(path))) is not None:
        click.echo(f"note: nothing written to ${SUMMARY}: it is part of the run in {owner}", err=True)
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(markdown(gate) + "\n")
    except OSError as error:
        click.echo(f"note: nothing written to ${SUMMARY}: {error.strerror}", err=True)


def _history(paths: tuple[Path, ...], as_json: bool) -> None:
    from energybench.gate import history, history_page

    series = history.read(paths or (Path("reports"),))
    if as_json:
        print_json(history.to_json(series))
        return
    for number, each in enumerate(series):
        if number:
            click.echo()
        history_page.render(each, console())
