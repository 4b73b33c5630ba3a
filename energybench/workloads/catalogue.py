"""Tasks, models, data sets and augmentations that have a name, read as text: importing them would import torch.

What torchvision has is read from its files too, where it is installed, and so is what installed packages offer.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from energybench.common.extras import missing_packages
from energybench.common.limits import METHOD_B
from energybench.common.names import known_as
from energybench.common.remembered import Remembered
from energybench.common.safe_read import read_bytes
from energybench.train import plugins
from energybench.train.parameter_schema import Parameter, aliases, of_class, of_function

HERE = Path(__file__).resolve().parent
AUGMENTATIONS = {
    "flip": "mirrors each image left to right with a chance of one half",
    "cropN": "crop4 and so on: shifts by up to N pixels (1 to 99) over a black border",
}
CROP = r"^crop[1-9]\d?$"


# What a suite names, as messages call it; and where our own names of it stand: (package, table).
WORDS = {"task": "task", "model": "model", "data": "data set"}
TABLES = {"task": ("tasks", "TASKS"), "model": ("models", "MODELS"), "data": ("datasets", "DATA_SETS")}


@dataclass(frozen=True, slots=True)
class Named:
    """Something that a suite may `use`.

    summary: the first paragraph of its docstring, `text`
    origin:  "shipped", "torchvision" or "entry point"
    package: that offers it by an entry point, with its version
    needs:   the extra of energybench that it needs
    problem: why it cannot be used here
    """

    name: str
    summary: str
    origin: str
    text: str = ""
    parameters: tuple[Parameter, ...] = ()
    package: str = ""
    needs: str = ""
    problem: str = ""


def tasks() -> list[Named]:
    """Those that come with energybench."""
    return _own("task")


def models() -> list[Named]:
    """Those that come with energybench."""
    return _own("model")


def data_sets() -> list[Named]:
    """Those that have a function of ours, and those that torchvision downloads."""
    return [*_own("data"), *downloaded()]


def downloaded() -> list[Named]:
    """The data sets that torchvision downloads."""
    there = "$ENERGYBENCH_DATA, or torchvision's download"
    return [Named(name, there, "torchvision") for name in _table("datasets/__init__.py", "TORCHVISION")]


def data_set_names() -> list[str]:
    """Every name that `data.use` may have without a folder of that name."""
    return sorted({*(each.name for each in data_sets()), *_table("stand_in.py", "KNOWN")})


# ── of installed packages ─────────────────────────────────────────────────────────────────────────────────────────────


def offer(kind: str, use: str) -> plugins.Offer | None:
    """What a suite's `use` means of what installed packages offer, whatever its capitals; None where it means ours, a
    file, or nothing.

    kind: "task", "model" or "data"
    """
    offered = plugins.offers(kind)
    name = known_as(use, offered)
    return offered[name] if name in offered and not _reserved(kind, name) else None


def offered(kind: str) -> list[Named]:
    """Everything of a kind that installed packages offer, with what keeps some of it from being used."""
    return [_offered(kind, each) for each in plugins.offers(kind).values()]


def by_name(kind: str) -> dict[str, Named]:
    """What a name means: of ours, and of what installed packages offer, broken or not."""
    own = {"task": tasks, "model": models, "data": data_sets}[kind]()
    others = {each.name: each for each in offered(kind) if not _reserved(kind, each.name)}
    return {each.name: each for each in own} | others


def usable(kind: str) -> list[Named]:
    """What of it a suite may use."""
    return [each for each in offered(kind) if not each.problem]


def _reserved(kind: str, name: str) -> bool:
    """Whether a name means something else on every machine already."""
    own = [*_table(f"{TABLES[kind][0]}/__init__.py", TABLES[kind][1])]
    others = torchvision_models() if kind == "model" else data_set_names() if kind == "data" else ()
    names = [*own, *others]
    return known_as(name, names) in names


def _offered(kind: str, offer: plugins.Offer) -> Named:
    problem = offer.problem
    if not problem and _reserved(kind, offer.name):
        problem = f"hidden: '{offer.name}' means something else everywhere"
    try:
        tree = ast.parse(read_bytes(offer.path, METHOD_B).decode("utf-8")) if offer.path else ast.Module([], [])
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:  # the parser's own limits
        tree, problem = ast.Module([], []), problem or f"its file cannot be read: {error}"
    found = _read(offer.name, tree, offer.attribute or offer.name.replace("-", "_"), plugins.ORIGIN)
    return replace(found, package=offer.package, problem=problem)


# ── of torchvision ────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def torchvision_models() -> dict[str, tuple[str, ...]]:
    """Each classifier of the torchvision that is installed → the parameters that its model takes; {} without one."""
    try:
        found = importlib.util.find_spec("torchvision")
    except ImportError:
        return {}
    if found is None or found.origin is None:
        return {}
    names: dict[str, tuple[str, ...]] = {}
    for file in sorted((Path(found.origin).parent / "models").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        registered = re.findall(r"@register_model\((?:name=\"(\w+)\")?\)\n(?:@.*\n)*def (\w+)\(", text)
        if registered:
            arguments = _arguments(ast.parse(text))
            names |= {given or function: arguments for given, function in registered}
    return names


def _arguments(tree: ast.Module) -> tuple[str, ...]:
    """Of a file's models, the classes that are told how many classes there are: what need not be given."""
    found: set[str] = set()
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for item in kind.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                names = [argument.arg for argument in item.args.args]
                optional = names[len(names) - len(item.args.defaults) :]
                found |= set(optional) if "num_classes" in names else set()
    return tuple(sorted(found - {"num_classes"}))


# ── read as text ──────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((HERE / file).read_text(encoding="utf-8"))


def _table(file: str, name: str) -> dict[str, Any]:
    """A module's table of names; of values that are no plain ones, None."""
    for node in _tree(file).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(node.value, ast.Dict):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if isinstance(target, ast.Name) and target.id == name:
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {str(ast.literal_eval(key)): _plain(value) for key, value in pairs if key is not None}
    return {}


def _plain(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


def _places(kind: str) -> Iterator[tuple[Named, str, str]]:
    """What a package's table has, with what it needs: (without what its docstring says, file, attribute there)."""
    package, table = TABLES[kind]
    needs = _table(f"{package}/__init__.py", "NEEDS")
    for name, target in _table(f"{package}/__init__.py", table).items():
        module, _, attribute = target.partition(":")
        file = "/".join(module.split(".")[2:]) + ".py"  # below energybench.workloads
        extra = needs.get(name, "")
        lacks = missing_packages(extra)
        problem = f"it needs {', '.join(lacks)}: pip install 'energybench[{extra}]'" if lacks else ""
        yield Named(name, "", "shipped", needs=extra, problem=problem), file, attribute


def _own(kind: str) -> list[Named]:
    """The same, with what each says of itself."""
    found = []
    for named, file, attribute in _places(kind):
        read = _read(named.name, _tree(file), attribute, named.origin)
        found.append(replace(read, needs=named.needs, problem=named.problem))
    return found


def summaries(kind: str, remembered: Remembered) -> list[Named]:
    """What comes with energybench, with its summary alone: as `tasks`, `models` and `data_sets` have it."""
    found = []
    for named, file, attribute in _places(kind):
        read = partial(_summary, named, file, attribute)
        found.append(replace(named, summary=remembered.get(f"{kind} {named.name}", HERE / file, read)))
    return found + (downloaded() if kind == "data" else [])


def _summary(named: Named, file: str, attribute: str) -> str:
    return _read(named.name, _tree(file), attribute, named.origin).summary


def _read(name: str, tree: ast.Module, attribute: str, origin: str) -> Named:
    """What a function, or a class, says of itself; nothing where the file takes it from another one."""
    definitions = (ast.FunctionDef, ast.ClassDef)
    found = next((node for node in tree.body if isinstance(node, definitions) and node.name == attribute), None)
    if found is None:
        return Named(name, "", origin)
    text = ast.get_docstring(found) or ""
    known = aliases(tree)
    parameters = of_class(found, known) if isinstance(found, ast.ClassDef) else tuple(of_function(found, known))
    return Named(name, " ".join(text.split("\n\n")[0].split()), origin, text, parameters)
