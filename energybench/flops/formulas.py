"""What a call of an operator costs, from its operands: the counter's prices, by the operator's name.

One multiply-add is 2 FLOPs, of complex numbers 8: four real products and four sums. A formula is called with the
operator's own arguments and with its `result`, and answers in FLOPs; None says that it cannot tell for such a call, and
the operator is listed. torch's own formulas are not used: they bill complex numbers as real ones, take `benchmark` of
cuDNN's convolution for `transposed` and the heads of a flash kernel for its tokens.

What belongs to no formula here is priced by whoever registers one, with torch.utils.flop_counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from energybench.flops import sparse_products
from energybench.flops.sparse_products import multiply_add

Formula = Callable[..., "int | None"]


def product(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """(..., m, k) @ (..., k, n), or a vector on the right or on both sides; sparse operands by what they hold."""
    if sparse_products.is_sparse(a) or sparse_products.is_sparse(b):
        return sparse_products.product(a, b)
    return multiply_add(a, b) * prod(a.shape) * (b.shape[-1] if b.dim() > 1 else 1)


def added_product(added: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return product(a, b)


def products(left: Sequence[Tensor], right: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return sum(map(product, left, right))


def linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """x (..., in), weight (out, in); sparse weights by what they hold."""
    if sparse_products.is_sparse(weight):
        return multiply_add(x, weight) * prod(x.shape[:-1]) * sparse_products.held(weight)
    return multiply_add(x, weight) * prod(x.shape[:-1]) * prod(weight.shape)


def linear_backward(x: Tensor, grad: Tensor, weight: Tensor, mask: Sequence[bool], *_: Any, **__: Any) -> int:
    return linear(x, weight) * (bool(mask[0]) + bool(mask[1]))


def packed_product(x: Tensor, *_: Any, result: Tensor, **__: Any) -> int:
    """Weights that are packed tell their shape no longer: every element of x meets every column of the result."""
    return multiply_add(x) * prod(x.shape) * result.shape[-1]


def grouped(a: Tensor, b: Tensor, offsets: Tensor | None) -> int:
    """Products of groups. `offsets`: where each ends, along the dimension that is divided; what lies beyond is not
    computed.

    a (m, k) by rows  @ b (groups, k, n)      a (groups, m, k) @ b (k, n) by columns
    a (m, k) by terms @ b (k, n) by terms     a (groups, m, k) @ b (groups, k, n)
    """
    each = multiply_add(a, b)
    if offsets is None:
        return each * prod(a.shape) * b.shape[-1]
    divided = b.shape[-1] if a.dim() == 3 else a.shape[0] if b.dim() == 3 else a.shape[1]
    used = divided if offsets.is_meta or not len(offsets) else int(offsets[-1])
    others = prod(a.shape[1:]) if a.dim() == 3 else prod(b.shape[1:]) if b.dim() == 3 else a.shape[0] * b.shape[1]
    return each * used * others


def grouped_mm(a: Tensor, b: Tensor, offsets: Tensor | None = None, *_: Any, **__: Any) -> int:
    return grouped(a, b, offsets)


def scaled_grouped_mm(
    a: Tensor, b: Tensor, scale_a: Any, scale_b: Any, offsets: Tensor | None = None, *_: Any, **__: Any
) -> int:
    return grouped(a, b, offsets)


def scaled_grouped_mm_v2(a: Tensor, b: Tensor, *args: Any, **_: Any) -> int:
    return grouped(a, b, args[6] if len(args) > 6 else None)


# ── convolutions: y[o, p] = Σ w[o, i, k] x[i, s·p + d·k]; w is (out, in / groups, kernel) ────────────────────────


def _convolved(x: Tensor, w: Tensor, positions: int) -> int:
    space = w.dim() - 2
    return multiply_add(x, w) * prod(x.shape[: -1 - space]) * positions * prod(w.shape)


def convolution(
    x: Tensor,
    w: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *_: Any,
    result: Tensor,
    **__: Any,
) -> int:
    return _convolved(x, w, prod((x if transposed else result).shape[2 - w.dim() :]))


def plain_convolution(x: Tensor, w: Tensor, *_: Any, result: Tensor, **__: Any) -> int:
    return _convolved(x, w, prod(result.shape[2 - w.dim() :]))


def transposed_convolution(x: Tensor, w: Tensor, *_: Any, **__: Any) -> int:
    return _convolved(x, w, prod(x.shape[2 - w.dim() :]))


def time_first_convolution(x: Tensor, w: Tensor, *_: Any, result: Tensor, **__: Any) -> int:
    """x (time, batch, in), w (kernel, in, out)."""
    return multiply_add(x, w) * prod(result.shape[:2]) * prod(w.shape)


def convolution_backward(
    grad_out: Tensor,
    x: Tensor,
    w: Tensor,
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
    """dX and dW each cost what the forward costs, whatever the groups."""
    positions = prod((x if transposed else grad_out).shape[2:])
    return _convolved(x, w, positions) * (bool(output_mask[0]) + bool(output_mask[1]))


def deformable_convolution(x: Tensor, w: Tensor, *_: Any, result: Tensor, **__: Any) -> int:
    """As a convolution of the same kernel; where it reads between pixels, the interpolation is not entered."""
    return _convolved(x, w, prod(result.shape[2:]))


def deformable_convolution_backward(grad_out: Tensor, x: Tensor, w: Tensor, *_: Any, **__: Any) -> int:
    """The kernel computes the gradients of the columns and of the weights, whichever are wanted."""
    return 2 * _convolved(x, w, prod(grad_out.shape[2:]))


# ── attention: scores = QKᵀ, output = PV; (batch, heads, tokens, width) ───────────────────────────────────────────


def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def attention_backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Fused kernels recompute QKᵀ; then dP = dO Vᵀ, dV = Pᵀ dO, dQ = dS K, dK = dSᵀ Q."""
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def _token_pairs(query: Tensor, key: Tensor, ends: tuple[Any, Any], longest: tuple[Any, Any]) -> int:
    """Of all heads. Kernels of one level below take (batch, tokens, heads, width), or with `ends` all sequences of a
    batch in a row; on the meta device these are unknown, and every sequence is as long as the longest."""
    heads = query.shape[-2]
    if ends[0] is None:
        return int(query.shape[0]) * heads * query.shape[1] * key.shape[1]
    ends_q, ends_k = ends[0], ends[0] if ends[1] is None else ends[1]
    if ends_q.is_meta:
        return heads * (len(ends_q) - 1) * longest[0] * longest[1]
    return heads * int((ends_q.diff().long() * ends_k.diff().long()).sum())


def sequences_attention(
    query: Tensor, key: Tensor, value: Tensor, ends_q: Any, ends_k: Any, most_q: Any, most_k: Any, *_: Any, **__: Any
) -> int:
    pairs = _token_pairs(query, key, (ends_q, ends_k), (most_q, most_k))
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


def sequences_attention_with_bias(
    query: Tensor, key: Tensor, value: Tensor, bias: Any, *args: Any, **options: Any
) -> int:
    return sequences_attention(query, key, value, *args, **options)


def sequences_attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Any, logsumexp: Any, *args: Any, **_: Any
) -> int:
    pairs = _token_pairs(query, key, args[:2], args[2:4])
    return 2 * pairs * (3 * query.shape[-1] + 2 * value.shape[-1])


def sequences_attention_with_bias_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Any, out: Any, *args: Any, **_: Any
) -> int:
    return sequences_attention_backward(grad_out, query, key, value, out, None, *args)


# ── recurrent layers ──────────────────────────────────────────────────────────────────────────────────────────────


def _recurrent(x: Tensor, weights: Sequence[Tensor]) -> int:
    """Every weight matrix, (gates × hidden, features), at every position of x: (..., features)."""
    return 2 * prod(x.shape[:-1]) * sum(weight.numel() for weight in weights if weight.dim() == 2)


def onednn_rnn(x: Tensor, *args: Any, **_: Any) -> int:
    return _recurrent(x, args[:2])


def onednn_rnn_backward(x: Tensor, *args: Any, **_: Any) -> int:
    return 2 * _recurrent(x, args[:2])  # the kernel always computes dX


def cudnn_rnn(x: Tensor, weights: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return _recurrent(x, weights)


def cudnn_rnn_backward(x: Tensor, weights: Sequence[Tensor], *args: Any, **_: Any) -> int:
    return _recurrent(x, weights) * (1 + bool(args[-1][3]))  # and so does cuDNN's


_BY_FORMULA: dict[Formula, str] = {
    product: "mm bmm mv dot vdot inner matmul _int_mm _scaled_mm _scaled_mm_v2 hspmm _sparse_sparse_matmul",
    added_product: "addmm addmm_ addmv addmv_ baddbmm baddbmm_ addbmm addbmm_ _addmm_activation _sparse_addmm sspaddmm",
    products: "_foreach_mm",
    linear: "linear mkldnn_linear",
    linear_backward: "linear_backward mkldnn_linear_backward",
    packed_product: "_weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu "
    "_weight_int4pack_mm_with_scales_and_zeros _dyn_quant_matmul_4bit _mixed_dtypes_linear",
    grouped_mm: "_grouped_mm",
    scaled_grouped_mm: "_scaled_grouped_mm",
    scaled_grouped_mm_v2: "_scaled_grouped_mm_v2",
    convolution: "convolution _convolution convolution_overrideable",
    plain_convolution: "cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu miopen_convolution "
    "miopen_convolution_relu miopen_convolution_add_relu miopen_depthwise_convolution mkldnn_convolution "
    "_mps_convolution _nnpack_spatial_convolution _slow_conv2d_forward slow_conv3d_forward slow_conv_dilated2d "
    "slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d",
    transposed_convolution: "cudnn_convolution_transpose miopen_convolution_transpose _mps_convolution_transpose "
    "slow_conv_transpose2d slow_conv_transpose3d",
    time_first_convolution: "conv_tbc",
    convolution_backward: "convolution_backward",
    attention: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math_for_mps",
    attention_backward: "_scaled_dot_product_flash_attention_for_cpu_backward "
    "_scaled_dot_product_fused_attention_overrideable_backward _scaled_dot_product_efficient_attention_backward "
    "_scaled_dot_product_flash_attention_backward _scaled_dot_product_cudnn_attention_backward",
    sequences_attention: "_flash_attention_forward",
    sequences_attention_with_bias: "_efficient_attention_forward",
    sequences_attention_backward: "_flash_attention_backward",
    sequences_attention_with_bias_backward: "_efficient_attention_backward",
    onednn_rnn: "mkldnn_rnn_layer",
    onednn_rnn_backward: "mkldnn_rnn_layer_backward",
    cudnn_rnn: "_cudnn_rnn miopen_rnn",
    cudnn_rnn_backward: "_cudnn_rnn_backward miopen_rnn_backward",
    sparse_products.sampled: "sparse_sampled_addmm",
    sparse_products.reduced: "_sparse_mm_reduce_impl",
    sparse_products.reduced_backward: "_sparse_mm_reduce_impl_backward",
    sparse_products.half_full: "_sparse_semi_structured_mm",
    sparse_products.added_half_full: "_sparse_semi_structured_addmm",
    sparse_products.half_full_linear: "_sparse_semi_structured_linear",
    sparse_products.compressed: "_cslt_sparse_mm",
}


def _named(names: Iterable[tuple[Formula, str]]) -> dict[str, Formula]:
    return {f"aten.{name}": formula for formula, of in names for name in of.split()}


FORMULAS: dict[str, Formula] = {
    **_named(_BY_FORMULA.items()),
    "torchvision.deform_conv2d": deformable_convolution,
    "torchvision._deform_conv2d_backward": deformable_convolution_backward,
}
