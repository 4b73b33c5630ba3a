"""Clouds of points with a class each: ModelNet's shapes, as an archive of clouds or as the meshes that it publishes.

    *.npz                                      train_points (N, P, 3), train_labels (N,), test_…, classes
    <class>/train/*.off, <class>/test/*.off    meshes, as ModelNet's own archives have them
    train/<class>/*.off, test/<class>/*.off    likewise

A cloud is drawn from its mesh's surface, or from the points that are kept, by a seed of its own: it is the same
whichever other shapes are read. Its mean is moved to 0, and its farthest point to a distance of 1. How a mesh is read
and drawn from is in meshes.py.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.hashing import stable_seed
from energybench.common.safe_read import list_folder, read_bytes
from energybench.workloads.datasets.meshes import Mesh, read_off, surface_points
from energybench.workloads.stand_in import points_asked

LARGEST_MESH_B = 1_000_000_000
PARTS = ("train", "test")
ARCHIVE = "one .npz of train_points, train_labels, test_points, test_labels and classes"
LAYOUT = f"<class>/train/*.off and <class>/test/*.off, or {ARCHIVE}"
NO_ARCHIVE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, NotImplementedError)
BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error)


def modelnet10(folder: str = "modelnet10", points: int = 1024, seed: int = 0) -> dict[str, Any]:
    """Clouds of points of 10 kinds of furniture (ModelNet10, Wu et al. 2015): $ENERGYBENCH_DATA/modelnet10, npz or off.

    folder: with an .npz of clouds, or a folder of .off meshes for each class
    points: of each cloud
    seed:   which points those are; not the seed of the trials

    Raises UsageError E402 for what is not there or cannot be read.
    """
    return point_clouds("modelnet10", Path(folder), points, seed)


def modelnet40(folder: str = "modelnet40", points: int = 1024, seed: int = 0) -> dict[str, Any]:
    """Clouds of points of 40 kinds of things (ModelNet40, Wu et al. 2015): $ENERGYBENCH_DATA/modelnet40, npz or off.

    folder: with an .npz of clouds, or a folder of .off meshes for each class
    points: of each cloud
    seed:   which points those are; not the seed of the trials

    Raises UsageError E402 for what is not there or cannot be read.
    """
    return point_clouds("modelnet40", Path(folder), points, seed)


def point_clouds(use: str, folder: Path, points: int, seed: int) -> dict[str, Any]:
    """A folder's clouds: float32 (N, points, 3), and the number of each one's class. Raises UsageError E402."""
    points_asked(points)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UsageError(Problem("E402", f"options.seed is {seed!r}; expected a whole number", hint="seed = 0"))
    archives = [file for file in list_folder(folder, ".npz") if os.path.isfile(file)]
    if len(archives) > 1:
        names = ", ".join(file.name for file in archives[:5])
        raise UsageError(Problem("E402", f"'{use}' has {len(archives)} archives of clouds: {names}", hint="keep one"))
    return _of_archive(use, archives[0], points, seed) if archives else _of_meshes(use, folder, points, seed)


def normalised(clouds: Tensor) -> Tensor:
    """(..., P, 3) with the mean of their points at 0 and the farthest one at a distance of 1; float32.

    A cloud whose points are all one stays at 0.
    """
    centred = clouds.double() - clouds.double().mean(-2, keepdim=True)
    farthest = centred.norm(dim=-1).amax(-1)[..., None, None]
    return torch.where(farthest > 0, centred / farthest, 0.0).float()


# ── an archive of clouds ──────────────────────────────────────────────────────────────────────────────────────────────


def _of_archive(use: str, file: Path, points: int, seed: int) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as kept:
            names = [str(name) for name in kept["classes"]] if "classes" in kept else []
            arrays = {key: kept[key] for part in PARTS for key in (f"{part}_points", f"{part}_labels")}
    except (*NO_ARCHIVE, *BROKEN_ARCHIVE) as error:
        reason = str(error.args[0] if isinstance(error, KeyError) else error).partition("\n")[0]
        message = f"'{use}': {file.name} cannot be read: {reason}"
        raise UsageError(Problem("E402", message, hint=f"it is {ARCHIVE}")) from None
    content: dict[str, Any] = {"facts": {"targets": "class"} | ({"class_names": names} if names else {})}
    for part in PARTS:
        clouds, labels = arrays[f"{part}_points"], arrays[f"{part}_labels"]
        if problem := _archive_problem(part, clouds, labels, points):
            raise UsageError(Problem("E402", f"'{use}': {file.name}: {problem}"))
        chosen = _some_points(torch.from_numpy(clouds.astype(np.float32)), points, seed, part)
        content[part] = (normalised(chosen), torch.from_numpy(labels.astype(np.int64)))
    return content


def _archive_problem(part: str, clouds: Any, labels: Any, points: int) -> str | None:
    if clouds.ndim != 3 or clouds.shape[2] != 3 or clouds.dtype.kind not in "if":
        return f"{part}_points are {clouds.dtype} {clouds.shape}, and no numbers (N, points, 3)"
    if labels.dtype.kind not in "iu" or labels.shape != clouds.shape[:1]:
        return f"{part}_labels are {labels.dtype} {labels.shape}, and no whole numbers ({len(clouds):,},)"
    if clouds.shape[1] < points:
        return f"a cloud has {clouds.shape[1]:,} points, and options ask for {points:,}"
    if len(labels) and labels.min() < 0:
        return f"{part}_labels have {labels.min()}, and classes count from 0"
    return None if np.isfinite(clouds).all() else f"{part}_points have a coordinate that is not finite"


def _some_points(clouds: Tensor, points: int, seed: int, part: str) -> Tensor:
    """As many of each cloud, chosen anew for each: they may be kept in any order."""
    if clouds.shape[1] == points:
        return clouds
    chosen = torch.empty(len(clouds), points, dtype=torch.long)
    for number in range(len(clouds)):
        generator = torch.Generator().manual_seed(stable_seed("points", seed, part, number))
        chosen[number] = torch.randperm(clouds.shape[1], generator=generator)[:points]
    return clouds.gather(1, chosen[..., None].expand(-1, -1, 3))


# ── meshes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_meshes(use: str, folder: Path, points: int, seed: int) -> dict[str, Any]:
    found = {part: _meshes(folder, part) for part in PARTS}
    names = sorted(found["train"])
    if not names or not found["test"]:
        inside = ", ".join(path.name for path in list_folder(folder)[:5])
        message = f"'{use}': there are no clouds and no meshes in {folder.name}/, which has {inside or 'no files'}"
        raise UsageError(Problem("E402", message, hint=f"put there {LAYOUT}"))
    if strange := sorted(set(found["test"]) - set(names)):
        message = f"'{use}': the class '{strange[0]}' has meshes for testing and none for training"
        raise UsageError(Problem("E402", message, hint=nearest(strange[0], names)))
    content: dict[str, Any] = {"facts": {"targets": "class", "class_names": names}}
    for part, by_class in found.items():
        files = [(label, file) for label, name in enumerate(names) for file in by_class.get(name, [])]
        clouds = [
            surface_points(_mesh(use, folder, file), points, _generator(seed, part, names[label], file))
            for label, file in files
        ]
        content[part] = (normalised(torch.stack(clouds)), torch.tensor([label for label, _ in files]))
    return content


def _meshes(folder: Path, part: str) -> Mapping[str, list[Path]]:
    """Class → the meshes of one part, by name; no class without one."""
    whole = folder / part
    if os.path.isdir(whole):
        places = {place.name: place for place in list_folder(whole)}
    else:
        places = {place.name: place / part for place in list_folder(folder)}
    files = {name: [file for file in list_folder(place) if _is_mesh(file)] for name, place in places.items()}
    return {name: each for name, each in files.items() if each}


def _is_mesh(file: Path) -> bool:
    """Of its name; an archive made elsewhere may have hidden files beside."""
    return file.suffix.lower() == ".off" and not file.name.startswith(".") and os.path.isfile(file)


def _generator(seed: int, part: str, name: str, file: Path) -> torch.Generator:
    return torch.Generator().manual_seed(stable_seed("points", seed, part, name, file.name))


def _mesh(use: str, folder: Path, file: Path) -> Mesh:
    try:
        return read_off(read_bytes(file, LARGEST_MESH_B).decode("utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"'{use}': {file.relative_to(folder)} cannot be read: {reason}"
        raise UsageError(Problem("E402", message, hint="take it out, or mend it")) from None
