"""Several labels for each sample: loss and accuracy by hand, CelebA's files, and methods that train it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import CPU, data_settings, make_run
from torch import Tensor, nn

from energybench.common.errors import UsageError
from energybench.runner.tracing import trace_task
from energybench.train import discovery
from energybench.train.batch import Batch
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.recipe import Recipe
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import datasets
from energybench.workloads.datasets.celeba import ATTRIBUTES, IMAGES, PARTS
from energybench.workloads.tasks import task_named
from energybench.workloads.tasks.multi_label import MultiLabel

LABELS = 5


def labelled(count: int = 24, features: int = 6) -> Data:
    """Each label is the sign of one feature."""
    inputs = torch.randn(count, features, generator=torch.Generator().manual_seed(1))
    targets = (inputs[:, :LABELS] > 0).to(torch.uint8)
    return Data(Resident(inputs, targets, CPU), facts=Facts("value", LABELS))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, LABELS))


def told(smoothing: float = 0.0) -> Any:
    return SimpleNamespace(recipe=Recipe(epochs=1, batch=4, label_smoothing=smoothing), device=CPU)


def batch_of(targets: Tensor) -> Batch:
    return Batch(torch.zeros(len(targets), 1), targets, torch.arange(len(targets)))


@settings(max_examples=25)
@given(seed=st.integers(0, 99), smoothing=st.sampled_from([0.0, 0.1]))
def test_a_samples_loss_is_the_mean_of_minus_log_probability_and_its_gradient_is_autograds(seed, smoothing):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, LABELS, generator=random, dtype=torch.float64).requires_grad_()
    targets = torch.randint(2, (4, LABELS), generator=random)
    task, run = MultiLabel(), told(smoothing)
    losses = task.losses(run, logits, batch_of(targets))
    p = logits.detach().sigmoid()
    true = targets * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(losses.detach(), -(true * p.log() + (1 - true) * (1 - p).log()).mean(1))
    (expected,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(task.output_gradient(run, logits.detach(), batch_of(targets)), expected)


def test_accuracy_is_the_mean_over_labels_and_loss_is_without_smoothing():
    """Of 3 samples × 2 labels four are right; a logit of 0 says no."""
    logits = torch.tensor([[2.0, -1.0], [-3.0, 0.0], [1.0, 1.0]])
    targets = torch.tensor([[1, 1], [0, 0], [0, 1]], dtype=torch.uint8)
    run = told(0.2)
    run.model = lambda x: logits[x[:, 0].long()]
    data = Data(Resident(torch.arange(3.0)[:, None], targets, CPU), facts=Facts("value", 2))
    quality = MultiLabel().evaluate(run, data)
    assert quality["accuracy"] == pytest.approx(4 / 6)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, targets.float()).item()
    assert quality["loss"] == pytest.approx(expected)


def test_logits_that_are_not_one_for_each_label_are_told():
    with pytest.raises(ValueError, match=r"logits \(4, 3\) and labels \(4, 5\)"):
        MultiLabel().losses(told(), torch.zeros(4, 3), batch_of(torch.zeros(4, LABELS)))


SOURCES = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}


@pytest.mark.parametrize("name", ["nothing", "gradsamp", "ssprop", "importance", "dlis", "low", "mezo", "ema"])
def test_methods_train_it_as_they_train_classes(name):
    kind = discovery.load(SOURCES[name])
    made = discovery.build(kind, name, dict(kind.example))
    run = make_run([made], model=net, data=labelled(), task=MultiLabel(), batch=8, epochs=3)
    run.train()
    assert all(point["loss"] is None or point["loss"] < 5 for point in run.curve)
    assert 0 <= run.evaluate(labelled())["accuracy"] <= 1


def test_it_learns_and_its_ledger_is_what_is_counted():
    counter = StepCounter(10**9)
    run = make_run(model=net, data=labelled(96), task=MultiLabel(), batch=16, epochs=20, lr=0.3, counter=counter)
    run.train()
    assert run.evaluate(labelled(96))["accuracy"] > 0.85  # chance is a half
    lines = trace_task(MultiLabel(), net(), run.recipe, next(run.data.in_order(16)), CPU).lines
    estimated = sum(line.flop for line in lines) * run.tally.samples
    assert counter.result(run).counted_flop == pytest.approx(estimated, rel=1e-3)


# ── CelebA ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def celeba(folder: Path, parts: str = "0102", lines: dict[int, str] | None = None) -> Path:
    """Images of 12×10 pixels with three attributes: the digits of their numbers, in binary."""
    (folder / IMAGES).mkdir(parents=True)
    rows = [f"{len(parts)}", "Bald Smiling Young"]
    for number in range(len(parts)):
        Image.new("RGB", (10, 12), (number, 0, 0)).save(folder / IMAGES / f"{number:06}.png")
        rows.append(f"{number:06}.png " + " ".join("1" if number >> bit & 1 else "-1" for bit in range(3)))
    for number, text in (lines or {}).items():
        rows[number] = text
    (folder / ATTRIBUTES).write_text("\n".join(rows) + "\n", encoding="utf-8")
    listed = [f"{number:06}.png {part}" for number, part in enumerate(parts)]
    (folder / PARTS).write_text("\n".join(listed) + "\n", encoding="utf-8")
    return folder


def test_celebas_own_split_and_attributes_are_read_and_its_validation_part_is_nobodys(tmp_path, monkeypatch):
    celeba(tmp_path / "data" / "celeba", "01020")
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path / "data"))
    spec = data_settings({"use": "celeba_attributes", "options": {"size": 8}, "batch": 2})
    described = datasets.prepare(spec, tmp_path / "cache", download=False)
    assert (described.targets, described.classes, described.shape) == ("value", 3, (3, 8, 8))
    assert described.class_names == ("Bald", "Smiling", "Young")
    train, test = datasets.open_data(described, spec, CPU)
    (batch,) = train.in_order()
    assert batch.targets.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]  # images 0, 2 and 4
    (batch,) = test.in_order()
    assert batch.targets.tolist() == [[1, 1, 0]]  # image 3


@pytest.mark.parametrize(
    ("lines", "parts", "says"),
    [
        ({3: "000001.png 1 1"}, "0102", "list_attr_celeba.txt:4: expected a name and 3 times"),
        ({3: "000001.png 1 0 1"}, "0102", "list_attr_celeba.txt:4"),
        ({2: "other.png 1 1 1"}, "0102", "lacks 1 images"),
        ({}, "0103", "list_eval_partition.txt:4: expected a name and 0, 1 or 2"),
        ({}, "0101", "names no image"),
    ],
)
def test_what_is_wrong_with_its_files_is_told_by_line(lines, parts, says, tmp_path):
    folder = celeba(tmp_path / "celeba", parts, lines)
    spec = data_settings({"use": "celeba_attributes", "options": {"folder": str(folder)}, "batch": 2})
    with pytest.raises(UsageError) as refused:
        datasets.prepare(spec, tmp_path / "cache", download=False)
    assert says in str(refused.value)


def test_where_it_is_not_its_published_counts_stand_in(tmp_path, monkeypatch):
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)
    spec = data_settings({"use": "celeba_attributes", "batch": 2})
    described = datasets.prepare(spec, tmp_path, download=False, known=True)
    assert (described.kind, described.shape, described.classes) == ("stand-in", (3, 64, 64), 40)
    assert (described.train, described.test) == (162_770, 19_962)
    train, _ = datasets.open_data(described, spec, CPU)
    batch = next(train.load([torch.arange(2)]))
    assert batch.targets.tolist() == [[0] * 40] * 2
    task = task_named("multi_label", tmp_path)
    assert task.losses(told(), torch.zeros(2, 40), batch).tolist() == pytest.approx([0.693147] * 2, abs=1e-5)
