"""Readings of ranks that trained at the same time, as one: what each saw alone adds up, what all saw counts once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from energybench.meter.combine import added_error
from energybench.meter.ranks import READ_BY_THE_FIRST
from energybench.meter.reading import Energy, Reading
from energybench.meter.window import at_once


def of_one_node(ranks: Sequence[Reading]) -> Reading:
    """Ranks of one node: the seconds of the longest one, everybody's CPU seconds, each sensor once.

    Args:
        ranks: one reading of each, of at least one

    Returns:
        The same (source, scope, device) of two ranks is the same counter, read twice: that of the longer reading
        stands. What others than these ranks computed is what the longest one saw of others, without its siblings.
    """
    longest, *others = ordered = sorted(ranks, key=lambda reading: -reading.wall_s)
    siblings_s = total([reading.cpu_s for reading in others])
    seen_s = longest.other_cpu_s
    other_cpu_s = None if seen_s is None or siblings_s is None else max(0.0, seen_s - siblings_s)
    return _alike(longest, ordered).model_copy(
        update={"other_cpu_s": other_cpu_s, "energy": _once([reading.energy for reading in ordered])}
    )


def of_nodes(nodes: Sequence[Reading]) -> Reading:
    """Nodes that trained at the same time: the seconds of the longest, and the sum of everything else.

    There are no partial totals: a part of the machine of which one node says that it has no figure has none.
    """
    longest, *_ = ordered = sorted(nodes, key=lambda reading: -reading.wall_s)
    blind: dict[str, str] = {}
    for reading in ordered:
        known = {energy.scope for energy in reading.energy if energy.energy_j is not None}
        missing = [energy for energy in reading.energy if energy.scope not in known]
        blind |= {energy.scope: energy.reason or "no reason given" for energy in missing}
    sums: dict[tuple[str, str, str], list[Energy]] = {}
    for energy in (energy for reading in ordered for energy in reading.energy):
        sums.setdefault((energy.source, energy.scope, energy.device), []).append(energy)
    return _alike(longest, ordered).model_copy(
        update={
            "steal_s": total([reading.steal_s for reading in ordered]),
            "other_cpu_s": total([reading.other_cpu_s for reading in ordered]),
            "energy": [_sum(parts, blind.get(scope)) for (_, scope, _), parts in sums.items()],
        }
    )


def total(figures: Iterable[float | None]) -> float | None:
    """Their sum; None where one of them is not known."""
    known = list(figures)
    return None if None in known else sum(figure for figure in known if figure is not None)


def _alike(longest: Reading, readings: Sequence[Reading]) -> Reading:
    """What is made of several readings in one way, whether they are of one node or of several."""
    slept = [reading.suspended_s for reading in readings if reading.suspended_s is not None]
    return longest.model_copy(
        update={
            "cpu_s": total([reading.cpu_s for reading in readings]),
            "suspended_s": max(slept, default=None),
            "trackers": sorted({tracker for reading in readings for tracker in reading.trackers}),
            "cards": {uuid: card for reading in reversed(readings) for uuid, card in reading.cards.items()},
            "sampler": at_once([reading.sampler for reading in readings if reading.sampler]),
        }
    )


def _once(readings: Sequence[Sequence[Energy]]) -> list[Energy]:
    """Each sensor's figure, of the first reading that has it. Why there is none stands only where nobody has one."""
    every = [energy for reading in readings for energy in reading]
    first_is_here = any(not any(map(_left_to_the_first, reading)) for reading in readings)
    found: dict[tuple[str, str, str], Energy] = {}
    for energy in every:
        key = (energy.source, energy.scope, energy.device)
        if key not in found or (found[key].energy_j is None and energy.energy_j is not None):
            found[key] = energy
    seen = {(scope, device) for (source, scope, device) in found if source != "unavailable"}
    return [
        energy
        for (source, scope, device), energy in found.items()
        if source != "unavailable"
        or ((scope, device) not in seen and not (first_is_here and _left_to_the_first(energy)))
    ]


def _left_to_the_first(energy: Energy) -> bool:
    return (energy.reason or "").endswith(READ_BY_THE_FIRST)


def _sum(parts: Sequence[Energy], blind: str | None) -> Energy:
    """One counter of each node. blind: why another node has no figure of this part of the machine."""
    lost = next((part.reason for part in parts if part.energy_j is None), None) or blind
    if lost is not None or any(part.energy_j is None for part in parts):
        return parts[0].model_copy(update={"energy_j": None, "error_j": None, "reason": lost})
    joules = sum(part.energy_j for part in parts if part.energy_j is not None)
    return parts[0].model_copy(update={"energy_j": joules, "error_j": added_error(part.error_j for part in parts)})
