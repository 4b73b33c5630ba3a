"""Which cards a program sees: CUDA's own rules for its environment, and a refusal where they do not say which card."""

from __future__ import annotations

import pytest

from energybench.meter.unavailable import Unavailable
from energybench.meter.visible import visible

ALIKE = [("GPU-aaaa", "H100"), ("GPU-aabb", "H100"), ("GPU-cccc", "H100")]
MIXED = [("GPU-aaaa", "T4"), ("GPU-aabb", "H100"), ("GPU-cccc", "T4")]
BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, ["GPU-aaaa", "GPU-aabb", "GPU-cccc"]),
        ("", []),
        ("-1", []),
        ("1", ["GPU-aabb"]),
        ("2,0", ["GPU-cccc", "GPU-aaaa"]),
        ("0,-1,1", ["GPU-aaaa"]),  # an invalid index hides what follows it
        ("0,9", ["GPU-aaaa"]),
        ("GPU-cccc", ["GPU-cccc"]),
        ("GPU-c,GPU-aab", ["GPU-cccc", "GPU-aabb"]),  # a UUID may be cut short
        ("GPU-aa", []),  # where it stays the only one
        ("nonsense", []),
    ],
)
def test_cudas_rules_for_the_cards_it_sees(asked: str | None, expected: list[str]) -> None:
    environment = {} if asked is None else {"CUDA_VISIBLE_DEVICES": asked}
    assert visible(ALIKE, environment) == expected
    assert visible(MIXED, environment | BUS) == expected


def test_a_number_among_different_cards_says_nothing_without_the_bus_order() -> None:
    with pytest.raises(Unavailable, match="does not say which of 3 different cards") as caught:
        visible(MIXED, {"CUDA_VISIBLE_DEVICES": "1"})
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in caught.value.remedy
    assert visible(MIXED, {"CUDA_VISIBLE_DEVICES": "GPU-aabb"}) == ["GPU-aabb"]
    assert set(visible(MIXED, {"CUDA_VISIBLE_DEVICES": "2,0,1"})) == {uuid for uuid, _ in MIXED}


def test_a_slice_of_a_card_has_no_counter_of_its_own() -> None:
    with pytest.raises(Unavailable, match="slice"):
        visible(ALIKE, {"CUDA_VISIBLE_DEVICES": "MIG-1234"})
