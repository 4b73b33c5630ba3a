"""An interpreter that has imported a module once and forks for each call: a call is a child like any other."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from energybench.common import module_path
from energybench.process import supervise
from energybench.process.prepared import NotPrepared, PreparedInterpreter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux alone")

MODULE = """
import json, os, pathlib, sys, time
IMPORTED_BY = os.getpid()

def main(in_path, out_path):
    text = pathlib.Path(in_path).read_text()
    facts = {"pid": os.getpid(), "parent": os.getppid(), "server": IMPORTED_BY, "folder": os.getcwd(),
             "told": os.environ.get("TOLD"), "session": os.getsid(0)}
    print("out", text, flush=True)
    print("err", file=sys.stderr, flush=True)
    if text == "sleep":
        pathlib.Path(out_path).write_text(json.dumps(facts))
        time.sleep(60)
    if text == "fail":
        raise ValueError("mine")
    if text == "leave":
        raise SystemExit(7)
    pathlib.Path(out_path).write_text(json.dumps(facts))
"""


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a module of this test's, which the server would not look for in any folder of a user's."""
    (tmp_path / "called_by_a_test.py").write_text(MODULE)
    code_of = module_path.in_new_interpreter

    def with_folder(code: str, **options: Any) -> list[str]:
        return code_of(f"import sys\nsys.path.append({str(tmp_path)!r})\n{code}", **options)

    monkeypatch.setattr(module_path, "in_new_interpreter", with_folder)
    made = PreparedInterpreter("called_by_a_test")
    yield made
    made.close()


def call(prepared: PreparedInterpreter, folder: Path, text: str = "x", **options):
    heard: list[tuple[str, bytes]] = []
    (folder / "in").write_text(text)
    prepared.warm()
    start = partial(prepared.start, folder / "in", folder / "out", signal.SIGTERM)
    ended = supervise.run(
        ["called"], start=start, output=lambda stream, chunk: heard.append((stream, chunk)), **options
    )
    out = folder / "out"
    facts = json.loads(out.read_text()) if out.exists() else {}
    return ended, facts, {stream: b"".join(c for s, c in heard if s == stream) for stream in ("stdout", "stderr")}


def test_a_call_is_our_child_in_our_folder_and_environment_and_writes_to_us(
    prepared: PreparedInterpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    prepared.warm()
    monkeypatch.chdir(home)  # after the server has started: a call is told what holds now
    monkeypatch.setenv("TOLD", "grüß")
    ended, facts, heard = call(prepared, tmp_path)
    assert (ended.returncode, ended.left_behind) == (0, 0)
    assert facts["parent"] == os.getpid()
    assert facts["pid"] == facts["session"] != facts["server"]
    assert (facts["folder"], facts["told"]) == (str(home), "grüß")
    assert heard == {"stdout": b"out x\n", "stderr": b"err\n"}
    _, again, _ = call(prepared, tmp_path)
    assert again["server"] == facts["server"]  # imported once
    assert again["pid"] != facts["pid"]


def test_how_a_call_ends_is_told_as_of_any_process(prepared: PreparedInterpreter, tmp_path: Path) -> None:
    ended, _, heard = call(prepared, tmp_path, "fail")
    assert ended.returncode == 1
    assert b"ValueError: mine" in heard["stderr"]
    assert call(prepared, tmp_path, "leave")[0].returncode == 7
    began = time.monotonic()
    ended, _, _ = call(prepared, tmp_path, "sleep", limit_s=0.2)
    assert ended.timed_out
    assert ended.returncode == -signal.SIGTERM
    assert time.monotonic() - began < 30


def test_a_server_that_has_died_is_started_again(prepared: PreparedInterpreter, tmp_path: Path) -> None:
    _, facts, _ = call(prepared, tmp_path)
    os.kill(facts["server"], signal.SIGKILL)
    os.waitid(os.P_PID, facts["server"], os.WEXITED | os.WNOWAIT)  # until it is dead, and is left for its parent
    _, again, _ = call(prepared, tmp_path)
    assert again["server"] != facts["server"]


def test_a_module_that_cannot_be_imported_starts_nothing(tmp_path: Path) -> None:
    prepared = PreparedInterpreter("there.is.no.such.module")
    try:
        with pytest.raises(NotPrepared):
            prepared.start(tmp_path / "in", tmp_path / "out", signal.SIGTERM)
    finally:
        prepared.close()
