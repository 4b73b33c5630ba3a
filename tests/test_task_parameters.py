"""A task's parameters are the fields of its class, checked as a method's are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from json_schema import refusal
from test_plan import planned

from energybench.cli.described import describe, print_described
from energybench.cli.suite_schema import suite_schema
from energybench.common.errors import Problem, UsageError, WorkloadError
from energybench.suite import suite
from energybench.suite.tables import TaskTable
from energybench.train.method import parameters
from energybench.workloads import tasks
from energybench.workloads.tasks.classification import Classification

TASK = '''"""Denoise: classification of noisy inputs, so that it has something to choose."""
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from energybench.workloads.tasks.classification import Classification


@dataclass
class Denoise(Classification):
    """steps: how often"""

    steps: Annotated[int, Field(ge=1, le=1000)]
    kind: Literal["linear", "cosine"] = "linear"
    gamma: float = 0.5
    name = "denoise"

    def __post_init__(self):
        if self.gamma == 13.0:
            raise ValueError("13 brings bad luck")
'''
SUITE = """schema = 1
suite = "tiny"
[trials]
blocks = 1
warmup = "1 steps"
[measure]
energy = "off"
[[workload]]
name = "w"
task = { use = "denoise.py", steps = 20 }
model = { use = "cnn", channels = [2, 4] }
data = { use = "digits", batch = 16, subset = 48, test_subset = 16 }
train = { epochs = 4, lr = 0.1 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "denoise.py").write_text(TASK, encoding="utf-8")
    return tmp_path


def made(folder: Path, **values: Any) -> Any:
    return tasks.task_named(TaskTable.model_validate({"use": "denoise.py:Denoise", **values}), folder, "s.toml:9:1")


def problems(folder: Path, **values: Any) -> list[Problem]:
    with pytest.raises(UsageError) as caught:
        made(folder, **values)
    assert isinstance(caught.value, WorkloadError)  # and no method's mistake
    return caught.value.problems


def test_its_fields_are_what_the_suite_says_and_else_their_defaults(folder: Path) -> None:
    assert parameters(made(folder, steps=20)) == {"steps": 20, "kind": "linear", "gamma": 0.5}
    assert parameters(made(folder, steps=1, kind="cosine", gamma=2))["gamma"] == 2.0
    assert made(folder, steps=20).name == "denoise"  # by which its random stream goes


@pytest.mark.parametrize(
    ("values", "says", "hint"),
    [
        ({"steps": 2, "gama": 1.0}, "takes no parameter 'gama'", "did you mean 'gamma'?"),
        ({}, "requires its parameter 'steps'", ""),
        ({"steps": 0}, "'steps'", ""),
        ({"steps": 1001}, "'steps'", ""),
        ({"steps": 2.5}, "'steps'", ""),
        ({"steps": "2"}, "'steps'", ""),
        ({"steps": 2, "kind": "cosin"}, "'kind'", "did you mean 'cosine'?"),
        ({"steps": 2, "gamma": 13.0}, "bad luck", ""),
    ],
)
def test_what_it_does_not_take_is_refused_in_words(folder: Path, values: dict[str, Any], says: str, hint: str) -> None:
    (problem,) = problems(folder, **values)
    assert problem.code == "E403"
    assert says in problem.message
    assert hint in problem.hint
    assert problem.where == "s.toml:9:1"


WITHOUT = [  # parameters
    "classification",
    "multi_label",
    "ridge",
    "text_classification",
    "language_model",
    "detection",
    "source_only",
    "erm",
]
UNSET = ["regression"]  # whose parameters have no value by default, and so none in an example


@pytest.mark.parametrize("name", WITHOUT)
def test_a_task_that_takes_none_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        tasks.task_named(TaskTable.model_validate({"use": name, "steps": 2}), tmp_path)
    (problem,) = caught.value.problems
    assert (problem.code, problem.hint) == ("E403", "it takes none")
    assert type(tasks.task_named(TaskTable(use=name), tmp_path)) is type(tasks.task_named(name, tmp_path))


def test_a_class_without_fields_is_made_as_it_always_was(tmp_path: Path) -> None:
    text = "from energybench import Task\nclass Own(Task):\n    def __init__(self, steps=3): self.steps = steps\n"
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    task: Any = tasks.task_named("own.py:Own", tmp_path)
    assert task.steps == 3
    with pytest.raises(UsageError, match="takes no parameter 'steps'"):
        tasks.task_named(TaskTable.model_validate({"use": "own.py:Own", "steps": 2}), tmp_path)


def test_a_frozen_class_takes_parameters_too(tmp_path: Path) -> None:
    text = "from dataclasses import dataclass\nfrom energybench import Task\n"
    text += "@dataclass(frozen=True)\nclass Own(Task):\n    steps: int = 3\n"
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    assert parameters(tasks.task_named("own.py", tmp_path)) == {"steps": 3}
    given = TaskTable.model_validate({"use": "own.py", "steps": 2})
    assert parameters(tasks.task_named(given, tmp_path)) == {"steps": 2}


# ── in a suite ────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(folder: Path, text: str, **options: Any) -> suite.Suite:
    (folder / "s.toml").write_text(text, encoding="utf-8")
    return suite.load(folder / "s.toml", **options)


def task_of(loaded: suite.Suite) -> Any:
    return loaded.digest_source()["workload"][-1]["task"]


def test_a_table_with_a_name_alone_means_the_name(tmp_path: Path) -> None:
    plain = SUITE.replace('{ use = "denoise.py", steps = 20 }', '"denoise.py"')
    table = plain.replace('"denoise.py"', '{ use = "denoise.py" }')
    assert load(tmp_path, plain).digest_source() == load(tmp_path, table).digest_source()
    assert task_of(load(tmp_path, plain)) == "denoise.py"
    assert task_of(load(tmp_path, SUITE)) == {"use": "denoise.py", "steps": 20}


CHILD = '[[workload]]\nname = "child"\nextends = "w"\n'


@pytest.mark.parametrize(
    ("first", "child", "expected"),
    [
        ('"a.py"', "", "a.py"),
        ('"a.py"', "task.steps = 2", {"use": "a.py", "steps": 2}),
        ('{ use = "a.py", steps = 1, k = 3 }', "task.steps = 2", {"use": "a.py", "steps": 2, "k": 3}),
        ('{ use = "a.py", steps = 1 }', 'task = "a.py"', {"use": "a.py", "steps": 1}),
        ('{ use = "a.py", steps = 1 }', 'task = "b.py"', "b.py"),  # another task does not inherit its parameters
        ('{ use = "a.py", steps = 1 }', 'task = { use = "b.py", k = 3 }', {"use": "b.py", "k": 3}),
    ],
)
def test_a_child_adds_parameters_and_another_task_inherits_none(
    tmp_path: Path, first: str, child: str, expected: Any
) -> None:
    text = SUITE.replace('{ use = "denoise.py", steps = 20 }', first)
    assert task_of(load(tmp_path, f"{text}{CHILD}{child}\n")) == expected


def test_they_can_be_set_for_one_run(tmp_path: Path) -> None:
    assert task_of(load(tmp_path, SUITE, overrides=["workload.task.steps=3"])) == {"use": "denoise.py", "steps": 3}
    plain = SUITE.replace('{ use = "denoise.py", steps = 20 }', '"denoise.py"')
    assert task_of(load(tmp_path, plain, overrides=["workload[w].task.steps=3"])) == {"use": "denoise.py", "steps": 3}
    assert task_of(load(tmp_path, SUITE, overrides=["workload.task=ridge"])) == "ridge"
    quick = "[quick]\nworkload.task = { steps = 2 }\n"
    assert task_of(load(tmp_path, SUITE + quick, quick=True)) == {"use": "denoise.py", "steps": 2}


@pytest.mark.parametrize(
    ("task", "code", "says"),
    [
        ("5", "E202", "workload.task is 5; expected a string"),
        ('""', "E202", "workload.task"),
        ("{ steps = 20 }", "E203", "workload.task lacks 'use'"),
        ('{ ues = "denoise.py" }', "E203", "did you mean 'use' instead of 'ues'?"),
        ("{ use = 5 }", "E202", "workload.task.use is 5; expected a string"),
        ("{}", "E203", "lacks 'use'"),
        ("[]", "E202", "expected a string"),
    ],
)
def test_what_is_no_task_is_told_at_its_place(tmp_path: Path, task: str, code: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, SUITE.replace('{ use = "denoise.py", steps = 20 }', task))
    (problem,) = caught.value.problems
    assert problem.code == code, problem
    assert says in str(problem)
    assert "s.toml:10:" in problem.where


def test_the_check_of_a_suite_tells_a_typo_at_its_place_and_shows_what_will_be_trained(folder: Path) -> None:
    good = planned(folder, SUITE)
    assert good["problems"] == []
    assert good["workloads"]["w"]["task"] == {"steps": 20, "kind": "linear", "gamma": 0.5}
    (problem,) = planned(folder, SUITE.replace("steps = 20", "steps = 20, gama = 1.0"))["problems"]
    assert (problem["code"], problem["where"].rpartition("tiny.toml:")[2]) == ("E403", "10:42")
    (problem,) = planned(folder, SUITE.replace(", steps = 20", ""))["problems"]
    assert (problem["code"], problem["where"].rpartition("tiny.toml:")[2]) == ("E403", "10:1")


def test_other_parameters_are_another_cell(folder: Path) -> None:
    digests = {planned(folder, SUITE.replace("steps = 20", f"steps = {n}"))["cells"][0]["digest"] for n in (20, 21)}
    assert len(digests) == 2


# ── shown ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_list_describes_a_task_without_importing_it(name: str) -> None:
    facts = describe(name)
    example = f'task = "{name}"' if name in [*WITHOUT, *UNSET] else f'task = {{ use = "{name}", '
    assert (facts["kind"], facts["name"], facts["example"][: len(example)]) == ("task", name, example)
    assert facts["summary"]


def test_the_card_of_a_task_has_its_parameters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from energybench.train.discovery import Source, card

    details = {each.name: each for each in card(Source("denoise", folder / "denoise.py", "given", "Denoise")).details}
    assert list(details) == ["steps", "kind", "gamma"]
    assert (details["steps"].required, details["steps"].about) == (True, "how often")


@pytest.mark.parametrize(
    ("task", "admitted"),
    [
        ('"classification"', True),
        ('"Ridge"', True),
        ('"mine.py:Mine"', True),
        ('{ use = "classification" }', True),
        ('{ use = "mine.py", steps = 3 }', True),
        ("{ steps = 3 }", True),  # of a workload that extends another
        ('{ use = "clasification" }', False),
        ('{ use = "classification", steps = 3 }', False),
        ("3", False),
    ],
)
def test_an_editor_knows_its_tasks(task: str, admitted: bool) -> None:
    written = tomllib.loads(SUITE.replace('{ use = "denoise.py", steps = 20 }', task))
    assert (refusal(suite_schema(), written) is None) == admitted


def test_the_old_way_of_asking_still_gives_a_name(tmp_path: Path) -> None:
    assert load(tmp_path, SUITE.replace('task = { use = "denoise.py", steps = 20 }\n', "")).workloads[0].task_use == (
        Classification.name
    )


def test_a_task_that_names_what_it_reports_is_not_evaluated_to_plan_a_run(folder: Path) -> None:
    """Of one that generates for hours only the names are wanted."""
    file = folder / "denoise.py"
    slow = '    reports = ("accuracy", "loss")\n\n    def evaluate(self, run, data):\n        raise OSError("hours")\n'
    file.write_text(TASK + "\n" + slow, encoding="utf-8")
    assert planned(folder, SUITE)["problems"] == []
    wanting = SUITE + '[accept.quality]\nmetric = "f1"\nloses_at_most = "1 pp"\n'
    (problem,) = planned(folder, wanting)["problems"]
    assert (problem["code"], problem["hint"]) == ("E406", "its task reports: accuracy, loss")


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_list_says_each_parameter_once_behind_a_sentence_on_what_the_task_is(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = describe(name)
    assert facts["summary"][0].isupper()
    print_described(facts)
    shown = capsys.readouterr().out
    for each in facts["parameters"]:
        assert len(re.findall(rf"^ *{each['name']}:", shown, re.M)) == 1
