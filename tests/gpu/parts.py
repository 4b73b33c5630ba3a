"""The parts of `make gpu`, the most valuable first, and how each is run: in a process of its own, with a time limit.

What a part had found when its time was over stands. A card whose context is lost takes one part with it and no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.results import Results, write

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
WHOLE_S = 480  # for all parts, one after the other
LONG = 4  # times the limits, for `make gpu-long`, and against a fake: this machine may be as slow as it likes
OUTPUT = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # and nothing beside the sources
LAST_WORDS_S = 5.0  # that a part which is ended has, to end what it started


@dataclass(frozen=True)
class Part:
    """name: as it is asked for; module: in this folder; limit_s: on a card, after which it is ended"""

    number: int
    name: str
    title: str
    limit_s: float

    @property
    def module(self) -> str:
        return self.name

    @property
    def file(self) -> str:
        return f"{self.number}-{self.name}.json"


PARTS = (
    Part(1, "counter", "The energy counter against integrated power, over idle, products, copies and a training", 75),
    Part(2, "overhead", "What the harness costs on steps of 1, 10 and 50 ms, beside CodeCarbon and Zeus", 55),
    Part(3, "backward", "ssProp's and frozen layers' backward against dense ones, and `refuse` fitted to them", 65),
    Part(4, "fits", "Fitting and drawing the updates of ResNet-50 and GPT-2; drawing samples by weight", 30),
    Part(5, "methods", "gradsamp, ssprop, scotti and importance on CIFAR-10, with verdicts on energy", 150),
    Part(6, "compiled", "CUDA graphs and torch.compile: refused in words, or right", 40),
    Part(7, "failures", "Out of memory, a lost context and Ctrl-C as records", 65),
)


def named(name: str) -> Part:
    return next(part for part in PARTS if part.name == name)


def run_part(
    part: Part, folder: Path, environment: Mapping[str, str], *, fake: bool, long: bool = False
) -> dict[str, Any]:
    """Run one part to its end or its limit.

    Args:
        folder:      where its JSON goes, and its process works
        environment: of its process; where its packages are found is added

    Returns:
        What stands in its file.
    """
    limit_s = part.limit_s * (LONG if long or fake else 1)
    path = folder / part.file
    folder.mkdir(parents=True, exist_ok=True)
    Results(path, part.name, part.title, limit_s, fake=fake).fact("started", True)
    paths = [str(TESTS), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    words = [part.name, str(folder), str(limit_s), "fake" if fake else "real", "long" if long else "short"]
    child = subprocess.Popen(
        [sys.executable, "-m", "gpu.child", *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": os.pathsep.join(paths), **OUTPUT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    try:
        said, _ = child.communicate(timeout=limit_s)
        late = False
    except subprocess.TimeoutExpired:
        said, late = _ended(child), True
    except BaseException:
        _ended(child)
        raise
    content = json.loads(path.read_text(encoding="utf-8"))
    content["facts"].pop("started", None)
    if late:
        content |= {"status": "cut short", "reason": f"it took longer than {limit_s:g} s; what it had found stands"}
    elif child.returncode and content["status"] == "running":
        content |= {"status": "failed", "reason": f"its process ended with {child.returncode}: {_last_line(said)}"}
    write(path, content)
    return dict(content)


def _ended(child: subprocess.Popen[str]) -> str:
    """End a part's process with all that it has started: asked first, so that a run of trials closes its records."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, _ = child.communicate(timeout=LAST_WORDS_S)
            return said or ""
    return ""


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or ["it said nothing"])[-1][:300]


def folder_of(card: str) -> str:
    """A card's name as a folder's: "NVIDIA H200" → "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") or "card"
