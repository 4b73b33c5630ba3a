"""Tasks, models and data sets of installed packages: found without running them, told when broken, fingerprinted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from command_line import energybench
from installed import install
from json_schema import refusal
from support import data_settings
from test_plan import SUITE, planned

from energybench.cli import app
from energybench.cli.described import describe
from energybench.cli.listing import listing
from energybench.cli.suite_schema import suite_schema
from energybench.common.errors import UsageError
from energybench.train import discovery, plugins
from energybench.workloads import catalogue, datasets, models
from energybench.workloads.tasks import task_named

# A package whose modules import one another as modules of a package do, so that loading a file by its path alone fails.
TASK = '''"""The far task."""
from dataclasses import dataclass
from energybench import Forward, Metric, Task
from .helper import squares

@dataclass
class Far(Task):
    """Squared distance of the scores from one-hot labels.

    gain: of the loss
    """
    gain: float = 1.0
    metrics = {"distance": Metric(better="lower", least=0.0)}

    def forward(self, run, batch):
        outputs = run.model(batch.inputs)
        each = self.gain * squares(outputs, batch.targets)
        return Forward(each.mean(), each, outputs)

    def losses(self, run, outputs, batch):
        return self.gain * squares(outputs, batch.targets)

    def evaluate(self, run, data):
        total = sum(squares(run.model(b.inputs), b.targets).sum().item() for b in data.in_order())
        return {"distance": total / len(data)}
'''
HELPER = """import torch.nn.functional as F

def squares(outputs, targets):
    return (outputs - F.one_hot(targets, outputs.shape[1])).square().sum(1)
"""
MODEL = '''from torch import nn

def flat(shape, classes, width: int = 3):
    """One hidden layer.

    More of it.
    """
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, classes))
'''
DATA = '''import torch

def stripes(samples: int = 64):
    """Images of stripes, upright or not."""
    targets = torch.arange(samples) % 2
    lines = (torch.arange(6) % 2 * 255).to(torch.uint8)
    upright, level = lines.expand(6, 6), lines[:, None].expand(6, 6)
    images = torch.stack([(upright, level)[int(t)] for t in targets]).unsqueeze(1)
    cut = samples * 3 // 4
    return {"train": (images[:cut], targets[:cut]), "test": (images[cut:], targets[cut:])}
'''
FAR = {
    "far/__init__.py": "raise RuntimeError('importing the package is not finding it')\n",
    "far_things/__init__.py": "",
    "far_things/task.py": TASK,
    "far_things/helper.py": HELPER,
    "far_things/model.py": MODEL,
    "far_things/data.py": DATA,
}
OFFERS = {
    "tasks": {"far": "far_things.task:Far"},
    "models": {"flat": "far_things.model:flat"},
    "data": {"Stripes": "far_things.data:stripes"},
}
USES = SUITE.replace('name = "w"', 'name = "w"\ntask = "far"').replace("cnn", "flat").replace(", channels = [2, 4]", "")
USES = USES.replace('use = "digits", batch = 16, subset = 48, test_subset = 16', 'use = "stripes", batch = 16')
USES += '[accept]\nquality = { metric = "distance", loses_at_most = "0.1 units" }\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, as site-packages is; what was imported from it is forgotten afterwards."""
    folder, before = tmp_path / "installed", set(sys.modules)
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("far", "far_things", "near", "one", "other"):
            del sys.modules[name]


@pytest.fixture
def far(place: Path) -> Path:
    install(place, "far-things", OFFERS, FAR)
    return place


def problem(call: Any, *arguments: Any, **named: Any) -> Any:
    with pytest.raises(UsageError) as refused:
        call(*arguments, **named)
    (found,) = refused.value.problems
    return found


# ── finding ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_package_offers_is_found_and_described_without_running_any_of_it(far: Path) -> None:
    install(
        far, "loud", {"tasks": {"loud": "far.inside:Loud"}}, {"far/inside.py": '"""Loud."""\nclass Loud: "words"\n'}
    )
    assert not any(offer.problem for offer in plugins.offers("task").values())
    entries = listing()
    tasks = {entry["name"]: entry for entry in entries["tasks"]}
    assert tasks["far"]["origin"] == "entry point"
    assert tasks["far"]["package"] == "far-things 1.0"
    assert tasks["far"]["summary"] == "Squared distance of the scores from one-hot labels."
    assert tasks["loud"]["summary"] == "words"
    assert tasks["classification"]["origin"] == "shipped"
    assert {e["name"]: e["summary"] for e in entries["models"]}["flat"] == "One hidden layer."
    assert {e["name"]: e["summary"] for e in entries["data"]}["Stripes"] == "Images of stripes, upright or not."
    facts = describe("FAR")
    assert (facts["kind"], facts["package"]) == ("task", "far-things 1.0")
    assert facts["parameters"][0]["about"] == "of the loss"
    assert describe("stripes")["example"] == 'data = { use = "Stripes", batch = 64, options = { samples = 64 } }'
    assert describe("flat")["example"] == 'model = { use = "flat", width = 3 }'
    assert not {"far", "far_things"} & set(sys.modules)


def test_names_are_found_whatever_their_capitals_and_made(far: Path, tmp_path: Path) -> None:
    task = task_named("Far", tmp_path)
    assert (type(task).__name__, task.metrics["distance"].better) == ("Far", "lower")  # type: ignore[union-attr]
    model = models.build("FLAT", (1, 6, 6), 2, {"width": 5})
    assert sum(p.numel() for p in model.parameters()) == 36 * 5 + 5 + 5 * 2 + 2
    described = datasets.prepare(data_settings({"use": "stripes", "options": {"samples": 40}}), tmp_path / "cache")
    assert (described.train, described.test, described.shape, described.classes) == (30, 10, (1, 6, 6), 2)
    assert described.source == "stripes, of the package far-things 1.0"


def test_a_plan_trains_with_them_and_says_where_they_come_from(far: Path, tmp_path: Path) -> None:
    found = planned(tmp_path, USES)
    assert found["problems"] == []
    assert found["sources"] == {
        "task far": "far-things 1.0 (entry point)",
        "model flat": "far-things 1.0 (entry point)",
        "data Stripes": "far-things 1.0 (entry point)",
    }
    assert planned(tmp_path, SUITE)["sources"] == {}


def test_an_editor_and_a_shell_know_them(far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomllib

    good = tomllib.loads(USES.replace('use = "flat"', 'use = "flat", width = 4'))
    assert refusal(suite_schema(), good) is None
    assert refusal(suite_schema(), tomllib.loads(USES.replace('use = "flat"', 'use = "flat", widht = 4')))
    done = CliRunner().invoke(app, ["list", "tasks"], env={"COLUMNS": "100"})
    assert "[far-things 1.0] Squared distance" in done.output
    assert "classification" in done.output


def test_parts_of_a_package_that_is_given_in_several_places_are_found(place: Path) -> None:
    """A module, a module of a package without an __init__.py, and a package whose __init__.py has it."""
    for path in ("near.py", "open/deep/near.py", "whole/__init__.py"):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text("", encoding="utf-8")
    assert plugins.file_of("near") == place / "near.py"
    assert plugins.file_of("open.deep.near") == place / "open/deep/near.py"
    assert plugins.file_of("whole") == place / "whole/__init__.py"
    for gone in ("nowhere", "nowhere.inside", "whole.gone", "near.inside", "", "sys"):
        assert plugins.file_of(gone) is None


# ── names that clash ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("task", "classification"),
        ("task", "Ridge"),
        ("model", "cnn"),
        ("model", "resnet18"),  # torchvision's
        ("data", "digits"),
        ("data", "CIFAR10"),
        ("data", "imagenet"),  # known by its shape alone
    ],
)
def test_a_name_that_means_something_everywhere_is_never_taken_by_a_package(
    kind: str, name: str, far: Path, tmp_path: Path
) -> None:
    group, point = {"task": "tasks", "model": "models"}.get(kind, "data"), OFFERS
    target = next(iter(point[group].values()))
    install(far, "taker", {group: {name: target}})
    assert catalogue.offer(kind, name) is None
    (entry,) = [each for each in catalogue.offered(kind) if each.name == name]
    assert entry.problem == f"hidden: '{name}' means something else everywhere"
    assert name not in [each.name for each in catalogue.usable(kind)]
    assert describe(name)["origin"] != "entry point"
    if kind == "task":
        assert type(task_named(name, tmp_path)).__module__.startswith("energybench.")


def test_a_name_that_two_packages_offer_is_used_by_neither_and_both_are_named(far: Path, tmp_path: Path) -> None:
    install(far, "other", {"tasks": {"far": "other:Far", "more": "far_things.task:Far"}}, {"other.py": "Far = None\n"})
    found = problem(task_named, "far", tmp_path, "s.toml:4")
    assert (found.code, found.where) == ("E403", "s.toml:4")
    assert "far-things 1.0" in found.message + found.hint
    assert "other 1.0" in found.message
    assert "uninstall one of" in found.hint
    assert type(task_named("more", tmp_path)).__name__ == "Far"  # what nobody else offers works
    install(far, "same", {"tasks": {"more": "far_things.task:Far"}})
    assert type(task_named("more", tmp_path)).__name__ == "Far"  # and so does one thing that two name alike


def test_a_method_that_two_packages_offer_is_refused_too(place: Path) -> None:
    text = "from energybench import Method\nclass Mine(Method): pass\n"
    install(place, "one-methods", {"methods": {"mine": "one:Mine", "lone": "one:Mine"}}, {"one.py": text})
    assert discovery.load(discovery.find("mine")).__name__ == "Mine"
    install(place, "other-methods", {"methods": {"mine": "other:Mine"}}, {"other.py": text})
    found = problem(discovery.find, "mine", None, "s.toml:1")
    assert (found.code, found.where) == ("E301", "s.toml:1")
    assert "other-methods 1.0" in found.message
    assert discovery.find("lone").package == "one-methods 1.0"
    cards = {card.name: card for card in discovery.cards()}
    assert "cannot be used" in cards["mine"].summary
    assert cards["lone"].package == "one-methods 1.0"


# ── broken ones ───────────────────────────────────────────────────────────────────────────────────────────────────────

BROKEN = {
    "gone": ("no_such_package.inside:Class", "there is no module no_such_package.inside", None),
    "lost": ("far_things.lost:Class", "there is no module far_things.lost", None),
    "fails": ("far_things.fails:Class", "ZeroDivisionError", 2),
    "leaves": ("far_things.leaves:Class", "SystemExit", 1),
    "wrong": ("far_things.wrong:Class", "SyntaxError", 1),
    "nameless": ("far_things.model:Absent", "AttributeError", None),
    "lacking": ("far_things.lacking:Class", "no_such_library", 1),
    "guarded": ("far.guarded:Class", "importing the package is not finding it", None),
    "thing": ("far_things.thing:value", "is no class", None),
    "other": ("far_things.model:flat", "is no class of Task", None),
}
TEXTS = {
    "far_things/fails.py": "x = 1\ny = 1 / 0\n",
    "far_things/leaves.py": "raise SystemExit(3)\n",
    "far_things/wrong.py": "def f(:\n",
    "far_things/lacking.py": "import no_such_library\n",
    "far_things/thing.py": "value = 3\n",
    "far/guarded.py": "class Class: pass\n",
}


@pytest.fixture
def broken(far: Path) -> Path:
    install(far, "broken-things", {"tasks": {name: target for name, (target, _, _) in BROKEN.items()}}, TEXTS)
    return far


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_told_with_its_package_and_place(name: str, broken: Path, tmp_path: Path) -> None:
    target, why, line = BROKEN[name]
    found = problem(task_named, name, tmp_path, "s.toml:4")
    assert found.code == "E403"
    assert why in found.message
    if line is not None:
        file = broken / f"{target.partition(':')[0].replace('.', '/')}.py"
        assert found.where == f"{file}:{line}"
    if name != "other":
        assert "broken-things 1.0" in found.message


def test_and_it_breaks_nothing_else(broken: Path, tmp_path: Path) -> None:
    assert planned(tmp_path, USES)["problems"] == []
    entries = {entry["name"]: entry for entry in listing()["tasks"]}
    assert set(BROKEN) <= set(entries)
    assert entries["gone"]["problem"] == "there is no module no_such_package.inside"
    assert "cannot be read" in entries["wrong"]["problem"]
    done = CliRunner().invoke(app, ["list", "tasks"], env={"COLUMNS": "120"})
    assert "[broken-things 1.0] cannot be used: there is no module" in done.output
    assert "Cannot be used here" in describe("gone")["text"]
    assert "gone" not in json.dumps(suite_schema([])["$defs"]["WorkloadTable"]["properties"]["task"])


@pytest.mark.parametrize("text", [b"[energybench.tasks]\nno equals sign\n", b"[energybench.tasks]\n\xff = a:b\n"])
def test_a_package_whose_metadata_are_broken_is_told_by_its_own_name(text: bytes, far: Path, tmp_path: Path) -> None:
    install(far, "torn-things", {})
    (far / "torn_things-1.0.dist-info" / "entry_points.txt").write_bytes(text)
    assert planned(tmp_path, USES)["problems"] == []
    assert plugins.offers("task")["torn_things"].problem.startswith("its entry_points.txt or METADATA cannot be read")
    assert "torn_things" not in plugins.offers("model")
    assert "cannot be read" in problem(task_named, "torn_things", tmp_path).message


def test_of_two_installed_versions_the_one_that_python_imports_is_meant(far: Path, tmp_path: Path) -> None:
    install(tmp_path / "older", "Far_Things", OFFERS, FAR, version="0.9")
    sys.path.append(str(tmp_path / "older"))
    try:
        assert plugins.offers("task")["far"].package == "far-things 1.0"
        assert not plugins.offers("task")["far"].problem
    finally:
        sys.path.remove(str(tmp_path / "older"))


@pytest.mark.parametrize(("kind", "group"), [("model", "models"), ("data", "data")])
def test_a_model_or_data_set_that_is_no_function_is_refused_by_its_own_code(
    kind: str, group: str, far: Path, tmp_path: Path
) -> None:
    install(far, "broken-things", {group: {"thing": "far_things.thing:value"}}, TEXTS)
    if kind == "model":
        found = problem(models.build, "thing", (1, 6, 6), 2, {})
    else:
        found = problem(datasets.prepare, data_settings({"use": "thing"}), tmp_path)
    assert found.code == {"model": "E401", "data": "E402"}[kind]
    assert "is no function" in found.message


def test_parameters_and_options_that_it_does_not_take_are_refused_with_the_nearest(far: Path, tmp_path: Path) -> None:
    found = problem(models.build, "flat", (1, 6, 6), 2, {"widht": 3})
    assert (found.code, found.hint) == ("E401", "did you mean 'width'?")
    settings = data_settings({"use": "stripes", "options": {"sampels": 3}})
    assert problem(datasets.prepare, settings, tmp_path).hint == "did you mean 'samples'?"
    settings = data_settings({"use": "stripes", "split": 0.5})
    assert "has a test part of its own" in problem(datasets.prepare, settings, tmp_path).message


def test_a_typo_of_its_name_is_told_with_it(far: Path, tmp_path: Path) -> None:
    assert "'far'" in problem(task_named, "farr", tmp_path).hint
    assert "'flat'" in problem(models.build, "flatt", (1, 6, 6), 2, {}).hint
    assert "'Stripes'" in problem(datasets.prepare, data_settings({"use": "strips"}), tmp_path).hint


# ── fingerprints ──────────────────────────────────────────────────────────────────────────────────────────────────────


def digests(tmp_path: Path, text: str = USES) -> dict[str, str]:
    return {cell["method"]: cell["digest"] for cell in planned(tmp_path, text)["cells"]}


def test_any_file_of_its_package_and_its_version_change_the_cells_and_other_packages_do_not(
    far: Path, tmp_path: Path
) -> None:
    before, plain = digests(tmp_path), digests(tmp_path, SUITE)
    install(far, "near-things", {"tasks": {"near": "near:Near"}}, {"near.py": "class Near: pass\n"})
    assert digests(tmp_path) == before
    offer = plugins.offers("task")["far"]
    made = plugins.fingerprint(offer)
    (far / "far_things" / "helper.py").write_text(HELPER + "# changed\n", encoding="utf-8")
    assert plugins.fingerprint(offer) != made
    changed = digests(tmp_path)
    assert not set(changed.values()) & set(before.values())
    assert digests(tmp_path, SUITE) == plain  # what names nothing of it is what it was
    (far / "far_things-1.0.dist-info").rename(far / "gone")
    install(far, "far-things", OFFERS, version="1.1")
    assert not set(digests(tmp_path).values()) & {*before.values(), *changed.values()}


def test_a_package_of_one_file_is_that_file(place: Path) -> None:
    install(place, "near-things", {"tasks": {"near": "near:Near"}}, {"near.py": "class Near: pass\n", "beside.py": ""})
    offer = plugins.offers("task")["near"]
    before = plugins.fingerprint(offer)
    (place / "beside.py").write_text("changed = 1\n", encoding="utf-8")
    assert plugins.fingerprint(offer) == before
    (place / "near.py").write_text("class Near: 'changed'\n", encoding="utf-8")
    assert plugins.fingerprint(offer) != before


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_trains_with_them_in_its_processes_and_keeps_where_they_came_from(far: Path, tmp_path: Path) -> None:
    text = USES.replace("blocks = 2", "blocks = 1\ntwin = false\nthreads = 1").replace("epochs = 4", "epochs = 1")
    (tmp_path / "s.toml").write_text(f'{text}[[method]]\nuse = "dropout"\np = 0.5\n', encoding="utf-8")
    done = energybench("run", "s.toml", "--no-user-code", cwd=tmp_path, fresh=True, PYTHONPATH=str(far))
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "reports").rglob("run.json")
    run = json.loads(file.read_text(encoding="utf-8"))
    assert run["sources"]["task far"] == "far-things 1.0 (entry point)"
    assert run["metrics"]["w"]["distance"]["better"] == "lower"
    assert run["data"]["w"]["source"] == "stripes, of the package far-things 1.0"
