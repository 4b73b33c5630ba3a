"""How a command line of ours begins, before anything else of it is imported: module path, warnings, an exit code of
its own for a mistake of ours.

Imports what is loaded when an interpreter starts, and module_path.py, which does so too.
"""

import os
import sys

from energybench.common.module_path import PACKAGE, split, use

EXIT_OUR_BUG = 70  # sysexits' EX_SOFTWARE: Python's own 1 would read as a regression
EXIT_INTERRUPTED = 130


def begin() -> None:
    """Of a command line of ours; in any other program nothing changes."""
    if not _is_command():
        return
    script = [] if sys.flags.safe_path else sys.path[:1]  # its folder, or the current one
    kept, taken = split(sys.path)
    use([entry for entry in kept if entry not in script], [*script, *taken])
    sys.excepthook = end_by_bug
    calm_warnings()


def _is_command() -> bool:
    first = sys.argv[0] if getattr(sys, "argv", None) else ""
    if first != "-m":
        return os.path.basename(first).removesuffix(".py") == PACKAGE
    named = zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return any(flag[:1] == "-" and flag[-1:] == "m" and name.split(".")[0] == PACKAGE for flag, name in named)


def is_error(option: str) -> bool:
    """Whether an option of -W or PYTHONWARNINGS makes errors of warnings: "error", "e", "error::DeprecationWarning"."""
    action = option.split(":")[0].strip().lower()
    return bool(action) and "error".startswith(action)


def calm_warnings() -> None:
    """What a library warns of is no error of ours: `-W error` and PYTHONWARNINGS=error are for the programs of those
    who set them, whose commands still get them."""
    if not any(map(is_error, sys.warnoptions)):
        return
    import warnings  # loaded already, where there are options

    sys.warnoptions[:] = [option for option in sys.warnoptions if not is_error(option)]
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):  # as Python does
        warnings.simplefilter("ignore", category)


def end_by_bug(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """In the place of sys.excepthook: the trace, and a code that no verdict has."""
    if issubclass(kind, KeyboardInterrupt):
        _end("interrupted\n", EXIT_INTERRUPTED)
    try:
        sys.__excepthook__(kind, error, trace)  # type: ignore[arg-type]
    finally:
        _end("this is a mistake of energybench, or of its installation: please report it with the lines above\n")


def _end(text: str, code: int = EXIT_OUR_BUG) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or full
            continue
    try:
        os.write(2, text.encode())
    finally:
        os._exit(code)
