"""Who may import whom: a table, held by reading every import statement."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, METHODS = ROOT / "energybench", ROOT / "methods"

# Everything that must work, and start, without torch.
LIGHT = [
    *("units", "where", "record", "stats", "flags", "schedule", "suite", "method", "errors", "work", "seeds"),
    *(
        "tables",
        "resolve",
        "variants",
        "explain",
        "folder",
        "progress",
        "show",
        "listing",
        "doctor",
        "cli",
        "commands/*",
    ),
    *("looks", "export", "claims_page", "cost_page", "flops/intensity", "workloads/stand_in"),
    *("windows", "measuring", "kit", "used", "results", "callbacks"),
    *("supervise", "captured", "command_tables", "command_pairs", "command_plan", "command_cell", "command_quality"),
    *("light", "fingerprint", "planned_energy", "versus", "versus_page"),
    *("gate", "golden", "alike", "two_runs", "history", "ci_formats"),
    *("pytest_plugin", "benchmark", "billing", "budget", "energy_table", "overhead"),
    *(
        "runner",
        "planned",
        "machine",
        "launch",
        "guard",
        "processes",
        "kept",
        "strangers",
        "changed",
        "discovery",
        "report/*",
    ),
    *("bounds", "measurable", "known", "files", "inert", "printable", "user_code"),
]
HEAVY = frozenset({"torch", "torchvision", "fvcore"})
SLOW_TO_IMPORT = frozenset(
    {"codecarbon", "pynvml", "mlxtend", "sklearn", "matplotlib", "jinja2", "markupsafe", "pandas"}
    | {"transformers", "lightning", "keras"}
)


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def files() -> dict[str, Path]:
    return {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def named(patterns: list[str]) -> list[str]:
    """ "report/*" → every module of that room."""
    found = {
        pattern: [m for m in files() if Path(*m.split(".")).match(f"energybench/{pattern}")] for pattern in patterns
    }
    missing = [pattern for pattern, modules in found.items() if not modules]
    assert not missing, f"no such module: {missing}"
    return [module for modules in found.values() for module in modules]


@cache
def imports(file: Path, *, at_import: bool) -> set[str]:
    """Absolute names of what a file imports: only when it is itself imported, or anywhere in it."""
    found: set[str] = set()

    def walk(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno}: relative import"
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                walk(node.orelse)
            elif not (at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
                for inside in ("body", "orelse", "finalbody"):
                    walk([n for n in getattr(node, inside, []) if isinstance(n, ast.stmt)])
                for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                    walk(handler.body)

    walk(ast.parse(file.read_text(encoding="utf-8")).body)
    return found


def inside(name: str) -> str | None:
    """The module of ours that an imported name belongs to."""
    while name and name not in files():
        name = name.rpartition(".")[0]
    return name or None


def reached(module: str) -> set[str]:
    """Everything that importing `module` imports, ours and others' top-level packages."""
    seen: set[str] = set()
    frontier = {module}
    while frontier:
        current = frontier.pop()
        seen.add(current)
        if current in files():
            packages = {current.rpartition(".")[0]} - {""}  # importing a.b runs a first
            names = imports(files()[current], at_import=True)
            frontier |= ({inside(name) or name.partition(".")[0] for name in names} | packages) - seen
    return seen


def ours(file: Path, *, at_import: bool = False) -> set[str]:
    return {module for name in imports(file, at_import=at_import) if (module := inside(name))}


@pytest.mark.parametrize("module", named(LIGHT))
def test_what_must_start_without_torch_never_reaches_it(module):
    assert not reached(module) & HEAVY


@pytest.mark.parametrize("module", files())
def test_heavy_libraries_are_imported_when_they_are_used(module):
    assert not reached(module) & SLOW_TO_IMPORT


def test_and_none_of_them_has_torch_in_its_process():
    modules = named(LIGHT)
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
        "from energybench import cli\n"
        "for arguments in (['--help'], ['run', '--help'], ['list']):\n"
        "    sys.argv = ['energybench', *arguments]\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert not end.code, (arguments, end.code)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("file", sorted(METHODS.glob("*.py")), ids=lambda file: file.stem)
def test_a_method_imports_energybench_torch_and_scipy_never_a_meter_or_another_method(file):
    siblings = {other.stem for other in METHODS.glob("*.py")}
    names = imports(file, at_import=False)
    tops = {name.partition(".")[0] for name in names}
    assert tops <= {"energybench", "torch", "scipy"} | sys.stdlib_module_names
    assert not tops & siblings - sys.stdlib_module_names
    assert not [
        n
        for n in names
        if n.startswith(("methods", "energybench.meter", "energybench.trial.trial", "energybench.process.forkserver"))
    ]


@pytest.mark.parametrize("module", named(["meter/*"]))
def test_a_sensor_cannot_know_what_it_measures(module):
    knows = ours(files()[module])
    allowed = {f"energybench{room}" for room in ("", ".errors", ".record", ".units", ".bounds", ".files", ".processes")}
    assert {name for name in knows if not name.startswith("energybench.meter")} <= allowed
    assert not imports(files()[module], at_import=False) & HEAVY
    assert not reached(module) & HEAVY


@pytest.mark.parametrize("module", [m for m in files() if "flops" in m or "workloads" in m or m.endswith(".loop")])
def test_training_knows_no_meter_no_report_and_no_schedule(module):
    rooms = ("meter", "report", "cell", "launch", "runner", "schedule", "cli", "folder", "stats")
    assert not [name for name in ours(files()[module]) if name.startswith(tuple(f"energybench.{r}" for r in rooms))]


def test_training_meets_metering_in_one_place():
    both = [
        module
        for module, file in files().items()
        if "energybench.train.run" in ours(file) and any(n.startswith("energybench.meter") for n in ours(file))
    ]
    assert set(both) <= {
        "energybench.trial.trial",
        "energybench.runner.planner",
    }  # plan asks for sensors, it reads none


def test_the_parent_that_waits_imports_no_training_anywhere():
    for module in named(["launch", "runner", "schedule"]):
        names = imports(files()[module], at_import=False)
        assert not {name.partition(".")[0] for name in names} & HEAVY
        assert not ours(files()[module]) & {
            "energybench.trial.trial",
            "energybench.runner.planner",
            "energybench.train.run",
        }


def test_a_cell_knows_neither_the_command_line_nor_the_reports():
    knows = ours(files()["energybench.trial.trial"])
    assert not [
        name
        for name in knows
        if name.startswith(("energybench.cli.command_line", "energybench.process.forkserver", "energybench.report"))
    ]


def test_witness_and_ledger_share_no_code():
    count, ledger = files()["energybench.flops.counter"], files()["energybench.flops.ledger"]
    assert not {name for name in ours(count) if name != "energybench"} & {n for n in ours(ledger) if n != "energybench"}
    assert "energybench.flops.ledger" not in reached("energybench.flops.counter")


def test_the_public_namespace_needs_no_torch_and_no_import_goes_round_in_circles():
    assert not reached("energybench") & HEAVY
    graph = {module: ours(file, at_import=True) - {"energybench", module} for module, file in files().items()}

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


NAMES = sorted(file.stem for file in METHODS.glob("*.py"))
ENGLISH = {"importance", "low"}  # of a sample; of an interval


@pytest.mark.parametrize("module", files())
def test_no_file_of_energybench_names_a_method(module):
    """As a string of its own or quoted inside a text; as an identifier unless any formula may need the word."""
    text = files()[module].read_text(encoding="utf-8")
    words = set(re.findall(r"[\"'`](\w+)[\"'`\[]", text))
    for node in ast.walk(ast.parse(text)):
        called = {getattr(node, key, None) for key in ("id", "attr", "arg", "name", "asname", "module")}
        said = {node.value} if isinstance(node, ast.Constant) else set()
        words |= {word for word in called - ENGLISH | said if isinstance(word, str)}
    assert not words & set(NAMES)
