"""Names of tasks, models and data sets that come with energybench: imported late, and refused where an extra lacks."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support import data_settings

from energybench.cli import app
from energybench.cli.described import describe
from energybench.common import data_folder, extras
from energybench.common.errors import UsageError
from energybench.train.method import Task
from energybench.workloads import catalogue, datasets, models, tasks

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("names", [tasks.NAMES, models.NAMES, datasets.NAMES], ids=lambda names: names.kind)
def test_every_name_of_a_table_leads_to_something_that_can_be_called(
    names: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("energybench.workloads.names.missing_packages", lambda extra: [])  # imported when it is built
    for name in names.table:
        found = names.load(name.upper())
        assert callable(found)
        assert (isinstance(found, type) and issubclass(found, Task)) == (names.kind == "task")
        assert catalogue.by_name(names.kind)[name].summary == " ".join((found.__doc__ or "").split("\n\n")[0].split())
    assert names.load("nothing_of_the_kind") is None
    assert set(names.needs) <= set(names.table)
    assert set(names.needs.values()) <= set(extras.EXTRAS)


def test_asking_for_one_thing_imports_no_other() -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from energybench.workloads.tasks import task_named\ntask_named('classification', Path())\n"
        "loaded = [n for n in sys.modules if n.startswith('energybench.workloads.')]\n"
        "assert 'energybench.workloads.tasks.ridge' not in loaded, loaded\n"
        "assert not [n for n in loaded if '.models' in n or '.datasets' in n], loaded\n"
        "from energybench.workloads import models\nmodels.build('mlp', (1, 4, 4), 2, {})\n"
        "assert 'energybench.workloads.models.paper' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_model_and_a_data_set_can_be_imported_by_name_and_no_other_attribute_is_there() -> None:
    from energybench.workloads.models import cnn

    assert cnn((1, 8, 8), 3, channels=[2])(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert set(datasets.digits()) == {"train", "test"}
    for module in (models, datasets):
        with pytest.raises(AttributeError, match="has no attribute 'cnnn'"):
            _ = module.cnnn


# ── extras ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_extra_has_the_packages_that_are_imported_of_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, packages in extras.EXTRAS.items():
        wanted = {re.split(r"[<>=~!\[ ]", each)[0] for each in project["optional-dependencies"][extra]}
        assert {name.replace("-", "_").lower() for name in wanted} == set(packages), extra


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra "text" is there in part; a name of each kind needs it."""
    monkeypatch.setitem(extras.EXTRAS, "text", ("json", "no_such_library", "nor.this_one"))
    for names, name in ((tasks.NAMES, "ridge"), (models.NAMES, "mlp"), (datasets.NAMES, "digits")):
        monkeypatch.setitem(names.needs, name, "text")


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize(("kind", "code"), [("task", "E403"), ("model", "E401"), ("data", "E402")])
def test_a_name_whose_extra_is_not_installed_is_refused_with_what_to_type(kind: str, code: str, tmp_path: Path) -> None:
    ask: dict[str, Any] = {
        "task": lambda: tasks.task_named("Ridge", tmp_path, "s.toml:3"),
        "model": lambda: models.build("mlp", (1, 4, 4), 2, {}),
        "data": lambda: datasets.prepare(data_settings({"use": "digits"}), tmp_path),
    }
    with pytest.raises(UsageError) as refused:
        ask[kind]()
    (problem,) = refused.value.problems
    assert problem.code == code
    assert "needs no_such_library, nor.this_one, which are not installed" in problem.message
    assert problem.hint == "pip install 'energybench[text]'"
    models.build("cnn", (1, 4, 4), 2, {})  # what does not need it works


def test_what_is_installed_is_not_missing_and_nothing_is_imported_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "text", ("json", "wave", "no_such_library"))
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    assert extras.missing_packages("text") == ["no_such_library"]
    assert "wave" not in sys.modules
    monkeypatch.setitem(sys.modules, "no_such_library", type(sys)("no_such_library"))  # without a __spec__
    assert extras.missing_packages("text") == ["no_such_library"]
    assert extras.missing_packages("") == []


def test_the_lists_say_which_extra_something_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    table = catalogue._table

    def with_needs(file: str, name: str) -> dict[str, Any]:
        return {"ridge": "text"} if (file, name) == ("tasks/__init__.py", "NEEDS") else table(file, name)

    monkeypatch.setattr(catalogue, "_table", with_needs)
    monkeypatch.setitem(extras.EXTRAS, "text", ("no_such_library",))
    done = CliRunner().invoke(app, ["list", "tasks"], env={"COLUMNS": "150"})
    assert "(pip install 'energybench[text]') Ridge regression" in done.output
    assert "pip install 'energybench[text]'" in describe("ridge")["text"]
    monkeypatch.setitem(extras.EXTRAS, "text", ("json",))
    assert "pip install" not in CliRunner().invoke(app, ["list", "tasks"], env={"COLUMNS": "150"}).output


def test_no_package_of_an_extra_is_imported_to_list_or_to_start() -> None:
    """Nor is one needed: energybench without any extra lists, checks and trains what needs none."""
    packages = sorted({each for packages in extras.EXTRAS.values() for each in packages})
    code = (
        "import sys\nfrom pathlib import Path\n"
        "import energybench.cli.listing as l\nl.listing()\n"
        "import energybench.cli.preload\n"
        "from energybench.workloads.tasks import TASKS, task_named\n"
        "[task_named(name, Path()) for name in TASKS if name in ('classification', 'ridge')]\n"
        f"loaded = [n for n in {packages!r} if n in sys.modules]\nassert not loaded, loaded\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


# ── folders of data sets ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_folder_of_a_named_set_is_found_whatever_its_capitals_and_its_absence_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    assert data_folder.of("birds") is None
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    (tmp_path / "birds").write_text("a file, no folder", encoding="utf-8")
    assert data_folder.of("birds") is None
    (tmp_path / "Birds").mkdir()
    assert data_folder.of("bIRDS") == data_folder.needed("BIRDS", "x.npz") == tmp_path / "Birds"
    with pytest.raises(UsageError) as refused:
        data_folder.needed("fish", "train.npz and test.npz")
    (problem,) = refused.value.problems
    assert problem.code == "E402"
    assert "'fish' is not on this machine" in problem.message
    assert "put train.npz and test.npz into a folder <folder>/fish" in problem.hint


def test_a_data_set_of_a_table_reads_its_folder_or_stands_in_by_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a set of a family does: a function that finds its files, and a line of KNOWN for suites that are checked."""
    import numpy as np

    from energybench.workloads import stand_in

    def dots(count: int = 4) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        folder = data_folder.needed("dots", "images.npy")
        images = torch.from_numpy(np.load(folder / "images.npy"))[:count]
        return {"train": (images, torch.arange(count) % 2), "test": (images, torch.arange(count) % 2)}

    monkeypatch.setitem(datasets.DATA_SETS, "dots", "test_names_of_a_family:dots")
    family = type(sys)("test_names_of_a_family")
    family.dots = dots  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_names_of_a_family", family)
    monkeypatch.setitem(stand_in.KNOWN, "dots", ((1, 5, 5), 2, 40, 20))
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    settings = data_settings({"use": "DOTS", "options": {"count": 6}})
    with pytest.raises(UsageError, match="not on this machine"):
        datasets.prepare(settings, tmp_path)
    told = datasets.prepare(settings, tmp_path, known=True)
    assert (told.kind, told.shape, told.train) == ("stand-in", (1, 5, 5), 40)
    (tmp_path / "data" / "dots").mkdir(parents=True)
    np.save(tmp_path / "data" / "dots" / "images.npy", np.zeros((8, 1, 5, 5), np.uint8))
    for known in (False, True):
        told = datasets.prepare(settings, tmp_path, known=known)
        assert (told.kind, told.train, told.source) == ("resident", 6, "dots")
