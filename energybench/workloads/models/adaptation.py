"""A body with a classifier and an adversary, and the layer through which the adversary's gradient turns round; and a
small body for digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

Shape = tuple[int, ...]


class TwoHeads(NamedTuple):
    """What a classifier and its adversary say of the same samples: (B, classes) each."""

    logits: Tensor
    adversary: Tensor


class GradientReversal(nn.Module):
    """Its input as it is; the gradient comes back times −`coefficient` (Ganin and Lempitsky 2015).

    Written with `detach`, since nobody sees into a custom autograd.Function while FLOPs are traced; what is added is 0
    exactly, for finite inputs.
    """

    def __init__(self, coefficient: float = 1.0) -> None:
        super().__init__()
        self.coefficient = coefficient

    def forward(self, x: Tensor) -> Tensor:
        held = x.detach()
        return held + self.coefficient * (held - x)

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient:g}"


def digit_net(shape: Shape, classes: int, channels: Sequence[int] = (16, 32), width: int = 64) -> nn.Module:
    """5×5 convolution, BatchNorm, ReLU and 2×2 max-pool per entry of `channels`; linear, ReLU; one linear layer.

    Unlike `cnn` it sees where in the image a stroke is, which is what digits of another hand have in common.
    """
    layers: list[nn.Module] = []
    before, height, wide = shape
    for out in channels:
        layers += [nn.Conv2d(before, out, 5, padding=2), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        before, height, wide = out, height // 2, wide // 2
    if not before * height * wide:
        raise ValueError(f"images of {shape[1]}×{shape[2]} cannot be halved {len(channels)} times")
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(before * height * wide, width), nn.ReLU(), nn.Linear(width, classes)
    )


def mdd_net(
    shape: Shape,
    classes: int,
    body: str | dict[str, Any] = "resnet50",
    bottleneck: int = 1024,
    width: int = 1024,
    dropout: float = 0.5,
) -> nn.Module:
    """The network of MDD (Zhang et al. 2019): a body, a bottleneck, a classifier and its adversary.

    `body` is any other model by its name, with parameters as { use = "cnn", channels = [16, 32] }; its last layer, as
    wide as `bottleneck`, is followed by BatchNorm, ReLU and dropout. Both heads have one hidden layer of `width`.
    From a random start, torch's own, where the public code has deviations of 0.01: small nets would hardly leave them.
    """
    if min(bottleneck, width) < 1:
        raise ValueError(f"bottleneck and width are 1 at least, not {bottleneck} and {width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a chance in [0, 1), not {dropout}")
    return MDDNet(_body(body, shape, bottleneck), classes, bottleneck, width, dropout)


def _body(body: Any, shape: Shape, features: int) -> nn.Module:
    from energybench.workloads import models  # which names this module

    settings = dict(body) if isinstance(body, dict) else {"use": body}
    use = settings.pop("use", None)
    if not isinstance(use, str):
        raise ValueError(f'body is the name of a model, or {{ use = "…" }} with its parameters, not {body!r}')
    return models.build(use, shape, features, settings)


class MDDNet(nn.Module):
    """Images (B, ...) → TwoHeads."""

    def __init__(self, body: nn.Module, classes: int, features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.bottleneck = nn.Sequential(nn.BatchNorm1d(features), nn.ReLU(), nn.Dropout(dropout))
        self.reversal = GradientReversal()
        self.classifier = _head(features, width, classes, dropout)
        self.adversary = _head(features, width, classes, dropout)

    def forward(self, images: Tensor) -> TwoHeads:
        features = self.bottleneck(self.body(images))
        return TwoHeads(self.classifier(features), self.adversary(self.reversal(features)))


def _head(features: int, width: int, classes: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, classes))
