"""Meshes of polygons: read from OFF files, and points drawn from their surface.

    OFF                  or OFF8 6 12: ModelNet has files whose counts are glued to the word
    8 6 12               vertices, faces, edges (of which nobody makes use)
    -0.5 -0.5 0.5        a line for each vertex; normals, colours and the like may follow
    4 0 1 3 2            a line for each face: how many corners, which vertices; a colour may follow

A `#` begins a comment, and empty lines are none. Faces are convex polygons, cut into triangles from their first corner;
one of fewer than three corners has no area.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Geomview's words before OFF: texture coordinates (ST), colours (C) and normals (N) follow a vertex's coordinates.
HEADER = re.compile(r"(?:ST)?C?N?OFF")
COMMENT = re.compile(r"#[^\r\n]*")


@dataclass(frozen=True)
class Mesh:
    """vertices (V, 3), float64; triangles (T, 3) of their numbers, int64."""

    vertices: Tensor
    triangles: Tensor

    def areas(self) -> Tensor:
        """Of the triangles (T,)."""
        first, second, third = self.vertices[self.triangles].unbind(1)
        return torch.linalg.cross(second - first, third - first).norm(dim=1) / 2


def surface_points(mesh: Mesh, count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 3) drawn evenly from its surface, whatever the sizes of its triangles.

    Of √r₁ and r₂, r uniform in [0, 1), the point (1 − √r₁)·A + √r₁·(1 − r₂)·B + √r₁·r₂·C is uniform in the triangle ABC
    (Osada et al. 2002, section 4.2).

    Raises ValueError where it has no area.
    """
    sums = mesh.areas().cumsum(0)
    if not len(sums) or not 0 < float(sums[-1]) < torch.inf:
        raise ValueError("its faces have no area")
    draws = torch.rand(3, count, 1, generator=generator, dtype=torch.float64)
    number = torch.searchsorted(sums, draws[0, :, 0] * sums[-1], right=True).clamp(max=len(sums) - 1)
    first, second, third = mesh.vertices[mesh.triangles[number]].unbind(1)
    root, along = draws[1].sqrt(), draws[2]
    return (1 - root) * first + root * (1 - along) * second + root * along * third


def read_off(text: str) -> Mesh:
    """The mesh of an OFF file. Raises ValueError, whose message goes on from "cannot be read:"."""
    text = COMMENT.sub("", text.removeprefix("\ufeff"))
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    first = lines[0].strip() if lines else ""
    header = HEADER.match(first)
    if header is None:
        raise ValueError(f"it begins with '{first[:20]}' and not with OFF" if first else "it is empty")
    glued = first[header.end() :].strip()
    counts, body = (glued, lines[1:]) if glued else (" ".join(lines[1:2]), lines[2:])
    try:
        vertices, faces = (int(number) for number in counts.split()[:2])
    except ValueError:
        raise ValueError(f"behind OFF stand no numbers of vertices and faces but '{counts[:40]}'") from None
    if vertices < 1 or faces < 1:
        raise ValueError(f"it has {vertices} vertices and {faces} faces")
    if len(body) < vertices + faces:
        message = f"it ends after {len(body):,} of {vertices + faces:,} lines of vertices and faces"
        raise ValueError(message)
    return Mesh(_vertices(body[:vertices]), _triangles(body[vertices : vertices + faces], vertices))


def _vertices(lines: Sequence[str]) -> Tensor:
    numbers, starts, widths = _numbers(lines)
    if widths.min() < 3:
        raise ValueError(f"a vertex has {widths.min()} coordinates: '{lines[int(widths.argmin())][:40]}'")
    found = torch.from_numpy(numbers[starts[:, None] + np.arange(3)])
    if not bool(found.isfinite().all()):
        raise ValueError("a vertex has a coordinate that is not finite")
    return found


def _triangles(lines: Sequence[str], vertices: int) -> Tensor:
    numbers, starts, widths = _numbers(lines)
    sizes = numbers[starts]
    wrong = (sizes != np.floor(sizes)) | (sizes < 1) | (sizes > widths - 1)
    if wrong.any():
        raise ValueError(f"a face does not say how many corners it has: '{lines[int(wrong.argmax())][:40]}'")
    triangles = []
    for size in np.unique(sizes[sizes >= 3]).astype(np.int64):
        corners = numbers[starts[sizes == size][:, None] + 1 + np.arange(size)]
        if (corners != np.floor(corners)).any() or corners.min() < 0 or corners.max() >= vertices:
            raise ValueError(f"a face has a corner that is none of its {vertices:,} vertices")
        fan = np.stack([np.broadcast_to(corners[:, :1], corners[:, 2:].shape), corners[:, 1:-1], corners[:, 2:]], -1)
        triangles.append(fan.reshape(-1, 3).astype(np.int64))
    return torch.from_numpy(np.concatenate(triangles) if triangles else np.zeros((0, 3), np.int64))


def _numbers(lines: Sequence[str]) -> tuple[Any, Any, Any]:
    """All numbers of all lines in one row, where each line begins in it, and how many it has."""
    # Split twice: a hundred thousand lists that are held at once keep the garbage collector busy.
    widths = np.fromiter((len(line.split()) for line in lines), np.int64, len(lines))
    try:
        numbers = np.array(" ".join(lines).split(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"it has what is no number: {str(error).partition(': ')[2][:40]}") from None
    return numbers, widths.cumsum() - widths, widths
