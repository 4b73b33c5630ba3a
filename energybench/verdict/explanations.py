"""Where a saving came from: FLOPs, seconds per FLOP and watts, and what the formulas say of bytes. A sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from energybench.records.record import Estimate
from energybench.stats import paired
from energybench.verdict import wording


def explain(method: str, flop: float | None, seconds: float | None, joules: float | None, scope: str = "") -> str:
    """Where the difference came from: an identity in logs, so the factors multiply to the last figure."""
    if seconds is None or flop is None or flop <= 0:
        return ""
    parts = paired.decompose(flop, seconds, joules)
    flops = _less_or_more(flop, "fewer FLOPs", "more FLOPs", "as many FLOPs as plain training")
    each = _less_or_more(math.exp(parts.seconds_per_flop), "less time", "more time", "the same time")
    words = [f"{method} does {flops}", f"each takes {each}"]
    if parts.watts is not None:
        power = _less_or_more(math.exp(parts.watts), "less power", "more power", "the same power")
        drawn_by = {"gpu": "card", "cpu": "processor", "module": "module"}.get(scope, "machine")
        words.append(f"the {drawn_by} draws {power}")
    total, quantity = (seconds, "time") if joules is None else (joules, wording.what("energy", scope))
    outcome = _less_or_more(total, f"less {quantity}", f"more {quantity}", f"the same {quantity}")
    return f"{', '.join(words)}: {outcome}."


def _less_or_more(ratio: float, less: str, more: str, same: str) -> str:
    share = wording.percent(abs(ratio - 1))
    if share == wording.percent(0.0):
        return same
    return f"{share} {less if ratio < 1 else more}"


def bytes_note(estimates: Sequence[Estimate]) -> str:
    """What the formulas say of bytes, and of the layer that saves most FLOPs, where the two are not the same."""
    known = [(e.plain_b, e.estimated_b) for e in estimates if e.plain_b and e.estimated_b is not None]
    if not known:
        return ""
    saved = 1 - math.fsum(after / before for before, after in known) / len(known)
    flop = 1 - math.fsum(e.estimated_flop / e.plain_flop for e in estimates) / len(estimates)
    if abs(flop) < wording.FEWER_APART or abs(saved - flop) < wording.FEWER_APART:
        return ""
    which = "fewer" if saved >= 0 else "more"
    less = "fewer" if flop >= 0 else "more"
    text = f"By its formulas {wording.percent(abs(flop))} {less} FLOPs move {wording.percent(abs(saved))} {which} bytes"
    layer = next((layer for e in estimates for layer in e.layers), None)
    if layer and layer.bytes_saved_rel is not None and layer.intensity_flop_b is not None:
        fewer = (
            f"{wording.percent(layer.flop_saved_rel)} fewer FLOPs, {wording.percent(layer.bytes_saved_rel)} fewer bytes"
        )
        intensity = f"{wording.number(layer.intensity_flop_b, 0)} FLOP per byte in plain training"
        text += f"; {layer.name}: {fewer}, {intensity}"
    return f"{text}."
