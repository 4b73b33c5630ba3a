"""Models, data sets, tasks and augmentations that have a name, read as text: importing them would import torch.

What torchvision has is read from its files too, where it is installed.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from energybench.train.parameter_schema import Parameter, aliases, of_function

HERE = Path(__file__).resolve().parent
AUGMENTATIONS = {
    "flip": "mirrors each image left to right with a chance of one half",
    "cropN": "crop4 and so on: shifts by up to N pixels (1 to 99) over a black border",
}
CROP = r"^crop[1-9]\d?$"


@dataclass(frozen=True, slots=True)
class Named:
    """Something that a suite may `use`. text: its whole docstring; summary: the first paragraph of that."""

    name: str
    summary: str
    origin: str
    text: str = ""
    parameters: tuple[Parameter, ...] = ()


def models() -> list[Named]:
    """Those that come with energybench."""
    return [*_functions("models.py", "OWN"), *_functions("paper_models.py", "PAPER")]


def data_sets() -> list[Named]:
    """Those that a dependency ships, those that torchvision downloads, and the readers of folders."""
    there = "$ENERGYBENCH_DATA, or torchvision's download"
    downloaded = [Named(name, there, "torchvision") for name in _table("datasets.py", "TORCHVISION")]
    folders = [*_functions("mask_folders.py", "FOLDERS"), *_functions("coco_folders.py", "FOLDERS")]
    return [*_functions("datasets.py", "SHIPPED"), *downloaded, *folders]


def data_set_names() -> list[str]:
    """Every name that `data.use` may have without a folder of that name."""
    return sorted({*(each.name for each in data_sets()), *_table("stand_in.py", "KNOWN")})


def tasks() -> list[str]:
    return _table("tasks.py", "TASKS")


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


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((HERE / file).read_text(encoding="utf-8"))


def _table(file: str, name: str) -> list[str]:
    """The keys of a module's table of names."""
    for node in _tree(file).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(node.value, ast.Dict):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if isinstance(target, ast.Name) and target.id == name:
            return [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
    return []


def _functions(file: str, table: str) -> list[Named]:
    functions = {node.name: node for node in _tree(file).body if isinstance(node, ast.FunctionDef)}
    known = aliases(_tree(file))
    found = []
    for name in _table(file, table):
        function = functions.get(name)
        text = (ast.get_docstring(function) or "") if function else ""
        summary = " ".join(text.split("\n\n")[0].split())
        parameters = tuple(of_function(function, known)) if function else ()
        found.append(Named(name, summary, "shipped", text, parameters))
    return found
