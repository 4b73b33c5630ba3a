"""Models of segmentation: a U-Net, and a vision transformer whose decoder attends to a token of each class.

Both take images of any size, which they pad at the right and below with the mean of normalised images, 0, to what
their strides divide, and give logits of the image's own size: images at other scales are evaluated so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from energybench.common.torchvision_shim import import_torchvision

Shape = tuple[int, ...]


def unet(
    shape: Shape, classes: int, encoder: str = "resnet34", channels: Sequence[int] = (256, 128, 64, 32, 16)
) -> nn.Module:
    """The U-Net of segmentation-models-pytorch, with a ResNet-34 as its encoder, from a random start.

    `encoder` is one of that package's, `channels` the widths of the decoder's blocks, the coarsest first, of which
    each halves the stride: five reach the encoder's 32. No weights are downloaded; a checkpoint of the package's own
    `Unet` is read by `weights`, whose names it keeps.
    """
    import_torchvision()  # before what imports it
    if not 3 <= len(channels) <= 5:
        raise ValueError(f"channels are of 3 to 5 blocks, not {len(channels)}")
    try:
        model: nn.Module = _unet_class()(
            encoder_name=encoder,
            encoder_weights=None,
            encoder_depth=len(channels),
            decoder_channels=tuple(channels),
            in_channels=shape[0],
            classes=classes,
        )
    except KeyError:
        raise ValueError(f"segmentation-models-pytorch has no encoder '{encoder}'") from None
    return model


def segmenter(
    shape: Shape,
    classes: int,
    patch: int = 16,
    width: int = 192,
    layers: int = 12,
    heads: int = 3,
    decoder_layers: int = 2,
    drop_path: float = 0.1,
    decoder_dropout: float = 0.1,
) -> nn.Module:
    """Segmenter with a mask transformer (Strudel et al. 2021, section 3), of the size of Seg-Tiny, from a random start.

    `drop_path` is the stochastic depth of the encoder's last layer, which grows from 0 at its first; `decoder_dropout`
    is that of the decoder's attention and MLPs.
    """
    if width % heads:
        raise ValueError(f"a width of {width} cannot be cut into {heads} heads")
    if min(patch, width, layers, heads, decoder_layers) < 1:
        raise ValueError("patch, width, layers, heads and decoder_layers are 1 at least")
    return Segmenter(shape, classes, patch, width, layers, heads, decoder_layers, drop_path, decoder_dropout)


def padded_to(images: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) with zeros at the right and below, up to multiples of `stride`."""
    below, right = -images.shape[-2] % stride, -images.shape[-1] % stride
    return F.pad(images, (0, right, 0, below)) if below or right else images


@cache
def _unet_class() -> Callable[..., nn.Module]:
    """Made once, when the first U-Net is: the package is imported then."""
    import segmentation_models_pytorch

    class UNet(segmentation_models_pytorch.Unet):
        """(B, C, H, W) → logits (B, classes, H, W)."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = super().forward(padded_to(images, self.encoder.output_stride))
            return logits[..., : images.shape[-2], : images.shape[-1]]

    return UNet


# ── Segmenter ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Segmenter(nn.Module):
    """(B, C, H, W) → logits (B, classes, H, W): an encoder of patches, masks of their grid, and these at full size."""

    def __init__(
        self,
        shape: Shape,
        classes: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        decoder_layers: int,
        drop_path: float,
        decoder_dropout: float,
    ) -> None:
        super().__init__()
        self.patch = patch
        grid = (-(-shape[1] // patch), -(-shape[2] // patch))
        self.encoder = PatchEncoder(shape[0], grid, patch, width, layers, heads, drop_path)
        self.decoder = MaskTransformer(classes, width, decoder_layers, heads, decoder_dropout)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        padded = padded_to(images, self.patch)
        grid = (padded.shape[-2] // self.patch, padded.shape[-1] // self.patch)
        masks = self.decoder(self.encoder(padded), grid)
        logits = F.interpolate(masks, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., : images.shape[-2], : images.shape[-1]]


class PatchEncoder(nn.Module):
    """A vision transformer: (B, C, H, W), multiples of `patch`, → features of its patches (B, h·w, width).

    Places are learned for the grid of the training images, and interpolated for another.
    """

    def __init__(
        self, channels: int, grid: tuple[int, int], patch: int, width: int, layers: int, heads: int, drop_path: float
    ) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.token_place = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, width, *grid))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.token_place, std=0.02)
        nn.init.trunc_normal_(self.places, std=0.02)
        rates = (drop_path * layer / max(1, layers - 1) for layer in range(layers))
        self.blocks = nn.ModuleList(Block(width, heads, 0.0, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        places: Tensor = self.places
        if x.shape[-2:] != self.grid:
            places = F.interpolate(places, size=x.shape[-2:], mode="bilinear", align_corners=False)
        x = (x + places).flatten(2).transpose(1, 2)
        token = (self.token + self.token_place).expand(len(x), -1, -1)
        x = torch.cat([token.to(x.dtype), x], 1)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)[:, 1:]
        return features


class MaskTransformer(nn.Module):
    """Features of patches (B, h·w, width) → a mask of each class (B, classes, h, w).

    Patches and a learned token of each class attend to each other; a mask is the cosine of both, normalised over the
    classes.
    """

    def __init__(self, classes: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.classes = classes
        self.enter = nn.Linear(width, width)
        self.tokens = nn.Parameter(torch.zeros(1, classes, width))
        nn.init.trunc_normal_(self.tokens, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, 0.0) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.of_patches = nn.Linear(width, width, bias=False)
        self.of_classes = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(classes)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.enter(features)
        x = torch.cat([x, self.tokens.expand(len(x), -1, -1).to(x.dtype)], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        patches = F.normalize(self.of_patches(x[:, : -self.classes]), dim=-1, eps=1e-6)
        classes = F.normalize(self.of_classes(x[:, -self.classes :]), dim=-1, eps=1e-6)
        masks: Tensor = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).unflatten(2, grid)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), each left out for a sample with the chance `drop_path`."""

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )
        self.depth: nn.Module = _stochastic_depth(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.depth(self.attention(self.before(x)))
        return x + self.depth(self.mlp(self.between(x)))


class Attention(nn.Module):
    """Of several heads, of every token to every token: (B, tokens, width) → the same shape."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.after = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        return self.after(self.out(mixed.transpose(1, 2).flatten(2)))


def _stochastic_depth(rate: float) -> Any:
    return import_torchvision().ops.StochasticDepth(rate, "row")


def _initialise(module: nn.Module) -> None:
    """As the released code does: linear layers' weights of deviation 0.02 and biases of 0; the two projections before
    the cosine, which have no bias, of deviation 1/√width."""
    if isinstance(module, nn.Linear):
        if module.bias is None:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        else:
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
