"""What can go wrong before anything is measured, and how it is told.

EnergybenchError
├─ UsageError        exit 2   the command line or the suite is wrong; carries every Problem found, not the first
│  └─ CannotWrite    exit 2   the disk is full, over quota or read-only
└─ CannotMeasure     exit 5   this machine cannot measure what the suite requires

A Problem's code says which room to look in:
E1xx files and TOML · E2xx keys, types, units · E3xx methods and their stacking · E4xx models and data
E5xx sensors and devices · E6xx runs and records
"""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from energybench.common.escaping import inert

EXIT_FINE, EXIT_REGRESSION, EXIT_USAGE, EXIT_TRIALS_FAILED = 0, 1, 2, 3
LONGEST_WORD, MOST_WORDS = 200, 500  # that are held against each other
EXIT_INCONCLUSIVE, EXIT_CANNOT_MEASURE, EXIT_INTERRUPTED = 4, 5, 130
EXIT_CANNOT_WRITE = 74  # between a trial and its run only: sysexits' EX_IOERR


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: what happened, where, and what to type instead."""

    code: str
    message: str
    where: str = ""  # "suites/cifar.toml:12:7"
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f"\nhint: {inert(self.hint)}" if self.hint else ""
        return f"{inert(f'error[{self.code}]: {place}{self.message}')}{hint}"

    def placed(self, where: str) -> Problem:
        """Here, unless it has a place already."""
        return self if self.where else replace(self, where=where)

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class EnergybenchError(Exception):
    """Anything the user can mend; printed without a trace."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[list[Problem]]]:
        return type(self), (self.problems,)  # so that it crosses a process border whole


class UsageError(EnergybenchError):
    """Wrong command line or invalid suite."""


class CannotWrite(UsageError):
    """What was to be kept cannot be: the disk is full, over quota or read-only."""

    @classmethod
    def of(cls, error: OSError, path: Path | str) -> CannotWrite:
        """E620, with what the system said and what to do about it."""
        message = f"cannot write it: {error.strerror or error}"
        remedy = f"make room there ({typed('df', '-h', Path(path).parent)})"
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            remedy = f"make {Path(path).parent} writable"
        hint = f"{remedy}; what is finished is kept, and the same command continues"
        return cls(Problem("E620", message, str(path), hint))


class CannotMeasure(EnergybenchError):
    """The machine lacks a sensor that the suite requires."""

    exit_code = EXIT_CANNOT_MEASURE


def typed(*words: object) -> str:
    """What to type, for a hint: names of files as a shell takes them."""
    return shlex.join(map(str, words))


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Each once, in the order of the file; what stands in no line last."""

    def line(problem: Problem) -> tuple[bool, list[int]]:
        numbers = re.search(r":(\d+):(\d+)$", problem.where)
        return numbers is None, [int(number) for number in numbers.groups()] if numbers else []

    return sorted(dict.fromkeys(problems), key=line)


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint naming the valid word closest to `word`, or listing all of them when none is close."""
    choices = sorted(words)
    if len(choices) > MOST_WORDS:
        return ""
    import difflib  # most commands end without a typo

    close = difflib.get_close_matches(word[:LONGEST_WORD], choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"one of: {', '.join(choices)}" if choices else ""
