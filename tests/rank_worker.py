"""Two ranks over gloo, started once: `python rank_worker.py FOLDER` leaves what they found in FOLDER/*.json.

Each part of it forks from here before anything computes, as a trial does, and brings its own two ranks together by the
code that trials use. What is not a fault lies in `together.json`: name of a check → what it saw.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from support import CPU, digits, tiny_cnn, tiny_mlp, vectors
from torch import Tensor, nn

from energybench.common.hashing import stable_seed
from energybench.train import discovery
from energybench.train.batch import Batch, Forward
from energybench.train.data import Data
from energybench.train.fingerprint import parameters_fingerprint
from energybench.train.method import Method
from energybench.train.rank_run import RankRun
from energybench.train.ranks import Ranks
from energybench.train.recipe import Recipe
from energybench.train.run import Diverged, Run
from energybench.trial import rank_processes
from energybench.trial.counting_layer import CountedRun, RankCountedRun, StepCounter
from energybench.trial.failure import fill_and_write
from energybench.trial.on_ranks import facts, report_of
from energybench.trial.record_draft import CountingRunDraft
from energybench.workloads.tasks.classification import Classification

SEED = 7
ALWAYS = {"drop": 0.5, "schedule": "constant"}
REMEMBERS = {"alpha": 0.25, "epsilon": 0.125}
# Each ends every epoch with the same weights on all ranks.
STACKS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "plain": [],
    "gradsamp": [("gradsamp", {"skip": "every:2"})],
    "ssprop": [("ssprop", ALWAYS)],
    "gradsamp and ssprop": [("gradsamp", {"skip": "every:2"}), ("ssprop", ALWAYS)],
    "importance": [("importance", REMEMBERS)],
    "low": [("low", {})],
    "mezo": [("mezo", {"lr": 0.01})],
    "noises": [("dropout", {"p": 0.2}), ("gni", {"sigma": 0.1}), ("ema", {"decay": 0.9})],
    "sgld": [("sgld", {})],
    "ultimate": [("ultimate", {})],
    "with_replacement": [("with_replacement", {})],
}
# Each is, on two ranks, what it is in one process.
LIKE_ONE = {"plain": [], "importance": STACKS["importance"], "low": [("low", {})], "mezo": [("mezo", {"lr": 0.01})]}
# So is each of these, on layers that add to what they are given.
LIKE_ONE_ON_SUMS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "layer_freezing": [("layer_freezing", {"share": 0.75, "start": 0.3})],
    "layer_drop": [("layer_drop", {"drop": 0.4})],
    "stochastic_depth": [("stochastic_depth", {"keep_last": 0.4})],
}


def methods(stack: Sequence[tuple[str, dict[str, Any]]]) -> list[Method]:
    return [discovery.build(discovery.load(discovery.sources()[name]), name, given) for name, given in stack]


def flat_cnn() -> nn.Module:
    """Without BatchNorm, whose statistics are each rank's own."""
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


class Sum(nn.Module):
    """x + W·tanh(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x.tanh())
        return y


def sums() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), Sum(), Sum(), nn.Linear(5, 3)).double()


def make(
    ranks: Ranks | None,
    stack: Sequence[Method] = (),
    *,
    model: Callable[[], nn.Module] = tiny_cnn,
    data: Data | None = None,
    task: Any = None,
    epochs: int = 3,
    batch: int = 32,
    counter: StepCounter | None = None,
    **recipe: Any,
) -> Any:
    torch.manual_seed(stable_seed(SEED, "init"))
    settings = Recipe(epochs=epochs, batch=batch, **{"lr": 0.05, "momentum": 0.9} | recipe)
    kind: Any = Run if ranks is None else partial(RankRun, ranks=ranks)
    if counter is not None:
        counted = CountedRun if ranks is None else partial(RankCountedRun, ranks=ranks)
        kind = partial(counted, counting=counter)
    given = digits(96) if data is None else data
    return kind(task or Classification(), list(stack), settings, model(), given, seed=SEED, device=CPU)


def double(ranks: Ranks | None, stack: Sequence[Method] = (), **settings: Any) -> Any:
    """A small network in double precision."""
    defaults: dict[str, Any] = {"model": lambda: tiny_mlp().double(), "data": vectors(37), "batch": 8}
    return make(ranks, stack, **defaults | settings)


def trained(run: Run) -> list[Tensor]:
    run.train()
    return [parameter.detach() for parameter in run.model.parameters()]


def furthest(ranks: Ranks, build: Callable[[Ranks | None], Run]) -> float:
    """How far two ranks' weights end from one process's, over the largest of these."""
    several, alone = trained(build(ranks)), trained(build(None))
    apart = max((a - b).abs().max().item() for a, b in zip(several, alone, strict=True))
    return apart / max(b.abs().max().item() for b in alone)


# ── what is decided by one rank alone ─────────────────────────────────────────────────────────────────────────────


class NoNumber(Classification):
    """The loss of rank 1 is no number in the last step of epoch 2, in its forward pass alone."""

    def forward(self, run: Any, batch: Batch) -> Forward:
        forward = super().forward(run, batch)
        lost = run.rank_key and run.epoch_number == 2 and run.step_in_epoch == run.steps_per_epoch - 1
        factor = float("nan") if lost else 1.0
        return replace(forward, value=forward.value * factor, each=forward.each * factor)


class Skips(Method):
    """Rank 1 leaves out the second update of each epoch."""

    def gradients(self, run: Any, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        forward = inner(batch)
        if run.rank_key and run.step_in_epoch == 1:
            run.skip_update = True
        return forward


class Stops(Method):
    """Rank 1 has enough after the second epoch."""

    def epoch(self, run: Any, data: Data, inner: Callable[[Data], None]) -> None:
        inner(data)
        if run.rank_key and run.epoch_number == 2:
            run.stop_after_epoch("enough")


class Thaws(Method):
    """The first layer learns from the second epoch on."""

    def setup(self, run: Any) -> None:
        next(iter(run.model.parameters())).requires_grad = False

    def epoch(self, run: Any, data: Data, inner: Callable[[Data], None]) -> None:
        if run.epoch_number == 2:
            next(iter(run.model.parameters())).requires_grad_()
        inner(data)


class Unused(nn.Module):
    """Has a layer that no forward pass calls."""

    def __init__(self) -> None:
        super().__init__()
        self.never, self.used = nn.Linear(3, 3), tiny_mlp()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


class Drifts(Method):
    """Each rank moves by a number of its own."""

    def update(self, run: Any, part: str, inner: Callable[[str], None]) -> None:
        inner(part)
        with torch.no_grad():
            next(iter(run.model.parameters())).add_(len(run.rank_key))


def diverged(ranks: Ranks) -> list[Any]:
    run = make(ranks, model=flat_cnn, task=NoNumber())
    try:
        run.train()
    except Diverged:
        return ranks.gather([len(run.curve), run.curve[0]["loss"]])
    return ranks.gather("went on")


# ── all checks ────────────────────────────────────────────────────────────────────────────────────────────────────


def checks(ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, stack in STACKS.items():
        run = make(ranks, methods(stack), epochs=4)
        same: list[bool] = []
        run.train(lambda run, same=same: same.append(len(set(ranks.gather(parameters_fingerprint(run.model)))) == 1))
        found[f"same weights: {name}"] = same
        if name == "importance":
            memory = run.methods[0].saved_tensors()["importance_0"]
            found["same memory"] = len({tuple(each) for each in ranks.gather(memory.tolist())}) == 1
        if name == "ssprop":
            found["said of ssprop"] = facts([report_of(run)] * ranks.world, run)
        run.finish()
    for name, stack in LIKE_ONE.items():
        found[f"like one: {name}"] = furthest(ranks, lambda r, stack=stack: double(r, methods(stack)))
    for name, stack in LIKE_ONE_ON_SUMS.items():
        found[f"like one: {name}"] = furthest(ranks, lambda r, stack=stack: double(r, methods(stack), model=sums))
    for samples in (511, 513):
        data = vectors(samples)
        found[f"like one: {samples}"] = furthest(ranks, lambda r, data=data: double(r, data=data, batch=512))
        run = double(ranks, data=data, batch=512)
        trained(run)
        found[f"curve: {samples}"] = [point["loss"] for point in run.curve]
        found[f"forwarded: {samples}"] = ranks.gather(run.tally.samples_forward)
    found["like one: accumulate"] = furthest(ranks, lambda r: double(r, accumulate=3, clip=0.5))
    found["like one: float32"] = furthest(
        ranks, lambda r: make(r, model=flat_cnn, data=digits(95, augment=("flip", "crop1")), epochs=2)
    )
    found["like one: thaws"] = furthest(ranks, lambda r: double(r, [Thaws()]))
    found["like one: unused"] = furthest(ranks, lambda r: double(r, model=lambda: Unused().double(), decay=0.1))
    one = double(None)
    one.train()
    several = double(ranks)
    several.train()
    found["curves"] = [[point["loss"] for point in run.curve] for run in (one, several)]
    found["tallied"] = [run.tally.samples for run in (one, several)]
    found["diverged"] = diverged(ranks)
    for name, method in (("skips", Skips), ("stops", Stops), ("drifts", Drifts)):
        run = make(ranks, [method()], model=flat_cnn, epochs=3)
        run.train()
        told = [run.tally.updates, run.epochs_ended, parameters_fingerprint(run.model), run.stop_reason]
        found[name] = ranks.gather(told)
    for name, stack in (("plain", []), ("ssprop", STACKS["ssprop"])):
        found[f"count: {name}"] = counted(ranks, stack)
    return found


def counted(ranks: Ranks, stack: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The FLOPs of all ranks and of one process, and what else the counter and the tally saw."""
    alone = StepCounter(1000)
    run = make(None, methods(stack), counter=alone)
    run.train()
    one = alone.result(run)
    counter = StepCounter(1000)
    run = make(ranks, methods(stack), counter=counter)
    run.train()
    told = ranks.gather((report_of(run), counter.told()))
    if not ranks.first:
        return {}
    run.tally.add_ranks(report["tally"] for report, _ in told[1:])
    counter.add_ranks([count for _, count in told[1:]])
    both = counter.result(run)
    return {
        "flop": [one.counted_flop, both.counted_flop],
        "keys": [{key: [c.steps, c.samples, c.forwarded] for key, c in each.keys.items()} for each in (one, both)],
        "samples": [each.passes.samples_forward for each in (one, both)],
        "updates": [each.passes.updates for each in (one, both)],
        "unpriced": [name for name in both.uncounted_calls if name not in one.uncounted_calls],
    }


# ── the parts, each in a process of its own ───────────────────────────────────────────────────────────────────────


def bring_together(out: Path, first: Callable[[Ranks], Any], follow: Callable[[Ranks], Any]) -> None:
    """As a trial: its record is `out`, and what `first` gives beside it."""
    header = {"workload": "w", "method": "baseline", "role": "baseline", "seed": 0, "digest": ""}
    record = CountingRunDraft(**header, status="ok")
    spec: Any = SimpleNamespace(world=2, threads=2, device="cpu")

    def run(join: rank_processes.Join) -> None:
        found = first(join())
        out.with_suffix(".found.json").write_text(json.dumps(found), encoding="utf-8")

    fill_and_write(record, lambda: rank_processes.together(spec, record, str(out), run, follow), str(out))


def killed(ranks: Ranks) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails(ranks: Ranks) -> None:
    raise ValueError("this one cannot go on")


def keeps_on(ranks: Ranks) -> None:
    ranks.barrier()


def unaware(ranks: Ranks) -> None:
    """The first rank waits in something that learns nothing of the others, as in a kernel."""
    time.sleep(600)


PARTS: dict[str, tuple[Callable[[Ranks], Any], Callable[[Ranks], Any]]] = {
    "together": (checks, checks),
    "killed": (keeps_on, killed),
    "fails": (keeps_on, fails),
    "unaware": (unaware, killed),
    "first": (fails, keeps_on),
}


def main(folder: str) -> None:
    rank_processes.GRACE_S = 0.2
    torch.set_num_threads(1)
    pids = []
    for name, (first, follow) in PARTS.items():
        pid = os.fork()
        if not pid:
            os.setsid()
            (Path(folder) / f"{name}.pid").write_text(str(os.getpid()))
            bring_together(Path(folder) / f"{name}.json", first, follow)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1])
