"""`run`, `check`, `flops`, `cell`: what a suite asks for, planned, counted, trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from energybench.cli import engines
from energybench.cli.common import Excluded, console, print_json, refuse_together, suite_options
from energybench.cli.completion import names_of_suites
from energybench.common.errors import EXIT_INTERRUPTED, EXIT_TRIALS_FAILED, EnergybenchError, Problem, UsageError
from energybench.common.interrupts import signals_interrupt
from energybench.runner.prepare import load_suite, plan_suite, seconds_of

if TYPE_CHECKING:
    from energybench.suite.suite import Suite

ALONE = ("--max-time", "--add-blocks", "--strict", "--json")
EXCLUDED: Excluded = {
    "--block": (
        "is run by one job of many, and only the report of all of them looks, after the numbers of blocks that were "
        "declared",
        ("--until-decided", "--plan-only", "--new", *ALONE),
    ),
    "--plan-only": ("trains nothing", ("--keep-going", *ALONE)),
    **engines.EXCLUDED,
}


@click.command()
@suite_options
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; default: reports/<suite>/<time>.")
@click.option("--new", "fresh", is_flag=True, help="Start a new run even if an interrupted one could be continued.")
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
@click.option(
    "--block",
    metavar="K",
    help="Block K of the run alone (3, 3-5, 1,4-6), in --out FOLDER/shards/b3, by the plan in FOLDER: one job of many.",
)
@click.option("--plan-only", is_flag=True, help="The plan and the counting runs, for --block; nothing is trained.")
@click.option("--strict", is_flag=True, help="Exit code 4 where something that the suite requires is left undecided.")
@click.option(
    "--keep-going", is_flag=True, help="Go on where a command's quality or windows cannot be used; else it ends there."
)
@click.option(
    "--on",
    "engine",
    type=click.Choice(engines.ENGINES),
    help="Run the blocks as jobs of a cluster, as [on] says, and report when they have ended.",
)
@click.option(
    "--blocks-per-job", type=click.IntRange(1, 1000), metavar="N", help="--on slurm: in place of the suite's."
)
@click.option("--submit-only", is_flag=True, help="--on slurm: do not wait; the same command waits later.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON on stdout.")
def run(
    suite: str,
    quick: bool,
    no_user_code: bool,
    overrides: tuple[str, ...],
    device: str | None,
    out: Path | None,
    fresh: bool,
    until_decided: bool,
    max_time: str | None,
    add_blocks: int | None,
    block: str | None,
    plan_only: bool,
    strict: bool,
    keep_going: bool,
    engine: str | None,
    blocks_per_job: int | None,
    submit_only: bool,
    as_json: bool,
) -> None:
    """Train every cell of SUITE (a file, or a shipped one's name) and report. Run again to continue."""
    from energybench.runner.shard import blocks_of

    flags = {
        "--block": block is not None,
        "--plan-only": plan_only,
        "--until-decided": until_decided,
        "--new": fresh,
        "--max-time": max_time is not None,
        "--add-blocks": add_blocks is not None,
        "--strict": strict,
        "--json": as_json,
        "--keep-going": keep_going,
        "--on": engine is not None,
    }
    refuse_together([name for name, given in flags.items() if given], EXCLUDED)
    blocks = () if block is None else blocks_of("--block", block)
    if blocks and out is None:
        raise click.UsageError("--block needs --out: the folder of this part, such as FOLDER/shards/b3.")
    if engine != "slurm" and (blocks_per_job or submit_only):
        raise click.UsageError(f"{'--submit-only' if submit_only else '--blocks-per-job'} is about --on slurm.")
    with signals_interrupt():  # a job may be ended before its run has begun
        if engine is not None:
            given = {"--quick": quick, "--no-user-code": no_user_code, "--keep-going": keep_going}
            asked = engines.asked(load_suite(suite, quick, overrides, device, no_user_code), given, overrides, device)
            wanted = engines.Wanted(out, fresh, blocks_per_job, submit_only, strict, as_json)
            sys.exit(engines.run_on(engine, asked, wanted))
        from energybench.runner import runner
        from energybench.runner.progress import Progress

        max_s = None if max_time is None else seconds_of("--max-time", max_time)
        loaded = load_suite(suite, quick, overrides, device, no_user_code)
        if (devices := _of_torchrun(loaded)) != loaded.trials.devices:
            given_too = (*overrides, f"trials.devices={devices}")
            loaded = load_suite(suite, quick, given_too, device, no_user_code)
        tables = console(to_stderr=as_json)
        progress = Progress(console(to_stderr=True), tables)
        code, folder = runner.run(
            loaded,
            out=out,
            fresh=fresh,
            device=device,
            progress=progress,
            max_s=max_s,
            until_decided=until_decided,
            add_blocks=add_blocks or 0,
            strict=strict,
            keep_going=keep_going,
            blocks=blocks,
            plan_only=plan_only,
        )
        if as_json and code != EXIT_INTERRUPTED:
            from energybench.records.reader import read_folder
            from energybench.verdict.summary import summarise, to_json

            print_json(to_json(summarise(*read_folder(folder))))
        sys.exit(code)


def _of_torchrun(suite: Suite) -> int:
    """Devices of each trial: as many as torchrun started processes on this node, of which all but the first end here;
    without it, the suite's.

    Raises UsageError E672 where torchrun and the suite say different numbers.
    """
    from energybench.runner import launched

    asked = suite.trials.devices
    if (found := launched.torchrun_of_one_node()) is None:
        return asked
    number, world = found
    launched.refuse_other_devices(asked, world, suite.where(("trials", "devices")))
    if number:
        note = f"rank {number} of {world}: the first one runs the suite and starts the ranks of each trial"
        click.echo(note, err=True)
        sys.exit(0)
    launched.leave_torchrun()
    return world


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("suite", required=False, shell_complete=names_of_suites)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="As for run, over the suite.")
def reread(folder: Path, suite: str | None, overrides: tuple[str, ...]) -> None:
    """Take the quality of FOLDER's commands again, from their logs, as SUITE says where it is read.

    Nothing runs again, and margins stay as they were declared. Without SUITE the one that the run keeps, under --set.

    energybench reread reports/mine/2026-11-30-120000 mine.toml
    """
    from energybench.records.reader import read_folder
    from energybench.report import pages
    from energybench.report.terminal import render
    from energybench.runner.reread import reread as take
    from energybench.verdict.summary import summarise

    done = take(folder, suite, overrides)
    for trial, reason in done.left.items():
        click.echo(f"note: {trial} stays as it is: {reason}", err=True)
    click.echo(f"{done.read} trial{'s' * (done.read != 1)} read again", err=True)
    if done.read:
        run, trials, counting_runs = read_folder(folder)
        summary = summarise(run, trials, counting_runs)
        pages.write(summary, trials, folder)
        render(summary, console())
    sys.exit(0 if done.read else EXIT_TRIALS_FAILED)


@click.command()
@suite_options
@click.argument("others", metavar="[SUITE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def check(
    suite: str,
    others: tuple[str, ...],
    quick: bool,
    no_user_code: bool,
    overrides: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """Validate SUITE without training or downloading, and print the plan: cells, trials, FLOPs, time.

    Several suites one after the other, as a commit hook names them: the mistakes of all of them are told.
    """
    from energybench.cli.show import print_plan
    from energybench.runner.foresight import foresight
    from energybench.runner.plan_facts import plan_facts

    if others and as_json:
        raise click.UsageError("--json is about one suite.")
    code = 0
    for each in (suite, *others):
        try:
            planned = plan_suite(load_suite(each, quick, overrides, device, no_user_code), device)
            facts = plan_facts(planned) | {"sees": foresight(planned)}
        except EnergybenchError as error:
            if as_json:
                print_json({"ok": False, "problems": [problem.as_dict() for problem in error.problems]})
                sys.exit(error.exit_code)
            if not others:
                raise
            for problem in error.problems:
                click.echo(str(problem), err=True)
            code = max(code, error.exit_code)
        else:
            if as_json:
                print_json({"ok": True, **facts})
            else:
                print_plan(facts, console())
    sys.exit(code)


@click.command()
@suite_options
@click.option(
    "--no-count", is_flag=True, help="Plain training's FLOPs alone, from the ledger, without running anything."
)
@click.option("--by", type=click.Choice(["module"]), help="Also layer by layer, with bytes.")
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def flops(
    suite: str,
    quick: bool,
    no_user_code: bool,
    overrides: tuple[str, ...],
    device: str | None,
    no_count: bool,
    by: str | None,
    as_json: bool,
) -> None:
    """FLOPs of each cell of SUITE: baseline, estimated, counted. Counting takes one unmetered run of each."""
    from energybench.cli.flops_page import examine, print_flops

    loaded = load_suite(suite, quick, overrides, device, no_user_code)
    facts = examine(
        loaded, device=device, count=not no_count, by_module=by == "module", say=lambda text: click.echo(text, err=True)
    )
    if as_json:
        print_json(facts)
    else:
        print_flops(facts, console())
    sys.exit(EXIT_TRIALS_FAILED if any(cell["status"] == "failed" for cell in facts["cells"]) else 0)


# The mode of what a trial is handed → the module that runs it.
MAINS = {
    "trial": "energybench.trial.trial",
    "counting run": "energybench.trial.counting_run",
    "command": "energybench.trial.command_trial",
}


@click.command()
@click.argument("in_path", metavar="IN.json", type=click.Path(exists=True, dir_okay=False))
@click.argument("out_path", metavar="OUT.json", type=click.Path(dir_okay=False))
def cell(in_path: str, out_path: str) -> None:
    """Run one trial described by IN.json and write its record: what `run` does in each child process."""
    import importlib
    import json

    from energybench.common.limits import RECORD_B
    from energybench.common.safe_read import read_bytes

    hint = "`energybench run` writes one for each trial; to run a suite: energybench run SUITE"
    try:
        spec = json.loads(read_bytes(Path(in_path), RECORD_B))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(Problem("E601", f"cannot read it: {reason}", in_path, hint)) from None
    if not isinstance(spec, dict) or spec.get("mode") not in MAINS:
        raise UsageError(Problem("E601", "it describes no trial", in_path, hint))
    from pydantic import ValidationError

    module = importlib.import_module(MAINS[spec["mode"]])
    try:
        module.main(in_path, out_path)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"it describes no trial: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UsageError(Problem("E601", message, in_path, hint)) from None
