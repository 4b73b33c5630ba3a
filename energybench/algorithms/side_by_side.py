"""Many independent pieces of tensor work at once, each on one thread: small passes gain nothing from two threads of
their own, and are ten times slower where these wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Result = TypeVar("Result")

WORTH = 1 << 18  # elements from which threads are worth their start


@contextmanager
def one_thread() -> Iterator[None]:
    """In here torch's operations take one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(pieces: Sequence[tuple[int, Callable[[], Result]]], device: torch.device) -> list[Result]:
    """What each piece gives, in their order; as many run at once as torch has threads, the largest first.

    One after the other on a card, whose work is a queue, and where a mode watches torch's operations, as a counter of
    FLOPs does: it sees its own thread alone. Gradients are off.

    Args:
        pieces: (how many elements it looks at, what is called); no two may touch the same tensor or generator
        device: where their tensors are
    """
    threads = min(torch.get_num_threads(), len(pieces))
    small = sum(size for size, _ in pieces) < WORTH
    if device.type != "cpu" or threads < 2 or small or is_in_torch_dispatch_mode():
        with torch.no_grad(), one_thread():
            return [piece() for _, piece in pieces]
    largest_first = sorted(range(len(pieces)), key=lambda number: -pieces[number][0])
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        started = {number: pool.submit(_without_gradient, pieces[number][1]) for number in largest_first}
        return [started[number].result() for number in range(len(pieces))]


@torch.no_grad()
def _without_gradient(piece: Callable[[], Result]) -> Result:
    return piece()
