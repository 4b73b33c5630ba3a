"""`pip install .`, then `energybench` from any folder: methods and suites are in the wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's content, ahead of the checkout on the path."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(site: Path, where: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-m", "energybench", *arguments],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_wheel_carries_every_method_and_suite_and_the_licence(installed: Path) -> None:
    for kind, pattern in (("methods", "*.py"), ("suites", "*.toml")):
        ours = {path.name for path in (ROOT / kind).glob(pattern)}
        assert {path.name for path in (installed / "energybench/shipped" / kind).glob(pattern)} == ours
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))


def test_the_wheel_offers_the_pytest_plugin(installed: Path) -> None:
    (file,) = installed.glob("*.dist-info/entry_points.txt")
    assert "[pytest11]\nenergybench = energybench.pytest_plugin" in file.read_text()
    assert (installed / "energybench/pytest_plugin.py").is_file()


def test_the_wheel_carries_what_a_page_is_made_of_and_the_licence_of_what_is_not_ours(installed: Path) -> None:
    ours = {path.name for path in (ROOT / "energybench/report/page").iterdir()}
    assert "page.html.j2" in ours
    assert {path.name for path in (installed / "energybench/report/page").iterdir()} == ours
    assert list(installed.glob("*.dist-info/licenses/**/uPlot.LICENSE"))


def test_a_shipped_suite_is_checked_from_any_folder_with_the_shipped_methods(installed: Path, tmp_path: Path) -> None:
    facts = json.loads(run(installed, tmp_path, "check", "quick", "--json"))
    assert facts["ok"]
    paths = {path for cell in facts["cells"] for path in cell["methods"].values()}
    assert paths
    assert all(path.startswith(str(installed)) for path in paths)
    assert not any(tmp_path.iterdir())  # nothing is left behind


def test_listing_finds_them_too(installed: Path, tmp_path: Path) -> None:
    found = json.loads(run(installed, tmp_path, "list", "--json"))
    assert {entry["name"] for entry in found["methods"]} == {path.stem for path in (ROOT / "methods").glob("*.py")}
    assert {"quick", "cifar"} <= {entry["name"] for entry in found["suites"]}
