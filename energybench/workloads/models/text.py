"""Models of text: GPT-2 by transformers, from a random start, as a classifier and as a language model.

Each takes rows of token numbers (B, L) that end with −1 where a text is shorter. Attention is causal and padding stands
at the end, so no token of a text ever attends to it: logits and gradients are those of the text alone, without a mask,
which would cost time and memory to say the same. What a classifier reads is the last token of each text.

Start weights: `model = { use = "gpt2_classifier", weights = "gpt2.pt" }` takes GPT-2's published tensors under the
names that they have in its files and in those of transformers.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from energybench.common.torchvision_shim import import_torchvision

Shape = tuple[int, ...]
BODY = "transformer."
IN_BODY = re.compile(r"(wte|wpe|h|ln_f)\.")
# Causal masks, which older files keep beside the weights.
MASK = re.compile(rf"({re.escape(BODY)})?h\.\d+\.attn\.(masked_)?bias")


def gpt2_classifier(
    shape: Shape,
    classes: int | None,
    vocabulary: int | None = None,
    layers: int = 12,
    heads: int = 12,
    width: int = 768,
    dropout: float = 0.1,
    positions: int | None = None,
) -> nn.Module:
    """GPT-2 (Radford et al. 2019) with a linear layer on the last token of a text; by default of its smallest size.

    vocabulary: number of different tokens; what the data say
    layers:     transformer blocks
    heads:      of attention in each
    width:      of the hidden states; a multiple of heads
    dropout:    of embeddings, attention and residuals
    positions:  that have an embedding; else as many as a sample has tokens. GPT-2's own files have 1024
    """
    if classes is None:
        raise ValueError("the data have no classes")
    settings = _settings(shape, vocabulary, layers, heads, width, dropout, positions)
    return _made("classifier", num_labels=classes, **settings)


def gpt2_language_model(
    shape: Shape,
    vocabulary: int | None = None,
    layers: int = 12,
    heads: int = 12,
    width: int = 768,
    dropout: float = 0.1,
    positions: int | None = None,
) -> nn.Module:
    """GPT-2 (Radford et al. 2019) as it was trained: the token that follows, by the weights of the embedding.

    vocabulary: number of different tokens; what the data say
    layers:     transformer blocks
    heads:      of attention in each
    width:      of the hidden states; a multiple of heads
    dropout:    of embeddings, attention and residuals
    positions:  that have an embedding; else as many as a sample has tokens. GPT-2's own files have 1024
    """
    return _made("language model", **_settings(shape, vocabulary, layers, heads, width, dropout, positions))


def _settings(
    shape: Shape, vocabulary: int | None, layers: int, heads: int, width: int, dropout: float, positions: int | None
) -> dict[str, Any]:
    """Of transformers' configuration. Raises ValueError for what makes no model of such samples."""
    if len(shape) != 1:
        raise ValueError(f"a sample is a row of tokens, (length,), not of shape {tuple(shape)}")
    if vocabulary is None:
        raise ValueError('the data do not say how many tokens there are: "facts": {"extra": {"vocabulary": 8000}}')
    sizes = {"vocabulary": vocabulary, "layers": layers, "heads": heads, "width": width, "positions": positions or 1}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number, 1 at least")
    if width % heads:
        raise ValueError(f"width = {width} is no multiple of heads = {heads}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a share in [0, 1), not {dropout}")
    if positions is not None and positions < shape[0]:
        raise ValueError(f"positions = {positions}, and a sample has {shape[0]} tokens")
    return {
        "vocab_size": vocabulary,
        "n_positions": positions or shape[0],
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "bos_token_id": None,
        "eos_token_id": None,
        "use_cache": False,  # of keys and values, which training never reads again
        "attn_implementation": "sdpa",
    }


def _made(kind: str, **settings: Any) -> nn.Module:
    kinds = _kinds()
    from transformers import GPT2Config

    model: nn.Module = kinds[kind](GPT2Config(**settings))
    return model


class PublishedNames(nn.Module):
    """Start weights may have the names that GPT-2's own files give them.

    A language model's head is its embedding: one tensor under two names, of which files may have one.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        _rename(state_dict, prefix)
        embedding = state_dict.get(f"{prefix}{BODY}wte.weight")
        if embedding is not None and hasattr(self, "lm_head"):
            state_dict.setdefault(f"{prefix}lm_head.weight", embedding)
        super()._load_from_state_dict(state_dict, prefix, *others)


@cache
def _kinds() -> dict[str, Any]:
    """transformers' own classes, whose forward takes rows that end with −1 and returns logits; imported when used."""
    import_torchvision()  # transformers imports its operators, which may be missing
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

    class GPT2Classifier(PublishedNames, GPT2ForSequenceClassification):
        transformer: Any
        score: Any

        def forward(self, tokens: Tensor) -> Tensor:
            """(B, L) → (B, classes)."""
            hidden = self.transformer(tokens.clamp(min=0)).last_hidden_state
            last = (tokens >= 0).sum(1).clamp(min=1) - 1
            logits: Tensor = self.score(hidden[torch.arange(len(tokens), device=tokens.device), last])
            return logits

    class GPT2Language(PublishedNames, GPT2LMHeadModel):
        transformer: Any
        lm_head: Any

        def forward(self, tokens: Tensor) -> Tensor:
            """(B, L) → (B, L, vocabulary)."""
            logits: Tensor = self.lm_head(self.transformer(tokens.clamp(min=0)).last_hidden_state)
            return logits

    return {"classifier": GPT2Classifier, "language model": GPT2Language}


def _rename(state_dict: dict[str, Any], prefix: str) -> None:
    """Give the tensors of a body without a head their names in a model with one, and leave masks out; in place."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        inner = name.removeprefix(prefix)
        if MASK.fullmatch(inner):
            del state_dict[name]
        elif IN_BODY.match(inner):
            state_dict[f"{prefix}{BODY}{inner}"] = state_dict.pop(name)
