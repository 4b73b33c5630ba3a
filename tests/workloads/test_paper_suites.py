"""The papers' own suites: every one is traced where there are no data, at the sizes that the papers state."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import CPU
from torch import nn

from energybench.common.errors import UsageError
from energybench.common.torchvision_shim import import_torchvision
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.suite.suite import load
from energybench.suite.tables import TaskTable
from energybench.train import discovery
from energybench.train.data import Data, Resident
from energybench.train.recipe import Recipe
from energybench.workloads import models
from energybench.workloads.tasks import task_named
from energybench.workloads.tasks.classification import Classification, TopKClassification, among_likeliest

SUITES = Path(__file__).resolve().parents[2] / "suites"


@cache
def suite(name: str) -> Any:
    return load(SUITES / f"{name}.toml")


@cache
def traced(name: str, keep: tuple[str, ...] = ()) -> Any:
    """What is known of a suite where there are no data; of these workloads alone, where some are named."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.delenv("ENERGYBENCH_DATA", raising=False)
        patch.setenv("HOME", folder)
        spec = spec_of(suite(name), Path(folder), device="cpu", download=False)
        whole = spec.suite
        if keep:
            kept = tuple(workload for workload in whole.workloads if workload.name in keep)
            assert len(kept) == len(keep)
            spec = spec.model_copy(update={"suite": whole.model_copy(update={"workloads": kept})})
        return planner.Plan(spec.model_copy(update={"purpose": "trace"})).result()


def forward_flop(known: Any) -> float:
    return sum(line.flop for line in known.ledger if line.phase == "forward")


# ── ssProp ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_figure_4_is_a_grid_of_ten_depths_and_ten_rates_of_which_each_is_twice_the_last():
    grid = {(w.model.parameters["depth"], w.train.lr) for w in suite("paper-ssprop-fig4").workloads}
    rates = [2e-4 * 2**k for k in range(10)]
    assert sorted({depth for depth, _ in grid}) == list(range(2, 12))
    assert len(grid) == 100
    assert sorted({rate for _, rate in grid}) == pytest.approx(rates)


def test_the_plain_network_has_the_flops_of_its_convolutions():
    """Of 3×3 on 32×32, 64 wide: 3 → 64, then 64 → 64; and 64 → 100 at the end."""
    name = "plain-cifar100[depth=3,lr=0.0002]"
    (known,) = traced("paper-ssprop-fig4", (name,)).workloads.values()
    convolutions = 2 * 9 * 32 * 32 * (3 * 64 + 2 * 64 * 64)
    assert forward_flop(known) == convolutions + 2 * 64 * 100
    assert sum(isinstance(m, nn.Conv2d) for m in models.build("plain_cnn", (3, 8, 8), 4, {"depth": 5}).modules()) == 5


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"width": 0}])
def test_a_plain_network_of_nothing_is_refused(wrong):
    with pytest.raises(UsageError, match="1 or more"):
        models.build("plain_cnn", (3, 8, 8), 4, wrong)


def test_celeba_is_trained_on_40_labels_at_64_pixels_with_the_papers_batches():
    found = traced("paper-ssprop", ("resnet18-celeba",))
    assert not found.problems
    known = found.workloads["resnet18-celeba"]
    assert (known.data.targets, known.data.classes, known.data.shape) == ("value", 40, (3, 64, 64))
    assert known.steps == -(-162_770 // 128)
    cifar = traced("paper-ssprop", ("resnet18-cifar10",)).workloads["resnet18-cifar10"]
    heads = [2 * 512 * classes for classes in (40, 10)]
    assert forward_flop(known) - heads[0] == 4 * (forward_flop(cifar) - heads[1])  # four times the pixels
    batches = {w.name: w.data.batch for w in suite("paper-ssprop").workloads}
    assert (batches["resnet18-celeba"], batches["resnet50-celeba"]) == (128, 32)


def test_tables_6_and_7_have_the_papers_networks_and_epochs():
    six = {w.name: (w.model.use, w.train.epochs) for w in suite("paper-ssprop-dropout").workloads}
    assert six == {"resnet50-cifar10": ("resnet50", 4000), "resnet50-cifar100": ("resnet50", 1800)}
    seven = {w.name: (w.model.use, w.train.epochs) for w in suite("paper-ssprop-resnet26").workloads}
    assert seven["resnet26-cifar10"] == seven["resnet26-cifar100"] == ("resnet26", 250)


# ── GradSamp ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_layer_whose_fits_figures_2_and_3_show_is_one_of_its_network():
    fits = suite("paper-gradsamp-fits")
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for workload, method in zip(fits.workloads, fits.methods, strict=True):
        with torch.device("meta"):
            named = dict(models.build(workload.model.use, (3, 224, 224), 200, {}).named_parameters())
        shapes[workload.model.use] = [tuple(named[name].shape) for name in method.parameters["fit_layers"]]
    assert shapes == {
        "resnet50_head4096": [(128, 512, 1, 1)],  # the second block of the stage whose 1×1 convolutions are 128 wide
        "swin_tiny": [(3 * 96, 96)],
        "mixer": [(4 * 196, 196, 1), (256, 512)],
    }


def test_the_class_is_among_the_k_likeliest_as_sorting_has_it():
    logits = torch.randn(200, 9, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(200) % 9
    for k in (2, 5, 8):
        rank = (logits > logits.gather(1, targets[:, None])).sum(1)
        assert torch.equal(among_likeliest(logits, targets, k), rank < k)
    with pytest.raises(ValueError, match="always right"):
        among_likeliest(logits, targets, 9)


def test_acc_at_5_is_kept_beside_acc_at_1_where_a_suite_asks_for_it():
    logits = torch.eye(8)[[0, 1, 2, 3]] + torch.arange(8.0) / 100  # after the first the classes rank 7, 6, 5, …
    targets = torch.tensor([0, 7, 4, 0])  # first, second, fifth, last
    data = Data(Resident(torch.arange(4.0)[:, None], targets, CPU))
    run = type("Judged", (), {"device": CPU, "recipe": Recipe(epochs=1, batch=4)})()
    run.model = lambda x: logits[x[:, 0].long()]
    task = TopKClassification(k=5)
    quality = task.evaluate(run, data)
    assert (quality["accuracy"], quality["top5_accuracy"]) == (0.25, 0.75)
    assert task.metrics["top5_accuracy"].better == "higher"
    assert Classification().evaluate(run, data).keys() == {"accuracy", "loss"}
    assert "top5_accuracy" not in Classification.metrics


def test_of_one_class_it_is_accuracy_and_is_refused(tmp_path):
    with pytest.raises(UsageError, match="greater than or equal to 2") as refused:
        task_named(TaskTable(use="top_k_classification", k=1), tmp_path)
    assert refused.value.problems[0].code == "E403"


# ── SCoTTi ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_torchvisions_files_of_weights_fit_the_networks_that_the_paper_takes_pretrained():
    vision = import_torchvision().models
    for use, other in (("swin_tiny", "swin_t"), ("mobilenet_v2", "mobilenet_v2")):
        with torch.device("meta"):
            ours = models.build(use, (3, 64, 64), 10, {}).state_dict()
            theirs = vision.get_model(other, weights=None).state_dict()
        assert ours.keys() == theirs.keys()
        unlike = [name for name in ours if ours[name].shape != theirs[name].shape]
        assert all("head" in name or name.startswith("classifier") for name in unlike)


def test_clipart_and_painting_have_345_classes_and_the_schedule_of_a_network_from_scratch():
    workloads = {w.name: w for w in suite("paper-scotti").workloads}
    for name in ("clipart", "painting"):
        workload = workloads[f"resnet18-{name}"]
        assert (workload.train.lr, workload.train.epochs, workload.train.milestones) == (0.1, 250, (100, 150))
    (known,) = traced("paper-scotti", ("resnet18-clipart",)).workloads.values()
    assert (known.data.classes, known.data.shape) == (345, (3, 224, 224))


# ── all of them ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", sorted(SUITES.glob("paper-*.toml")), ids=lambda file: file.stem)
def test_every_method_of_every_paper_suite_can_be_made(file):
    loaded = suite(file.stem)
    for method in loaded.methods:
        uses = [method.use] if isinstance(method.use, str) else list(method.use)
        for use in uses:
            given = method.parameters if len(uses) == 1 else method.parameters.get(use, {})
            first = {key: values[0] for key, values in method.sweep.items()} if len(uses) == 1 else {}
            made = discovery.build(discovery.load(discovery.sources()[use]), use, {**given, **first})
            assert all(key in vars(made) for key in given)
