"""What documents and committed reports say is what the records say."""

from __future__ import annotations

import ast
import importlib.util
import re
import types
from pathlib import Path
from urllib.parse import unquote

import pytest

from energybench.records.reader import read_folder
from energybench.report.pages import contents
from energybench.verdict.summary import summarise

ROOT = Path(__file__).resolve().parent.parent
RUNS = sorted(file.parent for file in (ROOT / "reports").glob("*/*/run.json"))


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_a_committed_report_and_its_figures_are_what_its_records_give(folder: Path) -> None:
    run, trials, counting_runs = read_folder(folder)
    files = [folder / "report.md", *(folder / "figures").glob("*")]
    committed = {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in files}
    assert committed == contents(summarise(run, trials, counting_runs), trials, folder)


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_a_committed_run_names_no_folder_of_the_machine_that_made_it(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            text = file.read_bytes().decode("utf-8", errors="ignore")  # a method's state is not text
            assert not re.search(r"/(home|root|tmp|work|opt|usr)/", text), file


def test_every_figure_of_the_readme_stands_in_the_report_it_links_to() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first_screen = readme[: readme.index("Papers promise")]
    linked = re.findall(r"\]\((reports/[^)]+/report\.md)\)", first_screen)
    assert linked, "the README's table must link to its report"
    report = (ROOT / linked[0]).read_text(encoding="utf-8")
    rows = [line for line in first_screen.splitlines() if line.startswith("| ") and "%" in line]
    assert rows
    for row in rows:
        for figure in re.findall(r"−?\d+(?:\.\d+)? (?:%|pp)(?: \[[^\]]+\])?", row.replace("\u00a0", " ")):
            plain = report.replace("\\[", "[").replace("\\]", "]").replace("\u00a0", " ")
            assert figure in plain, f"{figure!r} of {row!r} is not in {linked[0]}"


def figures(text: str) -> list[str]:
    """What reads like a saving: 41 % [16, 59]."""
    plain = text.replace("\\[", "[").replace("\\]", "]").replace("\u00a0", " ")
    return re.findall(r"−?\d+(?:\.\d+)? % \[[^\]]+\]", re.sub(r"\s+", " ", plain))


@pytest.mark.parametrize("file", sorted((ROOT / "methods").glob("*.py")), ids=lambda file: file.stem)
def test_every_measured_figure_of_a_card_stands_in_the_report_that_it_names(file: Path) -> None:
    card = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").strip()
    named = re.findall(r"reports/[\w.-]+/[\w.-]+", card)
    told = [figure for folder in named for figure in figures((ROOT / folder / "report.md").read_text("utf-8"))]
    assert set(figures(card)) <= set(told)


def test_every_figure_of_what_was_measured_so_far_stands_in_its_rows_report() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| [") and "/report.md)" in line]
    assert rows
    for row in rows:
        (linked,) = re.findall(r"\]\(\.\./(reports/[^)]+/report\.md)\)", row)
        assert set(figures(row)) <= set(figures((ROOT / linked).read_text(encoding="utf-8"))), row


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 900


def test_every_link_of_a_document_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("reports/*/*/report.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / unquote(target)).exists(), f"{document.name}: {target}"


def _anchor(heading: str) -> str:
    """As GitHub and mkdocs make it of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def test_every_anchor_of_a_link_between_documents_is_a_heading_there() -> None:
    headings = {
        document: {*map(_anchor, re.findall(r"^#+ (.+)$", text, re.M)), *re.findall(r' id="([^"]+)"', text)}
        for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
        for text in [document.read_text(encoding="utf-8")]
    }
    found = 0
    for document in headings:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", document.read_text(encoding="utf-8")):
            leads_to = (document.parent / target).resolve() if target else document
            if "://" not in target and leads_to in headings:
                found += 1
                assert anchor in headings[leads_to], f"{document.name}: {target}#{anchor}"
    assert found


def test_every_method_and_every_suite_parses_and_opens_with_its_card() -> None:
    from energybench.common.shipped import shipped
    from energybench.suite.suite import load
    from energybench.train.discovery import cards

    for card in cards(ROOT / "nowhere"):
        assert card.text.startswith(f"{card.name}: "), card.path
        assert "Compos" in card.text, card.path
    for path in shipped("suites").glob("*.toml"):
        assert load(path).workloads


def test_the_page_on_measurement_lists_every_flag_as_the_code_has_it() -> None:
    from energybench.verdict import flag_codes

    page = (ROOT / "docs" / "measurement.md").read_text(encoding="utf-8")
    listed = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5]
    rows = [f"| `{kind.code}` | {kind.severity} | {kind.of} | {kind.sentence} |" for kind in flag_codes.REGISTRY]
    assert [line for line in listed if line.split("`")[1] in flag_codes.KINDS] == rows


def test_the_suite_that_the_page_on_measurement_prints_is_one(tmp_path: Path) -> None:
    from energybench.suite.suite import load

    page = (ROOT / "docs" / "measurement.md").read_text(encoding="utf-8")
    printed = page.split("```toml\n[measure]")[1].split("```")[0]
    workload = """[[workload]]
name = "w"
model = { use = "cnn" }
data = { use = "digits", batch = 8 }
train = { epochs = 1, lr = 0.1 }
"""
    path = tmp_path / "s.toml"
    cooldown = re.search(r"`\[trials\] (cooldown = .*?)`", page)
    assert cooldown is not None
    path.write_text(f'schema = 1\nsuite = "s"\n{workload}[trials]\n{cooldown[1]}\n[measure]{printed}')
    suite = load(path)
    assert suite.measure.carbon is not None
    assert suite.trials.cooldown.below_c == 45


def runner_of_documents() -> types.ModuleType:
    """.ci/readme.py, which is no package."""
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_output_that_a_document_shows_must_have_been_printed_in_its_order() -> None:
    absent = runner_of_documents().absent
    assert absent("one  two\n\n… four", "one two\nthree\n four") == ""
    assert absent("second\nfirst", "first second") == "first"
    assert absent("saves … %", "saves 3 % of") == ""
    assert absent("a.b", "a-b") == "a.b"


def test_a_documents_blocks_run_in_one_folder_with_its_files_and_a_wrong_output_fails(tmp_path: Path) -> None:
    fence = "`" * 3
    text = (
        f"<!-- file: deep/word.txt -->\n{fence}toml\nsalt\n{fence}\n\n{fence}sh\ncat deep/word.txt\n{fence}\n\n"
        f"<!-- output -->\n{fence}text\nWORD\n{fence}\n\n<!-- not run: no reason -->\n{fence}sh\nfalse\n{fence}\n"
        f"{fence}python\nraise SystemExit\n{fence}\n"
    )
    run = runner_of_documents().run
    assert run("page", text.replace("WORD", "salt"), ROOT, tmp_path) == (1, 0)
    assert run("page", text.replace("WORD", "pepper"), ROOT, tmp_path) == (1, 1)


def test_documents_whose_commands_share_the_folder_of_reports_run_one_after_the_other() -> None:
    """Every other document may run beside them: it starts no run there and asks for no newest run."""
    found = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}
    sharing, beside = runner_of_documents().in_turns(texts)
    assert next(iter(sharing)) == "README.md"
    assert sharing.keys() | beside.keys() == texts.keys()
    for document, text in beside.items():
        own = "<!-- in a folder of its own -->" in text
        for block in runner_of_documents().BLOCK.finditer(text):
            if block["language"] != "sh" or block["kind"] == "not run" or "mktemp -d" in block["text"] or own:
                continue
            assert not re.search(r"make run|energybench (run|report|show)|reports/", block["text"]), document


def test_the_citation_names_this_version() -> None:
    import yaml

    from energybench.common.version import __version__

    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(found["version"]) == __version__
    assert {"cff-version", "message", "title", "authors"} <= found.keys()


def test_every_flag_that_the_threats_name_is_one() -> None:
    from energybench.verdict import flag_codes

    page = (ROOT / "docs" / "threats-to-validity.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", page)) & {kind.code for kind in flag_codes.REGISTRY}
    assert {"inert", "dead_layer", "estimate_gap", "data_wait"} <= named


def test_the_list_of_rooms_has_every_room_and_every_file_beside_them_in_the_order_that_is_held() -> None:
    from test_imports import FLOORS

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text[text.index("energybench/\n") : text.index("methods/ ")]
    listed = re.findall(r"^  (\S+?)(?:/|\.py) ", block, re.MULTILINE)
    package = ROOT / "energybench"
    there = {p.name.removesuffix(".py") for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert sorted(listed) == sorted(there), "one line a room"
    assert [name for name in FLOORS if name in listed] == listed


def test_files_that_contributing_says_one_touches_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| a new … |") : text.index("\n\n", text.index("| a new … |"))]
    told = ["method", "task", "model", "data set", "metric", "extra", "meter", "page", "flag", "key of a suite", "verb"]
    assert re.findall(r"^\| ([a-z ]+) \|", table, re.MULTILINE)[0:] == told
    for name in re.findall(r"`([\w/]+(?:\.py|\.md|/))`", table):
        if "NAME" not in name:
            assert (ROOT / name).exists() or (ROOT / "energybench" / name).exists(), name


def test_a_file_that_a_docstring_or_a_comment_names_is_there() -> None:
    """Modules moved once, and what is said of them must follow: every NAME.py in our own texts is one."""
    sources = [*(ROOT / "energybench").rglob("*.py"), *(ROOT / "methods").glob("*.py")]
    known = {path.name for path in [*sources, *(ROOT / "examples").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]}
    examples = {
        "my_method.py",
        "my.py",
        "file.py",
        "train.py",
        "NAME.py",
        "half.py",
        "mine.py",
        "model.py",
        "data.py",
        "x.py",
    }
    wrong = set()
    for path in sources:
        for name in re.findall(r"\b([a-z]\w*\.py)\b", path.read_text(encoding="utf-8")):
            if name not in known | examples:
                wrong.add(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


def test_the_page_on_methods_names_every_member_of_the_contract_and_links_to_where_it_stands() -> None:
    from energybench.train.interface import TaskInterface, TrainingRun
    from energybench.train.method import RENAMED, Method
    from energybench.train.method_check import DECLARATIONS

    page = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    contract = page[page.index("## The contract") :]
    named = set(re.findall(r"`(\w+)`", contract))
    for kind in (TrainingRun, TaskInterface, Method):
        members = {*vars(kind), *kind.__annotations__}
        public = {name for name in members if not name.startswith("_")}
        assert public <= named, f"{kind.__name__}: {sorted(public - named)}"
    assert {*DECLARATIONS, *RENAMED} <= named
    assert "(../energybench/train/method.py)" in contract
    assert "(../energybench/train/interface.py)" in contract


def test_the_page_on_tasks_names_every_member_that_a_task_has_beyond_a_method() -> None:
    from energybench.train.method import Task

    page = (ROOT / "docs" / "add-a-task.md").read_text(encoding="utf-8")
    rows = page[page.index("## What a task may define") :]
    members = {name for name in {*vars(Task), *Task.__annotations__} if not name.startswith("_")}
    assert members <= set(re.findall(r"`(\w+)`", rows))


def test_the_page_on_methods_names_every_code_that_is_told_of_one() -> None:
    source = "".join(
        (ROOT / "energybench" / "train" / f"{name}.py").read_text("utf-8") for name in ("method_check", "run")
    )
    page = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    assert set(re.findall(r'"(E3\d\d)"', source)) <= set(re.findall(r"^\| (E3\d\d) \|", page, re.MULTILINE))


def test_the_loop_that_the_page_on_methods_draws_is_the_one_of_the_contract() -> None:
    from energybench.train import method

    page = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    drawn = page[page.index("run\n└─ epoch") :]
    drawn = drawn[: drawn.index("\n```")]
    assert " ".join(drawn.split()) in " ".join((method.__doc__ or "").split())
