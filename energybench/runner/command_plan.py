"""Everything about a suite's commands that can be checked before the first runs, in a child process without torch.

Which executable, which script, which cards; what the cells are and which files they depend on. Nothing is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from energybench.common.errors import Problem, nearest
from energybench.common.fingerprint import source_digest
from energybench.common.hashing import digest
from energybench.common.machine import cpu_name
from energybench.common.safe_read import list_folder
from energybench.common.version import __version__
from energybench.meter.unavailable import Unavailable
from energybench.records.record import Cell, Claim
from energybench.runner.plan_energy import energy
from energybench.suite.command_tables import fill, fill_words, placeholders
from energybench.trial.command_trial import cards

INTERPRETER = re.compile(r"(python|pypy)[\d.]*|bash|dash|sh|zsh|perl|ruby|node|Rscript|julia|lua")
# Of a file that is fingerprinted by its content; a larger one, or one that cannot be read, by its size and time.
LARGEST_B = 1 << 28


def main(in_path: str, out_path: str) -> None:
    spec = json.loads(Path(in_path).read_text(encoding="utf-8"))
    Path(out_path).write_text(json.dumps(CommandPlan(spec).result()), encoding="utf-8")


class CommandPlan:
    """Checks the commands one by one, so that one mistake does not hide the next."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.base = spec, Path(spec["base"])
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.executables: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.uuids = self.cards()
        self.device_name = "+".join(self.uuids) or "cpu"

    def result(self) -> dict[str, Any]:
        cells = [cell for workload in self.spec["commands"] for cell in self.cells(workload)]
        measure = self.spec["measure"]
        looked = self.spec["purpose"] in ("count", "trace")  # nothing will be metered
        facts, problems = (
            ({}, []) if looked else energy({**self.spec, "measure": {**measure, "gpus": self.gpus()}}, self.device_name)
        )
        self.problems += problems
        return {
            "problems": [problem.as_dict() for problem in self.problems],
            "notes": list(dict.fromkeys(self.notes)),
            "device": "cuda" if self.uuids else "cpu",
            "device_name": self.device_name,
            "gpus": self.gpus(),
            "workloads": {workload["name"]: {"data": None} for workload in self.spec["commands"]},
            "cells": [cell.model_dump(mode="json") for cell in cells],
            "machine": self.machine() | facts,
            "sources": {name: _portable(path) for name, path in self.executables.items()}
            | {name: f"sha256 {sha[:12]}" for name, sha in self.files.items()},
            "digest": digest([cell.model_dump(mode="json") for cell in cells]),
        }

    # ── devices ───────────────────────────────────────────────────────────────────────────────────────────────

    def cards(self) -> list[str]:
        """UUIDs of the cards that a command may use; which ones it does cannot be known."""
        asked, wanted = self.spec["device"], self.spec["measure"].get("gpus", "used")
        if asked not in (None, "cpu", "cuda"):
            hint = '--device cpu or cuda; [measure] gpus = ["GPU-..."] names the cards that are metered'
            message = f"which card a command uses is its own affair, so --device {asked} says nothing"
            self.problems.append(Problem("E521", message, hint=hint))
        if asked == "cpu" or self.spec["measure"]["energy"] == "off":
            return []
        try:
            return cards(wanted)
        except Unavailable as why:
            if asked == "cuda":
                self.problems.append(Problem("E521", f"there is no card: {why.reason}", hint="--device cpu"))
            elif why.kind != "absent":
                self.notes.append(f"no card is metered: {why.reason}; {why.remedy}")
            return []

    def gpus(self) -> Any:
        return self.uuids or self.spec["measure"].get("gpus", "used")

    def machine(self) -> dict[str, Any]:
        return {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "energybench": __version__,
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "device": self.device_name,
        }

    # ── cells ─────────────────────────────────────────────────────────────────────────────────────────────────

    def cells(self, workload: dict[str, Any]) -> list[Cell]:
        pairs = [pair for pair in self.spec["pairs"] if pair["workload"] == workload["name"]]
        idle = pairs[0]["skipped"] if pairs and all(pair["skipped"] for pair in pairs) else None
        roles: list[Literal["baseline", "twin"]] = ["baseline", "twin"] if self.spec["twin"] else ["baseline"]
        words, place = fill(workload["command"], workload["options"]), workload["where"]["command"]
        found = [self.cell(workload, role, role, words, place, skipped=idle) for role in roles]
        for pair in pairs:
            variant = next(v for v in self.spec["variants"] if v["label"] == pair["variant"])
            command = variant["command"]
            command = command.get(workload["name"]) if isinstance(command, dict) else command
            words = fill(command, {**workload["options"], **variant["values"]}) if command else []
            made = self.cell(workload, variant["label"], "method", words, variant["where"], skipped=pair["skipped"])
            claim = Claim(**variant["claim"]) if variant["claim"] else None
            found.append(made.model_copy(update={"claim": claim, "tuned_trials": variant["tuned"]}))
        return found

    def cell(
        self, workload: dict[str, Any], label: str, role: Any, words: list[str], place: str, *, skipped: str | None
    ) -> Cell:
        path = None if skipped or not words else self.executable(words, place)
        files = {} if path is None else self.named(words)
        settings = {key: value for key, value in workload.items() if key not in ("where", "command")}
        parts = [
            settings,
            words,
            path,
            files,
            source_digest(),
            self.device_name,
            *(self.spec[key] for key in ("measure", "threads", "metric")),
        ]
        return Cell(
            workload=workload["name"], method=label, role=role, command=words, skipped=skipped, digest=digest(parts)
        )

    def executable(self, words: list[str], place: str) -> str | None:
        """Where the first word is found, as `exec` will find it; None with a problem where it is not."""
        word = words[0]
        path = shutil.which(str(self.base / word) if "/" in word else word)
        if path is None:
            self.wrong("E421", f"no program is called '{word}'", place, self._instead(word))
            return None
        self.executables[word] = path
        name = Path(word).name
        if INTERPRETER.fullmatch(name) and len(words) > 1 and not words[1].startswith("-"):
            script = self.base / words[1]
            if not os.path.exists(script) and "{" not in words[1]:
                as_written = Path(words[1])  # it may lead out of the suite's folder
                near = {str(as_written.with_name(file.name)) for file in list_folder(script.parent, script.suffix)}
                hint = nearest(words[1], near) or "paths are relative to the suite's folder"
                self.wrong("E422", f"there is no file '{words[1]}' in {self.base.name}/", place, hint)
        own = Path(sys.executable).parent
        if name.startswith("python") and Path(path).parent != own:
            self.notes.append(f"'{word}' is {path}; energybench itself runs in {own}")
        return path

    def _instead(self, word: str) -> str:
        if re.match(r"\w+=", word):
            return "variables are set by env: env NAME=value python train.py"
        if os.path.isfile(self.base / word):
            if "/" in word:
                return f"make it a program: chmod +x {word}"
            return f"python {word}" if word.endswith(".py") else f"./{word}"
        if word.startswith("python"):
            return "activate your environment, or write the path of its python"
        return "install it, or write its whole path; a shell's own words need: sh -c '...'"

    def named(self, words: list[str]) -> dict[str, str]:
        """The files that a command names, wherever they stand, by their content; in a shell's string too, and by the
        seed or the number of a declared block."""
        blocks = range(self.spec["blocks"] if {"seed", "block"} & placeholders(" ".join(words)) else 1)
        filled = (word for b in blocks for word in fill_words(words, {"seed": self.spec["seed"] + b, "block": b}))
        texts = [each for word in dict.fromkeys(filled) for each in (word, *_inside(word))]
        found = {}
        for text in dict.fromkeys(part for each in texts for part in (each, each.partition("=")[2])):
            if text and os.path.isfile(self.base / text):  # False too for what no file can be called
                found[text] = _sha256(self.base / text)
        self.files |= found
        return found

    def wrong(self, code: str, message: str, place: str, hint: str) -> None:
        problem = Problem(code, message, place, hint)
        if problem not in self.problems:
            self.problems.append(problem)


def _inside(word: str) -> list[str]:
    """The words of a shell's string, less what it writes into."""
    return re.split(r"[\s;|&<()'\"`]+", re.sub(r">+\s*\S+", " ", word)) if re.search(r"\s", word) else []


def _sha256(file: Path) -> str:
    size = file.stat().st_size
    if size > LARGEST_B or not os.access(file, os.R_OK):
        return hashlib.sha256(f"{size} {file.stat().st_mtime_ns}".encode()).hexdigest()
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _portable(path: str) -> str:
    """A program without the folders of this machine."""
    return f"{Path(path).resolve().name} (program)"


if __name__ == "__main__":
    main(*sys.argv[1:3])
