"""transformers' RT-DETRv2 and YOLOS as the task "detection" takes them. Imports transformers when one is built.

Their own forward passes make a loss from lists of boxes, whose sizes depend on what an image shows, so that no two
steps cost the same; here they return their predictions, and set_prediction.py learns from padded boxes. Names of
parameters are transformers' own, so that its checkpoints fit. Contrastive denoising is left out: the number of its
queries depends on how many boxes the fullest image of a batch has. Where transformers leaves a start to the checkpoint,
the papers' is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from energybench.workloads.tasks.set_prediction import SetPredictions

Shape = tuple[int, ...]
SHORTEST = 32  # RT-DETR's largest stride
STRIDES = (8, 16, 32)
UNCHECKED = "TRANSFORMERS_DISABLE_TORCH_CHECK"
START = 0.02  # standard deviation of YOLOS's tokens and positions


@dataclass(frozen=True)
class Sizes:
    """Of an RT-DETR. widths: of the backbone's four stages; expansion: of the encoder's CSP layers."""

    layer: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    decoder_layers: int
    expansion: float = 1.0
    stem: int = 64
    encoder: int = 256
    encoder_ffn: int = 1024
    decoder: int = 256
    decoder_ffn: int = 1024
    heads: int = 8
    queries: int = 300


SIZES = {
    "nano": Sizes("basic", (1, 1, 1, 1), (16, 32, 64, 64), 2, 0.5, 16, 64, 128, 64, 128, 4, 60),
    "r18": Sizes("basic", (2, 2, 2, 2), (64, 128, 256, 512), 3, 0.5),
    "r34": Sizes("basic", (3, 4, 6, 3), (64, 128, 256, 512), 4, 0.5),
    "r50": Sizes("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048), 6),
    "r101": Sizes("bottleneck", (3, 4, 23, 3), (256, 512, 1024, 2048), 6, encoder=384, encoder_ffn=2048),
}


@cache
def _rt_detr() -> Any:
    from transformers import RTDetrV2ForObjectDetection

    class RTDetrV2(RTDetrV2ForObjectDetection):
        """Returns the encoder's chosen queries as the first stage, then each layer of the decoder."""

        def forward(self, images: Tensor) -> SetPredictions:
            with _traceable(self, images):
                found = self.model(images)
            logits = torch.cat([found.enc_topk_logits.unsqueeze(1), found.intermediate_logits], 1)
            boxes = torch.cat([found.enc_topk_bboxes.unsqueeze(1), found.intermediate_reference_points], 1)
            return SetPredictions(logits, boxes, background=False)

    return RTDetrV2


@cache
def _yolos() -> Any:
    from transformers import YolosForObjectDetection

    class Yolos(YolosForObjectDetection):
        """Returns what its tokens say, in one stage."""

        def forward(self, images: Tensor) -> SetPredictions:
            found = super().forward(images)
            return SetPredictions(found.logits.unsqueeze(1), found.pred_boxes.unsqueeze(1), background=True)

    return Yolos


@contextmanager
def _traceable(model: nn.Module, images: Tensor) -> Iterator[None]:
    """While it is traced: no check of numbers where there are none, and no tensor kept from another trace."""
    if not torch.jit.is_tracing():
        yield
        return
    from transformers.models.rt_detr_v2 import modeling_rt_detr_v2 as modeling

    for cached in (
        modeling.RTDetrV2Model._cached_generate_anchors,
        modeling.RTDetrV2SinePositionEmbedding._cached_build_2d_sinusoidal_position_embedding,
    ):
        _clear(cached)
    if not images.is_meta:
        yield
        return
    before = os.environ.get(UNCHECKED)
    layers = [layer for layer in model.modules() if isinstance(layer, modeling.RTDetrV2EncoderLayer) and layer.training]
    os.environ[UNCHECKED] = "1"
    for layer in layers:
        layer.training = False  # of itself alone: in training it looks whether its numbers are finite
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True
        os.environ.pop(UNCHECKED)
        os.environ.update({} if before is None else {UNCHECKED: before})


def _clear(wrapped: Any) -> None:
    """An lru_cache behind transformers' wrapper, which hides it in a closure."""
    for cell in wrapped.__closure__ or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


def rt_detr_v2(shape: Shape, classes: int, backbone: str, queries: int | None) -> nn.Module:
    """See detection.py. Raises ValueError for a size or an image that it cannot have."""
    if backbone not in SIZES:
        raise ValueError(f"backbone is one of {', '.join(SIZES)}, not '{backbone}'")
    sizes, (channels, height, width) = SIZES[backbone], shape
    if height % SHORTEST or width % SHORTEST:
        raise ValueError(f"sides of images are multiples of {SHORTEST} pixels, and these are {height}×{width}")
    queries = sizes.queries if queries is None else queries
    places = sum((height // stride) * (width // stride) for stride in STRIDES)
    if not 1 <= queries <= places:
        raise ValueError(f"an image of {height}×{width} has {places} places for queries, not {queries}")
    from transformers import RTDetrResNetConfig, RTDetrV2Config

    config = RTDetrV2Config(
        backbone_config=RTDetrResNetConfig(
            num_channels=channels,
            embedding_size=sizes.stem,
            hidden_sizes=list(sizes.widths),
            depths=list(sizes.depths),
            layer_type=sizes.layer,
            out_indices=[2, 3, 4],
        ),
        encoder_in_channels=list(sizes.widths[1:]),
        encoder_hidden_dim=sizes.encoder,
        encoder_ffn_dim=sizes.encoder_ffn,
        encoder_attention_heads=sizes.heads,
        decoder_in_channels=[sizes.encoder] * len(STRIDES),
        d_model=sizes.decoder,
        decoder_ffn_dim=sizes.decoder_ffn,
        decoder_layers=sizes.decoder_layers,
        decoder_attention_heads=sizes.heads,
        hidden_expansion=sizes.expansion,
        num_queries=queries,
        num_labels=classes,
        num_denoising=0,
        freeze_backbone_batch_norms=False,
    )
    model: nn.Module = _rt_detr()(config)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):  # transformers draws about 0, for a checkpoint to overwrite
            nn.init.ones_(layer.weight)
    return model


def yolos(shape: Shape, classes: int, width: int, layers: int, heads: int, patch: int, queries: int) -> nn.Module:
    """See detection.py. Raises ValueError for an image that it cannot have."""
    channels, height, across = shape
    if height < patch or across < patch:
        raise ValueError(f"a patch of {patch} pixels does not fit into images of {height}×{across}")
    from transformers import YolosConfig

    config = YolosConfig(
        image_size=[height, across],
        patch_size=patch,
        num_channels=channels,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_detection_tokens=queries,
        num_labels=classes,
        use_mid_position_embeddings=False,
    )
    model = _yolos()(config)
    places = model.vit.embeddings
    for parameter in (places.cls_token, places.detection_tokens, places.position_embeddings):
        nn.init.trunc_normal_(parameter, std=START)  # transformers leaves zeros, of which all tokens are alike
    return model
