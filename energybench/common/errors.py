"""What can go wrong that the user can mend, and how it is told. Public as `energybench.errors`.

EnergybenchError           carries every Problem that was found, not the first
├─ FileError        E1xx   files and TOML
├─ SuiteError       E2xx   keys, types and units of a suite
├─ MethodError      E3xx   methods and their stacking
├─ WorkloadError    E4xx   models and data
├─ MeteringError    E5xx   sensors and devices
│  └─ CannotMeasure E501   exit 5: this machine cannot measure what is required
├─ RunError         E6xx   runs and records
│  └─ CannotWrite   E620   the disk is full, over quota or read-only
└─ UsageError              exit 2: the command line or the suite is wrong; of any family, or of several at once

Whichever class a site raises, the error is an instance of its problems' family too (`EnergybenchError.__init__`).
"""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from energybench.common.escaping import printable

EXIT_FINE, EXIT_REGRESSION, EXIT_USAGE, EXIT_TRIALS_FAILED = 0, 1, 2, 3
LONGEST_WORD, MOST_WORDS = 200, 500  # that are held against each other
EXIT_INCONCLUSIVE, EXIT_CANNOT_MEASURE, EXIT_INTERRUPTED = 4, 5, 130
EXIT_AT_WORK = 75  # sysexits' EX_TEMPFAIL: of a job that may come again
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
        hint = f"\nhint: {printable(self.hint)}" if self.hint else ""
        return f"{printable(f'error[{self.code}]: {place}{self.message}')}{hint}"

    def placed(self, where: str) -> Problem:
        """Here, unless it has a place already."""
        return self if self.where else replace(self, where=where)

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class EnergybenchError(Exception):
    """Anything the user can mend; printed without a trace.

    Raised with problems of one family, whatever class is called, it is an instance of that family's class as well; with
    problems of several families it is of the called class alone.

    Attributes:
        problems: Each mistake with its code, its place and what to do.
        exit_code: Of a command that ends by it.
    """

    exit_code = EXIT_USAGE
    _called: type[EnergybenchError] | None = None  # of a class that `_with_family` made: the one that a site called

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
        families = {FAMILIES.get(problem.code[:2]) for problem in self.problems}
        family = families.pop() if len(families) == 1 else None
        if family is not None and not isinstance(self, family):
            self.__class__ = _with_family(type(self), family)

    def __reduce__(self) -> tuple[type, tuple[list[Problem]]]:
        return self._called or type(self), (self.problems,)  # so that it crosses a process border whole


class FileError(EnergybenchError):
    """E1xx: a file that is not there, cannot be read or is not TOML."""


class MethodError(EnergybenchError):
    """E3xx: a method that cannot be found, loaded, built or stacked."""


class WorkloadError(EnergybenchError):
    """E4xx: a model, a data set, a task or a command that cannot be used."""


class MeteringError(EnergybenchError):
    """E5xx: a sensor or a device that is not there."""


class RunError(EnergybenchError):
    """E6xx: a run, a record or an output that cannot be read, written or compared."""


class UsageError(EnergybenchError):
    """Wrong command line or invalid suite."""


class SuiteError(UsageError):
    """E2xx: keys, types, units, names and sizes of a suite; a suite's file with any of them raises it."""


class CannotWrite(UsageError, RunError):
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


class AtWork(UsageError, RunError):
    """Another process works in the folder of a shard: a job that asked may come again. Of the command line alone."""

    exit_code = EXIT_AT_WORK


class CannotMeasure(MeteringError):
    """The machine lacks a sensor that the suite requires."""

    exit_code = EXIT_CANNOT_MEASURE


FAMILIES: dict[str, type[EnergybenchError]] = {
    "E1": FileError,
    "E2": SuiteError,
    "E3": MethodError,
    "E4": WorkloadError,
    "E5": MeteringError,
    "E6": RunError,
}


_MADE: dict[tuple[type[EnergybenchError], type[EnergybenchError]], type[EnergybenchError]] = {}


def _with_family(called: type[EnergybenchError], family: type[EnergybenchError]) -> type[EnergybenchError]:
    """A class that is both, with the exit code of the one that was called."""
    if issubclass(family, called):
        return family
    if (called, family) not in _MADE:
        shown = family if called is UsageError else called
        names = {"__doc__": shown.__doc__, "__module__": shown.__module__, "_called": called}
        _MADE[called, family] = type(shown.__name__, (called, family), names)
    return _MADE[called, family]


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


def line_in(error: BaseException, path: Path) -> str:
    """ ":12" — the last line of the file `path` in an error's trace; empty where it never came there."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f":{error.lineno}"
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line
