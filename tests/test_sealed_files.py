"""Files that a user names with -o, --to and the like: what stands there already is never quietly replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from energybench.common.errors import CannotWrite, UsageError
from energybench.common.sealed_files import read_sealed, refuse_unwritable, with_seal, write_out

ROOT = Path(__file__).parents[1]


def test_a_pipe_gets_what_is_written_and_stays_a_pipe(tmp_path: Path) -> None:
    """As root the same would put a file in the place of /dev/null."""
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_out(pipe, b"content")
    reader.join(600)
    assert got == [b"content"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_and_stays_a_link(there: bool, tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to("file")
    if there:
        file.write_text("before")
    write_out(link, b"after")
    assert link.is_symlink()
    assert file.read_text() == "after"


def test_standard_output_may_be_a_file_and_keeps_what_comes_after(tmp_path: Path) -> None:
    """Opened anew, /dev/stdout would be written from its start, over what is printed."""
    program = (
        "from pathlib import Path; from energybench.common.sealed_files import write_out; print('before'); "
        "write_out(Path('link'), b'content\\n'); print('after')"
    )
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    with (tmp_path / "out").open("wb") as out:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=out, env=environment, check=True)
    assert (tmp_path / "out").read_text() == "before\ncontent\nafter\n"


@pytest.mark.parametrize("name", ["/proc/energybench.txt", "loop", "n" * 300])
def test_what_cannot_be_written_is_told_and_nothing_is_said_of_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CannotWrite) as told:
        write_out(tmp_path / name, b"")
    (problem,) = told.value.problems
    assert problem.code == "E620"
    assert problem.hint.endswith("or name another file")
    assert "continues" not in problem.hint


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path, tmp_path / "file" / "inside"):
        with pytest.raises(UsageError, match="E605"):
            refuse_unwritable(wrong)
    os.mkfifo(tmp_path / "pipe")
    for good in (tmp_path / "new" / "file", tmp_path / "file", tmp_path / "pipe", Path("/dev/null")):
        refuse_unwritable(good)


# ── seals ─────────────────────────────────────────────────────────────────────────────────────────────────────

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


def read(written: bytes) -> dict[str, Any]:
    return read_sealed(Path("record.json"), (1, 2), "Trial", "a hint", lambda: written)


def code(written: bytes) -> str:
    with pytest.raises(UsageError) as refused:
        read(written)
    return refused.value.problems[0].code


@given(
    content=st.dictionaries(st.text().filter(lambda key: key not in ("seal", "schema")), JSON, max_size=4),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
@example({"half a pair": "\ud800", "\udfff": 1}, 1, True)
@example({"deep": json.loads("[" * 150 + "]" * 150), "large": 10**30, "small": 5e-324}, None, False)
def test_what_was_sealed_is_read_as_it_was_and_any_change_is_found(
    content: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    content = {"schema": 2, **content}
    sealed = with_seal(content)
    written = json.dumps(sealed, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    found = read(written)
    assert found == content
    assert json.dumps(found) == json.dumps(content)  # 1 is not 1.0
    assert code(json.dumps({**sealed, "one more": 0}).encode()) == "E621"
    assert code(json.dumps({**sealed, "seal": "0" * 64}).encode()) == "E621"
    assert code(json.dumps({**sealed, "seal": 1}).encode()) == "E621"
    assert code(json.dumps({**with_seal({**content, "schema": 3})}).encode()) == "E622"
    assert code(written[:-1]) == "E601"
    without = json.dumps({key: value for key, value in sealed.items() if key != "seal"}).encode()
    assert read(without) == content  # of an earlier version


@pytest.mark.parametrize("text", ["NaN", "[1, -Infinity]", '{"a": NaN}', "[]", "1", "", '{"a": 1}}'])
def test_what_is_no_json_object_is_no_record(text: str) -> None:
    assert code(text.encode()) == "E601"
