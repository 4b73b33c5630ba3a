"""Part 5. gradsamp, ssprop, scotti and importance against plain training on CIFAR-10, by `energybench run`, in joules.

The suite is written for this card: a training is so long that its sensors decide (a counter's figure needs 50 ticks for
a verdict), whatever a step takes here. Where CIFAR-10 is not on the machine the pixels are made up, which is said.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu import harness
from gpu.card import Card
from gpu.results import Results

from energybench.common import data_folder
from energybench.meter.clock import REAL_TIME
from energybench.meter.counter import SensorError, infer_tick
from energybench.results import load

EPOCHS, BATCH, SMOKE_BATCH = 4, 128, 16
TICKS = 110  # in plain training: half of it is left of one that skips every second epoch
PIXELS = '''"""CIFAR-10's shapes, made up: each class has a colour and a slope, under noise."""

import torch


def pixels(train=50_000, test=2_000):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(60, 196, (10, 3, 8, 8), generator=generator).float()

    def part(count):
        labels = torch.arange(count) % 10
        coarse = levels[labels] + 40 * torch.randn(count, 3, 8, 8, generator=generator)
        images = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
        return images.clamp(0, 255).to(torch.uint8), labels

    return {"train": part(train), "test": part(test)}
'''
METHODS: list[dict[str, Any]] = [  # without matched controls: they would take as long again
    {"use": "gradsamp", "skip": "every:2", "control": "none"},
    {"use": "ssprop", "drop": 0.8, "dense_below": "auto", "control": "none"},
    {"use": "scotti", "control": "none"},
    {"use": "importance", "alpha": 0.1, "epsilon": 0.01, "control": "none"},
]


def measure(card: Card, results: Results) -> None:
    real = has_cifar()
    results.fact("pixels", "CIFAR-10" if real else "made up (no CIFAR-10 here), so that no accuracy means anything")
    folder = Path.cwd() / "runs" / "methods"
    shutil.rmtree(folder, ignore_errors=True)
    trained_s, step_s = lengths(card, results.left_s / 4)
    samples = card.size(min(50_000, max(4 * BATCH, int(trained_s / EPOCHS / step_s) * BATCH)), 64)
    steps = samples / card.size(BATCH, SMOKE_BATCH)
    epochs = max(EPOCHS, 2 * round(trained_s / 2 / step_s / steps))  # even: every second one is skipped
    results.fact("step_s", step_s)
    results.fact("training images", samples)
    results.fact("epochs", epochs)
    suite = write(card, folder, real, samples, epochs)
    ran = harness.run(suite, results.left_s - harness.ENDING_S - 10)
    results.fact("energybench run ended with", ran.code)
    results.fact("it was cut short", ran.interrupted)
    if ran.folder is None:
        last = ran.output.strip().splitlines()[-3:]
        results.check("the run began", False, " / ".join(last))
        return
    report(results, ran.folder)
    if not ran.interrupted:  # exit code 3: a trial is invalid, which its record tells
        results.check("the run ended well", ran.code == 0, f"exit code {ran.code}")


def has_cifar() -> bool:
    """Whether CIFAR-10 lies where a suite finds it by name, without a download."""
    root = data_folder.of("cifar10") or data_folder.root()
    return (root is not None and any(root.rglob("cifar-10-batches-py"))) or data_folder.of("cifar10") is not None


def lengths(card: Card, limit_s: float) -> tuple[float, float]:
    """(seconds that plain training is to take, of which there are 15 in a short run; seconds of its step).

    The step is timed in a process that ends: this one's context on the card would make every trial one beside which
    another process has used the card.
    """
    kind = "fake" if card.fake else "real"
    timed = subprocess.run(
        [sys.executable, "-m", "gpu.step_time", kind], timeout=limit_s, stdout=subprocess.PIPE, text=True, check=True
    )
    step_s = float(timed.stdout.split()[-1])
    try:
        tick_s = infer_tick(card.sensors.energy_j, REAL_TIME).seconds
    except SensorError:
        tick_s = 0.1
    if card.fake:
        return TICKS * tick_s, step_s
    return (max(TICKS * tick_s, 90.0) if card.long else min(max(TICKS * tick_s, 3.0), 6.0)), step_s


def write(card: Card, folder: Path, real: bool, samples: int, epochs: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "pixels.py").write_text(PIXELS, encoding="utf-8")
    trials = {"blocks": 3, "seed": 2026, "twin": False, "warmup": "10 steps", "limit": "10 min"}
    trials |= {"turns": card.size("auto" if card.long else "off", "off"), "cooldown": {"longest": "5 s"}}
    if card.fake:
        trials |= {"warmup": "1 steps", "threads": 1}
    data: dict[str, Any] = {"use": "cifar10" if real else "pixels.py:pixels", "batch": card.size(BATCH, SMOKE_BATCH)}
    data |= {"subset": samples, "test_subset": card.size(2000, 32)}
    if not real:
        data["options"] = {"train": max(samples, card.size(2000, 64)), "test": card.size(2000, 32)}
    train = {"epochs": epochs, "lr": 0.05, "momentum": 0.9, "schedule": "cosine"}
    model = card.size({"use": "resnet18", "stem": "small"}, {"use": "cnn", "channels": [4, 4]})
    if not card.fake:
        train["precision"] = "bf16"
    tables = {
        "": {"schema": 1, "suite": "gpu-methods", "about": "Is the meter of a card able to decide?"},
        "trials": trials,
        "measure": harness.measured(card.fake),
        "accept": {"margin": "2 %", "quality": {"metric": "accuracy", "loses_at_most": "5 pp"}},
        "workload": {"name": "cifar10" if real else "made-up-pixels", "model": model, "data": data, "train": train},
    }
    return harness.write_suite(folder, tables, METHODS)


def report(results: Results, folder: Path) -> None:
    """Every method's line of the report, and every trial's joules."""
    found = load(folder)
    for trial in found.trials:
        window = trial.train
        energy = None if window is None else next((e for e in window.energy if e.source == "gpu_counter"), None)
        results.row(
            "trials",
            trial=trial.trial,
            status=trial.status,
            seconds=window and window.wall_s,
            gpu_counter_j=energy and energy.energy_j,
            error_j=energy and energy.error_j,
            reason=trial.reason or (energy and energy.reason),
        )
    for (_, method), row in found.comparisons.items():
        measured, time = row.measured, row.time
        results.row(
            "savings against plain training, in percent",
            method=method,
            blocks=row.n,
            estimated=_percent(row.estimated_rel),
            counted=_percent(row.counted_rel),
            measured=_percent(measured and measured.saving_rel),
            of=measured and f"{measured.quantity} {measured.scope}".strip(),
            low=_percent(measured and measured.low_rel),
            high=_percent(measured and measured.high_rel),
            time=_percent(time and time.saving_rel),
            verdict=row.verdict,
            reason=row.reason,
            flags=", ".join(sorted({flag.code for flag in row.flags})),
        )
        energy = measured is not None and measured.quantity == "energy"
        results.check(f"{method}: its saving is of measured energy", energy if row.n else None, row.reason)
        if row.n >= 3:  # what is inconclusive is a verdict; what a flag forbids is none
            results.check(f"{method}: a verdict on energy", row.verdict != "no verdict", row.verdict)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
