"""One trial: the only place where training meets metering. Runs in a process of its own; IN.json in, OUT.json out.

    set up → cool down → warm up (a Run and methods of its own) → build, metered: what a method spends once
           → idle → meter exactly the training → idle → evaluate, by the judge → report → finish, metered

Where trials take turns the training is metered part by part, and the rests lie outside: `pause.py`.
The same run, unmetered, under the counter of FLOPs: `counting_run.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from energybench.common import machine
from energybench.common.quantities import is_figure
from energybench.common.sealed_files import write_bytes
from energybench.meter import devices
from energybench.meter.facts import gpu_facts, keep_trace
from energybench.meter.reading import Reading
from energybench.meter.sensors import open_meters
from energybench.meter.window import Window, refuse_short
from energybench.process import heap_layout
from energybench.records.curve import key_of
from energybench.records.record import Flag, Passes, Target
from energybench.suite.quality_tables import TargetTable
from energybench.train.fingerprint import fingerprint, moved
from energybench.train.learning_parameters import LEFT_OUT
from energybench.train.method import Method, parameters
from energybench.train.run import Run
from energybench.trial.budget import budget
from energybench.trial.build import build, build_model, recipe_of
from energybench.trial.estimate import estimate
from energybench.trial.failure import fill_and_write
from energybench.trial.judge import Judge
from energybench.trial.pause import Gate, PausingControlRun, PausingRun, spare
from energybench.trial.phases import Phases
from energybench.trial.record_draft import TrialDraft, finite
from energybench.trial.rehearsal import rehearsal
from energybench.trial.spec import TrialSpec
from energybench.trial.warmup import warm_up
from energybench.workloads import datasets
from energybench.workloads.tasks import task_named

MOST_SKIPPED = 0.05  # of the updates, because a gradient overflowed in fp16
MOST_NAMED = 1000  # parameters in a record
UNSEEN = 'it was used and not metered: [measure] gpus = "all", or its UUID'


def main(in_path: str, out_path: str) -> None:
    """Run the trial that IN.json describes and write its record, whatever happens to it.

    Raises CannotWrite where nothing can be kept: a full disk is no fault of the method's.
    """
    spec = TrialSpec.read(in_path)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    record = TrialDraft(**spec.header.model_dump(exclude={"started_at"}), started_at=started_at, status="ok")
    fill_and_write(record, partial(trial, spec, record), out_path)


def trial(spec: TrialSpec, record: TrialDraft) -> None:
    """The whole trial, from opening the meters to the fingerprint of the weights."""
    device, measure = torch.device(spec.device), spec.measure
    synchronise = partial(devices.synchronise, device)
    phases = Phases(record.phases, synchronise)
    record.device = spec.device_name
    with phases.phase("open"):  # the meters first, so that they see who is on the card before we are
        meters = open_meters(measure.selection(), spec.device_name)
        spare(meters, spec.siblings)
        record.environment = {
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "load_average": os.getloadavg()[0],
            "gpus": gpu_facts(meters),
            "machine": machine.of_trial(),
        }
    with phases.phase("setup"):
        open_part = partial(datasets.open_part, spec.data, spec.workload.data, device)
        train, task = open_part("train"), task_named(spec.workload.task, spec.base)
        judge = Judge(task, recipe_of(spec.workload), partial(open_part, "test"))
    record.flags = phases.cool_down(meters, measure.below_c, measure.cooldown_s)
    with phases.phase("warmup_build", meters):
        warming = build(spec, train, device)
    with phases.phase("warmup"):
        record.warmup = warm_up(warming, spec.warmup, synchronise)
        del warming
    if gate := Gate.opened(device):
        with phases.phase("setup"):
            gate.rehearse = rehearsal(spec, train, device)
    heap_layout.draw()
    with phases.phase("build", meters):
        pausing = PausingRun if spec.budget is None else PausingControlRun
        run = build(spec, train, device, task, partial(pausing, gate=gate) if gate else None)
    judge.watch(run)
    methods = list(run.methods)
    record.epochs, record.samples = run.epochs, len(train)
    record.settings = {
        "workload": spec.workload.settings(),
        "methods": [{"name": m.name, **parameters(m)} for m in methods],
        **({"task": {"use": spec.workload.task_use, **given}} if (given := parameters(task)) else {}),
        **({"weights": spec.weights.model_dump(mode="json")} if spec.weights else {}),
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    phases.idle("idle_before", meters, measure.tick_s)

    heap_layout.draw()  # weights lie where they are, and what each step allocates lies elsewhere
    window = Window(meters, synchronise)
    every_epoch = spec.workload.train.evaluate == "every epoch"
    tracker = TargetTracker(spec.workload.target, window, judge, phases, every_epoch=every_epoch)
    if gate:
        gate.ready(run, meters, phases.readings.get("idle_before"))
    window.start()
    try:
        if gate:
            gate.begin(window)
        run.train(tracker.after_epoch)
    finally:
        with contextlib.suppress(Exception):  # a device that failed cannot be synchronised either
            window.stop()
            phases.readings["train"] = devices.with_every_card(refuse_short(window.reading()), UNSEEN)
        for point in run.curve:
            point |= {key: None for key, value in point.items() if value is None or not is_figure(value, key)}
        record.curve = tracker.curve(run.curve, {})
        record.passes = Passes(**asdict(run.tally.passes()))
        record.steps, record.data_wait_s = run.tally.steps, run.tally.data_wait_ns / 1e9
        record.target = tracker.target
    if gate:
        gate.trained(phases.readings)
    with phases.phase("hash"):
        record.trained_sha256, record.samples_sha256 = judge.weights(), run.samples_sha256()
    phases.idle("idle_after", meters, measure.tick_s)
    record.trace = keep_trace(window, spec.trace)
    with phases.phase("evaluate"):
        record.quality = judge.quality(run)
    record.curve = tracker.curve(run.curve, record.quality)
    with phases.phase("report"):
        record.judged_sha256 = judge.weights()
        record.flags += judge.flags(run, record.trained_sha256, record.judged_sha256)
        record.memory_resident_b = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if device.type == "cuda":
            record.memory_device_b = torch.cuda.max_memory_allocated(device)
        record.estimate = estimate(spec, run)
        record.budget = budget(spec.ledger, run) if spec.header.role == "method" else spec.budget
        record.diagnostics = {m.name: diagnostics(m, spec) for m in methods}
        if of_task := diagnostics(task, spec):
            record.diagnostics[task.name] = of_task
        told_of_the_recipe(record, run)
        if run.stop_reason is not None:
            record.epochs = run.epochs_ended
            record.diagnostics["ended_early"] = {"after_epoch": run.epochs_ended, "reason": run.stop_reason}
        judge_run(record, run)
        record.environment["compiled"] = any(_compiled(module) for module in run.model.modules())
    with phases.phase("finish", meters):
        run.finish()
    with phases.phase("report"):
        record.weights_sha256 = fingerprint(run.model)
        start = build_model(spec.workload, spec.data, spec.base, spec.seed, spec.weights)
        record.weights_moved = moved(run.model, start)


def told_of_the_recipe(record: TrialDraft, run: Run) -> None:
    """What loss scaling did, and which parameters got a gradient and stood still."""
    if run.loss_scaler is not None:
        facts = record.diagnostics["loss_scaling"] = run.loss_scaler.told(run.tally.updates)
        if facts["skipped_share"] > MOST_SKIPPED:
            detail = f"{facts['updates_skipped']} updates, the scale ended at {facts['scale']:g}"
            record.flags.append(Flag(code="updates_skipped", detail=detail))
    if untrained := run.untrained():
        record.diagnostics["untrained"] = dict(list(untrained.items())[:MOST_NAMED])
        doubted = [f"{name}: {reason}" for name, reason in untrained.items() if reason != LEFT_OUT]
        if doubted:
            more = f" and {len(doubted) - 3} more" if len(doubted) > 3 else ""
            record.flags.append(Flag(code="untrained", detail="; ".join(doubted[:3]) + more))


def _compiled(module: torch.nn.Module) -> bool:
    """By `module.compile()` or `torch.compile(module)`: the counting run does the same eagerly, to other last bits."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def judge_run(record: TrialDraft, run: Run) -> None:
    """What this process alone can see: a method that never acted, a lost sensor, a hook that was never called."""
    record.flags += [Flag(code="inert", detail=m.name) for m in run.methods if m.acted is False]
    if lost := next((e for e in record.phases["train"].energy if e.lost), None):
        record.status, record.reason = "invalid", f"sensor lost: {lost.source} {lost.device}: {lost.reason}"
    if uncalled := ", ".join(run.uncalled_overrides()):
        record.status, record.reason = "invalid", f"dead layer: {uncalled} was never entered"
        record.flags.append(Flag(code="dead_layer", detail=uncalled))


def diagnostics(method: Method, spec: TrialSpec) -> dict[str, Any]:
    """What the record keeps of a method: its own word, why its estimate and its count lie apart, where its tensors are.

    Raises TypeError for what JSON does not have.
    """
    explained = {"gap_because": method.gap_because} if method.gap_because else {}
    tensors = keep_tensors(method, spec.trace, spec.header.trial)
    return {str(key): finite(value) for key, value in {**method.diagnostics(), **explained, **tensors}.items()}


def keep_tensors(method: Method, trace: Path | None, trial: str) -> dict[str, str]:
    """Write what a method keeps beside the record, in NumPy's format; its place in the run's folder."""
    tensors = method.saved_tensors()
    if not tensors or trace is None:
        return {}
    file = trace.parent.parent / "state" / f"{trial}.{method.name}.npz"
    content = io.BytesIO()
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    np.savez_compressed(content, **arrays)
    write_bytes(file, content.getvalue())
    return {"state": f"{file.parent.name}/{file.name}"}


class TargetTracker:
    """The task's metrics while the model trains, evaluated outside the window: after each epoch until the workload's
    target is reached, and after every epoch where the suite asks for it.

    They are kept here and not in `run.curve`, in which a method could read how its model does on the test set.
    """

    def __init__(
        self, target: TargetTable | None, window: Window, judge: Judge, phases: Phases, *, every_epoch: bool = False
    ) -> None:
        self._wanted = target
        self.target = Target(metric=target.metric, at_least=target.at_least, at_most=target.at_most) if target else None
        self._window, self._judge, self._phases, self._every_epoch = window, judge, phases, every_epoch
        self._quality: list[dict[str, float]] = []  # of the epochs that are over; empty where none was asked for

    def after_epoch(self, run: Run) -> None:
        run.curve[-1]["wall_s"] = self._window.elapsed_s()
        self._quality.append({})
        sought = self.target is not None and self.target.epoch is None
        if not sought and not (self._every_epoch and run.continues):  # the last is evaluated behind the window
            return
        self._window.stop()
        with self._phases.phase("evaluate"):
            quality = self._judge.quality(run)
        reading = devices.with_every_card(refuse_short(self._window.reading()), UNSEEN)
        run.curve[-1]["wall_s"] = reading.wall_s
        if sought:
            self._look(quality, run, reading)
        if self._every_epoch:
            self._quality[-1] = quality
        if run.continues:  # a last piece without a step would be too short for any sensor
            self._window.start()

    def _look(self, quality: dict[str, float], run: Run, reading: Reading) -> None:
        """Whether the target is reached now."""
        assert self._wanted is not None
        assert self.target is not None
        value = quality.get(self.target.metric)
        if value is None:  # no figure, such as the perplexity of a model that has gone astray
            return
        self._quality[-1] = {self.target.metric: value}
        if self._wanted.reached(value):
            now = {"epoch": run.epoch_number, "steps": run.tally.steps}
            self.target = self.target.model_copy(update=now | {"wall_s": reading.wall_s, "energy": reading.energy})

    def curve(self, points: Sequence[Mapping[str, float | None]], last: dict[str, float]) -> list[dict[str, Any]]:
        """A run's curve with the metrics of each epoch. last: of the trained model, so of the last epoch."""
        known = [*self._quality, *[{}] * (len(points) - len(self._quality))]  # an epoch that diverged was not evaluated
        if known and self._every_epoch and last:
            known[-1] = last
        return [
            {**point, **{key_of(name): value for name, value in quality.items()}}
            for point, quality in zip(points, known, strict=True)
        ]


if __name__ == "__main__":
    main(*sys.argv[1:3])
