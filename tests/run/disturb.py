"""What others may do to a run's folder while it works: each disturbance, what must then hold, how it is undone."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from energybench.common.sealed_files import with_seal

BYSTANDER = b"nobody's business"


@dataclass
class Disturbed:
    """What was done.

    outside:  a folder that is no part of the run, as it was before
    absent:   a path at which nothing may have been made
    victim:   the record that was deleted
    all_gone: nothing of the run is left
    """

    outside: Path | None = None
    absent: Path | None = None
    victim: str | None = None
    all_gone: bool = False
    undo: Callable[[], object] = lambda: None
    _before: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = contents(self.outside)

    def wrong(self) -> str:
        """What does not hold; empty where all does."""
        if contents(self.outside) != self._before:
            return f"outside of the run's folder something changed: {self._before} → {contents(self.outside)}"
        if self.absent is not None and os.path.lexists(self.absent):
            return f"something was made at {self.absent}"
        return ""


def contents(folder: Path | None) -> dict[str, bytes]:
    files = [] if folder is None else [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def elsewhere(place: Path) -> Path:
    """A folder of somebody else's, with what a run that is led astray would write over or remove."""
    folder = place / "elsewhere"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in (".mine.part", "mine.svg", "mine.log", "mine.json", "run.json", "report.md"):
        (folder / name).write_bytes(BYSTANDER)
    return folder


def renamed(run: Path, place: Path, chance: random.Random) -> Disturbed:
    aside = place / "aside"
    os.rename(run, aside)
    return Disturbed(absent=run, undo=lambda: os.rename(aside, run))


def replaced(run: Path, place: Path, chance: random.Random) -> Disturbed:
    """By another folder of the same name."""
    aside, other = place / "aside", elsewhere(place)
    os.rename(run, aside)
    os.rename(other, run)

    def undo() -> None:
        shutil.rmtree(run)
        os.rename(aside, run)

    return Disturbed(outside=run, undo=undo)


def deleted(run: Path, place: Path, chance: random.Random) -> Disturbed:
    """As `rm -r` does it, but at once: the name first."""
    aside = place / "aside"
    os.rename(run, aside)
    while aside.exists():  # the run writes into it meanwhile, until it sees
        shutil.rmtree(aside, ignore_errors=True)
    return Disturbed(absent=run, all_gone=True)


def record_deleted(run: Path, place: Path, chance: random.Random) -> Disturbed:
    records = sorted((run / "records").glob("*.json"))
    if not records:
        raise FileNotFoundError
    victim = chance.choice(records)
    content = victim.read_bytes()
    victim.unlink()

    def undo() -> None:
        """Where the run was closed already when it was deleted: no run can see that."""
        if json.loads((run / "run.json").read_text())["finished"]:
            victim.write_bytes(content)

    return Disturbed(victim=victim.stem, undo=undo)


def record_of_another_run(run: Path, place: Path, chance: random.Random) -> Disturbed:
    """Of the same suite, with the same digest: a copy whose identity alone is another one."""
    records = sorted((run / "records").glob("*.json"))
    if not records:
        raise FileNotFoundError
    content = json.loads(chance.choice(records).read_text())
    content.pop("seal")
    stranger = run / "records" / "b0-i99-stranger.json"
    stranger.write_text(json.dumps(with_seal(content | {"run_identity": "0" * 32, "trial": stranger.stem})))
    return Disturbed(undo=stranger.unlink)


def part_linked(run: Path, place: Path, chance: random.Random) -> Disturbed:
    """A part of the folder becomes a link that leads out of it; what was in it is kept aside."""
    outside, part = elsewhere(place), run / chance.choice(["logs", "records", "witness", "figures"])
    aside = place / "aside"
    if part.exists():
        os.rename(part, aside)
    part.symlink_to(outside)

    def undo() -> None:
        part.unlink()
        if aside.exists():
            os.rename(aside, part)

    return Disturbed(outside=outside, undo=undo)


def logs_hard_linked(run: Path, place: Path, chance: random.Random) -> Disturbed:
    """Every log that there will be is another name of a file elsewhere."""
    outside = elsewhere(place)
    (run / "logs").mkdir(exist_ok=True)
    made = []
    for block in range(3):
        for method in ("baseline", "twin", "mine"):
            for number in range(30):
                name = run / "logs" / f"b{block}-i{number}-w.{method}.log"
                if not name.exists():
                    os.link(outside / "mine.log", name)
                    made.append(name)

    def undo() -> None:
        for name in made:
            name.unlink(missing_ok=True)

    return Disturbed(outside=outside, undo=undo)


KINDS: dict[str, Callable[[Path, Path, random.Random], Disturbed]] = {
    "the folder renamed": renamed,
    "the folder replaced": replaced,
    "the folder deleted": deleted,
    "a record deleted": record_deleted,
    "a record of another run": record_of_another_run,
    "a part linked": part_linked,
    "a log hard linked": logs_hard_linked,
}
