"""Models that people have: as far as Hugging Face's transformers and timm are installed. Nothing is downloaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

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
    Made,
    counted,
    has,
    hugging_face,
    in_ledger,
    models,
    row,
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
need_transformers = pytest.mark.skipif(
    not has("transformers"), reason="needs Hugging Face's models: pip install 'energybench[huggingface]'"
)
need_timm = pytest.mark.skipif(not has("timm"), reason="needs timm's models: pip install timm")
PAGE = Path(__file__).parents[2] / "docs/flops.md"


@need_transformers
@pytest.mark.parametrize("kind", MULTIPLY_ADDS)
def test_a_model_costs_what_its_configuration_says(kind: str) -> None:
    forward, counter = counted(partial(hugging_face, kind))
    products = 2 * POSITIONS * MULTIPLY_ADDS[kind]
    assert forward == products + ATTENTION
    assert counter.total == 3 * products + 3.5 * ATTENTION


def agrees(make: Made) -> None:
    """Ledger and counter, within the 0.1 % past which a workload is flagged; and nothing may hide a product."""
    forward, counter = counted(make)
    assert counter.unpriced_matrix == {}
    assert counter.total > 2 * forward
    assert in_ledger(make) == pytest.approx(counter.total, rel=1e-3)


@need_transformers
@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_ledger_and_counter_agree_on_a_model_of_hugging_face(kind: str) -> None:
    agrees(partial(hugging_face, kind))


@need_timm
@pytest.mark.parametrize("name", TIMM.split())
def test_ledger_and_counter_agree_on_a_model_of_timm(name: str) -> None:
    agrees(partial(timm, name))


def printed(suffix: str) -> list[str]:
    return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"({suffix}) |" in line]


@need_transformers
def test_the_page_has_the_rows_that_the_script_prints() -> None:
    made = models()
    for suffix in ("Hugging Face", *(["timm"] if has("timm") and printed("timm") else [])):
        rows = [row(name, make) for name, make in made.items() if name.endswith(f"({suffix})")]
        assert printed(suffix) == rows, "python tests/flops/real_models.py prints them"


def test_the_page_says_what_its_rows_of_real_models_were_made_with() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert bool(printed("timm")) == ("without timm" not in page)
    assert "pip install timm" in page
    assert len(printed("Hugging Face")) == len(HUGGING_FACE)
