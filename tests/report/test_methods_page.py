"""docs/methods.md: every method with what was promised, counted, measured and held, from its card and from reports."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from synthetic import GPU, Run, Truth

from energybench.cli.command_line import app
from energybench.records.record import Claim
from energybench.report import measured_cells, methods_page, pages
from energybench.train.discovery import MethodCard, cards

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runs_on_disk import put, settings, written

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def card(name: str, text: str = "") -> MethodCard:
    text = text or f"{name}: it does what {name} does.\n\nPromises 0 %. Composes with everything."
    return MethodCard(name, "./methods", "", text.split("\n\n")[0], text, ())


def page(root: Path, names: Sequence[str] = ("half", "slow")) -> str:
    """Of the runs below a folder and of methods with these names."""
    runs = measured_cells.read(pages.runs(root), lambda text: None)
    return methods_page.markdown([card(name) for name in names], runs, root / "docs" / "methods.md", root)


def sections(text: str) -> dict[str, str]:
    found = re.findall(r"^##+ ([^\n]+)\n(.*?)(?=^##|\Z)", text, re.M | re.S)
    return {re.sub(r"\[(.+?)\]\(.*\)", r"\1", title).replace("\\", ""): body for title, body in found}


def rows(text: str) -> list[str]:
    """The rows of the tables in a text, without their heads."""
    lines = text.splitlines()
    rules = {at for at, line in enumerate(lines) if re.fullmatch(r"\|( -+:? \|)+", line)}
    return [line for at, line in enumerate(lines) if line.startswith("|") and at not in rules and at + 1 not in rules]


def figures(text: str) -> list[str]:
    """What reads like a saving, 41 % [16, 59], struck or not."""
    plain = text.replace("\\", "").replace("\u00a0", " ")
    return re.findall(r"−?\d+(?:\.\d+)? % \[[^\]]+\]", plain)


def one(folder: Path, *truths: Truth, day: int = 1, run: Run | None = None, **run_file: Any) -> Path:
    """A finished run whose three blocks all say the truth."""
    run = run or Run()
    run.truths.extend(truths)
    return written(folder, run, day=day, **({"finished": True} | run_file))


# ── the page that is committed ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made() -> str:
    own = [each for each in cards(ROOT) if not each.package]
    runs = measured_cells.read(pages.runs(ROOT / "reports"), lambda text: None)
    return methods_page.markdown(own, runs, ROOT / "docs" / "methods.md", ROOT)


def test_the_committed_page_is_what_cards_and_reports_give(made: str) -> None:
    """After a new method, card or report: energybench list methods --markdown docs/methods.md"""
    assert made == COMMITTED


def test_every_method_stands_on_the_page_with_a_link_to_its_file(made: str) -> None:
    names = sorted(path.stem for path in (ROOT / "methods").glob("[!_]*.py"))
    found = re.findall(r"^### \[(.+?)\]\(\.\./methods/(\w+)\.py\)$", made, re.M)
    assert [file for _, file in found] == names
    assert [title.replace("\\", "") for title, _ in found] == names
    assert [re.findall(r"#(\w+)\)", row)[0] for row in rows(sections(made)["All methods"])] == names


def test_every_figure_of_a_row_stands_in_a_report_that_the_row_links_to(made: str) -> None:
    reports: dict[str, set[str]] = {}
    told = 0
    for row in rows(made):
        linked = re.findall(r"\]\(\.\./(reports/[^)]+/report\.md)\)", row)
        for name in linked:
            if name not in reports:
                reports[name] = set(figures((ROOT / name).read_text(encoding="utf-8")))
        of_row = set(figures(row))
        told += len(of_row)
        assert of_row <= set().union(*(reports[name] for name in linked)), row
    assert told > 0


def test_no_word_of_a_card_or_a_record_opens_a_cell_of_its_own(made: str) -> None:
    head = 0
    for line in made.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line)))
        if line.startswith("|"):
            head = head or cells
            assert cells == head, line
        else:
            head = 0


# ── what saves energy? ────────────────────────────────────────────────────────────────────────────────────────────────


def test_savings_stand_at_the_top_the_largest_first_and_costs_by_method_below_them(tmp_path: Path) -> None:
    one(tmp_path / "r", Truth("third", time=2 / 3), Truth("half", time=0.5), Truth("slow", time=1.25))
    top = sections(page(tmp_path, ("half", "slow", "third")))["What saves energy?"]
    half, third, slow = rows(top)
    assert half.startswith("| 50.0 % ")
    assert "[half](#half)" in half
    assert third.startswith("| 33.3 % ")
    assert "| [slow](#slow) | slower | 1 of 1 | [−25" in slow
    assert "](../r/report.md)" in slow
    assert "cnn, digits" in half
    assert "held: accuracy 0.0 pp" in half


def test_a_method_is_faster_without_saving_where_quality_is_lost(tmp_path: Path) -> None:
    one(tmp_path / "r", Truth("half", time=0.5, quality=-0.1), run=Run(quality_noise=0.0001))
    top = sections(page(tmp_path))["What saves energy?"]
    assert methods_page.NO_SAVING in top
    assert [row.split(" | ")[1] for row in rows(top)] == ["faster, quality lost"]


def test_one_block_decides_nothing(tmp_path: Path) -> None:
    one(tmp_path / "r", Truth("half", time=0.5), run=Run(blocks=1))
    top = sections(page(tmp_path))["What saves energy?"]
    assert methods_page.NO_SAVING in top
    assert not rows(top)


@pytest.mark.parametrize("sensors", [(GPU,), ()])
def test_energy_is_told_where_a_sensor_measured_it_and_time_decides_elsewhere(
    tmp_path: Path, sensors: tuple[tuple[str, str], ...]
) -> None:
    one(tmp_path / "r", Truth("half", time=0.5, energy=0.75), run=Run(sensors=sensors))
    text = page(tmp_path)
    (row,) = rows(sections(text)["half"])
    if sensors:
        assert re.search(r"\| 25\.\d % \\\[.*\\\] energy \(gpu\) \| \*\*saves\*\* \|", row)
        assert methods_page.SOME_ENERGY in text
        assert "| measured: gpu |" in sections(text)[methods_page.PLACES]
    else:
        assert re.search(r"\| 50\.\d % \\\[.*\\\] \| \*\*faster\*\* \|", row)
        assert "energy (" not in row
        assert methods_page.NO_ENERGY in text
        assert "| – |" in sections(text)[methods_page.PLACES]


def test_modelled_energy_is_said_to_be_that(tmp_path: Path) -> None:
    one(tmp_path / "r", Truth("half", time=0.5, energy=0.1))
    text = page(tmp_path)
    assert methods_page.NO_ENERGY in text
    assert "| modelled |" in sections(text)[methods_page.PLACES]
    assert "90" not in sections(text)["half"]


def test_a_saving_is_held_against_training_as_much_less(tmp_path: Path) -> None:
    run = Run()
    run.method("half", time=0.5).control("half", time=0.5).method("free", time=0.5)
    one(tmp_path / "r", run=run)
    found = {
        re.findall(r"#(\w+)", row)[0]: row
        for row in rows(sections(page(tmp_path, ("half", "free")))["What saves energy?"])
    }
    assert "| not proven better |" in found["half"]
    assert "| – |" in found["free"]


# ── a row for each method and workload, of the newest run ─────────────────────────────────────────────────────────────


def test_a_method_without_a_run_is_listed_as_not_yet_measured(tmp_path: Path) -> None:
    one(tmp_path / "r", Truth("half", time=0.5))
    found = sections(page(tmp_path))
    assert "Not yet measured here" in found["slow"]
    assert rows(found["slow"]) == []
    assert f"| [slow](#slow) | 0 % | {methods_page.NOT_YET} |" in found["All methods"]
    assert "| [half](#half) | 0 % | 1 faster |" in found["All methods"]


def test_the_newest_run_of_a_suite_counts_and_a_marked_one_only_where_there_is_no_other(tmp_path: Path) -> None:
    one(tmp_path / "a", Truth("half", time=0.8), day=2)
    one(tmp_path / "b", Truth("half", time=0.5), day=1)
    one(tmp_path / "c", Truth("half", time=0.4), day=3, run=Run(stamp=["quick"]))
    one(tmp_path / "d", Truth("half", time=0.6), day=4, finished=False)
    one(tmp_path / "e", Truth("half", time=0.9), day=1, suite="other", run=Run(stamp=["quick"]))
    other, synthetic = rows(sections(page(tmp_path))["half"])
    assert "[synthetic](../a/report.md): cnn-digits" in synthetic
    assert "| 20.0 % " in synthetic
    assert "[other](../e/report.md) (quick): cnn-digits" in other


def test_another_device_has_rows_of_its_own(tmp_path: Path) -> None:
    for number, cpu in enumerate(("Imaginary 2-core", "Imaginary 4-core")):
        machine = {"cpu": cpu, "cores": 2 * number + 2}
        one(tmp_path / str(number), Truth("half", time=0.5), run=Run(machine=machine, host=None))
    found = rows(sections(page(tmp_path))["half"])
    assert [re.findall(r"Imaginary \d-core, \d cores", row) for row in found] == [
        ["Imaginary 2-core, 2 cores"],
        ["Imaginary 4-core, 4 cores"],
    ]


def test_claim_and_count_stand_beside_the_measurement_with_their_source(tmp_path: Path) -> None:
    claim = Claim(saving_rel=0.6, of="backward", source="Somebody 2020, Table 1")
    one(tmp_path / "r", Truth("half", time=0.9, flop=0.75, claim=claim))
    found = sections(page(tmp_path))["half"]
    assert "| 40.0 % | 25.0 % | 10.0 % " in rows(found)[0]  # the backward is two thirds of plain training
    assert "Somebody 2020, Table 1 (of the backward)" in found


def test_a_stack_is_no_one_methods_and_is_named_in_full(tmp_path: Path) -> None:
    run = Run().method("recipe", time=0.5)
    meta, trials, counting_runs = run.records()
    stack = [{"use": "outer", "name": "outer", "parameters": {"rate": 0.5}}, {"use": "inner", "name": "inner"}]
    cells = [c.model_copy(update={"stack": stack}) if c.method == "recipe" else c for c in meta.cells]
    meta = meta.model_copy(update={"cells": cells, "finished": True, "resolved": settings(run)})
    put(tmp_path / "r", meta, trials, counting_runs)
    found = sections(page(tmp_path, ("inner", "outer")))
    (row,) = rows(found[methods_page.STACKS])
    assert row.startswith("| recipe: outer\\[rate=0.5\\] + inner | ")
    assert rows(found["inner"]) == rows(found["outer"]) == []
    assert "](#several-methods-at-once)" in found["What saves energy?"]


def test_methods_that_only_a_suite_knows_are_listed_last(tmp_path: Path) -> None:
    one(tmp_path / "r", Truth("half", time=0.5), Truth("b|b", time=0.5))
    found = sections(page(tmp_path, ("half",)))
    (row,) = rows(found[methods_page.OTHERS])
    assert row.startswith("| b&#124;b | ")
    assert "[b&#124;b](#other-methods)" in found["What saves energy?"]


def test_a_run_that_cannot_be_read_is_said_and_left_out(tmp_path: Path) -> None:
    one(tmp_path / "good", Truth("half", time=0.5))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{", encoding="utf-8")
    told: list[str] = []
    runs = measured_cells.read(pages.runs(tmp_path), told.append)
    assert [run.folder.name for run in runs] == ["good"]
    assert len(told) == 1
    assert "bad" in told[0]


# ── cards ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("m: it.\n\nPaper: A et al. 2020, Eq. 3. Promises 0 %: a pass\nmore. Composes with all.", "0 %: a pass more"),
        ("m: it.\n\nPromises 1.5 % (Eq. 2), no more.\nOwns `update`.", "1.5 % (Eq. 2), no more"),
        ("m: it.\n\nIt promises less memory.", "less memory"),
        ("m: it.\n\nPromises no dW. dX is needed.", "no dW"),
        ("m: it.\n\nPromises, of A et al. 2020 (cf. Eq. 2), half. Costs more.", "of A et al. 2020 (cf. Eq. 2), half"),
        ("m: it.\n\nComposes with all.", ""),
    ],
)
def test_what_a_card_promises_is_its_sentence(text: str, said: str) -> None:
    assert methods_page.promise(card("m", text)) == said


def test_every_shipped_card_says_what_its_method_promises() -> None:
    for each in cards(ROOT):
        assert each.package or methods_page.promise(each), f"{each.name}: no sentence with 'Promises'"


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def invoke(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["list", *map(str, arguments)])
    return result.exit_code, result.output + str(result.exception or "")


def test_the_command_writes_the_page_again_and_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one(tmp_path / "reports" / "s" / "r", Truth("half", time=0.5))
    (tmp_path / "methods").mkdir()
    source = '"""half: halves.\n\nPromises 50 %. Composes with all."""\n'
    (tmp_path / "methods" / "half.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert invoke("methods", "--markdown", "page.md")[0] == 0
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "### [half](methods/half.py)\n\nHalves.\n\nPromises 50 %.\n" in text
    assert "[synthetic](reports/s/r/report.md): cnn-digits" in text
    assert invoke("methods", "--markdown", "page.md", "--reports", "reports/s")[0] == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text
    (tmp_path / "mine.md").write_text("# Mine\n", encoding="utf-8")
    assert invoke("methods", "--markdown", "mine.md")[0] != 0
    assert (tmp_path / "mine.md").read_text(encoding="utf-8") == "# Mine\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("methods", "--reports", "."), "--reports is about --markdown"),
        (("--markdown", "page.md"), "list methods --markdown"),
        (("suites", "--markdown", "page.md"), "list methods --markdown"),
        (("methods", "--markdown", "page.md", "--reports", "."), "no run that can be read"),
    ],
)
def test_what_makes_no_page_is_refused_in_words(
    arguments: tuple[str, ...], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = invoke(*arguments)
    assert code != 0
    assert word in told
    assert not (tmp_path / "page.md").exists()
