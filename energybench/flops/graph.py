"""Plain facts about the nodes and values of a traced graph, torch._C.Node and torch._C.Value."""

from __future__ import annotations

import os
from typing import Any

Sizes = list[int]
PREFIX = "aten::"


def sizes(value: Any) -> Sizes:
    return list(value.type().sizes())


def is_tensor(value: Any) -> bool:
    return bool(value.isCompleteTensor())


def elements(value: Any) -> list[Any]:
    """Of a traced list."""
    return list(value.node().inputs())


def name_of(node: Any) -> str:
    """ "add" of aten::add and of aten::add_."""
    name = str(node.kind()).removeprefix(PREFIX)
    return name if name.startswith("__") else name.rstrip("_")


def in_place(node: Any) -> bool:
    kind = str(node.kind())
    return kind.startswith(PREFIX) and kind.endswith("_") and not kind.endswith("__")


def where(node: Any, passed_over: tuple[str, ...] = ()) -> str:
    """The file and line that called this operator, as far as torch knows it: "model.py:12". Innermost first, without
    files of the folders that are passed over."""
    for frame in str(node.sourceRange()).splitlines():
        file, _, line = frame.partition("): ")[0].rpartition("(")
        if file and not file.startswith(passed_over):
            return f"{os.path.basename(file)}:{line}"
    return ""
