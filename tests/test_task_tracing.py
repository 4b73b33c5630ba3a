"""What a task's forward pass may ask for while it is traced, and what is traced of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rounds import FedProx, Noisy, TwoDomains
from support import CPU, double_run, vectors
from torch import nn

from energybench import Batch, Data, Forward, Task
from energybench.common.errors import EnergybenchError
from energybench.runner.tracing import trace_run
from energybench.train.data import Resident
from energybench.train.first_steps import of_first_batch, shorter
from energybench.trial.counting_layer import StepCounter
from energybench.trial.estimate import works
from energybench.workloads.tasks.classification import Classification

SAMPLE = 210  # FLOPs of one in a step of the model 6 → 5 → 3


def flop(lines) -> float:
    return sum(line.flop for line in lines)


def test_a_forward_pass_that_draws_and_asks_for_the_run_is_traced_and_counted() -> None:
    counter = StepCounter(10**6)
    run = double_run(task=Noisy(), counter=counter, epochs=2)
    lines = trace_run(run, CPU).lines
    assert flop(lines) == SAMPLE
    run.train()
    assert works(lines, run)[1].flop == pytest.approx(counter.result(run).counted_flop)


def test_tracing_moves_no_stream_and_no_weight() -> None:
    run, plain = double_run(task=Noisy()), double_run(task=Noisy())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trace_run(run, CPU)
    assert torch.equal(torch.rand(3), expected)
    run.train()
    plain.train()
    assert run.samples_sha256() == plain.samples_sha256()
    for one, other in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert run.tally.passes() == plain.tally.passes()


@pytest.mark.parametrize("draw", ["normal_", "uniform_", "bernoulli_"])
def test_draws_into_a_tensor_are_traced_too(draw: str) -> None:
    class Draws(Classification):
        name = "draws"

        def forward(self, run, batch):
            noise = getattr(torch.empty_like(batch.inputs), draw)(generator=run.rng(self.name, device=run.device))
            return super().forward(run, replace(batch, inputs=batch.inputs + noise))

    assert flop(trace_run(double_run(task=Draws()), CPU).lines) == SAMPLE


def test_a_forward_pass_that_needs_the_state_of_its_epoch_is_traced_inside_it() -> None:
    class Proximal(FedProx):
        """The pull to the server is a part of the loss."""

        name = "proximal"
        gradients = Classification.gradients

        def forward(self, run, batch):
            plain = super().forward(run, batch)
            pull = sum(((p - s) ** 2).sum() for p, s in zip(run.model.parameters(), self._server, strict=True))
            return Forward(plain.value + 0.1 * pull, None, plain.outputs)

    run = double_run(task=Proximal(), batch=4)
    traced = trace_run(run, CPU)
    assert flop(traced.lines) == SAMPLE
    run.train()


def test_a_set_without_targets_is_traced() -> None:
    class Reconstructs(Task):
        name = "reconstructs"

        def forward(self, run, batch):
            assert batch.targets is None
            each = (run.model(batch.inputs) - batch.inputs).square().mean(1)
            return Forward(each.mean(), each, None)

    data = vectors()

    class Bare(Resident):
        def __init__(self) -> None:
            super().__init__(data.store.inputs, data.store.targets, CPU)

        def fetch(self, batches):
            for index, inputs, _ in super().fetch(batches):
                yield index, inputs, None

    run = double_run(task=Reconstructs(), model=lambda: nn.Linear(6, 6).double(), data=Data(Bare()))
    assert flop(trace_run(run, CPU).lines) == 2 * 2 * 6 * 6  # forward and dW


def test_what_cannot_be_traced_is_told_with_its_line() -> None:
    class Breaks(Classification):
        name = "breaks"

        def forward(self, run, batch):
            return super().forward(run, replace(batch, inputs=batch.inputs @ torch.ones(7, 7)))

    with pytest.raises(EnergybenchError) as caught:
        trace_run(double_run(task=Breaks()), CPU)
    assert caught.value.problems[0].code == "E403"
    assert "test_task_tracing.py" in caught.value.problems[0].message


# ── the batch that is traced and timed ────────────────────────────────────────────────────────────────────────────────


def test_plain_training_is_traced_on_its_first_samples_as_they_are() -> None:
    run = double_run(batch=4)
    batch = of_first_batch(run, 11, lambda batch: batch)
    assert batch.index.tolist() == list(range(11))  # more than a batch has
    assert of_first_batch(run, None, len) == 4


@pytest.mark.parametrize(("size", "left"), [(None, 3), (5, 5), (4, 3)])
def test_a_batch_of_two_domains_is_cut_in_both_where_they_are_alike(size: int | None, left: int) -> None:
    run = double_run(task=TwoDomains(vectors(30), size), batch=4)
    batch = of_first_batch(run, 3, lambda batch: batch)
    assert (len(batch), len(batch.also["target"]), len(batch.also["target"].inputs)) == (3, left, left)


def test_what_is_left_of_a_batch_of_another_size_is_a_micro_batch_s() -> None:
    one = Batch(torch.zeros(8, 2), torch.zeros(8), torch.arange(8), torch.ones(8))
    other = Batch(torch.zeros(6, 2), None, torch.arange(6))
    cut = shorter(replace(one, also={"other": other}), 3, pieces=4)
    assert (len(cut), len(cut.weights), len(cut.also["other"])) == (3, 3, 2)
