"""The tables of docs/suite.md: every key of a suite, what it may be, its default, its meaning; and every name.

They are made from the schema (the models in suite/tables.py and suite/command_tables.py), so that the page cannot say
otherwise. `energybench schema --markdown docs/suite.md` writes them between two marks of that page and leaves the rest,
its recipes, as it is written there by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from energybench.cli.suite_schema import without_null
from energybench.common.outputs import Kind
from energybench.common.shipped import shipped
from energybench.common.units import Bytes, Intensity, Points, Ratio, Seconds, WarmupAmount
from energybench.suite.suite import Suite, schema_json
from energybench.train.discovery import Source, card
from energybench.train.plugins import GROUPS
from energybench.workloads import catalogue

BEGIN = "<!-- from here on written by `energybench schema --markdown docs/suite.md` -->"
END = "<!-- to here -->"
KIND = Kind(
    "a page with the suite's tables",
    lambda page: (BEGIN.encode() in page and END.encode() in page) or page.startswith(b"## Every key\n\n"),
)
# A table of the schema → how it is written in a suite.
TABLES = {
    "TrialsTable": "[trials]",
    "CooldownTable": "trials.cooldown",
    "MeasureTable": "[measure]",
    "CarbonTable": "measure.carbon",
    "AcceptTable": "[accept]",
    "QualityTable": "accept.quality",
    "WorkloadTable": "[[workload]]",
    "TaskTable": "workload.task",
    "ModelTable": "workload.model",
    "DataTable": "workload.data",
    "TrainTable": "workload.train",
    "WorkloadAcceptTable": "workload.accept",
    "TargetTable": "workload.target",
    "MethodTable": "[[method]]",
    "ClaimsTable": "method.claims",
    "TunedTable": "method.tuned",
    "SkipTable": "[[skip]]",
    "RequireTable": "[[require]]",
    "OnTable": "[on]",
    "SlurmTable": "on.slurm",
    "RayTable": "on.ray",
    "CommandWorkloadTable": "[[workload]] that is a command",
    "QualitySourceTable": "workload.quality of a command",
    "CommandMethodTable": "[[method]] that is a command",
}
KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "array": "array"}
# The pattern of a quantity → what it is, in which units.
QUANTITIES = {
    TypeAdapter(kind).json_schema()["pattern"]: words
    for kind, words in {
        Seconds: "time in ms, s, min or h,",
        WarmupAmount: "time, or steps,",
        Ratio: "share in %,",
        Points: "percentage points (pp), or units of the metric,",
        Bytes: "bytes in kB, MB, GB, MiB, ...,",
        Intensity: "mass of CO2e per energy,",
    }.items()
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LARGEST_SHOWN = 1e6  # a bound beyond it is against slips, and no news


def markdown(page: str = "") -> str:
    """The page with its tables made anew; the same schema and names give the same bytes.

    page: as it is so far; without the two marks in it, there are the tables alone
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{_tables()}\n\n{END}{after}" if begin and end else f"{_tables()}\n"


def _tables() -> str:
    schema = without_null(schema_json())
    needed = {name: table.get("required", []) for name, table in Suite.model_json_schema()["$defs"].items()}
    blocks = ["## Every key", KEYS]
    first = {key: inner for key, inner in schema["properties"].items() if not _table_of(inner)}
    blocks += ["### At the top", _grid(first, schema["required"])]
    tables = schema["$defs"]
    order = [name for name in TABLES if name in tables] + [name for name in tables if name not in TABLES]
    for name in order:
        heading = TABLES.get(name, name)
        blocks += [f"### {heading}", _escape(_sentence(tables[name]["description"]))]
        blocks += [_grid(tables[name]["properties"], needed[name])]
    overlay = schema["properties"]["quick"]["properties"]
    changed = [key for key in overlay if key != "workload"] + [f"workload.{key}" for key in _inner(overlay["workload"])]
    blocks += ["### [quick]", QUICK.format(keys=", ".join(f"`{key}`" for key in changed))]
    blocks += ["## Every name", *_names()]
    return "\n\n".join(block.strip() for block in blocks if block)


KEYS = """A quantity has its unit: `"20 s"`, `"0.5 pp"`, `"2 GB"`; a bare number that could be two things is refused.
Keys that a workload takes from another by `extends` need not be written again. *Required* is what has no default."""
QUICK = """An overlay that `--quick` merges over the suite, for a smoke test: every page then says so. A sweep keeps its
first value. It may change {keys}; `workload` is merged over every workload."""

OTHER_METHODS = """Others: a file of your own (`energybench new method NAME`), or an installed package's (`{group}`)."""
OTHER_TASKS = """Others: a class of your own, `"file.py:Class"` (`energybench new task NAME`,
[add a task](add-a-task.md)), or an installed package's (`{group}`)."""
OTHER_MODELS = """And every classifier of torchvision by its name (`resnet18`, `vit_b_16`, ...), its ResNets with
`stem = "small"` for small images; a function of your own (`energybench new model NAME`); or an installed package's
(`{group}`)."""
OTHER_DATA = """A folder of images by its path, `"./pets"`; a folder `$ENERGYBENCH_DATA/NAME` by its name; a function of
your own (`energybench new data NAME`); or an installed package's (`{group}`). Images are jpg, png, ppm, bmp,
pgm, tif and webp."""


def _inner(table: dict[str, Any]) -> list[str]:
    return list(table["properties"])


def _table_of(schema: dict[str, Any]) -> str | None:
    """The table that a key holds, or holds an array of."""
    text = json.dumps({key: value for key, value in schema.items() if key != "default"})
    found = re.search(r'"#/\$defs/(\w+)"', text)
    return found[1] if found else None


def _grid(properties: dict[str, Any], required: list[str]) -> str:
    rows = ["| key | what it may be | default | meaning |", "|---|---|---|---|"]
    for key, schema in properties.items():
        default = "*required*" if key in required else _default(schema)
        rows.append(f"| `{key}` | {_escape(_value(schema))} | {default} | {_escape(_meaning(schema))} |")
    return "\n".join(rows)


def _meaning(schema: dict[str, Any]) -> str:
    if schema.get("deprecated"):
        return f"{schema['description']}, read for one version more"
    if held := _table_of(schema):
        see = TABLES.get(held, held)
        said = _sentence(schema.get("description", ""))
        return f"{said}{'; ' if said else ''}see {see}" if "from" not in held else said
    return _sentence(schema.get("description", ""))


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _default(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return "none"
    value = schema["default"]
    return "none" if value in ("", [], {}) else f"`{json.dumps(value, ensure_ascii=False)}`"


def _value(schema: dict[str, Any]) -> str:
    """What may be written, in words."""
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if words := schema.get("enum"):
        return ", ".join(f"`{json.dumps(word)}`" for word in words)
    if options := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(_value(option) for option in options))
    if "$ref" in schema or schema.get("type") == "object":
        return "table"
    if schema.get("type") == "array":
        return _array(schema)
    kind = QUANTITIES.get(schema.get("pattern", ""), KINDS.get(schema.get("type", ""), "anything"))
    bounds = [f"{sign} {schema[key]:,}" for key, sign in BOUNDS.items() if abs(schema.get(key, 1e9)) <= LARGEST_SHOWN]
    shown = [json.dumps(example, ensure_ascii=False) for example in schema.get("examples", ())]
    such_as = f"{kind} such as {', '.join(f'`{each}`' for each in shown)}" if shown else kind
    return f"{kind} {', '.join(bounds)}" if bounds else such_as.removesuffix(",")


def _array(schema: dict[str, Any]) -> str:
    if _table_of(schema):
        return "tables in double brackets"
    examples = [json.dumps(example, ensure_ascii=False) for example in schema.get("examples", ())]
    if examples:
        return f"array such as {', '.join(f'`{each}`' for each in examples)}"
    if "prefixItems" in schema:
        return f"array of {len(schema['prefixItems'])}: {_value(schema['prefixItems'][0])}"
    return f"array of: {_value(schema.get('items', {}))}"


def _names() -> Iterator[str]:
    """Methods, models, data sets, tasks and augmentations that come with energybench."""
    home = shipped("methods")
    methods = [card(Source(path.stem, path, "shipped")) for path in sorted(home.glob("[!_]*.py"))]
    rows = [(each.name, each.summary.removeprefix(f"{each.name}: "), _parameters(each.details)) for each in methods]
    yield "`energybench list NAME` prints all about one of them. Capitals do not matter."
    yield "### Methods"
    yield _rows(("`use`", "what it does", "parameters"), rows)
    yield OTHER_METHODS.format(group=GROUPS["method"])
    yield "### Tasks"
    yield _rows(
        ("`task`", "what is learned", "parameters"),
        [(each.name, each.summary, _parameters(each.parameters)) for each in catalogue.tasks()],
    )
    yield OTHER_TASKS.format(group=GROUPS["task"])
    yield "### Models"
    yield _rows(
        ("`use`", "what it is", "parameters"),
        [(each.name, each.summary, _parameters(each.parameters)) for each in catalogue.models()],
    )
    yield OTHER_MODELS.format(group=GROUPS["model"])
    yield "### Data sets"
    yield _rows(("`use`", "what it is"), [(each.name, each.summary) for each in catalogue.data_sets()])
    yield OTHER_DATA.format(group=GROUPS["data"])
    yield "### Augmentations"
    yield _rows(("`augment`", "what it does"), list(catalogue.AUGMENTATIONS.items()))
    yield "Every word of ours, in one sentence each: [glossary](glossary.md)."


def _parameters(parameters: Any) -> str:
    """ "skip = "every:5", alpha (required)" """
    shown = (
        f"{each.name} (required)" if each.required else f"{each.name} = {each.shown_default or 'none'}"
        for each in parameters
    )
    return ", ".join(f"`{each}`" for each in shown) or "none"


def _rows(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| `{row[0]}` | {' | '.join(map(_escape, row[1:]))} |" for row in rows]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Outside code, what Markdown would read as its own."""
    parts = text.split("`")
    return "`".join(
        re.sub(r"([|*\[\]]|<(?=\w))", r"\\\1", part) if number % 2 == 0 else part.replace("|", "\\|")
        for number, part in enumerate(parts)
    )
