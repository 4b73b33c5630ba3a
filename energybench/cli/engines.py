"""`run --on slurm`, `run --on ray`: what the command line hands an engine, and how the command ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energybench.cli.common import Excluded, console, print_json
from energybench.common.errors import EXIT_FINE, EXIT_REGRESSION, EXIT_TRIALS_FAILED
from energybench.common.escaping import printable

if TYPE_CHECKING:
    from energybench.suite.suite import Suite

ENGINES = ("slurm", "ray")
# Of `run`, beside --on: the blocks are on many machines, and only who collects them looks.
EXCLUDED: Excluded = {
    "--on": (
        "runs the suite's blocks as jobs",
        ("--block", "--plan-only", "--until-decided", "--max-time", "--add-blocks"),
    )
}
# An option of `run` that each job is given too → its word.
HANDED_ON = {"quick": "--quick", "no_user_code": "--no-user-code", "keep_going": "--keep-going"}


def handed_on(flags: Mapping[str, bool], overrides: tuple[str, ...], device: str | None) -> tuple[str, ...]:
    """The words of a job's command that are those of this one."""
    words = [word for name, word in HANDED_ON.items() if flags.get(name)]
    words += [word for text in overrides for word in ("--set", text)]
    return (*words, *(("--device", device) if device else ()))


def run_on(
    engine: str,
    suite: Suite,
    *,
    options: tuple[str, ...],
    device: str | None,
    out: Path | None,
    fresh: bool,
    blocks_per_job: int | None,
    submit_only: bool,
    strict: bool,
    as_json: bool,
) -> int:
    """Submit, wait, report. Returns the exit code: of the verdicts where every block is complete."""
    from energybench.cluster.block_commands import Asked
    from energybench.cluster.live_line import LiveLine

    asked = Asked(suite, options, device)
    line = LiveLine(console(to_stderr=True))
    if engine == "ray":
        from energybench.cluster.ray_tasks import run_on_ray

        code, folder = run_on_ray(asked, out=out, fresh=fresh, line=line)
        return _report(folder, strict, as_json) if code == EXIT_FINE else code
    from energybench.cluster.slurm import run_on_slurm

    waited, submission = run_on_slurm(
        asked, out=out, fresh=fresh, blocks_per_job=blocks_per_job, submit_only=submit_only, line=line
    )
    if submission is None:
        return waited.code
    if waited.disk.complete:
        code = _report(waited.folder, strict, as_json)
        if waited.code == EXIT_FINE:
            submission.told()
            return code
    return waited.code


def _report(folder: Path, strict: bool, as_json: bool) -> int:
    """Pages and table of all blocks that are there."""
    from energybench.report import newest, pages
    from energybench.report.terminal import render
    from energybench.verdict import requirements, run_parts
    from energybench.verdict.summary import summarise, to_json

    (part,) = run_parts.read([folder])
    summary, trials = summarise(*part.records), part.records[1]
    pages.write(summary, trials, folder)
    if as_json:
        print_json(to_json(summary))
    else:
        render(summary, console())
        for line in (f"report: {folder / pages.PAGE}", *(f"more: {each}" for each in newest.commands(folder))):
            console().print(printable(line), soft_wrap=True, markup=False)
    code = requirements.exit_code(summary.required, strict)
    return EXIT_TRIALS_FAILED if code != EXIT_REGRESSION and _failed(trials) else code


def _failed(trials: list[Any]) -> bool:
    from energybench.runner.runner import failed

    return bool(failed(trials))
