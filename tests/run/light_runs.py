"""Light runs (light.py) as the tests start, stop, disturb and finish them; `place` is a folder with light.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import light
import psutil
from command_line import PATIENCE_S, Forked
from tiny_runs import wait_for

from energybench.records.reader import read_folder
from energybench.records.record import Cell, Trial
from energybench.runner import schedule

ORDER = [
    slot.trial
    for slot in schedule.missing(
        [
            Cell(workload="w", method=m, role=r)
            for m, r in (("baseline", "baseline"), ("twin", "twin"), ("mine", "method"))  # type: ignore[arg-type]
        ],
        light.BLOCKS,
        light.SEED,
        [],
        0,
    )
]
HELD = ORDER[4]  # in the second block
SCRIPT = str(Path(light.__file__))


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, SCRIPT, "light.toml", *map(str, arguments)]


def start(place: Path, *arguments: str | Path, **environment: str) -> subprocess.Popen[str] | Forked:
    """A light run under way; a fresh interpreter where its environment says more than where it is."""
    if not environment:
        words = ["light.toml", *map(str, arguments)]
        return Forked(words, cwd=place, env=light.environment(), program=SCRIPT)
    return subprocess.Popen(
        command(*arguments),
        cwd=place,
        env=light.environment(**environment),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(place: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    running = start(place, *arguments, **environment)
    out, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode is not None
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def held_at(place: Path, trial: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str] | Forked:
    """A run that waits inside this trial."""
    (place / "hold").write_text(trial)
    running = start(place, *arguments, **environment)
    wait_for(lambda: (place / "held").exists() or running.poll() is not None)
    assert running.poll() is None, running.communicate()
    return running


def server_of(run: int) -> psutil.Process:
    """That of its children which has started something: the other one only keeps a list."""
    (server,) = [child for child in psutil.Process(run).children() if child.children()]
    return server


def release(place: Path) -> None:
    (place / "hold").unlink()
    (place / "held").unlink()


def runs(place: Path) -> list[Path]:
    return sorted(file.parent for file in (place / "reports/light").glob("*/run.json"))


def records(place: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for folder in runs(place) for file in (folder / "records").iterdir()}


def told(text: str, code: str) -> str:
    """The message with this code and its hint; there is no trace."""
    assert "Traceback" not in text, text
    assert f"error[{code}]" in text, text
    return text[text.index(f"error[{code}]") :]


def finish(place: Path, before: dict[str, bytes]) -> list[Trial]:
    """The same command continues, in the same folder, and touches nothing of before."""
    done = run(place)
    assert done.returncode == 0, done.stderr
    (folder,) = runs(place)
    after = records(place)
    assert all(after[name] == content for name, content in before.items())
    found, trials, _ = read_folder(folder)
    assert found.finished
    wanted = {(block, method) for block in range(light.BLOCKS) for method in light.METHODS}
    assert {(t.block, t.method) for t in trials if t.status == "ok"} == wanted
    assert not [file for file in folder.rglob("*") if file.suffix == ".part" or file.name == ".lock"]
    return trials
