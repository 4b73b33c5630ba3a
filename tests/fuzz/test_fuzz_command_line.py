"""Any words after `energybench`, and any verb on a folder that was tampered with: an exit code, never a traceback."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from fuzzing import TEXTS, Step, as_json, changed, harmless, hunt, mutations, steps_of, told
from hypothesis import strategies as st
from test_fuzz_records import runs

from energybench.cli import app
from energybench.common.errors import EnergybenchError
from energybench.gate import golden_counts

EXITS = {0, 1, 2, 3, 4, 5}


def invoke(arguments: list[str]) -> None:
    """As the console script does, in this process: our own errors, click's, an exit code; nothing else."""
    import click

    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = app(arguments, standalone_mode=False)
        except EnergybenchError as error:
            told(error, "1-6")
            code = error.exit_code
        except click.ClickException:
            code = 2
        except SystemExit as end:
            code = end.code
    assert (code or 0) in EXITS, code
    out.flush()
    harmless(out.buffer.getvalue().decode("utf-8"))  # type: ignore[attr-defined]
    assert "Traceback" not in err.getvalue()


# ── any words ─────────────────────────────────────────────────────────────────────────────────────────────────

VERBS = (
    "run",
    "check",
    "flops",
    "show",
    "report",
    "export",
    "list",
    "new",
    "doctor",
    "claims",
    "schema",
    "cell",
    "--help",
    "-h",
    "--version",
    "",
    "x",
    "--",
    "ru",
)
OPTIONS = (
    "--json",
    "--help",
    "--quick",
    "--no-user-code",
    "--set",
    "--device",
    "--out",
    "--new",
    "--until-decided",
    "--max-time",
    "--add-blocks",
    "--no-count",
    "--by",
    "--write",
    "--html",
    "--all",
    "--carbon",
    "--zones",
    "--to",
    "-o",
    "--workload",
    "--method",
    "--per",
    "--embodied",
    "--lifespan",
    "--markdown",
    "--x",
    "-",
    "--",
    "-1",
)
VALUES = (
    "missing.toml",
    "broken.toml",
    "invalid.toml",
    "empty",
    "pipe.toml",
    "run",
    "run/records",
    "run/run.json",
    "csv",
    "sci",
    "model-card",
    "module",
    "4h",
    "-3",
    "1e400",
    "nan",
    "FRA,XXX",
    "methods",
    "method",
    "suites",
    ".",
    "/",
    "a=b",
    "trials.blocks=3",
    "IN.json",
    "workload.train.epochs=2",
)


def _typeable(text: str) -> bool:
    """Whether a shell of this machine can hand it on."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


words = st.lists(st.sampled_from(OPTIONS) | st.sampled_from([*VALUES, *filter(_typeable, TEXTS)]), max_size=6)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which no suite can be run: those that are there are broken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.toml").write_text("schema = [")
    (tmp_path / "invalid.toml").write_text("schema = 1\nsuite = 3\n")
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("run", "same"):
        write_run(tmp_path / name, 0, {})
    golden_counts.write(tmp_path / "golden.json", golden_counts.read(tmp_path / "run"))
    return tmp_path


def early(verb: str, arguments: list[str]) -> list[str]:
    """Nothing that trains, calibrates or starts a child is asked for."""
    if verb in ("run", "check", "flops"):
        arguments = [word for word in arguments if word not in ("method",)]
        return [*arguments, "missing.toml"] if not any(word.endswith(".toml") for word in arguments) else arguments
    if verb == "doctor":
        return ["--help"] if "-3" not in arguments else ["--seconds", "-3", *arguments]
    if verb == "claims":  # counts every table of the papers
        return ["--no-such-option", *arguments]
    return arguments


def a_command_line(here: Path, *words: str) -> None:
    invoke(list(words))


@pytest.mark.soak
def test_any_command_line_ends_with_a_code(here: Path) -> None:
    hunt(
        "command lines",
        st.tuples(st.sampled_from(VERBS), words),
        a_command_line,
        lambda drawn: (drawn[0], *early(*drawn)),
        here=here,
    )


# ── any folder ────────────────────────────────────────────────────────────────────────────────────────────────


def write_run(folder: Path, number: int, changed: dict[int, str]) -> None:
    """The files of a run; those in `changed` hold another text."""
    for index, (kind, value) in enumerate(runs()[number]):
        name = "run.json" if kind == "run" else f"{kind}{index}.json"
        path = folder / {"run": "", "trial": "records", "witness": "witness"}[kind] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changed.get(index) or json.dumps(value), encoding="utf-8", errors="replace")


READING = (
    ["report", "run"],
    ["report", "run", "--json"],
    ["report", "run", "--carbon"],
    ["report", "run", "--carbon", "--json"],
    ["report", "run", "--zones", "FRA,USA"],
    ["report", "run", "same"],
    ["report", "run", "same", "--json"],
    ["show", "run"],
    ["export", "run", "--to", "csv"],
    ["export", "run", "--to", "emissions"],
    ["export", "run", "--to", "sci"],
    ["export", "run", "--to", "model-card", "--method", "half"],
    ["export", "run", "--to", "sci", "--embodied", "100", "--lifespan", "4", "--per", "sample"],
    ["export", "run", "--to", "parquet", "-o", "out.parquet"],
    ["compare", "run"],
    ["compare", "same", "run"],
    ["compare", "run", "same", "--json"],
    ["compare", "golden.json", "run"],
    ["compare", "--history", "run", "same", "again"],
    ["show", "{file}"],
    ["show", "{file}"],
    ["report", "run", "--carbon", "--write"],
)
DRAWING = (["report", "run", "--html"], ["report", "run", "--write"])


def a_verb_on_a_folder(here: Path, index: int, steps: list[Step], arguments: list[str]) -> None:
    """`here`/run is the first of `runs`, its file `index` changed; `here`/same is that run as it was."""
    write_run(here / "run", 0, {index: as_json(changed(runs()[0][index][1], steps))})
    invoke(arguments)


@pytest.mark.soak
def test_any_verb_on_a_folder_that_was_tampered_with_ends_with_a_code(here: Path) -> None:
    seen = 0

    def plain(drawn: Any) -> tuple[int, list[Step], list[str]]:
        nonlocal seen
        which, changes, choice = drawn
        seen += 1
        index = which % len(runs()[0])
        kind, content = runs()[0][index]
        file = "run.json" if kind == "run" else f"{'records' if kind == 'trial' else 'counting_run'}/{kind}{index}.json"
        found = DRAWING[choice % 2] if seen % 40 == 3 else READING[choice % len(READING)]
        if choice % 3 == 0 and found[0] == "export":
            found = [*found, "--workload", "cnn-digits"]
        arguments = [word.replace("{file}", f"run/{file}") for word in found]
        return index, steps_of(content, changes), arguments

    hunt(
        "folders",
        st.tuples(st.integers(0, 2**16), mutations, st.integers(0, 2**8)),
        a_verb_on_a_folder,
        plain,
        here=here,
    )
