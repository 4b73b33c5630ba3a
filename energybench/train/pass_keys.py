"""Which pass over which data a run is in: what the order of samples and their augmentation are drawn by.

An epoch may pass over its data more often than once: a federated client takes several local epochs, and clients of one
size must not share an order. So each pass has a key of its own: the data's, and how often this epoch has passed over
them. The first pass of an epoch has the key that plain training's only pass has.

A pass begins with `run.batches(data)`, or where `run.order(data)` is asked for without one; it is over when what it
loads is. Asked again within a pass, the order is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from energybench.train.data import Data

WHOLE = ""  # the name of a run's training set
Key = tuple[Any, ...]


@dataclass
class Pass:
    """The latest pass over some data in an epoch.

    number:   of it, from 0
    as_plain: whether the first has plain training's key
    asked:    only its order was asked for so far
    over:     what it loads was loaded
    """

    epoch: int
    name: str
    as_plain: bool
    asked: bool
    number: int = 0
    over: bool = False

    @property
    def key(self) -> Key:
        return (self.epoch,) if self.as_plain and self.number == 0 else (self.epoch, self.name, self.number)

    def begin_next(self, *, asked: bool) -> None:
        self.number, self.asked, self.over = self.number + 1, asked, False

    def end(self, number: int) -> None:
        """The pass of that number was loaded, all of it or as much as was wanted."""
        self.over = self.over or self.number == number


class PassKeys:
    """Of one run. whole: its training set."""

    def __init__(self, whole: Data) -> None:
        self._whole = whole
        self._epoch = 0
        self._passes: dict[str, Pass] = {}
        self._first = True  # no pass over samples of the training set has begun in this epoch

    def begin(self, epoch: int, data: Data) -> None:
        """`run.batches(data)` is called."""
        latest = self._latest(epoch, name := self._name_of(data))
        if latest is None:
            self._begin_first(name, data, asked=False)
        elif latest.asked:  # by whoever looked at the order of the pass that begins now
            latest.asked = False
        else:
            latest.begin_next(asked=False)

    def order(self, epoch: int, data: Data) -> Key:
        """What tells the order of this pass from those of all others."""
        latest = self._latest(epoch, name := self._name_of(data))
        if latest is None:
            latest = self._begin_first(name, data, asked=True)
        elif latest.over:
            latest.begin_next(asked=True)
        return latest.key

    def load(self, epoch: int, data: Data) -> tuple[Key, Callable[[], None]]:
        """The key of the pass whose samples are about to be loaded, and what to call when they are. Outside of any
        pass, as for probes, the key is plain training's."""
        latest = self._latest(epoch, self._name_of(data))
        if latest is None:
            return (epoch,), lambda: None
        latest.asked = False
        return latest.key, partial(latest.end, latest.number)

    def _latest(self, epoch: int, name: str) -> Pass | None:
        if epoch != self._epoch:
            self._epoch, self._first = epoch, True
            self._passes.clear()
        return self._passes.get(name)

    def _begin_first(self, name: str, data: Data, *, asked: bool) -> Pass:
        own = data.store is self._whole.store
        self._passes[name] = begun = Pass(self._epoch, name, name == WHOLE or (own and self._first), asked)
        self._first = self._first and not own
        return begun

    def _name_of(self, data: Data) -> str:
        whole = self._whole
        if data.store is whole.store and (data.indices is whole.indices or torch.equal(data.indices, whole.indices)):
            return WHOLE
        places = data.indices.cpu().contiguous().numpy().tobytes()
        return f"{data.domain}:{hashlib.blake2b(places, digest_size=12).hexdigest()}"
