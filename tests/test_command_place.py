"""The folder that a trial runs in: copies are whole, leave out what is ours, and touch nothing of the user's."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from energybench.runner.command_files import missing_modules, modules, named, neighbours
from energybench.runner.command_ranks import ranks_of
from energybench.trial import command_place


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_holds_what_a_script_needs_and_nothing_of_runs_caches_or_history(tmp_path: Path) -> None:
    source, target = tmp_path / "suite", tmp_path / "own" / "suite"
    wanted = {"train.py": "a", "config/tiny.py": "b", "empty/.keep": ""}
    unwanted = {"__pycache__/x.pyc": "", ".git/HEAD": "", "reports/mine/run.json": "{}", "left/out.bin": ""}
    for name, text in {**wanted, **unwanted}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (source / "train.py").chmod(0o755)
    target.parent.mkdir()
    command_place._copy(source, target, frozenset({source / "left"}))
    assert tree(target) == wanted
    assert os.access(target / "train.py", os.X_OK)
    (target / "train.py").write_text("changed")
    (target / "output").mkdir()
    assert tree(source) == {**wanted, **unwanted}


def test_links_lead_where_they_led_and_large_files_are_clones_or_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_place, "LINKED_B", 8)
    source, target = tmp_path / "suite", tmp_path / "copy"
    (source / "data").mkdir(parents=True)
    (tmp_path / "elsewhere.txt").write_text("far")
    (source / "data" / "large.bin").write_text("0123456789")
    (source / "up").symlink_to("../elsewhere.txt")
    (source / "gone").symlink_to("nowhere")
    command_place._copy(source, target, frozenset())
    assert (target / "up").read_text() == "far"
    assert (target / "gone").is_symlink()
    assert (target / "data" / "large.bin").read_text() == "0123456789"
    assert not (target / "data").is_symlink()


# ── what a command depends on ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in ("pkg/__init__.py", "pkg/train.py", "pkg/models/net.py", "single.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass\n")
    return tmp_path


def test_a_module_is_fingerprinted_with_its_whole_package(package: Path) -> None:
    words = ["python", "-m", "pkg.train", "--steps", "3"]
    before = modules(words, package, {}, ours=False)
    assert list(before) == ["-m pkg.train"]
    (package / "pkg" / "notes.txt").write_text("no source")
    (package / "pkg" / "__pycache__").mkdir()
    (package / "pkg" / "__pycache__" / "train.py").write_text("none either")
    assert modules(words, package, {}, ours=False) == before
    (package / "pkg" / "models" / "net.py").write_text("changed = 1\n")
    assert modules(words, package, {}, ours=False) != before


def test_a_module_is_found_behind_pythonpath_in_a_shells_string_and_alone(package: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    behind = modules(["sh", "-c", "python -m pkg.train > log"], elsewhere, {"PYTHONPATH": str(package)}, ours=False)
    assert list(behind) == ["-m pkg.train"]
    assert list(modules(["python", "-m", "single"], package, {}, ours=False)) == ["-m single"]


def test_a_module_that_is_nowhere_is_told_where_our_interpreter_runs_it(package: Path) -> None:
    assert missing_modules(["python", "-m", "pkg.trian"], package, {}, ours=True) == ["pkg.trian"]
    assert "pkg.train" in neighbours("pkg.trian", package)
    assert missing_modules(["python", "-m", "pkg.train"], package, {}, ours=True) == []
    assert missing_modules(["python", "-m", "json.tool"], package, {}, ours=True) == []
    assert missing_modules(["python", "-m", "pkg.trian"], package, {}, ours=False) == []  # its places are not known


def test_files_are_named_in_words_in_a_shells_string_and_behind_an_equals_sign(package: Path) -> None:
    found = named(["sh", "-c", "cat single.py | sort > pkg/train.py", "--config=pkg/__init__.py"], package)
    assert set(found) == {"single.py", "pkg/__init__.py"}  # what is written into is no input


@pytest.mark.parametrize(
    ("command", "ranks"),
    [
        ("torchrun --standalone --nproc_per_node=2 train.py", 2),
        ("torchrun --nproc-per-node 4 train.py", 4),
        ("python -m torch.distributed.run --nproc_per_node 3 train.py", 3),
        ("accelerate launch --num_processes 2 train.py", 2),
        ("mpirun -np 8 ./train", 8),
        ("torchrun --nproc_per_node=gpu train.py", None),
        ("python train.py -n 4", None),
        ("/opt/bin/torchrun --nproc_per_node=2 train.py", 2),
        ("sh -c 'torchrun --nproc_per_node=2 train.py'", 2),
    ],
)
def test_how_many_ranks_a_launcher_starts(command: str, ranks: int | None) -> None:
    assert ranks_of(shlex.split(command)) == ranks
