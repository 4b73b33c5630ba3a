"""Where in memory a trial's tensors come to lie: drawn anew for each trial, and again for each of its parts.

Children of one fork server share its address space, so that equal trainings that differ in a name's length lay their
tensors out in different ways, each the same in every block. On two cores the twin of plain training was so 7 % slower
than plain training in one run and 2 % faster in another, with a standard error of 1 % in both: a bias that no number of
blocks takes out (Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously wrong!", ASPLOS). With
layouts that are drawn it is a scatter like any other, which an interval over blocks holds, and which is smaller where
a trial has many layouts (Curtsinger and Berger 2013, "Stabilizer: statistically sound performance evaluation", ASPLOS).

torch aligns its tensors to 64 bytes wherever they lie: what is computed stays the same to the bit.
"""

from __future__ import annotations

import ctypes
import random

CHUNKS = 64
LEAST_B, MOST_B = 1 << 10, 4 << 20  # of one; those held take about 16 MB together, which nobody touches


class HeapLayout:
    """Chunks of C's heap that nobody uses, with holes between them into which what is allocated next falls.

    The largest holes hold a small net's activations, which would else lie behind each other as before: with holes of up
    to 256 KiB the twins of a run scattered by 4.6 % from block to block, with these by 1.5 %.
    """

    def __init__(self) -> None:
        self._held: list[int] = []  # addresses
        self._chance = random.SystemRandom()
        try:
            library = ctypes.CDLL(None)
            self._malloc, self._free = library.malloc, library.free
        except (OSError, AttributeError):  # no C library that can be asked: the layout stays what it is
            self._malloc = None
            return
        self._malloc.restype, self._malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        self._free.restype, self._free.argtypes = None, [ctypes.c_void_p]

    def draw(self) -> None:
        """Another layout for what is allocated from now on; what lies there stays where it is."""
        if self._malloc is None:
            return
        before = self._held
        chunks = [self._malloc(self._size_b()) for _ in range(CHUNKS)]
        self._chance.shuffle(chunks)
        for address in chunks[CHUNKS // 2 :] + before:
            self._free(address)  # free(NULL) does nothing
        self._held = chunks[: CHUNKS // 2]

    def _size_b(self) -> int:
        """Alike on a logarithmic scale, so that small and large holes are both there."""
        return round(LEAST_B * (MOST_B / LEAST_B) ** self._chance.random())


_own = HeapLayout()


def draw() -> None:
    """Another layout for this process."""
    _own.draw()
