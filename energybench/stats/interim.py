"""When the interim analyses of a run are, its looks: declared before the first block."""

from __future__ import annotations

from energybench.stats.paired import FEWEST_BLOCKS

LEAST_STEP = 1.5  # a look nearer to the last one than this factor is left out


def declared(blocks: int, most: int) -> tuple[int, ...]:
    """After how many blocks the looks are: `blocks`, doubled again and again, to the most: 5, 20 → 5, 10, 20."""
    first = min(max(blocks, FEWEST_BLOCKS), most)
    looks = [first]
    while 2 * looks[-1] * LEAST_STEP <= most:
        looks.append(2 * looks[-1])
    return tuple(dict.fromkeys((*looks, most)))
