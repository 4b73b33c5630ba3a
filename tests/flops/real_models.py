"""Tiny models of Hugging Face by their configuration and of timm by name, as far as they are installed. Nothing is
downloaded. Run as a script, it prints the table of docs/flops.md: what the ledger and the counter say of one training
step, and with which versions."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from energybench.common.torchvision_shim import import_torchvision
from energybench.flops.counter import Counter
from energybench.flops.ledger import trace
from energybench.flops.work import Work

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


class Loss(nn.Module):
    """A model of Hugging Face or timm, from its input to a number."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, given: Tensor) -> Tensor:
        return self.call(self.model, given).pow(2).sum()


def hugging_face(kind: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights up to a loss, and a batch for it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import_torchvision()  # or transformers finds one that it cannot import
    import transformers

    config = transformers.AutoConfig.for_model(kind, **HUGGING_FACE[kind])
    kinds = (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForMaskedLM)
    maker = kinds[1] if kind == "t5" else kinds[2] if kind in ("bert", "roberta") else kinds[0]
    tokens = torch.arange(BATCH * TOKENS).view(BATCH, TOKENS) % VOCABULARY

    def call(model: nn.Module, given: Tensor) -> Tensor:
        inputs = {"input_ids": given} | ({"decoder_input_ids": given} if kind == "t5" else {})
        logits: Tensor = model(**inputs).logits
        return logits

    return Loss(maker.from_config(config), call), tokens


def timm(name: str) -> tuple[nn.Module, Tensor]:
    import_torchvision()
    import timm as models  # type: ignore[import-not-found]

    model = models.create_model(name, pretrained=False)
    return Loss(model, lambda model, given: model(given)), torch.zeros(BATCH, *model.default_cfg["input_size"])


Made = Callable[[], tuple[nn.Module, Tensor]]


def counted(make: Made) -> tuple[int, Counter]:
    """FLOPs of the forward pass of a batch, and the counter after the backward pass."""
    torch.manual_seed(0)
    model, given = make()
    with Counter() as counter:
        loss = model.train()(given)
        forward = counter.total
        loss.backward()
    return forward, counter


def in_ledger(make: Made) -> float:
    """FLOPs of the same step by the ledger."""
    torch.manual_seed(0)
    model, given = make()
    traced = trace(model.train(), (given,), torch.device("cpu"))
    assert not traced.note, traced.note
    return Work(traced.lines, epochs=1, samples=BATCH, batch=BATCH).flop


def models() -> dict[str, Made]:
    """All that can be made here, by their name in the table."""
    made: dict[str, Made] = {}
    if has("transformers"):
        made |= {f"{kind} (Hugging Face)": partial(hugging_face, kind) for kind in HUGGING_FACE}
    if has("timm"):
        made |= {f"{name} (timm)": partial(timm, name) for name in TIMM.split()}
    return made


def row(name: str, make: Made) -> str:
    forward, counter = counted(make)
    hidden = ", ".join(f"{op} × {calls}" for op, calls in counter.unpriced_matrix.items()) or "nothing"
    figures = (forward / 1e6, in_ledger(make) / 1e6, counter.total / 1e6)
    return f"| {name} | {' | '.join(f'{figure:.4g}' for figure in figures)} | {hidden} |"


def rows() -> Iterator[str]:
    yield "| model | forward, counter | training, ledger | training, counter | may hide products |"
    yield "|---|---:|---:|---:|---|"
    yield from (row(name, make) for name, make in models().items())


def versions() -> str:
    """Of what the table is made with."""
    known = [f"{name} {version(name)}" for name in ("torch", "transformers", "timm") if has(name)]
    missing = [f"without {name}" for name in ("transformers", "timm") if not has(name)]
    return ", ".join([*known, *missing])


if __name__ == "__main__":
    print("\n".join([versions(), "", *rows()]))
