"""The JSON Schema of a suite's file as an editor needs it: with the names that can be used and their parameters.

`suite.schema_json` gives the keys of the tables; here `use` gets the methods, models, data sets and tasks that there
are, and each method and model its own parameters, so that an editor completes them and underlines a typo. Methods in
./methods are in it, and what installed packages offer. Imports no torch: everything is read as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter

from energybench.common.units import Hertz, Period, Seconds, Watts
from energybench.suite.suite import schema_json
from energybench.train.discovery import MethodCard, cards
from energybench.train.parameter_schema import MISSING, Parameter
from energybench.workloads import catalogue

Schema = dict[str, Any]
FILE = r"\.py(:\w+)?$"  # "file.py", "file.py:Name"
PATH = r"/|^[.~]"  # a folder of images
QUANTITIES = {"Period": Period, "Seconds": Seconds, "Watts": Watts, "Hertz": Hertz}
COMMENT = "written by `energybench schema`; write it again after adding a method of your own"


def suite_schema(methods: Sequence[MethodCard] | None = None, folders: Iterable[str] = ()) -> Schema:
    """The whole schema.

    Args:
        methods: those that can be named; by default all that are found here
        folders: names of data sets beyond the known ones, as $ENERGYBENCH_DATA has them
    """
    schema: Schema = without_null(schema_json())
    tables = schema["$defs"]
    tables |= {f"Start_{key}": inner for key, inner in tables["ModelTable"]["properties"].items() if key != "use"}
    tables["ModelTable"] = _models(tables["ModelTable"])
    workload = tables["WorkloadTable"]["properties"]
    workload["task"] |= _tasks()
    del tables["TaskTable"]
    data = tables["DataTable"]["properties"]
    offered = [each.name for each in catalogue.usable("data")]
    data["use"] |= _named([*catalogue.data_set_names(), *offered, *folders], FILE, PATH)
    crops = ["flip", "crop2", "crop4", "crop8"]
    data["augment"]["items"] = {"anyOf": [{"enum": crops}, {"type": "string", "pattern": catalogue.CROP}]}
    found = list(cards() if methods is None else methods)
    kinds = {f"Method_{re.sub(r'[^A-Za-z0-9]', '_', card.name)}": _method(card, tables) for card in found}
    kinds |= {"MethodFile": _method_file(tables), "Stack": _stack(found, tables), "StackOfFiles": _file_stack(tables)}
    del tables["MethodTable"]
    tables |= kinds
    references = [{"$ref": f"#/$defs/{kind}"} for kind in (*kinds, "CommandMethodTable")]
    schema["properties"]["method"]["items"] = {"anyOf": references}
    schema["properties"]["quick"]["properties"]["workload"]["properties"]["task"] = workload["task"]
    first = schema.pop("$schema")
    return {"$schema": first, "$comment": COMMENT, **schema}


def without_null(value: Any) -> Any:
    """TOML has no null: a key that may be absent is simply left out."""
    if isinstance(value, list):
        return [without_null(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: without_null(item) for key, item in value.items() if not (key == "default" and item is None)}
    options = made.get("anyOf")
    if isinstance(options, list) and {"type": "null"} in options:
        left = [option for option in options if option != {"type": "null"}]
        rest = {key: item for key, item in made.items() if key != "anyOf"}
        return {**left[0], **rest} if len(left) == 1 else {**rest, "anyOf": left}
    return made


def _any_case(name: str) -> str:
    """A pattern of this name, whatever its capitals."""
    letters = (f"[{c.lower()}{c.upper()}]" if c.lower() != c.upper() else re.escape(c) for c in name)
    return "".join(letters)


def _named(names: Iterable[str], *patterns: str) -> Schema:
    """One of these names, whatever its capitals, or a text that one of the patterns fits."""
    known = list(dict.fromkeys(names))
    every_case = f"^({'|'.join(map(_any_case, known))})$"
    fitting = [{"type": "string", "pattern": pattern} for pattern in (every_case, *patterns)]
    return {"anyOf": [{"enum": known}, *fitting]}


def _parameter(parameter: Parameter) -> Schema:
    schema = dict(parameter.schema)
    if (kind := parameter.type.removesuffix(" | None")) in QUANTITIES:
        schema |= TypeAdapter(QUANTITIES[kind]).json_schema()
    if parameter.about:
        schema["description"] = parameter.about
    if parameter.value is not MISSING:
        schema["default"] = parameter.value
    return schema


def _table(use: Schema, properties: Schema, description: str, *, others: bool = False) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": {"use": use, **properties},
        "required": ["use"],
        "additionalProperties": others,
    }


# ── methods ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _common(tables: Schema) -> Schema:
    """The keys of every [[method]] but `use` and `sweep`."""
    given = tables["MethodTable"]["properties"]
    return {key: given[key] for key in given if key not in ("use", "sweep")}


def _parameters(card: MethodCard) -> Schema:
    return {each.name: _parameter(each) for each in card.details}


def _method(card: MethodCard, tables: Schema) -> Schema:
    """A [[method]] that uses this one."""
    parameters = _parameters(card)
    swept = {
        name: {"type": "array", "items": schema, "minItems": 1, "uniqueItems": True}
        for name, schema in parameters.items()
    }
    sweep = {"type": "object", "properties": swept, "additionalProperties": False}
    sweep["description"] = tables["MethodTable"]["properties"]["sweep"]["description"]
    return _table(_named([card.name]), {**parameters, **_common(tables), "sweep": sweep}, card.summary)


def _method_file(tables: Schema) -> Schema:
    """A [[method]] in a file of one's own, whose parameters nobody knows here."""
    use = {"type": "string", "pattern": FILE, "description": '"file.py" or "file.py:Class", from the suite\'s folder'}
    sweep = tables["MethodTable"]["properties"]["sweep"]
    return _table(use, {**_common(tables), "sweep": sweep}, "a method in a file of your own", others=True)


def _stack(found: Sequence[MethodCard], tables: Schema) -> Schema:
    """A [[method]] that stacks several by name, outermost first."""
    use = {"type": "array", "items": _named([card.name for card in found]), "minItems": 1, "uniqueItems": True}
    parameters = {
        card.name: {"type": "object", "properties": _parameters(card), "additionalProperties": False} for card in found
    }
    return _table(use, {**parameters, **_common(tables)}, "a stack of methods, outermost first; a table for each")


def _file_stack(tables: Schema) -> Schema:
    """A stack with a file of one's own in it."""
    use = {"type": "array", "items": {"type": "string"}, "contains": {"type": "string", "pattern": FILE}}
    table = _table(use, _common(tables), "a stack of methods with a file of your own in it")
    return table | {"additionalProperties": {"type": "object"}}


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tasks() -> Schema:
    """The `task` of a workload: a name or a file; or a table of one with its parameters, or of more for an inherited
    one."""
    found = [*catalogue.tasks(), *catalogue.usable("task")]
    kinds = [
        _table(_named([task.name]), {each.name: _parameter(each) for each in task.parameters}, task.summary)
        for task in found
    ]
    file = {"type": "string", "pattern": FILE}
    kinds.append(_table(file, {}, "a class in a file of your own; other keys are its parameters", others=True))
    inherited = {"type": "object", "properties": {"use": {"enum": []}}, "additionalProperties": True}
    return {"anyOf": [*_named([task.name for task in found], FILE)["anyOf"], *kinds, inherited]}


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _models(table: Schema) -> Schema:
    """The `model` of a workload: one of ours, one of torchvision's, a file, or more of an inherited one."""
    own = [*catalogue.models(), *catalogue.usable("model")]
    start = {key: {"$ref": f"#/$defs/Start_{key}"} for key in table["properties"] if key != "use"}
    kinds = []
    for model in own:
        properties = {each.name: _parameter(each) for each in model.parameters} | start
        kinds.append(_table(_named([model.name]), properties, model.summary))
    by_arguments: dict[tuple[str, ...], list[str]] = {}
    for name, arguments in catalogue.torchvision_models().items():
        by_arguments.setdefault(arguments, []).append(name)
    for arguments, names in by_arguments.items():
        properties = {name: {} for name in arguments} | start
        if "resnet18" in names:
            small = "small: a 3×3 first convolution of stride 1 and no max-pool, for small images"
            properties["stem"] = {"enum": ["small"], "description": small}
        kinds.append(_table(_named(names), properties, "torchvision's classifier, untrained"))
    if not by_arguments:  # torchvision cannot be looked at: any name may be one of its
        kinds.append(_table({"type": "string"}, {}, "torchvision's classifier, untrained", others=True))
    file = {"type": "string", "pattern": FILE}
    kinds.append(_table(file, {}, "a function in a file of your own; other keys are its arguments", others=True))
    inherited: dict[str, list[Schema]] = {}
    for parameter in (each for model in own for each in model.parameters):
        schema = {key: value for key, value in _parameter(parameter).items() if key != "default"}
        options = inherited.setdefault(parameter.name, [])
        options.extend([schema] if schema not in options else [])
    more = {name: each[0] if len(each) == 1 else {"anyOf": each} for name, each in inherited.items()}
    more |= start
    kinds.append({"type": "object", "properties": {"use": {"enum": []}, **more}, "additionalProperties": True})
    return {"title": table["title"], "description": table["description"], "anyOf": kinds}
