"""Part 7. What goes wrong on a card, as records: its memory is not enough, its context is lost, Ctrl-C.

The memory is really asked for, more than any card has. The context is really lost: a kernel looks beyond the end of a
tensor, as a label that no class has makes it; the process can use the card no more, every other one can. On a fake card
a method raises the error that CUDA raises. Ctrl-C is the signal.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gpu import harness
from gpu.card import Card
from gpu.results import Results

from energybench.records.reader import read_folder

ASSERTED = "device-side assert triggered"
METHODS = f'''"""a: breaks in its own way"""

import time
from pathlib import Path

import torch

from energybench import Method


class Breaks(Method):
    """breaks: in a metered trial; the runs that count and rehearse train as ever"""

    def epoch(self, run, data, inner):
        if type(run).__name__ not in ("CountedRun", "TimedRun"):
            self.breaks(run)
        inner(data)


class Hungry(Breaks):
    """hungry: asks for a pebibyte on the device that trains"""

    def breaks(self, run):
        self.held = torch.empty(1 << 50, dtype=torch.uint8, device=run.device)


class Lost(Breaks):
    """lost: its context is"""

    def breaks(self, run):
        if run.device.type == "cpu":
            raise RuntimeError("CUDA error: {ASSERTED} (simulated)")
        torch.zeros(4, device=run.device)[torch.full((4,), 99, device=run.device)]
        torch.cuda.synchronize()


class Holds(Breaks):
    """holds: waits for Ctrl-C"""

    def breaks(self, run):
        (Path(__file__).parent / "held").touch()
        time.sleep(600)
'''


def measure(card: Card, results: Results) -> None:
    lost = "simulated: a method raises CUDA's error" if card.fake else "real: a kernel looked beyond a tensor's end"
    results.fact("the lost context is", lost)
    folder = Path.cwd() / "runs" / "failures"
    shutil.rmtree(folder.parent / "failures", ignore_errors=True)
    broken(card, results, folder / "broken")
    if results.left_s < 2 * harness.ENDING_S:
        results.check("Ctrl-C leaves whole records", None, "no time was left")
        return
    interrupted(card, results, folder / "interrupted")


def suite(card: Card, folder: Path, *classes: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "breaks.py").write_text(METHODS, encoding="utf-8")
    trials: dict[str, Any] = {"blocks": 1, "seed": 7, "twin": False, "threads": 1, "warmup": "1 steps"}
    trials |= {"limit": "60 s", "turns": "off", "cooldown": {"longest": "0 s"}}
    tables = {
        "": {"schema": 1, "suite": "gpu-failures"},
        "trials": trials,
        "measure": harness.measured(card.fake),
        "workload": {
            "name": "digits",
            "model": {"use": "cnn", "channels": [4, 4]},
            "data": {"use": "digits", "batch": 16, "subset": 64, "test_subset": 32},
            "train": {"epochs": 2, "lr": 0.1},
        },
    }
    methods = [{"name": each.lower(), "use": f"breaks.py:{each}"} for each in classes]
    return harness.write_suite(folder, tables, methods)


def broken(card: Card, results: Results, folder: Path) -> None:
    ran = harness.run(suite(card, folder, "Hungry", "Lost"), results.left_s - 2 * harness.ENDING_S)
    if ran.folder is None:
        results.check("the run began", False, " / ".join(ran.output.strip().splitlines()[-3:]))
        return
    _, trials, _ = read_folder(ran.folder)
    found = {trial.method: trial for trial in trials}
    for trial in trials:
        results.row("a run with broken methods", method=trial.method, status=trial.status, reason=trial.reason)

    def check(what: str, method: str, status: str, word: str = "") -> None:
        trial = found.get(method)
        if trial is None:
            results.check(what, None if ran.interrupted else False, "there is no such record")
            return
        results.check(what, trial.status == status and word in (trial.reason or ""), f"{trial.status}: {trial.reason}")

    check("a card's memory that is not enough is recorded as such", "hungry", "out_of_memory")
    check("a lost context is recorded with what CUDA said", "lost", "failed", ASSERTED)
    check("the trial beside them is whole", "baseline", "ok")


def interrupted(card: Card, results: Results, folder: Path) -> None:
    path = suite(card, folder, "Holds")
    ran = harness.run(path, results.left_s - harness.ENDING_S - 1, until=(folder / "held").exists)
    what = "Ctrl-C leaves whole records and exit code 130"
    if ran.folder is None or not (folder / "held").exists():
        results.check(what, None, "the trial that waits for it was not reached in time")
        return
    run, trials, _ = read_folder(ran.folder)
    outcomes = [invocation.outcome for invocation in run.invocations]
    results.row("a run that Ctrl-C ended", exit_code=ran.code, trials=len(trials), outcome=", ".join(outcomes))
    held = any(trial.method == "holds" for trial in trials)
    results.check(
        what, ran.code == 130 and outcomes == ["interrupted"] and not held, f"exit code {ran.code}, {outcomes}"
    )
