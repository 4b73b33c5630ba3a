"""lora: h = W₀x + (α/r)·BAx, what learns, what a frozen layer no longer costs, and the plain model that is left."""

from __future__ import annotations

import pytest
import torch
from support import CPU, StackedTransformer, assert_same_state, double_run, make_run, state, tiny_cnn, tiny_mlp, vectors
from test_method_members import method_named
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner.tracing import trace_run
from energybench.train.method import Method
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads.tasks.classification import Classification


def lora(**parameters):
    return method_named("lora", **parameters)


def wide_mlp() -> nn.Module:
    """6 → 8 → 7 → 3."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def updates(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.lora_a.detach(), layer.lora_b.detach()


@pytest.mark.parametrize("model", [tiny_cnn, StackedTransformer])
def test_the_first_forward_is_plain_trainings_bit_for_bit(model):
    run, plain = make_run([lora()], model), make_run([], model)
    found, wanted = (r.forward(next(iter(r.batches(r.data)))) for r in (run, plain))
    assert torch.equal(found.outputs, wanted.outputs)


def test_the_gradients_are_those_of_the_formula():
    """y = W₀x + s·BAx: ∂L/∂B = s·Gᵀ(xAᵀ) and ∂L/∂A = s·BᵀGᵀx where G = ∂L/∂y; the first A does not move, as B is 0."""
    layer, x, target = nn.Linear(5, 4).double(), torch.randn(7, 5).double(), torch.randn(7, 4).double()
    run = double_run([lora(rank=2, alpha=6.0, head=False)], model=lambda: nn.Sequential(layer))
    method = run.methods[0]
    assert list(method._layers) == ["0"]
    with torch.no_grad():
        layer.lora_b.copy_(torch.randn(4, 2))
    a, b = updates(layer)
    output = run.model(x)
    torch.testing.assert_close(output, x @ (layer.weight + 3 * b @ a).T + layer.bias)
    (output * target).sum().backward()
    torch.testing.assert_close(layer.lora_b.grad, 3 * target.T @ (x @ a.T))
    torch.testing.assert_close(layer.lora_a.grad, 3 * b.T @ target.T @ x)
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_in_the_end_the_updates_are_in_the_weights_and_nothing_else_is_left():
    run = double_run([lora(rank=2, alpha=3.0)], model=wide_mlp, lr=0.3, epochs=4)
    start = state(run.model)
    run.train()
    trained, kept = state(run.model), [updates(run.model[n]) for n in (0, 2)]
    before = run.evaluate(run.data)
    assert all(b.abs().sum() > 0 for _, b in kept)
    run.finish()
    after = state(run.model)
    assert after.keys() == state(wide_mlp()).keys()
    for (a, b), name in zip(kept, ("0", "2"), strict=True):
        torch.testing.assert_close(after[f"{name}.weight"], start[f"{name}.weight"] + 1.5 * b @ a, rtol=1e-12, atol=0)
        assert torch.equal(after[f"{name}.bias"], start[f"{name}.bias"])
    assert torch.equal(after["4.weight"], trained["4.weight"])  # the head has learned as it is
    assert not torch.equal(after["4.weight"], start["4.weight"])
    assert run.evaluate(run.data) == pytest.approx(before, rel=1e-10)
    assert all(parameter.requires_grad for parameter in run.model.parameters())


class Conv1D(nn.Module):
    """As transformers has it: a linear layer with its weight the other way round."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), (2, 3, 9, 9)),
        (nn.Conv1d(3, 4, 5, padding="same"), (2, 3, 9)),
        (nn.Conv3d(2, 3, 1), (2, 2, 3, 3, 3)),
        (Conv1D(4, 5), (2, 5)),
    ],
)
def test_a_merged_layer_computes_what_the_layer_and_its_update_did(layer, shape):
    run = double_run([lora(rank=2, head=False)], model=lambda: nn.Sequential(layer.double()))
    x = torch.randn(shape).double()
    plain = run.model(x).detach()
    with torch.no_grad():
        layer.lora_b.normal_()
    updated = run.model(x).detach()
    run.finish()
    assert not torch.allclose(updated, plain)
    torch.testing.assert_close(run.model(x).detach(), updated)


def test_updates_and_head_are_all_that_learns_and_norms_on_request():
    for norms in (False, True):
        run = make_run([lora(norms=norms)])
        wanted = {"0.lora_a", "0.lora_b", "4.lora_a", "4.lora_b", "9.weight", "9.bias"}
        wanted |= {f"{name}.{kind}" for name in "15" for kind in ("weight", "bias")} if norms else set()
        names = {parameter: name for name, parameter in run.model.named_parameters()}
        assert {names[parameter] for parameter in run.parameters()} == wanted
        start = {name: value.detach().clone() for name, value in run.model.named_parameters()}
        run.train()
        for name, parameter in run.model.named_parameters():
            assert torch.equal(parameter, start[name]) == (name not in wanted), name
        assert run.untrained() == {}


def test_what_did_not_learn_before_does_not_afterwards():
    def model() -> nn.Module:
        made = wide_mlp()
        made[4].weight.requires_grad_(False)
        return made

    run = double_run([lora()], model=model)
    run.train()
    run.finish()
    assert [name for name, p in run.model.named_parameters() if not p.requires_grad] == ["4.weight"]


def test_torchs_fast_path_for_evaluation_does_not_pass_the_updates_by():
    run = make_run([lora(rank=2)], StackedTransformer, lr=0.5)
    run.train()
    before = run.evaluate(run.data)
    without = make_run([], StackedTransformer)
    without.model.load_state_dict({k: v for k, v in state(run.model).items() if "lora" not in k})
    assert without.evaluate(run.data)["loss"] != pytest.approx(before["loss"], rel=1e-3)
    run.finish()
    assert run.evaluate(run.data)["loss"] == pytest.approx(before["loss"], rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_estimate_is_the_closed_form_and_what_is_counted(accumulate):
    """Of a product of in × out: 2·in·out forward, as much for dX unless nothing below learns; dW of the head alone.
    Of an update: 2·r·(in + out) forward, as much for dA and dB, 2·r·out back to the middle and 2·r·in to x."""
    sizes, r = [(6, 8), (8, 7), (7, 3)], 2
    method, counter = lora(rank=r), StepCounter(10**9)
    run = double_run([method], model=wide_mlp, accumulate=accumulate, counter=counter)
    run.train()
    plain = double_run(model=wide_mlp, accumulate=accumulate)
    work = Work(trace_run(plain, CPU).lines, 2, 24, 8, accumulate)
    samples = 2 * 24
    assert work.flop == samples * 2 * (3 * (48 + 56 + 21) - 48)
    closed = 0
    for number, (ins, out) in enumerate(sizes):
        head, first = number == 2, number == 0
        closed += 2 * ins * out * (1 + (not first) + head)
        if not head:
            closed += 2 * r * (2 * (ins + out) + out + (0 if first else ins))
    assert method.estimate(work).flop == pytest.approx(samples * closed)
    assert counter.result(run).counted_flop == samples * closed


def test_an_update_is_no_wider_than_its_layer():
    run = double_run([lora(rank=50)], model=wide_mlp)
    assert [tuple(p.shape) for layer in run.methods[0]._layers.values() for p in updates(layer)] == [
        *((6, 6), (8, 6)),
        *((7, 8), (7, 7)),
    ]


class Tied(nn.Module):
    """The second layer has the first one's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.two.weight, self.head = self.one.weight, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(x))))


def test_a_weight_that_two_layers_share_gets_no_update():
    run = make_run([lora()], Tied, vectors(dtype=torch.float32))
    assert list(run.methods[0]._layers) == ["three"]


def test_a_model_without_a_layer_for_it_is_refused_in_words():
    with pytest.raises(UsageError, match="no linear layer or convolution beside its head"):
        make_run([lora()], lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(UsageError, match="no linear layer"):
        make_run([lora(convolutions=False)])
    assert make_run([lora(head=False)], lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def test_an_average_outside_is_what_is_merged_and_one_inside_is_refused():
    average = method_named("ema", decay=0.5, ramp=False)
    run = double_run([average, lora(rank=2)], model=wide_mlp, lr=0.3)
    start = state(run.model)["0.weight"]
    run.train()
    (kept,) = average._averages.values()
    names = [name for name, p in run.model.named_parameters() if p.requires_grad]
    averaged = {tuple(a.shape): a.clone() for a in kept}
    assert len(kept) == len(names)
    a, b = averaged[2, 6], averaged[8, 2]
    before = run.evaluate(run.data)
    run.finish()
    torch.testing.assert_close(run.model[0].weight.detach(), start + 8 * b @ a)
    assert run.evaluate(run.data) == pytest.approx(before, rel=1e-10)
    with pytest.raises(UsageError, match="put it outside"):
        double_run([lora(), method_named("ema")], model=wide_mlp)


def test_two_that_put_their_own_layers_in_place_are_refused():
    stack = [lora(), method_named("ssprop")]
    assert "E314" in {problem.code for problem in check_stack(stack, Classification())}
    assert not check_stack([lora(convolutions=False), method_named("ssprop")], Classification())


def test_micro_batches_give_the_same_training():
    weights = []
    for accumulate in (1, 4):
        run = double_run([lora(rank=2)], model=wide_mlp, accumulate=accumulate)
        run.train()
        run.finish()
        weights.append(state(run.model))
    for one, other in zip(*(each.values() for each in weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_frozen_layer_costs_no_update_of_the_optimizer():
    class Listed(Method):
        name = "listed"

        def optimizer(self, run, params, inner):
            self.count = sum(p.numel() for p in params)
            return inner(params)

    listed = Listed()
    run = double_run([listed, lora(rank=1)], model=lambda: tiny_mlp().double())
    run.train()
    assert listed.count == (6 + 5) + (5 * 3 + 3)
    assert run.methods[1].diagnostics() == {
        "layers": ["0"],
        "parameters_learning": listed.count,
        "parameters_frozen": 6 * 5 + 5,
    }


@pytest.mark.parametrize("parameters", [{"rank": 0}, {"alpha": 0.0}, {"alpha": float("inf")}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(UsageError):
        lora(**parameters)


def test_the_draws_of_a_are_within_the_bounds_of_a_fresh_layer_and_its_own():
    runs = [make_run([lora()], seed=seed) for seed in (7, 7, 8)]
    first, again, other = (run.model[4].lora_a.detach() for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.abs().max() <= (8 * 9) ** -0.5
    assert_same_state({k: v for k, v in state(runs[0].model).items() if "lora" not in k}, state(make_run(seed=7).model))
