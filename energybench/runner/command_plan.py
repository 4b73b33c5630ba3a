"""Everything about a suite's commands that can be checked before the first runs, in a child process without torch.

Which executable, which script, which cards; what the cells are and which files they depend on. Nothing is run.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from energybench.common.errors import Problem, nearest
from energybench.common.fingerprint import source_digest
from energybench.common.hashing import digest
from energybench.common.machine import cpu_name, platform_name
from energybench.common.metrics import Metric
from energybench.common.safe_read import list_folder
from energybench.common.version import __version__
from energybench.meter.devices import visible_uuids
from energybench.meter.unavailable import Unavailable
from energybench.records.record import Cell, Claim, Role
from energybench.runner import command_files, plan_metrics
from energybench.runner.command_ranks import ranks_of
from energybench.runner.plan_energy import energy, unless_elsewhere
from energybench.runner.plan_spec import PlanResult, PlanSpec
from energybench.suite.command_tables import COPY, CommandWorkloadTable, RunTable, fill
from energybench.suite.placeholders import ALWAYS, fill_words, placeholders

HOW = ("env", "cwd", "stdin")  # of a workload, as its methods may have their own
INTERPRETER = re.compile(r"(python|pypy)[\d.]*|bash|dash|sh|zsh|perl|ruby|node|Rscript|julia|lua")


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
        metrics: dict[str, dict[str, Metric]] = {}
        for number, workload in self.spec.commands:
            metrics[workload.name], problems = plan_metrics.of_command(self.suite, number, workload, self.spec.where)
            self.problems += [problem for problem in problems if problem not in self.problems]
        facts: dict[str, Any] = {}
        if self.spec.purpose not in ("count", "trace"):  # else nothing will be metered
            measure = self.suite.measure.model_copy(update={"gpus": self.gpus()})
            facts, problems = energy(self.spec, measure, self.device_name, of_commands=True)
            problems, notes = unless_elsewhere(self.spec, problems)
            self.problems, self.notes = [*self.problems, *problems], [*self.notes, *notes]
        return PlanResult(
            problems=tuple(self.problems),
            notes=tuple(dict.fromkeys(self.notes)),
            device="cuda" if self.uuids else "cpu",
            device_name=self.device_name,
            command_device=self.device_name,
            cards=self.gpus(),
            cells=tuple(cells),
            metrics=metrics,
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
            "platform": platform_name(),
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
        how = self.spec.how(workload, None)
        self.known(workload, number)
        cells = [self.cell(workload, role, role, words, how, place, skipped=skipped) for role in roles]
        for pair, variant in pairs:
            command = variant.command_for(workload.name, workload.plain_name)
            values = {**workload.options, **variant.values}
            words = fill(command, values) if command else []
            place, how = self.spec.where(*variant.loc, "command"), self.spec.how(workload, variant)
            cell = self.cell(workload, variant.label, "method", words, how, place, skipped=pair.skipped, known=values)
            claim = Claim(**variant.claim) if variant.claim else None
            cells.append(cell.model_copy(update={"claim": claim, "tuned_trials": variant.tuned}))
        return cells

    def cell(
        self,
        workload: CommandWorkloadTable,
        label: str,
        role: Role,
        words: list[str],
        how: RunTable,
        place: str,
        *,
        skipped: str | None,
        known: Mapping[str, object] | None = None,
    ) -> Cell:
        runs = bool(words) and not skipped
        names = workload.options if known is None else known
        path, files = None, {}
        if runs and not self.mistyped([*words, *how.texts], names, place):
            folder = self.folder(how, place)
            path = self.executable(words, how, folder, place)
            files = {} if path is None else self.named(words, how, folder, place)
            if ranks := ranks_of(words):
                self.notes.append(f"'{label}' of '{workload.name}' starts {ranks} ranks, billed together")
        settings = {key: value for key, value in workload.settings().items() if key not in ("command", *HOW)}
        parts = [
            settings,
            words,
            how.model_dump(mode="json"),
            path,
            files,
            source_digest(),
            self.device_name,
            self.suite.digest_source()["measure"],
            self.suite.trials.given_threads,
            self.suite.quality_of(workload).model_dump(mode="json"),
        ]
        return Cell(
            workload=workload.name, method=label, role=role, command=words, skipped=skipped, digest=digest(parts)
        )

    def known(self, workload: CommandWorkloadTable, number: int) -> None:
        """Names in the path of a file that quality is read from; a method's sweep has no part in it."""
        self.mistyped(
            workload.quality.paths,
            workload.options,
            self.spec.where("workload", number, "quality", "path"),
            filled=False,
        )

    def mistyped(self, texts: Sequence[str], known: Mapping[str, object], place: str, *, filled: bool = True) -> bool:
        """Whether a {name} stands there that nothing gives a value to; each is told.

        filled: what is known has been filled in already
        """
        left = dict.fromkeys(name for text in texts for name in sorted(placeholders(text)))
        wrong = [name for name in left if name not in ALWAYS and (filled or name not in known)]
        for name in wrong:
            near = nearest(name, {*ALWAYS, *known})
            hint = f"{near} Where the braces are meant: {{{{{name}}}}}"
            self.wrong("E205", f"nothing gives a value to {{{name}}}", place, hint)
        return bool(wrong)

    def folder(self, how: RunTable, place: str) -> Path:
        """Where a command looks for its files: the suite's folder, or its own."""
        if how.cwd in (None, COPY) or placeholders(how.cwd or ""):
            return self.base
        folder = self.base / str(how.cwd)
        if not os.path.isdir(folder):
            hint = 'a folder, from the suite\'s; or cwd = "copy" for a copy of that for each trial'
            self.wrong("E422", f"there is no folder '{how.cwd}' to run in", place, hint)
            return self.base
        return folder

    def executable(self, words: list[str], how: RunTable, folder: Path, place: str) -> str | None:
        """Where the first word is found, as `exec` will find it; None with a problem where it is not."""
        word = words[0]
        path = shutil.which(str(folder / word) if "/" in word else word, path=how.env.get("PATH"))
        if path is None:
            self.wrong("E421", f"no program is called '{word}'", place, self._instead(word, folder))
            return None
        self.executables[word] = path
        name = Path(word).name
        if INTERPRETER.fullmatch(name) and len(words) > 1 and not words[1].startswith("-"):
            script = folder / words[1]
            if not os.path.exists(script) and "{" not in words[1]:
                as_written = Path(words[1])  # it may lead out of the suite's folder
                near = {str(as_written.with_name(file.name)) for file in list_folder(script.parent, script.suffix)}
                hint = nearest(words[1], near) or f"paths are relative to {self._called(how)}"
                self.wrong("E422", f"there is no file '{words[1]}' in {folder.name}/", place, hint)
        our_folder = Path(sys.executable).parent
        if name.startswith("python") and Path(path).parent != our_folder:
            self.notes.append(f"'{word}' is {path}; energybench itself runs in {our_folder}")
        return path

    @staticmethod
    def _called(how: RunTable) -> str:
        return "the suite's folder" if how.cwd in (None, COPY) else f"'{how.cwd}'"

    def _instead(self, word: str, folder: Path) -> str:
        if name := re.match(r"(\w+)=", word):
            return f'variables are set by env = {{ {name[1]} = "value" }} beside the command'
        if os.path.isfile(folder / word):
            if "/" in word:
                return f"make it a program: chmod +x {word}"
            return f"python {word}" if word.endswith(".py") else f"./{word}"
        if word.startswith("python"):
            return "activate your environment, or write the path of its python"
        return "install it, or write its whole path; a shell's own words need: sh -c '...'"

    def named(self, words: list[str], how: RunTable, folder: Path, place: str) -> dict[str, str]:
        """The files that a command names, wherever they stand, by their content; in a shell's string too, and by the
        seed or the number of a declared block. A package that is run by `-m` with all its modules."""
        texts = [*words, *filter(None, (how.stdin,))]
        blocks = range(self.spec.blocks if {"seed", "block"} & placeholders(" ".join(texts)) else 1)
        seed = self.suite.trials.seed
        filled = [word for b in blocks for word in fill_words(texts, {"seed": seed + b, "block": b})]
        ours = Path(self.executables[words[0]]).resolve() == Path(sys.executable).resolve()
        digests = command_files.named(filled, folder) | command_files.modules(words, folder, how.env, ours)
        if how.stdin and not placeholders(how.stdin) and not os.path.isfile(folder / how.stdin):
            self.wrong("E422", f"there is no file '{how.stdin}' to read from", place, f"from {self._called(how)}")
        if INTERPRETER.fullmatch(Path(words[0]).name):
            for name in command_files.missing_modules(words[:3], folder, how.env, ours):
                hint = nearest(name, command_files.neighbours(name, folder)) or "its package is not installed here"
                self.wrong("E422", f"there is no module '{name}'", place, hint)
        self.files |= digests
        return digests

    def wrong(self, code: str, message: str, place: str, hint: str) -> None:
        problem = Problem(code, message, place, hint)
        if problem not in self.problems:
            self.problems.append(problem)


def _portable(path: str) -> str:
    """A program without the folders of this machine."""
    return f"{Path(path).resolve().name} (program)"


if __name__ == "__main__":
    main(*sys.argv[1:3])
