"""Models of diffusion: what predicts the noise in an image and is told how much of it there is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from energybench.common.torchvision_shim import import_torchvision

Shape = tuple[int, ...]
HEAD = 8  # channels of each head of attention, as diffusers has it


def ddpm_unet(
    shape: Shape,
    width: int = 64,
    multipliers: Sequence[int] = (1, 2, 4),
    layers: int = 2,
    attention: Sequence[int] = (),
    groups: int = 8,
    dropout: float = 0.0,
) -> nn.Module:
    """The U-Net of denoising diffusion (Ho et al. 2020), diffusers' `UNet2DModel`, from a random start.

    Called as (images (B, C, H, W), steps (B,)), it returns the predicted noise, as `sample`. A level is half as large
    as the one before and has `width` times its multiplier as channels; each has `layers` residual blocks on the way
    down and one more on the way up. `attention` names the levels that attend to themselves, the finest is 0; the middle
    always does. `groups` are those of its group normalisation. No weights are downloaded; a state_dict of diffusers'
    is read by `weights`.
    """
    widths = [width * each for each in multipliers]
    _check(shape, widths, layers, attention, groups)
    import_torchvision()  # before what imports it
    from diffusers import UNet2DModel

    attends = [level in attention for level in range(len(widths))]
    model: nn.Module = UNet2DModel(
        sample_size=(shape[1], shape[2]),
        in_channels=shape[0],
        out_channels=shape[0],
        block_out_channels=tuple(widths),
        down_block_types=tuple("AttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        layers_per_block=layers,
        attention_head_dim=HEAD,
        norm_num_groups=groups,
        dropout=dropout,
    )
    return model


def _check(shape: Shape, widths: Sequence[int], layers: int, attention: Sequence[int], groups: int) -> None:
    """Raises ValueError for what cannot be built, before diffusers is imported."""
    if len(shape) != 3:
        raise ValueError(f"it takes images, (channels, height, width), not samples of shape {tuple(shape)}")
    if not widths or min(*widths, layers, groups) < 1:
        raise ValueError("width, multipliers, layers and groups are 1 at least, and each level has a multiplier")
    if wrong := [level for level in attention if not 0 <= level < len(widths)]:
        raise ValueError(f"attention is at levels 0 to {len(widths) - 1}, and {wrong[0]} is none of them")
    if wrong := [each for each in widths if each % groups]:
        raise ValueError(f"{wrong[0]} channels cannot be cut into {groups} groups")
    if wrong := [widths[level] for level in (*attention, -1) if widths[level] % HEAD]:
        raise ValueError(f"{wrong[0]} channels attend to themselves, and cannot be cut into heads of {HEAD}")
    stride = 2 ** (len(widths) - 1)
    if shape[1] % stride or shape[2] % stride:
        fitting = stride * max(1, round(min(shape[1:]) / stride))
        raise ValueError(
            f"{len(widths)} levels halve the image {len(widths) - 1} times, and {shape[1]} × {shape[2]} pixels are no "
            f"multiple of {stride}: data.resize = {fitting}"
        )
