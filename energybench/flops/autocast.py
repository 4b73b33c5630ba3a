"""Which precision an operator works in under autocast to bf16 or fp16: torch's own lists, by type of device.

Autocast casts an operator's fp32 operands down where that is safe and its narrow operands up where it is not.
Everything else computes in the wider of the types that it is given. The lists are ATen/autocast_mode.h and
autocast_mode.cpp of torch 2.13; tests/flops compare them with the header and with what a CPU really does.
"""

from __future__ import annotations

NARROW = {"bf16": "bfloat16", "fp16": "float16"}  # a recipe's precision → torch's name of it

_LOWER_ANYWHERE = """
    _convolution _convolution_mode conv_tbc linear matmul mm bmm addmm _addmm_activation addbmm baddbmm einsum
    tensordot inner linalg_vecdot scaled_dot_product_attention prelu lstm
"""
_LOWER_ON_A_GPU = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution mv addmv addr chain_matmul
    linalg_multi_dot gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
"""
_FULL_ON_A_CPU = """
    binary_cross_entropy binary_cross_entropy_with_logits nll_loss nll_loss2d nll_loss_nd l1_loss smooth_l1_loss
    mse_loss huber_loss multilabel_margin_loss soft_margin_loss multi_margin_loss poisson_nll_loss
    cosine_embedding_loss hinge_embedding_loss margin_ranking_loss triplet_margin_loss avg_pool3d
"""
_FULL_ON_A_GPU = """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus layer_norm rms_norm
    group_norm frobenius_norm nuclear_norm norm linalg_vector_norm linalg_matrix_norm cosine_similarity
    softmax log_softmax logsumexp cumprod cumsum prod sum dist pdist cdist renorm nll_loss nll_loss2d nll_loss_nd
    l1_loss smooth_l1_loss mse_loss huber_loss kl_div binary_cross_entropy_with_logits poisson_nll_loss
    cosine_embedding_loss hinge_embedding_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss
    triplet_margin_loss multi_margin_loss upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
"""
LOWER = {
    "cpu": frozenset(_LOWER_ANYWHERE.split()),
    "cuda": frozenset(_LOWER_ANYWHERE.split()) | frozenset(_LOWER_ON_A_GPU.split()),
}
FULL = {"cpu": frozenset(_FULL_ON_A_CPU.split()), "cuda": frozenset(_FULL_ON_A_GPU.split())}

# Take what they are given and answer in fp32: their last part is on the list, their first is not.
FULL_RESULT = frozenset({"cross_entropy_loss"})


def casts(op: str, device: str) -> str:
    """ "lower", "full" or "" for an operator such as "linear"; a device that has no list of its own is like CUDA."""
    device = "cpu" if device == "cpu" else "cuda"
    return "lower" if op in LOWER[device] else "full" if op in FULL[device] else ""
