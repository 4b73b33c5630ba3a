"""Unknown is never free: every operator that dispatches is priced, free by the convention, opened, or listed."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils import flop_counter

from energybench.flops.counter import Counter
from energybench.flops.formulas import FORMULAS
from energybench.flops.free_operators import LISTED, is_free
from energybench.flops.unpriced import matrix_operators, matrix_work


def counted(run: Callable[[], Any]) -> Counter:
    with Counter() as counter:
        run()
    return counter


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    with torch.library._scoped_library("counted_here", "FRAGMENT") as library:
        yield library


# ── the list as a whole ───────────────────────────────────────────────────────────────────────────────────────────


def packets() -> Iterator[Any]:
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "aten::" in name}
    yield from (getattr(torch.ops.aten, name) for name in sorted(names) if hasattr(torch.ops.aten, name))


def test_no_operator_has_two_answers() -> None:
    for packet in packets():
        assert not (is_free(packet) and str(packet) in FORMULAS), packet
        assert not (is_free(packet) and str(packet) in LISTED), packet


def test_what_is_listed_by_its_name_hides_no_products() -> None:
    """Sorting, gathering, drawing: none is matrix work, so none of them flags a workload."""
    assert matrix_operators(LISTED) == []


PRODUCTS = """
    mm bmm addmm baddbmm addbmm mv dot vdot convolution convolution_backward cudnn_convolution _grouped_mm _scaled_mm
    _int_mm linalg_qr linalg_inv_ex _linalg_svd _linalg_solve_ex linalg_matrix_exp cholesky triangular_solve _fft_r2c
    _fft_c2c _cdist_forward _pdist_forward _trilinear _cudnn_rnn miopen_rnn quantized_lstm _sparse_semi_structured_mm
    _scaled_dot_product_flash_attention _native_multi_head_attention _transformer_encoder_layer_fwd _foreach_mm
    matmul_backward sparse_sampled_addmm _weight_int4pack_mm _dyn_quant_matmul_4bit mkldnn_linear conv_tbc
"""


@pytest.mark.parametrize("name", PRODUCTS.split())
def test_products_are_not_free_and_what_has_no_price_for_a_call_is_matrix_work(name: str) -> None:
    packet = getattr(torch.ops.aten, name, None)
    assert packet is None or not is_free(packet)
    assert matrix_work(f"aten.{name}")


FREE = """
    add add_ mul relu relu_ gelu gelu_backward silu where native_batch_norm native_layer_norm_backward _softmax
    _log_softmax_backward_data max_pool2d_with_indices max_pool2d_with_indices_backward sum mean var amax
    nll_loss_forward nll_loss_backward mse_loss_backward view expand permute slice slice_backward cat stack clone copy_
    _to_copy zeros
    zeros_like fill_ zero_ _foreach_add_ _foreach_lerp_ _fused_adam_ upsample_bilinear2d constant_pad_nd tril im2col
    _local_scalar_dense arange addr lgamma hamming_window
"""


@pytest.mark.parametrize("name", FREE.split())
def test_element_wise_work_copies_and_views_are_free(name: str) -> None:
    assert is_free(getattr(torch.ops.aten, name))


def test_an_operator_that_a_newer_torch_adds_is_listed(library: torch.library.Library) -> None:
    """Of torch's own namespace too: what says nothing of itself is unknown until somebody has looked at it."""
    with torch.library._scoped_library("aten", "FRAGMENT") as aten:
        aten.define("energybench_mystery(Tensor x) -> Tensor")
        aten.impl("energybench_mystery", torch.neg, "CPU")
        counter = counted(lambda: torch.ops.aten.energybench_mystery(torch.ones(3)))
    assert counter.uncounted == {"aten.energybench_mystery": 1}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax"])
@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_optimizer_steps_and_clipping_are_free(optimizer: str, how: dict[str, bool]) -> None:
    layer = nn.Linear(4, 5)
    try:
        made = getattr(torch.optim, optimizer)(layer.parameters(), lr=0.1, **how)
    except TypeError:
        pytest.skip("it has no fused kernel")
    layer(torch.ones(2, 4)).sum().backward()

    def step() -> None:
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        made.step()

    counter = counted(step)
    assert (counter.by_op, counter.uncounted) == ({}, {})


def test_a_plain_network_s_training_lists_nothing() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 5),
        nn.LayerNorm(5),
    )
    counter = counted(lambda: F.cross_entropy(model(torch.ones(2, 3, 8, 8)), torch.tensor([0, 1])).backward())
    assert counter.uncounted == counter.unpriced_matrix == {}
    assert set(counter.by_op) == {"aten.convolution", "aten.convolution_backward", "aten.addmm", "aten.mm"}


# ── operators of others ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_custom_operator_is_listed_by_its_name_however_often_it_runs() -> None:
    @torch.library.custom_op("counted_here::hidden_product", mutates_args=())
    def hidden_product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b @ b

    a = torch.ones(3, 3)
    counter = counted(lambda: [hidden_product(a, a) for _ in range(4)] + [a.topk(2)])
    assert counter.total == 0
    assert counter.uncounted == {"counted_here.hidden_product": 4, "aten.topk": 1}
    assert counter.unpriced_matrix == {"counted_here.hidden_product": 4}


def test_a_custom_operator_with_a_formula_is_priced_by_it_and_not_by_what_it_runs() -> None:
    @torch.library.custom_op("counted_here::told_product", mutates_args=())
    def told_product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    @flop_counter.register_flop_formula(torch.ops.counted_here.told_product)
    def flop(a: Any, b: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    try:
        counter = counted(lambda: told_product(torch.ones(3, 4), torch.ones(4, 5)))
    finally:
        del flop_counter.flop_registry[torch.ops.counted_here.told_product]
    assert counter.by_op == {"counted_here.told_product": 2 * 3 * 4 * 5}
    assert counter.uncounted == {}


def test_a_formula_that_fails_leaves_the_call_listed() -> None:
    @torch.library.custom_op("counted_here::misjudged", mutates_args=())
    def misjudged(a: Tensor) -> Tensor:
        return a.clone()

    @flop_counter.register_flop_formula(torch.ops.counted_here.misjudged)
    def flop(*_: Any, **__: Any) -> int:
        raise KeyError("no such shape")

    try:
        counter = counted(lambda: misjudged(torch.ones(3)))
    finally:
        del flop_counter.flop_registry[torch.ops.counted_here.misjudged]
    assert (counter.by_op, counter.unpriced_matrix) == ({}, {"counted_here.misjudged": 1})


def test_an_operator_that_is_made_of_torch_s_own_is_seen_through(library: torch.library.Library) -> None:
    """In training above the counter, in inference mode by it: once, and by its parts."""
    library.define("both(Tensor a, Tensor b) -> Tensor")
    library.impl("both", lambda a, b: a @ b, "CompositeImplicitAutograd")
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            counter = counted(lambda: torch.ops.counted_here.both(a, b))
        assert (counter.by_op, counter.uncounted) == ({"aten.mm": 120}, {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mylib.my_op", True),
        ("triton.kernel", True),
        ("cuda.CUDAGraph.replay", True),
        ("higher_order.call_torchbind", True),
        ("quantized.linear_dynamic", True),
        ("flash_attn._flash_attn_forward", True),
        ("aten.topk", False),
        ("aten._standard_gamma", False),
        ("aten.cummax", False),
        ("aten.grid_sampler_2d", False),
        ("aten.upsample_bilinear2d", False),
        ("torchvision.roi_align", False),
        ("torchvision.nms", False),
        ("torchvision.deform_conv2d", True),
        ("c10d.allreduce_", False),
        ("_c10d_functional.all_reduce", False),
        ("", True),
    ],
)
def test_matrix_work_is_told_from_the_name_alone(name: str, expected: bool) -> None:
    assert matrix_work(name) is expected


# ── tensor subclasses ─────────────────────────────────────────────────────────────────────────────────────────────


class Wrapped(Tensor):
    """A tensor around another, whose operators work on what is inside."""

    inside: Tensor
    hides = False

    @staticmethod
    def __new__(cls, inside: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(Wrapped, lambda wrapped: wrapped.inside, (args, kwargs or {}))
        if cls.hides:
            with torch._C._DisableTorchDispatch():
                return func(*args, **kwargs)
        if func is torch.ops.aten.mm.default:  # it computes more than it was asked for
            func(*args, **kwargs)
        return func(*args, **kwargs)


class Hiding(Wrapped):
    hides = True


def test_a_subclass_is_counted_by_what_it_computes() -> None:
    counter = counted(lambda: Wrapped(torch.ones(3, 4)) @ torch.ones(4, 5))
    assert counter.by_op == {"aten.mm": 2 * 120}


def test_a_subclass_that_computes_unseen_is_counted_by_what_it_was_asked_for() -> None:
    counter = counted(lambda: [Hiding(torch.ones(3, 4)) @ torch.ones(4, 5), Hiding(torch.ones(3, 4)).topk(2)])
    assert (counter.by_op, counter.uncounted) == ({"aten.mm": 120}, {"aten.topk": 1})


def test_jagged_sequences_cost_their_true_length() -> None:
    parts = [torch.ones(2, 4), torch.ones(5, 4)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    w = torch.ones(3, 4, requires_grad=True)
    counter = counted(lambda: (F.linear(x, w) ** 2).values().sum().backward())
    assert counter.total == 3 * 2 * (2 + 5) * 4 * 3
    assert counter.unpriced_matrix == {}


def test_nested_tensors_of_the_older_kind_are_listed() -> None:
    x = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(5, 4)])
    counter = counted(lambda: F.linear(x, torch.ones(3, 4)))
    assert counter.total == 0
    assert counter.unpriced_matrix == {"aten.linear": 1}


# ── control flow, compiled code, kernels that are launched past torch ─────────────────────────────────────────────


SQUARE = 2 * 3**3


def test_of_two_branches_the_one_that_ran_is_counted() -> None:
    def branch(yes: bool) -> int:
        return counted(lambda: torch.cond(torch.tensor(yes), lambda x: x @ x @ x, lambda x: x @ x, (x,))).total

    x = torch.ones(3, 3)
    assert (branch(True), branch(False)) == (2 * SQUARE, SQUARE)


def test_a_loop_is_counted_as_often_as_it_ran() -> None:
    from torch._higher_order_ops.while_loop import while_loop

    start = (torch.tensor(0), torch.ones(3, 3))
    counter = counted(lambda: while_loop(lambda i, x: i < 4, lambda i, x: (i + 1, x @ x), start))
    assert counter.by_op == {"aten.mm": 4 * SQUARE}
    assert counter.unpriced_matrix == {}


def test_a_higher_order_operator_whose_inside_nobody_sees_is_listed() -> None:
    class Opaque(torch._ops.HigherOrderOperator):
        def __init__(self) -> None:
            super().__init__("energybench_opaque")

        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x)  # type: ignore[no-any-return]

    opaque = Opaque()
    opaque.fallthrough(torch._C.DispatchKey.AutogradCPU)
    opaque.py_impl(torch._C.DispatchKey.CompositeExplicitAutograd)(lambda x: x @ x)
    counter = counted(lambda: opaque(torch.ones(3, 3)))
    assert counter.total == 0
    assert counter.unpriced_matrix == {"higher_order.energybench_opaque": 1}


def test_flexible_attention_is_billed_as_dense_attention() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    q, k = torch.ones(1, 2, 8, 16), torch.ones(1, 2, 6, 16)
    counter = counted(lambda: flex_attention(q, k, k))
    assert counter.by_op == {"higher_order.flex_attention": 2 * 2 * 2 * 8 * 6 * 16}


@pytest.mark.parametrize("warm", [False, True])
def test_compiled_code_is_counted_as_it_was_written(warm: bool) -> None:
    compiled = torch.compile(lambda x: (x @ x).relu() @ x, backend="aot_eager", fullgraph=True)
    if warm:
        compiled(torch.ones(3, 3))
    assert counted(lambda: compiled(torch.ones(3, 3))).by_op == {"aten.mm": 2 * SQUARE}
    assert compiled(torch.ones(3, 3)).shape == (3, 3)  # and compiles afterwards


class StandIn:
    """What Triton's JITFunction has that matters here: `kernel[grid](...)` calls `run`. Triton itself needs a GPU."""

    arg_names = ("x", "out", "n")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.fn = function

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.run(*args, grid=grid, warmup=False, **kwargs)

    def run(self, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return None if warmup else self.fn(*args, **kwargs)


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> type:
    class JITFunction(StandIn):
        pass

    jit = types.ModuleType("triton.runtime.jit")
    jit.JITFunction = JITFunction  # type: ignore[attr-defined]
    for name, module in {"triton": types.ModuleType("triton"), "triton.runtime.jit": jit}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return JITFunction


def doubled(x: Tensor, out: Tensor, n: int) -> None:
    out.copy_(x + x)


def test_a_triton_kernel_that_is_launched_is_listed(jit: type) -> None:
    kernel, x, out = jit(doubled), torch.ones(4), torch.zeros(4)
    kernel[(1,)](x, out, 4)  # before
    counter = Counter()
    with counter:
        kernel[(1,)](x, out, n=4)
        kernel.run(x, out, 4, grid=(1,), warmup=True)  # compiles only
        with counter.paused():
            kernel[(1,)](x, out, 4)
        kernel[(2,)](x, out, 4)
    kernel[(1,)](x, out, 4)  # after
    assert counter.unpriced_matrix == {"triton.doubled": 2}
    assert out.tolist() == [2.0] * 4
    assert "run" not in vars(jit)  # it is as it was


def test_a_triton_kernel_with_a_formula_is_priced(jit: type, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = jit(doubled)
    formula = lambda *, grid, kwargs, out_val: 10 * kwargs["n"] * grid[0][0]  # noqa: E731
    monkeypatch.setitem(flop_counter.flop_registry, kernel, formula)
    counter = counted(lambda: kernel[(3,)](torch.ones(4), torch.zeros(4), n=4))
    assert (counter.by_op, counter.uncounted) == ({"triton.doubled": 120}, {})


def test_a_kernel_inside_an_operator_goes_by_the_operator_s_name(jit: type) -> None:
    kernel = jit(doubled)

    @torch.library.custom_op("counted_here::launches", mutates_args=())
    def launches(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        kernel[(1,)](x, out, 4)
        return out

    assert counted(lambda: launches(torch.ones(4))).uncounted == {"counted_here.launches": 1}


def test_a_recorded_graph_that_runs_again_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    class CUDAGraph:
        """Stands in for torch's, which needs a GPU."""

        def replay(self) -> None:
            pass

    monkeypatch.setattr(sys.modules["torch.cuda.graphs"], "CUDAGraph", CUDAGraph)
    replay, graph = CUDAGraph.replay, CUDAGraph()
    counter = counted(lambda: [graph.replay() for _ in range(3)])
    assert counter.unpriced_matrix == {"cuda.CUDAGraph.replay": 3}
    assert CUDAGraph.replay is replay
