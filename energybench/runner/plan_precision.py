"""Whether this machine can train in the precision that a workload asks for: torch is asked, on the device itself."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from energybench.common.errors import Problem
from energybench.common.machine import native_bf16, native_fp16
from energybench.flops.autocast import NARROW


def precision_on(device: torch.device, workload: str, precision: str) -> tuple[Problem | None, str | None]:
    """What forbids a workload's precision on this device, and what is to be known of it where nothing does."""
    if precision == "fp32":
        return None, None
    emulates = device.type == "cpu" and not {"bf16": native_bf16, "fp16": native_fp16}[precision]()
    what, note = None, None
    if precision == "bf16" and emulates:
        what = "bf16, which this processor emulates: 8–25× slower"
    elif reason := lacking(precision, device):
        what = f"{precision}, in which torch does not train on this device: {reason}"
    elif emulates:
        note = f"this processor emulates {precision}: its time and energy say nothing of a device that has it"
    if what is None:
        return None, note
    hint = "add --set workload.train.precision=fp32, or --quick where the suite's overlay has it"
    return Problem("E405", f"'{workload}' asks for {what}", "", hint), None


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
            out.float().sum().backward()
    except (RuntimeError, ValueError) as error:
        return str(error).partition("\n")[0]
    return None if out.dtype == narrow else "autocast leaves everything in fp32 here"
