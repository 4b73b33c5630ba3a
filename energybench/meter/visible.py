"""Which cards a CUDA program sees, from what its environment says, without asking CUDA.

NVML numbers cards by their PCI bus. CUDA does so only where CUDA_DEVICE_ORDER says PCI_BUS_ID; otherwise the fastest
comes first, and among cards of one kind the order is the bus's again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from energybench.meter.unavailable import Unavailable

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
REMEDY = f"export {ORDER}=PCI_BUS_ID, or name the cards by UUID (nvidia-smi -L)"


def visible(cards: Sequence[tuple[str, str]], environment: Mapping[str, str]) -> list[str]:
    """UUIDs of the cards that a program may use, in CUDA's order.

    Args:
        cards: (UUID, name) of every card, in NVML's order
        environment: the program's

    Raises:
        Unavailable: where that cannot be told: a card that was not used must not be billed
    """
    asked = environment.get(VISIBLE)
    if asked is None:
        return [uuid for uuid, _ in cards]
    by_bus = environment.get(ORDER) == "PCI_BUS_ID" or len({name for _, name in cards}) <= 1
    seen: list[str] = []
    numbered = False
    refuse_slices(environment)
    for word in (word.strip() for word in asked.split(",")):
        uuid = _by_number(cards, word) if word.isdecimal() else _by_uuid(cards, word)
        if uuid is None or uuid in seen:
            break  # as CUDA does: what follows a word that is no card is not seen
        numbered = numbered or word.isdecimal()
        seen.append(uuid)
    if numbered and not by_bus and len(seen) < len(cards):
        reason = f"{VISIBLE}={asked} does not say which of {len(cards)} different cards are meant"
        raise Unavailable(reason, "unsupported", REMEDY)
    return seen


def refuse_slices(environment: Mapping[str, str]) -> None:
    """Raises Unavailable where a program sees a slice of a card: the sensors are the whole card's."""
    asked = environment.get(VISIBLE) or ""
    if any(word.strip().startswith("MIG-") for word in asked.split(",")):
        reason = f"{VISIBLE}={asked}: a slice of a card (MIG) has no counter of its own"
        raise Unavailable(reason, "unsupported", "use whole cards: sudo nvidia-smi -mig 0")


def _by_number(cards: Sequence[tuple[str, str]], word: str) -> str | None:
    return cards[int(word)][0] if int(word) < len(cards) else None


def _by_uuid(cards: Sequence[tuple[str, str]], word: str) -> str | None:
    """A UUID may be cut short where it stays the only one."""
    matches = [uuid for uuid, _ in cards if word.startswith("GPU-") and uuid.startswith(word)]
    return matches[0] if len(matches) == 1 else None
