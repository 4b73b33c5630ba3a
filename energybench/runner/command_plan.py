"""Everything about a suite's commands that can be checked before the first runs, in a child process without torch.

Which executable, which script, which cards; what the cells are and which files they depend on. Nothing is run.
"""

from __future__ import annotations

import hashlib
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
from energybench.meter.devices import visible_uuids
from energybench.meter.unavailable import Unavailable
from energybench.records.record import Cell, Claim, Role
from energybench.runner.plan_energy import energy
from energybench.runner.plan_spec import PlanResult, PlanSpec
from energybench.suite.command_tables import CommandWorkloadTable, fill, fill_words, placeholders

INTERPRETER = re.compile(r"(python|pypy)[\d.]*|bash|dash|sh|zsh|perl|ruby|node|Rscript|julia|lua")
# Of a file that is fingerprinted by its content; a larger one, or one that cannot be read, by its size and time.
LARGEST_B = 1 << 28


def main(in_path: str, out_path: str) -> None:
    CommandPlan(PlanSpec.read(in_path)).result().write(Path(out_path))


class CommandPlan:
    """Checks the commands one by one, so that one mistake does not hide the next."""

    def __init__(self, spec: PlanSpec) -> None:
        self.spec, self.suite, self.base = spec, spec.suite, spec.base
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.executables: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.uuids = self.cards()
        self.device_name = "+".join(self.uuids) or "cpu"

    def result(self) -> PlanResult:
        cells = [cell for number, workload in self.spec.commands for cell in self.cells(number, workload)]
        facts: dict[str, Any] = {}
        if self.spec.purpose not in ("count", "trace"):  # else nothing will be metered
            measure = self.suite.measure.model_copy(update={"gpus": self.gpus()})
            facts, problems = energy(self.spec, measure, self.device_name, of_commands=True)
            self.problems += problems
        return PlanResult(
            problems=tuple(self.problems),
            notes=tuple(dict.fromkeys(self.notes)),
            device="cuda" if self.uuids else "cpu",
            device_name=self.device_name,
            command_device=self.device_name,
            cards=self.gpus(),
            cells=tuple(cells),
            machine=self.machine() | facts,
            sources={name: _portable(path) for name, path in self.executables.items()}
            | {name: f"sha256 {sha[:12]}" for name, sha in self.files.items()},
            digest=digest([cell.model_dump(mode="json") for cell in cells]),
        )

    # ── devices ───────────────────────────────────────────────────────────────────────────────────────────────

    def cards(self) -> list[str]:
        """UUIDs of the cards that a command may use; which ones it does cannot be known."""
        asked, measure = self.spec.device, self.suite.measure
        if asked not in (None, "cpu", "cuda"):
            hint = '--device cpu or cuda; [measure] gpus = ["GPU-..."] names the cards that are metered'
            message = f"which card a command uses is its own affair, so --device {asked} says nothing"
            self.problems.append(Problem("E521", message, hint=hint))
        if asked == "cpu" or measure.energy == "off":
            return []
        try:
            return visible_uuids(measure.gpus)
        except Unavailable as unavailable:
            if asked == "cuda":
                self.problems.append(Problem("E521", f"there is no card: {unavailable.reason}", hint="--device cpu"))
            elif unavailable.kind != "absent":
                self.notes.append(f"no card is metered: {unavailable.reason}; {unavailable.remedy}")
            return []

    def gpus(self) -> str | tuple[str, ...]:
        """What is metered: the cards, or what the suite asks for where there is none."""
        return tuple(self.uuids) or self.suite.measure.gpus

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

    def cells(self, number: int, workload: CommandWorkloadTable) -> list[Cell]:
        pairs = self.spec.pairs_of(workload.name, commands=True)
        skipped = pairs[0][0].skipped if pairs and all(pair.skipped for pair, _ in pairs) else None
        roles: list[Literal["baseline", "twin"]] = ["baseline", "twin"] if self.suite.trials.twin else ["baseline"]
        words, place = fill(workload.command, workload.options), self.spec.where("workload", number, "command")
        cells = [self.cell(workload, role, role, words, place, skipped=skipped) for role in roles]
        for pair, variant in pairs:
            command = variant.command_for(workload.name)
            words = fill(command, {**workload.options, **variant.values}) if command else []
            place = self.spec.where(*variant.loc, "command")
            cell = self.cell(workload, variant.label, "method", words, place, skipped=pair.skipped)
            claim = Claim(**variant.claim) if variant.claim else None
            cells.append(cell.model_copy(update={"claim": claim, "tuned_trials": variant.tuned}))
        return cells

    def cell(
        self,
        workload: CommandWorkloadTable,
        label: str,
        role: Role,
        words: list[str],
        place: str,
        *,
        skipped: str | None,
    ) -> Cell:
        path = None if skipped or not words else self.executable(words, place)
        files = {} if path is None else self.named(words)
        settings = {key: value for key, value in workload.settings().items() if key != "command"}
        parts = [
            settings,
            words,
            path,
            files,
            source_digest(),
            self.device_name,
            self.suite.digest_source()["measure"],
            self.suite.trials.given_threads,
            self.suite.accept.quality.metric,
        ]
        return Cell(
            workload=workload.name, method=label, role=role, command=words, skipped=skipped, digest=digest(parts)
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
        our_folder = Path(sys.executable).parent
        if name.startswith("python") and Path(path).parent != our_folder:
            self.notes.append(f"'{word}' is {path}; energybench itself runs in {our_folder}")
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
        blocks = range(self.spec.blocks if {"seed", "block"} & placeholders(" ".join(words)) else 1)
        seed = self.suite.trials.seed
        filled = (word for b in blocks for word in fill_words(words, {"seed": seed + b, "block": b}))
        texts = [each for word in dict.fromkeys(filled) for each in (word, *_inside(word))]
        digests = {}
        for text in dict.fromkeys(part for each in texts for part in (each, each.partition("=")[2])):
            if text and os.path.isfile(self.base / text):  # False too for what no file can be called
                digests[text] = _sha256(self.base / text)
        self.files |= digests
        return digests

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
