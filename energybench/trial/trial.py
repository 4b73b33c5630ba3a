"""One trial: the only place where training meets metering. Runs in a process of its own; IN.json in, OUT.json out.

    set up → cool down → warm up (a Run and methods of its own) → idle → meter exactly the training → idle
           → evaluate, outside → finish

Also the witness: the same run, unmetered, under the FLOP counter.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import resource
import sys
import time
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from energybench.common.errors import CannotWrite
from energybench.common.quantities import is_figure
from energybench.common.sealed_files import write_bytes
from energybench.flops.intensity import explain
from energybench.flops.work import Line, Work
from energybench.meter import devices
from energybench.meter.facts import gpu_facts, keep_trace
from energybench.meter.reading import Energy, Reading
from energybench.meter.sensors import open_meters
from energybench.meter.window import Window, refuse_short
from energybench.records.record import (
    CountingRun,
    Estimate,
    Flag,
    Layer,
    Passes,
    ProfilingRun,
    Target,
    Trial,
    write_json,
)
from energybench.train.data import Data
from energybench.train.method import Method, parameters
from energybench.train.run import Diverged, Run
from energybench.trial.build import build, build_model, build_stack, build_task
from energybench.trial.counting_layer import CountingLayer
from energybench.trial.phase_profile import Stopwatch, TimedRun, in_turns, other_work, steps_per_epoch
from energybench.trial.phases import Phases
from energybench.trial.warmup import warm_up
from energybench.workloads import datasets

COUNTED_STEPS = 48  # counted steps per cell; every epoch contributes
UNSEEN = 'it was used and not metered: [measure] gpus = "all", or its UUID'
LAYERS = 3  # of an estimate, named in the record


def main(in_path: str, out_path: str) -> None:
    """Run the trial or witness that IN.json describes and write its record, whatever happens to it.

    Raises CannotWrite where nothing can be kept: a full disk is no fault of the method's.
    """
    spec = json.loads(Path(in_path).read_text(encoding="utf-8"))
    if spec.get("threads"):
        torch.set_num_threads(spec["threads"])
    kind = CountingRun if spec["mode"] == "witness" else Trial
    record: dict[str, Any] = dict(spec["header"])
    if kind is Trial:
        record["started_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        (counting_run if kind is CountingRun else trial)(spec, record)
        record.setdefault("status", "ok")
    except CannotWrite:
        raise
    except Exception as error:
        traceback.print_exc()
        record["status"], record["reason"] = _verdict_on(error)
    write_json(Path(out_path), kind.model_validate(record))


def trial(spec: dict[str, Any], record: dict[str, Any]) -> None:
    """Fill `record` step by step, so that a failure keeps what was known before it."""
    device, measure = torch.device(spec["device"]), spec["measure"]
    synchronise = partial(wait_for_devices, device)
    phases = Phases(record.setdefault("phases", {}), synchronise)
    record["device"] = spec["device_name"]
    meters = open_meters(measure, spec["device_name"])  # first, so that they see who is on the card before we are
    record["environment"] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
        "gpus": gpu_facts(meters),
    }
    with phases.phase("setup"):
        train, test = datasets.open_data(spec["data"], spec["workload"]["data"], device)
    record["flags"] = phases.cool_down(meters, measure["below_c"], measure["cooldown_s"])
    with phases.phase("warmup"):
        record["warmup"] = warm_up(build(spec, train, device), spec["warmup"], synchronise)
    with phases.phase("build"):
        run = build(spec, train, device)
    record |= {"epochs": run.epochs, "samples": len(train)}
    record["settings"] = {
        "workload": spec["workload"],
        "methods": [{"name": m.name, **parameters(m)} for m in run.methods],
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    phases.idle("idle_before", meters, measure["tick_s"])

    window = Window(meters, synchronise)
    goal = _Goal(spec["workload"].get("target"), window, test, phases)
    window.start()
    try:
        run.train(goal.after_epoch)
    finally:
        with contextlib.suppress(Exception):  # a device that failed cannot be synchronised either
            window.stop()
            phases.readings["train"] = with_every_card(refuse_short(window.reading()))
        record |= {
            "curve": run.curve,
            "passes": Passes(**asdict(run.tally.passes())),
            "steps": run.tally.steps,
            "data_wait_s": run.tally.data_wait_ns / 1e9,
            "target": goal.target,
        }
        for point in run.curve:
            point |= {key: None for key, value in point.items() if value is None or not is_figure(value, key)}
    phases.idle("idle_after", meters, measure["tick_s"])
    record["trace"] = keep_trace(window, spec.get("trace"))
    with phases.phase("evaluate"):
        record["quality"] = {key: value for key, value in run.evaluate(test).items() if is_figure(value, key)}
    record["memory_resident_b"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        record["memory_device_b"] = torch.cuda.max_memory_allocated(device)
    record["estimate"] = estimate(spec, run)
    record["diagnostics"] = {
        m.name: finite({**m.diagnostics(), **_explained(m), **keep_state(spec, m)}) for m in run.methods
    }
    if run.stop_reason is not None:
        record["epochs"] = run.epochs_ended
        record["diagnostics"]["ended_early"] = {"after_epoch": run.epochs_ended, "reason": run.stop_reason}
    record["flags"] += [Flag(code="inert", detail=m.name) for m in run.methods if m.acted is False]
    if lost := next((e for e in phases.readings["train"].energy if e.lost), None):
        record["status"] = "invalid"
        record["reason"] = f"sensor lost: {lost.source} {lost.device}: {lost.reason}"
    if dead := run.uncalled_overrides():
        record["status"], record["reason"] = "invalid", f"dead layer: {', '.join(dead)} was never entered"
        record["flags"].append(Flag(code="dead_layer", detail=", ".join(dead)))
    run.finish()
    record["weights_sha256"] = fingerprint(run.model)


def counting_run(spec: dict[str, Any], record: dict[str, Any]) -> None:
    """The same run under the counter: no meters, no evaluation."""
    started = time.perf_counter()
    device = torch.device(spec["device"])
    train, _ = datasets.open_data(spec["data"], spec["workload"]["data"], device)
    layer = CountingLayer(COUNTED_STEPS)
    run = build(spec, train, device, layer)
    run.train()
    record |= layer.result(run)
    record["estimate"] = estimate(spec, run)
    record["wall_s"] = time.perf_counter() - started
    if spec["header"]["role"] == "method":
        record["shadow"] = profiling_run(spec, train, device, run)


def profiling_run(spec: dict[str, Any], train: Data, device: torch.device, run: Run) -> ProfilingRun:
    """Where the time goes, from a few steps of every epoch; whatever goes wrong, the count stands."""

    def timed(stack: list[Method]) -> TimedRun:
        watch = Stopwatch(partial(wait_for_devices, device))
        model = build_model(spec["workload"], spec["data"], Path(spec["base"]), run.seed)
        return TimedRun(
            build_task(spec["workload"], Path(spec["base"])),
            stack,
            run.recipe,
            model.to(device),
            train,
            seed=run.seed,
            device=device,
            epochs=spec.get("epochs"),
            watch=watch,
            limit=steps_per_epoch(run.epochs),
        )

    keys = {key: counts["steps"] for key, counts in run.tally.passes().keys.items()}
    try:
        ours = timed(build_stack(spec["stack"]))
        found = in_turns(timed([]), ours, keys)
        return ProfilingRun(reason=why) if (why := other_work(estimate(spec, ours), estimate(spec, run))) else found
    except Exception as error:
        return ProfilingRun(reason=_verdict_on(error)[1])


def wait_for_devices(device: torch.device) -> None:
    """Wait for every card that this process uses: a model may have spread over several."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        for number in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(number):  # one that is not used stays without a context
                torch.cuda.synchronize(number)


def with_every_card(reading: Reading) -> Reading:
    """The reading, and of each card that this process used beside those that were metered that it has no figure."""
    cards = {energy.device for energy in reading.energy if energy.scope == "gpu" and energy.device}
    unseen = [
        Energy(source="unavailable", scope="gpu", device=uuid, reason=UNSEEN)
        for uuid in sorted(devices.uuids() - cards)
        if cards
    ]
    return reading.model_copy(update={"energy": [*reading.energy, *unseen]}) if unseen else reading


def works(spec: dict[str, Any], run: Run) -> tuple[Work, Work]:
    """The ledger of plain training, and what the stack's formulas make of it, innermost first."""
    lines = tuple(Line(**line) for line in spec["ledger"])
    plain = Work(lines, epochs=run.recipe.epochs, samples=run.data.samples(run.recipe.batch))
    work = plain.trained(run.epochs if run.stop_reason is None else run.epochs_ended)
    for method in reversed(run.methods):
        work = method.estimate(work)
    return plain, work


def estimate(spec: dict[str, Any], run: Run) -> Estimate | None:
    """Both in figures, with the layers that save most; None where the model could not be traced."""
    if not spec.get("ledger"):
        return None
    plain, work = works(spec, run)
    per_step = run.recipe.batch / run.recipe.accumulate
    told = explain(plain, work, per_step, spec.get("balance_flop_b"))
    layers = [
        Layer(
            name=group.name,
            flop_saved_rel=group.flop_saved_rel,
            bytes_saved_rel=group.bytes_saved_rel,
            intensity_flop_b=group.intensity if math.isfinite(group.intensity) else None,
        )
        for group in told.groups
        if group.estimated_flop < group.plain_flop
    ]
    return Estimate(
        plain_flop=plain.flop,
        estimated_flop=work.flop,
        plain_by_phase=plain.by_phase(),
        estimated_by_phase=work.by_phase(),
        plain_b=plain.moved_b(per_step),
        estimated_b=work.moved_b(per_step),
        balance_flop_b=told.balance_flop_b,
        memory_bound_rel=told.memory_bound_rel,
        roofline_saved_rel=told.time_saved_rel,
        layers=layers[:LAYERS],
    )


def fingerprint(model: torch.nn.Module) -> str:
    """sha256 over every tensor of the state, in order."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _explained(method: Method) -> dict[str, str]:
    """Why a method's estimate and its count lie apart, where it says so itself."""
    return {"gap_because": method.gap_because} if method.gap_because else {}


def keep_state(spec: dict[str, Any], method: Method) -> dict[str, str]:
    """Write what a method keeps beside the record, in NumPy's format; its place in the run's folder."""
    tensors = method.saved_tensors()
    if not tensors or not spec.get("trace"):
        return {}
    file = Path(spec["trace"]).parent.parent / "state" / f"{spec['header']['trial']}.{method.name}.npz"
    content = io.BytesIO()
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    np.savez_compressed(content, **arrays)
    write_bytes(file, content.getvalue())
    return {"state": f"{file.parent.name}/{file.name}"}


def finite(value: Any) -> Any:
    """`value` for a record: what is no finite number is null. Raises TypeError for what JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if is_figure(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"diagnostics() must be JSON-able, not {type(value).__name__}")


class _Goal:
    """The workload's target: evaluated after each epoch, outside the window, until it is reached."""

    def __init__(self, target: dict[str, Any] | None, window: Window, test: Data, phases: Phases) -> None:
        self.target = Target(**target) if target else None
        self._window, self._test, self._phases = window, test, phases

    def after_epoch(self, run: Run) -> None:
        run.curve[-1]["wall_s"] = self._window.elapsed_s()
        if self.target is None or self.target.epoch is not None:
            return
        self._window.stop()
        with self._phases.phase("evaluate"):
            quality = run.evaluate(self._test)
        reading = with_every_card(refuse_short(self._window.reading()))
        run.curve[-1] |= {self.target.metric: quality[self.target.metric], "wall_s": reading.wall_s}
        if quality[self.target.metric] >= self.target.at_least:
            self.target = self.target.model_copy(
                update={
                    "epoch": run.epoch_number,
                    "steps": run.tally.steps,
                    "wall_s": reading.wall_s,
                    "energy": reading.energy,
                }
            )
        if run.continues:  # a last piece without a step would be too short for any sensor
            self._window.start()


def _verdict_on(error: Exception) -> tuple[str, str]:
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, Diverged):
        return "diverged", text
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        place = f" ({Path(frame.filename).name}:{frame.lineno})"
    return ("out_of_memory" if memory else "failed"), f"{type(error).__name__}: {text}{place}"


if __name__ == "__main__":
    main(*sys.argv[1:3])
