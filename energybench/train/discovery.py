"""Find methods by name and read what they say of themselves; load one and build it from a suite's parameters.

Order of looking: a given path, `./methods`, entry points (`energybench.methods`), the methods shipped with energybench.
Listing reads files as text, so it needs neither torch nor trust; loading runs the file and happens in a child process.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from energybench.common.errors import Problem, UsageError, line_in, nearest
from energybench.common.limits import METHOD_B
from energybench.common.module_path import add_for_user_code
from energybench.common.names import known_as
from energybench.common.safe_read import list_folder, read_bytes, unreadable_reason
from energybench.common.shipped import shipped
from energybench.train import plugins
from energybench.train.method import Method
from energybench.train.parameter_schema import Parameter, aliases, is_dataclass_text, of_class


@dataclass(frozen=True, slots=True)
class Source:
    """Where a method comes from.

    origin:  "given", "./methods", "entry point" or "shipped"
    package: that offers it by an entry point, with its version
    problem: why the method of a package cannot be used
    """

    name: str
    path: Path
    origin: str
    class_name: str | None = None
    package: str = ""
    problem: str = ""

    @property
    def sha256(self) -> str:
        import hashlib  # not needed to list

        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class MethodCard:
    """What a method file says: its first sentence, the whole docstring, its parameters as (name, type, default).

    details:  of each parameter what it may be and what it means
    declared: what its class declares: `needs`, `replaces`, `runs`, `swaps`, `example`
    package:  that offers it by an entry point, with its version
    """

    name: str
    origin: str
    path: str
    summary: str
    text: str
    parameters: tuple[tuple[str, str, str], ...]
    details: tuple[Parameter, ...] = ()
    declared: dict[str, Any] = field(default_factory=dict)
    package: str = ""

    @property
    def paper(self) -> str:
        """The paragraph of the docstring that names the paper; empty where there is none."""
        paragraphs = (" ".join(part.split()) for part in self.text.split("\n\n"))
        return next((part.removeprefix("Paper: ") for part in paragraphs if part.startswith("Paper: ")), "")


def sources(here: Path | None = None) -> dict[str, Source]:
    """Every method that can be used by name; the first place to have it wins."""
    by_name: dict[str, Source] = {}
    places = (
        _python_files((here or Path.cwd()) / "methods", "./methods"),
        _offered(),
        _python_files(shipped("methods"), "shipped"),
    )
    for source in (source for place in places for source in place):
        by_name.setdefault(source.name, source)
    return by_name


def names_file(use: str) -> bool:
    """Whether a suite's `use` is "file.py" or "file.py:Name": code of whoever wrote the suite."""
    return use.partition(":")[0].endswith(".py")


def find(use: str, base: Path | None = None, where: str = "") -> Source:
    """The method that a suite names: a name, "file.py" or "file.py:Class", relative to `base`. Raises E301."""
    file, _, class_name = use.partition(":")
    if names_file(use):
        path = (base or Path.cwd()) / file
        if not os.path.isfile(path):
            raise UsageError(Problem("E301", no_file(file, path), where, f"looked at {path}"))
        return Source(path.stem, path.resolve(), "given", class_name or None)
    known = sources()
    if (name := known_as(use, known)) not in known:
        hint = nearest(use, known)
        hint += f"; or write your own: energybench new method {use}" if use.isidentifier() else ""
        raise UsageError(Problem("E301", f"no method is called '{use}'", where, hint))
    if known[name].problem:
        message = f"the method '{name}' of the package {known[name].package} cannot be used: {known[name].problem}"
        raise UsageError(Problem("E301", message, where, plugins.offers("method")[name].remedy))
    return known[name]


def no_file(file: str, path: Path) -> str:
    what = unreadable_reason(path)
    return f"there is no file '{file}'" if what == "does not exist" else f"'{file}' {what}"


def load(source: Source, kind: type = Method) -> type:
    """Run a file and return its class. Raises UsageError E302 with the file's own error."""
    if source.origin in ("given", "./methods") and shipped("methods").resolve() not in source.path.parents:
        add_for_user_code(str(source.path.parent))
    try:
        module = load_module(source.path)
    except Exception as error:
        line = line_in(error, source.path)
        raise UsageError(
            Problem("E302", f"loading it failed: {type(error).__name__}: {error}", f"{source.path}{line}")
        ) from error
    candidates = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, kind) and value.__module__ == module.__name__
    ]
    wanted_name = source.name.replace("_", "").replace("-", "").lower()
    wanted = (
        [c for c in candidates if c.__name__ == source.class_name]
        if source.class_name
        else (
            [c for c in candidates if c.__name__.lower() == wanted_name] or (candidates if len(candidates) == 1 else [])
        )
    )
    if not wanted:
        names = ", ".join(c.__name__ for c in candidates) or "none"
        raise UsageError(
            Problem(
                "E302",
                f"no {kind.__name__} class named after '{source.class_name or source.name}' (found: {names})",
                str(source.path),
                f'name the class: use = "{source.path.name}:ClassName"',
            )
        )
    return wanted[0]


def load_function(use: str, base: Path, where: str = "") -> Callable[..., Any]:
    """The user's own "file.py:function" of a workload. Raises E401."""
    file, _, name = use.partition(":")
    if not os.path.isfile(base / file):
        raise UsageError(Problem("E401", no_file(file, base / file), where, f"looked at {base / file}"))
    path = (base / file).resolve()
    add_for_user_code(str(path.parent))
    try:
        function = getattr(load_module(path), name or path.stem, None)
    except Exception as error:
        raise UsageError(
            Problem("E401", f"loading it failed: {type(error).__name__}: {error}", f"{path}{line_in(error, path)}")
        ) from error
    if not callable(function):
        raise UsageError(Problem("E401", f"'{path.name}' has no function '{name or path.stem}'", where))
    return function


def load_module(path: Path) -> Any:
    import hashlib

    name = f"energybench_user_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while they are built
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def build(kind: type, name: str, values: dict[str, Any], where: Callable[[str], str] = lambda key: "") -> Any:
    """A method or task from a suite's values, each checked against its field's type and unit; collects mistakes."""
    import pydantic

    parameters = {item.name: item for item in fields(kind) if item.init} if is_dataclass(kind) else {}
    hints = _hints(kind, parameters)
    problems = [
        Problem("E303", f"'{name}' takes no parameter '{key}'", where(key), nearest(key, parameters) or "it takes none")
        for key in values
        if key not in parameters
    ]
    settings: dict[str, Any] = {}
    for key, item in parameters.items():
        default = item.default
        if default is MISSING:
            default = (
                pydantic.Field(default_factory=item.default_factory) if item.default_factory is not MISSING else ...
            )
        settings[key] = (hints[key], default)
    config = pydantic.ConfigDict(
        strict=True, validate_default=True, arbitrary_types_allowed=True, protected_namespaces=()
    )
    model = pydantic.create_model(f"{name}_parameters", __config__=config, **settings)
    try:
        # As JSON, where an array may become a tuple or a set; from Python's types, strict means a list only.
        text = json.dumps({key: value for key, value in values.items() if key in parameters}, default=str)
        checked = model.model_validate_json(text)
        if not problems:
            method = kind(**{key: getattr(checked, key) for key in parameters})
            object.__setattr__(method, "name", name)  # of a frozen one too
            return method
    except pydantic.ValidationError as error:
        for detail in error.errors():
            key = str(detail["loc"][0]) if detail["loc"] else ""
            if detail["type"] == "missing":
                example = getattr(kind, "example", {})
                hint = f"for example: {key} = {json.dumps(example[key])}" if key in example else ""
                problems.append(Problem("E304", f"'{name}' requires its parameter '{key}'", where(key), hint))
                continue
            message = detail["msg"].removeprefix("Value error, ")
            given = f" (given: {detail['input']!r})"
            words = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
            hint = nearest(detail["input"], words) if words and isinstance(detail["input"], str) else ""
            hint = hint if hint.startswith("did you mean") else ""
            problems.append(Problem("E304", f"'{name}' parameter '{key}': {message}{given}", where(key), hint))
    except (ValueError, TypeError) as error:  # from the method's own __post_init__
        problems.append(Problem("E304", f"'{name}': {error}", where("")))
    raise UsageError(problems)


def _hints(kind: type, names: Collection[str]) -> dict[str, Any]:
    """The types of these fields alone: what else a class annotates may be known to type checkers only."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        own = {name: hint for name, hint in inspect.get_annotations(base).items() if name in names}
        if own:
            holder = type(base.__name__, (), {"__annotations__": own})
            names_there = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
            found |= get_type_hints(holder, {**names_there}, {**vars(base)}, include_extras=True)
    return found


def cards(here: Path | None = None) -> list[MethodCard]:
    """Every method's card, read without running it."""
    return [card(source) for _, source in sorted(sources(here).items())]


def card(source: Source) -> MethodCard:
    """What a file says of itself; one that is no Python says so."""
    return replace(_card(source), package=source.package)


def _card(source: Source) -> MethodCard:
    if source.problem:
        told = f"cannot be used: {source.problem}"
        return MethodCard(source.name, source.origin, str(source.path), told, "", ())
    try:
        tree = ast.parse(read_bytes(source.path, METHOD_B).decode("utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:  # the parser's own limits
        reason = getattr(error, "strerror", None) or getattr(error, "msg", None) or type(error).__name__
        return MethodCard(source.name, source.origin, str(source.path), f"cannot be read: {reason}", "", ())
    text = ast.get_docstring(tree) or ""
    summary = " ".join(text.split("\n\n")[0].split())
    kind = _class(tree, source)
    if kind is None:
        return MethodCard(source.name, source.origin, str(source.path), summary, text, ())
    details = of_class(kind, aliases(tree))
    parameters = tuple((each.name, each.type, each.default) for each in details)
    declared = _declared(tree, kind)
    return MethodCard(source.name, source.origin, str(source.path), summary, text, parameters, details, declared)


def _class(tree: ast.Module, source: Source) -> ast.ClassDef | None:
    """The method's class: the one that is named, else the first dataclass with a base, else the first with a base."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
    named = [node for node in classes if node.name == source.class_name]
    data = [node for node in classes if is_dataclass_text(node)]
    return next(iter((*named, *data, *classes)), None)


DECLARED = ("needs", "replaces", "runs", "swaps", "example")


def _declared(tree: ast.Module, kind: ast.ClassDef) -> dict[str, Any]:
    """The class's declarations that are plain values, and those of a base that comes with energybench."""
    found: dict[str, Any] = {}
    for item in kind.body:
        if isinstance(item, ast.AnnAssign) and item.value and (name := ast.unparse(item.target)) in DECLARED:
            value = item.value
            inner = value.args[0] if isinstance(value, ast.Call) and value.args else value  # frozenset({...})
            with contextlib.suppress(ValueError):
                found[name] = ast.literal_eval(inner)
    for base in map(ast.unparse, kind.bases):
        found = {**_of_base(tree, base), **found}
    return found


def _of_base(tree: ast.Module, base: str) -> dict[str, Any]:
    package = Path(__file__).resolve().parents[1]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and base in [alias.name for alias in node.names]:
            file = package.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            if file.parent.parent == package and file.is_file():
                inside = ast.parse(file.read_text(encoding="utf-8"))
                kind = next(
                    (each for each in inside.body if isinstance(each, ast.ClassDef) and each.name == base), None
                )
                return _declared(inside, kind) if kind else {}
    return {}


def _python_files(folder: Path, origin: str) -> Iterator[Source]:
    for path in list_folder(folder, ".py"):
        if not path.name.startswith("_") and os.path.isfile(path):
            yield Source(path.stem, path.resolve(), origin)


def _offered() -> Iterator[Source]:
    """What installed packages offer; one whose file is gone offers nothing, and that is nobody else's trouble."""
    for offer in plugins.offers("method").values():
        if offer.path:
            yield Source(offer.name, offer.path, plugins.ORIGIN, offer.attribute or None, offer.package, offer.problem)
