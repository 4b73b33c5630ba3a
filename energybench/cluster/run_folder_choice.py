"""Which folder a run on an engine continues, or begins: known before its plan, which is made on another machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from energybench.cluster.block_commands import Asked
from energybench.cluster.jobs_file import Jobs, read_jobs
from energybench.common.errors import EnergybenchError, Problem, UsageError
from energybench.common.outputs import JOBS_FILE, RUN_FILE
from energybench.records import run_folder


def choose(asked: Asked, engine: str, out: Path | None, fresh: bool, say: Callable[[str], None]) -> Path:
    """`out`; else the newest run of the same command whose report was not shown yet; else a new folder. Absolute.

    Raises UsageError E683 where `out` holds what is no run of an engine, or another one's.
    """
    if out is not None:
        folder = out.absolute()
        if read_jobs(folder) is None and (folder / RUN_FILE).exists():
            message = "this folder holds a run that was not begun on an engine"
            raise UsageError(Problem("E683", message, str(out), "name another folder with --out"))
        return folder
    home = Path("reports") / asked.suite.suite
    for folder in [] if fresh else sorted((file.parent for file in home.glob(f"*/{JOBS_FILE}")), reverse=True):
        jobs = _read(folder, say)
        if jobs is not None and jobs.engine == engine and jobs.asked == asked.identity and not jobs.told:
            return folder.absolute()
    return run_folder.choose(asked.suite.suite, "", None, True).path.absolute()


def _read(folder: Path, say: Callable[[str], None]) -> Jobs | None:
    try:
        return read_jobs(folder)
    except EnergybenchError as error:
        say(f"note: left as it is: {error.problems[0].where}: {error.problems[0].message}")
        return None
