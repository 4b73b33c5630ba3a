"""A run's identity hangs on rooms: what can move a figure is in it, what only reads, judges or prints is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_imports import ours, room

from energybench.common.fingerprint import READERS, fingerprinted, source_digest

PACKAGE = Path(__file__).parents[1] / "energybench"
ROOMS = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}


def of_copy(folder: Path) -> str:
    code = "from energybench.common.fingerprint import source_digest; print(source_digest())"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_every_room_is_in_it_but_those_that_only_read_judge_or_print():
    rooms = {Path(name).parts[0] for name in fingerprinted()}
    only_read = {"cli", "gate", "report", "verdict", "pytest_energy", "overhead", "cluster"}
    assert rooms == ROOMS - only_read
    assert set(READERS) - ROOMS == {"shipped"}  # a wheel's methods and suites
    assert "papers" in rooms, "a method counts by one of its rules while it trains"


def test_no_module_beside_the_rooms_is_in_it():
    assert all(len(Path(name).parts) > 1 for name in fingerprinted())


def test_nothing_in_it_imports_what_is_not():
    """But the runner, which reports when a run has ended: else a reader could move a figure unseen."""
    for name, path in fingerprinted().items():
        if Path(name).parts[0] != "runner":
            assert not {room(module) for module in ours(path)} & set(READERS), name


@pytest.fixture
def copy(tmp_path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "energybench", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_same_files_elsewhere_have_the_same_fingerprint_and_a_line_more_in_a_room_moves_it_or_not(copy):
    before = of_copy(copy)
    assert before == source_digest()
    for file, moves in (
        ("report/terminal.py", False),
        ("verdict/flags.py", False),
        ("results.py", False),
        ("meter/gpu.py", True),
    ):
        with (copy / "energybench" / file).open("a", encoding="utf-8") as end:
            end.write("# a remark\n")
        assert (of_copy(copy) != before) is moves, file


def test_a_file_that_moves_to_another_room_is_another_fingerprint(copy):
    (copy / "energybench/papers/page.py").rename(copy / "energybench/flops/page.py")
    assert of_copy(copy) != source_digest()
