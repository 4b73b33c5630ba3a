"""What a function or a class says of its parameters, read as text: types, allowed values, defaults, words.

Nothing is imported or run, so a file may be anyone's. Types become JSON Schema: `int`, `float`, `str`, `bool`, `X | Y`,
`Literal[...]`, lists and tables, and `Annotated[X, Field(ge=..., json_schema_extra={...})]`; a name that stands for one
of these at the top of the same file is looked up. What is none of them is anything. Imports no torch and no pydantic.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]
PLAIN: dict[str, Schema] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "dict": {"type": "object"},
    "Mapping": {"type": "object"},
    "Period": {"type": "string", "examples": ["2 epochs", "300 steps"]},
    "Seconds": {"type": "string", "examples": ["20 s", "30 min"]},
    "Watts": {"type": "string", "examples": ["200 W", "0.3 kW"]},
    "Hertz": {"type": "string", "examples": ["1200 MHz", "1.2 GHz"]},
}
ARRAYS = ("list", "tuple", "set", "frozenset", "Sequence", "Iterable", "Collection")
KEYWORDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "pattern": "pattern",
    "min_length": "minLength",
    "max_length": "maxLength",
    "description": "description",
    "examples": "examples",
}
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
MISSING = object()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as a suite writes it.

    type:    as the file has it, without bounds
    default: as the file has it; "required" where there is none
    value:   the default as TOML has it; MISSING where there is none, or it is no plain value
    schema:  JSON Schema of what it may be
    about:   what the class's docstring says of it
    """

    name: str
    type: str
    default: str
    value: Any = MISSING
    schema: Schema = field(default_factory=dict)
    about: str = ""

    @property
    def required(self) -> bool:
        return self.default == "required"

    @property
    def shown_default(self) -> str:
        """As a suite would have it; empty where there is none, or it says that the key is left out."""
        if self.value is MISSING:
            return "" if self.default in ("required", "None") else self.default
        return json.dumps(self.value, ensure_ascii=False)

    @property
    def allowed(self) -> str:
        """Its allowed values in words."""
        return describe(self.schema) or self.type


def aliases(tree: ast.Module) -> dict[str, ast.expr]:
    """Names that stand for an expression at the top of a file."""
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def of_field(item: ast.AnnAssign, known: Mapping[str, ast.expr], about: Mapping[str, str]) -> Parameter:
    """A dataclass's field."""
    name = ast.unparse(item.target)
    default, value = _default(item.value)
    written = schema_of(item.annotation, known)
    return Parameter(name, base_type(item.annotation, known), default, value, written, about.get(name, ""))


def of_class(kind: ast.ClassDef, known: Mapping[str, ast.expr]) -> tuple[Parameter, ...]:
    """The fields of a dataclass that a suite may set; a class that is none has no parameters."""
    found = [item for item in kind.body if isinstance(item, ast.AnnAssign) and _is_field(item)]
    found = found if is_dataclass_text(kind) else []
    about = told(ast.get_docstring(kind) or "", [ast.unparse(item.target) for item in found])
    return tuple(of_field(item, known, about) for item in found)


def is_dataclass_text(kind: ast.ClassDef) -> bool:
    """Whether a class is decorated as a dataclass."""
    written = (ast.unparse(node.func if isinstance(node, ast.Call) else node) for node in kind.decorator_list)
    return "dataclass" in (name.rpartition(".")[2] for name in written)


def _is_field(item: ast.AnnAssign) -> bool:
    default = ast.unparse(item.value) if item.value else ""
    return "ClassVar" not in ast.unparse(item.annotation) and "init=False" not in default


def of_function(function: ast.FunctionDef, known: Mapping[str, ast.expr]) -> list[Parameter]:
    """A function's arguments that a suite may set: all but `shape` and `classes`, which it is given, and what begins
    with an underscore."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(function.args.defaults))
    pairs = [*zip(arguments, [*defaults, *function.args.defaults], strict=True)]
    pairs += zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    found = []
    for argument, written in pairs:
        if argument.arg not in ("self", "shape", "classes") and not argument.arg.startswith("_"):
            default, value = _default(written)
            annotation = argument.annotation or ast.Name("Any")
            schema = schema_of(annotation, known)
            found.append(Parameter(argument.arg, base_type(annotation, known), default, value, schema))
    return found


def _default(written: ast.expr | None) -> tuple[str, Any]:
    """As it is shown, and its value."""
    if written is None:
        return "required", MISSING
    if isinstance(written, ast.Call) and ast.unparse(written.func) == "Quantity":  # as a suite writes it
        text = " ".join(str(ast.literal_eval(part)) for part in written.args)
        return repr(text), text
    try:
        value = ast.literal_eval(written)
    except ValueError:
        return ast.unparse(written), MISSING
    return ast.unparse(written), list(value) if isinstance(value, tuple) else MISSING if value is None else value


def base_type(annotation: ast.expr, known: Mapping[str, ast.expr]) -> str:
    """The type without its bounds, as one would write it."""
    if isinstance(annotation, ast.Name) and annotation.id in known:
        return base_type(known[annotation.id], {})
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Annotated"):
        return base_type(_items(annotation)[0], known)
    if isinstance(annotation, ast.BinOp):
        return f"{base_type(annotation.left, known)} | {base_type(annotation.right, known)}"
    return ast.unparse(annotation)


def schema_of(annotation: ast.expr, known: Mapping[str, ast.expr]) -> Schema:
    """JSON Schema of an annotation; {}, which is anything, where it is none that is known."""
    if isinstance(annotation, ast.Name) and annotation.id in known:
        return schema_of(known[annotation.id], {})
    if isinstance(annotation, ast.BinOp):
        options = [schema_of(side, known) for side in _union(annotation) if ast.unparse(side) != "None"]
        return {} if {} in options else options[0] if len(options) == 1 else {"anyOf": options}
    name = ast.unparse(annotation.value if isinstance(annotation, ast.Subscript) else annotation).rpartition(".")[2]
    if not isinstance(annotation, ast.Subscript):
        return {"type": "array"} if name in ARRAYS else dict(PLAIN.get(name, {}))
    items = _items(annotation)
    if name == "Literal":
        return {"enum": [ast.literal_eval(item) for item in items]}
    if name == "Annotated":
        return schema_of(items[0], known) | _bounds(items[1:])
    if name in ARRAYS:
        inner = schema_of(items[0], known)
        return {"type": "array", "items": inner} if inner else {"type": "array"}
    return dict(PLAIN.get(name, {}))


def _union(node: ast.expr) -> list[ast.expr]:
    return [*_union(node.left), *_union(node.right)] if isinstance(node, ast.BinOp) else [node]


def _items(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _bounds(metadata: Sequence[ast.expr]) -> Schema:
    """What `Field(...)` says of a value."""
    found: Schema = {}
    for call in metadata:
        for keyword in call.keywords if isinstance(call, ast.Call) else ():
            try:
                value = ast.literal_eval(keyword.value)
            except ValueError:
                continue
            if keyword.arg == "json_schema_extra" and isinstance(value, dict):
                found |= value
            elif keyword.arg in KEYWORDS:
                found[KEYWORDS[keyword.arg]] = value
    return found


def describe(schema: Schema) -> str:
    """In words: "number ≥ 0, < 1", "sliced or released"; empty for anything."""
    if options := schema.get("anyOf"):
        return ", or ".join(describe(option) for option in options)
    if words := schema.get("enum"):
        quoted = [f'"{word}"' if isinstance(word, str) else str(word) for word in words]
        return " | ".join(quoted)
    if schema.get("type") == "array":
        inner = describe(schema.get("items") or {})
        return f"array of {inner.replace('number', 'numbers')}" if inner else "array"
    if schema.get("type") == "string" and schema.get("examples"):
        return "text such as " + ", ".join(f'"{example}"' for example in schema["examples"])
    bounds = ", ".join(f"{sign} {schema[key]}" for key, sign in SIGNS.items() if key in schema)
    kind = WORDS.get(str(schema.get("type")), "table" if schema.get("type") == "object" else "")
    return f"{kind} {bounds}".strip()


def told(docstring: str, names: Sequence[str]) -> dict[str, str]:
    """What a docstring says of each name: its line "name: ...", and those that follow it up to the next or a blank."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in docstring.splitlines():
        head = re.match(r"(\w+(?:, \w+)*): +(\S.*)", line)
        if head and all(name in names for name in head[1].split(", ")):
            current = [head[2]]
            found |= dict.fromkeys(head[1].split(", "), current)
        elif not line.strip():
            current = None
        elif current is not None:
            current.append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}
