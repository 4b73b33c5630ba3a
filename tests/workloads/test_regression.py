"""Regression: loss and metrics against closed forms, SIREN's start, a photograph, and every method that trains it."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CPU, assert_same_state, data_settings, make_run, run_or_refusal, state
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_run
from energybench.suite.suite import load
from energybench.train import discovery
from energybench.train.batch import Batch
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.method import Method
from energybench.train.stack_check import check_stack
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import datasets, models
from energybench.workloads.datasets.regression import colours, coordinates, photograph
from energybench.workloads.metrics.signals import peak_signal_to_noise_db
from energybench.workloads.models.regression import siren
from energybench.workloads.tasks.regression import Regression

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}


def refused(code: str, call: Any) -> str:
    """What a refusal says, and its hint."""
    with pytest.raises(UsageError) as caught:
        call()
    (problem,) = caught.value.problems
    assert problem.code == code
    return f"{problem.message} | {problem.hint}"


def valued(inputs: Tensor, targets: Any, **extra: Any) -> Data:
    return Data(Resident(inputs, targets, CPU), facts=Facts("value", extra=extra))


class Shown(nn.Module):
    """Gives back what it is shown: its outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


def judged(outputs: Tensor, targets: Tensor, task: Regression | None = None, batch: int = 4, **extra: Any) -> Any:
    data = valued(outputs, targets, **extra)
    return make_run((), Shown, data, task or Regression(), batch=batch).evaluate(data)


def batch_of(inputs: Tensor, targets: Any) -> Batch:
    return Batch(inputs, targets, torch.arange(len(inputs)))


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_samples_loss_is_the_mean_of_its_squared_differences():
    run = make_run((), Shown, valued(torch.zeros(2, 3), torch.zeros(2, 3)), Regression())
    batch = batch_of(torch.tensor([[1.0, 2, 3], [0, 0, 1]]), torch.tensor([[1.0, 0, 0], [0, 0, -1]]))
    forward = run.forward(batch)
    assert forward.each.tolist() == pytest.approx([(0 + 4 + 9) / 3, 4 / 3])
    assert forward.value.item() == pytest.approx((13 / 3 + 4 / 3) / 2)


@given(seed=st.integers(0, 2**32), shape=st.sampled_from([(), (1,), (3,), (2, 3)]))
@settings(max_examples=20, deadline=None)
def test_the_closed_form_of_its_gradient_is_autograds(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    outputs, targets = (torch.randn(5, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    run = make_run((), Shown, valued(outputs, targets), Regression())
    batch, given_ = batch_of(outputs, targets), outputs.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(run.task.losses(run, given_, batch).sum(), given_)
    torch.testing.assert_close(run.task.output_gradient(run, outputs, batch), wanted)


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 3.0, 0.25, 1.5)])
def test_micro_batches_and_weighted_samples_add_up_to_the_whole_batch(weights):
    net = lambda: nn.Linear(2, 3).double()  # noqa: E731
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    scale = torch.ones(6, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64)
    found = []
    for pieces in (1, 3):
        run = make_run((), net, valued(inputs, targets), Regression(), batch=6, accumulate=pieces)
        run.gradients(Batch(inputs, targets, torch.arange(6), None if weights is None else scale))
        found.append(torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()]))
    torch.testing.assert_close(*found)
    loss = (scale[:, None] * (run.model(inputs) - targets) ** 2).sum() / 3 / 6
    wanted = torch.autograd.grad(loss, list(run.model.parameters()))
    torch.testing.assert_close(found[0], torch.cat([gradient.flatten() for gradient in wanted]))


@pytest.mark.parametrize(
    ("outputs", "targets", "said"),
    [
        (torch.zeros(4, 1), torch.zeros(4), "(samples,)"),
        (torch.zeros(4), torch.zeros(4, 1), "(samples, 1)"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "(samples, 2)"),
        (torch.zeros(4, 3), None, "targets are"),
        (torch.zeros(4, 3), {"x": torch.zeros(4, 3)}, "targets are"),
    ],
)
def test_shapes_that_would_be_held_against_each_other_crosswise_are_refused(outputs, targets, said):
    run = make_run((), Shown, valued(outputs, targets), Regression())
    with pytest.raises(TypeError, match=r"regression") as caught:
        run.forward(batch_of(outputs, targets))
    assert said in str(caught.value)


def test_label_smoothing_is_refused():
    run = make_run((), Shown, valued(torch.zeros(4, 1), torch.zeros(4, 1)), Regression(), label_smoothing=0.1)
    assert "label_smoothing" in refused("E403", lambda: run.forward(next(iter(run.data.in_order()))))


# ── what it is judged by ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_perfect_prediction_has_no_error_and_no_end_of_decibels():
    targets = torch.rand(9, 3)
    assert judged(targets, targets, peak=1.0) == {"mse": 0.0, "psnr": math.inf}


def test_a_constant_prediction_has_the_variance_around_it_as_its_error():
    targets = torch.tensor([0.0, 0.5, 1.0, 0.5])[:, None]
    found = judged(torch.full((4, 1), 0.5), targets, peak=1.0)
    assert found["mse"] == pytest.approx(0.125)
    assert found["psnr"] == pytest.approx(10 * math.log10(8))


@pytest.mark.parametrize(("error", "peak", "decibels"), [(0.1, 1.0, 20.0), (0.1, 2.0, 26.0206), (25.5, 255.0, 20.0)])
def test_an_error_of_a_tenth_of_the_peak_is_twenty_decibels(error, peak, decibels):
    found = judged(torch.full((7, 2), error), torch.zeros(7, 2), peak=peak)
    assert found["psnr"] == pytest.approx(decibels, abs=1e-4)


def test_the_ratio_is_of_the_mean_error_and_not_the_mean_of_batches_ratios():
    """Two batches, off by 0.1 and by 0.5: 20 and 6.02 dB, whose mean is 13.01; of the mean error 0.13 it is 8.86."""
    outputs = torch.cat([torch.full((4, 1), 0.1), torch.full((4, 1), 0.5)])
    found = judged(outputs, torch.zeros(8, 1), batch=4, peak=1.0)
    assert found["mse"] == pytest.approx(0.13)
    assert found["psnr"] == pytest.approx(10 * math.log10(1 / 0.13))
    assert abs(found["psnr"] - 13.01) > 4


@given(seed=st.integers(0, 2**32), batch=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_no_figure_depends_on_how_the_set_is_cut(seed, batch):
    """A last batch of another size weighs as many samples as it has."""
    outputs, targets = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(seed))
    found = judged(outputs, targets, batch=batch, peak=1.0)
    mse = ((outputs.double() - targets.double()) ** 2).mean().item()
    assert found["mse"] == pytest.approx(mse, rel=1e-6)
    assert found["psnr"] == pytest.approx(-10 * math.log10(mse), rel=1e-6)
    assert found["psnr"] == peak_signal_to_noise_db(found["mse"], 1.0)


def test_the_peak_is_the_tasks_then_the_datas_and_without_any_there_is_no_ratio():
    outputs, targets = torch.full((3, 1), 0.1), torch.zeros(3, 1)
    assert judged(outputs, targets, Regression(peak=10.0), peak=1.0)["psnr"] == pytest.approx(40)
    assert judged(outputs, targets, peak=1.0)["psnr"] == pytest.approx(20)
    assert set(judged(outputs, targets)) == {"mse"}


@pytest.mark.parametrize("peak", [0.0, -1.0, math.inf, math.nan, "1"])
def test_a_peak_that_is_none_is_refused(peak):
    refused("E304", lambda: discovery.build(Regression, "regression", {"peak": peak}))
    assert "peak" in refused("E402", lambda: judged(torch.zeros(3, 1), torch.zeros(3, 1), peak=peak))


# ── SIREN ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def layers_of(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("omega", [30.0, 7.0])
def test_its_weights_start_within_the_papers_bounds_and_fill_them_evenly(omega):
    torch.manual_seed(0)
    first, *others = layers_of(siren((2,), outputs=3, width=200, layers=4, omega=omega))
    assert [layer.out_features for layer in (first, *others)] == [200, 200, 200, 3]
    bounds = [(first, 1 / 2), *((layer, math.sqrt(6 / 200) / omega) for layer in others)]
    for layer, bound in bounds:
        weights = layer.weight.detach()
        assert weights.abs().max() <= bound
        assert weights.abs().max() > 0.98 * bound
        count = weights.numel()
        assert weights.mean().abs() < 5 * bound / math.sqrt(3 * count)
        # w² of a uniform w has the mean b²/3 and the variance 4b⁴/45
        assert abs(weights.square().mean() - bound**2 / 3) < 5 * bound**2 * math.sqrt(4 / 45 / count)
        assert layer.bias.abs().max() <= 1 / math.sqrt(layer.in_features)


def test_it_is_sines_of_thirty_times_a_linear_layer_and_a_linear_layer_at_the_end():
    model = siren((2,), outputs=3, width=5, layers=3).double()
    x = torch.rand(4, 2, dtype=torch.float64) * 2 - 1
    (w1, b1), (w2, b2), (w3, b3) = ((layer.weight, layer.bias) for layer in layers_of(model))
    hidden = torch.sin(30 * (torch.sin(30 * (x @ w1.T + b1)) @ w2.T + b2))
    torch.testing.assert_close(model(x), hidden @ w3.T + b3)


def test_activations_keep_their_spread_whatever_the_depth():
    """Theorem 1.8 of the paper: what enters a sine tends to a normal distribution, here of the variance 2·E[h²] by the
    weights and ω²/(3n) by the biases, and the sine of a normal z has the variance (1 − exp(−2·var z))/2.
    """
    torch.manual_seed(1)
    width, omega = 512, 30.0
    x, spreads = torch.rand(2000, 2) * 2 - 1, []
    with torch.no_grad():
        for layer in siren((2,), width=width, layers=8, omega=omega)[:-1]:
            x = layer(x)
            spreads.append(x.square().mean().item())
    for before, after in pairwise(spreads):
        entering = 2 * before + omega**2 / 3 / width
        assert after == pytest.approx((1 - math.exp(-2 * entering)) / 2, abs=0.03)
    assert spreads[-1] == pytest.approx(spreads[1], abs=0.03)


@pytest.mark.parametrize(
    "wrong", [{"layers": 1}, {"width": 0}, {"outputs": 0}, {"omega": 0.0}, {"omega": math.inf}, {"depth": 3}]
)
def test_a_siren_that_cannot_be_is_refused(wrong):
    refused("E401", lambda: models.build("siren", (2,), None, wrong))


def test_it_has_as_many_outputs_as_the_data_say_unless_the_suite_does():
    offered = {"outputs": 3, "peak": 1.0}
    assert models.build("siren", (2,), None, {"width": 4}, offered)[-1].out_features == 3
    assert models.build("siren", (2,), None, {"width": 4, "outputs": 2}, offered)[-1].out_features == 2


# ── a photograph ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_coordinates_go_row_by_row_from_minus_one_to_one():
    assert coordinates(2, 3).tolist() == [[-1, -1], [0, -1], [1, -1], [-1, 1], [0, 1], [1, 1]]
    assert coordinates(1, 2).tolist() == [[-1, 0], [1, 0]]
    assert coordinates(1, 1).tolist() == [[0, 0]]


def test_colours_stand_where_their_coordinates_say():
    pixels = torch.arange(18, dtype=torch.uint8).view(3, 2, 3) * 14
    found = colours(pixels).view(2, 3, 3)  # rows, columns, channels
    for row in range(2):
        for column in range(3):
            assert found[row, column].tolist() == pytest.approx((pixels[:, row, column] / 255).tolist())


@pytest.mark.parametrize("image", ["china", "flower"])
def test_the_photograph_is_scikit_learns_at_its_own_size(image):
    from sklearn.datasets import load_sample_image

    found = photograph(image, size=[427, 640])
    wanted = torch.from_numpy(load_sample_image(f"{image}.jpg").copy())
    assert torch.equal((found["train"][1] * 255).round().to(torch.uint8).view(427, 640, 3), wanted)
    assert found["facts"] == {"targets": "value", "extra": {"outputs": 3, "peak": 1.0}}


def test_all_pixels_are_for_training_and_the_same_for_testing(tmp_path):
    keys = {"use": "photograph", "batch": 50, "options": {"size": [12, 10]}}
    described = datasets.prepare(data_settings(keys), tmp_path)
    assert (described.train, described.test, described.shape) == (120, 120, (2,))
    assert (described.targets, described.classes, described.mean) == ("value", None, None)
    assert described.extra == {"outputs": 3, "peak": 1.0}
    train, test = datasets.open_data(described, data_settings(keys), CPU)
    one, other = next(iter(train.in_order(120))), next(iter(test.in_order(120)))
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.targets, other.targets)
    assert one.targets.min() >= 0
    assert one.targets.max() <= 1
    assert [one.inputs.min().item(), one.inputs.max().item()] == [-1, 1]
    few = datasets.prepare(data_settings(keys | {"subset": 30, "test_subset": 20}), tmp_path)
    assert (few.train, few.test) == (30, 20)


def saved(path: Path, colour: tuple[int, int, int] = (255, 0, 51), size: tuple[int, int] = (4, 3)) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.mark.parametrize("file", ["photo.png", "./photo.png", "below/photo.png"])
@pytest.mark.parametrize("place", ["suite", "data"])
def test_a_file_of_ones_own_is_found_from_the_suites_folder_or_in_the_data_folder(file, place, tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "suite").mkdir()
    saved(tmp_path / place / file)
    keys = {"use": "photograph", "options": {"file": file, "size": [3, 4]}}
    described = datasets.prepare(data_settings(keys), tmp_path / "cache", base=tmp_path / "suite")
    train, _ = datasets.open_data(described, data_settings(keys), CPU)
    batch = next(iter(train.in_order(12)))
    torch.testing.assert_close(batch.targets, torch.tensor([1.0, 0.0, 0.2]).expand(12, 3))


def test_of_both_the_suites_folder_comes_first_and_an_absolute_path_is_that_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    saved(tmp_path / "data" / "photo.png", (0, 0, 0))
    white = saved(tmp_path / "suite" / "photo.png", (255, 255, 255))
    for file in ("photo.png", str(white)):
        keys = data_settings({"use": "photograph", "options": {"file": file, "size": [3, 4]}})
        described = datasets.prepare(keys, tmp_path / "cache", base=tmp_path / "suite")
        train, _ = datasets.open_data(described, keys, CPU)
        assert next(iter(train.in_order(12))).targets.eq(1).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": "chna"}, "did you mean 'china'"),
        ({"size": 0}, "[height, width]"),
        ({"size": "big"}, "[height, width]"),
        ({"file": "gone.png"}, "which is not set"),
        ({"file": "/gone.png"}, "no file '/gone.png'"),
        ({"file": "text.png"}, "no image"),
        ({"file": 3}, "no name"),
        ({"file": ""}, "no name"),
        ({"file": "./"}, "there is no file"),
        ({"image": "flower", "file": "text.png"}, "take one out"),
        ({"sise": 3}, "did you mean 'size'"),
    ],
)
def test_what_is_no_photograph_is_refused(options, said, tmp_path, monkeypatch):
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    settings_ = data_settings({"use": "photograph", "options": options})
    prepare = partial(datasets.prepare, settings_, tmp_path / "cache", base=tmp_path, known=True)
    assert said in refused("E402", prepare)


@pytest.mark.parametrize("keys", [{"augment": ["flip"]}, {"resize": 8}, {"split": 0.5}])
def test_what_is_done_to_images_is_refused_of_their_pixels(keys, tmp_path):
    settings_ = data_settings({"use": "photograph", "options": {"size": 6}} | keys)
    refused("E402", lambda: datasets.prepare(settings_, tmp_path))


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def tiny_siren() -> nn.Module:
    return siren((2,), outputs=3, width=16, layers=3, omega=10.0)


@cache
def tiny_photograph() -> tuple[Tensor, Tensor]:
    return photograph(size=12)["train"]


def siren_run(methods: Any = (), **given_: Any) -> Any:
    data = valued(*tiny_photograph(), outputs=3, peak=1.0)
    plain = {"task": Regression(), "batch": 36, "epochs": 4, "optimizer": "adam", "lr": 5e-3, "momentum": 0.0}
    return make_run(methods, tiny_siren, data, **plain | given_)


def test_it_learns_and_its_ledger_is_what_is_counted_and_what_its_layers_cost():
    counter = StepCounter(10**9)
    run = siren_run(counter=counter, epochs=30)
    lines = trace_run(run, CPU).lines
    work = Work(lines, epochs=30, samples=144, batch=36)
    before = run.evaluate(run.data)
    run.train()
    after = run.evaluate(run.data)
    assert after["psnr"] > before["psnr"] + 3
    assert after["psnr"] == pytest.approx(-10 * math.log10(after["mse"]))
    assert work.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-3)
    forward = sum(line.flop for line in lines if line.phase == "forward")
    assert forward == pytest.approx(2 * (2 * 16 + 16 * 16 + 16 * 3), rel=1e-3)


def fresh(name: str, **given_: Any) -> Method:
    kind = discovery.load(SOURCES[name])
    return discovery.build(kind, name, dict(kind.example) | given_)


WITHOUT_EFFECT = {"ssprop", "dropout"}  # there is no convolution and no normalisation


@pytest.mark.parametrize("name", SOURCES)
def test_every_method_trains_it(name):
    method = fresh(name)
    assert check_stack([method], Regression()) == []
    run = run_or_refusal(lambda: siren_run([method], epochs=6, optimizer="sgd", lr=0.05))
    if run is None:
        return
    run.train()
    assert run.uncalled_overrides() == []
    assert (method.acted is False) == (name in WITHOUT_EFFECT)
    assert all(math.isfinite(point["loss"]) for point in run.curve if point["loss"] is not None)
    assert set(run.evaluate(run.data)) == {"mse", "psnr"}
    run.finish()
    assert [type(module) for module in run.model.modules()] == [type(module) for module in tiny_siren().modules()]


SCORES = ["output-gradient", "loss", "last-layer-gradient", "parameter-gradient"]


@pytest.mark.parametrize("score", SCORES)
def test_every_score_of_samples_is_to_be_had_and_adaptive_sampling_too(score):
    for estimator in ("importance", "adaptive"):
        method = fresh("importance", score=score, estimator=estimator)
        run = siren_run([method])
        run.train()
        assert method.acted
        assert method.diagnostics()["refused_scores"] == 0


def test_a_samples_importance_is_the_length_of_the_gradient_at_its_outputs():
    """After a first epoch whose learning rate is nothing every pixel has 2·‖output − target‖/3."""
    method = fresh("importance")
    run = siren_run([method], epochs=1, lr=1e-30)
    inputs, targets = tiny_photograph()
    with torch.no_grad():
        wanted = 2 / 3 * (run.model(inputs) - targets).norm(dim=1)
    run.train()
    found = method.saved_tensors()["importance_0"] - method.epsilon
    torch.testing.assert_close(found.float(), wanted, rtol=1e-4, atol=1e-5)


def test_ssprop_acts_on_its_linear_layers_where_it_is_told_to():
    method = fresh("ssprop", linear=True)
    siren_run([method]).train()
    assert method.acted


@pytest.mark.parametrize("recipe", [{"precision": "bf16"}, {"precision": "fp16"}, {"accumulate": 3, "clip": 0.1}])
def test_half_precision_micro_batches_and_clipping_train(recipe):
    run = siren_run(**recipe)
    forward = run.forward(next(iter(run.data.in_order(4))))
    assert forward.each.dtype == torch.float32
    run.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve)
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in run.model.parameters())
    assert run.tally.updates > 0


def test_the_same_seed_gives_the_same_weights():
    found = []
    for _ in range(2):
        run = siren_run()
        run.train()
        found.append(state(run.model))
    assert_same_state(*found)


# ── suites ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "width", "pixels"), [("tasks-regression", 64, 128**2), ("paper-importance-siren", 256, 427 * 640)]
)
def test_its_suites_are_traced_anywhere_with_the_flops_of_their_layers(name, width, pixels, tmp_path, monkeypatch):
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    spec = spec_of(load(ROOT / "suites" / f"{name}.toml"), tmp_path, device="cpu", download=False)
    found = planner.Plan(spec.model_copy(update={"purpose": "trace"})).result()
    assert found.problems == ()
    (known,) = found.workloads.values()
    forward = sum(line.flop for line in known.ledger if line.phase == "forward")
    assert forward == pytest.approx(2 * (2 * width + 3 * width**2 + 3 * width), rel=1e-3)
    assert (known.samples, known.data.targets) == (pixels, "value")


def test_nothing_of_it_is_imported_until_it_is_used():
    code = (
        "import sys; from energybench.workloads import models, tasks, datasets\n"
        "models.build('mlp', (1, 2, 2), 2, {})\n"
        "own = [name for name in sys.modules if name.startswith('energybench.') and name.endswith('.regression')]\n"
        "assert not own, own\n"
        "assert not any(name.endswith('.points') for name in sys.modules)\n"
        "models.build('siren', (2,), None, {})\n"
        "assert 'sklearn' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
