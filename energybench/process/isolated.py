"""Interpreters that multiprocessing starts get our module path.

By itself it starts them by `-c`, so that the current folder comes first, with the caller's PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
from collections.abc import Callable, Iterator
from typing import Any

from energybench.common import module_path
from energybench.common.command_start import is_error


@contextlib.contextmanager
def isolated_interpreters() -> Iterator[None]:
    """Those that are started meanwhile: the server of forks, the tracker of resources."""
    util: Any = multiprocessing.util
    spawn = util.spawnv_passfds
    isolate_interpreters()
    try:
        yield
    finally:
        util.spawnv_passfds = spawn


def isolate_interpreters() -> None:
    """All that this process starts from now on, such as a trial's loader workers."""
    util: Any = multiprocessing.util
    util.spawnv_passfds = _isolated(util.spawnv_passfds)


def _isolated(spawn: Callable[..., int]) -> Callable[..., int]:
    """multiprocessing's start of an interpreter, with our module path."""

    def isolated(executable: bytes, arguments: list[str], passed: list[int]) -> int:
        at = arguments.index("-c")
        code = module_path.in_new_interpreter(arguments[at + 1], with_package="forkserver" in arguments[at + 1])
        flags = [flag for flag in arguments[:at] if not (flag[:2] == "-W" and is_error(flag[2:]))]
        named = {name: os.environ.pop(name, None) for name in module_path.READ_AT_THE_START}
        try:
            return int(spawn(executable, [*flags, *code], passed))
        finally:
            os.environ.update({name: value for name, value in named.items() if value is not None})

    return isolated
