"""Tasks whose epoch is no single pass over the training set: federated rounds, and steps of two domains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from energybench import Batch, Data, Forward, Passes
from energybench.train.run import Run
from energybench.workloads.tasks.classification import Classification


class FedProx(Classification):
    """A round: each of `active` clients, drawn anew, takes `local` epochs from the server's weights, to which it is
    drawn; the server takes their mean. The steps need what the round has set up."""

    name = "fedprox"
    replaces = frozenset({"epoch"})
    enters = frozenset({"batches", "step"})

    def __init__(self, shares: Iterable[int] = (1, 2, 3, 4, 6, 8), active: int = 3, local: int = 2) -> None:
        self.shares, self.active, self.local = tuple(shares), active, local
        self.trained: list[list[int]] = []  # clients of each round

    def setup(self, run: Run) -> None:
        places = torch.arange(len(run.data)).split(list(self.shares))
        self._clients = [run.data.subset(part) for part in places]

    def chosen(self, run: Run) -> list[int]:
        order = torch.randperm(len(self._clients), generator=run.rng(self.name, "clients", run.epoch_number))
        return order[: self.active].tolist()

    def passes(self, run: Run) -> Passes:
        sizes = [self._clients[client].sizes(run.recipe.batch) for client in self.chosen(run)]
        return Passes.of(size for each in sizes for _ in range(self.local) for size in each)

    def epoch(self, run, data, inner):
        self._server = [parameter.detach().clone() for parameter in run.parameters()]
        chosen = self.chosen(run)
        self.trained.append(chosen)
        sums = [torch.zeros_like(each) for each in self._server]
        for client in chosen:
            self._send(run)
            for _ in range(self.local):
                for batch in run.batches(self._clients[client]):
                    run.step(batch)
            for total, parameter in zip(sums, run.parameters(), strict=True):
                total += parameter.detach() / len(chosen)
        self._server = sums
        self._send(run)
        del self._server

    def _send(self, run: Run) -> None:
        with torch.no_grad():
            for parameter, value in zip(run.parameters(), self._server, strict=True):
                parameter.copy_(value)

    def gradients(self, run, batch, inner):
        forward = inner(batch)
        for parameter, value in zip(run.parameters(), self._server, strict=True):
            parameter.grad += 0.1 * (parameter.detach() - value)
        return forward


class TwoDomains(Classification):
    """Each batch has one of another set beside it; the forward pass sends both through the model at once."""

    name = "two-domains"

    def __init__(self, target: Data, size: int | None = None) -> None:
        self._target, self._size = target, size

    def batches(self, run, data, inner):
        for batch in inner(data):
            positions = torch.randint(
                len(self._target), (self._size or len(batch),), generator=run.rng(self.name, run.step_in_epoch)
            )
            yield replace(batch, also={"target": next(self._target.load([positions]))})

    def forward(self, run: Run, batch: Batch) -> Forward:
        source = super().forward(run, batch)
        outputs = run.model(batch.also["target"].inputs)
        confusion = -(outputs.softmax(1) ** 2).sum(1).mean()
        return Forward(source.value + confusion, None, source.outputs)


class Watched(Classification):
    """A second pass over each batch that learns nothing."""

    name = "watched"

    def passes(self, run: Run) -> Passes:
        return Passes.of(run.data.sizes(run.recipe.batch), forwards=2, backwards=1)

    def gradients(self, run, batch, inner):
        forward = inner(batch)
        run.forward(batch, "eval", grad=False)
        return forward


class Noisy(Classification):
    """Adds noise to its inputs that it draws itself, and asks for everything of a run that a pass may ask for."""

    name = "noisy"

    def forward(self, run: Run, batch: Batch) -> Forward:
        draws = run.rng(self.name, run.epoch_number, run.step_in_epoch)
        steps = torch.randint(0, 10, (len(batch),), generator=draws)
        noise = torch.randn(batch.inputs.shape, generator=draws, dtype=batch.inputs.dtype)
        on_device = torch.rand(len(batch), generator=run.rng("more", device=run.device), device=run.device)
        share = (run.epoch_number - 1 + run.step_in_epoch / run.steps_per_epoch) / run.epochs
        assert (run.seed, run.recipe.batch, len(run.data) > 0, len(run.task.parts)) == (7, 8, True, 1)
        keep: Tensor = (1 - share * steps / 10).to(run.device, batch.inputs.dtype)[:, None]
        inputs = keep * batch.inputs + 0.1 * noise.to(run.device) + 0 * on_device[:, None]
        return super().forward(run, replace(batch, inputs=inputs))
