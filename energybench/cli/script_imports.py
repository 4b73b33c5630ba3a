"""What a user's own script will meet when it imports: packages that were built for another torch than is here.

energybench mends torchvision for itself (common/torchvision_shim.py); a command that it meters gets no such help. Told
from the packages' metadata and from the libraries that their extensions name, so that nothing is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

BUILT_FOR_TORCH = ("torchvision", "torchaudio", "torchtext")
WANTED = re.compile(r"torch\s*\(?==\s*([\w.!]+)")  # of Requires-Dist: "torch (==2.13.0)", "torch==2.13.0; extra"
TORCH_LIBRARIES = re.compile(rb"\blib(?:torch|c10)[A-Za-z0-9_]*\.so\b")
LARGEST_B = 1 << 28  # of an extension that is looked into
REMEDY = (
    "install the one that was built for this torch, from the index that torch came from: "
    "pip install --force-reinstall --no-deps --index-url ... {name}"
)


def problems(distributions: Iterable[Distribution] | None = None, torch: Distribution | None = None) -> list[Any]:
    """[{name, why, remedy}] of every installed package whose import will fail in a script; [] where none will.

    Args:
        distributions: to look at; None: those that are built for one torch, as far as they are installed
        torch: the one that is here; None: found by its name
    """
    torch = torch or _found("torch")
    if torch is None:
        return []
    looked = [*filter(None, map(_found, BUILT_FOR_TORCH))] if distributions is None else distributions
    found = [(each.metadata["Name"], _why(each, torch)) for each in looked]
    return [{"name": name, "why": why, "remedy": _remedy(name)} for name, why in found if why]


def _why(package: Distribution, torch: Distribution) -> str | None:
    here = torch.version
    wanted = next((match[1] for each in package.requires or () if (match := WANTED.match(each))), here)
    if wanted.partition("+")[0] != here.partition("+")[0]:
        return f"it was built for torch {wanted}, and torch {here} is here"
    there = {file.name for file in torch.files or () if ".so" in file.name}
    for file in package.files or ():
        path = Path(str(file.locate()))
        if path.suffix != ".so" or not path.is_file() or path.stat().st_size > LARGEST_B:
            continue
        named = {word.decode("ascii") for word in TORCH_LIBRARIES.findall(path.read_bytes())}
        if there and (lacking := sorted(named - there)):
            return f"its extension needs {', '.join(lacking)}, which torch {here} has not"
    return None


def _remedy(name: str) -> str:
    beside = ""
    if name == "torchvision":  # transformers imports it wherever it is installed
        beside = '; a script that needs no images, before it imports transformers: sys.modules["torchvision"] = None'
    return REMEDY.format(name=name) + beside


def _found(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
