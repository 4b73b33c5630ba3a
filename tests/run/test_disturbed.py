"""A run's folder renamed, replaced, deleted, linked and mixed with another's while the run works (light.py)."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
from pathlib import Path

import disturb
import pytest
from command_line import PATIENCE_S, Forked, energybench
from faults import fault
from light_runs import HELD, ORDER, finish, held_at, records, release, run, runs, told

from energybench.common.sealed_files import with_seal
from energybench.records.reader import read_folder

pytestmark = pytest.mark.slow
CHANCE = random.Random(5)


def ended(place: Path, running: subprocess.Popen[str] | Forked, code: str) -> str:
    """The trial in progress goes on; the message that the run then ends with."""
    release(place)
    _, errors = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 2, errors
    assert ": failed" not in errors
    return told(errors, code)


def typed(said: str, place: Path) -> None:
    """Types the mv of the hint."""
    (line,) = re.findall(r"mv \S+ \S+", said)
    subprocess.run(shlex.split(line), cwd=place, check=True)


@fault("folder renamed")
@fault("second run in it")
def test_a_folder_that_is_renamed_keeps_the_trial_and_is_held_under_its_new_name(place: Path) -> None:
    running = held_at(place, HELD)
    before, (folder,) = records(place), runs(place)
    changed = disturb.renamed(folder, place, CHANCE)
    second = run(place, "--out", "aside")
    assert second.returncode == 2
    told(second.stderr, "E604")
    said = ended(place, running, "E626")
    assert str(place / "aside") in said
    assert changed.wrong() == ""
    kept = {file.stem: file.read_bytes() for file in (place / "aside" / "records").iterdir()}
    assert set(kept) == {*before, HELD}
    assert json.loads(kept[HELD])["status"] == "ok"
    assert read_folder(place / "aside")[0].finished is False
    typed(said, place)
    finish(place, kept)


@fault("folder replaced")
def test_another_folder_in_its_place_is_not_touched(place: Path) -> None:
    running = held_at(place, HELD)
    before, (folder,) = records(place), runs(place)
    changed = disturb.replaced(folder, place, CHANCE)
    assert "another one stands in its place" in ended(place, running, "E626")
    assert changed.wrong() == ""
    changed.undo()
    assert set(records(place)) == {*before, HELD}
    finish(place, before)


@fault("folder deleted")
def test_a_folder_that_is_deleted_is_not_made_again(place: Path) -> None:
    running = held_at(place, HELD)
    changed = disturb.deleted(runs(place)[0], place, CHANCE)
    assert "deleted" in ended(place, running, "E626")
    assert changed.wrong() == ""
    finish(place, {})


@fault("record deleted")
def test_a_run_whose_record_was_deleted_is_not_finished_and_says_which(place: Path) -> None:
    running = held_at(place, ORDER[-1])
    changed = disturb.record_deleted(runs(place)[0], place, CHANCE)
    before = records(place)
    said = ended(place, running, "E627")
    assert f"records/{changed.victim}.json" in said
    assert "the same command" in said
    found = read_folder(runs(place)[0])[0]
    assert (found.finished, found.invocations[-1].outcome) == (False, "records are missing")
    assert changed.victim not in records(place)
    finish(place, before)


@fault("linked part")
@pytest.mark.parametrize("part", ["records", "logs", "figures"])
def test_a_part_that_becomes_a_link_leads_nothing_out_of_the_folder(place: Path, part: str) -> None:
    class Chosen(random.Random):
        def choice(self, _: object) -> str:
            return part

    running = held_at(place, HELD)
    before, (folder,) = records(place), runs(place)
    changed = disturb.part_linked(folder, place, Chosen())
    assert f"{folder.name}/{part}" in ended(place, running, "E612")
    assert changed.wrong() == ""
    changed.undo()
    finish(place, before)


@fault("hard linked log")
def test_a_log_that_is_another_name_of_a_file_elsewhere_gets_no_word(place: Path) -> None:
    running = held_at(place, HELD)
    before = records(place)
    changed = disturb.logs_hard_linked(runs(place)[0], place, CHANCE)
    assert "hard link" in ended(place, running, "E612")
    assert changed.wrong() == ""
    changed.undo()
    finish(place, before)


@fault("record of another run")
def test_a_record_of_another_run_is_refused_by_every_verb_and_what_is_typed_mends_it(place: Path) -> None:
    """Of the same suite and digest: both are whole, and a saving would be another one."""
    assert run(place, "--out", "other").returncode == 0
    assert run(place, "--out", "mine").returncode == 0
    name = f"{ORDER[1]}.json"
    mine = (place / "mine" / "records" / name).read_bytes()
    (place / "mine" / "records" / name).write_bytes((place / "other" / "records" / name).read_bytes())
    for words in (
        ["report", "mine"],
        ["report", "mine", "--write"],
        ["report", "mine", "--html"],
        ["report", "mine", "--carbon"],
        ["show", f"mine/records/{name}"],
        ["compare", "other", "mine"],
        ["compare", "mine", "other"],
        ["export", "mine", "--to", "csv"],
    ):
        done = energybench(*words, cwd=place)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        said = told(done.stderr, "E625")
        assert f"mine/records/{name}" in said
    typed(said, place)
    assert energybench("report", "mine", cwd=place).returncode == 0
    (place / "mine" / "records" / name).write_bytes(mine)
    assert energybench("report", "mine", cwd=place).returncode == 0


@fault("record of another run")
def test_a_run_that_works_ends_where_another_s_record_or_run_json_is_put_in(place: Path) -> None:
    running = held_at(place, HELD)
    before, (folder,) = records(place), runs(place)
    own = (folder / "run.json").read_bytes()
    changed = disturb.record_of_another_run(folder, place, CHANCE)
    assert "b0-i99-stranger.json" in ended(place, running, "E625")
    changed.undo()
    running = held_at(place, ORDER[-1].replace("-i0-", "-i1-"))
    content = json.loads((folder / "run.json").read_text())
    content = {key: value for key, value in content.items() if key != "seal"} | {"run_identity": "0" * 32}
    other = json.dumps(with_seal(content))
    (folder / "run.json").write_text(other)
    assert "run.json" in ended(place, running, "E625")
    assert (folder / "run.json").read_text() == other
    (folder / "run.json").write_bytes(own)
    assert set(before) < set(records(place))


@fault("foreign page")
def test_a_report_of_somebody_else_s_is_told_before_anything_runs(place: Path) -> None:
    (place / "there").mkdir()
    (place / "there" / "report.md").write_text("# My thesis\n")
    refused = run(place, "--out", "there")
    assert refused.returncode == 2
    assert "report.md" in told(refused.stderr, "E632")
    assert sorted(file.name for file in (place / "there").iterdir()) == ["report.md"]
    assert (place / "there" / "report.md").read_text() == "# My thesis\n"
