"""Which samples lie with which client of a federated training: every sample with exactly one.

    iid                 drawn without regard to classes; all clients have as many samples, within one
    dirichlet           likewise of one size; each client's own mix of classes is drawn, Dirichlet(c, …, c)
    dirichlet-by-class  of each class, the clients' shares are drawn, Dirichlet(c, …, c): clients differ in size too

The smaller the concentration c, the less alike clients are. "dirichlet" is how the public simulator behind GradSamp's
Table 8 splits (https://github.com/woodenchild95/FL-Simulator), but for one thing: where a class is used up, it hands
its samples out again; here what is left of the other classes is drawn, so that no sample lies with two clients. The
last clients' mixes are bent by that. "dirichlet-by-class" is that of Li et al. 2022 (NIID-Bench), and of FedMA before.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energybench.train.data import Data, StandIn

SPLITS = ("iid", "dirichlet", "dirichlet-by-class")
TRIES = 100  # of splits in which some client would have no sample

Places = list[Tensor]  # of each client's samples in the data, (n,) in rising order


def split(data: Data, how: str, clients: int, concentration: float, generator: torch.Generator) -> Places:
    """Every sample with one of the clients, each of whom has one at least.

    Args:
        how: one of SPLITS
        concentration: c > 0 of the two that go by classes
        generator: what all is drawn from

    Raises:
        ValueError: there are too few samples, or a client stays without
        TypeError: samples have no single class to go by
    """
    if clients > len(data):
        raise ValueError(f"{clients} clients cannot share {len(data)} samples")
    random = np.random.default_rng(int(torch.randint(2**63 - 1, (1,), generator=generator)))
    if how == "iid":
        owners = random.permutation(even_owners(len(data), clients))
    else:
        labels = labels_of(data)
        owners = (mixed if how == "dirichlet" else shared_out)(labels, clients, concentration, random)
    return [torch.from_numpy(np.flatnonzero(owners == client)) for client in range(clients)]


def labels_of(data: Data) -> NDArray[np.int64]:
    """The class of each sample (N,). Where no files are, classes follow each other."""
    if isinstance(data.store, StandIn):
        return np.arange(len(data)) % (data.facts.classes or 1)
    targets = getattr(data.store, "targets", None)
    if isinstance(targets, Tensor):
        targets = targets[data.indices.to(targets.device)]
    else:
        seen = [batch.targets for batch in data.in_order()]
        targets = torch.cat(seen) if all(isinstance(each, Tensor) for each in seen) else None
    if targets is None or targets.dim() != 1 or targets.is_floating_point():
        raise TypeError('clients get their samples by class, and these have no single class each: split = "iid"')
    labels: NDArray[np.int64] = targets.cpu().long().numpy()
    return labels


def even_owners(samples: int, clients: int) -> NDArray[np.int64]:
    """A client for each sample, the first ones of one sample more where they do not divide."""
    return np.sort(np.arange(samples) % clients)


# ── a client's own mix ────────────────────────────────────────────────────────────────────────────────────────────────


def mixed(
    labels: NDArray[np.int64], clients: int, concentration: float, random: np.random.Generator
) -> NDArray[np.int64]:
    """The client of each sample (N,): places are filled in a random order, each by a class that its client's mix draws
    among those of which there is something left."""
    pools = [random.permutation(np.flatnonzero(labels == label)).tolist() for label in range(labels.max() + 1)]
    mixes = random.dirichlet([concentration] * len(pools), clients)
    owners = np.empty(len(labels), np.int64)
    left = np.array([len(pool) for pool in pools])
    lines = _lines(mixes, left)
    draws = random.random(len(labels)).tolist()
    for client, draw in zip(random.permutation(even_owners(len(labels), clients)).tolist(), draws, strict=True):
        line = lines[client]
        label = bisect_right(line, min(draw * line[-1], math.nextafter(line[-1], 0)))
        owners[pools[label].pop()] = client
        left[label] -= 1
        if not left[label] and left.any():
            lines = _lines(mixes, left)
    return owners


def _lines(mixes: NDArray[np.float64], left: NDArray[np.int64]) -> list[list[float]]:
    """Of each client, the running sum of its mix over the classes that are left; who has none of them takes what is
    there."""
    possible = mixes * (left > 0)
    possible[possible.sum(1) <= 0] = left
    return [list(accumulate(row)) for row in possible.tolist()]


# ── a class's shares ──────────────────────────────────────────────────────────────────────────────────────────────────


def shared_out(
    labels: NDArray[np.int64], clients: int, concentration: float, random: np.random.Generator
) -> NDArray[np.int64]:
    """The client of each sample (N,): each class is cut into the clients' shares of it."""
    for _ in range(TRIES):
        owners = np.empty(len(labels), np.int64)
        for label in range(labels.max() + 1):
            members = random.permutation(np.flatnonzero(labels == label))
            shares = random.dirichlet([concentration] * clients)
            ends = np.round(np.cumsum(shares) * len(members)).astype(np.int64)
            owners[members] = np.searchsorted(ends[:-1], np.arange(len(members)), side="right")
        if np.bincount(owners, minlength=clients).all():
            return owners
    message = f"of {TRIES} splits by class at concentration {concentration:g}, each left some of {clients} clients with"
    raise ValueError(f"{message} no sample: fewer clients, or a higher concentration")
