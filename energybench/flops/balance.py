"""The machine's balance, FLOP/B: how fast it multiplies matrices over how fast it copies memory, both timed here.

What plain torch reaches, not a data sheet's peak: a kernel of a training that runs as well as torch's own best product
and copy stands on this roofline. The fastest of a few, since everything that disturbs makes a kernel slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from energybench.flops.autocast import NARROW

TIMES = 7
SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 2**25, "cuda": 2**28}  # float32 elements: larger than any cache


@cache
def balance(device: torch.device, precision: str) -> float:
    """The balance of a device, measured in under a second and then remembered.

    Args:
        device:    where the products and copies run.
        precision: of the matrix products, "fp32", "bf16" or "fp16"; the copies are of float32.

    Returns:
        FLOP/B.
    """
    dtype = getattr(torch, NARROW.get(precision, "float32"))
    side, elements = SIDE.get(device.type, SIDE["cpu"]), COPIED.get(device.type, COPIED["cpu"])
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    flop_s = 2 * side**3 / _fastest_s(lambda: torch.mm(left, right, out=product), device)
    bytes_s = 2 * 4 * elements / _fastest_s(lambda: target.copy_(source), device)
    return flop_s / bytes_s


def _fastest_s(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(TIMES + 1):  # the first one starts up
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
