"""What the ledger says of modules: names, shapes, sums, and what it leaves untouched."""

from __future__ import annotations

import copy
import logging
import resource
import warnings

import pytest
import torch
from flop_models import MODELS, build, counted, entered, traced
from torch import nn

from energybench.common.errors import EnergybenchError
from energybench.flops.ledger import ledger
from energybench.flops.work import BACKWARD, FORWARD, Work


@pytest.mark.parametrize("name", MODELS)
def test_on_plain_training_the_ledger_equals_the_counter(name):
    model, batch = build(name, "meta")
    assert entered(traced(name)) == pytest.approx(counted(model, batch), rel=1e-3)


@pytest.mark.parametrize("name", ["small CNN", "MLP", "MLP-Mixer", "GPT-2-like"])
def test_and_so_it_does_on_a_cpu_where_attention_is_fused(name):
    model, batch = build(name, "cpu")
    assert entered(ledger(model, (batch,))) == pytest.approx(counted(model, batch), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "swin_t", "vit_b_16"])
def test_and_with_real_images(name):
    model, batch = build(name, "cpu")
    assert entered(ledger(model, (batch,))) == pytest.approx(counted(model, batch), rel=1e-3)


def test_resnet50_costs_what_its_paper_says():
    """He et al. 2016, Table 1: 3.8 × 10⁹ multiply-adds for the 50-layer net; torchvision's variant moves the
    stride into the 3 × 3 convolution and has 4.09 × 10⁹."""
    model, batch = build("resnet50", "meta")
    assert entered(ledger(model, (batch,)))[0] == pytest.approx(2 * 4.09e9, rel=1e-3)


def test_a_convolution_line_holds_what_formulas_need():
    model, batch = build("resnet18", "meta")
    lines = [line for line in ledger(model, (batch,)) if line.module == "layer2.0.conv1"]
    assert {line.phase for line in lines} == {FORWARD, *BACKWARD}
    for line in lines:
        assert line.op == "conv"
        assert line.shape == {"in": 64, "out": 128, "kernel": 9, "groups": 1, "positions": 28 * 28}
        assert line.flop == 2 * 64 * 128 * 9 * 28 * 28


@pytest.mark.parametrize("name", MODELS)
def test_lines_name_modules_as_named_modules_does(name):
    names, lines = dict(build(name, "meta")[0].named_modules()), traced(name)
    assert lines
    for line in lines:
        module = names[line.module]
        if line.op == "conv":
            assert isinstance(module, nn.Conv2d)
            assert line.shape["out"] == module.out_channels


def test_a_module_called_twice_is_one_line_with_the_sum():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.other = self.one

        def forward(self, x):
            return self.other(self.one(x))

    lines = ledger(Twice(), (torch.randn(2, 4),))
    assert {line.module for line in lines} == {"one"}
    assert {line.phase: line.flop for line in lines} == {
        FORWARD: 2 * 32,
        "weight_gradient": 2 * 32,
        "input_gradient": 32,
    }


def test_positions_are_per_sample_wherever_the_batch_stands():
    layer = nn.MultiheadAttention(16, 4)  # (length, batch, width)
    lines = ledger(layer, (torch.randn(5, 2, 16),) * 3, device="cpu")
    assert lines
    with_batch_first = ledger(nn.MultiheadAttention(16, 4, batch_first=True), (torch.randn(2, 5, 16),) * 3)
    assert {line.shape["positions"] for line in with_batch_first if line.op == "linear"} == {5}


def test_the_batch_size_does_not_matter():
    model = build("small CNN", "cpu")[0]
    assert ledger(model, (torch.zeros(1, 1, 28, 28),)) == ledger(model, (torch.zeros(7, 1, 28, 28),))


def test_derived_weights_are_no_obstacle():
    def layers(*norms):
        return nn.Sequential(*[norm(nn.Conv2d(3, 3, 3)) for norm in norms])

    plain = layers(nn.Identity(), nn.Identity())
    x = torch.zeros(2, 3, 8, 8)
    for norm in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = layers(norm, norm)
        assert entered(ledger(model, (x,))) == entered(ledger(plain, (x,)))


def test_a_model_that_needs_numbers_is_traced_on_the_cpu():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x) if x.sum().item() > 0 else self.fc(-x)

    lines = ledger(Branches(), (torch.ones(8, 4),))
    assert {line.phase: line.flop for line in lines} == {FORWARD: 24, "weight_gradient": 24}


def test_outputs_and_inputs_may_be_trees():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x, scale):
            return {"boxes": [self.fc(x) * scale], "name": "boxes"}

    lines = ledger(Detector(), (torch.ones(2, 4), torch.tensor(2.0)))
    assert sum(line.flop for line in lines) == 48


def test_a_module_that_cannot_run_is_a_clear_error():
    with pytest.raises(EnergybenchError) as raised:
        ledger(nn.Linear(4, 3), (torch.ones(2, 5),))
    (problem,) = raised.value.problems
    assert problem.code == "E403"
    assert "Linear" in problem.message
    with pytest.raises(EnergybenchError, match="E403"):
        ledger(nn.Linear(4, 3, device="meta"), (torch.ones(2, 5, device="meta"),))
    with pytest.raises(EnergybenchError, match="E403"):
        ledger(nn.Linear(4, 3), ())


def test_nothing_outside_is_changed(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU()).eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x = torch.randn(4, 3, 8, 8)
    state = torch.get_rng_state()
    filters = list(warnings.filters)
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        ledger(model, (x,))
    assert not heard
    assert not caplog.records
    assert warnings.filters == filters
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_resnet50_takes_no_memory():
    model, batch = build("resnet50", "meta")
    ledger(*_small())  # torch's own first-time imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ledger(model, (batch,), device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; activations would be 700 MB


def _small():
    model, batch = build("small CNN", "meta")
    return model, (batch,)


def test_the_work_of_plain_training_multiplies_by_epochs_and_samples():
    lines = ledger(nn.Linear(4, 3), (torch.ones(2, 4),))
    assert Work(lines, epochs=3, samples=10).flop == 3 * 10 * 48
