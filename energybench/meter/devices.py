"""The CUDA devices that this process uses, as torch knows them: waited for and named, without ever importing torch."""

from __future__ import annotations

import sys
from typing import Any


def _cuda() -> Any:
    """torch.cuda where this process has started CUDA, else None: asking an idle one would start it."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # a torch that is just being imported has none yet
    return cuda if cuda is not None and cuda.is_initialized() else None


def devices() -> list[int]:
    """Numbers, in torch's order, of the devices that hold or have held this process's tensors."""
    cuda = _cuda()
    if cuda is None:
        return []
    return [n for n in range(cuda.device_count()) if cuda.memory_reserved(n) or cuda.max_memory_reserved(n)]


def uuids() -> set[str]:
    """The same devices as NVML names them."""
    cuda = _cuda()
    return {f"GPU-{cuda.get_device_properties(n).uuid}" for n in devices()}


def synchronise() -> None:
    """Wait until every used device is done. Raises what CUDA raises for an error in a kernel."""
    cuda = _cuda()
    for number in devices():
        cuda.synchronize(number)
