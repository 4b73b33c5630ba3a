"""RAPL's domains: which of the counters that a machine lists are real, and which are one and the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from energybench.meter.clock import Time
from energybench.meter.plausible import PowerLimit
from energybench.meter.power_limits import UNSTATED
from energybench.meter.unavailable import Unavailable, UnavailableKind, explain

PROBE_S, PROBE_STEP_S, PROBE_MOVES = 0.1, 0.0005, 11  # a real counter moves about every millisecond
MIRROR_MOVES, MIRROR_LOOKS = 12, 48  # agreements that make one counter of two, and how often they are looked for
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
    range_counts: int | None = None  # None: too wide to wrap; such a count begins when it is opened
    limit: PowerLimit = UNSTATED["cpu"]  # when it was opened
    limit_now: Callable[[], PowerLimit] | None = None  # limits may be written while they are in force
    update_s: float = 0.0  # time between two moves of the counter, as seen when it was opened
    opening_w: float = 0.0  # what it drew meanwhile
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
    for probed in _probe(domains, time):
        if isinstance(probed, Domain):
            chosen.setdefault(probed.device, probed)
        else:
            left_out.setdefault(*probed)
    left_out = {device: unavailable for device, unavailable in left_out.items() if device not in chosen}
    for device, unavailable in left_out.items():
        if not device.endswith("/dram"):
            raise unavailable
    distinct, copies = _distinct(list(chosen.values()), time)
    left_out |= copies
    return distinct, left_out | _without_memory(distinct, left_out)


def _without_memory(domains: Sequence[Domain], left_out: Mapping[str, Unavailable]) -> dict[str, Unavailable]:
    """Packages that list no counter of their memory beside others that do: the others' are a part of the whole."""
    known = {name for domain in domains for name in (domain.device, *domain.mirrors)} | set(left_out)
    if not any(name.endswith("/dram") for name in known):
        return {}
    return {
        f"{domain.device}/dram": Unavailable(
            f"{domain.device} lists no counter of its memory, and another package does",
            "unsupported",
            domain.remedies["unsupported"],
        )
        for domain in domains
        if domain.scope == "cpu" and not {f"{name}/dram" for name in (domain.device, *domain.mirrors)} & known
    }


def _probe(domains: Sequence[Domain], time: Time) -> list[Domain | tuple[str, Unavailable]]:
    """Each of them with the seconds between two of its moves and what it draws; or (device, why it is no counter)."""
    started_ns = time.now_ns()
    moves: list[list[tuple[int, int]]] = [[] for _ in domains]  # (when, count)
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
                moves[i].append((time.now_ns(), count))
            last[i] = count
        if all(i in failed or len(seen) >= PROBE_MOVES for i, seen in enumerate(moves)):
            break
        time.sleep(PROBE_STEP_S)
    return [
        (domain.device, failed[i]) if i in failed else _moving(domain, moves[i]) for i, domain in enumerate(domains)
    ]


def _moving(domain: Domain, moves: Sequence[tuple[int, int]]) -> Domain | tuple[str, Unavailable]:
    if not moves:  # no machine draws 0 W
        reason = f"{domain.device} is listed, but its counter stood still for {PROBE_S * 1e3:g} ms"
        return domain.device, Unavailable(reason, "unsupported", domain.remedies["unsupported"])
    if len(moves) == 1:
        return replace(domain, update_s=PROBE_S)
    (began_ns, first), (ended_ns, last) = moves[0], moves[-1]
    seconds = (ended_ns - began_ns) / 1e9
    opening_w = max(0, last - first) * domain.joules_per_count / seconds  # 0 after a wrap: it is not known then
    return replace(domain, update_s=seconds / (len(moves) - 1), opening_w=opening_w)


def _distinct(domains: Sequence[Domain], time: Time) -> UsableDomains:
    """Names of one counter become one domain: dies of a package, and packages of some boards, mirror each other.

    A memory that mirrors a package has no counter: it is left out.
    """
    distinct: list[Domain] = []
    copies: dict[str, Unavailable] = {}
    for domain in sorted(domains, key=lambda domain: domain.scope):  # cpu before dram
        for i, other in enumerate(distinct):
            if not _mirrored(other, domain, time):
                continue
            if other.scope == domain.scope:
                distinct[i] = replace(other, mirrors=(*other.mirrors, domain.device))
            else:
                reason = f"{domain.device} is listed, but its counter is that of {other.device}"
                copies[domain.device] = Unavailable(reason, "unsupported", domain.remedies["unsupported"])
            break
        else:
            distinct.append(domain)
    return distinct, copies


def _mirrored(one: Domain, other: Domain, time: Time) -> bool:
    """Whether two names are one counter: at every look either's count lies between two readings of the other.

    Counters of their own part, however alike their parts are: counts since the machine was started differ by more than
    what is drawn between two readings, and where they cross they do so for a moment. Those that begin when they are
    opened must keep their distance to the last digit while both move on.
    """
    if one.range_counts != other.range_counts or one.joules_per_count != other.joules_per_count:
        return False
    agreed: set[int] = set()  # counts of `one` at which both agreed while neither moved
    distance: int | None = None if one.range_counts is None else 0
    for look in range(MIRROR_LOOKS):
        try:
            first, second, third, fourth = one.read(), other.read(), one.read(), other.read()
        except READ_ERRORS as error:
            raise explain(error, f"{one.device} or {other.device}", one.remedies) from None
        if one.range_counts is not None:
            size = one.range_counts + 1
            if (second - first) % size > (third - first) % size or (third - second) % size > (fourth - second) % size:
                return False
        if (first, second) == (third, fourth):
            distance = second - first if distance is None else distance
            if second - first != distance:
                return False
            agreed.add(first)
            if len(agreed) == MIRROR_MOVES:
                return True
        time.sleep((3 + 0.618 * look % 1) * max(one.update_s, other.update_s))  # never twice in the same phase
    return one.range_counts is not None  # they move whenever they are read, and together
