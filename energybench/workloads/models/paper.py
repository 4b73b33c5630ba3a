"""The models of the papers' own tables that torchvision does not have, each as its paper counts it.

The others are torchvision's: `resnet18` and `resnet50` with stem = "small" (ssProp uses it at every image size),
`vgg16`, `mobilenet_v2`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from energybench.common.torchvision_shim import import_torchvision

Shape = tuple[int, ...]


def mixer(
    shape: Shape,
    classes: int,
    patch: int = 16,
    width: int = 512,
    layers: int = 12,
    tokens: int = 4,
    channels: float = 0.5,
) -> nn.Module:
    """MLP-Mixer at GradSamp's size: 512 wide, 12 layers, token mixing 4 × patches wide, channel mixing 0.5 × width.

    Not Mixer-S/16 of Tolstikhin et al. 2021, whose widths are 256 and 2048. Token mixing is a 1×1 Conv1d over the
    patches and the patches enter through a Linear, as in the public PyTorch Mixer with these very defaults.
    """
    return Mixer(shape, classes, patch, width, layers, tokens, channels)


def plain_cnn(shape: Shape, classes: int, depth: int = 4, width: int = 64) -> nn.Module:
    """ssProp's plain CNN: `depth` 3×3 convolutions, each with BatchNorm and ReLU, all as wide; mean; one linear layer.

    It has neither strides nor pooling before the mean over the image.
    """
    if depth < 1 or width < 1:
        raise ValueError(f"depth and width are 1 or more, not {depth} and {width}")
    layers: list[nn.Module] = []
    for number in range(depth):
        before = width if number else shape[0]
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def resnet26(shape: Shape, classes: int) -> nn.Module:
    """ssProp's ResNet-26: BasicBlocks (2, 3, 5, 2) behind a 3×3 stride-1 stem without max-pool, at every size."""
    vision = import_torchvision().models.resnet
    model = vision.ResNet(vision.BasicBlock, [2, 3, 5, 2], num_classes=classes)
    model.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def resnet32(shape: Shape, classes: int, shortcut: Literal["A", "B"] = "A") -> nn.Module:
    """He et al. 2015, §4.2, n = 5: 32 layers, 16, 32 and 64 wide, for 32×32 images; shortcut "A" or "B"."""
    return SmallResNet(shape, classes, 5, shortcut)


def resnet56(shape: Shape, classes: int, shortcut: Literal["A", "B"] = "A") -> nn.Module:
    """He et al. 2015, §4.2, n = 9: 56 layers, 16, 32 and 64 wide, for 32×32 images; shortcut "A" or "B"."""
    return SmallResNet(shape, classes, 9, shortcut)


def resnet50_head4096(shape: Shape, classes: int) -> nn.Module:
    """GradSamp's ResNet-50: torchvision's, its last layer replaced by Linear 2048→4096, ReLU, Linear 4096→classes."""
    model = import_torchvision().models.resnet50()
    if shape[0] != 3:
        model.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.fc = nn.Sequential(nn.Linear(2048, 4096), nn.ReLU(), nn.Linear(4096, classes))
    return model


def swin_tiny(shape: Shape, classes: int, drop_path: float = 0.1) -> nn.Module:
    """Swin-T as Microsoft's default SwinTransformer(): torchvision's layers, attention written with `@`.

    It differs from torchvision's `swin_t` in two things: stochastic depth ends at 0.1 instead of 0.2, and the two
    products of attention are `@`, which calflops does not see, where torchvision calls `matmul`, which it does.
    """
    vision = import_torchvision().models.swin_transformer
    model = vision.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=[7, 7],
        stochastic_depth_prob=drop_path,
        num_classes=classes,
    )
    for module in list(model.modules()):
        if isinstance(module, vision.SwinTransformerBlock):
            module.attn = WindowAttention(module.attn)
    if shape[0] != 3:
        model.features[0][0] = nn.Conv2d(shape[0], 96, 4, stride=4)
    return model


class Mixer(nn.Module):
    """(B, C, H, W) → (B, classes); H and W are multiples of `patch`."""

    def __init__(
        self, shape: Shape, classes: int, patch: int, width: int, layers: int, tokens: int, channels: float
    ) -> None:
        super().__init__()
        if shape[1] % patch or shape[2] % patch:
            raise ValueError(f"images of {shape[1]}×{shape[2]} cannot be cut into {patch}×{patch} patches")
        self.patch = patch
        patches = (shape[1] // patch) * (shape[2] // patch)
        self.embed = nn.Linear(shape[0] * patch**2, width)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            across = nn.Sequential(
                nn.Conv1d(patches, tokens * patches, 1), nn.GELU(), nn.Conv1d(tokens * patches, patches, 1)
            )
            hidden = int(channels * width)
            within = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            self.layers += [nn.Sequential(nn.LayerNorm(width), mlp) for mlp in (across, within)]
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        cut = x.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)  # (B, C, h, w, p, p)
        x = self.embed(cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2))
        for layer in self.layers:
            x = layer(x) + x
        return self.head(self.norm(x).mean(1))


class SmallResNet(nn.Module):
    """6n + 2 layers: a 3×3 convolution, three stages of n BasicBlocks 16, 32 and 64 wide, global mean, linear.

    Where the width doubles, shortcut "A" (the paper's choice on CIFAR, no parameters) takes every second pixel and
    adds channels of zeros, half before and half behind; "B" is a 1×1 convolution of stride 2 with BatchNorm.
    """

    def __init__(self, shape: Shape, classes: int, blocks: int, shortcut: str) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(f'shortcut is "A" or "B", not {shortcut!r}')
        self.stem = nn.Sequential(nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        stages: list[nn.Module] = []
        for before, width in ((16, 16), (16, 32), (32, 64)):
            stages.append(_SmallBlock(before, width, shortcut))
            stages += [_SmallBlock(width, width, shortcut) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class _SmallBlock(nn.Module):
    def __init__(self, before: int, width: int, shortcut: str) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 and shortcut == "A":
            self.shortcut = _ZeroPadded((width - before) // 2)
        elif stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, 2, bias=False), nn.BatchNorm2d(width))
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.shortcut(x))


class _ZeroPadded(nn.Module):
    """Every second pixel, with `extra` channels of zeros before and behind."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))


class WindowAttention(nn.Module):
    """Attention inside shifted windows (Liu et al. 2021, §3.2), its two products written with `@`.

    (B, H, W, C) → the same shape. Has the parameters, tables and settings of torchvision's ShiftedWindowAttention.
    """

    window_size: list[int]
    shift_size: list[int]
    num_heads: int
    qkv: nn.Linear
    proj: nn.Linear
    relative_position_bias_table: Tensor  # ((2h − 1)(2w − 1), heads)
    relative_position_index: Tensor  # (h·w·h·w)

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(layer.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = self.window_size
        batch, height, width, channels = x.shape
        padded = F.pad(x, (0, 0, 0, -width % wide, 0, -height % high))
        rows, columns = padded.shape[1] // high, padded.shape[2] // wide
        # A window as large as the image has nowhere to shift to.
        shift = [0 if n == 1 else by for n, by in zip((rows, columns), self.shift_size, strict=True)]
        if any(shift):
            padded = padded.roll((-shift[0], -shift[1]), (1, 2))
        windows = padded.view(batch, rows, high, columns, wide, channels).transpose(2, 3)
        windows = windows.reshape(batch, rows * columns, high * wide, channels)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(2, 3)  # (B, windows, heads, pixels, C / heads)
            for part in self.qkv(windows).chunk(3, dim=-1)
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + self.position_bias()
        if any(shift):
            scores = scores + _shift_mask(padded, (rows, high), (columns, wide), shift)
        mixed = self.proj((F.softmax(scores, dim=-1) @ value).transpose(2, 3).flatten(-2))
        mixed = mixed.view(batch, rows, columns, high, wide, channels).transpose(2, 3).reshape(padded.shape)
        if any(shift):
            mixed = mixed.roll((shift[0], shift[1]), (1, 2))
        return mixed[:, :height, :width]

    def position_bias(self) -> Tensor:
        """(heads, pixels, pixels)"""
        pixels = self.window_size[0] * self.window_size[1]
        bias = self.relative_position_bias_table[self.relative_position_index]
        return bias.view(pixels, pixels, -1).permute(2, 0, 1)


def _shift_mask(x: Tensor, rows: tuple[int, int], columns: tuple[int, int], shift: list[int]) -> Tensor:
    """(windows, 1, pixels, pixels): −100 where rolling brought opposite edges into one window, else 0."""

    def region(count: int, size: int, by: int) -> Tensor:
        position = torch.arange(count * size, device=x.device)
        return (position >= (count - 1) * size).long() + (position >= count * size - by)

    regions = 3 * region(*rows, shift[0])[:, None] + region(*columns, shift[1])
    regions = regions.view(*rows, *columns).transpose(1, 2).flatten(2).flatten(0, 1)
    separate = regions[:, None] != regions[:, :, None]
    return separate[:, None].to(x.dtype) * -100
