"""Models on which ledger and counter must agree; run as a script, it prints the table of docs/flops.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from energybench.common.torchvision_shim import import_torchvision
from energybench.flops.counter import Counter
from energybench.flops.ledger import ledger
from energybench.flops.work import FORWARD, INPUT_GRADIENT, RECOMPUTE, WEIGHT_GRADIENT, Line

PHASES = (FORWARD, WEIGHT_GRADIENT, INPUT_GRADIENT, RECOMPUTE)


class FunctionModule(nn.Module):
    """A module that is one function, with what it needs as parameters."""

    def __init__(self, function: Callable[..., Tensor], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, **dict(self.named_parameters()))


class GPT2(nn.Module):
    """A decoder as GPT-2 writes it: y = xW + b through addmm, tied embeddings, causal attention."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv_weight = nn.Parameter(torch.randn(width, 3 * width) * 0.02)
            self.qkv_bias = nn.Parameter(torch.zeros(3 * width))
            self.out = nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            batch, length, width = x.shape
            flat = self.before(x).view(-1, width)
            qkv = torch.addmm(self.qkv_bias, flat, self.qkv_weight).view(batch, length, 3 * width)
            q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in qkv.split(width, dim=2))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(F.gelu(self.up(self.between(x))))

    def __init__(self, tokens: int = 211, width: int = 64, heads: int = 4, layers: int = 3, length: int = 48):
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(self.Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, indices: Tensor) -> Tensor:
        places = torch.arange(indices.shape[1], device=indices.device)
        x = self.tokens(indices) + self.places(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Mixer(nn.Module):
    """MLP-Mixer: patches, then MLPs across patches and across channels in turn."""

    def __init__(self, size: int = 32, patch: int = 4, width: int = 64, layers: int = 2, classes: int = 10):
        super().__init__()
        patches = (size // patch) ** 2
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.across = nn.ModuleList(self.mlp(patches, 2 * patches) for _ in range(layers))
        self.within = nn.ModuleList(self.mlp(width, 4 * width) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    @staticmethod
    def mlp(width: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for across, within in zip(self.across, self.within, strict=True):
            x = x + across(x.transpose(1, 2)).transpose(1, 2)
            x = x + within(x)
        return self.head(x.mean(1))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 6 * 6, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def zoo(name: str) -> Callable[[], nn.Module]:
    return getattr(import_torchvision().models, name)


# name → how to make it, shape of two samples
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small CNN": (small_cnn, (2, 1, 28, 28)),
    "MLP": (mlp, (2, 1, 28, 28)),
    "MLP-Mixer": (Mixer, (2, 3, 32, 32)),
    "GPT-2-like": (GPT2, (2, 48)),
    **{
        name: (zoo(name), (2, 3, 224, 224))
        for name in ("resnet18", "resnet50", "vgg16", "mobilenet_v2", "swin_t", "swin_v2_t", "vit_b_16")
    },
}


def build(name: str, device: str) -> tuple[nn.Module, Tensor]:
    make, shape = MODELS[name]
    with torch.device(device):
        model = make()
        batch = torch.zeros(shape, dtype=torch.long) if name == "GPT-2-like" else torch.zeros(shape)
    return model.train(), batch


@cache
def traced(name: str) -> tuple[Line, ...]:
    """The ledger of `build(name, "meta")`: the same whoever asks, and up to three seconds to make."""
    model, batch = build(name, "meta")
    return tuple(ledger(model, (batch,)))


def counted(model: nn.Module, *batch: Tensor) -> tuple[float, float]:
    """FLOPs per sample of the forward and of the whole step, as the counter sees them run."""
    with Counter() as counter:
        out = model(*batch)
        forward = counter.total
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    return forward / len(batch[0]), counter.total / len(batch[0])


def entered(lines: tuple[Line, ...], batch: int = 2) -> tuple[float, float]:
    """The same two figures from the ledger."""
    step = {phase: sum(line.flop_in(batch) for line in lines if line.phase in phase) for phase in ((FORWARD,), PHASES)}
    return step[FORWARD,] / batch, step[PHASES] / batch


def main() -> None:
    print("| model | forward, ledger | forward, counter | training, ledger | training, counter |")
    print("|---|---:|---:|---:|---:|")
    for name in MODELS:
        model, batch = build(name, "meta")
        of_ledger, of_counter = entered(ledger(model, (batch,))), counted(model, batch)
        cells = [f"{flop / 1e9:.5g}" for pair in zip(of_ledger, of_counter, strict=True) for flop in pair]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
