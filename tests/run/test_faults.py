"""What may go wrong around a run, done for real: full and read-only disks, clocks set back, files cut and edited.

Most of these are light runs (light.py): everything is real but the training.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import resource
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import light
import psutil
import pytest
from command_line import PATIENCE_S, energybench
from faults import fault
from light_runs import HELD, ORDER, command, finish, held_at, records, release, run, runs, server_of, told
from tiny_runs import contents, only_run, processes_in, wait_for, write_suite

from energybench.records.reader import read_folder

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

# ── stopped ───────────────────────────────────────────────────────────────────────────────────────────────────────


@fault("sigterm")
@fault("hangup")
@fault("announced")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("last", [False, True], ids=["the run first", "the run last"])
def test_a_signal_to_all_processes_of_a_run_ends_it_whole(place: Path, number: signal.Signals, last: bool) -> None:
    """As a scheduler sends it: to the run, its server, the guard and the trial, in any order; none of them failed."""
    running = held_at(place, HELD)
    before = records(place)
    others = [pid for pid in processes_in(place) if pid != running.pid]
    for pid in [*others, running.pid] if last else [running.pid, *others]:
        with contextlib.suppress(ProcessLookupError):  # it has ended with another one
            if last and pid == running.pid:
                wait_for(lambda: processes_in(place) == [running.pid] or len(processes_in(place)) < 3)
                time.sleep(0.4)
            os.kill(pid, number)
    _, errors = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130, errors
    assert f"interrupted by {number.name}; " in errors
    assert "The same command continues" in errors
    assert "Traceback" not in errors
    assert set(records(place)) == set(ORDER[:4])
    assert read_folder(runs(place)[0])[0].invocations[-1].outcome == "interrupted"
    wait_for(lambda: not processes_in(place))
    release(place)
    assert len(finish(place, before)) == len(ORDER) + 1  # the second block's baseline, in the second invocation


@fault("hangup")
def test_nohup_is_obeyed(place: Path) -> None:
    (place / "hold").write_text(HELD)
    running = subprocess.Popen(
        ["nohup", *command()],
        cwd=place,
        env=light.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for((place / "held").exists)
    os.kill(running.pid, signal.SIGHUP)
    release(place)
    assert running.wait(timeout=PATIENCE_S) == 0


@fault("kill run")
@fault("kill both")
@pytest.mark.parametrize("who", ["run", "run and trial", "run and guard", "group", "server"])
def test_nothing_outlives_a_run_that_is_killed(place: Path, who: str) -> None:
    """Every trial leaves a process in a session of its own; no kill of a group would find it."""
    running = held_at(place, HELD, LIGHT_STRAYS="1")
    before = records(place)
    server = server_of(running.pid)
    # Waited for: a guard that has just ended may still be seen, and a stray be seen twice while it starts.
    wait_for(lambda: len(server.children()) == 1)
    (guard,) = server.children()
    wait_for(lambda: len(guard.children()) == 1)
    (trial,) = guard.children()
    wait_for(lambda: len(trial.children()) == 1)  # the stray of this trial; those of the four before are gone
    wait_for(lambda: len(processes_in(place)) >= 5)
    if who == "group":
        os.killpg(running.pid, signal.SIGKILL)
    else:
        for name, pid in (("run", running.pid), ("trial", trial.pid), ("guard", guard.pid), ("server", server.pid)):
            if name in who.split(" and "):
                with contextlib.suppress(ProcessLookupError):  # it has ended with the run, which was killed before it
                    os.kill(pid, signal.SIGKILL)
    if who == "server":  # the run goes on with another one
        wait_for(lambda: not psutil.pid_exists(trial.pid))
        release(place)
        running.communicate(timeout=PATIENCE_S)
        assert running.returncode == 3
        trials = {t.trial: t for t in read_folder(runs(place)[0])[1]}
        assert (trials[HELD].status, set(trials)) == ("failed", set(ORDER))
        assert "the process that starts trials was killed" in (trials[HELD].reason or "")
    else:
        running.communicate(timeout=PATIENCE_S)
        release(place)
    wait_for(lambda: not processes_in(place))
    if who != "server":
        assert set(before) == set(ORDER[:4])
        finish(place, before)


@fault("kill trial")
def test_a_trial_that_is_killed_is_recorded_and_the_others_go_on(place: Path) -> None:
    running = held_at(place, HELD)
    server = server_of(running.pid)
    server.children()[0].children()[0].kill()
    running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 3
    trials = {t.trial: t.status for t in read_folder(runs(place)[0])[1]}
    assert trials == {name: "out_of_memory" if name == HELD else "ok" for name in ORDER}


KILLS = int(os.environ.get("ENERGYBENCH_FUZZ_KILLS") or 5)
KILLS_SEED = int(os.environ.get("ENERGYBENCH_FUZZ_SEED") or 20261121)


@fault("until finished")
@pytest.mark.soak
def test_kills_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    """A handful here, a hundred in `make soak`; what is killed and when is drawn from the seed."""
    from soak import AFTER, BEFORE, soak

    state = soak(tmp_path, kills=KILLS, seed=KILLS_SEED)
    assert state.kills >= KILLS
    if 10 * len(AFTER + BEFORE) <= KILLS:  # some of a kind come too late: the run was faster
        assert {
            "parent",
            "trial",
            "parent and trial",
            "group",
            "the report",
            "a write of the parent",
            "a write of a trial",
        } <= set(state.counts)


# ── what changed ──────────────────────────────────────────────────────────────────────────────────────────────────


@fault("changed method")
def test_a_method_changed_since_is_said_and_begins_a_run_of_its_own(place: Path) -> None:
    (place / "mine.py").write_text("# one\n")
    held_at(place, HELD).kill()
    release(place)
    (old,) = runs(place)
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file() and file.name != ".lock"}
    (place / "mine.py").write_text("# another\n")
    done = run(place)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert f"the unfinished run in {old.relative_to(place)} stays as it is" in said
    assert "Changed since: the file of method 'mine'" in said
    assert {file: file.read_bytes() for file in before} == before
    assert len(runs(place)) == 2
    (place / "mine.py").write_text("# one\n")  # put back
    again = run(place)
    assert again.returncode == 0, again.stderr
    assert "note:" not in again.stderr
    assert [read_folder(folder)[0].finished for folder in runs(place)] == [True, True]
    assert len(read_folder(old)[0].invocations) == 2


@fault("changed method")
@pytest.mark.parametrize(("answer", "code", "folders"), [("n", 2, 1), ("y", 0, 2), ("", 0, 2)])
def test_at_a_terminal_one_is_asked_before_another_run_begins(
    place: Path, answer: str, code: int, folders: int
) -> None:
    (place / "mine.py").write_text("# one\n")
    held_at(place, ORDER[0]).kill()
    release(place)
    (place / "mine.py").write_text("# another\n")
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        command(),
        cwd=place,
        env=light.environment(TERM="xterm", COLUMNS="100"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = "".join(_until(ours, "[y/n]"))
    os.write(ours, f"{answer}\n".encode())
    seen += "".join(_until(ours, None))
    assert running.wait(timeout=PATIENCE_S) == code, seen
    assert "Start a new run beside it?" in seen
    assert len(runs(place)) == folders
    assert ("error[E623]" in seen, "--new" in seen) == (code == 2, code == 2)


def _until(handle: int, text: str | None) -> Iterator[str]:
    """What the terminal shows until `text`, or until nobody writes to it any more."""
    shown, deadline = "", time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (text is None or text not in shown):
        if select.select([handle], [], [], 0.2)[0]:
            try:
                piece = os.read(handle, 4096).decode(errors="replace")
            except OSError:
                return
            shown += piece
            yield piece


@fault("changed method")
def test_new_asks_nothing(place: Path) -> None:
    (place / "mine.py").write_text("# one\n")
    held_at(place, ORDER[0]).kill()
    release(place)
    (place / "mine.py").write_text("# another\n")
    done = run(place, "--new")
    assert done.returncode == 0, done.stderr
    assert "stays as it is" not in done.stderr


@fault("changed settings")
@fault("no run.json")
def test_another_runs_folder_is_refused_and_what_differs_is_said(place: Path) -> None:
    assert run(place, "--out", "there").returncode == 0
    (place / "light.toml").write_text(light.SUITE.replace("seed = 5", "seed = 6"))
    said = told(run(place, "--out", "there").stderr, "E603")
    assert "trials.seed 5 → 6" in said
    (place / "there" / "run.json").rename(place / "run.json")
    refused = run(place, "--out", "there")
    assert refused.returncode == 2
    assert "put run.json back" in told(refused.stderr, "E624")


# ── the disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


@fault("disk full")
def test_no_room_for_a_record_ends_the_run_and_fails_no_trial(place: Path) -> None:
    """By a limit on the size of files, which the kernel answers as it does a quota; it needs no rights."""
    running = held_at(place, HELD)
    before = records(place)
    tree = [running.pid, *(each.pid for each in psutil.Process(running.pid).children(recursive=True))]
    for pid in tree:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
    release(place)
    _, errors = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 2, errors
    said = told(errors, "E620")
    assert f"{HELD}.json" in said
    assert "df -h" in said
    assert "the same command continues" in said
    assert records(place) == before
    finish(place, before)


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of its own, of one megabyte."""
    disk = place / "reports"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "energybench-test", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@fault("disk full")
def test_a_full_file_system_ends_the_run_and_with_room_it_goes_on(place: Path, small_disk: Path) -> None:
    running = held_at(place, HELD)
    before = records(place)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 21))
    release(place)
    _, errors = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 2, errors
    assert "the same command continues" in told(errors, "E620")
    assert records(place) == before
    still = run(place)
    assert still.returncode == 2
    assert "No space left" in still.stderr
    assert "Traceback" not in still.stderr
    filler.unlink()
    finish(place, before)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written below it: by its mode, which root does not obey, or by a mount, which needs root."""
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    if os.getuid():
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
    else:
        for options in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
            done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"root, and nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        if os.getuid():
            for path, mode in modes.items():
                if path.exists():
                    path.chmod(mode)
        else:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@fault("read-only meanwhile")
def test_a_folder_that_becomes_read_only_ends_the_run(place: Path) -> None:
    running = held_at(place, HELD)
    before = records(place)
    (folder,) = runs(place)
    with read_only(folder):
        release(place)
        _, errors = running.communicate(timeout=PATIENCE_S)
        assert running.returncode == 2, errors
        assert f"{HELD}.json" in told(errors, "E620")
        assert records(place) == before
        refused = run(place)
        assert refused.returncode == 2
        told(refused.stderr, "E605")
    finish(place, before)


@fault("read-only folder")
@pytest.mark.parametrize("where", ["/sys/energybench", "light.toml/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(place: Path, where: str) -> None:
    """/sys takes no folder from anybody, not even from root."""
    done = run(place, "--out", where)
    assert done.returncode == 2
    said = told(done.stderr, "E605")
    assert where in said
    assert "--out" in said
    assert not (place / "reports").exists()


@fault("no temporary folder")
def test_no_room_for_temporary_files_is_told(place: Path) -> None:
    done = subprocess.run(
        command(),
        cwd=place,
        env=light.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert done.returncode == 2, done.stderr
    told(done.stderr, "E620")
    assert not (place / "reports").exists()


@fault("output full")
def test_a_table_that_finds_no_room_is_told(place: Path) -> None:
    assert run(place).returncode == 0
    (folder,) = runs(place)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "energybench", "report", str(folder)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 2
    told(done.stderr, "E620")
    assert (folder / "report.md").exists()


# ── the clock ─────────────────────────────────────────────────────────────────────────────────────────────────────

BACKWARDS = '''
import datetime, sys, time
from importlib.machinery import PathFinder

real = time.time
time.time = lambda: real() - 3 * time.monotonic()


class Backwards(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)


class Finder:
    """Gives it to our own modules: a library in C knows the size of the real one."""

    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name.startswith("energybench") else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), give(module))
        return spec


def give(module):
    if vars(module).get("datetime") is datetime.datetime:
        module.datetime = Backwards


sys.meta_path.insert(0, Finder())
for name in [name for name in sys.modules if name.startswith("energybench")]:
    give(sys.modules[name])
'''


@fault("clock step")
def test_a_clock_that_runs_backwards_moves_no_duration(tmp_path: Path) -> None:
    """A real run, with torch, whose own process sees the wall clock fall. (A trial whose code replaces the clock is
    invalid.)"""
    suite = write_suite(tmp_path, '\n[[method]]\nuse = "dropout"\n', blocks=2)
    began = time.monotonic()
    program = f"{BACKWARDS}\nfrom energybench.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(suite)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    found, trials, _ = contents(only_run(tmp_path))
    assert found.finished
    (call,) = found.invocations
    assert call.ended_at is not None
    assert call.started_at > call.ended_at  # it did fall
    for trial in trials.values():
        for name, reading in trial.phases.items():
            assert 0 <= reading.wall_s <= took_s, (trial.trial, name)
        assert trial.train is not None
        assert 0 < trial.train.wall_s < took_s


@fault("clock step")
def test_an_unfinished_run_is_found_again_when_the_clock_was_set_back(place: Path) -> None:
    held_at(place, HELD).kill()
    release(place)
    (place / "sitecustomize.py").write_text(BACKWARDS)
    path = os.pathsep.join([str(place), light.environment()["PYTHONPATH"]])
    before = records(place)
    done = run(place, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    (folder,) = runs(place)
    found, trials, _ = read_folder(folder)
    assert [i.outcome for i in found.invocations] == [None, "finished"]
    assert found.invocations[1].started_at < found.invocations[0].started_at
    assert all(records(place)[name] == content for name, content in before.items())
    assert {t.status for t in trials} == {"ok"}


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@fault("cut record")
@fault("edited record")
@pytest.mark.parametrize("how", ["cut", "edited"])
def test_a_damaged_record_is_named_and_what_is_typed_next_mends_it(place: Path, how: str) -> None:
    held_at(place, HELD).kill()
    release(place)
    (folder,) = runs(place)
    victim = folder / "records" / f"{ORDER[1]}.json"
    whole = victim.read_text()
    if how == "cut":
        victim.write_text(whole[: len(whole) // 2])
    else:
        assert whole.count('"accuracy": 0.5') == 1
        victim.write_text(whole.replace('"accuracy": 0.5', '"accuracy": 0.9'))
    refused = run(place)
    assert refused.returncode == 2
    said = told(refused.stderr, "E601" if how == "cut" else "E621")
    assert str(victim.relative_to(place)) in said
    typed = re.search(r"hint: (mv \S+ \S+)", said)
    assert typed is not None, said
    subprocess.run(shlex.split(typed[1]), cwd=place, check=True)
    before = records(place)
    before.pop(f"{ORDER[1]}.json", None)  # what was moved away
    trials = finish(place, {name: text for name, text in before.items() if not name.endswith(".json")})
    again = [t for t in trials if (t.block, t.method) == (0, ORDER[1].rpartition(".")[2])]
    assert [t.invocation for t in again] == [1]


@fault("cut run.json")
def test_a_run_file_that_is_cut_short_is_left_as_it_is(place: Path) -> None:
    held_at(place, HELD).kill()
    release(place)
    (folder,) = runs(place)
    cut = (folder / "run.json").read_bytes()[:200]
    (folder / "run.json").write_bytes(cut)
    refused = run(place, "--out", folder)
    assert refused.returncode == 2
    assert "restore it from a copy" in told(refused.stderr, "E601")
    done = run(place)
    assert done.returncode == 0, done.stderr
    assert "left as it is" in done.stderr
    assert (folder / "run.json").read_bytes() == cut
    assert len(runs(place)) == 2


@fault("edited record")
def test_an_edited_run_file_is_refused(place: Path) -> None:
    assert run(place, "--out", "there").returncode == 0
    file = place / "there" / "run.json"
    content = json.loads(file.read_text())
    content["resolved"]["accept"]["noise"] = 0.5
    file.write_text(json.dumps(content))
    done = energybench("report", "there", cwd=place)
    assert done.returncode == 2
    assert "run.json" in told(done.stderr, "E621")
