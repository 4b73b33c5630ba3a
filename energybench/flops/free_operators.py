"""Which operators have no FLOPs by our convention, so that every other one is priced or listed.

The convention (docs/flops.md): convolutions, products, attention and recurrent layers are entered; what costs a fixed
number of operations per element, or moves, is not. What torch says of its operators is believed, of its own namespaces
alone; the rest is a list that was read through, name by name, for torch 2.13. An operator that a newer torch adds is in
neither, so it is listed until somebody has looked at it: that is the safe side.

Derived from torch:

    views          a result that aliases an input which is not written
    queries        no tensor comes out and none is written: sizes, flags, numbers
    factories      no tensor goes in (random ones are listed, below)
    tags           pointwise, view_copy, reduction
    relatives      `op_`, `op_backward`, `op_copy`, … of a free `op`; `_foreach_op` of lists of tensors
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

# Torch's own, but neither priced nor free: no FLOP count is agreed on, and each does real work.
_SEARCHES = """
    topk sort argsort kthvalue median nanmedian mode unique2 _unique _unique2 unique_dim unique_consecutive
    unique_dim_consecutive cumsum cumsum_ cumprod cumprod_ cummax cummin _cummax_helper _cummin_helper logcumsumexp
    _logcumsumexp searchsorted bucketize bincount histc histogram _histogramdd_bin_edges _histogramdd_from_bin_cts
    _histogramdd_from_bin_tensors nonzero nonzero_static isin hash_tensor
"""
_GATHERS = """
    gather index index_select take masked_select masked_scatter masked_scatter_ masked_scatter_backward put put_
    index_put index_put_ _index_put_impl _index_put_impl_ _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_masked_index_put_accumulate index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_reduce
    index_reduce_ scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ segment_reduce
    _segment_reduce_backward embedding embedding_dense_backward embedding_renorm embedding_renorm_ _embedding_bag
    _embedding_bag_forward_only _embedding_bag_backward _embedding_bag_dense_backward
    _embedding_bag_per_sample_weights_backward repeat_interleave grid_sampler_2d grid_sampler_3d
    grid_sampler_2d_backward grid_sampler_3d_backward cudnn_grid_sampler cudnn_grid_sampler_backward
    _grid_sampler_2d_cpu_fallback _grid_sampler_2d_cpu_fallback_backward
"""
_DRAWS = """
    multinomial normal normal_ normal_functional uniform uniform_ bernoulli bernoulli_ binomial exponential
    exponential_ geometric geometric_ cauchy cauchy_ log_normal log_normal_ random random_ rand randn rand_like
    randn_like randint randint_like randperm poisson native_dropout _fused_dropout _sample_dirichlet _dirichlet_grad
    _standard_gamma _standard_gamma_grad _philox_normal _philox_normal_ _philox_uniform _philox_uniform_
    _fill_mem_eff_dropout_mask_
"""
LISTED = frozenset(f"aten.{name}" for name in (_SEARCHES + _GATHERS + _DRAWS).split())

# Free, where torch's tags and schemas do not say so.
_NORMALISATION = """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_with_update_functional
    _batch_norm_no_update batch_norm_backward batch_norm_elemt batch_norm_backward_elemt batch_norm_backward_reduce
    batch_norm_stats batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_update_stats
    cudnn_batch_norm miopen_batch_norm quantized_batch_norm native_layer_norm native_group_norm _fused_rms_norm
    _weight_norm_interface native_norm renorm dist linalg_cross
    softmax log_softmax _softmax _log_softmax _safe_softmax _masked_softmax _softmax_backward_data
    _log_softmax_backward_data _sparse_softmax _sparse_log_softmax _sparse_softmax_backward_data
    _sparse_log_softmax_backward_data _nested_tensor_softmax_with_shape
"""
_ACTIVATIONS = """
    hardswish glu glu_jvp glu_backward log_sigmoid_forward log_sigmoid _prelu_kernel rrelu_with_noise _add_relu
    floor_divide _masked_scale rrelu_with_noise_functional _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl
    _thnn_fused_gru_cell _transform_bias_rescale_qkv addr __ilshift__ __irshift__ complex polar
"""
_POOLING = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d fractional_max_pool2d fractional_max_pool3d
    max_pool2d max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d mkldnn_adaptive_avg_pool2d
    mkldnn_max_pool2d mkldnn_max_pool3d quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d
    upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa
"""
_LOSSES = """
    nll_loss nll_loss_forward nll_loss2d nll_loss2d_forward nll_loss2d_backward mse_loss smooth_l1_loss huber_loss
    soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits multi_margin_loss multilabel_margin_loss
    multilabel_margin_loss_forward _ctc_loss _cudnn_ctc_loss miopen_ctc_loss
"""
_OPTIMIZERS = """
    _fused_adam _fused_adamw _fused_sgd _fused_adagrad _amp_foreach_non_finite_check_and_unscale _amp_update_scale
"""
_MOVES = """
    cat stack _stack _chunk_cat block_diag repeat flip roll rot90 channel_shuffle pixel_shuffle pixel_unshuffle
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d im2col col2im tril triu trace diag_embed unfold_backward
    fill zero _to_copy _copy_from _copy_from_and_resize _lazy_clone _pin_memory _reshape_copy lift
    empty_like full_like ones_like zeros_like new_empty new_empty_strided new_full new_ones new_zeros
    _new_zeros_with_same_feature_meta resize resize_as resize_as_sparse _resize_output set _unsafe_view unsafe_split
    unsafe_split_with_sizes squeeze_ unsqueeze_ t_ transpose_ detach_ as_strided_ record_stream _is_all_true
    _is_any_true _aminmax _functional_assert_async _functional_assert_scalar _functional_sym_constrain_range
    _functional_sym_constrain_range_for_size _linalg_check_errors _cudnn_rnn_flatten_weight
    _pack_padded_sequence to_padded_tensor _padded_dense_to_jagged_forward _jagged_to_padded_dense_forward lu_unpack
    to_mkldnn _mkldnn_reshape _mkldnn_transpose _mkldnn_transpose_ mkldnn_reorder_conv2d_weight
    mkldnn_reorder_conv3d_weight
"""
_SPARSE = """
    _to_dense _to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc _coalesce _coalesced sparse_mask
    _sparse_mask_projection _sparse_sum _sparse_sum_backward _sparse_csr_sum _sparse_csr_prod _spdiags
    _sparse_coo_tensor_with_dims_and_tensors sparse_compressed_tensor sparse_coo_tensor copy_sparse_to_sparse
    sparse_resize sparse_resize_and_clear _convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo
    _to_sparse_semi_structured _sparse_semi_structured_tile _sparse_semi_structured_apply
    _sparse_semi_structured_apply_dense _cslt_compress
"""
_NESTED = """
    _nested_compute_contiguous_strides_offsets _nested_from_padded _nested_from_padded_and_nested_example
    _nested_from_padded_tensor _nested_get_jagged_dummy _nested_get_lengths _nested_get_max_seqlen
    _nested_get_min_seqlen _nested_get_offsets _nested_select_backward _nested_sum_backward _nested_tensor_from_mask
    _nested_tensor_from_tensor_list _nested_tensor_size _nested_tensor_storage_offsets _nested_tensor_strides
"""
_QUANTISATION = """
    quantize_per_tensor quantize_per_tensor_dynamic quantize_per_channel int_repr q_per_channel_scales
    q_per_channel_zero_points _empty_per_channel_affine_quantized empty_quantized _make_per_channel_quantized_tensor
    _make_per_tensor_quantized_tensor fake_quantize_per_channel_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    _fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine
    _fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional _convert_weight_to_int4pack
    _convert_weight_to_int4pack_for_cpu _dyn_quant_pack_4bit_weight
"""
_REVIEWED = frozenset(
    f"aten.{name}"
    for names in (
        *(_NORMALISATION, _ACTIVATIONS, _POOLING, _LOSSES, _OPTIMIZERS, _MOVES, _SPARSE, _NESTED, _QUANTISATION),
    )
    for name in names.split()
)
_BELIEVED = frozenset({"aten", "prims", "prim", "profiler", "debugprims"})
_PRIMS_NOT_FREE = frozenset({"prims.svd", "prims.fft_r2c", "prims.fft_c2r", "prims.fft_c2c", "prims.normal"})
_RELATIVES = ("_", "_backward", "_copy", "_functional", "_jvp", "_scatter")
_FOREACH, _FOREACH_PRODUCT = "aten._foreach_", "aten._foreach_mm"
_TAGS = frozenset(
    tag for name in ("pointwise", "view_copy", "reduction") if (tag := getattr(torch.Tag, name, None)) is not None
)


@cache
def is_free(packet: Any) -> bool:
    """Whether no call of an operator has FLOPs by the convention.

    Args:
        packet: the operator with all its overloads, torch.ops.aten.add
    """
    name = str(packet)
    if name.partition(".")[0] not in _BELIEVED or name in LISTED or name in _PRIMS_NOT_FREE:
        return False
    if name.startswith("prims."):  # torch's primitives: element-wise, views and reductions, those above apart
        return True
    if name in _REVIEWED or _says_so(packet):
        return True
    if name.startswith(_FOREACH):
        return name != _FOREACH_PRODUCT
    return any(name.endswith(end) and _named_free(name.removesuffix(end)) for end in _RELATIVES)


@cache
def _named_free(name: str) -> bool:
    """`native_batch_norm_backward` is what `native_batch_norm` is; so is `_foreach_add_`."""
    if name in LISTED:
        return False
    packet = getattr(torch.ops.aten, name.removeprefix("aten."), None)
    return name in _REVIEWED or (packet is not None and _says_so(packet))


def _says_so(packet: Any) -> bool:
    """Whether a tag or a schema of torch says that an operator is a view, a query, a factory or element-wise."""
    return any(_overload_says_so(getattr(packet, overload)) for overload in packet.overloads())


def _overload_says_so(func: Any) -> bool:
    schema = func._schema
    if not _TAGS.isdisjoint(func.tags):
        return True
    if any(result.alias_info and not result.alias_info.is_write for result in schema.returns):
        return True
    writes = any(argument.alias_info and argument.alias_info.is_write for argument in schema.arguments)
    gives = any("Tensor" in str(result.type) for result in schema.returns)
    takes = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return (not gives and not writes) or not takes
