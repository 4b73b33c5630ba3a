"""RAPL's domains: which of the counters that a machine lists are real, and which are one and the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from energybench.meter.clock import Time
from energybench.meter.unavailable import Unavailable, UnavailableKind, explain

POWER_MAX_W = 1000.0  # of a domain that states no rating
PROBE_S, PROBE_STEP_S, PROBE_MOVES = 0.1, 0.0005, 11  # a real counter moves about every millisecond
READ_ERRORS = (OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Domain:
    """One counter. `read` returns its count; it raises OSError or ValueError."""

    way: str  # powercap | perf_events
    scope: str  # cpu | dram
    device: str  # "package-0", "package-0/dram"
    read: Callable[[], int]
    joules_per_count: float
    remedies: Mapping[UnavailableKind, str]  # for when it cannot be read
    range_counts: int | None = None  # None: too wide to wrap
    power_max_w: float = POWER_MAX_W
    update_s: float = 0.0  # time between two moves of the counter, as seen when it was opened
    mirrors: tuple[str, ...] = ()  # other names of the same counter

    @property
    def range_j(self) -> float | None:
        return None if self.range_counts is None else self.range_counts * self.joules_per_count


UsableDomains = tuple[list[Domain], dict[str, Unavailable]]  # and device → why it is left out


def usable(domains: Sequence[Domain], refused: Mapping[str, Unavailable], time: Time) -> UsableDomains:
    """Every device once, the first that works of those with its name.

    Args:
        domains: candidates, preferred ones first
        refused: device → why a counter of that name is out already
        time: the clock of the probe, which takes up to 0.1 s

    Returns:
        The domains to add up, and device → why it is left out.

    Raises:
        Unavailable: if a package cannot be read: the others would be a part of the whole
    """
    chosen: dict[str, Domain] = {}
    left_out = dict(refused)
    for domain, update_s in zip(domains, _probe(domains, time), strict=True):
        if isinstance(update_s, Unavailable):
            left_out.setdefault(domain.device, update_s)
        else:
            chosen.setdefault(domain.device, replace(domain, update_s=update_s))
    left_out = {device: unavailable for device, unavailable in left_out.items() if device not in chosen}
    for device, unavailable in left_out.items():
        if not device.endswith("/dram"):
            raise unavailable
    return _distinct(list(chosen.values()), time), left_out


def _probe(domains: Sequence[Domain], time: Time) -> list[float | Unavailable]:
    """Of each counter the seconds between two of its moves, or why it is none."""
    started_ns = time.now_ns()
    moves: list[list[int]] = [[] for _ in domains]
    last: list[int | None] = [None] * len(domains)
    failed: dict[int, Unavailable] = {}
    while time.now_ns() - started_ns < PROBE_S * 1e9:
        for i, domain in enumerate(domains):
            if i in failed:
                continue
            try:
                count = domain.read()
            except READ_ERRORS as error:
                failed[i] = explain(error, domain.device, domain.remedies)
                continue
            if last[i] not in (None, count):
                moves[i].append(time.now_ns())
            last[i] = count
        if all(i in failed or len(seen) >= PROBE_MOVES for i, seen in enumerate(moves)):
            break
        time.sleep(PROBE_STEP_S)
    return [failed[i] if i in failed else _update_interval(domain, moves[i]) for i, domain in enumerate(domains)]


def _update_interval(domain: Domain, moves_ns: list[int]) -> float | Unavailable:
    if not moves_ns:  # no machine draws 0 W
        reason = f"{domain.device} is listed, but its counter stood still for {PROBE_S * 1e3:g} ms"
        return Unavailable(reason, "unsupported", domain.remedies["unsupported"])
    return (moves_ns[-1] - moves_ns[0]) / (len(moves_ns) - 1) / 1e9 if len(moves_ns) > 1 else PROBE_S


def _distinct(domains: Sequence[Domain], time: Time) -> list[Domain]:
    """Dies of one package (package-0-die-0, package-0-die-1) that mirror each other become one domain."""
    distinct: list[Domain] = []
    for domain in domains:
        for i, other in enumerate(distinct):
            if _package(domain) == _package(other) and _mirrored(other, domain, time):
                distinct[i] = replace(other, mirrors=(*other.mirrors, domain.device))
                break
        else:
            distinct.append(domain)
    return distinct


def _package(domain: Domain) -> tuple[str, str]:
    return domain.scope, domain.device.partition("/")[0].partition("-die-")[0]


def _mirrored(one: Domain, other: Domain, time: Time) -> bool:
    """Whether the count of `other` lies between two readings of `one` around it, and again after they have moved."""
    if one.range_counts is None or one.range_counts != other.range_counts:
        return False
    for _ in range(2):
        try:
            before, between, after = one.read(), other.read(), one.read()
        except READ_ERRORS as error:
            raise explain(error, one.device, one.remedies) from None
        if (between - before) % one.range_counts > (after - before) % one.range_counts:
            return False
        time.sleep(10 * max(one.update_s, other.update_s))
    return True
