"""What the loop and its layers cost per step, against the same training written by hand."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energybench import discovery
from energybench.loop import Run
from energybench.recipe import Recipe
from energybench.workloads.classification import Classification
from energybench.workloads.data import Data, Resident

pytestmark = pytest.mark.perf

BATCH, STEPS, EPOCHS, REPEATS = 16, 32, 4, 15
# A step of 10 ms is 37 of the bare steps below where one takes 270 µs (two quiet cores of an AMD EPYC). The limit is
# 1 % of that, in bare steps: a ratio, because a machine that others use slows both sides alike, by up to 2.5×.
BARE_STEPS_IN_10_MS = 37
LIMIT = 0.01 * BARE_STEPS_IN_10_MS
TRAIN = {
    "epochs": EPOCHS,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "decay": 0.0,
    "schedule": "constant",
}
WORKLOAD = {"name": "w", "task": "classification", "model": {"use": "mlp"}, "data": {"use": "x", "batch": BATCH},
            "train": TRAIN | {"nesterov": False, "betas": None, "clip": None, "accumulate": 1, "precision": "fp32",
                              "label_smoothing": 0.0}}  # fmt: skip


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(BATCH * STEPS, 32, generator=generator),
            torch.randint(10, (BATCH * STEPS,), generator=generator))  # fmt: skip


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def bare() -> tuple[float, nn.Module]:
    """(seconds of training, the model): the same steps in the plainest loop, with the same accounting of the loss."""
    made, (inputs, targets) = model(), samples()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9)
    order_of = Run.rng
    started = time.perf_counter()
    for epoch in range(1, EPOCHS + 1):
        losses = []
        order = torch.randperm(len(inputs), generator=order_of(_Seed, "order", epoch))  # type: ignore[arg-type]
        for index in order.split(BATCH):
            loss = F.cross_entropy(made(inputs[index]), targets[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()
    return time.perf_counter() - started, made


class _Seed:
    seed = 7


def layered(names: list[str]) -> tuple[float, nn.Module]:
    """(seconds of training, the model) through `Run` with these methods."""
    made, (inputs, targets) = model(), samples()
    data = Data(Resident(inputs, targets, torch.device("cpu")))
    methods = []
    for number, name in enumerate(names):
        source = discovery.find(name)
        methods.append(discovery.build(discovery.load(source), f"{name}{number}", {}))
    run = Run(
        Classification(),
        methods,
        Recipe.of(WORKLOAD),
        made,
        data,
        seed=_Seed.seed,
        device=torch.device("cpu"),
    )
    started = time.perf_counter()
    run.train()
    return time.perf_counter() - started, made


def interleaved() -> dict[str, list[float]]:
    """Seconds per step of each variant, in turns, after a round that is not counted."""
    variants: dict[str, Any] = {
        "bare": bare,
        "run": lambda: layered([]),
        "nothing": lambda: layered(["nothing"]),
    }
    found: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(REPEATS + 1):
        for name, train in variants.items():
            seconds = train()[0] / (STEPS * EPOCHS)
            if turn:
                found[name].append(seconds)
    return found


def test_the_onion_costs_under_one_percent_of_a_ten_millisecond_step(energy_benchmark: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for attempt in range(1, 6):  # a machine that others use is noisy: look again
            found = interleaved()
            energy_benchmark.extra_info["attempts"] = attempt
            middle = {name: statistics.median(values) for name, values in found.items()}
            overhead = {name: middle[name] - middle["bare"] for name in ("run", "nothing")}
            if max(overhead.values()) < LIMIT * middle["bare"]:
                break
        energy_benchmark.extra_info |= {
            "bare_step_us": 1e6 * middle["bare"],
            "run_overhead_us": 1e6 * overhead["run"],
            "nothing_overhead_us": 1e6 * overhead["nothing"],
            "ratio_to_bare": middle["nothing"] / middle["bare"],
            "share_of_a_10_ms_step": overhead["nothing"] / middle["bare"] / BARE_STEPS_IN_10_MS,
            "repeats": REPEATS,
        }
        energy_benchmark.pedantic(lambda: layered(["nothing"]), rounds=3)
    finally:
        torch.set_num_threads(threads)
    print(energy_benchmark.extra_info)
    assert overhead["run"] / middle["bare"] < LIMIT
    assert overhead["nothing"] / middle["bare"] < LIMIT


def test_the_hand_written_loop_does_the_same_steps() -> None:
    """Or the comparison would mean nothing: bit-identical weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for names in ([], ["nothing"]):
            for mine, theirs in zip(layered(names)[1].parameters(), bare()[1].parameters(), strict=True):
                assert torch.equal(mine, theirs)
    finally:
        torch.set_num_threads(threads)
