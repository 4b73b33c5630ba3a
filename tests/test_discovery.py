"""Finding methods by name, reading their cards as text, loading them, and building them from a suite's values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from energybench.common.errors import UsageError
from energybench.common.units import Quantity
from energybench.train import discovery
from energybench.train.method import Method, Task, parameters
from energybench.workloads import tasks

FILE = '''"""{name}: does something
in two lines.

More of it.
"""
from __future__ import annotations
from dataclasses import dataclass, field
from typing import ClassVar, Literal
from energybench import Method
from energybench.units import Period, Quantity

@dataclass
class {class_name}(Method):
    replaces: ClassVar[frozenset[str]] = frozenset()
    rate: float
    every: int = 3
    kind: Literal["soft", "hard"] = "soft"
    layers: tuple[int, ...] = (1, 2)
    names: list[str] = field(default_factory=list)
    period: Period = Quantity(2, "epochs")
    limit: float | None = None
    hidden: int = field(default=7, init=False)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError("every is at least 1")
'''


def write(folder: Path, name: str, text: str | None = None, class_name: str = "Mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text if text is not None else FILE.format(name=name, class_name=class_name), encoding="utf-8")
    return path


def problems(call, *arguments: Any) -> list[Any]:
    with pytest.raises(UsageError) as refused:
        call(*arguments)
    return refused.value.problems


# ── finding ───────────────────────────────────────────────────────────────────────────────────────────────────────


def offer(folder: Path, **points: str) -> None:
    """A package installed there that offers methods: its metadata, as pip writes it."""
    metadata = folder / "far_methods-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: far-methods\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (metadata / "entry_points.txt").write_text(f"[energybench.methods]\n{lines}")


def test_the_methods_folder_here_comes_before_entry_points_and_those_before_shipped_ones(tmp_path, monkeypatch):
    module = write(tmp_path / "installed", "far", class_name="Special")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    shipped = sorted(discovery.sources(tmp_path))
    offer(tmp_path / "installed", **{shipped[0]: "far:Special", "far-away": "far:Special"})
    here = write(tmp_path / "methods", shipped[0])
    write(tmp_path / "methods", "_private")
    found = discovery.sources(tmp_path)
    assert (found[shipped[0]].path, found[shipped[0]].origin) == (here, "./methods")
    assert (found["far-away"].path, found["far-away"].origin) == (module, "entry point")
    assert found[shipped[1]].origin == "shipped"
    assert "_private" not in found
    here.unlink()
    assert discovery.sources(tmp_path)[shipped[0]].origin == "entry point"


def test_an_entry_point_says_which_class_it_means(tmp_path, monkeypatch):
    write(tmp_path / "installed", "remote", class_name="Special")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    offer(tmp_path / "installed", broken="no_such_package.inside:Class", short="remote:Special")
    found = discovery.sources(tmp_path)
    assert discovery.load(found["short"]).__name__ == "Special"
    assert "broken" not in found  # a package that is gone must not stop everybody else


def test_a_path_is_found_relative_to_its_suite(tmp_path):
    path = write(tmp_path / "mine", "my_way", class_name="MyWay")
    source = discovery.find("mine/my_way.py", tmp_path)
    assert (source.name, source.path, source.origin, source.class_name) == ("my_way", path, "given", None)
    assert discovery.load(source).__name__ == "MyWay"
    assert discovery.find("mine/my_way.py:Other", tmp_path).class_name == "Other"
    assert len(source.sha256) == 64


def test_what_is_not_there_is_refused_with_the_nearest_name():
    known = sorted(discovery.sources())[0]
    (problem,) = problems(discovery.find, known + "x", None, "suite.toml:4")
    assert (problem.code, problem.where) == ("E301", "suite.toml:4")
    assert f"did you mean '{known}'?" in problem.hint
    assert "energybench new method" in problem.hint
    (problem,) = problems(discovery.find, "nowhere.py", Path("/tmp"))
    assert problem.code == "E301"
    assert "/tmp/nowhere.py" in problem.hint


# ── cards ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_card_is_read_as_text_and_runs_nothing(tmp_path):
    path = write(tmp_path, "mine", FILE.format(name="mine", class_name="Mine") + "\nraise RuntimeError('was run')\n")
    card = discovery.card(discovery.Source("mine", path, "given"))
    assert card.summary == "mine: does something in two lines."
    assert "More of it." in card.text
    assert card.parameters == (
        ("rate", "float", "required"),
        ("every", "int", "3"),
        ("kind", "Literal['soft', 'hard']", "'soft'"),
        ("layers", "tuple[int, ...]", "(1, 2)"),
        ("names", "list[str]", "field(default_factory=list)"),
        ("period", "Period", "'2 epochs'"),
        ("limit", "float | None", "None"),
    )


def test_a_helper_class_before_the_method_does_not_stand_on_its_card(tmp_path):
    helper = "\n@dataclass\nclass Helper:\n    inside: int = 0\n"
    text = FILE.format(name="mine", class_name="Mine").replace(
        "\n@dataclass\nclass Mine", helper + "\n@dataclass\nclass Mine"
    )
    card = discovery.card(discovery.Source("mine", write(tmp_path, "mine", text), "given"))
    assert card.parameters[0][0] == "rate"


def test_a_file_without_docstring_or_fields_has_an_empty_card(tmp_path):
    card = discovery.card(discovery.Source("bare", write(tmp_path, "bare", "x = 1\n"), "given"))
    assert (card.summary, card.parameters) == ("", ())


def test_listing_needs_no_torch():
    code = (
        "import sys; from energybench.train import discovery; print(len(discovery.cards()))\n"
        "assert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 0


# ── loading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def load(path: Path, class_name: str | None = None, kind: type = Method) -> type:
    return discovery.load(discovery.Source(path.stem, path, "given", class_name), kind)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("x = 1\ny = 1 / 0\n", 2, "ZeroDivisionError"),
        ("import energybench\nimport no_such_package\n", 2, "no_such_package"),
        ("def f(:\n    pass\n", 1, "SyntaxError"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(text, line, why, tmp_path):
    path = write(tmp_path, "broken", text)
    (problem,) = problems(load, path)
    assert problem.code == "E302"
    assert why in problem.message
    assert problem.where == f"{path}:{line}"
    (again,) = problems(load, path)  # and failing leaves nothing half loaded behind
    assert again == problem


def test_the_class_is_the_one_named_after_the_file_or_the_only_one(tmp_path):
    two = "from energybench import Method\nclass A(Method): pass\nclass TwoWays(Method): pass\n"
    assert load(write(tmp_path, "two_ways", two)).__name__ == "TwoWays"
    assert load(write(tmp_path, "other", two), "A").__name__ == "A"
    assert load(write(tmp_path, "single", "from energybench import Method\nclass X(Method): pass\n")).__name__ == "X"
    (problem,) = problems(load, write(tmp_path, "neither", two))
    assert problem.code == "E302"
    assert "A, TwoWays" in problem.message
    assert "neither.py:ClassName" in problem.hint
    (problem,) = problems(load, write(tmp_path, "empty", "x = 1\n"))
    assert "found: none" in problem.message
    (problem,) = problems(load, tmp_path / "other.py", "B")
    assert "'B'" in problem.message


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path):
    one = load(write(tmp_path / "a", "mine", "from energybench import Method\nclass Mine(Method): where = 'a'\n"))
    other = load(write(tmp_path / "b", "mine", "from energybench import Method\nclass Mine(Method): where = 'b'\n"))
    assert (one.where, other.where) == ("a", "b")


def test_a_users_function_is_found_by_its_name_or_its_files(tmp_path):
    write(tmp_path, "models", "def models(): return 1\ndef other(): return 2\nvalue = 3\n")
    assert discovery.load_function("models.py", tmp_path)() == 1
    assert discovery.load_function("models.py:other", tmp_path)() == 2
    for use in ("models.py:value", "models.py:missing", "absent.py:f"):
        (problem,) = problems(discovery.load_function, use, tmp_path, "suite.toml:9")
        assert (problem.code, problem.where) == ("E401", "suite.toml:9")
    write(tmp_path, "fails", "\nraise OSError('gone')\n")
    (problem,) = problems(discovery.load_function, "fails.py", tmp_path)
    assert problem.where.endswith("fails.py:2")


# ── building ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def kind(tmp_path) -> type:
    return load(write(tmp_path, "mine"))


def test_values_as_toml_gives_them_become_fields(kind):
    values = {"rate": 1, "kind": "hard", "layers": [3, 4], "names": ["a"], "period": "30 steps", "limit": 0.5}
    built = discovery.build(kind, "mine", values)
    assert (built.rate, built.every, built.kind, built.names, built.limit) == (1.0, 3, "hard", ["a"], 0.5)
    assert tuple(built.layers) == (3, 4)
    assert built.period == Quantity(30, "steps")
    assert built.name == "mine"
    again = discovery.build(kind, "mine", parameters(built))
    assert again == built
    assert parameters(again) == parameters(built)


def test_defaults_are_fresh_for_each_instance(kind):
    one, other = (discovery.build(kind, "mine", {"rate": 1.0}) for _ in range(2))
    one.names.append("x")
    assert other.names == []


def test_every_mistake_is_collected_with_its_place_and_the_nearest_parameter(kind):
    wrong = {"rte": 1.0, "every": "3", "kind": "medium", "period": 2}
    found = problems(discovery.build, kind, "mine", wrong, lambda key: f"suite.toml:{key}")
    assert {(p.code, p.where.split(":")[1]) for p in found} == {
        ("E303", "rte"),
        ("E304", "rate"),
        ("E304", "every"),
        ("E304", "kind"),
        ("E304", "period"),
    }
    by_place = {p.where.split(":")[1]: p for p in found}
    assert by_place["rte"].hint == "did you mean 'rate'?"
    assert "'3'" in by_place["every"].message
    assert "epochs or steps" in by_place["period"].message


@pytest.mark.parametrize(
    "values", [{"rate": 1.0, "every": True}, {"rate": 1.0, "every": 2.5}, {"rate": "1.0"}, {"rate": True}]
)
def test_types_are_not_bent(kind, values):
    assert [p.code for p in problems(discovery.build, kind, "mine", values)] == ["E304"]


def test_a_parameter_that_is_not_one_of_a_suites_is_refused(kind):
    for key in ("hidden", "replaces", "name", "acted"):
        (problem,) = problems(discovery.build, kind, "mine", {"rate": 1.0, key: 1})
        assert (problem.code, f"'{key}'" in problem.message) == ("E303", True)


def test_the_methods_own_refusal_is_told(kind):
    (problem,) = problems(discovery.build, kind, "mine", {"rate": 1.0, "every": 0})
    assert (problem.code, problem.message) == ("E304", "'mine': every is at least 1")


def test_a_method_without_parameters_says_so():
    class Bare(Method):
        pass

    (problem,) = problems(discovery.build, Bare, "bare", {"rate": 1.0})
    assert problem.hint == "it takes none"
    assert isinstance(discovery.build(Bare, "bare", {}), Bare)


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_comes_by_name_or_from_a_file(tmp_path):
    assert tasks.task_named("classification", tmp_path).name == "classification"
    write(tmp_path, "segmentation", "from energybench import Task\nclass Segmentation(Task): name = 'segmentation'\n")
    made = tasks.task_named("segmentation.py", tmp_path)
    assert isinstance(made, Task)
    assert made.name == "segmentation"
    for use in ("classificaton", "absent.py"):
        (problem,) = problems(tasks.task_named, use, tmp_path, "suite.toml:2")
        assert (problem.code, problem.where) == ("E403", "suite.toml:2")
    write(tmp_path, "method", "from energybench import Method\nclass A(Method): pass\n")
    assert "no Task class" in problems(tasks.task_named, "method.py", tmp_path)[0].message
