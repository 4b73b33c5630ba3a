"""Files that one trial leaves and a later one finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from energybench.runner import watched_files
from energybench.runner.watched_files import WatchedFiles, shown


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_a_trial_leaves_is_found_by_the_next_and_what_is_gone_is_not(tmp_path: Path) -> None:
    write(tmp_path / "train.py")
    watched = WatchedFiles([tmp_path], [])
    assert watched.found() == []
    checkpoint = write(tmp_path / "out" / "ckpt.pt")
    watched.after("b0-i0-w.baseline")
    assert watched.found() == ["out/ckpt.pt (b0-i0-w.baseline)"]
    checkpoint.unlink()
    watched.after("b0-i1-w.twin")
    assert watched.found() == []


def test_a_file_that_was_there_and_is_written_again_is_one_too_whatever_its_size(tmp_path: Path) -> None:
    path = write(tmp_path / "ckpt.pt", "aaaa")
    watched = WatchedFiles([tmp_path], [])
    write(path, "bbbb")
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    watched.after("b0")
    assert watched.found() == ["ckpt.pt (b0)"]
    watched.after("b1")  # which has not touched it: it is still there
    assert watched.found() == ["ckpt.pt (b0)"]


def test_caches_runs_of_ours_a_trials_own_files_and_allowed_ones_are_none(tmp_path: Path) -> None:
    ours = tmp_path / "reports" / "mine"
    watched = WatchedFiles([tmp_path], [ours])
    write(tmp_path / "__pycache__" / "train.pyc")
    write(tmp_path / "lib.pyc")
    write(ours / "records" / "b0.json")
    other_run = tmp_path / "elsewhere"
    write(other_run / "run.json")
    write(other_run / "records" / "b0.json")
    write(tmp_path / "out" / "b0-i0-w.baseline" / "model.pt")
    allowed = write(tmp_path / "metrics.json")
    watched.after("b0-i0-w.baseline", allowed=[allowed])
    assert watched.found() == []


def test_a_continued_run_finds_what_its_earlier_call_left(tmp_path: Path) -> None:
    old, new = write(tmp_path / "train.py"), write(tmp_path / "ckpt.pt")
    os.utime(old, ns=(10, 10))
    os.utime(new, ns=(30, 30))
    assert WatchedFiles([tmp_path], [], since_ns=20).found() == ["ckpt.pt (an earlier call)"]
    assert WatchedFiles([tmp_path], []).found() == []


def test_a_folder_of_too_many_files_is_not_looked_at_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_files, "MOST_FILES", 3)
    for number in range(5):
        write(tmp_path / str(number))
    watched = WatchedFiles([tmp_path], [])
    assert watched.too_many
    write(tmp_path / "ckpt.pt")
    watched.after("b0")
    assert watched.found() == []


def test_links_to_nowhere_and_around_in_a_circle_are_no_trouble(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    os.utime(elsewhere, ns=(10, 10))
    (home / "gone").symlink_to(tmp_path / "nowhere")
    (home / "circle").symlink_to(home)
    (home / "out").symlink_to(elsewhere)
    watched = WatchedFiles([home], [])
    write(home / "a")
    watched.after("b0")
    assert watched.found() == ["a (b0)"]
    write(elsewhere / "ckpt.pt")  # an output folder on another disk
    watched.after("b1")
    assert watched.found() == ["a (b0)", "out (b1)"]


def test_a_flag_names_a_few_files_and_counts_the_rest() -> None:
    assert shown(["a", "b"]) == "a, b"
    assert shown(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
