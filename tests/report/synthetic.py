"""Records of runs that never were, with a truth to find again.

    run = Run(blocks=5).baseline().method("half", time=0.8, flop=0.5).run()

Every method multiplies the baseline's seconds, joules and FLOPs by the ratios given; `noise` is the sd of an
independent log-normal factor on every trial, drawn from a seeded generator.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

from energybench.meter.reading import Energy, Reading
from energybench.records.record import (
    Cell,
    Claim,
    Counted,
    CountingRun,
    Estimate,
    Flag,
    Invocation,
    Passes,
    RunFile,
    Trial,
)

SECONDS, JOULES, FLOP, SAMPLES = 10.0, 500.0, 3e12, 1000
GPU = ("gpu_counter", "gpu")
MODEL = ("model(cpu_load, tdp=85 W)", "cpu")


@dataclass(frozen=True)
class Truth:
    """One cell's truth, relative to plain training."""

    label: str
    role: str = "method"
    of: str | None = None
    time: float = 1.0
    energy: float = 1.0
    flop: float = 1.0
    estimate: float | None = None
    quality: float = 0.0
    claim: Claim | None = None
    epochs: float = 6.0


@dataclass
class Run:
    workload: str = "cnn-digits"
    blocks: int = 3
    noise: float = 0.0
    quality_noise: float = 0.0
    sensors: tuple[tuple[str, str], ...] = (MODEL,)
    error_j: float | None = 0.0  # of each measured sensor; None: it does not say
    accept: dict[str, Any] = field(
        default_factory=lambda: {
            "quality": {"metric": "accuracy", "loses_at_most": 0.005},
            "noise": 0.01,
            "estimate_gap": 0.02,
        }
    )
    stamp: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=lambda: {"cpu": "Imaginary 2-core", "torch": "2.11.0"})
    host: str | None = "imaginary"  # None: records that name none
    seed: int = 0
    schema: int = 4
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # as declared, by workload
    truths: list[Truth] = field(default_factory=lambda: [Truth("baseline", "baseline"), Truth("twin", "twin")])
    skipped: dict[str, str] = field(default_factory=dict)
    changes: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def method(self, label: str, **truth: Any) -> Run:
        self.truths.append(Truth(label, **truth))
        return self

    def control(self, of: str, **truth: Any) -> Run:
        self.truths.append(Truth(f"{of}@control", "control", of, **truth))
        return self

    def change(self, label: str, block: int, **fields: Any) -> Run:
        """Overwrite fields of one trial."""
        self.changes.setdefault((label, block), {}).update(fields)
        return self

    def skip(self, label: str, because: str) -> Run:
        self.skipped[label] = because
        return self

    def estimate(self, truth: Truth) -> Estimate:
        ratio = truth.flop if truth.estimate is None else truth.estimate
        plain = {"forward": FLOP / 3, "weight_gradient": FLOP / 3, "input_gradient": FLOP / 3}
        return Estimate(
            plain_flop=FLOP,
            estimated_flop=FLOP * ratio,
            plain_by_phase=plain,
            estimated_by_phase={phase: flop * ratio for phase, flop in plain.items()},
        )

    def passes(self, truth: Truth) -> Passes:
        steps, kind = round(10 * truth.epochs), "plain" if truth.flop == 1 else "sparse"
        samples = round(SAMPLES * truth.epochs)
        keys = {kind: {"steps": steps, "samples": samples}}
        return Passes(
            forwards=steps,
            backwards=steps,
            updates=steps,
            samples_forward=samples,
            epochs_trained=truth.epochs,
            keys=keys,
        )

    def energies(self, joules: float) -> list[Energy]:
        parts = [Energy(source=source, scope=scope, energy_j=joules) for source, scope in self.sensors]
        return [part.model_copy(update={"error_j": self.error_j}) if part.measured else part for part in parts]

    def trial(self, truth: Truth, block: int, invocation: int = 0, slow: float = 1.0) -> Trial:
        rng = random.Random(f"{self.seed} {truth.label} {block} {invocation}")
        factor = slow * math.exp(rng.gauss(0, self.noise))
        seconds, joules = SECONDS * truth.time * factor, JOULES * truth.energy * factor
        fields: dict[str, Any] = {
            "trial": f"b{block}-i{invocation}-{self.workload}.{truth.label}",
            "workload": self.workload,
            "method": truth.label,
            "role": truth.role,
            "of": truth.of,
            "block": block,
            "seed": 2026 + block,
            "invocation": invocation,
            "position": 0,
            "status": "ok",
            "digest": "d",
            "started_at": "2026-01-01T00:00:00Z",
            "environment": {"machine": {"host": self.host, "boot": self.host}} if self.host else {},
            "epochs": 6,
            "steps": 60,
            "samples": SAMPLES,
            "phases": {"train": Reading(wall_s=seconds, cpu_s=seconds, energy=self.energies(joules))},
            "data_wait_s": 0.0,
            "memory_resident_b": 300_000_000,
            "passes": self.passes(truth),
            "estimate": self.estimate(truth),
            "claim": truth.claim,
            "quality": {"accuracy": 0.9 + truth.quality + rng.gauss(0, self.quality_noise)},
        }
        fields |= self.changes.get((truth.label, block), {})
        if fields["status"] != "ok":
            fields |= {"phases": {}, "quality": {}, "passes": None}
        return Trial(**fields, schema=self.schema)

    def counting_run(self, truth: Truth) -> CountingRun:
        passes = self.passes(truth)
        kind, tally = next(iter(passes.keys.items()))
        counted = Counted(
            steps=tally["steps"],
            samples=tally["samples"],
            counted_steps=tally["steps"],
            flop_per_sample=FLOP * truth.flop / tally["samples"],
        )
        return CountingRun(
            schema=self.schema,
            workload=self.workload,
            method=truth.label,
            role=truth.role,
            seed=2026,
            digest="d",
            status="ok",
            counted_flop=FLOP * truth.flop,
            keys={kind: counted},
            passes=passes,
            estimate=self.estimate(truth),
            wall_s=9.0,
        )

    def run(self) -> RunFile:
        cells = [
            Cell(
                workload=self.workload,
                method=truth.label,
                role=truth.role,
                of=truth.of,
                claim=truth.claim,
                stack=[{"use": truth.label}] if truth.role == "method" else [],
            )
            for truth in self.truths
        ]
        cells += [
            Cell(workload=self.workload, method=label, role="method", skipped=because)
            for label, because in self.skipped.items()
        ]
        call = Invocation(number=0, argv=["run", "synthetic"], started_at="2026-01-01T00:00:00Z", outcome="done")
        return RunFile(
            schema=self.schema,
            suite="synthetic",
            about="A run that never was.",
            run="r1",
            digest="d",
            stamp=self.stamp,
            suite_path="synthetic.toml",
            suite_text="",
            resolved={"accept": self.accept},
            cells=cells,
            blocks=self.blocks,
            machine=self.machine,
            metrics=self.metrics,
            invocations=[call],
            finished=True,
        )

    def records(self) -> tuple[RunFile, list[Trial], list[CountingRun]]:
        trials = [self.trial(truth, block) for block in range(self.blocks) for truth in self.truths]
        counting_runs = [self.counting_run(truth) for truth in self.truths if truth.role != "control"]
        return self.run(), trials, counting_runs

    def truth(self, label: str) -> Truth:
        return next(truth for truth in self.truths if truth.label == label)


def merge(*runs: Run) -> tuple[RunFile, list[Trial], list[CountingRun]]:
    """Several workloads in one run."""
    parts = [each.records() for each in runs]
    cells = [cell for run, _, _ in parts for cell in run.cells]
    first = parts[0][0].model_copy(update={"cells": cells})
    return first, [t for _, ts, _ in parts for t in ts], [w for _, _, ws in parts for w in ws]


__all__ = ["FLOP", "GPU", "JOULES", "MODEL", "SECONDS", "Flag", "Run", "Truth", "merge", "replace"]
