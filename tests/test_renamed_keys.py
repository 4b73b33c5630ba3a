"""Keys of a suite that have another name now: the old one is read, told once, and means what the new one does."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from command_line import energybench

from energybench.common.errors import EnergybenchError, Problem
from energybench.common.renamed import RenamedKeyWarning
from energybench.gate.comparable import settings_differ
from energybench.records.record import RunFile
from energybench.suite import renamed_keys
from energybench.suite.suite import Suite, load, schema_json

SUITE = """\
schema = 1
suite = "s"
{accept}
[[workload]]
name = "w"
model = {{ use = "cnn" }}
data = {{ use = "digits", batch = 16 }}
train = {{ epochs = 2, lr = 0.1 }}
[[method]]
use = "dropout"
[quick]
workload.train = {{ epochs = 1 }}
{quick}
"""


def suite_file(folder: Path, accept: str = "", quick: str = "") -> Path:
    path = folder / "s.toml"
    path.write_text(SUITE.format(accept=accept, quick=quick), encoding="utf-8")
    return path


def loaded(path: Path, **options: Any) -> tuple[Suite, list[str]]:
    """The suite, and what was said of old keys, without the folder."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        suite = load(path, **options)
    assert all(each.category is RenamedKeyWarning for each in caught)
    return suite, [str(each.message).replace(f"{path.parent}/", "") for each in caught]


def mistakes(path: Path, **options: Any) -> list[Problem]:
    with pytest.warns(RenamedKeyWarning), pytest.raises(EnergybenchError) as caught:
        load(path, **options)
    return caught.value.problems


# ── one name or the other ─────────────────────────────────────────────────────────────────────────────────────


def test_the_old_key_means_what_the_new_one_does_and_is_told_with_its_line(tmp_path: Path) -> None:
    new, silence = loaded(suite_file(tmp_path, '[accept]\nmargin = "3 %"'))
    assert silence == []
    old, said = loaded(suite_file(tmp_path, '[accept]\nnoise = "3 %"'))
    assert said == ["s.toml:4:1: accept.noise is called margin now"]
    assert old.digest_source() == new.digest_source()


@pytest.mark.parametrize("accept", ["accept.noise = '3 %'", "accept = { noise = '3 %' }", "[accept]\n'noise' = '3 %'"])
def test_however_the_table_is_written(accept: str, tmp_path: Path) -> None:
    suite, said = loaded(suite_file(tmp_path, accept))
    assert suite.accept.margin == 0.03
    assert len(said) == 1


@pytest.mark.parametrize(("base", "over"), [("noise", "margin"), ("margin", "noise"), ("noise", "noise")])
def test_of_the_suite_and_its_overlay_the_overlay_wins_under_either_name(base: str, over: str, tmp_path: Path) -> None:
    path = suite_file(tmp_path, f'[accept]\n{base} = "3 %"', f'accept.{over} = "4 %"')
    assert loaded(path)[0].accept.margin == 0.03
    suite, said = loaded(path, quick=True)
    assert suite.accept.margin == 0.04
    lines = [line for key, line in ((base, "s.toml:4:1"), (over, "s.toml:14:8")) if key == "noise"]
    assert said == [f"{', '.join(lines)}: accept.noise is called margin now"]


@pytest.mark.parametrize(("first", "last"), [("noise", "margin"), ("margin", "noise")])
def test_of_two_set_the_last_wins_under_either_name(first: str, last: str, tmp_path: Path) -> None:
    path = suite_file(tmp_path, '[accept]\nnoise = "3 %"')
    suite, said = loaded(path, overrides=[f"accept.{first}=4%", f"accept.{last}=5%"])
    assert suite.accept.margin == 0.05
    assert len(said) == 1
    assert "s.toml:4:1, --set accept.noise=" in said[0]


def test_a_renamed_key_of_a_table_that_is_extended_is_read_where_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the next renaming would be declared: in each of several tables, the child's own value before its parent's."""
    monkeypatch.setitem(renamed_keys.RENAMED, ("workload", "train", "rate"), "lr")
    child = '[[workload]]\nname = "c"\nextends = "w"\ntrain = { lr = 0.5 }\n[[workload]]\nname = "d"\nextends = "w"\n'
    path = suite_file(tmp_path)
    path.write_text(path.read_text().replace("lr = 0.1", "rate = 0.1") + child)
    suite, said = loaded(path, overrides=["workload[d].train.rate=0.7"])
    assert [workload.train.lr for workload in suite.workloads] == [0.1, 0.5, 0.7]
    assert len(said) == 1
    assert [w["train"]["rate"] for w in suite.digest_source()["workload"]] == [0.1, 0.5, 0.7]


# ── both, or a bad value ──────────────────────────────────────────────────────────────────────────────────────


def test_both_names_in_one_table_are_a_mistake_that_says_which_to_keep(tmp_path: Path) -> None:
    (problem,) = mistakes(suite_file(tmp_path, '[accept]\nmargin = "3 %"\nnoise = "3 %"'))
    assert (problem.code, problem.where.rpartition("/")[2]) == ("E202", "s.toml:5:1")
    assert problem.hint == "keep margin, take out noise"


def test_both_names_in_one_set_are_one_too(tmp_path: Path) -> None:
    text = 'accept={ margin = "3 %", noise = "3 %" }'
    (problem,) = mistakes(suite_file(tmp_path), overrides=[text])
    assert (problem.code, problem.where, problem.hint) == ("E206", f"--set {text}", "keep margin, take out noise")


def test_a_bad_value_is_told_at_the_line_of_the_old_key(tmp_path: Path) -> None:
    (problem,) = mistakes(suite_file(tmp_path, "[accept]\nnoise = 0.01"))
    assert (problem.code, problem.where.rpartition("/")[2]) == ("E204", "s.toml:4:1")
    assert "accept.margin: 0.01 has no unit" in problem.message


@pytest.mark.filterwarnings("ignore::energybench.common.renamed.RenamedKeyWarning")
@pytest.mark.parametrize("accept", ["accept = 3", "accept = [3]", "[[accept]]\nnoise = '1 %'"])
def test_what_is_no_table_is_told_as_such(accept: str, tmp_path: Path) -> None:
    with pytest.raises(EnergybenchError) as caught:
        load(suite_file(tmp_path, accept))
    assert [problem.code for problem in caught.value.problems] == ["E202"]


# ── what is written, and what it is compared with ─────────────────────────────────────────────────────────────


def test_the_resolved_settings_have_both_names_and_reading_them_leaves_the_new_one(tmp_path: Path) -> None:
    suite, _ = loaded(suite_file(tmp_path, '[accept]\nmargin = "3 %"'))
    settings = suite.digest_source()
    assert settings["accept"]["margin"] == settings["accept"]["noise"] == 0.03
    before = {key: value for key, value in settings["accept"].items() if key != "margin"}
    current = renamed_keys.with_new_keys(settings)
    assert renamed_keys.with_new_keys({**settings, "accept": before}) == current
    assert "noise" not in current["accept"]
    assert "noise" in settings["accept"]  # what is read is left as it is
    assert renamed_keys.with_old_keys(current) == settings
    with pytest.warns(DeprecationWarning, match="margin"):
        assert suite.accept.noise == 0.03  # type: ignore[attr-defined]


def run_of(accept: dict[str, Any]) -> RunFile:
    return RunFile(
        suite="s",
        run="r",
        digest="",
        suite_path="s.toml",
        suite_text="",
        resolved={"accept": accept},
        cells=[],
        blocks=1,
        machine={},
        data={},
    )


@pytest.mark.parametrize(
    ("base", "head", "differences"),
    [
        ({"noise": 0.01}, {"margin": 0.01, "noise": 0.01}, []),
        ({"margin": 0.01, "noise": 0.01}, {"margin": 0.01}, []),
        ({"noise": 0.5}, {"margin": 0.01, "noise": 0.01}, ["accept.margin: 0.5, then 0.01"]),
    ],
)
def test_a_run_of_before_differs_from_one_of_now_by_its_margin_not_by_the_name_of_it(
    base: dict[str, Any], head: dict[str, Any], differences: list[str]
) -> None:
    assert settings_differ(run_of(base), run_of(head)) == differences
    turned = [text.replace("0.5, then 0.01", "0.01, then 0.5") for text in differences]
    assert settings_differ(run_of(head), run_of(base)) == turned


def test_an_editor_takes_the_old_key_and_strikes_it_through() -> None:
    keys = schema_json()["$defs"]["AcceptTable"]["properties"]
    assert keys["noise"]["deprecated"] is True
    assert {key: keys["noise"][key] for key in ("type", "pattern")} == {
        key: keys["margin"][key] for key in ("type", "pattern")
    }


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_line_says_it_once_on_stderr_and_not_in_json(tmp_path: Path) -> None:
    suite_file(tmp_path, '[accept]\nnoise = "3 %"', 'accept.noise = "4 %"')
    done = energybench("check", "s.toml", "--quick", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "note: s.toml:4:1, s.toml:14:8: accept.noise is called margin now\n"
    assert "is called" not in done.stdout
    assert json.loads(done.stdout)["ok"] is True


def test_no_suite_that_is_shipped_has_an_old_key() -> None:
    for path in sorted((Path(__file__).parents[1] / "suites").glob("*.toml")):
        assert loaded(path)[1] == []
