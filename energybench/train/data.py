"""Data sets behind one interface: index batches go in, batches on the training device come out.

Small sets live on the training device as uint8 and are augmented there, so that a step never waits for data; larger
ones are decoded by worker processes. A method that picks its own samples hands `load` its own index batches.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.processes import shorten_socket_folder
from energybench.train.batch import Batch, Share
from energybench.train.facts import Facts, Targets
from energybench.train.images import Images, as_masks, read_image, read_mask
from energybench.train.part_streams import PartStreams
from energybench.train.trees import count, take, to

Item = TypeVar("Item")
Random = Callable[[int], torch.Generator]
Prepare = Callable[[Any], Any]  # inputs of a batch → the same samples in another layout


class Store(Protocol):
    """Where samples come from. `fetch` yields (index, inputs, targets) on the device, in the order asked for."""

    def __len__(self) -> int: ...
    def fetch(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any, Any]]: ...


class Resident:
    """Every sample already on the training device: `inputs` and `targets` are tensors or trees of tensors (N, ...).

    targets: None where there are none
    """

    def __init__(self, inputs: Any, targets: Any, device: torch.device) -> None:
        self.inputs, self.targets, self.device = to(inputs, device), to(targets, device), device

    def __len__(self) -> int:
        return count(self.targets, self.inputs) or 0

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any, Any]]:
        for index in batches:
            index = index.to(self.device, non_blocking=True)
            yield index, take(self.inputs, index), take(self.targets, index)


class Streamed:
    """Image files, decoded by `workers` processes ahead of the steps that use them.

    targets: a tensor or a tree of tensors (N, ...), or the paths of the images' masks, or None
    """

    def __init__(
        self,
        files: list[str],
        targets: Any,
        size: tuple[int, int],
        workers: int,
        device: torch.device,
        zero_is_void: bool = False,
    ) -> None:
        self.files, self.targets, self.size, self.workers, self.device = files, targets, size, workers, device
        self.zero_is_void = zero_is_void  # of masks, as `read_mask` has it

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: list[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        images = torch.stack([read_image(Path(self.files[i]), self.size) for i in index])
        if not isinstance(self.targets, list):
            return torch.tensor(index), images, None
        masks = [read_mask(Path(self.targets[i]), self.size, self.zero_is_void) for i in index]
        return torch.tensor(index), images, torch.stack(masks)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any, Any]]:
        workers = self.workers if not isinstance(batches, list) or len(batches) > 1 else 0  # one look is not worth them
        if workers:
            shorten_socket_folder()  # by which they hand over what they have read, or wait for ever
        loader: Any = torch.utils.data.DataLoader(
            self,  # type: ignore[arg-type]
            sampler=(index.tolist() for index in batches),
            batch_size=None,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its workers' seed, which nobody uses, is not drawn from the model's stream
        )
        for index, images, masks in loader:
            targets = take(self.targets, index) if masks is None else masks
            yield to(index, self.device), to(images, self.device), to(targets, self.device)


class StandIn:
    """A store of `count` black images of class 0, made when they are asked for.

    kind:    of the targets; a mask is of class 0 all over, the one box of an image is the whole of it, and of "none"
             there are none
    dtype:   of the samples: uint8 are images, int64 rows of tokens, float32 any other numbers
    domains: beside its class a sample has the number of its domain, 0
    labels:  of a sample whose target is a value: numbers of 0 or 1
    """

    def __init__(
        self,
        shape: Iterable[int],
        count: int,
        device: torch.device,
        kind: Targets = "class",
        dtype: torch.dtype = torch.uint8,
        *,
        domains: bool = False,
        labels: int | None = None,
    ) -> None:
        self.shape, self.count, self.device, self.kind, self.dtype = tuple(shape), count, device, kind, dtype
        self.domains, self.labels = domains, labels

    def __len__(self) -> int:
        return self.count

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any, Any]]:
        for index in batches:
            inputs = torch.zeros((len(index), *self.shape), dtype=self.dtype, device=self.device)
            yield index.to(self.device), inputs, self._targets(len(index))

    def _targets(self, count: int) -> Any:
        if self.kind == "none":
            return None
        zeros = partial(torch.zeros, dtype=torch.long, device=self.device)
        if self.kind == "mask":
            return zeros(count, *self.shape[1:])
        if self.kind == "boxes":
            whole = torch.tensor([0.0, 0, self.shape[2], self.shape[1]], device=self.device)
            return {"boxes": whole.repeat(count, 1, 1), "labels": zeros(count, 1)}
        if self.kind == "tokens":
            return zeros(count, *self.shape)
        if self.kind == "value" and self.labels:
            return zeros(count, self.labels)
        return {"class": zeros(count), "domain": zeros(count)} if self.domains else zeros(count)


class Data:
    """A data set or some of it: `indices` into its store. Positions are counted within what it holds.

    facts:  what its targets are
    parts:  of a training set, the further parts of the data by name, such as the target of an adaptation
    beside: those of them of which every batch that is loaded has as many samples in `also`
    """

    def __init__(
        self,
        store: Store,
        images: Images | None = None,
        *,
        drop_last: bool = False,
        indices: Tensor | None = None,
        domain: str = "main",
        prepare: Prepare | None = None,
        facts: Facts | None = None,
        parts: Mapping[str, Data] | None = None,
    ) -> None:
        self.store, self.images, self.drop_last, self.domain = store, images, drop_last, domain
        self.prepare = prepare  # what a run's layers do to the inputs of each batch, last of all
        self.facts, self.parts = facts or Facts(), dict(parts or {})
        self.beside: tuple[str, ...] = ()
        self.indices = torch.arange(len(store)) if indices is None else indices
        self._placed = {self.indices.device: self.indices}

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, positions: Tensor, domain: str | None = None) -> Data:
        """Some of these samples as data of their own: a probe set, a federated client.

        Args:
            positions: (n,) within these data, in the order that the part shall have.
            domain: the part's; by default the one of these data.
        """
        other = copy.copy(self)
        other.indices, other.domain = self.indices[positions], domain or self.domain
        other._placed = {other.indices.device: other.indices}
        return other

    def prepared(self, prepare: Prepare) -> Data:
        """The same samples, whose inputs pass through `prepare` when they are loaded."""
        other = copy.copy(self)
        other.prepare = prepare
        return other

    def zipped(self, names: Iterable[str]) -> Data:
        """The same samples, with batches of these parts beside them. Raises UsageError E403 for one that is not
        there."""
        if isinstance(names, str):
            message = f"batch_parts is '{names}', and it is a tuple of the names of parts"
            raise UsageError(Problem("E403", message, hint=f'batch_parts = ("{names}",)'))
        names = tuple(names)
        if lacking := [name for name in names if name not in self.parts]:
            there = f"it has {', '.join(self.parts)}" if self.parts else "it has none but train and test"
            message = f"the task wants a part '{lacking[0]}' of the data, and {there}"
            hint = nearest(lacking[0], self.parts)
            if not hint.startswith("did"):
                hint = f"a data function returns it: {{'{lacking[0]}': (inputs, None)}}"
            raise UsageError(Problem("E403", message, hint=hint))
        if names == self.beside:
            return self
        other = copy.copy(self)
        other.beside = names
        return other

    def cut(self, order: Tensor, batch: int) -> list[Tensor]:
        """An order (n,) of positions cut into batches; the last may be smaller, or is left out under `drop_last`."""
        pieces = list(order.split(batch))
        return pieces[:-1] if self.drop_last and len(pieces) > 1 and len(pieces[-1]) < batch else pieces

    def steps(self, batch: int) -> int:
        """How many batches one pass has."""
        full, rest = divmod(len(self), batch)
        return full + (rest > 0 and not (self.drop_last and full > 0))

    def samples(self, batch: int) -> int:
        """How many samples one pass really uses."""
        return min(len(self), self.steps(batch) * batch)

    def sizes(self, batch: int) -> list[int]:
        """Of the batches of one pass."""
        steps = self.steps(batch)
        return [min(batch, self.samples(batch) - step * batch) for step in range(steps)]

    def load(
        self,
        batches: Iterable[Tensor],
        random: Random | None = None,
        streams: PartStreams | None = None,
        share: Callable[[int], Share] | None = None,
    ) -> Iterator[Batch]:
        """Batches for these positions. `random(i)` seeds the augmentation of the i-th; without it there is none.

        streams: where the batches of the parts beside come from; without it from each part in order, not augmented
        share:   what of a batch of so many samples is this rank's: the rest is never read, and these samples are
                 augmented as they would be with the others beside them
        """
        shares: deque[Share] = deque()  # of batches that are being read
        taken = batches if share is None else _own(batches, share, shares)
        fetched = self.store.fetch(self._in_store(positions) for positions in taken)
        if self.beside and streams is None:
            streams = PartStreams()
        for number, (index, inputs, targets) in enumerate(fetched):
            own = None if share is None else shares.popleft()
            if self.images is not None:
                generator = None if random is None else random(number)
                inputs, targets = self.images.with_targets(inputs, targets, generator, own)
            elif self.facts.targets == "mask":
                targets = as_masks(targets)
            if self.prepare is not None:
                inputs = self.prepare(inputs)
            if streams is None or not self.beside:
                yield Batch(inputs, targets, index, share=own)
            else:
                yield Batch(inputs, targets, index, also=self._beside(len(index), streams))

    def _beside(self, size: int, streams: PartStreams) -> dict[str, Batch]:
        """As many samples of each part that is wanted."""
        parts = ((name, self.parts[name]) for name in self.beside)
        if self.prepare is not None:
            parts = ((name, part.prepared(self.prepare)) for name, part in parts)
        return {name: streams.batch(name, part, size) for name, part in parts}

    def _in_store(self, positions: Tensor) -> Tensor:
        """Looked up where the positions are, so that those drawn on a device need not wait for it."""
        device = positions.device
        if device not in self._placed:
            self._placed[device] = self.indices.to(device)
        return self._placed[device][positions]

    def in_order(self, batch: int = 512) -> Iterator[Batch]:
        """Every sample once, in order, not augmented, with nothing beside it: for evaluation and probes."""
        return self.zipped(()).load(torch.arange(len(self)).split(batch))


def _own(batches: Iterable[Tensor], share: Callable[[int], Share], shares: deque[Share]) -> Iterator[Tensor]:
    """Of each batch's positions this rank's; what they are of it goes into `shares`."""
    for positions in batches:
        shares.append(share(len(positions)))
        yield positions[shares[-1].rows]


class Waiting(Iterator[Item]):
    """`items`, and the nanoseconds that asking for them took."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self.taken_ns = 0

    def __next__(self) -> Item:
        asked = time.perf_counter_ns()
        try:
            return next(self._items)
        finally:
            self.taken_ns += time.perf_counter_ns() - asked
