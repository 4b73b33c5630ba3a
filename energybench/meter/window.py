"""A named window of metering: which sensors, started and read in which order, and what its pieces add up to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from energybench.meter import Meter, trackers
from energybench.meter.clock import REAL_TIME, Clock
from energybench.meter.combine import added_error
from energybench.meter.counter import AT_MOST
from energybench.meter.reading import CardState, Energy, Reading, SamplerState
from energybench.meter.trace import Sample

LOST = "the sensor was lost during the window"
AMOUNTS = frozenset({"wraps", "average_field_j"})  # details that add up from piece to piece
AT_ONCE_S = 0.01  # what the meters of a window may take to start and to stop before it enters an error
FEWEST_TICKS = 10  # under these a counter's ends weigh too much for any figure


class Window:
    """One named window, possibly in several pieces: evaluation pauses it, nothing is scaled.

    Args:
        meters: started in this order and read in the reverse one, the clock innermost, so that a sensor that waits for
            an edge encloses those that answer at once
        synchronise: waits for every used device; called before the first and the last read, never inside
        clock: says how long the window was; by default also of its CPU seconds and of the host's
        inside: whether it is a stretch inside another window, which looks for other trackers itself
    """

    def __init__(
        self,
        meters: Sequence[Meter],
        synchronise: Callable[[], None],
        clock: Meter | None = None,
        *,
        inside: bool = False,
    ) -> None:
        self._meters, self._synchronise = [*meters, clock or Clock()], synchronise
        self._looks_for_trackers, self._trackers = bool(meters) and not inside, frozenset[str]()
        self._began_ns: list[int] = []  # when each meter had started
        self._pieces: list[Reading] = []
        self.start_ns = self.stop_ns = 0  # of the first piece, and of the last
        self._piece_ns = 0  # start of the open piece; 0 between two

    def start(self) -> None:
        """Open a piece. Returns when the work may begin; raises what `synchronise` and the meters raise."""
        if self._looks_for_trackers:
            self._trackers = trackers.running()
        self._synchronise()
        self._began_ns = []
        for meter in self._meters:
            meter.start()
            self._began_ns.append(REAL_TIME.now_ns())
        self._piece_ns = REAL_TIME.now_ns()
        self.start_ns = self.start_ns or self._piece_ns

    def elapsed_s(self) -> float:
        """Seconds inside so far, those of the open piece too: only the clock is read, no sensor."""
        open_ns = REAL_TIME.now_ns() - self._piece_ns if self._piece_ns else 0
        return sum(piece.wall_s for piece in self._pieces) + open_ns / 1e9

    def stop(self) -> None:
        """End the open piece; between two, when a pause is cut short by an error say, there is nothing to end."""
        if not self._piece_ns:
            return
        self._synchronise()
        self.stop_ns, self._piece_ns = REAL_TIME.now_ns(), 0
        readings: list[Reading] = []
        for meter, began_ns in zip(reversed(self._meters), reversed(self._began_ns), strict=True):
            open_s = (REAL_TIME.now_ns() - began_ns) / 1e9
            reading = meter.stop()
            open_s = max(open_s, reading.wall_s)  # a busy machine returns late from the meter's own start
            window_s = readings[0].wall_s if readings else open_s  # the clock's, which is innermost
            readings.append(_with_waiting(reading, open_s, window_s))
        piece = _of_one_piece(readings)
        if self._looks_for_trackers:
            seen = sorted(self._trackers | trackers.running())
            piece = piece.model_copy(update={"trackers": seen})
        self._pieces.append(piece)

    def reading(self) -> Reading:
        """All pieces so far. A window that was never opened lasted no time and saw no energy."""
        return sum_pieces(self._pieces) if self._pieces else Reading(wall_s=0.0, cpu_s=0.0, pieces=0)

    def of_stretch(self, start_ns: int, stop_ns: int) -> Reading:
        """The reading of a stretch inside this window that somebody else timed, now that the window is closed.

        Its seconds are exact. A sensor whose readings are kept with their times gives its figure, with the error of not
        having been read at the ends; of any other, of CPU seconds and of the load of others nothing is known.
        """
        whole = self.reading()
        energy = [
            each for meter in self._meters for each in getattr(meter, "of_stretch", lambda *_: [])(start_ns, stop_ns)
        ]
        known = {(each.scope, each.device) for each in energy}
        energy += [_not_in_parts(each) for each in whole.energy if (each.scope, each.device) not in known]
        unknown: dict[str, object] = {"cpu_s": None, "steal_s": None, "other_cpu_s": None}
        wall_s = (stop_ns - start_ns) / 1e9
        return whole.model_copy(update={"wall_s": wall_s, "energy": energy, "pieces": 1, **unknown})

    def samples(self) -> list[Sample]:
        """What the meters that keep a power trace saw, in order of time."""
        samples = [sample for meter in self._meters for sample in getattr(meter, "samples", ())]
        return sorted(samples, key=lambda sample: sample.time_ns)


def refuse_short(reading: Reading) -> Reading:
    """The reading without the figures of sensors that ticked less than 10 times in each of its pieces.

    Such a figure becomes null, its source "unavailable": the sensor was there, and the window not long enough for it.
    """
    piece_s = reading.wall_s / max(1, reading.pieces)
    return reading.model_copy(update={"energy": [_unless_short(energy, piece_s) for energy in reading.energy]})


def ticks_of(energy: Energy) -> float | None:
    """Seconds between two values of this sensor: the counter's tick or the sampler's period, the longest of pieces."""
    tick_s = energy.detail.get("tick_s", energy.detail.get("period_s"))
    return max(tick_s) if isinstance(tick_s, list) else tick_s


def _unless_short(energy: Energy, piece_s: float) -> Energy:
    if _bound(energy) is not None:
        return energy.model_copy(update={"source": "unavailable", "reason": f"{energy.source}: {energy.reason}"})
    tick_s = ticks_of(energy)
    if energy.energy_j is None or tick_s is None or piece_s >= FEWEST_TICKS * tick_s:
        return energy
    reason = f"{energy.source}: a window of {piece_s:.2f} s is shorter than {FEWEST_TICKS} ticks of {tick_s:.3f} s"
    return _null(energy, source="unavailable", reason=reason)


def _with_waiting(reading: Reading, open_s: float, window_s: float) -> Reading:
    """A meter saw also what its neighbours took to start and to stop: that share of its figure goes into its error.

    An error that a meter does not state stays unknown.
    """
    if open_s - window_s < AT_ONCE_S:
        return reading
    waiting_rel = (open_s - window_s) / open_s
    energy = [
        e
        if e.energy_j is None
        else e.model_copy(update={"error_j": added_error([e.error_j, waiting_rel * e.energy_j])})
        for e in reading.energy
    ]
    return reading.model_copy(update={"energy": energy})


def _of_one_piece(readings: Sequence[Reading]) -> Reading:
    """Meters of one and the same piece, the clock's first: it says how long the piece was."""
    clock = readings[0]
    samplers = [reading.sampler for reading in readings if reading.sampler]
    return clock.model_copy(
        update={
            "energy": [energy for reading in reversed(readings) for energy in reading.energy],
            "cards": {uuid: card for reading in readings for uuid, card in reading.cards.items()},
            "sampler": _samplers(samplers, at_once=True),
        }
    )


def sum_pieces(pieces: Sequence[Reading]) -> Reading:
    """One piece after another: times, energies and their errors add up.

    Args:
        pieces: in the order of time, at least one, none of which overlaps another

    Returns:
        The sum. There are no partial totals: a figure that one piece lacks is null, with that piece's reason.
    """
    cards = dict.fromkeys(uuid for piece in pieces for uuid in piece.cards)
    return Reading(
        wall_s=sum(piece.wall_s for piece in pieces),
        cpu_s=_total([piece.cpu_s for piece in pieces]),
        steal_s=_total([piece.steal_s for piece in pieces]),
        other_cpu_s=_total([piece.other_cpu_s for piece in pieces]),
        suspended_s=_total([piece.suspended_s for piece in pieces]),
        trackers=sorted({tracker for piece in pieces for tracker in piece.trackers}),
        pieces=len(pieces),
        energy=_energies(pieces),
        cards={uuid: _card([piece.cards[uuid] for piece in pieces if uuid in piece.cards]) for uuid in cards},
        sampler=_samplers([piece.sampler for piece in pieces if piece.sampler], at_once=False),
    )


def _not_in_parts(energy: Energy) -> Energy:
    """What a sensor says of a part of its window: nothing, and why."""
    if energy.source == "unavailable":
        return energy
    reason = (
        f"{energy.source}: the script timed its window itself, and this sensor was read at the command's ends alone"
    )
    return _null(energy, source="unavailable", reason=reason)


def _total(figures: Sequence[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None


def _energies(pieces: Sequence[Reading]) -> list[Energy]:
    """Sensor by sensor. A piece that could not be read makes the total unreadable."""
    by_sensor = [{(e.source, e.scope, e.device): e for e in piece.energy} for piece in pieces]
    totals: list[Energy] = []
    for source, scope, device in dict.fromkeys(key for piece in by_sensor for key in piece):
        parts = [piece.get((source, scope, device)) for piece in by_sensor]
        refused = [
            piece.get(("unavailable", scope, device))
            for piece, part in zip(by_sensor, parts, strict=True)
            if part is None
        ]
        total = _energy(parts, next(filter(None, refused), None))
        if all((other.source, other.scope, other.device) != (total.source, scope, device) for other in totals):
            totals.append(total)
    return totals


def _energy(parts: Sequence[Energy | None], refused: Energy | None) -> Energy:
    """One sensor's total over all pieces.

    parts:   its figures, None in a piece in which it has none
    refused: why a piece has no figure of this sensor's device although the sensor was not lost
    """
    present = [part for part in parts if part is not None]
    bounds = [bound for bound in map(_bound, present) if bound is not None]
    seen = [part for part in present if _bound(part) is None] or present
    last = seen[-1]
    lost = next((part for part in seen if part.energy_j is None), None)
    if lost is None and refused is not None:
        return _null(last, source="unavailable", reason=refused.reason)
    if lost is not None or len(present) < len(parts):
        detail = {**(lost or last).detail, AT_MOST: sum(bounds)} if len(bounds) == len(parts) else (lost or last).detail
        return _null(last, reason=(lost and lost.reason) or LOST, detail=detail)
    joules = _total([part.energy_j for part in seen])
    error_j = added_error([*(part.error_j for part in seen), *bounds])  # unseen pieces: anything up to their bound
    return last.model_copy(update={"energy_j": joules, "error_j": error_j, "detail": _details(seen)})


def _null(energy: Energy, **changes: object) -> Energy:
    return energy.model_copy(update={"energy_j": None, "error_j": None, **changes})


def _bound(energy: Energy) -> float | None:
    """Of a piece so short that its sensor did not move: the joules that it cannot have passed."""
    bound = energy.detail.get(AT_MOST) if energy.energy_j is None else None
    return bound if isinstance(bound, float) and 0 <= bound < float("inf") else None


def _details(parts: Sequence[Energy]) -> dict[str, object]:
    """Amounts add up; of what else differs between the pieces each one's is kept, in a list."""
    details: dict[str, object] = {}
    for key in parts[-1].detail:
        values = [part.detail.get(key) for part in parts]
        if key in AMOUNTS:
            details[key] = _total(values)
        else:
            details[key] = values[0] if all(value == values[0] for value in values) else values
    return details


def _card(parts: Sequence[CardState]) -> CardState:
    hottest = [part.temperature_max_c for part in parts if part.temperature_max_c is not None]
    clocks = [part.sm_clock_mhz for part in parts if part.sm_clock_mhz is not None]
    reasons = dict.fromkeys(reason for part in parts for reason in part.throttled_s)
    return CardState(
        temperature_start_c=parts[0].temperature_start_c,
        temperature_end_c=parts[-1].temperature_end_c,
        temperature_max_c=max(hottest, default=None),
        sm_clock_mhz=sum(clocks) / len(clocks) if clocks else None,
        throttled_s={reason: sum(part.throttled_s.get(reason, 0.0) for part in parts) for reason in reasons},
        foreign_pids=sorted({pid for part in parts for pid in part.foreign_pids}),
        mig=any(part.mig for part in parts) or (None if any(part.mig is None for part in parts) else False),
        mps=any(part.mps for part in parts),
    )


def at_once(samplers: Sequence[SamplerState]) -> SamplerState | None:
    """Several samplers of the same time as one: the slowest period, the widest gap, the fewest samples."""
    return _samplers(samplers, at_once=True)


def _samplers(parts: Sequence[SamplerState], *, at_once: bool) -> SamplerState | None:
    """Of several pieces, or of several readers in one piece: the slowest period and the widest gap."""
    if not parts:
        return None
    return SamplerState(
        period_s=max(part.period_s for part in parts),
        samples=min(part.samples for part in parts) if at_once else sum(part.samples for part in parts),
        missed=sum(part.missed for part in parts),
        largest_gap_s=max(part.largest_gap_s for part in parts),
        cpu_s=sum(part.cpu_s for part in parts),
    )
