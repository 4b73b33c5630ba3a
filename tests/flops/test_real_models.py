"""Models that people have: as far as Hugging Face's transformers and timm are installed. Nothing is downloaded."""

from __future__ import annotations

import pytest
from real_models import (
    BATCH,
    HEADS,
    HIDDEN,
    HUGGING_FACE,
    LAYERS,
    TIMM,
    TOKENS,
    VOCABULARY,
    WIDTH,
    counted,
    has,
    hugging_face,
    timm,
)

pytestmark = pytest.mark.slow

POSITIONS = BATCH * TOKENS
# Scores and mix, of all heads: causal or not, fused, with five products back for the two forward.
ATTENTION = LAYERS * 2 * 2 * POSITIONS * TOKENS * WIDTH
# Multiply-adds for each token, all of whose gradients are wanted: embeddings learn.
MULTIPLY_ADDS = {
    "bert": LAYERS * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN) + WIDTH**2 + WIDTH * VOCABULARY,
    "gpt2": LAYERS * (4 * WIDTH**2 + 2 * WIDTH * 4 * WIDTH) + WIDTH * VOCABULARY,
    # queries and output of WIDTH, keys and values of two heads; gate, up and down
    "llama": LAYERS * (2 * WIDTH**2 + 2 * WIDTH * 2 * (WIDTH // HEADS) + 3 * WIDTH * HIDDEN) + WIDTH * VOCABULARY,
    # a router, and two of four experts for each token
    "mixtral": LAYERS * (2 * WIDTH**2 + 2 * WIDTH * 2 * (WIDTH // HEADS) + WIDTH * 4 + 2 * 3 * WIDTH * HIDDEN)
    + WIDTH * VOCABULARY,
}
need_transformers = pytest.mark.skipif(not has("transformers"), reason="transformers is not installed")
need_timm = pytest.mark.skipif(not has("timm"), reason="timm is not installed")


@need_transformers
@pytest.mark.parametrize("kind", MULTIPLY_ADDS)
def test_a_model_costs_what_its_configuration_says(kind: str) -> None:
    forward, counter = counted(lambda: hugging_face(kind))
    products = 2 * POSITIONS * MULTIPLY_ADDS[kind]
    assert forward == products + ATTENTION
    assert counter.total == 3 * products + 3.5 * ATTENTION


@need_transformers
@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_nothing_in_a_model_hides(kind: str) -> None:
    forward, counter = counted(lambda: hugging_face(kind))
    assert counter.unpriced_matrix == {}
    assert counter.total > 2 * forward


@need_timm
@pytest.mark.parametrize("name", TIMM.split())
def test_nothing_in_a_model_of_timm_hides(name: str) -> None:
    forward, counter = counted(lambda: timm(name))
    assert counter.unpriced_matrix == {}
    assert counter.total > 2 * forward
