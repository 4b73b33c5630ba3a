"""A module run in a new interpreter, for what needs no torch and so starts fast; supervised to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from energybench.common import module_path
from energybench.common.errors import EXIT_CANNOT_WRITE
from energybench.common.interrupts import SPREAD_S, is_signal
from energybench.process import supervise
from energybench.process.forkserver import ChildOutcome
from energybench.process.output_log import Lines
from energybench.process.prepared import NotPrepared, PreparedInterpreter


def call(
    module: str,
    in_path: Path,
    out_path: Path,
    *,
    limit_s: float | None = None,
    tick: Callable[[float], None] | None = None,
    prepared: PreparedInterpreter | None = None,
) -> ChildOutcome:
    """Run a module's main(IN, OUT) and wait, asleep, until it ends or its limit has passed.

    Args:
        module:            its dotted name, as after `python -m`.
        in_path, out_path: the files that it reads and writes.
        limit_s:           after which it is ended; None: never.
        tick:              called with the elapsed seconds every few seconds.
        prepared:          an interpreter that has imported the module; None: a new one is started.

    Returns:
        How it ended; where that was by an error, with the last line that it wrote to stderr.
    """
    lines, last_line = Lines(), [""]

    def output(stream: str, chunk: bytes) -> None:
        if stream == "stderr":
            last_line[:] = [line.strip() for line in lines.feed(chunk) if line.strip()][-1:] or last_line

    argv = [sys.executable, *_arguments(module, in_path, out_path)]
    env = module_path.without_those(dict(os.environ))
    run = partial(supervise.run, output=output, limit_s=limit_s, death_signal=signal.SIGTERM, tick=tick)
    if prepared is None:
        ended = run(argv, env=env)
    else:
        with contextlib.suppress(OSError):
            prepared.warm()  # before the children of ours are counted that the call is not one of
        try:
            ended = run(argv, start=partial(prepared.start, in_path, out_path, signal.SIGTERM))
        except NotPrepared:
            ended = run(argv, env=env)
    if ended.timed_out:
        return ChildOutcome(ended.seconds, True, f"it ran past its limit of {limit_s:g} s")
    if not ended.returncode:
        return ChildOutcome(ended.seconds)
    unwritten = ended.returncode == EXIT_CANNOT_WRITE
    if is_signal(ended.returncode):
        time.sleep(SPREAD_S)  # in which the same signal reaches us, if it was to all: then no trial has failed
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        return ChildOutcome(ended.seconds, False, f"the process that meters it was killed by {name}", killed=True)
    message = f": {last_line[0]}" if last_line[0] else ""
    reason = f"the process that meters it ended with status {ended.returncode}{message}"
    return ChildOutcome(ended.seconds, False, reason, unwritten=unwritten)


def _arguments(module: str, in_path: Path, out_path: Path) -> list[str]:
    """Of an interpreter that runs a module as `-m` does; what it starts has the caller's environment."""
    words = [module, str(in_path.absolute()), str(out_path.absolute())]
    given = {name: os.environ[name] for name in module_path.READ_AT_THE_START if name in os.environ}
    lines = ["import os, runpy", f"sys.argv[:] = {words!r}", f"os.environ.update({given!r})"]
    lines.append(f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)")
    return module_path.in_new_interpreter("\n".join(lines), with_package=True)
