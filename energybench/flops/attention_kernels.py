"""Which kernel attention takes: torch's own answer at the time of each call, for the device that will train.

The answer depends on shapes, strides, dropout and on what the user allows there and then, such as
`torch.nn.attention.sdpa_kernel`, so it is asked for when the traced module calls.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from energybench.flops.autocast import NARROW

NAME = "aten::scaled_dot_product_attention"
ATTENTION = F.scaled_dot_product_attention


class AttentionKernels(TorchFunctionMode):
    """Notes of every call of attention whether torch would take a fused kernel for it on `target`."""

    def __init__(self, target: torch.device, precision: str) -> None:
        super().__init__()
        self.target, self.precision = target, precision
        self.answers: list[bool] = []
        self._asked = False

    def __enter__(self) -> Any:
        # torch switches a mode off inside its own Python functions, of which multi-head attention is one: there the
        # name that they call is found in the module.
        F.scaled_dot_product_attention = self._called
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        F.scaled_dot_product_attention = ATTENTION
        super().__exit__(*error)

    def fused(self, nodes: list[Any]) -> list[bool]:
        """In the order of the graph; none where it has calls that nobody saw."""
        return self.answers if sum(str(node.kind()) == NAME for node in nodes) == len(self.answers) else []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self._called(*args, **kwargs) if func is ATTENTION and not self._asked else func(*args, **kwargs)

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        tracing = torch._C._get_tracing_state()
        _trace_into(None)  # what is asked here is no work of the module
        self._asked = True
        try:
            self.answers.append(self._is_fused(*args, **kwargs))
            _trace_into(tracing)
            return ATTENTION(*args, **kwargs)
        finally:
            _trace_into(tracing)
            self._asked = False

    def _is_fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> bool:
        one_batch = len({each.shape[0] for each in (query, key, value)}) == 1

        def like(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            extent, dtype = list(tensor.shape), tensor.dtype
            if dtype == torch.float32 and self.precision in NARROW:
                dtype = getattr(torch, NARROW[self.precision])
            if len(extent) == 4 and one_batch:
                extent[0] = 1
            made = torch.empty_strided(extent, tensor.stride(), dtype=dtype, device=self.target)
            return made.requires_grad_(tensor.requires_grad and torch.is_grad_enabled())

        try:
            choice = torch._fused_sdp_choice(
                like(query),  # type: ignore[arg-type]
                like(key),  # type: ignore[arg-type]
                like(value),  # type: ignore[arg-type]
                like(attn_mask),
                dropout_p,
                is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
            return choice > 0
        except (RuntimeError, AssertionError):  # a device that this machine lacks
            allowed = (
                torch.backends.cuda.flash_sdp_enabled(),
                torch.backends.cuda.mem_efficient_sdp_enabled(),
                torch.backends.cuda.cudnn_sdp_enabled(),
            )
            return self.target.type != "cpu" and query.dim() == 4 and any(allowed)


def _trace_into(state: Any) -> None:
    torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
