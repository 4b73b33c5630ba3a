"""A run killed and its folder disturbed, a hundred times at random moments: nothing is lost, nothing is done twice.

    make soak                                       a hundred, at a fresh seed; `make test` kills a few, always the same
    PYTHONPATH=. python tests/run/soak.py --kills 100 --seed 7   these alone

The runs are light ones (light.py): everything is real but the training. Some kills come after a random time, some
before the n-th change of a file, so that every write, rename and page of a report is met sooner or later. Some are no
kills: while it works its folder is renamed, replaced or deleted, a record of it is deleted, another run's is put in, a
part of it becomes a link, a log gets a second name elsewhere (disturb.py). After each:

- no process of the run is left, though every trial leaves one behind that tries to get away;
- every record can be read and its seal holds; those of before are the same, byte for byte;
- the new ones are the first of those that the schedule had left to run, each once, and none says that it failed;
- outside of the folder nothing was written, changed or removed, and no folder was made in the place of one that is
  gone.

When a folder's share of kills is spent the same command runs to its end: the run is finished, each cell of each block
stands once beside a baseline of its own invocation, nothing half written is left, its report is what its records give.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started by hand

import disturb
import light
import psutil
from command_line import PATIENCE_S
from tiny_runs import processes_with, wait_for

from energybench.records.reader import read_folder
from energybench.records.record import Cell, RunFile
from energybench.report.pages import contents
from energybench.runner import schedule
from energybench.verdict.summary import summarise

CELLS = [
    Cell(workload="w", method=m, role=r)  # type: ignore[arg-type]
    for m, r in (("baseline", "baseline"), ("twin", "twin"), ("mine", "method"))
]
PER_FOLDER = (6, 14)  # kills, before the run may end
AFTER = ("parent", "trial", "guard", "server", "parent and trial", "parent and guard", "group")
BEFORE = ("a write of the parent", "the report", "a write of a trial")
EARLY_S, LATE_S = 0.6, 0.06  # within them a kill comes after the start, or after some record or witness
DROPPED = ("COLUMNS", "NO_COLOR", "FORCE_COLOR")


class Lost(AssertionError):
    """Something was lost, repeated or left behind."""


@dataclass
class Soak:
    home: Path
    seed: int
    counts: Counter[str] = field(default_factory=Counter)  # kills that met the run alive, by what was killed

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.place = self.home
        self.left: list[str] = []

    def kind(self) -> str:
        """What is killed next: each kind once before any comes again, so that none is left to chance."""
        if not self.left:
            self.left = [*AFTER, *BEFORE, *disturb.KINDS]
            self.random.shuffle(self.left)
        return self.left.pop()

    @property
    def kills(self) -> int:
        return sum(self.counts.values())

    def folder(self, kills: int) -> None:
        """One run, killed so often, then left alone to its end."""
        self.place = self.home / f"folder{len(list(self.home.iterdir()))}"
        (self.place / "tmp").mkdir(parents=True)
        (self.place / "light.toml").write_text(light.SUITE)
        goal = self.kills + kills
        while self.kills < goal:
            self.once(self.kind())
            if self.run_file() is not None and self.run_file().finished:  # type: ignore[union-attr]
                break  # it was faster than we
        else:
            self.once(None)
        self.check_end()

    def once(self, how: str | None) -> None:
        """Start the command, kill `how`, wait until all is quiet, look at what is there."""
        before, expected = self.records(), self.expected()
        marker = f"soak-{os.getpid()}-{time.time_ns()}"
        environment = light.environment(LIGHT_MARK=marker, LIGHT_STRAYS="1", TMPDIR=str(self.place / "tmp"))
        environment = {key: value for key, value in environment.items() if key not in DROPPED}
        if how in BEFORE:
            environment["LIGHT_DIE"] = self.moment(how, expected)
        disturbed: disturb.Disturbed | None = None
        log = (self.place / "log").open("a")
        with log:
            log.write(f"\n== {how} {environment.get('LIGHT_DIE', '')}\n")
            log.flush()
            run = subprocess.Popen(
                [sys.executable, str(Path(light.__file__)), "light.toml"],
                cwd=self.place,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                if how in AFTER and self.kill(how, run):
                    self.counts[how] += 1
                if how in disturb.KINDS:
                    disturbed = self.disturb(how, run)
                code = run.wait(timeout=PATIENCE_S)
            finally:
                run.kill()
        try:
            wait_for(lambda: not processes_with(marker))
        except AssertionError:
            raise Lost(f"{how}: still alive: {processes_with(marker)}") from None
        if disturbed is not None:
            self.counts[str(how)] += 1
            if wrong := disturbed.wrong():
                raise Lost(f"{how}: {wrong}")
            disturbed.undo()
            before = {} if disturbed.all_gone else before
            if disturbed.victim not in self.records():
                before.pop(str(disturbed.victim), None)
        self.check(how, before, expected, code, disturbed)
        failed = [json.loads(text)["status"] for name, text in self.records().items() if name not in before]
        struck = len(failed) - failed.count("ok")
        if struck > (how in ("trial", "guard", "server", "a write of a trial")):
            raise Lost(f"{how}: {struck} trials failed")
        if how in BEFORE and (code < 0 or struck):
            self.counts[how] += 1

    def moment(self, how: str, expected: list[str]) -> str:
        if how == "the report":
            where, most = self.random.choice([("report.md", 2), (".svg", 9)])
            return f"parent:{where}:{self.random.randint(1, most)}"
        if how == "a write of a trial" and expected:
            return f"trial:{self.random.choice(expected)}:{self.random.randint(1, 2)}"
        where, most = self.random.choice([("run.json", 4), (".json", 12), ("cell.in", 20)])
        return f"parent:{where}:{self.random.randint(1, most)}"

    def kill(self, how: str, run: subprocess.Popen[bytes]) -> bool:
        """Whether there was something to kill."""
        self.wait(run)
        if run.poll() is not None:
            return False
        me = psutil.Process(run.pid)
        tree: dict[str, list[psutil.Process]] = {"parent": [me], "server": [], "guard": [], "trial": []}
        try:
            for child in me.children():
                if "forkserver" in " ".join(child.cmdline()):
                    tree["server"] = [child]
                    tree["guard"] = child.children()
                    tree["trial"] = [each for guard in tree["guard"] for each in guard.children()][:1]
        except psutil.Error:
            pass
        if how == "group":
            os.killpg(run.pid, signal.SIGKILL)
            return True
        hit = False
        for name in how.split(" and "):
            for process in tree[name]:
                try:
                    process.kill()
                    hit = True
                except psutil.Error:
                    pass
        return hit

    def disturb(self, how: str, run: subprocess.Popen[bytes]) -> disturb.Disturbed | None:
        """None where there was nothing to disturb yet, or any more."""
        began = (self.place / "log").read_text(errors="replace").rpartition("\n== ")[2]
        while run.poll() is None and not any(word in began for word in ("continuing in", "writing to")):
            time.sleep(0.003)  # until it holds its folder: one that is not there is no folder to continue in
            began = (self.place / "log").read_text(errors="replace").rpartition("\n== ")[2]
        self.wait(run)
        if run.poll() is not None or not self.runs():
            return None
        try:
            return disturb.KINDS[how](self.runs()[0], self.place, self.random)
        except FileNotFoundError:  # not there yet
            return None

    def wait(self, run: subprocess.Popen[bytes]) -> None:
        """Until a random moment: one time in four soon after the start, else after some more files are there."""
        if self.random.random() < 0.25:
            time.sleep(self.random.uniform(0, EARLY_S))
            return
        there, more = len(self.files()), self.random.randint(1, 4)
        while run.poll() is None and len(self.files()) < there + more:
            time.sleep(0.003)
        time.sleep(self.random.uniform(0, LATE_S))

    def files(self) -> list[Path]:
        return [*self.place.glob("reports/*/*/records/*.json"), *self.place.glob("reports/*/*/witness/*.json")]

    # ── what must hold ────────────────────────────────────────────────────────────────────────────────────────

    def runs(self) -> list[Path]:
        return sorted(file.parent for file in (self.place / "reports" / "light").glob("*/run.json"))

    def run_file(self) -> RunFile | None:
        return read_folder(self.runs()[0])[0] if self.runs() else None

    def records(self) -> dict[str, bytes]:
        return {file.stem: file.read_bytes() for folder in self.runs() for file in (folder / "records").glob("*.json")}

    def expected(self) -> list[str]:
        """The trials that the next invocation has to run, in its order."""
        if not self.runs():
            return [slot.trial for slot in schedule.missing(CELLS, light.BLOCKS, light.SEED, [], 0)]
        run, trials, _ = read_folder(self.runs()[0])
        slots = schedule.missing(CELLS, light.BLOCKS, light.SEED, trials, len(run.invocations))
        return [slot.trial for slot in slots]

    def check(
        self,
        how: str | None,
        before: dict[str, bytes],
        expected: list[str],
        code: int,
        disturbed: disturb.Disturbed | None = None,
    ) -> None:
        if len(self.runs()) > 1:
            raise Lost(f"{how}: a second folder: {self.runs()}")
        for folder in self.runs():
            read_folder(folder)  # or it raises: whole, sealed
        after = self.records()
        if any(after.get(name) != content for name, content in before.items()):
            raise Lost(f"{how}: a finished record was touched")
        new = set(after) - set(before)
        if disturbed is not None and disturbed.victim in expected:
            new.add(disturbed.victim)  # it was written, and then deleted by us
        if new != set(expected[: len(new)]):
            raise Lost(f"{how}: ran {sorted(new)}, but the schedule had left {expected}")
        if code not in (0, 3, -signal.SIGKILL, *([2] if disturbed else [])):
            raise Lost(f"{how}: it ended with status {code}: {self.place / 'log'}")

    def check_end(self) -> None:
        (folder,) = self.runs()
        run, trials, counting_runs = read_folder(folder)
        if not run.finished or run.invocations[-1].outcome != "finished":
            raise Lost(f"not finished: {folder}")
        baselines = {(t.block, t.invocation) for t in trials if t.method == "baseline"}
        paired = Counter((t.block, t.method) for t in trials if (t.block, t.invocation) in baselines)
        wanted = {(block, cell.method) for block in range(light.BLOCKS) for cell in CELLS}
        if set(paired) != wanted or any(n > 1 for (_, method), n in paired.items() if method != "baseline"):
            raise Lost(f"not each cell once beside its baseline: {paired}")
        names = {(w.workload, w.method) for w in counting_runs}
        if names != {("w", "baseline"), ("w", "mine")}:
            raise Lost(f"witnesses: {names}")
        left = [file for file in folder.rglob("*") if file.name.endswith(".part") or file.name == ".lock"]
        left += list((self.place / "tmp").glob("energybench-*"))
        left += [each for each in folder.parent.iterdir() if each != folder]
        if left:
            raise Lost(f"left behind: {left}")
        given = contents(summarise(run, trials, counting_runs), trials, folder)
        if given != {name: (folder / name).read_text(encoding="utf-8") for name in given}:
            raise Lost(f"the report is not what its records give: {folder}")


def soak(home: Path, kills: int, seed: int) -> Soak:
    """Raises Lost."""
    state = Soak(home, seed)
    while state.kills < kills:
        state.folder(min(state.random.randint(*PER_FOLDER), kills - state.kills))
    return state


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {seed}, in {home}", flush=True)
    began = time.monotonic()
    try:
        state = soak(home, asked.kills, seed)
    except Lost as lost:
        print(f"LOST: {lost}", file=sys.stderr)
        return 1
    print(json.dumps({"kills": state.kills, "by": state.counts, "seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
