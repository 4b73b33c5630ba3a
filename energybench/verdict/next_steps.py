"""What to type for more blocks that count: a new run that declares its looks before the first block."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from energybench.records.record import RunFile
from energybench.verdict.figures import Workload

MOST = "--set trials.blocks_max="


def more_blocks(run: RunFile, blocks: int) -> str:
    """The command for a run of so many blocks at most; empty for what no suite describes.

    A finished run takes no more blocks that count, since whoever may add some until something shows will find it. Up to
    the suite's `blocks_max` the flag is enough.
    """
    trials = run.resolved.get("trials") or {}
    if not trials:
        return ""
    options = [word for stamp in run.stamp if not stamp.startswith(MOST) for word in _option(stamp)]
    words = ["energybench", "run", _suite(run), *options, "--until-decided"]
    if (trials.get("blocks_max") or 0) < blocks:
        words += [
            "--set",
            f"trials.blocks_max={blocks}",
            *(["--set", "trials.looks=[]"] if trials.get("looks") else []),
        ]
    return shlex.join(words)


def more_blocks_for(run: RunFile, workloads: Sequence[Workload]) -> str:
    """The command that decides all that a number of blocks would; empty where nothing is open, or devices are counted:
    no machine has more of those by a command."""
    rows = [row for workload in workloads for row in workload.rows if row.unit == "block"]
    needed = [n for row in rows for n in (row.blocks_needed, row.quality_blocks_needed) if n is not None]
    return more_blocks(run, max(needed)) if needed else ""


def _option(stamp: str) -> list[str]:
    """A run's stamp as one types it."""
    if stamp == "quick":
        return ["--quick"]
    return ["--set", stamp.removeprefix("--set ")] if stamp.startswith("--set ") else []


def _suite(run: RunFile) -> str:
    """As it was typed where that is known, else its name."""
    for call in run.invocations:
        for word in call.argv[1:]:
            if word == run.suite or word.rsplit("/", 1)[-1] == run.suite_path:
                return word
    return run.suite
