"""A record's rounds of federated learning: work, time and energy beside what the clients would have sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from energybench.common.escaping import printable
from energybench.common.units import format_bytes, format_flop, format_seconds
from energybench.records.record import Trial

MOST_ROUNDS = 30  # that are printed


class Round(NamedTuple):
    """What one round took. None is what the record does not tell."""

    number: int
    clients: int
    flop: float | None  # of the estimate, by the round's share of all samples that were trained on
    wall_s: float | None
    energy_j: dict[str, float]  # by sensor: the training's by the round's share of its seconds; none reads each round
    sent_down_b: int
    sent_up_b: int


def rounds_of(trial: Trial) -> list[Round]:
    """Every round that a federated task has noted in the record's diagnostics; none of any other task.

    FLOPs are exact where all samples cost the same, as in plain training. A method's own work that belongs to no
    sample, such as a fit, is in the energy and the seconds of its round and in the FLOPs of none.
    """
    noted = [found for told in trial.diagnostics.values() if (found := _noted(told))]
    if not noted:
        return []
    samples = sum(each["samples"] for each in noted[0])
    flop = trial.estimate.estimated_flop if trial.estimate else None
    ends = {int(point.get("epoch") or 0): point.get("wall_s") for point in trial.curve}
    seconds = {
        number: None if start is None or end is None else end - start
        for (_, start), (number, end) in pairwise([(0, 0.0), *sorted(ends.items())])
    }
    powers_w = _powers_w(trial)
    return [
        Round(
            number=each["epoch"],
            clients=each["clients"],
            flop=flop * each["samples"] / samples if flop is not None and samples else None,
            wall_s=(wall_s := seconds.get(each["epoch"])),
            energy_j={} if wall_s is None else {name: power_w * wall_s for name, power_w in powers_w.items()},
            sent_down_b=each["sent_down_b"],
            sent_up_b=each["sent_up_b"],
        )
        for each in noted[0]
    ]


def print_rounds(trial: Trial, console: Console) -> None:
    """Its rounds as a table, at most so many of them, the last among them."""
    rounds = rounds_of(trial)
    if not rounds:
        return
    every = -(-len(rounds) // MOST_ROUNDS)
    shown = rounds[::-1][::every][::-1]
    sensors = list(dict.fromkeys(name for each in rounds for name in each.energy_j))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for title in ("round", "clients", "FLOPs", "time", *map(printable, sensors), "down", "up"):
        table.add_column(title, justify="right", overflow="fold")
    for each in shown:
        table.add_row(
            str(each.number),
            str(each.clients),
            "–" if each.flop is None else format_flop(each.flop),
            "–" if each.wall_s is None else format_seconds(each.wall_s),
            *(f"{each.energy_j[name]:.3g} J" if name in each.energy_j else "–" for name in sensors),
            format_bytes(each.sent_down_b),
            format_bytes(each.sent_up_b),
        )
    console.print(table)
    left_out = f"{len(shown)} of {len(rounds)} rounds; " if len(shown) < len(rounds) else ""
    console.print(f"  ({left_out}FLOPs by a round's samples, energy by its seconds)", soft_wrap=True)


def _noted(told: object) -> Sequence[Mapping[str, Any]]:
    """The rounds in a task's diagnostics, if that is what stands there: records may come from anybody."""
    found = told.get("rounds") if isinstance(told, Mapping) else None
    keys = ("epoch", "clients", "samples", "sent_down_b", "sent_up_b")
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        return ()
    whole = all(isinstance(each.get(key), int) and each[key] >= 0 for each in found for key in keys)
    return found if whole else ()


def _powers_w(trial: Trial) -> dict[str, float]:
    """The training's mean power by each sensor's scope and device, or by each model where nothing was measured.

    Scopes may hold each other, such as a module its GPU, so they stand side by side and are never added up here.
    """
    train = trial.train
    if train is None or not train.wall_s:
        return {}
    known = [each for each in train.energy if each.energy_j is not None]
    measured = [each for each in known if each.measured]
    powers: dict[str, float] = {}
    for each in measured or known:
        name = " ".join(filter(None, (each.scope, each.device if each.measured else "modelled")))
        powers[name] = powers.get(name, 0.0) + (each.energy_j or 0.0) / train.wall_s
    return powers
