"""Scores of samples against per-sample gradients by autograd, one sample at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, MODELS, assert_same_state, digits, double_run, make_run, state, tiny_cnn
from torch import Tensor, nn

from energybench import Batch, Forward, Task
from energybench.algorithms import sample_scores as scores
from energybench.algorithms.sample_scores import Scorer, norms, output_gradient, parameter_gradient
from energybench.common.errors import UsageError
from energybench.flops.counter import Counter
from energybench.train.data import Data, Resident
from energybench.workloads.models import mlp
from energybench.workloads.tasks.classification import Classification


class Pixels(Task):
    """Σ (output − target)² over pixels of two outputs, in a tree: no closed form is given."""

    name = "pixels"

    def forward(self, run, batch):
        outputs = {"a": run.model(batch.inputs), "b": [run.model(batch.inputs) ** 2]}
        each = self.losses(run, outputs, batch)
        return Forward(each.mean(), each, outputs)

    def losses(self, run, outputs, batch):
        first, second = outputs["a"] - batch.targets, outputs["b"][0] - batch.targets
        return first.square().flatten(1).sum(1) + second.abs().flatten(1).sum(1)


def scored(run: Any, batch: Batch, kind: str, form: str = "analytic") -> Tensor:
    """As a method scores the batch that it trains on."""
    scorer = Scorer(run, kind, form)
    scorer.listen()
    found = scorer(run, run.gradients(batch), batch)
    scorer.close()
    return found


def first(run: Any, count: int = 12) -> Batch:
    return next(run.data.load([torch.arange(count)]))


# ── the output's gradient ─────────────────────────────────────────────────────────────────────────────────────────


@given(
    count=st.integers(1, 9),
    classes=st.integers(2, 7),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_the_closed_form_is_autograds_with_and_without_label_smoothing(count, classes, smoothing, scale, seed):
    random = torch.Generator().manual_seed(seed)
    outputs = torch.randn(count, classes, generator=random, dtype=torch.float64) * scale
    targets = torch.randint(classes, (count,), generator=random)
    run = double_run(label_smoothing=smoothing)
    batch = Batch(None, targets, torch.arange(count))
    (closed,) = output_gradient(run, outputs, batch)
    (other,) = output_gradient(run, outputs, batch, "autograd")
    torch.testing.assert_close(closed, other, rtol=1e-9, atol=1e-12)
    alone = outputs.clone().requires_grad_()
    for i in range(count):
        loss = F.cross_entropy(alone[i][None], targets[i][None], label_smoothing=smoothing)
        (gradient,) = torch.autograd.grad(loss, alone)
        torch.testing.assert_close(closed[i], gradient[i], rtol=1e-9, atol=1e-12)
        assert norms([closed])[i].item() == pytest.approx(gradient.norm().item(), rel=1e-9, abs=1e-12)


def test_a_sample_that_is_right_for_sure_scores_0_and_one_that_is_wrong_for_sure_scores_the_root_of_2():
    outputs = torch.tensor([[0.0, 1e4], [0.0, 1e4]], dtype=torch.float64)
    batch = Batch(None, torch.tensor([1, 0]), torch.arange(2))
    found = norms(output_gradient(double_run(), outputs, batch))
    assert found.tolist() == pytest.approx([0.0, 2**0.5])


def test_any_loss_of_any_tree_of_outputs_is_scored_through_its_losses():
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 4, generator=random, dtype=torch.float64)
    data = Data(Resident(inputs, torch.randn(10, 4, generator=random, dtype=torch.float64), CPU))
    run = double_run(model=lambda: nn.Linear(4, 4).double(), data=data, task=Pixels())
    batch = first(run, 10)
    found = scored(run, batch, "output-gradient")
    y = run.model(batch.inputs).detach()
    squares = (2 * (y - batch.targets)).square().sum(1) + (y**2 - batch.targets).sign().square().sum(1)
    torch.testing.assert_close(found, squares.sqrt())


def test_low_precision_outputs_are_scored_in_single_precision():
    outputs = torch.randn(4, 5, dtype=torch.bfloat16)
    batch = Batch(None, torch.tensor([0, 1, 2, 3]), torch.arange(4))
    run = make_run()
    for form in scores.FORMS:
        (gradient,) = output_gradient(run, outputs, batch, form)
        assert gradient.dtype == torch.float32
        (wide,) = output_gradient(run, outputs.float(), batch, form)
        assert torch.equal(gradient, wide)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("kind", scores.SCORES)
def test_scores_do_not_depend_on_micro_batches_and_leave_gradients_and_statistics_as_plain_training_does(kind, pieces):
    """The model has no BatchNorm, whose statistics are those of a micro-batch."""
    run, plain = double_run(accumulate=pieces), double_run(accumulate=pieces)
    batch = first(run)
    whole = scored(double_run(), batch, kind)
    found = scored(run, batch, kind)
    plain.gradients(batch)
    torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-13)
    assert found.shape == (12,)
    assert not found.requires_grad
    for mine, theirs in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_the_score_by_loss_is_the_loss():
    run = double_run()
    batch = first(run)
    assert torch.equal(scored(run, batch, "loss"), run.forward(batch).each.detach())


# ── the last layer ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", scores.FORMS)
def test_the_last_layers_score_is_the_length_of_its_own_gradient(bias, form):
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=bias)).double()

    run = double_run(model=model)
    batch = first(run)
    found = scored(run, batch, "last-layer-gradient", form)
    for i in range(12):
        loss = F.cross_entropy(run.model(batch.inputs[i][None]), batch.targets[i][None])
        parts = torch.autograd.grad(loss, list(run.model[2].parameters()))
        length = torch.cat([part.flatten() for part in parts]).norm()
        torch.testing.assert_close(found[i], length, rtol=1e-10, atol=1e-13)


def test_a_model_whose_last_linear_layer_is_not_its_output_is_refused_in_words():
    run = double_run(model=lambda: nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2)), nn.Flatten()).double())
    run.model[0].out_features = 4
    assert scored(run, first(run), "last-layer-gradient").shape == (12,)  # reshaping alone is no mistake
    run = double_run(model=lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU()).double())
    with pytest.raises(TypeError, match=r"last linear layer makes \(B, 8\).*\(12, 4\)"):
        scored(run, first(run), "last-layer-gradient")


def test_scores_that_the_model_or_the_task_cannot_give_are_refused_before_the_first_step():
    class NoLosses(Classification):
        losses = Task.losses
        output_gradient = Task.output_gradient

    run = double_run(model=lambda: nn.Sequential(nn.Conv1d(1, 1, 2)), task=NoLosses())
    for kind in ("output-gradient", "last-layer-gradient"):
        with pytest.raises(UsageError, match=r"losses\(run, outputs, batch\)"):
            Scorer(run, kind)
    with pytest.raises(UsageError, match="no linear layer"):
        Scorer(double_run(model=lambda: nn.Sequential(nn.Conv1d(1, 1, 2))), "last-layer-gradient")
    Scorer(run, "loss")
    Scorer(run, "parameter-gradient")


def test_a_closed_scorer_leaves_no_hook():
    run = make_run()
    before = [len(module._forward_hooks) for module in run.model.modules()]
    scorer = Scorer(run, "last-layer-gradient")
    assert [len(module._forward_hooks) for module in run.model.modules()] != before
    scorer.close()
    assert [len(module._forward_hooks) for module in run.model.modules()] == before


# ── all parameters ────────────────────────────────────────────────────────────────────────────────────────────────


def one_at_a_time(run: Any, batch: Batch) -> Tensor:
    """‖∂ℓᵢ/∂θ‖ by a forward and a backward per sample, in evaluation mode."""
    run.model.eval()
    found = []
    for i in range(len(batch)):
        loss = F.cross_entropy(run.model(batch.inputs[i][None]), batch.targets[i][None])
        parts = torch.autograd.grad(loss, [p for p in run.model.parameters() if p.requires_grad])
        found.append(torch.cat([part.flatten() for part in parts]).norm())
    run.model.train()
    return torch.stack(found)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("model", [*MODELS.values(), lambda: mlp((1, 8, 8), 10, [16])], ids=[*MODELS, "mlp"])
def test_the_reference_is_the_length_of_each_samples_whole_gradient_and_moves_nothing(model):
    run = make_run(model=model)
    batch = first(run)
    run.forward(batch)  # statistics are no longer those of a fresh BatchNorm
    before = state(run.model)
    found = parameter_gradient(run, batch)
    assert_same_state(state(run.model), before)
    assert all(parameter.grad is None for parameter in run.model.parameters())
    torch.testing.assert_close(found, one_at_a_time(run, batch), rtol=1e-4, atol=1e-6)


def test_the_reference_leaves_out_what_does_not_learn_and_takes_any_task():
    run = make_run()
    run.model[0].requires_grad_(False)
    batch = first(run)
    torch.testing.assert_close(parameter_gradient(run, batch), one_at_a_time(run, batch), rtol=1e-4, atol=1e-6)
    data = Data(Resident(torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64), CPU))
    run = double_run(model=lambda: nn.Linear(4, 4).double(), data=data, task=Pixels())
    batch = first(run, 6)
    found = parameter_gradient(run, batch)
    for i in range(6):
        alone = next(data.load([torch.tensor([i])]))
        parts = torch.autograd.grad(run.task.forward(run, alone).value, list(run.model.parameters()))
        torch.testing.assert_close(found[i], torch.cat([part.flatten() for part in parts]).norm())


def test_the_reference_in_pieces_is_the_same_and_is_tallied_as_the_passes_it_takes(monkeypatch):
    run = double_run()
    batch = first(run)
    whole = parameter_gradient(run, batch)
    assert (run.tally.forwards, run.tally.backwards, run.tally.samples_forward) == (1, 1, 12)
    size = sum(parameter.numel() for parameter in run.model.parameters())
    monkeypatch.setattr(scores, "HELD", 5 * size)  # room for five samples
    torch.testing.assert_close(parameter_gradient(run, replace(batch)), whole, rtol=1e-12, atol=0)
    assert (run.tally.forwards, run.tally.backwards, run.tally.samples_forward) == (4, 4, 24)


def test_the_counter_sees_in_the_reference_a_forward_and_a_backward_of_every_sample():
    run = make_run(model=tiny_cnn, data=digits(32))
    batch = first(run, 32)
    with Counter() as counter:
        run.gradients(batch)
        plain = counter.total
        parameter_gradient(run, batch)
    assert counter.total == 2 * plain
