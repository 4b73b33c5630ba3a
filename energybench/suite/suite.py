"""A suite: which methods are trained beside plain training, on which workloads, and what counts as a saving.

`load` reads one TOML file, with its own `extends` and [quick] and the command line's `--set`, and raises all
the mistakes it finds at once, each with its line. Names are the file's keys, plural for arrays of tables.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PrivateAttr, Tag, ValidationError, model_validator

from energybench.common.errors import Problem, SuiteError, in_order
from energybench.common.limits import MOST_PROBLEMS
from energybench.suite.command_pairing import unlike
from energybench.suite.command_tables import CommandMethodTable, CommandWorkloadTable
from energybench.suite.messages import FOLDER_NAME, KeyedError, explain, model_name, unfit, untagged
from energybench.suite.node import Node
from energybench.suite.on_tables import OnTable
from energybench.suite.overlays import (
    OVERLAID,
    WORKLOAD_OVERLAID,
    apply_quick,
    extend,
    override,
    quick_problems,
    without,
)
from energybench.suite.quality_tables import QualityTable
from energybench.suite.renamed_keys import RENAMED, KeyRenamer, with_old_keys
from energybench.suite.set_hints import of_one
from energybench.suite.suite_bounds import too_many_entries, too_much_work
from energybench.suite.suite_file import find_suite, read_tree
from energybench.suite.suite_references import reference_problems
from energybench.suite.table import Several, SuiteTable
from energybench.suite.tables import (
    AcceptTable,
    MeasureTable,
    MethodTable,
    RequireTable,
    SkipTable,
    TrialsTable,
    WorkloadTable,
)
from energybench.suite.toml_positions import Loc
from energybench.suite.variants import Variant, expand
from energybench.suite.workload_sweep import expand_workloads


class InvalidSuite(SuiteError):
    """Every mistake in a suite's file; `rest` is the suite without them, where something is left."""

    def __init__(self, problems: Iterable[Problem], rest: Suite | None = None) -> None:
        super().__init__(problems)
        self.rest = rest


def _kind(trained: str) -> Any:
    """A table that holds a command is another kind of table than one that names a model or a method."""

    def tag(value: Any) -> str:
        given = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        return f"Command{trained}" if "command" in given else trained

    return Discriminator(tag)


TaggedWorkload = Annotated[
    Annotated[WorkloadTable, Tag("WorkloadTable")] | Annotated[CommandWorkloadTable, Tag("CommandWorkloadTable")],
    _kind("WorkloadTable"),
]
TaggedMethod = Annotated[
    Annotated[MethodTable, Tag("MethodTable")] | Annotated[CommandMethodTable, Tag("CommandMethodTable")],
    _kind("MethodTable"),
]


def _whole(value: Any) -> Any:
    """1.0 and true are equal to 1, and are not the number of a schema."""
    if type(value) is not int:
        raise KeyedError("the schema is a whole number, written without a point", "", "schema = 1")
    return value


class Suite(SuiteTable):
    """A suite as it runs: `extends`, the quick overlay and `--set` applied, quantities in SI units."""

    schema_: Annotated[Literal[1], BeforeValidator(_whole)] = Field(
        alias="schema", description="of this file; there is one so far"
    )
    suite: str = Field(pattern=FOLDER_NAME, examples=["mine"], description="its name, and its folder's in reports/")
    about: str = Field(default="", description="one sentence, at the head of the report")
    trials: TrialsTable = Field(default_factory=TrialsTable)
    measure: MeasureTable = Field(default_factory=MeasureTable)
    accept: AcceptTable = Field(default_factory=AcceptTable)
    workloads: Several[TaggedWorkload] = Field(alias="workload", min_length=1)
    methods: Several[TaggedMethod] = Field(default=(), alias="method")
    skips: Several[SkipTable] = Field(default=(), alias="skip")
    requires: Several[RequireTable] = Field(default=(), alias="require")
    quick: dict[str, Any] = Field(default_factory=dict, exclude=True)
    on: OnTable | None = Field(default=None, exclude=True, description="no setting of a run, and in no digest")

    @model_validator(mode="after")
    def _commands_start_their_own_ranks(self) -> Suite:
        command = next((each for each in self.workloads if isinstance(each, CommandWorkloadTable)), None)
        if self.trials.devices > 1 and command is not None:
            message = f"it is for what energybench trains itself, and '{command.name}' is a command"
            hint = f"let the command start its ranks: torchrun --nproc_per_node={self.trials.devices} train.py; "
            raise KeyedError(message, "trials.devices", f"{hint}they are metered together")
        return self

    _path: Path = PrivateAttr(default=Path())
    _text: str = PrivateAttr(default="")
    _stamp: tuple[str, ...] = PrivateAttr(default=())
    _tree: Node = PrivateAttr(default=Node({}, ""))
    _written: Node = PrivateAttr(default=Node({}, ""))  # before --set and the overlay

    @property
    def path(self) -> Path:
        """The file, absolute."""
        return self._path

    @property
    def text(self) -> str:
        """The file as written."""
        return self._text

    @property
    def trains(self) -> bool:
        """Whether anything of it runs in energybench's own loop, and so needs torch."""
        return any(isinstance(workload, WorkloadTable) for workload in self.workloads)

    def quality_of(self, workload: WorkloadTable | CommandWorkloadTable) -> QualityTable:
        """What decides on a workload: its own [accept] quality, else the suite's."""
        return workload.accept.quality if workload.accept else self.accept.quality

    @property
    def stamp(self) -> list[str]:
        """What sets this run apart from the file: "quick", "--set ..."; on every page's title."""
        return list(self._stamp)

    def where(self, loc: Sequence[str | int]) -> str:
        """Where a key was written, or its nearest ancestor: "suites/cifar.toml:12:7", or "--set ...".

        Args:
            loc: Keys and indices from the root of the file, such as ("workload", 0, "train", "lr").
        """
        if len(loc) == 3 and loc[0] == "method":  # a swept parameter stands in `sweep`
            method = self._tree.find(loc[:2])
            if method.get(str(loc[2])) is None:
                return method.find(("sweep", loc[2])).place
        return self._tree.find(loc).place

    def of_one(self, problems: Iterable[Problem]) -> list[Problem]:
        """The same, where a --set without brackets is wrong for one entry with how to set another alone."""
        return of_one(problems, self._written)

    def places(self) -> list[tuple[Loc, str]]:
        """(loc, place) of every key, for who has the settings without the file; as `where` says it."""
        swept = [
            (("method", index, key), node.place)
            for index, method in enumerate(self._tree.items("method"))
            for key, node in method.find(("sweep",)).tables()
            if method.get(key) is None
        ]
        return [*self._tree.places(), *swept]

    def variants(self) -> list[Variant]:
        """Every method with every choice of its sweep; with `quick`, with the first."""
        return [self._with_claim(variant) for variant in expand(self._tree, quick="quick" in self._stamp)[0]]

    def _with_claim(self, variant: Variant) -> Variant:
        method = self.methods[int(variant.loc[1])]
        claim = method.claims.as_claim() if method.claims else None
        tuned = method.tuned.trials if method.tuned else None
        control = method.control if isinstance(method, MethodTable) else "none"  # a command's budget is not known
        return replace(variant, claim=claim, control=control, tuned=tuned)

    def pairs(self) -> list[tuple[WorkloadTable | CommandWorkloadTable, Variant, str | None]]:
        """(workload, variant, reason to skip it or None), workload by workload in the order of the file."""
        variants = self.variants()
        return [
            (workload, variant, self.skipped(workload, variant)) for workload in self.workloads for variant in variants
        ]

    def skipped(self, workload: WorkloadTable | CommandWorkloadTable, variant: Variant) -> str | None:
        """Why a method is not run on a workload; None where it is."""
        names = (workload.name, workload.plain_name)
        declared = next((skip.because for skip in self.skips if skip.fits(names, variant)), None)
        return declared or unlike(workload, variant)

    def digest_source(self) -> dict[str, Any]:
        """The resolved settings as JSON holds them, in SI units; a renamed key under its old name too."""
        return with_old_keys(self.model_dump(mode="json", by_alias=True))


def cell_name(workload: str, method: str) -> str:
    """Workload and method as one file name, joined by a dot; dots in the workload's own name are replaced, so that
    ("a.b", "c") and ("a", "b.c") differ."""
    return f"{slug(workload, dots=False)}.{slug(method)}"


def slug(text: str, dots: bool = True) -> str:
    """`text` for a file name: itself if it is made of [A-Za-z0-9._+=-], else that much and its hash.

    dots: whether a dot may stay as it is
    """
    safe = re.sub(r"[^A-Za-z0-9._+=-]+" if dots else r"[^A-Za-z0-9_+=-]+", "-", text)[:80].strip("-.")
    if safe and safe == text:
        return text
    return f"{safe}-{hashlib.blake2b(text.encode(errors='surrogatepass'), digest_size=4).hexdigest()}".lstrip("-")


def load(
    path_or_name: str | Path,
    *,
    quick: bool = False,
    overrides: Iterable[str] = (),
    search: Sequence[Path] | None = None,
) -> Suite:
    """Read and validate a suite.

    Args:
        path_or_name: A file, or the name of a suite in ./suites or among those shipped.
        quick: Merge the suite's own [quick] table over it.
        overrides: The texts after --set, such as "workload.train.epochs=2".
        search: Folders to look for a name in, instead of ./suites and those shipped.

    Raises:
        UsageError: E101, E102, the file cannot be found or read, or is not TOML.
        InvalidSuite: A SuiteError with every mistake in it, E201 to E207, each with its place.

    Warns:
        RenamedKeyWarning: For each key that is written under its old name.
    """
    path, overrides = find_suite(path_or_name, search), tuple(overrides)
    text, tree = read_tree(path)
    if too_many := too_many_entries(tree):
        raise InvalidSuite(too_many)
    renamer = KeyRenamer()
    tree = renamer.tree(tree)
    problems = quick_problems(tree)
    if quick and tree.get("quick") is None:
        hint = "add [quick] with workload.train = { epochs = 2 }, or run without --quick"
        problems.append(Problem("E203", "this suite has no [quick] overlay", tree.place, hint))
    tree, more, broken = extend(tree)
    problems += more

    def resolve(base: Node, *, quicken: bool) -> tuple[Node, Suite | None]:
        """--set merged over it, and its sweeps made workloads; what is wrong goes into `problems`."""
        for text in overrides:
            base, more = override(base, text, renamer)
            problems.extend(more)
        base, more = expand_workloads(base, quick=quicken)
        problems.extend(each for each in more if each not in problems)
        unfit_values = list(islice(unfit(base), MOST_PROBLEMS))
        problems.extend(unfit_values)
        suite = None
        try:
            suite = Suite.model_validate(base.plain())
        except ValidationError as error:
            reported = {problem.where for problem in unfit_values}
            invalid = islice(explain(error, Suite, base, broken), MOST_PROBLEMS)
            problems.extend(problem for problem in invalid if problem.where not in reported)
        return base, suite

    written = tree
    # Both, so that --quick never finds new mistakes.
    whole, quickened = resolve(tree, quicken=False), resolve(apply_quick(tree), quicken=True)
    tree, suite = quickened if quick else whole
    problems += [*renamer.problems, *reference_problems(tree, suite)]
    renamer.warn(stacklevel=2)
    if problems or suite is None:
        stamp = ["quick"] if quick else []
        rest = _salvage(tree)
        if rest is not None and suite is None:
            problems += too_much_work(rest[1], rest[0])
        problems = of_one(problems, written)
        if rest is None or any(problem.code == "E207" for problem in problems):  # it would be expanded to be checked
            raise InvalidSuite(in_order(problems))
        raise InvalidSuite(in_order(problems), _complete(*rest, written, path, text, stamp))
    stamp = [*(["quick"] if quick else []), *(f"--set {text}" for text in overrides)]
    return _complete(suite, tree, written, path, text, stamp)


def _complete(suite: Suite, tree: Node, written: Node, path: Path, text: str, stamp: list[str]) -> Suite:
    suite._path, suite._text, suite._stamp = path.absolute(), text, tuple(stamp)
    suite._tree, suite._written = tree, written
    return suite


def _salvage(tree: Node, tries: int = 12) -> tuple[Suite, Node] | None:
    """An invalid suite without the tables that are wrong, so that methods and models in the rest can be checked too;
    None where nothing is left."""
    for _ in range(tries):
        try:
            return Suite.model_validate(tree.plain()), tree
        except ValidationError as error:
            # One at a time from the end: taking one out moves what stands behind it.
            details = [d for d in error.errors(include_url=False) if d["type"] != "too_short" or not d["input"]]
            detail = details[-1]
            loc = untagged(detail["loc"])
            loc = loc[:-1] if detail["type"] == "missing" else loc
            if not loc or loc in (("workload",), ("method",)):
                return None
            tree = without(tree, loc)
    return None


def schema_json() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a suite's file, for editors. Keys that `extends` can give are optional."""
    schema = copy.deepcopy(Suite.model_json_schema())
    tables = schema["$defs"]
    for name in ("TaskTable", "ModelTable", "DataTable", "TrainTable"):
        tables[name].pop("required", None)
    task = tables["WorkloadTable"]["properties"]["task"]
    task["anyOf"] = task.pop("oneOf")
    tables["WorkloadTable"]["required"] = ["name"]
    for path, new in RENAMED.items():
        properties = tables[model_name(Suite, path[:-1])]["properties"]
        properties[path[-1]] = {**properties[new], "deprecated": True, "description": f"the old name of {new}"}
    overlay = {key: schema["properties"][key] for key in OVERLAID if key != "workload"}
    tables["CommandWorkloadTable"]["required"] = ["name"]
    command_keys = tables["CommandWorkloadTable"]["properties"]
    command_keys["quality"] = {"anyOf": [{"const": "none"}, command_keys["quality"]]}
    for key in ("workload", "method"):  # a table that has `command` is of the other kind, and only one of them fits
        items = schema["properties"][key]["items"]
        items["anyOf"] = items.pop("oneOf")
    keys_of_both = {**command_keys, **tables["WorkloadTable"]["properties"]}
    overlaid_keys = {key: keys_of_both[key] for key in WORKLOAD_OVERLAID}
    overlay["workload"] = {"type": "object", "properties": overlaid_keys, "additionalProperties": False}
    schema["properties"]["quick"] = {
        "type": "object",
        "properties": overlay,
        "additionalProperties": False,
        "description": "merged over the suite by --quick",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
