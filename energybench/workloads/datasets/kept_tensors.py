"""Tensors that took long to compute, kept in the user's cache: found again under the same key alone, and whole.

A file is written under a name of its own and then renamed, so that two processes that compute the same at once leave
one whole file. What is read is held against its key and against a checksum of everything in it: a file that is cut
short, damaged or another key's is not used, and is written anew. It is read with `weights_only`, which runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from energybench.common import user_cache
from energybench.common.sealed_files import PART_SUFFIX

FORMAT = 1
FOLDER = "features"


@dataclass(frozen=True, slots=True)
class Kept:
    """tensors: by name; facts: what JSON can hold."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def place(kind: str, key: str) -> Path:
    """Where it is, or would be."""
    return user_cache.place(FOLDER, f"{kind}-{key}.pt")


def read(kind: str, key: str) -> Kept | None:
    """What was kept under this key, mapped into memory; None where nothing was, or not all of it is as it was."""
    path = place(kind, key)
    if not os.path.isfile(path):
        return None
    try:
        content = torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)
        tensors, facts = content["tensors"], content["facts"]
        whole = content["key"] == key and content["sha256"] == _checksum(key, tensors, facts)
        return Kept(tensors, json.loads(facts)) if whole else None
    except Exception:  # whatever a reader makes of bytes that are none of its own
        return None


def write(kind: str, key: str, kept: Kept) -> str:
    """Keep it, in place of what is there. Empty; or why it cannot be kept, which costs the next run the computation."""
    path = place(kind, key)
    tensors, facts = dict(kept.tensors), json.dumps(dict(kept.facts), sort_keys=True)
    content = {"key": key, "tensors": tensors, "facts": facts, "sha256": _checksum(key, tensors, facts)}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:  # an open file: its name would be in what torch writes
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's, of a disk that is full
        return getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return ""


def _checksum(key: str, tensors: Mapping[str, Tensor], facts: str) -> str:
    """Over the key, the facts, and of each tensor its name, shape, type and bytes."""
    heads = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()]
    digest = hashlib.sha256(json.dumps([FORMAT, key, facts, heads]).encode())
    for tensor in tensors.values():
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
