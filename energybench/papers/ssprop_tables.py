"""ssProp's Tables 4, 6 and 7, counted again by its Eq. 6 and 7: FLOPs of the backward per iteration and in total."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from energybench.papers import counting_rules
from energybench.papers.cells import PublishedPaper, PublishedTable, Row, ours, printed
from energybench.papers.counting_rules import BackwardFlop
from energybench.papers.meta_models import CIFAR, FACES, MNIST, PHOTO, model
from energybench.papers.shape_trace import ModuleCalls

BATCH, DROP = 128, 0.8
NAMES = {"resnet18": "ResNet-18", "resnet26": "ResNet-26", "resnet50": "ResNet-50"}


class Setting(NamedTuple):
    """One row of Table 4: how often its backward runs, and on what."""

    data: str
    shape: tuple[int, ...]
    use: str
    batch: int
    epochs: int
    images: int  # training and validation


def _settings() -> tuple[Setting, ...]:
    found = []
    for data, shape, images in (
        ("MNIST", MNIST, 60_000),
        ("Fashion-MNIST", MNIST, 60_000),
        ("CIFAR-10", CIFAR, 50_000),
        ("CIFAR-100", CIFAR, 50_000),
        ("CelebA", FACES, 162_770 + 19_867),
        ("ImageNet", PHOTO, 1_281_167 + 50_000),
    ):
        batches = {"CelebA": (BATCH, 32), "ImageNet": (32, 16)}.get(data, (BATCH, BATCH))
        for use, batch in zip(("resnet18", "resnet50"), batches, strict=True):
            longer = use == "resnet50" and shape == CIFAR
            found.append(Setting(data, shape, use, batch, 250 if longer else 50, images))
    return tuple(found)


TABLE4 = _settings()
# The printed figures that this project holds: 10⁹ FLOPs per iteration (dense, ssProp), 10¹⁵ in total. One that is put
# in here is compared. An iteration of MNIST is one of Fashion-MNIST, and CIFAR-10's is CIFAR-100's: one row each.
PER_ITERATION = {
    ("MNIST", "resnet18"): ("234.10", "140.79"),
    ("MNIST", "resnet50"): ("540.06", "325.85"),
    ("CIFAR", "resnet18"): ("285.32", "171.61"),
    ("CIFAR", "resnet50"): ("669.75", "404.18"),
}
TOTALS: dict[tuple[str, str], tuple[str | None, str | None]] = {}
TABLE6_DENSE = "669.75"
TABLE7 = {"per iteration": ("440.19", None), "in total": ("42.99", None)}


@cache
def _calls(use: str, shape: tuple[int, ...], batch: int = BATCH, with_dropout: bool = False) -> ModuleCalls:
    stem = {} if use == "resnet26" else {"stem": "small"}
    built = with_dropouts(use, shape, stem) if with_dropout else model(use, shape, 10, **stem)
    return counting_rules.backward_calls(built, (batch, *shape))


def with_dropouts(use: str, shape: tuple[int, ...], parameters: dict[str, Any]) -> nn.Module:
    """The model with a Dropout behind every BatchNorm: where it stands does not change what it counts."""
    built = copy.deepcopy(model(use, shape, 10, **parameters))
    for name, module in list(built.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(built.get_submodule(parent), child, nn.Sequential(module, nn.Dropout(0.2)))
    return built


def per_iteration(use: str, shape: tuple[int, ...], batch: int = BATCH, **options: Any) -> BackwardFlop:
    """FLOPs of one iteration's backward; the options are those of `counting_rules.backward_of`."""
    return counting_rules.backward_of(_calls(use, shape, batch), DROP, **options)


def in_total(setting: Setting) -> BackwardFlop:
    """FLOPs of a whole run, as the paper counts it."""
    return counting_rules.ssprop_total(
        per_iteration(setting.use, setting.shape, setting.batch),
        images=setting.images,
        batch=setting.batch,
        epochs=setting.epochs,
    )


def paper() -> PublishedPaper:
    return PublishedPaper(
        "ssProp: channels left out",
        "Zhong, Huang and Shi 2024, arXiv 2408.12561, Tables 4, 6 and 7",
        "Per iteration, M = batch · Hout · Wout: dense = Σ M·4·Cin·K²·Cout over convolutions, + Σ (12·batch·H·W·C + "
        "10·C) over BatchNorms; sparse takes 0.2·Cout, not rounded, and adds (M − 1)·Cout. The ResNets have a 3×3 "
        "stride-1 stem and no max-pool at every image size. In total: × epochs × N / batch, N the training and "
        "validation images together. Forward, linear layers, sorting and gathering count as nothing.",
        (_iterations(), _totals(), _validation(), _code(), _table6(), _table7(), _bounds()),
    )


def _two(flop: BackwardFlop, figures: tuple[str | None, str | None], unit: float, *labels: str) -> list[Row]:
    """A row for each of dense and ssProp."""
    return [
        Row([*labels, name], [printed(value / unit, figure, 2)])
        for name, value, figure in zip(("dense", "ssProp"), (flop.dense, flop.mean), figures, strict=True)
    ]


def _iterations() -> PublishedTable:
    rows = []
    for setting in TABLE4:
        if setting.data in ("Fashion-MNIST", "CIFAR-100"):
            continue
        data = setting.data.removesuffix("-10")
        figures = PER_ITERATION.get((data, setting.use), (None, None))
        flop = per_iteration(setting.use, setting.shape, setting.batch)
        rows += _two(flop, figures, 1e9, f"{data}, {setting.batch}", NAMES[setting.use])
    return PublishedTable(
        "Table 4: backward per iteration, 10⁹ FLOPs",
        ["data, batch", "model", "figure"],
        ["10⁹ FLOPs"],
        rows,
        "MNIST is Fashion-MNIST too, CIFAR both of them. ssProp is the mean of a dense and a sparse iteration: 80 % of "
        "the channels are left out in every second epoch.",
        unit="10⁹ FLOPs",
    )


def _totals() -> PublishedTable:
    rows = []
    for setting in TABLE4:
        figures = TOTALS.get((setting.data, setting.use), (None, None))
        rows += _two(in_total(setting), figures, 1e15, setting.data, NAMES[setting.use])
    return PublishedTable(
        "Table 4: backward in total, 10¹⁵ FLOPs",
        ["data", "model", "figure"],
        ["10¹⁵ FLOPs"],
        rows,
        "50 epochs, ResNet-50 on CIFAR 250, of "
        + ", ".join(f"{setting.images:,} ({setting.data})" for setting in TABLE4 if setting.use == "resnet18")
        + " images, those for training and for validation together.",
        unit="10¹⁵ FLOPs",
    )


def _validation() -> PublishedTable:
    rows = []
    for data, together, trained in (("MNIST", 60_000, 48_000), ("CIFAR", 50_000, 40_000)):
        flop = per_iteration("resnet18", MNIST if data == "MNIST" else CIFAR).mean
        counted, ran = (
            counting_rules.ssprop_total(flop, images=images, batch=BATCH, epochs=50) for images in (together, trained)
        )
        rows.append(Row([data, f"{together:,}", f"{trained:,}"], [ours(100 * (counted / ran - 1))]))
    return PublishedTable(
        "Table 4's totals against the public code: images that no backward sees",
        ["data", "counted", "trained on"],
        ["too much %"],
        rows,
        "No backward runs on validation, so these totals are a quarter above the code's own run.",
    )


def _code() -> PublishedTable:
    rows = []
    for data, use in PER_ITERATION:
        shape = MNIST if data == "MNIST" else CIFAR
        rule = per_iteration(use, shape)
        code = per_iteration(use, shape, kept="integer").mean
        bias = per_iteration(use, shape, bias_term=True).mean
        saved = 100 * (1 - rule.mean / rule.dense)
        cells = [ours(flop / 1e9, 2) for flop in (rule.mean, code, bias)]
        rows.append(Row([data, NAMES[use]], [*cells, ours(saved, 2)]))
    return PublishedTable(
        "Table 4 against the public code, Eq. 6 and the abstract, 10⁹ FLOPs",
        ["data", "model"],
        ["by the table", "by the code", "by Eq. 6", "saves %"],
        rows,
        "The code keeps whole channels, max(int(0.2·C), 1): 12 of 64, where the table has 12.8. Eq. 6 counts "
        "4·Cin·K² + 1, the table 4·Cin·K². BatchNorm and the selection stay, so the table saves a little less than the "
        "abstract's 40 %.",
    )


def _table6() -> PublishedTable:
    def flop(drop: float, coefficient: float | None) -> BackwardFlop:
        return counting_rules.backward_of(
            _calls("resnet50", CIFAR, with_dropout=True), drop, dropout_coefficient=coefficient
        )

    rows = [
        Row(["dense"], [printed(flop(0.8, None).dense / 1e9, TABLE6_DENSE)]),
        Row(["ssProp 0.4"], [printed(flop(0.8, None).mean / 1e9, None, 2)]),
        Row(["Dropout"], [printed(flop(0.8, 4).dense / 1e9, None, 2)]),
        Row(["0.2 + 0.2"], [printed(flop(0.4, 4).mean / 1e9, None, 2)]),
        Row(["0.4 + 0.4"], [printed(flop(0.8, 4).mean / 1e9, None, 2)]),
        Row(["Dropout, by Eq. 8"], [ours(flop(0.8, 2).dense / 1e9, 2)]),
    ]
    return PublishedTable(
        "Table 6: ResNet-50 on CIFAR with Dropout, per iteration, 10⁹ FLOPs",
        ["row"],
        ["10⁹ FLOPs"],
        rows,
        "Its model is ResNet-50, as 669.75 says. A Dropout follows every BatchNorm and counts 4·batch·H·W·C, where "
        "Eq. 8 prints 2; the totals leave it out. Rates are means over two epochs: ssProp 0.4 is 80 % every second "
        "epoch, 0.2 + 0.2 is Dropout 0.2 and 40 %.",
        unit="10⁹ FLOPs",
    )


def _table7() -> PublishedTable:
    setting = Setting("CIFAR-10", CIFAR, "resnet26", BATCH, 250, 50_000)
    flop = per_iteration("resnet26", CIFAR)
    rows = _two(flop, TABLE7["per iteration"], 1e9, "per iteration, 10⁹")
    rows += _two(in_total(setting), TABLE7["in total"], 1e15, "in total, 10¹⁵")
    return PublishedTable(
        "Table 7: ResNet-26 on CIFAR-10, FLOPs",
        ["of", "figure"],
        ["FLOPs"],
        rows,
        "BasicBlocks (2, 3, 5, 2), batch 128, 50,000 images. 250 epochs, not 50: 42.99·10¹⁵ / (440.19·10⁹ · 50,000 / "
        "128) = 250.0.",
    )


def _bounds() -> PublishedTable:
    rows = []
    for inputs, outputs, side in ((3, 64, 3), (512, 512, 3), (64, 256, 1)):
        bound = counting_rules.drop_rate_lower_bound(nn.Conv2d(inputs, outputs, side, device="meta"))
        rows.append(Row([f"{side}×{side}, {inputs} → {outputs}"], [ours(100 * bound, 4)]))
    return PublishedTable(
        "Lower bound of the drop rate, D > 1 / (4·Cin·K² + 1)",
        ["convolution"],
        ["bound %"],
        rows,
        "It comes from Eq. 6 with its + 1. In FLOPs almost any rate pays; gathering and scattering are not in it.",
    )
