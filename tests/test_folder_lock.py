"""A folder has one writer, by flock or, where the file system has none, by a file that says whose it is."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from faults import fault
from hypothesis import given
from hypothesis import strategies as st

from energybench.common import hosts
from energybench.common.errors import AtWork, UsageError
from energybench.common.folder_lock import FolderBusy, FolderLock
from energybench.common.held_folder import HeldFolder
from energybench.common.hosts import ProcessIdentity, this_process
from energybench.records.run_folder import Folder, choose
from energybench.records.scratch_folder import scratch

OWNER = Path("there/.lock-owner")
RACERS, ROUNDS = 6, 8


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system such as Lustre without -o flock: in this process and in what it forks."""
    refuse_flock(monkeypatch, request.param)


def refuse_flock(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSYS) -> None:
    def refuse(handle: int, flags: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def an_ended_process() -> ProcessIdentity:
    """One of this host that has run and is gone."""
    with subprocess.Popen(["sleep", "600"]) as process:
        start = hosts._start(process.pid)
        process.kill()
    return replace(this_process(), pid=process.pid, start=start)


def refused(busy: type[UsageError] = UsageError) -> str:
    with pytest.raises(busy) as caught, Folder(Path("there")).lock(busy):
        pass
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("E604", "there")
    return f"{problem.message}\n{problem.hint}"


# ── which process ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    st.builds(
        ProcessIdentity,
        *(st.text(max_size=20) for _ in range(4)),
        pid=st.integers(0, 2**31),
        start=st.text(max_size=20),
        since=st.text(max_size=20),
    )
)
def test_who_holds_a_lock_is_read_as_it_was_written(identity: ProcessIdentity) -> None:
    assert ProcessIdentity.of_json(identity.to_json()) == identity


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'{"pid": 1}', b'{"pid": true}', b"[" * 100_000, b"\xff"])
def test_what_names_no_process_is_nobody_s(content: bytes) -> None:
    assert ProcessIdentity.of_json(content) is None


def test_a_process_of_this_host_is_over_when_it_has_ended_or_its_number_is_another_s() -> None:
    ours, ended = this_process(), an_ended_process()
    assert not ours.is_over()
    assert ended.is_over()
    assert replace(ours, start=str(int(ours.start) - 1)).is_over()  # an earlier process of our number
    assert replace(ours, boot="another").is_over()  # before this host was started again
    assert replace(ended, boot="another").is_over()


def test_of_a_process_elsewhere_nobody_knows_whether_it_is_over() -> None:
    ended = an_ended_process()
    assert not replace(ended, host="elsewhere").is_over()
    assert not replace(ended, space="pid:[1]").is_over()  # of a container beside this one
    assert not replace(ended, boot="").is_over()


def test_a_host_has_one_name_that_says_nothing_of_it() -> None:
    assert hosts.host() == hosts.host()
    assert len(hosts.host()) == 12
    assert os.uname().nodename not in hosts.host()


# ── without flock ─────────────────────────────────────────────────────────────────────────────────────────────────


@fault("no flock")
@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_folder_has_one_writer_too() -> None:
    with Folder(Path("there")).lock() as lock:
        assert lock.taken_over is None
        assert json.loads(OWNER.read_bytes())["pid"] == os.getpid()
        told = refused()
        assert f"process {os.getpid()} on {os.uname().nodename}" in told
        assert "rm there/.lock-owner" in told
        refused(AtWork)
        assert OWNER.exists()  # whoever is refused takes nothing away
    assert os.listdir("there") == []
    with Folder(Path("there")).lock():
        pass


@pytest.mark.usefixtures("no_flock")
def test_without_flock_it_is_free_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), Folder(Path("there")).lock():
        raise KeyboardInterrupt
    assert os.listdir("there") == []


@fault("stale lock")
@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("how", ["ended", "its number is another's", "its host was started again"])
def test_the_lock_of_a_process_that_has_surely_ended_is_taken_over_and_told(how: str) -> None:
    left = an_ended_process()
    if how == "its number is another's":
        left = replace(this_process(), start="1")
    elif how == "its host was started again":
        left = replace(this_process(), boot="before")
    OWNER.write_bytes(left.to_json())
    with Folder(Path("there")).lock() as lock:
        assert lock.taken_over == left
        assert json.loads(OWNER.read_bytes())["start"] == this_process().start
    assert os.listdir("there") == []


@fault("lock elsewhere")
@pytest.mark.usefixtures("no_flock")
def test_the_lock_of_another_host_is_never_taken_and_the_message_says_whose_it_is() -> None:
    left = replace(an_ended_process(), host="0123456789ab", called="node17", since="2026-01-02T03:04:05+00:00")
    OWNER.write_bytes(left.to_json())
    told = refused()
    assert f"process {left.pid} on node17, since 2026-01-02T03:04:05+00:00" in told
    assert "rm there/.lock-owner" in told
    assert OWNER.read_bytes() == left.to_json()


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("content", [b"", b"a text"])
def test_a_lock_that_does_not_say_whose_it_is_is_never_taken(content: bytes) -> None:
    OWNER.write_bytes(content)
    assert "rm there/.lock-owner" in refused()
    assert OWNER.read_bytes() == content


@pytest.mark.usefixtures("no_flock")
def test_without_hard_links_either_it_is_created_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    with Folder(Path("there")).lock():
        assert json.loads(OWNER.read_bytes())["pid"] == os.getpid()
        refused()
    assert os.listdir("there") == []


def test_of_many_that_find_a_stale_lock_at_once_one_alone_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes, all of which hold what they got until each has tried."""
    refuse_flock(monkeypatch)
    left = an_ended_process().to_json()
    for _ in range(ROUNDS):
        OWNER.write_bytes(left)
        go_read, go = os.pipe()
        tried_read, tried = os.pipe()
        end_read, end = os.pipe()
        children = []
        for _ in range(RACERS):
            if (child := os.fork()) == 0:
                os.close(go)
                os.close(end)
                os.read(go_read, 1)
                code = 1
                with HeldFolder(Path("there")) as folder:
                    try:
                        lock = FolderLock(folder)
                        code = 0
                    except FolderBusy:
                        lock = None
                    os.write(tried, b"!")
                    os.read(end_read, 1)
                    if lock is not None:
                        lock.free()
                os._exit(code)
            children.append(child)
        os.close(go)
        for _ in range(RACERS):
            assert os.read(tried_read, 1) == b"!"
        os.close(end)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0] + [1] * (RACERS - 1)
        assert not OWNER.exists()
        for handle in (go_read, tried_read, tried, end_read):
            os.close(handle)


def test_a_node_with_flock_sees_the_lock_of_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        refuse_flock(patch)
        without = Folder(Path("there")).lock()
        without.__enter__()
    assert "rm there/.lock-owner" in refused()
    without.__exit__(None, None, None)
    with Folder(Path("there")).lock():
        pass


def test_a_node_without_flock_sees_the_lock_of_one_with(monkeypatch: pytest.MonkeyPatch) -> None:
    with Folder(Path("there")).lock(), monkeypatch.context() as patch:
        refuse_flock(patch)
        assert f"process {os.getpid()} on" in refused()
    assert os.listdir("there") == []


def test_the_holder_by_flock_is_named_too() -> None:
    with Folder(Path("there")).lock():
        assert f"process {os.getpid()} on {os.uname().nodename}" in refused()


@pytest.mark.parametrize("how", ["a text", "a second name"])
def test_what_somebody_else_has_called_so_is_not_written_over(how: str) -> None:
    Path("precious").write_text("mine")
    if how == "a text":
        Path("there/.lock").write_text("mine")
    else:
        os.link("precious", "there/.lock")
    with Folder(Path("there")).lock():
        assert Path("there/.lock").read_text() == "mine"
    assert Path("precious").read_text() == "mine"


@pytest.mark.usefixtures("no_flock")
def test_without_flock_what_a_killed_start_left_is_removed_and_a_start_under_way_is_not() -> None:
    owners = {"stillborn": an_ended_process(), "under-way": replace(this_process(), host="elsewhere")}
    for name, owner in owners.items():
        Path("reports/s", name).mkdir(parents=True)
        Path("reports/s", name, ".lock").touch()
        Path("reports/s", name, ".lock-owner").write_bytes(owner.to_json())
    choose("s", "d", None, False)
    assert os.listdir("reports/s") == ["under-way"]


@pytest.mark.usefixtures("no_flock")
def test_without_flock_temporary_folders_of_processes_that_have_ended_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, content in {
        "ended": an_ended_process().to_json(),
        "elsewhere": replace(this_process(), host="elsewhere").to_json(),
        "unsaid": b"",
    }.items():
        (tmp_path / f"energybench-{name}").mkdir()
        (tmp_path / f"energybench-{name}" / "alive").write_bytes(content)
    with scratch() as ours:
        with scratch() as another:  # which finds ours, and leaves it
            assert ours.is_dir()
        assert not another.exists()
        assert {path.name for path in tmp_path.glob("energybench-*")} == {
            "energybench-elsewhere",
            "energybench-unsaid",
            ours.name,
        }
