"""Who may import whom: the rooms and their order, held by reading every import statement, deferred ones too."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

import energybench
from energybench.moved import HOMES, NEW_NAMES, MovedFinder, install
from energybench.train.plugins import GROUPS

ROOT = Path(__file__).parents[1]
PACKAGE, METHODS = ROOT / "energybench", ROOT / "methods"

# The rooms from the ground up: each imports only those before it. A module beside the rooms stands for itself.
FLOORS = (
    *("common", "errors", "stats", "meter", "process", "flops", "suite", "records", "train", "trees", "workloads"),
    *(
        "papers",
        "windows",
        "verdict",
        "algorithms",
        "trial",
        "callbacks",
        "report",
        "runner",
        "gate",
        "cluster",
        "pytest_energy",
    ),
    *("results", "moved", "__init__", "pytest_plugin", "overhead", "cli", "__main__"),
)
# What may import torch when it is itself imported, and what in these rooms may not; everything else works, and starts,
# without.
TORCH = (
    *("algorithms/*", "workloads/*", "workloads/*/*", "cli/preload", "common/torchvision_shim", "trees"),
    *(f"flops/{name}" for name in ("balance", "count", "counter", "formulas", "free_operators", "ledger", "moves")),
    *(f"flops/{name}" for name in ("operators", "outside_dispatch", "sparse_products", "values")),
    *(f"flops/{name}" for name in ("attention_kernels", "checkpoints", "recurrent")),
    *(f"papers/{name}" for name in ("calflops", "counting_rules", "published_tables", "shape_trace")),
    *(f"papers/{name}" for name in ("gradsamp_tables", "meta_models", "neq_tables", "ssprop_tables")),
    *("runner/planner", "runner/plan_controls", "runner/plan_refusals", "runner/plan_threads", "runner/tracing"),
    *(f"train/{name}" for name in ("data", "evaluation", "fingerprint", "graph_hooks", "images", "recipe", "results")),
    *(f"train/{name}" for name in ("learning_parameters", "loss_scaling", "parameter_groups")),
    *("train/part_optimizers", "runner/plan_machine", "runner/plan_precision"),
    *("train/run", "train/trees", "trial/budget", "trial/control_run", "train/geometry", "train/part_streams"),
    *(
        "train/pass_keys",
        "train/first_steps",
        "train/traced_task",
        "train/ranks",
        "train/rank_run",
        "runner/plan_devices",
    ),
    *("trial/on_ranks", "trial/rank_follower", "trial/rank_processes"),
    *(f"trial/{name}" for name in ("build", "calibrate", "count_cell", "counting_layer", "phase_profile")),
    *(f"trial/{name}" for name in ("counting_run", "estimate", "failure", "integrity", "judge")),
    *("trial/trial", "trial/warmup", "trial/pause", "trial/rehearsal"),
)
NO_TORCH = (
    "algorithms",
    "algorithms/epoch_counter",
    "algorithms/gradsamp_bound",
    "algorithms/passes_taken",
    "workloads",
    "workloads/description",
    "workloads/catalogue",
    "workloads/domain_sets",
    "workloads/names",
    "workloads/stand_in",
    "workloads/tasks",
    "workloads/text_sets",
    "workloads/metrics",
    "workloads/metrics/signals",
    "workloads/metrics/text",
)
HEAVY = frozenset({"torch", "torchvision", "fvcore"})
SLOW_TO_IMPORT = frozenset(
    {"codecarbon", "pynvml", "mlxtend", "sklearn", "matplotlib", "jinja2", "markupsafe", "pandas"}
    | {"transformers", "lightning", "keras"}
    | {"tokenizers", "diffusers", "segmentation_models_pytorch", "torchmetrics", "faster_coco_eval", "timm", "datasets"}
)
MOST_AT_THE_ROOT, MOST_FLOORS = 14, 11


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def files() -> dict[str, Path]:
    return {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def named(patterns: Iterable[str]) -> list[str]:
    """ "report/*" → every module of that room."""
    found = {
        pattern: [m for m in files() if Path(*m.split(".")).match(f"energybench/{pattern}")] for pattern in patterns
    }
    missing = [pattern for pattern, modules in found.items() if not modules]
    assert not missing, f"no such module: {missing}"
    return [module for modules in found.values() for module in modules]


def light() -> list[str]:
    heavy = set(named(TORCH)) - set(named(NO_TORCH))
    return [module for module in files() if module not in heavy]


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _names(node: ast.AST, file: Path) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{file}:{node.lineno}: relative import"
        return {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


@cache
def imports(file: Path) -> frozenset[str]:
    """Absolute names of whatever a file imports, at any time and for type checkers too."""
    return frozenset(name for node in ast.walk(tree(file)) for name in _names(node, file))


@cache
def at_import(file: Path) -> frozenset[str]:
    """Absolute names of what a file imports when it is itself imported."""
    found: set[str] = set()

    def walk(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            found.update(_names(node, file))
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                walk(node.orelse)
            elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for inside in ("body", "orelse", "finalbody"):
                    walk([n for n in getattr(node, inside, []) if isinstance(n, ast.stmt)])
                for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                    walk(handler.body)

    walk(tree(file).body)
    return frozenset(found)


def inside(name: str) -> str | None:
    """The module of ours that an imported name belongs to."""
    while name and name not in files():
        name = name.rpartition(".")[0]
    return name or None


def ours(file: Path) -> set[str]:
    """The modules of ours that a file imports, at any time."""
    return {module for name in imports(file) if (module := inside(name))} - {module_name(file)}


def reached(module: str) -> set[str]:
    """Everything that importing `module` imports, ours and others' top-level packages."""
    seen: set[str] = set()
    frontier = {module}
    while frontier:
        current = frontier.pop()
        seen.add(current)
        if current in files():
            packages = {current.rpartition(".")[0]} - {""}  # importing a.b runs a first
            names = at_import(files()[current])
            frontier |= ({inside(name) or name.partition(".")[0] for name in names} | packages) - seen
    return seen


def room(module: str) -> str:
    """The room of a module; one beside the rooms is its own."""
    return module.split(".")[1] if "." in module else "__init__"


# ── the floors ────────────────────────────────────────────────────────────────────────────────────────────


def test_every_module_is_in_a_room_of_the_list_and_every_room_says_what_it_is():
    assert {room(module) for module in files()} == set(FLOORS)
    for name in FLOORS:
        if (PACKAGE / name).is_dir():
            text = ast.get_docstring(tree(PACKAGE / name / "__init__.py")) or ""
            assert text.count(".") >= 3, f"{name}: what lives here, what it may import, where to start reading"
            assert "import" in text, f"{name} says what it may import"
            assert "Start with" in text, f"{name} says where to start reading"
            starts = re.findall(r"`(\w+(?:/\w+)*\.py)`", text[text.index("Start with") :])
            assert starts or name == "meter", name
            assert not [file for file in starts if not (PACKAGE / name / file).is_file()], (name, starts)


@pytest.mark.parametrize("module", files())
def test_a_room_imports_only_rooms_below_it(module):
    here = FLOORS.index(room(module))
    above = {other for other in ours(files()[module]) if FLOORS.index(room(other)) > here}
    assert not above, f"energybench/{room(module)} lies below"


def test_no_import_goes_round_in_circles_not_even_a_deferred_one():
    graph = {module: ours(file) for module, file in files().items()}

    def circle(module: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if module in path:
            return (*path[path.index(module) :], module)
        if module in done:
            return None
        for other in sorted(graph[module]):
            if found := circle(other, (*path, module)):
                return found
        done.add(module)
        return None

    done: set[str] = set()
    for module in graph:
        assert circle(module, ()) is None


def test_the_house_has_at_most_eleven_floors_and_fourteen_files_at_its_root():
    above: dict[str, set[str]] = {name: set() for name in FLOORS}
    for module, file in files().items():
        above[room(module)] |= {room(other) for other in ours(file)} - {room(module)}
    floor: dict[str, int] = {}
    for name in FLOORS:  # in their order, so that what a room imports is known before it
        floor[name] = 1 + max((floor[other] for other in above[name]), default=0)
    assert max(floor.values()) <= MOST_FLOORS, floor
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_ROOT


def test_no_room_hides_a_public_name():
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    assert not rooms & (set(energybench.__all__) | set(dir(energybench)) - set(FLOORS))


def test_no_name_that_a_room_hands_on_hides_one_of_its_files():
    """`from energybench.room import name` must not give a function here and a module there."""
    for name in FLOORS:
        if (PACKAGE / name).is_dir():
            handed_on = getattr(importlib.import_module(f"energybench.{name}"), "__all__", ())
            inside_it = {path.stem for path in (PACKAGE / name).glob("*.py")}
            assert not set(handed_on) & inside_it, name


def test_a_module_that_is_named_in_a_text_exists():
    """Children are told what to run as "energybench.room.module:function", which no import shows."""
    told = re.compile(r"energybench(?:\.[a-z_]+)+(?::\w+)?")
    named_in_texts = {
        node.value
        for file in files().values()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and told.fullmatch(node.value)
    } - {*GROUPS.values(), "energybench.meters"}  # groups of entry points
    assert {text.partition(":")[0] for text in named_in_texts} <= set(files())
    for text in sorted(named_in_texts):
        module, _, function = text.partition(":")
        defined = {
            node.name for node in tree(files()[module]).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        assert not function or function in defined, text
    assert len(named_in_texts) > 5


# ── without torch ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("module", light())
def test_what_must_start_without_torch_never_reaches_it(module):
    assert not reached(module) & HEAVY


def test_what_is_said_to_need_torch_does():
    assert not [module for module in set(files()) - set(light()) if not reached(module) & HEAVY]


@pytest.mark.parametrize("module", files())
def test_heavy_libraries_are_imported_when_they_are_used(module):
    assert not reached(module) & SLOW_TO_IMPORT


def test_and_none_of_them_has_torch_in_its_process():
    modules = [module for module in light() if module != "energybench.__main__"]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"loaded = {sorted(HEAVY | SLOW_TO_IMPORT)!r}\n"
        "assert not [n for n in loaded if n in sys.modules], [n for n in loaded if n in sys.modules]"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_record_is_summarised_and_help_is_given_where_torch_cannot_be_imported():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision', 'fvcore'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import energybench, energybench.verdict.summary, energybench.report.terminal, energybench.report.markdown\n"
        "from energybench.cli import main\n"
        "for arguments in (['--help'], ['run', '--help'], ['list']):\n"
        "    sys.argv = ['energybench', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, (arguments, end.code)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


# ── what a room may not even be told ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", sorted(METHODS.glob("*.py")), ids=lambda file: file.stem)
def test_a_method_imports_energybench_torch_scipy_and_pydantic_never_a_meter_or_another_method(file):
    """pydantic: the bounds of its parameters."""
    siblings = {other.stem for other in METHODS.glob("*.py")}
    names = imports(file)
    tops = {name.partition(".")[0] for name in names}
    assert tops <= {"energybench", "torch", "scipy", "pydantic"} | sys.stdlib_module_names
    assert not tops & siblings - sys.stdlib_module_names
    assert not [name for name in names if name.startswith("methods")]
    rooms = {room(module) for name in names if (module := inside(name))}
    assert rooms <= {"__init__", "algorithms", "common", "flops", "train"}


@pytest.mark.parametrize("module", named(["meter/*"]))
def test_a_sensor_cannot_know_what_it_measures(module):
    assert {room(other) for other in ours(files()[module])} <= {"meter", "common"}
    assert not {name.partition(".")[0] for name in imports(files()[module])} & HEAVY
    assert not reached(module) & HEAVY


@pytest.mark.parametrize("module", named(["flops/*", "workloads/*", "workloads/*/*", "train/*", "algorithms/*"]))
def test_training_knows_no_meter_and_no_record(module):
    allowed = {"common", "flops", "train", "workloads", "papers", "algorithms"}
    suite = {"suite"} if room(module) == "workloads" else set()  # a data set is prepared from a suite's table
    assert {room(other) for other in ours(files()[module])} <= allowed | suite


def test_training_meets_metering_in_one_room():
    both = {
        room(module)
        for module, file in files().items()
        if "energybench.train.run" in ours(file) and "meter" in {room(other) for other in ours(file)}
    }
    assert both <= {"trial", "runner"}  # a plan asks for sensors, it reads none
    assert {module for module in named(["runner/*"]) if "energybench.train.run" in ours(files()[module])} <= {
        "energybench.runner.planner",
        "energybench.runner.tracing",
    }


def test_the_parent_that_waits_imports_no_training_anywhere():
    for module in named(["process/*", "runner/runner", "runner/trials", "runner/schedule"]):
        names = imports(files()[module])
        assert not {name.partition(".")[0] for name in names} & HEAVY
        children = {
            "energybench.trial.trial",
            "energybench.trial.counting_run",
            "energybench.runner.planner",
            "energybench.train.run",
        }
        assert not ours(files()[module]) & children


def test_a_trial_knows_neither_the_command_line_nor_the_reports_nor_who_started_it():
    for module in named(["trial/*"]):
        assert not {room(other) for other in ours(files()[module])} & {"cli", "report", "verdict", "runner", "gate"}


def test_counter_and_ledger_share_no_code():
    counter, ledger = files()["energybench.flops.counter"], files()["energybench.flops.ledger"]
    assert not ours(counter) & ours(ledger) - {"energybench"}
    assert "energybench.flops.ledger" not in reached("energybench.flops.counter")


# ── what was typed yesterday ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("energybench.trees", "join split take to"),
        ("energybench.windows", "read_windows training"),
        ("energybench.flops.count", "Counter"),
        ("energybench.flops.ledger", "ledger"),
        ("energybench.meter", "Meter"),
        ("energybench.meter.unavailable", "Unavailable"),
        ("energybench.suite", "Suite SuiteError load"),
        ("energybench.gate", "Finding"),
        ("energybench.overhead", "compare_overhead print_overhead trees"),
        ("energybench.cli", "app main"),
        ("energybench.callbacks", "huggingface keras lightning"),
        ("energybench.results", "Results load run"),
        ("energybench.workloads.models", "build call mlp cnn vit_tiny mixer"),
        ("energybench.workloads.datasets", "prepare open_data digits mnist5k"),
        ("energybench.errors", "EnergybenchError UsageError CannotMeasure CannotWrite Problem SuiteError"),
    ],
)
def test_documented_names_are_where_they_were(module, names):
    for name in names.split():
        assert getattr(importlib.import_module(module), name), f"{module}.{name}"


# What the shipped methods, from which people copy theirs, imported before the rooms.
BEFORE_THE_ROOMS = {
    "drop_in": "swap swap_back",
    "freezing": "Freezing",
    "ggd": "GGD LOCATIONS fit goodness",
    "hypergradient": "HyperSGD check_rates refusal",
    "method": "Batch Forward Method Task check_stack",
    "sampling": "Sampler average_repeats unbiased",
    "scores": "FORMS SCORES Scorer with_reference",
    "sparse": "SPARSE SparseLayer",
    "sparse_backward": "LANES Choice memory_format",
    "theorem": "bounds Convexity",
    "units": "Period Quantity",
    "work": "BACKWARD FORWARD",
    "loop": "Run Diverged",
    "record": "Trial Energy Reading read read_folder write_json",
    "discovery": "load find shipped",
    "report.evidence": "pairs metered",
    "workloads.data": "Data Resident",
    "workloads.classification": "Classification heads",
    "workloads.ridge": "Ridge RIDGE",
    "workloads.paper_models": "mixer SmallResNet",
    "workloads.image_folders": "read_parts ImageParts",
}


@pytest.mark.parametrize(("old", "names"), BEFORE_THE_ROOMS.items())
def test_a_module_is_found_where_it_was_before_the_rooms_with_a_warning_that_names_its_place(old, names):
    name = f"energybench.{old}"
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{name} has moved: import energybench"):
        module = importlib.import_module(name)
    for each in names.split():
        (home,) = [h for h in HOMES[name] if hasattr(importlib.import_module(h), each)][:1]
        assert getattr(module, each) is getattr(importlib.import_module(home), each)
    with pytest.raises(AttributeError, match="there is no 'nothing_of_the_kind'"):
        _ = module.nothing_of_the_kind
    sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore:energybench.* has moved:DeprecationWarning")
@pytest.mark.parametrize(("module", "old"), NEW_NAMES)
def test_a_name_that_changed_since_is_found_under_its_old_one(module, old):
    found = getattr(importlib.import_module(module), old)
    assert found in [vars(importlib.import_module(home)).get(NEW_NAMES[module, old]) for home in HOMES[module]]
    assert not any(hasattr(importlib.import_module(home), old) for home in HOMES[module])


def test_every_old_name_leads_to_modules_that_exist_and_hides_none():
    assert {home for homes in HOMES.values() for home in homes} <= set(files())
    assert not set(HOMES) & set(files())
    assert not [name for name in HOMES for module in files() if module.startswith(f"{name}.")]


def test_a_name_that_never_was_is_still_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"energybench\.never_was"):
        importlib.import_module("energybench.never_was")
    install()
    assert sum(isinstance(finder, MovedFinder) for finder in sys.meta_path) == 1


NAMES = sorted(file.stem for file in METHODS.glob("*.py"))
# Of a sample; an interval; a model of its own; a pattern; torch's name of an order in memory.
ENGLISH = {"importance", "low", "dropout", "compile", "channels_last"}


@pytest.mark.parametrize("module", files())
def test_no_file_of_energybench_names_a_method(module):
    """As a string of its own or quoted inside a text; as an identifier unless any formula may need the word."""
    text = files()[module].read_text(encoding="utf-8")
    words = set(re.findall(r"[\"'`](\w+)[\"'`\[]", text))
    for node in ast.walk(tree(files()[module])):
        called = {getattr(node, key, None) for key in ("id", "attr", "arg", "name", "asname", "module")}
        said = {node.value} if isinstance(node, ast.Constant) else set()
        words |= {word for word in called - ENGLISH | said if isinstance(word, str)}
    assert not words & set(NAMES)
