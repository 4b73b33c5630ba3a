"""What every verb writes: its own earlier output is replaced, anything else is refused and stays as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import energybench
from faults import fault
from hypothesis import given
from hypothesis import strategies as st

from energybench.cli.paired_commands_page import COMPARISON_KIND, RECORD_KIND
from energybench.cli.suite_page import KIND as SUITE_PAGE
from energybench.common.errors import UsageError
from energybench.common.outputs import Kind, json_kind, refuse_foreign, run_that_owns, write_output
from energybench.gate import ci_formats
from energybench.gate.golden_counts import KIND as GOLDEN
from energybench.papers.page import KIND as CLAIMS
from energybench.report.export import EMISSIONS
from energybench.report.export import KINDS as EXPORTS
from energybench.report.methods_page import KIND as METHODS_PAGE
from energybench.report.pages import HTML_KIND, PAGE_KIND
from energybench.report.site import PAGE_KIND as SITE
from energybench.windows.file import RECORD_KIND as WINDOWS

ROOT = Path(__file__).parents[1]
TRAINED = ROOT / "tests" / "old_records" / "schema-3" / "trained"
MEASURED = f"{sys.executable} -c pass"
MORE = {"model-card": ["--workload", "digits", "--method", "half"]}
SOMEBODY_S = b"suite,run\nmy own notes\n"

# What writes to a path, each with the words before it.
EXPORTED = {form: ["export", "run", "--to", form, *MORE.get(form, [])] for form in sorted(EXPORTS)}
GATED = {form: ["compare", "run", "run", "--to"] for form in ci_formats.FORMATS}
OUTPUTS: dict[str, list[str]] = {
    **EXPORTED,
    **GATED,
    "schema": ["schema", "--markdown", "{out}"],
    "methods": ["list", "methods", "--markdown", "{out}", "--reports", "."],
    "measure": ["measure", "-o", "{out}", "--", sys.executable, "-c", "pass"],
    "measure --vs": ["measure", "--vs", MEASURED, "--pairs", "2", "-o", "{out}", "--", sys.executable, "-c", "pass"],
    "accept": ["compare", "{out}", "run", "--accept"],
}


def words(name: str, out: Path | str) -> list[str]:
    found = OUTPUTS[name]
    if name in EXPORTED:
        return [*found, "-o", str(out)]
    if name in GATED:
        return [*found, f"{name}={out}"]
    return [word.format(out=out) for word in found]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    shutil.copytree(TRAINED, tmp_path / "run")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@fault("foreign output")
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_is_written_and_written_again_and_nothing_else_is_written_over(name: str, place: Path) -> None:
    run = contents(place / "run")
    for _ in range(2):
        done = energybench(*words(name, "out"), cwd=place)
        assert done.returncode in (0, 4), (done.stdout, done.stderr)  # 4: a comparison that is left undecided
        assert (place / "out").stat().st_size > 0
    (place / "mine").write_bytes(SOMEBODY_S)
    (place / "link").symlink_to("run/run.json")
    (place / "folder").symlink_to("run/records")
    for out in ("mine", "run/run.json", "run/records/b0-i0-digits.half.json", "run/records/new", "link", "folder/new"):
        done = energybench(*words(name, out), cwd=place)
        assert done.returncode == 2, (out, done.stdout, done.stderr)
        assert "error[E632]" in done.stderr, (out, done.stderr)
        assert out in done.stderr
    assert contents(place / "run") == run
    assert (place / "mine").read_bytes() == SOMEBODY_S
    assert not list(place.glob(".*.part"))


def test_the_page_of_claims_takes_the_place_of_itself_alone(place: Path) -> None:
    refuse_foreign(ROOT / "docs" / "claims.md", CLAIMS)
    (place / "mine").write_bytes(SOMEBODY_S)
    for out in ("mine", "run/run.json"):
        done = energybench("claims", "--markdown", out, cwd=place)
        assert done.returncode == 2
        assert "error[E632]" in done.stderr
    assert (place / "mine").read_bytes() == SOMEBODY_S


@pytest.mark.parametrize("name", ["csv", "junit", "markdown", "accept"])
def test_no_output_takes_the_place_of_another_kind(name: str, place: Path) -> None:
    others = {other: words(other, other) for other in ("csv", "junit", "markdown", "accept") if other != name}
    for other, line in others.items():
        assert energybench(*line, cwd=place).returncode in (0, 4)
        written = (place / other).read_bytes()
        done = energybench(*words(name, other), cwd=place)
        assert (done.returncode, (place / other).read_bytes()) == (2, written), done.stderr


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o137])
def test_the_mode_is_what_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    program = (
        f"import os; os.umask({mask}); from pathlib import Path; from energybench.common.outputs import *; "
        "kind = Kind('x', lambda content: True); [write_output(Path('out'), b'x', kind) for _ in range(2)]; "
        "from energybench.common.held_folder import HeldFolder; HeldFolder(Path('.')).write_bytes('page', b'x')"
    )
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {oct(0o666 & ~mask)}


EVERY_KIND = {**EXPORTS, **ci_formats.KINDS, "claims": CLAIMS, "accept": GOLDEN, "record=": WINDOWS, "site": SITE}
EVERY_KIND |= {
    "schema": SUITE_PAGE,
    "methods": METHODS_PAGE,
    "measure": RECORD_KIND,
    "measure --vs": COMPARISON_KIND,
    "page": PAGE_KIND,
    "html": HTML_KIND,
}
HEADS = [
    b"",
    b"\n",
    ",".join(EMISSIONS).encode(),
    b"timestamp,project_name\nx",
    b"suite,run,trial,workload,method",
    b"PAR1",
    b"---\nco2_eq_emissions:\n",
    b"{}",
    b"[]",
    b"[1]",
    b'{"workload": 1, "trial": 2, "benchmarks": [1], "windows": 3}',
    b"# ",
    b"\xff\x00",
]


@given(head=st.sampled_from(HEADS), rest=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
def test_no_kind_takes_anything_for_its_own_or_fails_at_it(head: bytes, rest: bytes) -> None:
    for name, kind in EVERY_KIND.items():
        assert not kind.is_ours(head + rest), name


OURS = Kind("a test", lambda content: content.startswith(b"ours"))


@given(content=st.binary(min_size=1, max_size=40).filter(lambda content: not content.startswith(b"ours")))
def test_whatever_does_not_look_like_the_kind_is_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("out") / "file"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="E632"):
        write_output(file, b"ours", OURS)
    assert file.read_bytes() == content


def test_an_empty_file_may_be_written_as_mktemp_makes_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_output(tmp_path / "file", b"ours", OURS)
    assert (tmp_path / "file").read_bytes() == b"ours"


def test_a_second_name_of_a_file_keeps_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"ours 1")
    os.link(tmp_path / "one", tmp_path / "other")
    write_output(tmp_path / "one", b"ours 2", OURS)
    assert (tmp_path / "other").read_bytes() == b"ours 1"


@pytest.mark.parametrize("content", [b"{", b"[]", b"1", b'"x"', b"{}", b"[" * 5000, b"\xff", b"null"])
def test_a_kind_of_json_is_asked_of_any_json_and_raises_nothing(content: bytes) -> None:
    assert not json_kind("x", lambda found: found["a"]["b"][0] == 1).is_ours(content)


@pytest.mark.parametrize("damaged", ["", "{", "[]", "x" * 100])
def test_what_belongs_to_a_damaged_run_is_never_written_over(damaged: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "records").mkdir(parents=True)
    (run / "run.json").write_text(damaged)
    owned = run_that_owns(run / "records" / "new.csv")
    assert owned == (None if damaged == "[]" else run.resolve())


@pytest.mark.parametrize("name", ["a.txt", "sub/a.txt", "records/a.txt", "run.json"])
def test_a_folder_that_is_no_run_s_owns_nothing(name: str, tmp_path: Path) -> None:
    assert run_that_owns(tmp_path / name) is None


def test_a_run_json_of_another_program_is_somebody_s_file_and_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "my own run"}')
    with pytest.raises(UsageError, match="E632"):
        refuse_foreign(tmp_path / "run.json", OURS)
