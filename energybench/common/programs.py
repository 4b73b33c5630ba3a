"""Programs that we, or libraries that we ask, start by name: never one that lies in the current folder.

A PATH with an empty or relative entry (`:/usr/bin`, `.`) finds programs wherever one happens to be. The commands of a
suite are looked for as the user's shell would; `lscpu`, `git`, `uname` and other helpers of ours are not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

PATH = "PATH"
# What the interpreters that libraries start (cpuinfo's `python -m cpuinfo`) are told of module_path.py.
PYTHON = {"PYTHONPATH": None, "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}


def absolute_path() -> str:
    """PATH without what is relative to the current folder."""
    entries = os.environ.get(PATH, os.defpath).split(os.pathsep)
    return os.pathsep.join(entry for entry in entries if os.path.isabs(entry))


def find_program(name: str) -> str | None:
    """The absolute path of a program of the machine's; None where there is none."""
    return shutil.which(name, path=absolute_path())


@contextmanager
def starting_safely() -> Iterator[None]:
    """For a call of a library that starts programs and interpreters by itself, in this process's environment."""
    wanted = {PATH: absolute_path(), **PYTHON}
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(wanted: dict[str, str | None]) -> None:
    for name, value in wanted.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
