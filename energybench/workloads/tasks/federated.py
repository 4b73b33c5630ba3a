"""Federated classification: an epoch is a round, in which a few of many clients train on samples of their own.

    the server's weights w₀ → each active client: local epochs from w₀ on its samples → the server's new weights

    fedavg    the mean of the active clients' weights, of each alike or by its samples (McMahan et al. 2017, Eq. 1)
    fedprox   the same, each client drawn to w₀ by λ/2·‖w − w₀‖² (Li et al. 2020)
    fedspeed  clients follow ∇f(w + ρ·g/‖g‖) + λ·(w − w₀ + hᵢ); hᵢ, the sum of client i's own moves w − w₀, stays with
              it, and the server adds the mean of all hᵢ (Sun et al. 2023)

Clients take turns on one device, so nothing here measures a network, waiting, or hardware of their own: what each would
have sent is counted beside the time and the energy of its training (`diagnostics`). A method that leaves an epoch out,
as gradsamp does, moves the server's weights and visits no client.

Hooks: `epoch` is the task's, and the steps in it go through the whole stack. FedProx and FedSpeed act in `gradients`,
so that methods which own that hook, such as mezo and low, are refused; FedSpeed owns `update` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from energybench.common.errors import Problem, UsageError
from energybench.train import trees
from energybench.train.batch import Batch, Forward
from energybench.train.passes import Passes
from energybench.workloads.tasks import client_splits
from energybench.workloads.tasks.classification import Classification

if TYPE_CHECKING:
    from energybench.train.data import Data
    from energybench.train.interface import TrainingRun

STREAM = "federated"  # of all algorithms: one seed splits the data and chooses clients alike for each
TINY = 1e-7  # beside a gradient's length, as the released code has it

Clients = Annotated[int, Field(ge=1, le=1_000_000)]
Split = Literal["iid", "dirichlet", "dirichlet-by-class"]
Concentration = Annotated[float, Field(ge=1e-3, le=1e6)]
Weighting = Literal["uniform", "size"]
Positive = Annotated[float, Field(ge=0, le=1e6)]


class Federated(Classification):
    """Base of the algorithms: clients, rounds, and a server that takes the mean of what comes back."""

    replaces: ClassVar[frozenset[str]] = frozenset({"epoch"})
    enters: ClassVar[frozenset[str]] = frozenset({"batches", "step"})
    lr_per_epoch: ClassVar[bool] = True  # clients train side by side, whatever turn they take here
    passes_per_step: ClassVar[int] = 1

    # Parameters, which each algorithm declares.
    clients: int
    active: int
    local_epochs: int
    split: Split
    concentration: float
    weighting: Weighting

    def incompatible_devices(self, devices: int) -> str | None:
        return "its clients take turns on one device, and a round would need every client on each"

    def __post_init__(self) -> None:
        if self.active > self.clients:
            raise ValueError(f"active = {self.active} of clients = {self.clients}: at most all of them")

    # ── clients ───────────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, run: TrainingRun) -> None:
        if run.recipe.warmup_epochs:
            message = f"'{self.name}': the learning rate is one for a round, and in a warm-up's first it would be 0"
            raise UsageError(Problem("E403", message, hint="take warmup_epochs out"))
        generator = run.rng(STREAM, "split")
        try:
            places = client_splits.split(run.data, self.split, self.clients, self.concentration, generator)
        except (ValueError, TypeError) as error:
            raise UsageError(Problem("E403", f"'{self.name}': {error}")) from None
        self._clients = [run.data.subset(each) for each in places]
        self._buffers = [name for name, _ in run.model.named_buffers()]  # before methods add their own
        self._start: dict[Tensor, Tensor] = {}  # what the server has sent, of each tensor of the model
        self._rounds: list[dict[str, int]] = []
        self._run = run

    def chosen(self, run: TrainingRun) -> list[int]:
        """The clients of this round, in rising order: any so many of them, one set as likely as another."""
        order = torch.randperm(self.clients, generator=run.rng(STREAM, "clients", run.epoch_number))
        return sorted(order[: self.active].tolist())

    def shares(self, chosen: Sequence[int]) -> list[float]:
        """What each client's weights are of the server's new ones; their sum is 1."""
        if self.weighting == "uniform":
            return [1 / len(chosen)] * len(chosen)
        sizes = [len(self._clients[client]) for client in chosen]
        return [size / sum(sizes) for size in sizes]

    def passes(self, run: TrainingRun) -> Passes:
        sizes = [self._clients[client].sizes(run.recipe.batch) for client in self.chosen(run)]
        steps = [size for each in sizes for _ in range(self.local_epochs) for size in each]
        return Passes.of(steps, self.passes_per_step, self.passes_per_step)

    # ── a round ───────────────────────────────────────────────────────────────────────────────────────────────

    def epoch(self, run: TrainingRun, data: Data, inner: Callable[[Data], None]) -> None:
        chosen = self.chosen(run)
        sent = self._sent(run)
        self._start = {tensor: tensor.detach().clone() for tensor in sent}
        mean = MeanWeights()
        for client, share in zip(chosen, self.shares(chosen), strict=True):
            load(self._sent(run), self._start.values())
            run.optimizers.clear()  # each client has one of its own, which ends with its turn
            self.begin_client(run, client)
            for _ in range(self.local_epochs):
                for batch in run.batches(self._clients[client]):
                    run.step(batch)
            self.end_client(run, client)
            mean.add(self._sent(run), share)
        load(self._sent(run), mean.values())
        self.end_round(run)
        self._note(run, chosen, sent)
        self._start = {}

    def begin_client(self, run: TrainingRun, client: int) -> None:
        """Its model holds what the server has sent."""

    def end_client(self, run: TrainingRun, client: int) -> None:
        """Its model is trained, and not yet sent."""

    def end_round(self, run: TrainingRun) -> None:
        """The model holds the clients' mean."""

    def _sent(self, run: TrainingRun) -> list[Tensor]:
        """What goes to a client and comes back: all parameters, and the model's own buffers as they are now."""
        buffers = dict(run.model.named_buffers())
        return [*run.model.parameters(), *(buffers[name] for name in self._buffers if name in buffers)]

    def from_start(self, run: TrainingRun, part: str) -> Iterable[tuple[nn.Parameter, Tensor]]:
        """The parameters that have a gradient, and what the server has sent of each."""
        for parameter in run.parameters(part):
            if parameter.grad is not None and parameter in self._start:
                yield parameter, self._start[parameter]

    # ── the record ────────────────────────────────────────────────────────────────────────────────────────────

    def _note(self, run: TrainingRun, chosen: Sequence[int], sent: Sequence[Tensor]) -> None:
        """A parameter that has never learned need not be sent."""
        learn = set(run.parameters())
        of_one = [each for each in sent if each in learn or not isinstance(each, nn.Parameter)]
        sent_b = len(chosen) * sum(each.numel() * each.element_size() for each in of_one)
        samples = sum(len(self._clients[client]) for client in chosen)
        self._rounds.append(_round(run.epoch_number, len(chosen), samples, sent_b))

    def diagnostics(self) -> dict[str, Any]:
        """Of each round the clients that were visited, their samples, and the bytes that they would have been sent and
        have sent back, uncompressed; of a round that visits none, 0."""
        visited = {each["epoch"]: each for each in self._rounds}
        rounds = [visited.get(epoch, _round(epoch)) for epoch in range(1, self._run.epochs_ended + 1)]
        sizes = [len(client) for client in self._clients]
        return {
            "summary": {
                "rounds": len(rounds),
                "rounds_without_clients": len(rounds) - len(visited),
                "clients_visited": sum(each["clients"] for each in rounds),
                "sent_down_b": sum(each["sent_down_b"] for each in rounds),
                "sent_up_b": sum(each["sent_up_b"] for each in rounds),
                "samples_of_a_client_least": min(sizes),
                "samples_of_a_client_most": max(sizes),
            },
            "rounds": rounds,
        }


def _round(epoch: int, clients: int = 0, samples: int = 0, sent_b: int = 0) -> dict[str, int]:
    """All that goes down comes back up."""
    return {"epoch": epoch, "clients": clients, "samples": samples, "sent_down_b": sent_b, "sent_up_b": sent_b}


class MeanWeights:
    """The weighted mean of several clients' tensors: what one client alone has, or all have alike, to the bit.

    Whole numbers, such as the batches that a BatchNorm has seen, become the largest.
    """

    def __init__(self) -> None:
        self._first: list[Tensor] = []
        self._beyond: list[Tensor] = []  # Σ share·(tensor − first); of whole numbers the largest

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor], share: float) -> None:
        """share: of this client; all of them add up to 1."""
        if not self._first:
            self._first = [tensor.detach().clone() for tensor in tensors]
            self._beyond = [torch.zeros_like(each, dtype=_wide(each)) for each in self._first]
            return
        for number, (tensor, first) in enumerate(zip(tensors, self._first, strict=True)):
            if _averaged(tensor):
                self._beyond[number].add_(tensor.detach().to(_wide(first)) - first, alpha=share)
            else:
                self._first[number] = torch.maximum(first, tensor)

    def values(self) -> list[Tensor]:
        pairs = zip(self._first, self._beyond, strict=True)
        return [(first + beyond).to(first.dtype) if _averaged(first) else first for first, beyond in pairs]


def _averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32) if _averaged(tensor) else tensor.dtype


@torch.no_grad()
def load(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Let a model's tensors hold these values."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


# ── the algorithms ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class FedAvg(Federated):
    """Federated averaging: classification by clients whose mean becomes the server's weights, once a round.

    clients:       among whom the training samples are split
    active:        of them take part in a round, drawn anew for each
    local_epochs:  of each over its own samples; its optimizer begins anew in each round
    split:         "iid" | "dirichlet" (each client's mix of classes is drawn) | "dirichlet-by-class" (sizes differ too)
    concentration: of the two that go by classes: the smaller, the less alike clients are
    weighting:     of the active clients: "uniform", as the public simulator has it | "size", by their samples (Eq. 1)
    """

    clients: Clients = 100
    active: Clients = 10
    local_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    split: Split = "iid"
    concentration: Concentration = 0.6
    weighting: Weighting = "uniform"

    name = "fedavg"


@dataclass
class FedProx(Federated):
    """Federated averaging whose clients are drawn to where they began: λ/2·‖w − w₀‖² is a part of their loss.

    clients, active, local_epochs, split, concentration, weighting: as fedavg has them
    proximal:      λ; its gradient is clipped together with the loss's; 0 is fedavg
    """

    clients: Clients = 100
    active: Clients = 10
    local_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    split: Split = "iid"
    concentration: Concentration = 0.6
    weighting: Weighting = "uniform"
    proximal: Positive = 0.1

    name = "fedprox"

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        forward = inner(batch)
        with torch.no_grad():
            for parameter, start in self.from_start(run, batch.part):
                assert parameter.grad is not None
                parameter.grad.add_(parameter - start, alpha=self.proximal)
        return forward


@dataclass
class FedSpeed(Federated):
    """Federated learning by clients that look ahead, are drawn to where they began, and keep what corrects that.

    A step follows clip(q + λ·(hᵢ − w₀)) + λ·w, with q = (1 − α)·g + α·∇f(w + ρ·g/‖g‖) and g = ∇f(w): two forward and
    two backward passes. After a round hᵢ += wᵢ − w₀ of its clients, and the server's weights are the mean of theirs
    plus the mean of all clients' hᵢ.

    clients, active, local_epochs, split, concentration: as fedavg has them; clients weigh alike
    proximal:      λ; the recipe's decay is added to λ·w, behind the clipping, as in the released code
    rho:           ρ, how far a client looks ahead along its gradient; 0 looks nowhere and pays for it
    alpha:         α, how much of the direction is what it sees there
    """

    clients: Clients = 100
    active: Clients = 10
    local_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    split: Split = "iid"
    concentration: Concentration = 0.6
    proximal: Positive = 0.1
    rho: Positive = 0.1
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0

    name = "fedspeed"
    replaces: ClassVar[frozenset[str]] = frozenset({"epoch", "update"})
    weighting: ClassVar[Weighting] = "uniform"  # type: ignore[misc]
    passes_per_step: ClassVar[int] = 2

    def setup(self, run: TrainingRun) -> None:
        super().setup(run)
        normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in run.model.modules())
        self._ahead_mode = "frozen_stats" if normalised else "train"  # running statistics see each batch once
        self._moves: dict[int, Mapping[Tensor, Tensor]] = {}  # hᵢ of the clients that have been active
        self._moves_sum: dict[Tensor, Tensor] = {}  # of all of them
        self._correction: Mapping[Tensor, Tensor] = {}  # of the client whose turn it is

    def begin_client(self, run: TrainingRun, client: int) -> None:
        self._correction = self._moves.get(client, {})

    @torch.no_grad()
    def end_client(self, run: TrainingRun, client: int) -> None:
        moved = {each: each.detach() - self._start[each] for each in run.parameters() if each in self._start}
        before = self._moves.get(client, {})
        self._moves[client] = {each: move + before[each] if each in before else move for each, move in moved.items()}
        for each, move in moved.items():
            self._moves_sum[each] = self._moves_sum[each] + move if each in self._moves_sum else move

    @torch.no_grad()
    def end_round(self, run: TrainingRun) -> None:
        for parameter in run.parameters():
            if parameter in self._moves_sum:
                parameter.add_(self._moves_sum[parameter], alpha=1 / self.clients)

    def gradients(self, run: TrainingRun, batch: Batch, inner: Callable[[Batch], Forward]) -> Forward:
        forward = inner(batch)
        here = {p: p.grad for p in run.parameters(batch.part) if p.grad is not None and p.requires_grad}
        if not here:
            return forward
        weights = [parameter.detach().clone() for parameter in here]
        with torch.no_grad():
            length = torch.stack([torch.linalg.vector_norm(g) for g in here.values()]).norm()
            for parameter, gradient in here.items():
                parameter.add_(gradient * (self.rho / (length + TINY)))
        self._look_ahead(run, batch)
        load(here, weights)
        with torch.no_grad():
            for parameter, start in self.from_start(run, batch.part):
                assert parameter.grad is not None
                if self.alpha != 1 and parameter in here:
                    parameter.grad.mul_(self.alpha).add_(here[parameter], alpha=1 - self.alpha)
                kept = self._correction.get(parameter)
                parameter.grad.add_(-start if kept is None else kept - start, alpha=self.proximal)
        return forward

    def _look_ahead(self, run: TrainingRun, batch: Batch) -> None:
        for parameter in run.parameters(batch.part):
            parameter.grad = None
        for piece in trees.split(batch, run.recipe.accumulate):
            loss = run.forward(piece, self._ahead_mode).weighted(piece.weights)
            run.backward(loss * (len(piece) / len(batch)))

    def update(self, run: TrainingRun, part: str, inner: Callable[[str], None]) -> None:
        optimizer, parameters = run.optimizer(part), run.parameters(part)
        for group in optimizer.param_groups:
            group["lr"] = run.lr(part)
        for parameter in parameters:
            if not parameter.requires_grad:  # frozen since its gradient was computed
                parameter.grad = None
        if run.recipe.clip is not None:
            nn.utils.clip_grad_norm_(parameters, run.recipe.clip)
        with torch.no_grad():
            for parameter, _ in self.from_start(run, part):
                assert parameter.grad is not None
                parameter.grad.add_(parameter, alpha=self.proximal)
        optimizer.step()
