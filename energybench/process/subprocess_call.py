"""A process of our own that needs no torch: started afresh, so that it starts fast, and supervised to its end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from energybench.common.errors import EXIT_CANNOT_WRITE
from energybench.process import supervise
from energybench.process.forkserver import Outcome
from energybench.process.output_log import Lines


def call(
    module: str,
    in_path: Path,
    out_path: Path,
    *,
    limit_s: float | None = None,
    tick: Callable[[float], None] | None = None,
) -> Outcome:
    """Run `module`'s main(IN, OUT) and wait, asleep, until it ends or its limit has passed."""
    lines, last = Lines(), [""]

    def output(stream: str, chunk: bytes) -> None:
        if stream == "stderr":
            last[:] = [line.strip() for line in lines.feed(chunk) if line.strip()][-1:] or last

    # -P: a file of the user's in this folder must not stand in for a module of the library.
    argv = [sys.executable, "-P", "-m", module, str(in_path.absolute()), str(out_path.absolute())]
    ended = supervise.run(argv, output=output, limit_s=limit_s, dies_by=signal.SIGTERM, tick=tick)
    if ended.timed_out:
        return Outcome(ended.seconds, True, f"it ran past its limit of {limit_s:g} s")
    if not ended.returncode:
        return Outcome(ended.seconds)
    unwritten = ended.returncode == EXIT_CANNOT_WRITE
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        return Outcome(ended.seconds, False, f"the process that meters it was killed by {name}", killed=True)
    told = f": {last[0]}" if last[0] else ""
    reason = f"the process that meters it ended with status {ended.returncode}{told}"
    return Outcome(ended.seconds, False, reason, unwritten=unwritten)
