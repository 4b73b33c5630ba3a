"""What installed packages offer by entry points: methods, tasks, models and data sets of theirs, found by name.

    [project.entry-points."energybench.tasks"]
    regression = "far_tasks.regression:Regression"

Finding one imports nothing, of no package: a file is located beside its package's `__init__.py` and read as text, so
that a package which is broken, or slow to import, costs nobody else anything. Its code runs when a suite uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from energybench.common.errors import Problem, UsageError, line_in
from energybench.common.hashing import digest

# What is offered → the group of entry points.
GROUPS = {
    "method": "energybench.methods",
    "task": "energybench.tasks",
    "model": "energybench.models",
    "data": "energybench.data",
}
ORIGIN = "entry point"  # as it is shown
_HEADING = b"[energybench."  # of a group of ours in a package's entry_points.txt


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing that an installed package offers under a name.

    module, attribute: where it lies; an empty attribute is the name itself
    package: that offers it, with its version: "far-tasks 1.0"
    path:    of the module's file; None where there is none
    others:  further packages that offer another thing under the same name
    reason:  why the package's metadata cannot be read
    """

    name: str
    module: str
    attribute: str
    package: str
    path: Path | None
    others: tuple[str, ...] = ()
    reason: str = ""

    @property
    def problem(self) -> str:
        """Why it cannot be used, as far as can be told without running it; empty where nothing speaks against it."""
        if self.others:
            return f"{', '.join(self.others)} offers another thing under this name"
        return self.reason or ("" if self.path else f"there is no module {self.module}")

    @property
    def remedy(self) -> str:
        """What to do about the problem."""
        if self.others:
            return f"uninstall one of {', '.join((self.package, *self.others))}"
        return f"install or mend the package {self.package}"


def offers(kind: str) -> dict[str, Offer]:
    """Everything of a kind that installed packages offer, by name in alphabetical order.

    kind: "method", "task", "model" or "data"
    """
    found: dict[str, Offer] = {}
    for offer in _entries(GROUPS[kind]):
        first = found.setdefault(offer.name, offer)
        if (first.module, first.attribute) != (offer.module, offer.attribute):
            found[offer.name] = replace(first, others=(*first.others, offer.package))
    return dict(sorted(found.items()))


def _entries(group: str) -> Iterator[Offer]:
    heading = f"[{group}]".encode()
    for folder, text in _offering():
        if heading in text:
            yield from _of_package(folder, group)


def _of_package(folder: Path, group: str) -> Iterator[Offer]:
    """What the package whose metadata lie in a folder offers; where they are broken, the package itself, which is not
    usable."""
    from importlib.metadata import Distribution

    named, _, version = folder.stem.partition("-")
    made = Distribution.at(folder)
    try:
        points = made.entry_points.select(group=group)
        package = f"{made.metadata['Name'] or named} {made.metadata['Version'] or version}"
    except Exception as error:  # whatever its metadata make the library that reads them raise
        reason = f"its entry_points.txt or METADATA cannot be read: {type(error).__name__}"
        yield Offer(named, "", "", f"{named} {version}", None, reason=reason)
        return
    for point in points:
        module, _, attribute = point.value.partition("[")[0].strip().partition(":")
        yield Offer(point.name, module.strip(), attribute.strip(), package, file_of(module.strip()))


def _offering() -> tuple[tuple[Path, bytes], ...]:
    """Each installed package that offers something of ours: the folder of its metadata, its entry points. Of packages
    of one name the first on the path, as Python imports it."""
    places = []
    for place in sys.path:
        with contextlib.suppress(OSError):  # gone
            places.append((place or ".", os.stat(place or ".").st_mtime_ns))
    return _offering_in(tuple(places))


@lru_cache(maxsize=1)
def _offering_in(places: tuple[tuple[str, int], ...]) -> tuple[tuple[Path, bytes], ...]:
    """places: folders, and when each was changed: one command asks for four kinds, and looks once."""
    seen: set[str] = set()
    found = []
    for place, _ in places:
        try:
            with os.scandir(place) as entries:
                names = sorted(entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info")))
        except OSError:  # a zip
            continue
        for name in names:
            package = os.path.basename(name).partition("-")[0].replace("_", "-").lower()
            if package not in seen:
                seen.add(package)
                with contextlib.suppress(OSError):
                    if _HEADING in (text := Path(name, "entry_points.txt").read_bytes()):
                        found.append((Path(name), text))
    return tuple(found)


def file_of(module: str) -> Path | None:
    """The file of a module's text, without importing the packages that it lies in; None where there is none."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not inner:
        candidates = [Path(spec.origin)] if spec.origin else []
    else:
        places = [Path(place, *inner) for place in spec.submodule_search_locations or ()]
        candidates = [file for place in places for file in (place / "__init__.py", Path(f"{place}.py"))]
    return next((file for file in candidates if file.suffix == ".py" and file.is_file()), None)


def load(offer: Offer, what: str, code: str, where: str = "") -> Any:
    """Import what is offered.

    Args:
        what: it is, for a message: "task"
        code: of the error

    Raises:
        UsageError: with that code, the package's name, and where in its file it failed.
    """
    whose = f"the {what} '{offer.name}' of the package {offer.package}"
    if offer.problem:
        raise UsageError(Problem(code, f"{whose} cannot be used: {offer.problem}", where, offer.remedy))
    try:
        found = importlib.import_module(offer.module)
        for part in (offer.attribute or offer.name.replace("-", "_")).split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever its code does when it is imported is the package's
        place = f"{offer.path}{line_in(error, offer.path)}" if offer.path else where
        message = f"loading {whose} failed: {type(error).__name__}: {error}"
        raise UsageError(Problem(code, message, place, offer.remedy)) from error
    return found


def fingerprint(offer: Offer) -> str:
    """Of the package as it is installed: its version, and the text of every Python file beside the one that is used."""
    if offer.path is None:
        return digest([offer.package, offer.module, offer.attribute])
    home = offer.path.parent if offer.path.name == "__init__.py" else offer.path
    while (home.parent / "__init__.py").is_file():
        home = home.parent
    files = [home] if home.is_file() else sorted(file for file in home.rglob("*.py") if file.is_file())
    texts = [(str(file.relative_to(home.parent)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return digest([offer.package, offer.module, offer.attribute, texts])
