"""Tiny models of Hugging Face by their configuration and of timm by name, as far as they are installed. Nothing is
downloaded. Run as a script, it prints rows for docs/flops.md: what the counter says of one training step."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from energybench.common.torchvision_shim import import_torchvision
from energybench.flops.counter import Counter

VOCABULARY, WIDTH, HEADS, LAYERS, HIDDEN, TOKENS, BATCH = 100, 32, 4, 2, 64, 16, 2
TIMM = "resnet18 mobilenetv3_small_050 efficientnet_b0 convnext_atto vit_tiny_patch16_224 mixer_s32_224"

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 64,
}
_GROUPED_QUERIES = _TEXT | {"num_key_value_heads": 2}
_NO_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "bert": _TEXT | _NO_DROPOUT,
    "roberta": _TEXT | _NO_DROPOUT,
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
    | {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "llama": _GROUPED_QUERIES,
    "mistral": _GROUPED_QUERIES,
    "qwen2": _GROUPED_QUERIES,
    "gemma": _GROUPED_QUERIES | {"head_dim": 8},
    "phi": _TEXT,
    "gpt_neox": _TEXT,
    "mixtral": _GROUPED_QUERIES | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _GROUPED_QUERIES
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4},
    "t5": {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": HIDDEN,
        "num_layers": LAYERS,
        "num_heads": HEADS,
    },
}


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def hugging_face(kind: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A model with random weights, and what makes a loss of it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import_torchvision()  # or transformers finds one that it cannot import
    import transformers

    config = transformers.AutoConfig.for_model(kind, **HUGGING_FACE[kind])
    kinds = (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForMaskedLM)
    maker = kinds[1] if kind == "t5" else kinds[2] if kind in ("bert", "roberta") else kinds[0]
    tokens = torch.arange(BATCH * TOKENS).view(BATCH, TOKENS) % VOCABULARY
    given = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if kind == "t5" else {})
    return maker.from_config(config), lambda model: model(**given).logits.pow(2).sum()


def timm(name: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    import_torchvision()
    import timm as models  # type: ignore[import-not-found]

    model = models.create_model(name, pretrained=False)
    size = model.default_cfg["input_size"]
    return model, lambda model: model(torch.zeros(2, *size)).pow(2).sum()


def counted(make: Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]]) -> tuple[int, Counter]:
    """FLOPs of the forward pass of a batch, and the counter after the backward pass."""
    torch.manual_seed(0)
    model, loss_of = make()
    with Counter() as counter:
        loss = loss_of(model.train())
        forward = counter.total
        loss.backward()
    return forward, counter


def rows() -> Iterator[str]:
    yield "| model | forward, MFLOP | training, MFLOP | without a price, may hide products |"
    yield "|---|---:|---:|---|"
    made = [(f"{kind} (Hugging Face)", lambda kind=kind: hugging_face(kind)) for kind in HUGGING_FACE]
    of_timm = [(f"{name} (timm)", lambda name=name: timm(name)) for name in TIMM.split()]
    for name, make in [*(made if has("transformers") else []), *(of_timm if has("timm") else [])]:
        forward, counter = counted(make)
        hidden = ", ".join(f"{op} × {calls}" for op, calls in counter.unpriced_matrix.items()) or "nothing"
        yield f"| {name} | {forward / 1e6:.4g} | {counter.total / 1e6:.4g} | {hidden} |"


if __name__ == "__main__":
    print("\n".join(rows()))
