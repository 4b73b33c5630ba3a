"""Bytes moved: every operator's from its definition, and all together against the kernels that torch really calls."""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from flop_models import MODELS, FunctionModule, build, traced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from energybench.flops import autocast
from energybench.flops.ledger import ledger
from energybench.flops.work import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, Line, Work

BATCH = 3


def wanting(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def entered(module: nn.Module, *inputs: Tensor, op: str, **options) -> dict[str, Line]:
    """The lines of one operator, by phase: of one module, whatever their shapes."""
    found: dict[str, Line] = {}
    for line in ledger(module, inputs, **options):
        if line.op == op:
            before = found.get(line.phase, Line(line.phase, line.module, op, 0.0))
            found[line.phase] = Line(
                line.phase,
                line.module,
                op,
                before.flop + line.flop,
                sample_b=dict(Counter(before.sample_b) + Counter(line.sample_b)),
                step_b=dict(Counter(before.step_b) + Counter(line.step_b)),
            )
    return found


def moved(module: nn.Module, *inputs: Tensor, op: str, **options) -> dict[str, tuple[float, float]]:
    """(bytes per sample, bytes per step) by phase."""
    return {
        phase: (line.activation_b, line.parameter_b)
        for phase, line in entered(module, *inputs, op=op, **options).items()
    }


# ── what has FLOPs ────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    groups=st.sampled_from([1, 2, 3]),
    each=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    side=st.integers(4, 9),
    bias=st.booleans(),
    first=st.booleans(),
)
def test_a_convolution_moves_its_operands_and_its_result_once(groups, each, kernel, stride, side, bias, first):
    into, out = (groups * n for n in each)
    layer = nn.Conv2d(into, out, kernel, stride, groups=groups, bias=bias)
    positions = ((side - kernel) // stride + 1) ** 2
    x, y, w, b = 4 * into * side**2, 4 * out * positions, 4 * out * into // groups * kernel**2, 4 * out * bias
    lines = entered(layer, torch.randn(BATCH, into, side, side, requires_grad=not first), op="conv")
    assert lines[FORWARD].sample_b == {"x": x, "y": y}
    assert lines[FORWARD].step_b == {"w": w} | ({"bias": b} if bias else {})
    assert lines[WEIGHT_GRADIENT].sample_b == {"x": x, "dy": y}
    assert lines[WEIGHT_GRADIENT].step_b == {"dw": w} | ({"dbias": b} if bias else {})
    assert (INPUT_GRADIENT in lines) != first
    if not first:
        assert lines[INPUT_GRADIENT].sample_b == {"dy": y, "dx": x}
        assert lines[INPUT_GRADIENT].step_b == {"w": w}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_a_linear_layer_moves_its_operands_and_its_result_once(into, out, positions, bias):
    x, y, w, b = 4 * positions * into, 4 * positions * out, 4 * into * out, 4 * out * bias
    found = moved(nn.Linear(into, out, bias=bias), wanting(BATCH, positions, into), op="linear")
    assert found == {FORWARD: (x + y, w + b), WEIGHT_GRADIENT: (x + y, w + b), INPUT_GRADIENT: (x + y, w)}


@pytest.mark.parametrize("name", ["mm", "addmm", "einsum", "@ transposed", "tensordot"])
def test_a_product_with_a_parameter_moves_what_a_linear_layer_moves(name):
    module = {
        "mm": FunctionModule(lambda x, w: torch.mm(x, w), w=torch.randn(5, 7)),
        "addmm": FunctionModule(lambda x, w, b: torch.addmm(b, x, w), w=torch.randn(5, 7), b=torch.randn(7)),
        "einsum": FunctionModule(lambda x, w: torch.einsum("bi,io->bo", x, w), w=torch.randn(5, 7)),
        "@ transposed": FunctionModule(lambda x, w: x @ w.t(), w=torch.randn(7, 5)),
        "tensordot": FunctionModule(lambda x, w: torch.tensordot(x, w, dims=([1], [0])), w=torch.randn(5, 7)),
    }[name]
    bias = 4 * 7 * (name == "addmm")
    found = moved(module, wanting(BATCH, 5), op="linear")
    weight = 4 * 5 * 7
    assert found == {
        FORWARD: (4 * 12, weight + bias),
        WEIGHT_GRADIENT: (4 * 12, weight + bias),
        INPUT_GRADIENT: (4 * 12, weight),
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_product_of_activations_reads_dy_and_the_other_for_each_gradient(m, k, n):
    lines = entered(FunctionModule(torch.bmm), wanting(BATCH, m, k), wanting(BATCH, k, n), op="matmul")
    a, b, y = 4 * m * k, 4 * k * n, 4 * m * n
    assert lines[FORWARD].sample_b == {"a": a, "b": b, "y": y}
    assert lines[INPUT_GRADIENT].sample_b == {"dy": 2 * y, "a": a, "b": b, "da": a, "db": b}
    assert not lines[FORWARD].step_b


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["fused", "plain path"])
def test_only_attention_that_is_not_fused_moves_its_scores(dropout):
    """Queries 6, keys 7, 3 heads of 8: QKᵀ writes the scores, softmax reads and writes them, PV reads them."""
    module = FunctionModule(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=dropout))
    tensors = [wanting(BATCH, 3, length, 8) for length in (6, 7, 7)]
    found = moved(module, *tensors, op="attention", device="cpu")
    q, k, scores = 4 * 3 * 6 * 8, 4 * 3 * 7 * 8, 4 * 3 * 6 * 7 * bool(dropout)
    y, v = q, k
    assert found[FORWARD] == (q + k + v + y + 4 * scores, 0)
    assert found[INPUT_GRADIENT] == (2 * (q + k + v) + 2 * y + 7 * scores, 0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_reads_its_weights_once_a_step(kind):
    layer = kind(6, 5, num_layers=2, batch_first=True)
    x, y, w = 4 * 7 * 6, 4 * 7 * 5, 4 * sum(weight.numel() for weight in layer.parameters())
    found = moved(layer, wanting(BATCH, 7, 6), op="recurrent")
    assert found == {FORWARD: (x + y, w), WEIGHT_GRADIENT: (x + y, w), INPUT_GRADIENT: (y + x, w)}


def test_a_recurrent_cell_is_two_linear_layers_and_what_is_done_to_their_results():
    found = moved(nn.GRUCell(6, 5), wanting(BATCH, 6), wanting(BATCH, 5), op="linear")
    both = 4 * (6 + 15) + 4 * (5 + 15)
    weights, biases = 4 * 15 * (6 + 5), 4 * 15 * 2
    assert found[FORWARD] == found[WEIGHT_GRADIENT] == (both, weights + biases)
    assert found[INPUT_GRADIENT] == (both, weights)


def test_a_frozen_layer_writes_no_weight_gradient_and_reads_its_weight_for_dx():
    layer = nn.Linear(5, 7).requires_grad_(False)
    assert moved(layer, wanting(BATCH, 5), op="linear") == {FORWARD: (4 * 12, 4 * 42), INPUT_GRADIENT: (4 * 12, 4 * 35)}


# ── what only moves ───────────────────────────────────────────────────────────────────────────────────────────────

SHAPE = (8, 6, 6)
N = 4 * prod(SHAPE)  # bytes of one sample of it


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm([6]), nn.InstanceNorm2d(8, affine=True)],
    ids=["batch", "group", "layer", "instance"],
)
def test_a_normalisation_reads_and_writes_its_activation_and_has_no_flops(norm):
    parameters = 4 * norm.weight.numel()
    lines = entered(norm, wanting(BATCH, *SHAPE), op="normalisation")
    assert lines[FORWARD].sample_b == {"x": N, "y": N}
    assert lines[FORWARD].step_b == {"w": parameters, "bias": parameters}
    assert lines[INPUT_GRADIENT].sample_b == {"x": N, "dy": N, "dx": N}
    assert lines[INPUT_GRADIENT].step_b == {"w": parameters, "dw": parameters, "dbias": parameters}
    assert all(line.flop == 0 for line in lines.values())


def test_a_first_normalisation_writes_no_input_gradient():
    found = moved(nn.BatchNorm2d(8), torch.randn(BATCH, *SHAPE), op="normalisation")
    assert found == {FORWARD: (2 * N, 64), WEIGHT_GRADIENT: (2 * N, 64)}


@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        (F.relu, 2, 3),
        (torch.tanh, 2, 3),
        (F.gelu, 2, 3),
        (F.silu, 2, 3),
        (F.relu6, 2, 3),
        (lambda x: x * 0.5, 2, 2),
        (lambda x: -x, 2, 2),
        (lambda x: x + 1, 2, 0),
        (lambda x: x.relu_() if not x.is_leaf else (x * 1).relu_(), 4, 5),
    ],
    ids=["relu", "tanh", "gelu", "silu", "relu6", "scale", "negate", "shift", "in place after a copy"],
)
def test_an_activation_reads_and_writes_its_tensor_and_its_derivative_reads_what_it_needs(function, forward, backward):
    found = moved(FunctionModule(function), wanting(BATCH, *SHAPE), op="elementwise")
    assert found[FORWARD] == (forward * N, 0)
    assert found.get(INPUT_GRADIENT, (0, 0)) == (backward * N, 0)


def test_a_sum_passes_its_gradient_on_and_a_product_reads_the_other_factor():
    pair = wanting(BATCH, *SHAPE), wanting(BATCH, *SHAPE)
    assert moved(FunctionModule(torch.add), *pair, op="elementwise") == {FORWARD: (3 * N, 0)}
    assert moved(FunctionModule(torch.mul), *pair, op="elementwise") == {
        FORWARD: (3 * N, 0),
        INPUT_GRADIENT: ((1 + 2 + 2) * N, 0),
    }
    one = (pair[0], pair[1].detach())
    assert moved(FunctionModule(torch.mul), *one, op="elementwise")[INPUT_GRADIENT] == ((1 + 1 + 1) * N, 0)


def test_a_place_that_is_added_to_every_sample_is_read_per_step_and_its_gradient_sums_dy():
    lines = entered(FunctionModule(lambda x, w: x + w, w=torch.randn(SHAPE)), wanting(BATCH, *SHAPE), op="elementwise")
    assert (lines[FORWARD].activation_b, lines[FORWARD].parameter_b) == (2 * N, N)
    assert (lines[WEIGHT_GRADIENT].activation_b, lines[WEIGHT_GRADIENT].parameter_b) == (N, N)


def test_softmax_reads_its_result_backward():
    found = moved(nn.Softmax(-1), wanting(BATCH, *SHAPE), op="softmax")
    assert found == {FORWARD: (2 * N, 0), INPUT_GRADIENT: (3 * N, 0)}


def test_a_maximum_keeps_its_positions_and_a_mean_does_not():
    """int64 positions: 8 bytes for each of the results, of which there are a quarter."""
    found = moved(nn.MaxPool2d(2), wanting(BATCH, *SHAPE), op="pooling")
    assert found == {FORWARD: (N + N / 4 + 2 * N / 4, 0), INPUT_GRADIENT: (N / 4 + 2 * N / 4 + N, 0)}
    found = moved(nn.AvgPool2d(2), wanting(BATCH, *SHAPE), op="pooling")
    assert found == {FORWARD: (N + N / 4, 0), INPUT_GRADIENT: (N / 4 + N, 0)}


def test_dropout_moves_a_mask_of_a_byte_per_element_unless_it_drops_nothing():
    found = moved(nn.Dropout(0.5), wanting(BATCH, *SHAPE), op="masking")
    assert found == {FORWARD: (2 * N + N / 4, 0), INPUT_GRADIENT: (2 * N + N / 4, 0)}
    assert not moved(nn.Dropout(0.0), wanting(BATCH, *SHAPE), op="masking")


def test_an_embedding_reads_rows_and_its_gradient_is_the_whole_table():
    lines = entered(nn.Embedding(100, 6), torch.zeros(BATCH, 5, dtype=torch.long), op="embedding")
    assert lines[FORWARD].sample_b == {"rows": 4 * 30, "indices": 8 * 5, "y": 4 * 30}
    assert lines[WEIGHT_GRADIENT].sample_b == {"dy": 4 * 30, "indices": 8 * 5}
    assert lines[WEIGHT_GRADIENT].step_b == {"dw": 4 * 600}


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(BATCH, -1),
        lambda x: x.transpose(1, 2),
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.flatten(1),
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x.reshape(BATCH, 8, 36),
        lambda x: x.contiguous(),
        lambda x: x[:, :, :6],
        lambda x: x.to(torch.float32),
    ],
    ids=["view", "transpose", "permute", "flatten", "squeeze", "reshape", "contiguous", "all of it", "same type"],
)
def test_a_view_moves_nothing(view):
    assert not ledger(FunctionModule(view), (wanting(BATCH, *SHAPE),))


@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        (lambda x: x.transpose(1, 2).contiguous(), 2, 0),
        (lambda x: x.transpose(1, 2).reshape(BATCH, -1), 2, 0),
        (lambda x: torch.cat([x, x]), 4, 0),
        (lambda x: x.roll(1, 2), 2, 2),
        (lambda x: x[:, :4], 0, 1.5),
        (lambda x: torch.cat(x.split(4, 1), 1), 2, 2),
        (lambda x: x.double(), 3, 3),
    ],
    ids=["contiguous", "reshape", "cat", "roll", "slice", "split and cat", "double"],
)
def test_a_copy_reads_and_writes_and_the_gradient_of_a_part_fills_the_whole(function, forward, backward):
    total: Counter[str] = Counter()
    for line in ledger(FunctionModule(function), (wanting(BATCH, *SHAPE),)):
        total[line.phase] += line.activation_b
    assert total[FORWARD] == forward * N
    assert total[INPUT_GRADIENT] == backward * N


# ── all together ──────────────────────────────────────────────────────────────────────────────────────────────────


class Kernels(TorchDispatchMode):
    """Bytes of all tensors that go into and come out of the operators that torch calls, views left out."""

    FREE = frozenset({"detach", "empty", "empty_like", "new_empty", "_unsafe_view"})

    def __init__(self) -> None:
        super().__init__()
        self.moved_b = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in self.FREE:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.moved_b += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        return out


@pytest.mark.parametrize("name", MODELS)
def test_the_kernels_that_torch_calls_move_no_less_and_not_much_more(name):
    """An independent count, by another mechanism. What it has more: copies inside composite operators."""
    model, batch = build(name, "meta")
    with Kernels() as kernels:
        model(batch)
    forward = sum(line.moved_b(len(batch)) for line in traced(name) if line.phase == FORWARD)
    assert 0.75 * kernels.moved_b < forward <= 1.001 * kernels.moved_b
    if name in ("resnet18", "resnet50", "vgg16"):
        assert forward == pytest.approx(kernels.moved_b, rel=2e-3)


@pytest.mark.parametrize("name", ["small CNN", "MLP-Mixer", "GPT-2-like", "mobilenet_v2", "swin_t"])
def test_activations_grow_with_the_batch_and_parameters_do_not(name):
    model, batch = build(name, "meta")
    small, large = (ledger(model, (torch.cat([batch] * times),)) for times in (11, 13))
    for one, other in zip(small, large, strict=True):
        assert one.activation_b == pytest.approx(other.activation_b, rel=1e-12)
        assert one.parameter_b == other.parameter_b


def test_modules_add_up():
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3)]
    whole, sums = Counter[str](), Counter[str]()
    x = wanting(BATCH, 3, 12, 12)
    for line in ledger(nn.Sequential(*parts), (x,)):
        whole[line.phase] += line.moved_b(BATCH)
    for part in parts:
        for line in ledger(part, (x,)):
            sums[line.phase] += line.moved_b(BATCH)
        x = part(x).detach().requires_grad_()
    assert whole == sums


def test_two_parts_of_a_step_move_what_the_step_moves_but_for_its_parameters():
    model, batch = build("resnet18", "meta")
    work = Work(ledger(model, (batch,)), epochs=1, samples=128)
    assert work.moved_b(64) - work.moved_b(128) == pytest.approx(sum(line.parameter_b for line in work.lines))
    by_op = work.moved_b_by(128, lambda line: line.op)
    assert sum(by_op.values()) == pytest.approx(work.moved_b(128))


def test_the_last_batch_of_an_epoch_reads_all_parameters_too():
    line = Line(FORWARD, "a", "linear", 8.0, sample_b={"x": 10.0}, step_b={"w": 100.0})
    assert Work((line,), epochs=2, samples=10).moved_b(4) == 2 * (10 * 10 + 3 * 100)
    assert line.moved_b(4) == 140
    assert line.intensity(4) == 32 / 140


def test_the_intensity_of_a_product_grows_with_its_size_and_a_normalisation_has_next_to_none():
    """n × n by n × n in fp32: 2 n³ FLOPs on 3 · 4 n² bytes."""
    for n in (16, 64, 256):
        square = entered(FunctionModule(torch.bmm), torch.empty(2, n, n), torch.empty(2, n, n), op="matmul")[FORWARD]
        assert square.intensity(8) == pytest.approx(n / 6)
    layer = entered(nn.Linear(256, 256), torch.empty(2, 256), op="linear")[FORWARD]
    assert layer.intensity(1) < layer.intensity(64) < layer.intensity(4096)
    norm = entered(nn.BatchNorm1d(256), torch.empty(2, 256), op="normalisation")[FORWARD]
    assert norm.intensity(64) < 1


# ── precision ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_under_bf16_a_layer_moves_two_bytes_and_casts_its_fp32_operands():
    x, y, w, b = 5, 7, 35, 7
    layer = nn.Linear(5, 7)
    found = moved(layer, wanting(BATCH, 5), op="linear", precision="bf16", device="cpu")
    assert found == {
        FORWARD: (2 * (x + y), 2 * (w + b)),
        WEIGHT_GRADIENT: (2 * (x + y), 2 * (w + b)),
        INPUT_GRADIENT: (2 * (x + y), 2 * w),
    }
    casts = moved(layer, wanting(BATCH, 5), op="cast", precision="bf16", device="cpu")
    assert casts == {FORWARD: (6 * x, 6 * (w + b)), INPUT_GRADIENT: (6 * x, 0), WEIGHT_GRADIENT: (0, 6 * (w + b))}


def test_under_bf16_what_follows_a_layer_stays_narrow_and_a_sum_with_fp32_is_wide():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    lines = ledger(model, (torch.randn(BATCH, 3, 8, 8),), precision="bf16", device="cuda")
    forward = {line.op: line for line in lines if line.phase == FORWARD}
    y = 2 * 4 * 64
    assert forward["conv"].sample_b == {"x": 2 * 3 * 64, "y": y}
    assert forward["normalisation"].sample_b == {"x": y, "y": y}
    assert forward["normalisation"].step_b == {"w": 16, "bias": 16}
    assert forward["elementwise"].sample_b == {"x": y, "y": y}
    assert forward["pooling"].sample_b == {"x": y, "y": y / 4, "indices": y}

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.fc(x)

    line = entered(Residual(), torch.randn(BATCH, 4), op="elementwise", precision="bf16", device="cpu")[FORWARD]
    assert line.sample_b == {"x": 4 * 4 + 2 * 4, "y": 4 * 4}


def test_a_gpu_normalises_layers_and_takes_softmax_in_fp32():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Softmax(-1))
    for device, width in (("cuda", 4), ("cpu", 2)):
        for op in ("normalisation", "softmax"):
            line = entered(model, torch.randn(BATCH, 6), op=op, precision="bf16", device=device)[FORWARD]
            assert line.sample_b == {"x": 8 * width, "y": 8 * width}, (device, op)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp16_moves_what_bf16_moves(device):
    model, batch = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), torch.randn(BATCH, 3, 8, 8)
    narrow, other = (ledger(model, (batch,), device, precision) for precision in ("bf16", "fp16"))
    assert narrow == other
    assert ledger(model, (batch,), device, "fp32") != other


def test_fp32_and_bf16_have_the_same_flops():
    for name in ("small CNN", "GPT-2-like", "MLP-Mixer"):
        model, batch = build(name, "meta")
        plain, narrow = (ledger(model, (batch,), "cpu", precision) for precision in ("fp32", "bf16"))
        assert sum(line.flop for line in plain) == sum(line.flop for line in narrow)
        wide_b, narrow_b = (sum(line.moved_b(64) for line in lines) for lines in (plain, narrow))
        assert narrow_b < wide_b


class Widths(nn.Module):
    """One operator under autocast, on an fp32 tensor `x` (rows, 8) or on what a layer made `narrow` of it."""

    CASES = {  # noqa: RUF012
        "linear": lambda m, x, narrow: narrow,
        "matmul": lambda m, x, narrow: x @ x.t(),
        "mm": lambda m, x, narrow: torch.mm(x, x.t()),
        "mv": lambda m, x, narrow: torch.mv(x, x[0]),
        "addmm": lambda m, x, narrow: torch.addmm(x[0, :1], x, x.t()),
        "bmm": lambda m, x, narrow: torch.bmm(x[None], x.t()[None]),
        "einsum": lambda m, x, narrow: torch.einsum("ij,kj->ik", x, x),
        "inner": lambda m, x, narrow: torch.inner(x, x),
        "tensordot": lambda m, x, narrow: torch.tensordot(x, x, dims=([1], [1])),
        "prelu": lambda m, x, narrow: F.prelu(x, m.linear.bias),
        "attention": lambda m, x, narrow: F.scaled_dot_product_attention(*[x[None, None]] * 3),
        "lstm": lambda m, x, narrow: m.lstm(x)[0],
        "gru": lambda m, x, narrow: m.gru(x)[0],
        "gelu": lambda m, x, narrow: F.gelu(narrow),
        "layer norm": lambda m, x, narrow: m.layer_norm(narrow),
        "group norm": lambda m, x, narrow: m.group_norm(narrow),
        "batch norm": lambda m, x, narrow: m.batch_norm(narrow),
        "softmax": lambda m, x, narrow: narrow.softmax(-1),
        "log softmax": lambda m, x, narrow: narrow.log_softmax(-1),
        "exp": lambda m, x, narrow: narrow.exp(),
        "sum": lambda m, x, narrow: narrow.sum(1),
        "mean": lambda m, x, narrow: narrow.mean(1),
        "in place": lambda m, x, narrow: narrow.mul(2).add_(x),
        "add": lambda m, x, narrow: narrow + x,
        "view and cat": lambda m, x, narrow: torch.cat([narrow[:, :4], narrow.view(-1, 8)], 1),
        "split": lambda m, x, narrow: F.gelu(narrow.split(4, 1)[0]),
        "float": lambda m, x, narrow: narrow.float() * 2,
        "mean squared error": lambda m, x, narrow: F.mse_loss(narrow, narrow * 2, reduction="none"),
        "smooth l1": lambda m, x, narrow: F.smooth_l1_loss(narrow, narrow * 2, reduction="none"),
        "cross-entropy": lambda m, x, narrow: F.cross_entropy(narrow, x.argmax(1), reduction="none"),
    }

    def __init__(self, name: str) -> None:
        super().__init__()
        self.case = self.CASES[name]
        self.linear, self.lstm, self.gru = nn.Linear(8, 8), nn.LSTM(8, 8), nn.GRU(8, 8)
        self.layer_norm, self.group_norm = nn.LayerNorm(8), nn.GroupNorm(2, 8)
        self.batch_norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.case(self, x, self.linear(x))


@pytest.mark.parametrize("name", Widths.CASES)
def test_results_are_as_wide_as_autocast_makes_them_on_this_processor(name):
    module, x = Widths(name), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        real = module(x)
    last = [line for line in ledger(module, (x,), "cpu", "bf16") if line.phase == FORWARD and line.op != "cast"][-1]
    parts = ((last.step_b, 1), (last.sample_b, 5), (last.pair_b, 25))
    written = sum(moved_b.get("y", 0.0) * times for moved_b, times in parts)
    if name == "in place":
        written -= real.numel() * real.itemsize  # two kernels in one line
    assert written == real.numel() * real.itemsize


def test_the_lists_for_a_gpu_are_torchs_own():
    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    if not header.exists():
        pytest.skip("this torch comes without its headers")
    text = header.read_text()

    def listed(name: str) -> set[str]:
        block = re.search(rf"#define {name}\(_\)(.*?)\n\n", text, re.DOTALL)
        assert block
        return set(re.findall(r"_\((\w+)", block[1]))

    ours = autocast.LOWER["cuda"]
    theirs = listed("AT_FORALL_LOWER_PRECISION_FP")
    aside = {"_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "_scaled_dot_product_flash_attention"}
    assert theirs - ours <= aside  # never in a trace
    # Made of listed ones, or with a rule of their own beside the list.
    beside = "_convolution_mode _addmm_activation tensordot inner lstm gru rnn_tanh rnn_relu"
    assert ours - theirs <= set(beside.split(" "))
    full = listed("AT_FORALL_FP32") | listed("AT_FORALL_FP32_SET_OPT_DTYPE")
    assert {op for op in full - autocast.FULL["cuda"] if not op.startswith(("_upsample", "native_", "ADD_NS"))} == set()
    assert autocast.FULL["cuda"] - full <= {"norm", "nll_loss_nd"}


def test_the_table_of_the_page_is_what_the_ledger_says():
    page = (Path(__file__).parents[2] / "docs/flops.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+), (fp32|bf16 on a GPU) \| ([\d.]+) \| ([\d.]+) \| (\d+) % \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for name, precision, megabytes, intensity, moving in rows:
        model, batch = build(name, "meta")
        device, kind = ("cpu", "fp32") if precision == "fp32" else ("cuda", "bf16")
        work = Work(ledger(model, (torch.cat([batch] * 6)[:11],), device, kind), epochs=1, samples=64)
        moved_b = work.moved_b(64)
        without = sum(work.line_b(line, 64) for line in work.lines if not line.flop)
        assert f"{moved_b / 64 / 1e6:.1f}" == megabytes
        assert f"{work.flop / moved_b:.1f}" == intensity
        assert f"{100 * without / moved_b:.0f}" == moving
