"""An independent counter of the FLOPs that really run, for counting runs. It shares no code with the ledger.

torch's `FlopCounterMode` sees every operator of forward and backward, inside custom autograd Functions too,
and has the formulas. Added here: formulas that it has wrong or lacks, a list of operators that do work which
nobody counts, and pausing. Faults of torch's counter (torch 2.13), each shown in tests/flops:

- a grouped convolution's backward is counted (1 + groups) / 2 times: 65× the forward of a 64-group depthwise
- attention's fused CPU kernel and its backward are counted as nothing; so are `mv`, `dot`, in-place `addmm_`
- attention's inference fast path hides whole layers; it is switched off while counting
- recurrent layers' fused kernels (oneDNN, cuDNN) are counted as nothing
- its module tracker keeps a hook for every module call until the end, so memory grows with the steps; we use
  none

One multiply-add is 2 FLOPs. Run it unmetered: it costs a Python call per operator. Compiled code is opaque to
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]

# Operators that do work which neither the ledger nor this counter enters; reported with their calls.
_UNCOUNTED = """
    topk sort argsort kthvalue median unique2 _unique2 unique_dim cumsum cumprod
    gather index index_select take masked_select nonzero bincount searchsorted bucketize
    embedding embedding_dense_backward _embedding_bag _embedding_bag_forward_only
    scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_
    index_put index_put_ _index_put_impl_ index_add index_add_ index_copy index_copy_
    multinomial normal_ uniform_ bernoulli bernoulli_ exponential_ geometric_ cauchy_ log_normal_ random_
    rand randn rand_like randn_like randint randint_like randperm poisson normal native_dropout
    _cdist_forward _cdist_backward _trilinear grid_sampler_2d grid_sampler_3d _fft_r2c _fft_c2r _fft_c2c
    linalg_qr linalg_householder_product linalg_lu_factor_ex linalg_cholesky_ex linalg_inv_ex _linalg_det
    _linalg_svd _linalg_eigh _linalg_solve_ex triangular_solve linalg_solve_triangular
"""


class Counter:
    """Counts what runs inside `with Counter() as counter:`, backward included.

    The totals may be read at any time, so a caller can attribute differences to steps:

        before = counter.total
        step(batch)
        cost = counter.total - before

    They stay readable after the block, and entering again goes on from them.

    uncounted: calls of operators that do work which is not counted, by name: {"aten.topk": 3}

    Raises:
        RuntimeError: when it is entered while it counts, or paused while it does not.
    """

    def __init__(self) -> None:
        self._past: dict[str, int] = {}
        self._mode: _Mode | None = None
        self._fastpath = True
        self.uncounted: dict[str, int] = {}

    @property
    def by_op(self) -> dict[str, int]:
        """FLOPs by operator: {"aten.convolution": 118013952, ...}."""
        totals = dict(self._past)
        for op, flop in (self._mode.flop_counts["Global"] if self._mode else {}).items():
            totals[str(op)] = totals.get(str(op), 0) + flop
        return totals

    @property
    def total(self) -> int:
        """FLOPs so far."""
        running = self._mode.flop_counts["Global"].values() if self._mode else ()
        return sum(self._past.values()) + sum(running)

    def __enter__(self) -> Counter:
        if self._mode is not None:
            raise RuntimeError("this Counter is already counting")
        self._fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        torch.backends.mha.set_fastpath_enabled(self._fastpath)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is neither counted nor slowed: no mode is active."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    def _start(self) -> None:
        mode = _Mode(self.uncounted)
        mode.__enter__()
        self._mode = mode

    def _stop(self) -> None:
        if self._mode is None:
            raise RuntimeError("this Counter is not counting")
        self._mode.__exit__(None, None, None)
        self._past, self._mode = self.by_op, None


class _NoModules:
    """In place of torch's ModuleTracker, whose hooks pile up: everything belongs to "Global"."""

    parents = frozenset({"Global"})

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _Mode(FlopCounterMode):
    def __init__(self, uncounted: dict[str, int]) -> None:
        super().__init__(display=False, custom_mapping=_formulas())
        self.mod_tracker: Any = _NoModules()
        self._tally = uncounted
        self._watched = frozenset(_packets(_UNCOUNTED.split()))

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if func_packet in self._watched:
            self._tally[str(func_packet)] = self._tally.get(str(func_packet), 0) + 1
        return super()._count_flops(func_packet, out, args, kwargs)


def _packets(names: Sequence[str]) -> list[Any]:
    """The operators of these names that this torch has."""
    return [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]


# Formulas. torch's wrapper hands over shapes in place of tensors and adds `out_shape`.


def _convolution_backward(
    grad_out: Shape,
    x: Shape,
    w: Shape,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """dX and dW each cost what the forward costs, whatever the groups: w is (out, in / groups, ...)."""
    positions = prod(x[2:]) if transposed else prod(grad_out[2:])
    return 2 * x[0] * positions * prod(w) * (bool(output_mask[0]) + bool(output_mask[1]))


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores = QKᵀ, output = PV."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(grad_out: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Fused kernels recompute QKᵀ; then dP = dO Vᵀ, dV = Pᵀ dO, dQ = dS K, dK = dSᵀ Q."""
    return 2 * prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


def _mm(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """(..., m, k) @ (..., k, n), or a vector on the right or on both sides."""
    return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)


def _added_mm(added: Shape, a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return _mm(a, b)


def _recurrent(x: Tensor, weights: Sequence[Tensor]) -> int:
    """Every weight matrix, (gates × hidden, features), at every position of x: (..., features)."""
    return 2 * prod(x.shape[:-1]) * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _onednn_rnn(x: Tensor, *args: Any, **_: Any) -> int:
    return _recurrent(x, args[:2])


def _onednn_rnn_backward(x: Tensor, *args: Any, **_: Any) -> int:
    return 2 * _recurrent(x, args[:2])  # the kernel always computes dX


def _cudnn_rnn(x: Tensor, weights: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return _recurrent(x, weights)


def _cudnn_rnn_backward(x: Tensor, weights: Sequence[Tensor], *args: Any, **_: Any) -> int:
    return _recurrent(x, weights) * (1 + bool(args[-1][3]))  # and so does cuDNN's


for _formula in (_onednn_rnn, _onednn_rnn_backward, _cudnn_rnn, _cudnn_rnn_backward):
    setattr(_formula, "_get_raw", True)  # noqa: B010  # torch: hand over tensors, not shapes


def _formulas() -> dict[Any, Callable[..., int]]:
    named: dict[Callable[..., int], str] = {
        _convolution_backward: "convolution_backward",
        _attention: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable",
        _attention_backward: "_scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_fused_attention_overrideable_backward",
        _mm: "mv dot vdot inner _int_mm",
        _added_mm: "addmm_ addmv addmv_ baddbmm_ addbmm addbmm_ _addmm_activation",
        _onednn_rnn: "mkldnn_rnn_layer",
        _onednn_rnn_backward: "mkldnn_rnn_layer_backward",
        _cudnn_rnn: "_cudnn_rnn",
        _cudnn_rnn_backward: "_cudnn_rnn_backward",
    }
    return {packet: formula for formula, names in named.items() for packet in _packets(names.split())}
