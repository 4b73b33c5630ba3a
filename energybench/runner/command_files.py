"""The files that a command depends on, by their content: those that it names, and the packages that it runs by name."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path

from energybench.common.hashing import digest

# Of a file that is fingerprinted by its content; a larger one, or one that cannot be read, by its size and time.
LARGEST_B = 1 << 28
MOST_MODULES = 5_000  # of a package; a larger one by its files' names, sizes and times
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_OUTPUT = re.compile(r">+\s*\S+")
_SEPARATORS = re.compile(r"[\s;|&<()'\"`]+")


def named(words: Iterable[str], folder: Path) -> dict[str, str]:
    """The files that words name from a folder, in a shell's string too, and behind an equals sign: name → sha256."""
    texts = [each for word in dict.fromkeys(words) for each in (word, *_inside(word))]
    digests = {}
    for text in dict.fromkeys(part for each in texts for part in (each, each.partition("=")[2])):
        if text and os.path.isfile(folder / text):  # False too for what no file can be called
            digests[text] = sha256(folder / text)
    return digests


def modules(words: Sequence[str], folder: Path, env: Mapping[str, str], ours: bool) -> dict[str, str]:
    """What `-m NAME` runs: the whole package of the module, as `python` finds it → sha256 of its sources.

    Args:
        folder: that the command runs in, where Python looks first
        env:    that is set for it: PYTHONPATH
        ours:   whether it is the interpreter that runs energybench, whose other places are known
    """
    return {f"-m {name}": _package(name, found) for name, found in _found(words, folder, env, ours) if found}


def missing_modules(words: Sequence[str], folder: Path, env: Mapping[str, str], ours: bool) -> list[str]:
    """Modules after a `-m` that are nowhere; none is told of an interpreter whose places are not known."""
    return [name for name, found in _found(words, folder, env, ours) if not found] if ours else []


def neighbours(name: str, folder: Path) -> list[str]:
    """Modules beside the one that was meant, as one would type them."""
    above, _, _ = name.rpartition(".")
    place = folder.joinpath(*above.split(".")) if above else folder
    stems = [each.stem for each in place.glob("*.py") if each.stem != "__init__"] if place.is_dir() else []
    stems += [each.parent.name for each in place.glob("*/__init__.py")] if place.is_dir() else []
    return [f"{above}.{stem}" if above else stem for stem in stems]


def _found(
    words: Sequence[str], folder: Path, env: Mapping[str, str], ours: bool
) -> Iterator[tuple[str, list[Path] | None]]:
    """Each module's name, and its sources; None where it is nowhere, [] where it is in no file."""
    texts = [each for word in words for each in (_inside(word) or [word])]
    python_path = env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    places = [folder, *(folder / part for part in python_path.split(os.pathsep) if part)]
    places += [Path(each) for each in sys.path if ours and each]
    for option, name in pairwise(texts):
        if option == "-m" and MODULE.fullmatch(name):
            found = next(filter(None, (_sources(place, name.split(".")) for place in places)), None)
            built_in = name.partition(".")[0] in sys.builtin_module_names
            yield name, [] if built_in and found is None else found


def _sources(place: Path, parts: Sequence[str]) -> list[Path] | None:
    """The sources of the top package, where the whole name leads to a file in it; None where it does not."""
    module = place.joinpath(*parts)
    candidates = [module.with_name(f"{module.name}.py"), module / "__main__.py", module / "__init__.py"]
    if not any(map(os.path.isfile, candidates)):
        return None
    top = place / parts[0]
    return [candidates[0]] if not os.path.isdir(top) else sorted(islice(_python_files(top), 10 * MOST_MODULES))


def _python_files(top: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(top):
        inner[:] = sorted(name for name in inner if name != "__pycache__" and not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _package(name: str, files: Sequence[Path]) -> str:
    by_content = len(files) <= MOST_MODULES
    return digest([name, [(str(each), sha256(each) if by_content else _state(each)) for each in files]])


def _inside(word: str) -> list[str]:
    """The words of a shell's string, less what it writes into."""
    return [each for each in _SEPARATORS.split(_OUTPUT.sub(" ", word)) if each] if re.search(r"\s", word) else []


def sha256(file: Path) -> str:
    """Of a file's content; of a very large or unreadable one, of its size and time."""
    try:
        if file.stat().st_size > LARGEST_B or not os.access(file, os.R_OK):
            return _state(file)
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return hashlib.sha256(b"gone").hexdigest()


def _state(file: Path) -> str:
    facts = file.stat()
    return hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
