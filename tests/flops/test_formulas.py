"""What each product costs, from its definition: complex, sparse, grouped, quantised, deformable, in sequences."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from energybench.flops.counter import Counter

more_than_one = st.integers(2, 6)  # a dimension of one is not summed over
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
size = st.integers(1, 6)


def counted(run: Callable[[], Any]) -> Counter:
    with Counter() as counter:
        run()
    return counter


def total(run: Callable[[], Any]) -> int:
    counter = counted(run)
    assert counter.unpriced_matrix == {}
    return counter.total


def wanting(*shape: int, **options: Any) -> Tensor:
    return torch.randn(*shape, requires_grad=True, **options)


def back(y: Tensor) -> None:
    """A gradient that is dense and has strides of its own."""
    (y.abs() ** 2).sum().backward()


# ── complex numbers: (a + bi)(c + di) takes four products and, with the sum it joins, four sums ───────────────────


@few
@given(more_than_one, more_than_one, more_than_one, more_than_one)
def test_a_complex_multiply_add_is_eight_real_flops(m: int, k: int, n: int, batch: int) -> None:
    a, b = wanting(m, k, dtype=torch.cfloat), wanting(k, n, dtype=torch.cfloat)
    stack, other = wanting(batch, m, k, dtype=torch.cfloat), wanting(batch, k, n, dtype=torch.cfloat)
    v = wanting(k, dtype=torch.cfloat)
    assert total(lambda: back(a @ b)) == 3 * 8 * m * k * n
    assert total(lambda: back(stack @ other)) == 3 * 8 * batch * m * k * n
    assert total(lambda: back(torch.addmm(torch.zeros(m, n, dtype=torch.cfloat), a, b))) == 3 * 8 * m * k * n
    assert total(lambda: a @ v) == 8 * m * k
    assert total(lambda: torch.dot(v, v)) == total(lambda: torch.vdot(v, v)) == 8 * k
    assert total(lambda: torch.einsum("mk,kn->mn", a.conj(), b)) == 8 * m * k * n
    assert total(lambda: torch.randn(m, k).to(torch.cfloat) @ b) == 8 * m * k * n  # cast, then complex


def test_a_complex_convolution_runs_as_three_real_ones() -> None:
    """torch takes Gauss's way: three products and more sums for the four of a complex product. What ran is counted."""
    x, w = wanting(2, 3, 6, 6, dtype=torch.cfloat), wanting(4, 3, 3, 3, dtype=torch.cfloat)
    one = 2 * 2 * 4 * 4 * (4 * 3 * 3 * 3)
    assert total(lambda: back(F.conv2d(x, w))) == 3 * 3 * one
    assert total(lambda: F.conv_transpose2d(x, w.mT.transpose(0, 1))) == 3 * 2 * 2 * 6 * 6 * (4 * 3 * 3 * 3)


# ── sparse matrices: a multiply-add for each element held and column ──────────────────────────────────────────────

LAYOUTS = {
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "bsr": lambda x: x.to_sparse_bsr((2, 2)),
}


@st.composite
def patterns(draw: st.DrawFn, rows: int = 4, columns: int = 6) -> Tensor:
    """A matrix of zeros and ones, of which at least one is a one."""
    ones = draw(st.lists(st.integers(0, rows * columns - 1), min_size=1, max_size=12, unique=True))
    return torch.zeros(rows * columns).index_fill(0, torch.tensor(ones), 1.0).view(rows, columns)


def in_layout(x: Tensor, layout: str) -> tuple[Tensor, int]:
    """And how many elements it holds: whole blocks where it is made of blocks."""
    if layout != "bsr":
        return LAYOUTS[layout](x), int(x.count_nonzero())
    blocks = x.view(2, 2, 3, 2).transpose(1, 2).abs().sum((2, 3)).count_nonzero()
    return LAYOUTS[layout](x), 2 * 2 * int(blocks)


@few
@given(patterns(), st.sampled_from([*LAYOUTS]), size, st.booleans())
def test_a_sparse_product_costs_what_it_holds(x: Tensor, layout: str, n: int, complex_numbers: bool) -> None:
    dtype = torch.cfloat if complex_numbers and layout != "bsr" else torch.float
    sparse, held = in_layout(x.to(dtype), layout)
    dense, each = torch.ones(6, n, dtype=dtype), 8 if dtype.is_complex else 2
    assert total(lambda: sparse @ dense) == each * held * n
    assert total(lambda: torch.sparse.mm(sparse, dense)) == each * held * n
    assert total(lambda: torch.addmm(torch.zeros(4, n, dtype=dtype), sparse, dense)) == each * held * n
    if layout in ("coo", "csr"):
        assert total(lambda: sparse @ dense[:, 0]) == each * held
    if layout != "bsr":
        assert total(lambda: torch.ones(n, 4, dtype=dtype) @ sparse) == each * n * held


@few
@given(patterns(), st.sampled_from(["coo", "csr"]), size)
def test_the_gradient_of_a_sparse_matrix_is_a_dense_product_and_that_of_its_partner_a_sparse_one(
    x: Tensor, layout: str, n: int
) -> None:
    sparse, held = in_layout(x, layout)
    assert total(lambda: back(sparse.requires_grad_() @ wanting(6, n))) == 2 * held * n + 2 * held * n + 2 * 4 * n * 6


@few
@given(patterns(), size)
def test_a_csr_matrix_through_torch_sparse_has_a_gradient_at_its_own_places_alone(x: Tensor, n: int) -> None:
    """sampled_addmm: as many inner products over n as it holds. COO has a dense product and a mask."""
    held = int(x.count_nonzero())
    for layout, own in (("csr", 2 * held * n), ("coo", 2 * 4 * n * 6)):
        sparse = LAYOUTS[layout](x).requires_grad_()
        assert total(lambda s=sparse: back(torch.sparse.mm(s, wanting(6, n)))) == 2 * held * n + own + 2 * held * n


@few
@given(patterns(4, 6), patterns(6, 5), st.sampled_from(["coo", "csr"]))
def test_two_sparse_matrices_meet_where_both_hold_something(a: Tensor, b: Tensor, layout: str) -> None:
    pairs = sum(int(a[:, k].count_nonzero() * b[k].count_nonzero()) for k in range(6))
    assert total(lambda: LAYOUTS[layout](a) @ LAYOUTS[layout](b)) == 2 * pairs


@few
@given(patterns(), size)
def test_the_other_sparse_products(x: Tensor, n: int) -> None:
    held = int(x.count_nonzero())
    coo, csr, dense = x.to_sparse(), x.to_sparse_csr(), torch.ones(6, n)
    assert total(lambda: torch.sparse.sampled_addmm(csr, torch.ones(4, n), torch.ones(n, 6))) == 2 * held * n
    assert total(lambda: torch.sspaddmm(torch.zeros(4, n).to_sparse(), coo, dense)) == 2 * held * n
    assert total(lambda: torch.hspmm(coo, dense)) == 2 * held * n
    assert total(lambda: torch.smm(coo, dense)) == 2 * held * n
    assert total(lambda: torch.sparse.addmm(torch.zeros(4, n), coo, dense)) == 2 * held * n
    assert total(lambda: torch.bmm(torch.stack([coo, coo]), torch.stack([dense, dense]))) == 2 * 2 * held * n
    assert total(lambda: F.linear(torch.ones(n, 6), csr)) == 2 * held * n
    assert total(lambda: torch.sparse.mm(csr, dense, "sum")) == 2 * held * n


def test_the_gradients_of_a_reducing_product() -> None:
    csr = torch.eye(4).to_sparse_csr().requires_grad_()
    assert total(lambda: back(torch.sparse.mm(csr, wanting(4, 3), "mean"))) == 3 * 2 * 4 * 3


# ── grouped, quantised and eight-bit products ─────────────────────────────────────────────────────────────────────

HALF = {"dtype": torch.bfloat16}


@few
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 2))
def test_grouped_products_cost_their_groups(parts: list[int], beyond: int) -> None:
    """Rows that belong to no group are not computed. Rows are aligned to eight elements, 16 bytes."""
    lengths = [8 * part for part in parts]
    ends = torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    used, groups, k, n = sum(lengths), len(lengths), 16, 24
    rows = max(used + 8 * beyond, 8)
    each = 2 * used * k * n
    assert total(lambda: F.grouped_mm(torch.ones(rows, k, **HALF), torch.ones(groups, k, n, **HALF), offs=ends)) == each
    assert total(lambda: F.grouped_mm(torch.ones(k, rows, **HALF), torch.ones(rows, n, **HALF), offs=ends)) == each
    by_columns = (torch.ones(groups, n, k, **HALF), torch.ones(k, rows, **HALF))
    assert total(lambda: F.grouped_mm(*by_columns, offs=ends)) == each


def test_grouped_products_go_back_in_two_of_their_kind() -> None:
    ends = torch.tensor([8, 8, 24], dtype=torch.int32)
    one = 2 * 24 * 16 * 32
    assert total(lambda: back(F.grouped_mm(wanting(24, 16, **HALF), wanting(3, 16, 32, **HALF), offs=ends))) == 3 * one
    assert total(lambda: back(F.grouped_mm(wanting(3, 8, 16, **HALF), wanting(3, 16, 32, **HALF)))) == 3 * one


def test_products_of_few_bits() -> None:
    x, w = torch.ones(5, 32, **HALF), torch.ones(8, 32, dtype=torch.int8)
    assert total(lambda: torch._weight_int8pack_mm(x, w, torch.ones(8, **HALF))) == 2 * 5 * 32 * 8
    assert total(lambda: torch._int_mm(torch.ones(32, 16, dtype=torch.int8), w[:, :16].t())) == 2 * 32 * 16 * 8
    eight = torch.ones(16, 32).to(torch.float8_e4m3fn)
    one = torch.tensor(1.0)
    assert total(lambda: torch._scaled_mm(eight, eight.t(), one, one)) == 2 * 16 * 32 * 16
    assert total(lambda: torch._foreach_mm([torch.ones(2, 3)] * 4, [torch.ones(3, 5)] * 4)) == 4 * 2 * 2 * 3 * 5


def test_four_bit_weights_tell_their_shape_by_the_result() -> None:
    k, n, group = 64, 32, 32
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.ones(n, k, dtype=torch.int32), 1)
    scales = torch.ones(k // group, n, 2, **HALF)
    x = torch.ones(3, k, **HALF)
    flop = total(lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, scales))
    assert flop == 2 * 3 * k * n


def test_a_quantised_layer_whose_weights_are_packed_is_listed() -> None:
    layer = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 5)), dtype=torch.qint8)
    assert counted(lambda: layer(torch.ones(2, 4))).unpriced_matrix == {"quantized.linear_dynamic": 1}


def test_onednn_s_own_tensors() -> None:
    x, w = torch.ones(3, 4).to_mkldnn(), torch.ones(5, 4).to_mkldnn()
    assert total(lambda: torch._C._nn.mkldnn_linear(x, w, torch.zeros(5).to_mkldnn())) == 2 * 3 * 4 * 5


# ── what torch makes of products ──────────────────────────────────────────────────────────────────────────────────


def test_chains_of_products_cost_the_order_that_torch_takes() -> None:
    """(30 × 5)(5 × 4)(4 × 3): 5·4·3 + 30·5·3 = 510 from the right, 30·5·4 + 30·4·3 = 960 from the left."""
    a, b, c = wanting(30, 5), wanting(5, 4), wanting(4, 3)
    assert total(lambda: torch.linalg.multi_dot([a, b, c])) == 2 * 510
    assert total(lambda: torch.chain_matmul(a, b, c)) == 2 * 510
    assert total(lambda: back(torch.linalg.multi_dot([a, b, c]))) == 3 * 2 * 510


@pytest.mark.parametrize(("power", "products"), [(1, 0), (2, 1), (3, 2), (5, 3), (8, 3), (15, 6)])
def test_a_power_costs_the_products_of_squaring(power: int, products: int) -> None:
    assert total(lambda: torch.linalg.matrix_power(torch.ones(4, 4), power)) == products * 2 * 4**3


def test_covariances_cost_one_product_and_go_back_in_two() -> None:
    x = wanting(7, 5)
    assert total(lambda: back(torch.cov(x))) == total(lambda: back(torch.corrcoef(x))) == 3 * 2 * 7 * 5 * 7


@few
@given(st.integers(26, 30), st.integers(1, 30), st.integers(1, 4))
def test_distances_of_many_rows_are_a_product(rows: int, others: int, width: int) -> None:
    """[−2x, |x|², 1][y, 1, |y|²]ᵀ: two columns more than the points have; back by one product for each side."""
    x, y = wanting(rows, width), wanting(others, width)
    forward = 2 * rows * (width + 2) * others
    assert total(lambda: torch.cdist(x, y)) == forward
    assert total(lambda: torch.cdist(x, y).sum().backward()) == forward + 2 * 2 * rows * others * width


def test_distances_of_few_rows_or_of_another_norm_are_listed() -> None:
    x = torch.ones(5, 3)
    assert counted(lambda: torch.cdist(x, x)).unpriced_matrix == {"aten._cdist_forward": 1}
    many = torch.ones(30, 3)
    assert counted(lambda: torch.cdist(many, many, p=1)).unpriced_matrix == {"aten._cdist_forward": 1}


@pytest.mark.parametrize(("norm", "batch", "products"), [(1e-4, 1, 1), (30.0, 1, 5 + 4), (1e-4, 3, 5)])
def test_a_matrix_exponential_costs_the_products_of_its_series(norm: float, batch: int, products: int) -> None:
    """Bader et al. 2019, Table 3: degree 2 takes 1 product, up to a norm of 0.0006; degree 18 takes 5, up to 3.01, and
    beyond log2(30 / 3.01) = 3.3 says: square four times. Of several small matrices torch sums degree 18 at once."""
    matrices = (norm * torch.eye(4)).expand(batch, 4, 4)
    assert total(lambda: torch.linalg.matrix_exp(matrices)) == batch * products * 2 * 4**3


def test_a_bilinear_layer_costs_both_contractions() -> None:
    """For each output W_o: x W_o, then the inner product with the second input."""
    batch, left, right, out = 2, 3, 4, 5
    flop = 2 * batch * out * (left * right + right)
    assert (
        total(lambda: F.bilinear(torch.ones(batch, left), torch.ones(batch, right), torch.ones(out, left, right)))
        == flop
    )


def test_decompositions_are_listed_and_what_they_are_part_of_is_counted() -> None:
    counter = counted(lambda: torch.linalg.pinv(torch.ones(3, 4)))
    assert counter.unpriced_matrix == {"aten._linalg_svd": 1}
    assert counter.total == 2 * 4 * 3 * 3
    for run in (torch.linalg.qr, torch.linalg.inv, torch.linalg.eigh, torch.linalg.cholesky, torch.fft.fft):
        assert counted(lambda run=run: run(torch.eye(3))).unpriced_matrix, run


def test_a_convolution_without_a_batch_is_one_with_a_batch_of_one() -> None:
    x, w = wanting(3, 6, 6), wanting(4, 3, 3, 3)
    assert total(lambda: back(F.conv2d(x, w))) == 3 * 2 * 4 * 4 * (4 * 3 * 9)
    assert total(lambda: F.conv_transpose1d(torch.ones(3, 6), torch.ones(3, 4, 2))) == 2 * 6 * (3 * 4 * 2)


def test_a_convolution_with_time_first() -> None:
    x, w = wanting(7, 2, 3), wanting(3, 3, 4)  # (time, batch, in), (kernel, in, out)
    assert total(lambda: back(torch.conv_tbc(x, w, torch.zeros(4)))) == 3 * 2 * 5 * 2 * (3 * 3 * 4)


def test_a_deformable_convolution_costs_what_a_convolution_does() -> None:
    """torchvision's extension need not load beside this torch: its operators' schemas, with a kernel of the shapes."""
    if not hasattr(torch.ops.torchvision, "deform_conv2d"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        tail = (
            "Tensor mask, Tensor bias, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, "
            "int dilation_w, int groups, int offset_groups, bool use_mask"
        )
        library.define(f"deform_conv2d(Tensor input, Tensor weight, Tensor offset, {tail}) -> Tensor")
        library.define(
            f"_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, {tail})"
            " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
        )
        library.impl("deform_conv2d", lambda x, w, *_: x.new_ones(len(x), len(w), 4, 4), "CPU")
        library.impl("_deform_conv2d_backward", lambda g, x, w, o, m, b, *_: (x.clone(), w.clone(), o, m, b), "CPU")
        try:
            _check_deformable()
        finally:
            library._destroy()
    else:
        _check_deformable()


def _check_deformable() -> None:
    x, w, offset, mask = (
        torch.ones(2, 6, 6, 6),
        torch.ones(4, 3, 3, 3),
        torch.zeros(2, 18, 4, 4),
        torch.ones(2, 9, 4, 4),
    )
    numbers = (1, 1, 0, 0, 1, 1, 2, 1, True)
    operators = torch.ops.torchvision
    one = 2 * 2 * 4 * 4 * (4 * 3 * 9)  # two groups: each output sees three of six channels
    assert total(lambda: operators.deform_conv2d(x, w, offset, mask, torch.zeros(4), *numbers)) == one
    grad = torch.ones(2, 4, 4, 4)
    both = total(lambda: operators._deform_conv2d_backward(grad, x, w, offset, mask, torch.zeros(4), *numbers))
    assert both == 2 * one


def test_an_affine_grid_is_a_product_with_the_base_grid() -> None:
    theta = wanting(2, 2, 3)
    assert total(lambda: F.affine_grid(theta, [2, 3, 4, 5])) == 2 * 2 * (4 * 5) * 3 * 2


# ── attention ─────────────────────────────────────────────────────────────────────────────────────────────────────

ONE = 2 * 2 * 3 * 8 * 8 * 16  # a product of (2, 3, 8, 16)


@pytest.mark.parametrize(
    ("backend", "products"), [(SDPBackend.MATH, 2 + 4), (SDPBackend.FLASH_ATTENTION, 2 + 5)], ids=["math", "flash"]
)
def test_a_forced_kernel_of_attention_is_the_one_that_is_counted(backend: SDPBackend, products: int) -> None:
    def run() -> None:
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, q, q).sum().backward()

    q = wanting(2, 3, 8, 16)
    assert total(run) == products * ONE


@pytest.mark.parametrize(("stored", "swapped", "products"), [((2, 8, 3, 16), (1, 2), 7), ((2, 3, 16, 8), (2, 3), 6)])
def test_attention_of_transposed_tensors(stored: tuple[int, ...], swapped: tuple[int, int], products: int) -> None:
    """Heads behind tokens are as good as contiguous; a width that is not the last in memory keeps the plain path."""
    q = wanting(*stored)
    x = q.transpose(*swapped)
    assert x.shape == (2, 3, 8, 16)
    assert total(lambda: F.scaled_dot_product_attention(x, x, x).sum().backward()) == products * ONE


def test_kernels_one_level_below_take_tokens_before_heads() -> None:
    """On the meta device, where every kernel has a shape. torch's own formula takes the 8 tokens for heads."""
    q, k = torch.empty(2, 8, 3, 16, device="meta"), torch.empty(2, 6, 3, 16, device="meta")
    flash = total(lambda: torch.ops.aten._flash_attention_forward(q, k, k, None, None, 8, 6, 0.0, False, False))
    assert flash == 2 * 2 * 2 * 3 * 8 * 6 * 16
    efficient = total(
        lambda: torch.ops.aten._efficient_attention_forward(q, k, k, None, None, None, None, None, 0.0, 0)
    )
    assert efficient == flash


def test_recomputed_forwards_are_work() -> None:
    """Reentrant, the whole block runs again; else it stops where the last tensor that is needed was made: before the
    second layer, whose input that is."""
    first, second = nn.Linear(4, 6), nn.Linear(6, 4)
    block, x = nn.Sequential(first, nn.ReLU(), second), wanting(5, 4)
    forward = 2 * 2 * 5 * 4 * 6
    assert total(lambda: block(x).sum().backward()) == 3 * forward
    assert total(lambda: checkpoint(block, x, use_reentrant=True).sum().backward()) == 4 * forward
    assert total(lambda: checkpoint(block, x, use_reentrant=False).sum().backward()) == 3.5 * forward
    with set_checkpoint_early_stop(False):
        assert total(lambda: checkpoint(block, x, use_reentrant=False).sum().backward()) == 4 * forward


@few
@given(more_than_one, more_than_one, more_than_one, more_than_one)
def test_products_by_any_other_name(b: int, m: int, k: int, n: int) -> None:
    x, y = wanting(b, m, k), wanting(b, k, n)
    one = 2 * b * m * k * n
    assert total(lambda: back(torch.baddbmm(torch.zeros(b, m, n), x, y))) == 3 * one
    assert total(lambda: back(torch.einsum("bmk,bkn->bmn", x, y))) == 3 * one
    assert total(lambda: back(torch.tensordot(x, y.mT.reshape(b, n, k), ([0, 2], [0, 2])))) == 3 * 2 * m * n * prod(
        (b, k)
    )
    assert total(lambda: torch.bmm(x.detach(), y.detach(), out=torch.empty(b, m, n))) == one
    assert total(lambda: torch.vmap(torch.mm)(x, y)) == one
