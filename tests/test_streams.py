"""Where output cannot be written, or not as it is: the work goes on, and no exit code says what is not so."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment
from faults import fault
from hypothesis import given
from hypothesis import strategies as st
from run.tiny_runs import write_suite

from energybench.cli.common import FEWEST_COLUMNS, MOST_COLUMNS, terminal_environment
from energybench.records.reader import read_folder

ROOT = Path(__file__).resolve().parents[1]
RUN = str(min((ROOT / "reports" / "quick").iterdir()))
COMMAND = [sys.executable, "-P", "-m", "energybench"]
READING = {
    "list": ("list", "methods"),
    "report": ("report", RUN),
    "report --json": ("report", RUN, "--json"),
    "export": ("export", RUN, "--to", "csv"),
    "export parquet": ("export", RUN, "--to", "parquet"),
    "--help": ("--help",),
}
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "cp1252": {"PYTHONIOENCODING": "cp1252:strict"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def call(*words: str, to: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """`energybench WORDS`, with a shell's redirection; the exit code is the command's own, before any pipe."""
    script = f'"$@" {to}' if "|" not in to else f'{{ "$@"; echo "code $?" >&3; }} {to}'
    env = environment(PYTHONPATH=str(ROOT), **extra)
    read_end, write_end = os.pipe()
    try:
        wrapped = f"exec 3>&{write_end}; {script}"
        done = subprocess.run(
            ["bash", "-c", wrapped, "bash", *COMMAND, *words],
            env=env,
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=[write_end],
            check=False,
        )
    finally:
        os.close(write_end)
    with os.fdopen(read_end) as told:
        code = told.read().removeprefix("code ").strip()
    return subprocess.CompletedProcess(done.args, int(code or done.returncode), done.stdout, done.stderr)


@functools.cache
def plain(verb: str) -> subprocess.CompletedProcess[str]:
    """As anybody calls it."""
    return call(*READING[verb])


@fault("no reader")
@pytest.mark.parametrize("verb", READING)
def test_whoever_reads_no_more_ends_nothing_and_is_told_of(verb: str) -> None:
    done = call(*READING[verb], to="| true")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert done.stderr in ("", "note: whoever read the output has gone; the rest of it was not printed\n")


@fault("closed output")
@pytest.mark.parametrize("verb", READING)
def test_a_closed_output_is_an_error_where_nothing_else_is_made_and_never_a_regression(verb: str) -> None:
    done = call(*READING[verb], to=">&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error[E620]: cannot write the output" in done.stderr


@pytest.mark.parametrize("to", ["| head -1", ">&-"])
def test_a_run_that_nobody_reads_any_more_is_finished(tmp_path: Path, to: str) -> None:
    suite, out = write_suite(tmp_path), tmp_path / "out"
    done = call("run", str(suite), "--out", str(out), to=to)
    assert done.returncode == 0, done.stderr
    assert read_folder(out)[0].finished
    assert (out / "report.md").exists()


@pytest.mark.parametrize("verb", READING)
def test_a_full_disk_is_an_error_for_every_verb(verb: str) -> None:
    done = call(*READING[verb], to="> /dev/full")
    assert done.returncode == 2
    assert "error[E620]: cannot write the output: No space left on device" in done.stderr


@pytest.mark.parametrize("to", ["2>&-", "2> /dev/full", "<&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "code"),
    [(("list", "methods"), 0), (("report", "nowhere"), 2), (("chekc",), 2), (("check", "nothing"), 2)],
)
def test_messages_that_nobody_can_be_told_change_no_exit_code(to: str, words: tuple[str, ...], code: int) -> None:
    assert call(*words, to=to).returncode == code


def test_a_closed_stream_is_no_file_that_is_opened_later(tmp_path: Path) -> None:
    """The lowest number that is free is the next file's: what is printed would be written into it."""
    file = tmp_path / "trials.csv"
    done = call("export", RUN, "--to", "csv", "-o", str(file), to="<&- >&- 2>&-")
    assert done.returncode in (0, 2)  # the file is made; that nothing could be said of it may be told by the code
    assert file.read_text(encoding="utf-8") == call("export", RUN, "--to", "csv").stdout


@fault("plain signs")
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("verb", ["list", "report"])
def test_an_encoding_of_few_signs_gets_plain_ones(verb: str, encoding: str) -> None:
    done = call(*READING[verb], **ENCODINGS[encoding])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.parametrize("columns", ["0", "-5", "9", "1000000000000", "²", "many"])
def test_a_width_that_no_terminal_has_is_that_of_none(columns: str) -> None:
    as_usual, done = plain("report"), call("report", RUN, COLUMNS=columns, TERM="dumb")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == as_usual.stdout


@given(st.integers())
def test_a_size_within_reason_is_kept(columns: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("LINES", "x")
        environment = terminal_environment()
    assert ("COLUMNS" in environment) == (FEWEST_COLUMNS <= columns <= MOST_COLUMNS)
    assert "LINES" not in environment


STRICT = {
    "warnings": {"PYTHONWARNINGS": "error"},
    "development mode": {"PYTHONDEVMODE": "1"},
    "optimised": {"PYTHONOPTIMIZE": "2"},
    "safe path": {"PYTHONSAFEPATH": "1"},
    "nothing compiled": {"PYTHONDONTWRITEBYTECODE": "1"},
    "encoding warnings": {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "error::EncodingWarning"},
}


@fault("strict Python")
@pytest.mark.parametrize(("verb", "strict"), itertools.product(["report"], STRICT))
def test_how_strict_an_interpreter_is_changes_nothing(verb: str, strict: str) -> None:
    done = call(*READING[verb], **STRICT[strict])
    assert (done.returncode, done.stdout) == (0, plain(verb).stdout)


def test_a_mistake_of_ours_has_a_code_that_no_verdict_has(tmp_path: Path) -> None:
    """Python's own code for an error that nobody caught is 1, which is a regression here."""
    script = (
        "import sys\nimport energybench.cli.looking as looking\n"
        "def broken(*a, **k):\n    raise ZeroDivisionError('ours')\n"
        "looking.list_.callback = broken\nsys.argv = ['energybench', 'list']\n"
        "from energybench.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(PYTHONPATH=str(ROOT)), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 70
    assert "ZeroDivisionError: ours" in done.stderr
    assert "this is a mistake of energybench" in done.stderr
