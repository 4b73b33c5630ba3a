"""Where Python looks for modules in processes of ours: never first of all where anybody may have put a file.

Python puts the current folder (`-m`, `-c`), a script's folder and PYTHONPATH before its own library, and runs what it
finds there: a user's file that is called as `random` is, beside a suite, is imported in its place. Here the standard
library comes first, then folders that PYTHONPATH names, then installed packages; the current folder comes in no place,
however it was named. Interpreters that we start get that path, and run no sitecustomize of PYTHONPATH and nothing of
the user's site folder.

Code that was asked for (a method, a model, a task or data of a file) finds its neighbours: once one is loaded, its
folder and what was taken out of the path stand at its end.

Imports nothing that is not loaded when an interpreter starts: what it imports would be looked for where it must not be.
"""

import os
import sys

PACKAGE = "energybench"
FLAGS = ("-s", "-P")  # no site folder of the user's, no current folder
_for_users: list[str] = []  # what was taken out of this process's path


def split(path: list[str]) -> tuple[list[str], list[str]]:
    """(what stays, in our order; what only code of the user's is given) of a sys.path."""
    start = next((at for at, entry in enumerate(path) if _is_standard(entry)), 0)
    before, after = path[:start], path[start:]
    standard = [entry for entry in after if _is_standard(entry)]
    installed = [entry for entry in after if entry not in standard and os.path.isabs(entry)]
    named = [entry for entry in before if os.path.isabs(entry) and not _is_here(entry)]
    taken = [os.path.abspath(entry) for entry in before if entry not in named]
    return _once([*standard, *named, *installed]), [entry for entry in _once(taken) if entry not in installed]


def _is_standard(entry: str) -> bool:
    """The standard library: its folder, its zip file, its folder of compiled modules."""
    library = os.path.dirname(os.__file__)
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    folder, name = os.path.split(entry)
    ours = folder.startswith((sys.base_prefix, sys.base_exec_prefix))
    return entry == library or (ours and name in (archive, "lib-dynload"))


def _is_here(entry: str) -> bool:
    """Whether it is the current folder, by whatever name."""
    try:
        return os.path.samefile(entry, os.curdir)
    except OSError:
        return False


def _once(entries: list[str]) -> list[str]:
    return list(dict.fromkeys(entries))


def use(path: list[str], for_users: list[str]) -> None:
    """Set the path of this process.

    Args:
        path: What it becomes.
        for_users: What is added to it when code of the user's is loaded.
    """
    sys.path[:] = path
    _for_users[:] = _once([os.path.abspath(entry) for entry in for_users])


def path_of_children() -> tuple[list[str], list[str]]:
    """What `use` is given in a process that this one starts; of a program that imports us, without its own folder."""
    kept, taken = split(sys.path)
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    script = os.path.dirname(os.path.abspath(main)) if main and not sys.flags.safe_path else ""
    own = [script] if script and script in kept[: _index_of_installed(kept)] else []
    return [entry for entry in kept if entry not in own], _once([*own, *taken, *_for_users])


def _index_of_installed(kept: list[str]) -> int:
    """Of the first folder of installed packages."""
    names = ("site-packages", "dist-packages")
    return next((at for at, entry in enumerate(kept) if os.path.basename(entry) in names), len(kept))


def add_for_user_code(folder: str) -> None:
    """Code of the user's in `folder` is about to run: its neighbours can be imported, after all that is installed."""
    sys.path.extend(entry for entry in _once([folder, *_for_users]) if entry not in sys.path)


def in_new_interpreter(code: str, *, with_package: bool) -> list[str]:
    """The arguments of an interpreter that runs `code` with the path of `path_of_children`, after its executable.

    To be started without READ_AT_THE_START in its environment: PYTHONPATH's sitecustomize would run first.

    Args:
        with_package: Import energybench from where this process has it, whatever the path leads to.
    """
    path, for_users = path_of_children()
    lines = ["import sys", f"sys.path[:] = {path!r}"]
    if with_package:
        home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        lines += [
            "from importlib.machinery import PathFinder",
            "from importlib.util import module_from_spec",
            f"if {PACKAGE!r} not in sys.modules:",
            f"    found = PathFinder.find_spec({PACKAGE!r}, [{home!r}])",
            f"    sys.modules[{PACKAGE!r}] = module_from_spec(found)",
            f"    found.loader.exec_module(sys.modules[{PACKAGE!r}])",
            f"from {PACKAGE}.common.module_path import use",
            f"use({path!r}, {for_users!r})",
        ]
    return [*FLAGS, "-c", "\n".join([*lines, code])]


READ_AT_THE_START = ("PYTHONPATH", "PYTHONWARNINGS")  # not by interpreters of ours; what they start gets them back


def without_those(environment: dict[str, str]) -> dict[str, str]:
    """An environment for an interpreter of ours."""
    return {name: value for name, value in environment.items() if name not in READ_AT_THE_START}
