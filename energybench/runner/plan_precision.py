"""Whether this machine can train in the precision that a workload asks for: torch is asked, on the device itself."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from energybench.flops.autocast import NARROW


def refused(precision: str, device: torch.device, *, native_bf16: bool) -> str | None:
    """What is wrong with training in bf16 or fp16 on this device; None where it can be done."""
    if precision == "bf16" and device.type == "cpu" and not native_bf16:
        return f"{precision}, which this processor emulates: 8–25× slower"
    if reason := lacking(precision, device):
        return f"{precision}, in which torch does not train on this device: {reason}"
    return None


def lacking(precision: str, device: torch.device) -> str | None:
    """Why torch cannot train so; None where it can. A convolution and a product, forward and backward, show it.

    Args:
        precision: one of NARROW
    """
    narrow: torch.dtype = getattr(torch, NARROW[precision])
    image, filters, matrix = (
        torch.ones(shape, device=device, requires_grad=True) for shape in ((1, 1, 3, 3), (2, 1, 3, 3), (2, 2))
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # autocast that is not supported warns, and does nothing
            with torch.autocast(device.type, narrow):
                out = F.conv2d(image, filters).flatten(1) @ matrix
            out.float().sum().backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        return str(error).partition("\n")[0]
    return None if out.dtype == narrow else "autocast leaves everything in fp32 here"
