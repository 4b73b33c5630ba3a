"""A cell once under the counter of FLOPs, unmetered, and where its time goes. IN.json in, OUT.json out."""

from __future__ import annotations

import sys
import time
from functools import partial

import torch

from energybench.meter import devices
from energybench.records.record import ProfilingRun
from energybench.train.data import Data
from energybench.train.fingerprint import fingerprint, moved
from energybench.train.method import Method
from energybench.train.ranks import Ranks
from energybench.train.run import Run
from energybench.trial.build import build, build_model, build_stack, recipe_of
from energybench.trial.counting_layer import CountedRun, RankCountedRun, StepCounter, StepCounts
from energybench.trial.estimate import estimate
from energybench.trial.failure import failure_of, fill_and_write
from energybench.trial.on_ranks import report_of, samples_of
from energybench.trial.phase_profile import Stopwatch, TimedRun, in_turns, other_work, steps_per_epoch
from energybench.trial.rank_processes import Join, together
from energybench.trial.record_draft import CountingRunDraft
from energybench.trial.spec import CountingSpec
from energybench.workloads import datasets
from energybench.workloads.tasks import task_named

COUNTED_STEPS = 48  # counted steps per cell; every epoch contributes


def main(in_path: str, out_path: str) -> None:
    """Run the counting run that IN.json describes and write its record, whatever happens to it.

    Raises CannotWrite where nothing can be kept.
    """
    spec = CountingSpec.read(in_path)
    if spec.threads and spec.world == 1:
        torch.set_num_threads(spec.threads)
    record = CountingRunDraft(**spec.header.model_dump(), status="ok")
    record.world = spec.world if spec.world > 1 else None
    fill = partial(counting_run, spec, record)
    if spec.world > 1:
        fill = partial(together, spec, record, out_path, fill, partial(_follow, spec))
    fill_and_write(record, fill, out_path)


def run_counted(spec: CountingSpec, train: Data) -> tuple[Run, StepCounts]:
    """Train, and what the counter saw of it."""
    counter = StepCounter(COUNTED_STEPS)
    run = build(spec, train, torch.device(spec.device), kind=partial(CountedRun, counting=counter))
    run.train()
    return run, counter.result(run)


def count_in_rank(spec: CountingSpec, ranks: Ranks) -> tuple[Run, StepCounts, str]:
    """The same in one of several ranks, each of which counts what it computes itself.

    Returns:
        The run, the sums over all ranks, and one hash of their samples; in another rank than the first its own counts.
    """
    train = datasets.open_part(spec.data, spec.workload.data, ranks.device, "train")
    counter = StepCounter(COUNTED_STEPS)
    run = build(spec, train, ranks.device, kind=partial(RankCountedRun, counting=counter), ranks=ranks)
    run.train()
    told = ranks.gather((report_of(run), counter.told()))
    reports = [report for report, _ in told]
    if ranks.first:
        run.tally.add_ranks(report["tally"] for report in reports[1:])
        counter.add_ranks([count for _, count in told[1:]])
    return run, counter.result(run), samples_of(reports)


def _follow(spec: CountingSpec, ranks: Ranks) -> None:
    count_in_rank(spec, ranks)


def counting_run(spec: CountingSpec, record: CountingRunDraft, join: Join | None = None) -> None:
    """The same run under the counter: no meters, no evaluation. join: as of `trial.trial`."""
    started = time.perf_counter()
    if join is None:
        train = datasets.open_part(spec.data, spec.workload.data, torch.device(spec.device), "train")
        run, counts = run_counted(spec, train)
        record.samples_sha256 = run.samples_sha256()
    else:
        run, counts, record.samples_sha256 = count_in_rank(spec, join())
    record.passes, record.keys, record.by_op = counts.passes, counts.keys, counts.by_op
    record.counted_flop, record.counted_error_flop = counts.counted_flop, counts.counted_error_flop
    record.outside_steps_flop, record.uncounted_calls = counts.outside_steps_flop, counts.uncounted_calls
    record.reason = counts.reason
    record.estimate = estimate(spec, run)
    run.finish()
    record.weights_sha256 = fingerprint(run.model)
    start = build_model(spec.workload, spec.data, spec.base, spec.seed, spec.weights)
    record.weights_moved = moved(run.model, start)
    record.wall_s = time.perf_counter() - started
    if spec.header.role == "method" and join is None:
        record.profiling_run = profiling_run(spec, train, run)
    elif spec.header.role == "method":
        record.profiling_run = ProfilingRun(reason=f"{spec.world} ranks wait for each other inside every phase")


def profiling_run(spec: CountingSpec, train: Data, run: Run) -> ProfilingRun:
    """Where the time goes, from a few steps of every epoch; whatever goes wrong, the count stands.

    train: as it was opened; the run's own has its inputs prepared by that stack's layers
    """
    device = run.device

    def timed(stack: list[Method]) -> TimedRun:
        watch = Stopwatch(partial(devices.synchronise, device))
        model = build_model(spec.workload, spec.data, spec.base, run.seed, spec.weights)
        return TimedRun(
            task_named(spec.workload.task, spec.base),
            stack,
            recipe_of(spec.workload),  # the run's own may be in a precision that its stack asks for
            model.to(device),
            train,
            seed=run.seed,
            device=device,
            watch=watch,
            limit=steps_per_epoch(run.epochs),
        )

    keys = {key: counts["steps"] for key, counts in run.tally.passes().keys.items()}
    try:
        method_run = timed(build_stack(spec.stack))
        profile = in_turns(timed([]), method_run, keys)
        reason = other_work(estimate(spec, method_run), estimate(spec, run))
        return ProfilingRun(reason=reason) if reason else profile
    except Exception as error:
        return ProfilingRun(reason=failure_of(error)[1])


if __name__ == "__main__":
    main(*sys.argv[1:3])
