"""`run --on slurm`, `run --on ray`: what the command line hands an engine, and how the command ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from energybench.cli.common import Excluded, console, print_json
from energybench.common.errors import EXIT_FINE, EXIT_REGRESSION, EXIT_TRIALS_FAILED
from energybench.common.escaping import printable

if TYPE_CHECKING:
    from energybench.cluster.block_commands import Asked
    from energybench.suite.suite import Suite

ENGINES = ("slurm", "ray")
# Of `run`, beside --on: the blocks are on many machines, and only who collects them looks.
EXCLUDED: Excluded = {
    "--on": (
        "runs the suite's blocks as jobs",
        ("--block", "--plan-only", "--until-decided", "--max-time", "--add-blocks"),
    )
}


@dataclass(frozen=True)
class Wanted:
    """Of the command line, what no job is told. blocks_per_job: in place of the suite's."""

    out: Path | None
    fresh: bool
    blocks_per_job: int | None
    submit_only: bool
    strict: bool
    as_json: bool


def asked(suite: Suite, flags: Mapping[str, bool], overrides: tuple[str, ...], device: str | None) -> Asked:
    """What each job runs. flags: an option that it is handed as it is → whether it was given."""
    from energybench.cluster.block_commands import Asked

    words = [name for name, given in flags.items() if given]
    words += [word for text in overrides for word in ("--set", text)]
    return Asked(suite, (*words, *(("--device", device) if device else ())), device)


def run_on(engine: str, asked: Asked, wanted: Wanted) -> int:
    """Submit, wait, report. Returns the exit code: of the verdicts where every block is complete."""
    from energybench.cluster.live_line import LiveLine

    line = LiveLine(console(to_stderr=True))
    if engine == "ray":
        from energybench.cluster.ray_tasks import run_on_ray

        code, folder = run_on_ray(asked, out=wanted.out, fresh=wanted.fresh, line=line)
        return _report(folder, wanted) if code == EXIT_FINE else code
    from energybench.cluster.slurm import run_on_slurm

    waited, submission = run_on_slurm(
        asked,
        out=wanted.out,
        fresh=wanted.fresh,
        blocks_per_job=wanted.blocks_per_job,
        submit_only=wanted.submit_only,
        line=line,
    )
    if submission is None or not waited.disk.complete:
        return waited.code
    code = _report(waited.folder, wanted)
    if waited.code != EXIT_FINE:
        return waited.code
    submission.told()
    return code


def _report(folder: Path, wanted: Wanted) -> int:
    """Pages and table of all blocks that are there; where they ran on devices that are never one sample, side by
    side. Returns the exit code."""
    from energybench.report import merge, newest, pages
    from energybench.report.terminal import render
    from energybench.runner.runner import failed
    from energybench.verdict import requirements, run_parts
    from energybench.verdict.summary import to_json

    parts = run_parts.read([folder])
    summaries = [part.summary() for part in parts]
    if len(parts) > 1:
        if wanted.as_json:
            print_json(merge.to_json(parts, summaries))
        else:
            merge.side_by_side(parts, console(), summaries)
    else:
        (part,), (summary,) = parts, summaries
        pages.write(summary, part.records[1], folder, homes=part.homes)
        if wanted.as_json:
            print_json(to_json(summary))
        else:
            render(summary, console())
    if not wanted.as_json:
        shown = [f"report: {folder / pages.PAGE}"] if len(parts) == 1 else []
        for text in (*shown, *(f"more: {each}" for each in newest.commands(folder))):
            console().print(printable(text), soft_wrap=True, markup=False)
    code = requirements.exit_code([each for summary in summaries for each in summary.required], wanted.strict)
    trials = [trial for part in parts for trial in part.records[1]]
    return EXIT_TRIALS_FAILED if code != EXIT_REGRESSION and failed(trials) else code
