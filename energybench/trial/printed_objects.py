"""Objects that a script prints on a line of its own or behind a prefix: JSON, or a Python dict as `print` shows it.

{"accuracy": 0.94}
2026-11-30 12:00 INFO train: {"accuracy": 0.94}
{'eval_loss': 1.25, 'eval_accuracy': np.float64(0.94), 'epoch': 3.0}
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from typing import Any

MOST_BRACES = 20  # of a line, that may be an object's first
_NAMES = {"nan": math.nan, "inf": math.inf, "NaN": math.nan, "Infinity": math.inf, "null": None}


def objects(line: str) -> Iterator[dict[str, Any]]:
    """The objects on a line, from left to right, none inside another."""
    at = 0
    for _ in range(MOST_BRACES):
        at = line.find("{", at)
        if at < 0:
            return
        found, length = _json(line[at:]) or _python(line[at:]) or (None, 1)
        at += length
        if found is not None:
            yield found


def _json(text: str) -> tuple[dict[str, Any], int] | None:
    try:
        value, stop = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return (value, stop) if isinstance(value, dict) else None


def _python(text: str) -> tuple[dict[str, Any], int] | None:
    """A dict of plain values, up to the last brace or the first that closes it; no code is run."""
    for stop in dict.fromkeys((text.rfind("}") + 1, _closing(text))):
        try:
            value = _value(ast.parse(text[:stop], mode="eval").body) if stop else None
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return value, stop
    return None


def _closing(text: str) -> int:
    """After the brace that closes the first one; 0 where none does."""
    depth = 0
    for match in re.finditer(r"[{}]|'[^']*'|\"[^\"]*\"", text):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    return 0


def _value(node: ast.expr) -> Any:
    """Of a call its argument: np.float64(0.94), tensor(0.94). Raises ValueError for what is no plain value."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Dict(keys=keys, values=values):
            return {str(_value(key)): _value(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item) for item in items]
        case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(number := _value(operand), int | float):
            return -number
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.Call(args=[argument, *_]):
            return _value(argument)
    raise ValueError("no plain value")
