"""Which of the operators that nobody prices may hide matrix work. Names alone; imports no torch.

The counter lists every operator that it neither prices nor knows to be free, with its calls. Most of them sort, gather,
scatter or draw: they have no FLOP count that anyone agrees on, and no method saves by them. The rest do what a product
does, a sum over an index for every element of their result, so a count without them is not the whole count, and a
workload that runs one is flagged. The rule, on names as the counter writes them ("aten.topk"):

- of torch's own operators, those below: products, convolutions, attention and recurrent layers that have no formula on
  the call's layout or device, decompositions and solvers, all-pairs distances, Fourier transforms (a product with the
  DFT's matrix, for which a convolution may be exchanged)
- of torch's communication, and of torchvision, none: they move, compare and interpolate a fixed number of values
- any operator of a namespace that is not torch's, any Triton kernel, any CUDA graph that is replayed, any higher-order
  operator whose inside was not seen: nobody can tell what they do, so they may do anything

Whoever knows what an operator costs says so once, and it is priced; 0 says that it is no matrix work:

    @torch.utils.flop_counter.register_flop_formula(torch.ops.mylib.my_op)
    def flop(x_shape, w_shape, *args, out_shape=None, **kwargs): ...
"""

from __future__ import annotations

from collections.abc import Iterable

_TORCH = frozenset({"aten", "prims", "prim", "profiler", "rngprims", "debugprims", "inductor_prims"})
_MOVES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "fsdp", "torchvision"})

# Parts of torch's names. `_mm` also ends addmm, bmm and sampled_addmm where their layout has no formula.
_WORDS = (
    *("mm", "matmul", "linear", "conv", "attention", "encoder_layer", "rnn", "gru", "lstm", "dot", "bilinear"),
    *("cdist", "pdist", "euclidean", "fft", "linalg", "cholesky", "triangular_solve", "spsolve", "svd", "ormqr"),
    *("geqrf", "trilinear", "matrix_exp", "linear_combination", "deform"),
)
# Names that have one of these parts by accident, and element-wise or gathering work.
_NOT = (
    *("upsample", "linalg_vector_norm", "linalg_cross", "linalg__powsum", "check_errors", "fftfreq"),
    *("convert", "gamma", "cumm", "hamming", "mm_search", "cslt_compress"),
)
_OF_VECTORS = frozenset({"mv", "addmv", "addmv_", "inner"})


def matrix_work(name: str) -> bool:
    """Whether this operator, listed as uncounted, may hide products.

    Args:
        name: as the counter writes it: "aten.topk", "mylib.my_op", "triton.kernel", "higher_order.scan"
    """
    namespace, _, operator = name.partition(".")
    if namespace in _MOVES:
        return "deform" in operator
    if namespace not in _TORCH:
        return True
    if any(part in operator for part in _NOT):
        return False
    return operator in _OF_VECTORS or any(part in operator for part in _WORDS)


def matrix_operators(names: Iterable[str]) -> list[str]:
    """Those of the names that may hide products, sorted."""
    return sorted(filter(matrix_work, names))
