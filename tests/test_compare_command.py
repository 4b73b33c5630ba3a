"""`energybench compare` as it is typed: what it refuses, what it says, how it ends."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs_on_disk import settings, written
from synthetic import GPU, Flag, Run

from energybench.cli import main


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        return " ".join(self.out.split())


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`energybench compare ...` in a folder of its own, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["energybench", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


def make(seed: int, **truth: Any) -> Run:
    return Run(blocks=5, noise=0.005, seed=seed).method("it", **{"time": 0.6} | truth)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """BASE; the same again; twice a third dearer; once dearer and then not."""
    found = {"base": make(1), "same": make(2), "worse": make(3, time=0.8), "worse2": make(4, time=0.8), "fine": make(5)}
    return {name: written(tmp_path / name, run) for name, run in found.items()}


# ── savings and a rerun ───────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_repeats_base_passes_and_says_that_nothing_got_worse(typed: Any, runs: dict[str, Path]) -> None:
    ended = typed("base", "same")
    assert ended.code == 0
    assert "Nothing got worse: 3 held." in ended.told  # two cells' counts, one saving
    assert ended.err == ""


def test_one_bad_run_is_suspected_and_fails_nobody_but_strictly(typed: Any, runs: dict[str, Path]) -> None:
    ended = typed("base", "worse")
    assert ended.code == 0
    assert "Suspected: 1 comparison worse than BASE in one run, which is no regression yet." in ended.told
    assert "energybench compare base worse --rerun HEAD2" in ended.told
    assert typed("base", "worse", "--strict").code == 4


def test_what_the_rerun_finds_again_is_a_regression(typed: Any, runs: dict[str, Path]) -> None:
    ended = typed("base", "worse", "--rerun", "worse2")
    assert ended.code == 1
    assert "Regression: 1 comparison worse than BASE, found again in the rerun." in ended.told
    assert "saved 40" in ended.told
    assert re.search(r"now (19|20)\.\d %", ended.told)
    assert typed("base", "worse", "--rerun", "worse2", "--rerun-base", "same").code == 1


def test_what_the_rerun_does_not_find_is_not_confirmed(typed: Any, runs: dict[str, Path]) -> None:
    ended = typed("base", "worse", "--rerun", "fine")
    assert ended.code == 0
    assert "Not confirmed" in ended.told
    assert typed("base", "worse", "--rerun", "fine", "--strict").code == 4


@pytest.mark.parametrize(("again", "more"), [("worse", []), ("worse2", ["--rerun-base", "base"])])
def test_a_rerun_that_is_a_copy_confirms_nothing_and_is_refused(
    typed: Any, runs: dict[str, Path], again: str, more: list[str]
) -> None:
    ended = typed("base", "worse", "--rerun", again, *more)
    assert ended.code == 2
    assert "error[E634]" in ended.err


def test_base_against_itself_is_allowed_and_said(typed: Any, runs: dict[str, Path]) -> None:
    ended = typed("base", "base")
    assert ended.code == 0
    assert "records of the same trials" in ended.told


def test_settings_that_move_a_saving_are_refused_with_the_key_and_both_values(typed: Any, tmp_path: Path) -> None:
    base = make(1)
    changed = settings(base)
    changed["workload"] = [changed["workload"][0] | {"train": {"epochs": 3, "lr": 0.1}}]
    written(tmp_path / "base", base)
    written(tmp_path / "head", make(2), resolved=changed)
    ended = typed("base", "head")
    assert ended.code == 2
    assert "error[E630]" in ended.err
    assert "workload cnn-digits: train.epochs: 6, then 3" in ended.err


def test_more_blocks_other_requirements_and_a_setting_that_an_old_version_did_not_know_are_alike(
    typed: Any, tmp_path: Path
) -> None:
    old, new = make(1), make(2)
    known = settings(new, trials={"seed": 2026, "threads": 1, "blocks_max": 20})
    known["workload"] = [
        known["workload"][0]
        | {"target": None, "train": {"epochs": 6, "lr": 0.1, "activation": None, "milestones": [], "clip": 0}}
    ]
    written(tmp_path / "old", old)
    written(tmp_path / "new", new, resolved=known)
    assert typed("old", "new").code == 0


def test_another_seed_leaves_counts_out_with_a_note_unless_they_were_asked_for(typed: Any, tmp_path: Path) -> None:
    written(tmp_path / "base", make(1))
    written(tmp_path / "head", make(2), resolved=settings(make(2), trials={"seed": 9, "threads": 1}))
    ended = typed("base", "head")
    assert ended.code == 0
    assert "counts are left out" in ended.told
    assert "Savings" in ended.out
    assert typed("base", "head", "--level", "counts").code == 2


def test_another_machine_is_fine_for_savings_and_refused_for_seconds(typed: Any, tmp_path: Path) -> None:
    written(tmp_path / "base", make(1), machine={"cpu": "One", "torch": "2.11.0"})
    written(tmp_path / "head", make(2), machine={"cpu": "Other", "torch": "2.11.0"})
    ended = typed("base", "head", "--level", "savings")
    assert ended.code == 0
    assert "cpu: One, then Other" in ended.told
    ended = typed("base", "head", "--level", "absolute")
    assert ended.code == 5
    assert "error[E501]" in ended.err
    assert "cpu: One, then Other" in ended.err


@pytest.mark.parametrize("fact", ["driver", "power_limit_w", "ecc"])
def test_a_cards_driver_and_power_limit_are_part_of_its_device(typed: Any, tmp_path: Path, fact: str) -> None:
    card = {"name": "H100", "driver": "570.1", "power_limit_w": 700.0, "ecc": True}

    def on_a_card(seed: int, **changes: Any) -> Run:
        run = make(seed)
        run.sensors = (GPU,)
        for label in ("baseline", "twin", "it"):
            for block in range(5):
                run.change(label, block, device="GPU-1", environment={"gpus": {"GPU-1": card | changes}})
        return run

    written(tmp_path / "base", on_a_card(1))
    written(tmp_path / "like", on_a_card(2))
    written(tmp_path / "other", on_a_card(3, **{fact: 350.0}))
    assert typed("base", "like", "--level", "absolute").code == 0
    ended = typed("base", "other", "--level", "absolute")
    assert ended.code == 5
    assert f"card's {fact}" in ended.err


def test_absolute_seconds_on_one_device_find_a_loss_that_savings_cannot_see(typed: Any, tmp_path: Path) -> None:
    """Plain training and the method both become dearer: the saving is the same, the machine hour is not."""
    slow = [make(3), make(4)]
    for run in slow:
        run.truths = [type(t)(**{**_fields(t), "time": t.time * 1.3}) for t in run.truths]
    for name, run in {"base": make(1), "head": slow[0], "head2": slow[1]}.items():
        written(tmp_path / name, run)
    assert typed("base", "head", "--level", "savings").code == 0
    ended = typed("base", "head", "--level", "absolute", "--rerun", "head2")
    assert ended.code == 1
    assert "baseline takes 13" in ended.told


def _fields(truth: Any) -> dict[str, Any]:
    return {name: getattr(truth, name) for name in truth.__dataclass_fields__}


# ── counts and golden files ───────────────────────────────────────────────────────────────────────────────────


def test_golden_counts_are_written_held_broken_and_accepted_again(typed: Any, tmp_path: Path) -> None:
    written(tmp_path / "a", make(1, flop=0.5))
    written(tmp_path / "b", make(2, flop=0.6))
    missing = typed("golden.json", "a")
    assert missing.code == 2
    assert "--accept" in missing.err
    first = typed("golden.json", "a", "--accept")
    assert first.code == 0
    assert "golden.json written" in first.told
    assert typed("golden.json", "a").code == 0
    broken = typed("golden.json", "b")
    assert broken.code == 1
    assert "energybench compare golden.json b --accept" in broken.told
    assert "1,500,000,000,000" in broken.told
    assert "+20.0 %" in broken.told
    again = typed("golden.json", "b", "--accept")
    assert again.code == 0
    assert "+20.0 %" in again.told  # what changed is said
    assert typed("golden.json", "b").code == 0
    assert typed("golden.json", "a").code == 1


def test_savings_of_a_file_a_rerun_of_counts_and_accepting_into_a_folder_are_refused(
    typed: Any, runs: dict[str, Path]
) -> None:
    assert typed("golden.json", "base", "--accept").code == 0
    for arguments in (
        ("base", "--level", "savings"),
        ("base", "--rerun", "same"),
        ("golden.json", "base", "--level", "savings"),
        ("golden.json", "base", "--rerun", "same"),
        ("base", "same", "--accept"),
        ("base", "same", "--rerun-base", "fine"),
    ):
        ended = typed(*arguments)
        assert ended.code == 2, arguments
        assert "error[E633]" in ended.err
        assert "hint:" in ended.err


# ── requirements ──────────────────────────────────────────────────────────────────────────────────────────────


def asks(least: float) -> dict[str, Any]:
    require = {"workload": "*", "method": "it", "saves_at_least": least, "of": None, "verdict": [], "never": []}
    return settings(make(1), require=[require])


def test_head_alone_is_held_against_what_its_own_suite_requires(typed: Any, tmp_path: Path) -> None:
    written(tmp_path / "easy", make(1), resolved=asks(0.3))
    written(tmp_path / "hard", make(2), resolved=asks(0.5))
    written(tmp_path / "near", make(3), resolved=asks(0.4))
    assert typed("easy").code == 0
    ended = typed("hard")
    assert ended.code == 1
    assert "Not met: 1 requirement of the suite." in ended.told
    assert "saves at least 50.0 % of the time" in ended.told
    assert (typed("near").code, typed("near", "--strict").code) == (0, 4)
    assert typed("easy", "hard").code == 1  # with BASE too, HEAD's requirements are held
    assert typed("hard", "easy").code == 0


def test_a_run_that_requires_nothing_needs_a_base(typed: Any, runs: dict[str, Path]) -> None:
    ended = typed("base")
    assert ended.code == 2
    assert "error[E631]" in ended.err


# ── how it is told ────────────────────────────────────────────────────────────────────────────────────────────


def test_json_holds_every_finding_and_the_exit_code(typed: Any, runs: dict[str, Path]) -> None:
    found = json.loads(typed("base", "worse", "--strict", "--json").out)
    assert found["exit_code"] == 4
    (saving,) = [f for f in found["findings"] if f["level"] == "savings"]
    assert saving["outcome"] == "suspected"
    assert saving["change_rel"] == pytest.approx(0.8 / 0.6 - 1, abs=0.02)
    assert saving["low_rel"] < saving["change_rel"] < saving["high_rel"]
    assert found["noise"] == 0.01


@pytest.mark.parametrize("columns", ["40", "60", "80", "120", "200"])
def test_no_line_is_wider_than_the_terminal_and_no_figure_is_cropped(
    typed: Any, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ended = typed("base", "worse")
    assert all(len(line) <= int(columns) for line in ended.out.splitlines())
    assert "…" not in ended.out
    assert "33." in ended.out
    assert "suspected" in ended.out


def test_typing_mistakes_name_what_was_meant(typed: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    written(tmp_path / "folder" / "inner", make(9))
    for arguments, says in (
        (("basee", "same"), "did you mean 'base'?"),
        (("folder", "same"), "name one: folder/inner"),
        (("base", "same", "--to", "junitt=x.xml"), "did you mean 'junit'?"),
        (("base", "same", "--to", "junit"), "--to junit=FILE"),
        ((), "Name BASE and HEAD"),
        (("base", "same", "fine"), "Name BASE and HEAD"),
        (("--history", "base", "--strict"), "--history"),
        (("base", "same", "--level", "saving"), "savings"),
    ):
        ended = typed(*arguments)
        assert ended.code == 2, arguments
        assert says in ended.err, ended.err
        assert "Traceback" not in ended.err


# ── for build servers ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_step_summary_is_added_to_and_never_overwritten(
    typed: Any, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "summary.md"
    page.write_text("# What was there\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    typed("base", "worse")
    typed("base", "same")
    text = page.read_text()
    assert text.startswith("# What was there\n")
    assert text.count("## energybench: synthetic") == 2
    assert "**Suspected: 1 comparison" in text
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "folder.md"))
    ended = typed("base", "same")
    assert ended.code == 0
    assert "GITHUB_STEP_SUMMARY" in ended.err


def test_formats_are_written_beside_the_table_and_one_that_cannot_be_is_told(typed: Any, runs: dict[str, Path]) -> None:
    ended = typed("base", "same", "--to", "junit=out/j.xml", "--to", "markdown=m.md", "--to", "pytest-benchmark=p.json")
    assert ended.code == 0
    assert all(Path(name).exists() for name in ("out/j.xml", "m.md", "p.json"))
    assert typed("golden.json", "base", "--accept").code == 0
    ended = typed("base", "golden.json", "--to", "pytest-benchmark=p2.json")
    assert ended.code == 2
    assert "error[E633]" in ended.err
    ended = typed("base", "same", "--to", "junit=base/run.json/x.xml")
    assert ended.code == 2
    assert "error[E620]" in ended.err


def test_the_levels_and_formats_of_the_help_are_those_that_exist() -> None:
    from energybench.cli import gating
    from energybench.gate import ci_formats, compare_runs

    assert gating.LEVELS == compare_runs.LEVELS
    assert gating.FORMATS == ci_formats.FORMATS


def test_absolute_figures_that_a_flag_strikes_cannot_be_told(typed: Any, tmp_path: Path) -> None:
    """Another process on the card took its share of HEAD's joules: that is no cost of the method."""
    head = make(3, time=0.8)
    for block in range(5):
        head.change("it", block, flags=[Flag(code="foreign_process", detail="GPU-1: process 7")])
    written(tmp_path / "base", make(1)), written(tmp_path / "head", head)
    found = json.loads(typed("base", "head", "--level", "absolute", "--json").out)["findings"]
    outcomes = {each["method"]: each for each in found}
    assert outcomes["it"]["outcome"] == "cannot tell"
    assert "Another process" in outcomes["it"]["because"]
    assert outcomes["baseline"]["outcome"] in ("held", "undecided")


def test_absolute_figures_of_mixed_devices_are_never_averaged(typed: Any, tmp_path: Path) -> None:
    """Two cards in either folder: the same two on both sides, and yet no one device to compare."""
    for name, seed, time in (("base", 1, 0.6), ("head", 2, 0.8)):
        run = make(seed, time=time)
        for block in range(5):
            for label in ("baseline", "twin", "it"):
                run.change(label, block, device=f"GPU-{block % 2}")
        written(tmp_path / name, run)
    found = json.loads(typed("base", "head", "--level", "absolute", "--json").out)["findings"]
    assert {each["outcome"] for each in found} == {"cannot tell"}
    assert all("different devices" in each["because"] for each in found)
