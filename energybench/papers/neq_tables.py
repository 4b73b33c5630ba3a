"""NEq's rule on SCoTTi's networks: what it calls saved while nothing rests, and the most that can really go."""

from __future__ import annotations

from torch import nn

from energybench.papers import counting_rules
from energybench.papers.cells import PublishedPaper, PublishedTable, Row, ours
from energybench.papers.meta_models import CIFAR, FACES, PHOTO, model

# The layers that NEq's public code hooks for Swin; its head is left out of both sums.
SWIN_HOOKED = (*counting_rules.NEQ_HOOKED, nn.LayerNorm, nn.Linear)

SCOTTI_MODELS: tuple[tuple[str, str, str, tuple[int, ...], int], ...] = (
    ("VGG-16", "CIFAR-10", "vgg16", CIFAR, 10),
    ("Swin-T", "CIFAR-10, 224 px", "swin_tiny", PHOTO, 10),
    ("ResNet-32", "CIFAR-100", "resnet32", CIFAR, 100),
    ("ResNet-56", "CIFAR-100", "resnet56", CIFAR, 100),
    ("ResNet-18", "Clipart, Painting", "resnet18", PHOTO, 345),
    ("MobileNet-v2", "Tiny ImageNet", "mobilenet_v2", FACES, 200),
)


def paper() -> PublishedPaper:
    rows = []
    for name, data, use, shape, classes in SCOTTI_MODELS:
        built, inputs = model(use, shape, classes), (1, *shape)
        operations = counting_rules.thop_forward(built, inputs)
        hooked = SWIN_HOOKED if use == "swin_tiny" else counting_rules.NEQ_HOOKED
        cells = [
            ours(2 * sum(operations.values()) / 1e9, 3),
            ours(counting_rules.neq_unfrozen(built, operations, hooked), 3),
            ours(counting_rules.neq_ceiling(built, inputs), 2),
        ]
        rows.append(Row([name, data], cells))
    table = PublishedTable(
        "What can be saved of the backward, by NEq's own operations of one image",
        ["model", "data"],
        ["backward 10⁹", "saved at f = 0 %", "ceiling %"],
        rows,
        "f = 0: nothing is frozen. NEq's public code hooks Conv2d and BatchNorm2d, for Swin LayerNorm and Linear too, "
        "and what is not hooked counts as saved: linear layers, which are 27.6 % of VGG-16 with its wide classifier, "
        "but under a hundredth of a percent of ResNet-32 and ResNet-56, for which SCoTTi prints 00.00 %. SCoTTi claims "
        "up to 86 %: a frozen neuron needs no dW, but dX flows on, so freezing all of them saves the ceiling.",
    )
    return PublishedPaper(
        "NEq and SCoTTi: neurons left alone",
        "Bragagnolo, Tartaglione and Grangetto 2022; that SCoTTi, which published no rule, used this one is inferred",
        "saved % = 100·(1 − mean over epochs of Σ_hooked 2·ops·(1 − f) / Σ_all 2·ops), ops = thop's forward, f = "
        "frozen share. The released code computes the full gradient and then zeroes it: it saves nothing, and its "
        "probe pass is not counted.",
        (table,),
    )
