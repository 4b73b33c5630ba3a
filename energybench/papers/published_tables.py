"""The papers' tables counted again by their own rules: what `energybench claims` prints and docs/claims.md holds.

A printed figure is a text, so that its digits stay; a counted one is rounded to as many of them. Everything runs on the
meta device, in a few seconds; page.py prints it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from energybench.papers import counting_rules
from energybench.papers.shape_trace import ModuleCalls
from energybench.workloads import models

PHOTO, CIFAR, MNIST = (3, 224, 224), (3, 32, 32), (1, 28, 28)


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper beside the figures counted here.

    rows:    texts, one per heading
    numbers: headings whose cells are figures, never broken over two lines
    agree:   for each row whether the counted figure is the printed one to its last digit; None: nothing to compare
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str]
    agree: Sequence[bool | None]
    sentence: str


@dataclass(frozen=True)
class PublishedPaper:
    """A paper, its own counting rule, and its tables."""

    name: str
    source: str
    rule: str  # how it counts
    tables: Sequence[PublishedTable]


def facts() -> dict[str, Any]:
    """{papers: [...], figures: printed rows that were compared, agree: how many of them do}."""
    papers = [_epochs_left_out(), _channels_left_out(), _neurons_left_alone(), _samples_chosen()]
    rows = [agrees for paper in papers for table in paper.tables for agrees in table.agree]
    compared_rows = [agrees for agrees in rows if agrees is not None]
    return {"papers": [asdict(paper) for paper in papers], "figures": len(compared_rows), "agree": sum(compared_rows)}


@cache
def model(use: str, shape: tuple[int, ...], classes: int, **parameters: Any) -> nn.Module:
    """A shipped model on the meta device."""
    with torch.device("meta"):
        return models.build(use, shape, classes, parameters)


Compared = tuple[Sequence[str], Sequence[str], Sequence[str]]  # labels, printed figures, counted figures


def compared(
    title: str, headings: Sequence[str], rows: Iterable[Compared], sentence: str, inferred: Sequence[int] = ()
) -> PublishedTable:
    """A table with a verdict as last column. inferred: rows from whose printed figure the rule was inferred."""
    cells, agree = [], []
    labels = 0
    for number, (label, printed, counted) in enumerate(rows):
        labels = len(label)
        same = None if number in inferred else list(printed) == list(counted)
        agree.append(same)
        pairs = [text for pair in zip(printed, counted, strict=True) for text in pair]
        cells.append([*label, *pairs, {True: "yes", False: "no", None: "taken"}[same]])
    return PublishedTable(title, [*headings, "agree"], cells, headings[labels:], agree, sentence)


def plain(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str], sentence: str
) -> PublishedTable:
    """A table of figures that the paper does not print."""
    rows = list(rows)
    return PublishedTable(title, headings, rows, numbers, [None] * len(rows), sentence)


# ── epochs left out ───────────────────────────────────────────────────────────────────────────────────────────

# strategy, as Table 2 names it, epochs kept of 200 and percent saved by the FLOPs of its row, "% savings" it prints
TABLE2 = (
    ("Pe=5", "every:5", "167", "16.5", "20"),
    ("Pe=10", "every:10", "183", "8.5", "10"),
    ("Pr=0.2", "random:0.2", "176", "12", "20"),
    ("Pr=0.5", "random:0.5", "135", "32.5", "50"),
    ("Pr=0.7", "random:0.7", "119", "40.5", "70"),
    ("DP=5", "late-every:5", "190", "5", "10"),
    ("DP=10", "late-every:10", "195", "2.5", "5"),
    ("DR=0.2", "late-random:0.2", "190", "5", "10"),
    ("DR=0.5", "late-random:0.5", "175", "12.5", "25"),
    ("DR=0.7", "late-random:0.7", "165", "17.5", "35"),
)
TABLE2_MODELS = (("ResNet-50", "resnet50_head4096"), ("Swin-T", "swin_tiny"), ("MLP-Mixer", "mixer"))
TABLE2_DATA = (("CIFAR-10", 10, 50_000), ("CIFAR-100", 100, 50_000), ("Tiny ImageNet", 200, 100_000))
EPOCHS = counting_rules.TABLE2_EPOCHS


def table2_flop(use: str, classes: int, images: int, kept_epochs: int) -> float:
    """One cell of Table 2, in FLOPs."""
    return counting_rules.gradsamp_total(_photo_forward(use, classes), images=images, kept_epochs=kept_epochs)


@cache
def _photo_forward(use: str, classes: int) -> int:
    return counting_rules.calflops_forward(model(use, PHOTO, classes), (1, *PHOTO))


def _paid(strategy: str) -> int:
    return EPOCHS - len(counting_rules.gradsamp_skips(strategy, EPOCHS, preset="table2"))


def _written(strategy: str) -> float:
    """Percent of the epochs that the rule skips as the text states it; of random ones the expectation."""
    kind, _, amount = strategy.partition(":")
    if kind.endswith("every"):
        return 100 * len(counting_rules.gradsamp_skips(strategy, EPOCHS)) / EPOCHS
    return 100 * float(amount) / (2 if kind.startswith("late") else 1)


def _epochs_left_out() -> PublishedPaper:
    forward = _photo_forward("resnet50_head4096", 10)
    baseline = table2_flop("resnet50_head4096", 10, 50_000, EPOCHS)
    rule = compared(
        "Table 2: the rule, ResNet-50 on CIFAR-10",
        ["figure", "printed", "ours"],
        [
            (["FLOPs of one forward"], ["8,223,875,584"], [f"{forward:,}"]),
            (["TFLOPs of the baseline"], ["246716.268"], [f"{baseline / 1e12:.3f}"]),
        ],
        "This ResNet-50 ends in Linear 2048→4096, ReLU, Linear 4096→classes, and its linear biases count as nothing.",
    )
    paid_epochs = compared(
        "Table 2: epochs that the TFLOPs of each row pay for, of 200",
        ["strategy", "kept", "ours", "saves %", "ours %"],
        (
            ([name], [printed, saves], [str(_paid(skip)), f"{100 - 100 * _paid(skip) / EPOCHS:g}"])
            for name, skip, printed, saves, _ in TABLE2
        ),
        "Pe fits a start at epoch 36 to 40 and DP one at 151 to 155; DR skips exactly ρ × 50. Which rule gave Pr's "
        "counts cannot be decided from the table, so they are taken from it.",
        inferred=[number for number, (_, skip, *_) in enumerate(TABLE2) if skip.startswith("random")],
    )
    overstated = plain(
        'Table 2 against itself: "% savings" and the FLOPs of the same row',
        ["strategy", "the rule as written %", "claims %", "its FLOPs say %", "too much ×"],
        (
            [
                name,
                f"{_written(skip):g}",
                claim,
                f"{(saved := 100 - 100 * _paid(skip) / EPOCHS):g}",
                f"{float(claim) / saved:.2f}",
            ]
            for name, skip, _, _, claim in TABLE2
        ),
        ["the rule as written %", "claims %", "its FLOPs say %", "too much ×"],
        "Every row claims more than its own FLOPs save: the percentages are those of the rule as written, the FLOPs "
        "are of fewer skipped epochs.",
    )
    return PublishedPaper(
        "GradSamp: epochs left out",
        "Energy-Efficient Deep Learning via Update Sampling from a Generalized Gaussian Distribution (TMLR submission "
        "5151, 2025; first as arXiv 2406.07332), Table 2",
        "FLOPs = 3 × forward × images × epochs kept, the forward as calflops counts it at 224 × 224, for 50,000 images "
        "(Tiny ImageNet 100,000) and 200 epochs. Fitting and drawing the updates count as nothing.",
        (rule, paid_epochs, overstated, *(_cells(name, use) for name, use in TABLE2_MODELS)),
    )


def _cells(name: str, use: str) -> PublishedTable:
    rows = [("baseline", EPOCHS), *((strategy, _paid(skip)) for strategy, skip, *_ in TABLE2)]
    forwards = ", ".join(f"{_photo_forward(use, classes):,}" for _, classes, _ in TABLE2_DATA)
    about = {
        "resnet50_head4096": "The table has 99 such cells, of three models; 98 follow from the rule.",
        "swin_tiny": "Microsoft's default Swin-T: its attention is written with @, which calflops does not see.",
        "mixer": "512 wide, 12 layers, patch 16, token width 4 × 196, channel width 256: not Mixer-S/16. The cell that "
        "does not follow is DR=0.5 on CIFAR-100, which repeats its neighbour.",
    }[use]
    data = [data for data, *_ in TABLE2_DATA]
    return plain(
        f"Table 2: {name}, TFLOPs",
        ["strategy", *data],
        (
            [label, *(f"{table2_flop(use, classes, images, epochs) / 1e12:.3f}" for _, classes, images in TABLE2_DATA)]
            for label, epochs in rows
        ),
        data,
        f"{about} Forward: {forwards} FLOPs.",
    )


# ── channels left out ─────────────────────────────────────────────────────────────────────────────────────────

# data, input shape, model, dense and mean in 10⁹ FLOPs per iteration as Table 4 prints them
TABLE4 = (
    ("MNIST", MNIST, "resnet18", "234.10", "140.79"),
    ("MNIST", MNIST, "resnet50", "540.06", "325.85"),
    ("CIFAR", CIFAR, "resnet18", "285.32", "171.61"),
    ("CIFAR", CIFAR, "resnet50", "669.75", "404.18"),
)
BATCH, DROP = 128, 0.8
NAMES = {"resnet18": "ResNet-18", "resnet26": "ResNet-26", "resnet50": "ResNet-50"}


@cache
def _calls(use: str, shape: tuple[int, ...], with_dropout: bool = False) -> ModuleCalls:
    stem = {} if use == "resnet26" else {"stem": "small"}
    built = _with_dropout(use, shape, stem) if with_dropout else model(use, shape, 10, **stem)
    return counting_rules.backward_calls(built, (BATCH, *shape))


def table4(use: str, shape: tuple[int, ...], **options: Any) -> counting_rules.BackwardFlop:
    """One row of Table 4, in FLOPs per iteration."""
    return counting_rules.backward_of(_calls(use, shape), DROP, **options)


def _billions(flop: float) -> str:
    return f"{flop / 1e9:.2f}"


def _channels_left_out() -> PublishedPaper:
    printed = compared(
        "Table 4: backward FLOPs per iteration, in 10⁹, batch 128",
        ["data", "model", "dense", "ours", "ssProp", "ours"],
        (
            (
                [data, NAMES[use]],
                [dense, mean],
                [_billions(table4(use, shape).dense), _billions(table4(use, shape).mean)],
            )
            for data, shape, use, dense, mean in TABLE4
        ),
        "80 % of the channels are left out in every second epoch: the paper's figure is the mean of a dense and a "
        "sparse one.",
    )
    rows = []
    for data, shape, use, _, mean in TABLE4:
        rule, code = table4(use, shape), table4(use, shape, kept="integer")
        bias = table4(use, shape, bias_term=True)
        saved = f"{100 * (1 - rule.mean / rule.dense):.2f}"
        rows.append([data, NAMES[use], mean, _billions(code.mean), _billions(bias.mean), saved])
    against = plain(
        "Table 4 against the public code, Eq. 6 and the abstract",
        ["data", "model", "printed", "by the code", "by Eq. 6", "saves %"],
        rows,
        ["printed", "by the code", "by Eq. 6", "saves %"],
        "The code keeps whole channels, max(int(0.2·C), 1): 12 of 64, where the table has 12.8. Eq. 6 counts "
        "4·Cin·K² + 1, the table 4·Cin·K². BatchNorm and the selection stay, so the table saves a little less than the "
        "abstract's 40 %.",
    )
    over = []
    for data, together, trained in (("MNIST", 60_000, 48_000), ("CIFAR", 50_000, 40_000)):
        flop = table4("resnet18", MNIST if data == "MNIST" else CIFAR).mean
        printed_way, trained_way = (
            counting_rules.ssprop_total(flop, images=images, batch=BATCH, epochs=50) for images in (together, trained)
        )
        percent = f"{100 * (printed_way / trained_way - 1):.0f}"
        over.append(([data, f"{together:,}", f"{trained:,}"], ["25"], [percent]))
    totals = compared(
        "Totals: training and validation images, ResNet-18, 50 epochs",
        ["data", "counted", "trained on", "over %", "ours %"],
        over,
        "No backward runs on validation, so the totals are a quarter above the code's own run.",
    )
    coefficients = []
    for use in NAMES:
        calls = _calls(use, CIFAR, with_dropout=True)
        without, *dense = (counting_rules.backward_of(calls, DROP, dropout_coefficient=c).dense for c in (None, 2, 4))
        coefficients.append([NAMES[use], *(_billions(flop - without) for flop in dense), _billions(without)])
    per_layer = plain(
        "Table 6: what its Dropout layers cost per iteration, in 10⁹, CIFAR",
        ["model", "2, as Eq. 8", "4, as Table 6", "dense without"],
        coefficients,
        ["2, as Eq. 8", "4, as Table 6", "dense without"],
        "Eq. 8 prints 2·batch·H·W·C, the figures of Table 6 are of 4, and its totals leave Dropout out. It follows "
        "every BatchNorm.",
    )
    stem, last = nn.Conv2d(3, 64, 3, device="meta"), nn.Conv2d(512, 512, 3, device="meta")
    bound = plain(
        "Lower bound of the drop rate, D > 1 / (4·Cin·K² + 1)",
        ["convolution", "bound %"],
        [
            [name, f"{100 * counting_rules.drop_rate_lower_bound(conv):.4f}"]
            for name, conv in (
                ("3×3, 3 → 64", stem),
                ("3×3, 512 → 512", last),
                ("1×1, 64 → 256", nn.Conv2d(64, 256, 1, device="meta")),
            )
        ],
        ["bound %"],
        "It comes from Eq. 6 with its + 1. In FLOPs almost any rate pays; gathering and scattering are not in it.",
    )
    return PublishedPaper(
        "ssProp: channels left out",
        "Zhong, Huang and Shi 2024, arXiv 2408.12561, Tables 4 and 6",
        "Per iteration, M = batch · Hout · Wout: dense = Σ M·4·Cin·K²·Cout over convolutions, + Σ (12·batch·H·W·C + "
        "10·C) over BatchNorms; sparse takes 0.2·Cout, not rounded, and adds (M − 1)·Cout. The ResNets have a 3×3 "
        "stride-1 stem and no max-pool at every image size. Forward, linear layers, sorting and gathering count as "
        "nothing.",
        (printed, against, totals, per_layer, bound),
    )


def _with_dropout(use: str, shape: tuple[int, ...], parameters: dict[str, Any]) -> nn.Module:
    """The model with a Dropout behind every BatchNorm: where it stands does not change what it counts."""
    built = copy.deepcopy(model(use, shape, 10, **parameters))
    for name, module in list(built.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(built.get_submodule(parent), child, nn.Sequential(module, nn.Dropout(0.2)))
    return built


# ── neurons left alone ────────────────────────────────────────────────────────────────────────────────────────

SCOTTI_MODELS: tuple[tuple[str, str, str, tuple[int, ...], int], ...] = (
    ("VGG-16", "CIFAR-10", "vgg16", CIFAR, 10),
    ("Swin-T", "CIFAR-10, 224 px", "swin_tiny", PHOTO, 10),
    ("ResNet-32", "CIFAR-100", "resnet32", CIFAR, 100),
    ("ResNet-56", "CIFAR-100", "resnet56", CIFAR, 100),
    ("ResNet-18", "Clipart, Painting", "resnet18", PHOTO, 345),
    ("MobileNet-v2", "Tiny ImageNet", "mobilenet_v2", (3, 64, 64), 200),
)
CEILING = (50, 52)  # percent, "near 50–52 %"


def _neurons_left_alone() -> PublishedPaper:
    rows, agree = [], []
    for name, data, use, shape, classes in SCOTTI_MODELS:
        built, inputs = model(use, shape, classes), (1, *shape)
        operations = counting_rules.thop_forward(built, inputs)
        ceiling = counting_rules.neq_ceiling(built, inputs)
        live = {layer: 0.0 for layer in operations if not isinstance(built.get_submodule(layer), counting_rules.Norms)}
        unhooked = counting_rules.neq_saved(operations, [live])
        agree.append(CEILING[0] <= ceiling <= CEILING[1])
        rows.append(
            [
                name,
                data,
                f"{2 * sum(operations.values()) / 1e9:.3f}",
                f"{unhooked:.2f}",
                f"{ceiling:.2f}",
                "yes" if agree[-1] else "no",
            ]
        )
    headings = ["model", "data", "backward 10⁹", "saved at f = 0 %", "ceiling %", "in 50–52"]
    table = PublishedTable(
        "What can be saved of the backward, by NEq's own operations of one image",
        headings,
        rows,
        headings[2:5],
        agree,
        "The paper claims up to 86 %. A frozen neuron needs no dW, but dX flows on, so freezing all of them saves the "
        "ceiling; and layers that are not hooked (here the normalisations) count as saved while nothing is frozen.",
    )
    return PublishedPaper(
        "NEq and SCoTTi: neurons left alone",
        "Bragagnolo, Tartaglione and Grangetto 2022; that SCoTTi, which published no rule, used this one is inferred",
        "saved % = 100·(1 − mean over epochs of Σ_hooked 2·ops·(1 − f) / Σ_all 2·ops), ops = thop's forward, f = "
        "frozen share. The released code computes the full gradient and then zeroes it: it saves nothing, and its "
        "probe pass is not counted.",
        (table,),
    )


# ── samples chosen ────────────────────────────────────────────────────────────────────────────────────────────


def _samples_chosen() -> PublishedPaper:
    table = compared(
        "When presampling pays: τ above (B′ + 3b) / 3b",
        ["presampled", "printed", "ours"],
        (
            ([f"{n}b"], [printed], [f"{counting_rules.presampling_gate(n):.3g}"])
            for n, printed in ((3, "2"), (5, "2.67"))
        ),
        "Below it, choosing costs more than uniform training with as many more samples.",
    )
    return PublishedPaper(
        "Adaptive and importance sampling: samples chosen",
        "Salaün et al., arXiv 2311.14468; the gate from Katharopoulos and Fleuret 2018",
        "No FLOP of a step is removed: the promise is fewer steps to a target. A run of full length costs the same or "
        "more, so the saving is energy to target, and there is no table of FLOPs to hold.",
        (table,),
    )
