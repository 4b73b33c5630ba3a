"""The tests that raise flags when records are read: of a trial, a cell, a workload, a run. Codes: flag_codes.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from energybench.meter.reading import Reading
from energybench.records.record import CountingRun, Flag, Passes, RunFile, Trial
from energybench.stats.paired import FEWEST_BLOCKS, Paired

LEDGER_TOLERANCE = 0.001  # plain ledger against counter
DATA_WAIT_LIMIT = 0.05  # of the window
CPU_SHARE = 0.9  # CPU seconds that an undisturbed CPU trial gets per second
STEAL_LIMIT = 0.01  # CPU seconds that the host took away, per second of the window
THROTTLE_LIMIT = 0.01  # of the window
CHANNELS_APART, CHANNELS_CONTRADICT = 0.05, 0.15  # counter against power integral
FEWEST_TICKS = 50  # of a sensor, in a window that may get a verdict
ALIASING_PERIODS_S = (0.05, 0.1, 0.15)  # of power sensors that look at a part of the time only
ALIASING_WITHIN = 0.1  # of such a period
OVERHEAD_LIMIT = 0.01  # of one core, by the reader in the background
MISSED_LIMIT = 0.1  # of its reads
WARMER_C = 5.0  # between two trials that are compared
EPOCH_TOLERANCE = 0.5  # epochs between a method and its control: a control trains whole epochs


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def check_trial(trial: Trial) -> list[Flag]:
    """The trial's own flags, then what its record shows."""
    found = list(trial.flags)

    def raise_(code: str, detail: str) -> None:
        if all(flag.code != code for flag in found):
            found.append(Flag(code=code, detail=detail))

    if trial.status == "diverged":
        raise_("diverged", trial.reason or "")
    window, waited = trial.train, trial.data_wait_s or 0.0
    if window is None or window.wall_s <= 0:
        return found
    for flag in check_window(window, trial.steps):
        raise_(flag.code, flag.detail)
    if trial.warmup and trial.warmup.settled is False:
        raise_("not_settled", f"after {trial.warmup.steps} steps")
    if waited > DATA_WAIT_LIMIT * window.wall_s:
        raise_("data_wait", f"{_percent(waited / window.wall_s)} of the window")
    if trial.device == "cpu" and window.cpu_s is not None:
        share = (window.cpu_s + waited) / window.wall_s  # one thread alone, never held up, reaches 1
        if share < CPU_SHARE and "command" not in trial.settings:  # a command may wait for what it likes
            raise_("host_contention", f"{share:.2f} CPU seconds per second")
    if window.steal_s is not None and window.steal_s > STEAL_LIMIT * window.wall_s:
        raise_("host_contention", f"the host took {_percent(window.steal_s / window.wall_s)} of a core away")
    return found


def check_window(window: Reading, steps: int | None = None) -> list[Flag]:
    """What the sensors of one window show, whatever ran in it; the first of each code. steps: how often it repeats."""
    lost = [
        ("sensor_lost", f"{energy.source} {energy.scope}: {energy.reason or 'no reason given'}")
        for energy in window.energy
        if energy.lost
    ]
    found: dict[str, Flag] = {}
    for code, detail in (*lost, *_sensor_problems(window, steps), *_card_problems(window), *_harness_problems(window)):
        found.setdefault(code, Flag(code=code, detail=detail))
    return list(found.values())


Found = Iterator[tuple[str, str]]  # code, detail


def _sensor_problems(window: Reading, steps: int | None) -> Found:
    """Short windows, aliasing, and two channels of one card that disagree."""
    piece_s = window.wall_s / max(1, window.pieces)
    measured = [energy for energy in window.energy if energy.measured]
    counted = {energy.device for energy in measured if energy.source == "gpu_counter"}
    for energy in measured:
        if energy.source == "gpu_power_integral" and energy.device in counted:
            continue  # it only checks the counter, whose ticks decide
        ticks = energy.detail.get("tick_s", energy.detail.get("period_s"))
        tick_s = max(ticks) if isinstance(ticks, list) else ticks
        if tick_s and piece_s < FEWEST_TICKS * tick_s:
            yield "window_short", f"{energy.source}: {piece_s:.2f} s at a tick of {tick_s:.3f} s"
    on_cards = [energy for energy in measured if energy.source in ("gpu_counter", "gpu_power_integral")]
    step_s = window.wall_s / steps if steps else 0.0
    period_s = min(ALIASING_PERIODS_S, key=lambda period: abs(step_s / period - 1))
    if on_cards and abs(step_s / period_s - 1) <= ALIASING_WITHIN:
        yield "aliasing", f"{1e3 * step_s:.1f} ms a step, {1e3 * period_s:.0f} ms a period"
    for counter in on_cards:
        for integral in on_cards:
            pair = (counter.source, integral.source) == ("gpu_counter", "gpu_power_integral")
            if pair and counter.device == integral.device and counter.energy_j and integral.energy_j is not None:
                apart = abs(integral.energy_j / counter.energy_j - 1)
                code = "channels_contradict" if apart > CHANNELS_CONTRADICT else "channels_apart"
                if apart > CHANNELS_APART:
                    yield code, f"{counter.device}: {_percent(apart)}"


def _card_problems(window: Reading) -> Found:
    for uuid, card in window.cards.items():
        if card.mig:
            yield "mig", uuid
        if card.mps:
            yield "mps", uuid
        if card.foreign_pids:
            yield "foreign_process", f"{uuid}: process {', '.join(map(str, card.foreign_pids))}"
        for reason, seconds in card.throttled_s.items():
            if seconds > THROTTLE_LIMIT * window.wall_s:
                yield "throttled", f"{uuid}: {reason}, {_percent(seconds / window.wall_s)} of the window"


def _harness_problems(window: Reading) -> Found:
    sampler = window.sampler
    if sampler and sampler.cpu_s > OVERHEAD_LIMIT * window.wall_s:
        yield "harness_overhead", f"{_percent(sampler.cpu_s / window.wall_s)} of a core"
    if sampler and sampler.missed > MISSED_LIMIT * sampler.samples:
        yield "reads_missed", f"{sampler.missed} of {sampler.samples}"


def check_pair(ours: Trial, plain: Trial) -> list[Flag]:
    """What must be alike on both sides: the card's driver and limits, torch, threads, and how warm they began."""
    found: list[Flag] = []

    def differs(what: str, a: Any, b: Any) -> None:
        if a is not None and b is not None and a != b:
            found.append(Flag(code="unlike", detail=f"{what}: {a} against {b}"))

    for key in ("torch", "threads", "metered"):
        differs(key, ours.environment.get(key), plain.environment.get(key))
    cards, others = (t.environment.get("gpus") or {} for t in (ours, plain))
    for uuid in [uuid for uuid in cards if uuid in others]:
        for key in ("driver", "power_limit_w", "ecc", "name"):
            differs(f"{uuid} {key}", cards[uuid].get(key), others[uuid].get(key))
    if ours.train and plain.train:
        for uuid, card in ours.train.cards.items():
            other = plain.train.cards.get(uuid)
            heat = [c.temperature_start_c for c in (card, other) if c and c.temperature_start_c is not None]
            if len(heat) == 2 and abs(heat[0] - heat[1]) > WARMER_C:
                detail = f"{uuid}: {heat[0]:.0f} °C against plain training's {heat[1]:.0f} °C"
                found.append(Flag(code="temperature", detail=detail))
    return found


def _tally(passes: Passes) -> dict[str, float]:
    counts: dict[str, float] = {
        "forward passes": passes.forwards,
        "backward passes": passes.backwards,
        "updates": passes.updates,
        "samples": passes.samples_forward,
        "epochs trained": passes.epochs_trained,
    }
    for key, tally in passes.keys.items():
        counts |= {f"{name} of kind '{key}'": count for name, count in tally.items()}
    return counts


def compare_passes(trial: Trial, counting_run: CountingRun) -> str | None:
    """How the trial's tally differs from that of the witness with the same seed; None when it does not.

    Another seed may draw other samples, so nothing is compared.
    """
    if (
        trial.passes is None
        or counting_run.passes is None
        or counting_run.status != "ok"
        or trial.seed != counting_run.seed
    ):
        return None
    ours, theirs = _tally(trial.passes), _tally(counting_run.passes)
    for name in (*ours, *(name for name in theirs if name not in ours)):
        a, b = ours.get(name, 0), theirs.get(name, 0)
        if abs(a - b) > 1e-9 * max(abs(a), abs(b)):
            return f"{name}: {a:g} metered, {b:g} counted"
    return None


def _unpriced(trials: Sequence[Trial], counting_run: CountingRun) -> list[str]:
    """Kinds of steps that a trial took and the witness never counted."""
    if counting_run.status != "ok":
        return []
    return sorted({key for t in trials if t.passes for key in t.passes.keys} - set(counting_run.keys))


def _gap_because(trials: Sequence[Trial]) -> str:
    """The methods' own explanation, if they have one."""
    told = [found.get("gap_because") for t in trials for found in t.diagnostics.values() if isinstance(found, dict)]
    reasons = dict.fromkeys(str(reason) for reason in told if reason)
    return f": {'; '.join(reasons)}" if reasons else ""


def check_cell(
    *,
    blocks: int,
    trials: Sequence[Trial] = (),
    counting_run: CountingRun | None = None,
    estimated_rel: float | None = None,
    counted_rel: float | None = None,
    estimate_gap: float | None = None,
    epochs_kept: float | None = None,
    epochs_control: float | None = None,
    sensor_error_rel: float | None = None,
    margin: float | None = None,
) -> list[Flag]:
    """What shows only when a cell's trials lie side by side. Figures are savings; `blocks` were paired."""
    found: list[Flag] = []
    differs = [compare_passes(trial, counting_run) for trial in trials] if counting_run else []
    if any(differs):
        found.append(Flag(code="witness_differs", detail=next(filter(None, differs))))
    if counting_run and (kinds := _unpriced(trials, counting_run)):
        found.append(Flag(code="uncounted_steps", detail=", ".join(f"'{name}'" for name in kinds)))
    if estimated_rel is not None and counted_rel is not None and estimate_gap is not None:
        gap = abs(estimated_rel - counted_rel)
        if gap > estimate_gap:
            found.append(Flag(code="estimate_gap", detail=f"{100 * gap:.1f} pp apart{_gap_because(trials)}"))
    if blocks < FEWEST_BLOCKS:
        found.append(Flag(code="too_few_blocks", detail=f"{blocks} block{'s' * (blocks != 1)}"))
    if sensor_error_rel is not None and margin is not None and sensor_error_rel > margin:
        found.append(Flag(code="sensor_error", detail=f"±{_percent(sensor_error_rel)}"))
    if epochs_kept is not None and epochs_control is not None:
        apart = abs(epochs_kept - epochs_control)
        if apart > EPOCH_TOLERANCE:
            found.append(
                Flag(code="control_differs", detail=f"{epochs_kept:g} epochs kept, {epochs_control:g} trained")
            )
    return found


def aa_fails(twin: Paired, margin: float) -> bool:
    """Whether plain training differs from itself: the whole 95 % interval lies beyond ±noise."""
    low, high = twin.saving_interval()
    return twin.n >= FEWEST_BLOCKS and (low > margin or high < margin / (margin - 1))


def check_workload(
    *,
    twin: Paired | None,
    margin: float,
    plain_flop: float | None = None,
    counted_flop: float | None = None,
    counted_error_flop: float = 0.0,
    devices: Iterable[str] = (),
) -> list[Flag]:
    """The harness against itself: the A/A comparison, and plain training's ledger against the counter."""
    found: list[Flag] = []
    if len(set(devices)) > 1:
        found.append(Flag(code="devices_mixed", detail=", ".join(sorted(set(devices)))))
    if twin is not None and aa_fails(twin, margin):
        low, high = twin.saving_interval()
        detail = f"{_percent(twin.saving)} [{100 * low:.1f}, {100 * high:.1f}]"
        found.append(Flag(code="aa_failed", detail=detail))
    if plain_flop and counted_flop:
        apart = abs(plain_flop - counted_flop)
        if apart > LEDGER_TOLERANCE * counted_flop + counted_error_flop:
            found.append(Flag(code="ledger_differs", detail=f"{100 * apart / counted_flop:.2f} % apart"))
    return found


def check_run(run: RunFile, trials: Iterable[Trial]) -> list[Flag]:
    """What holds for the whole run: a smoke test, a machine without sensors."""
    found: list[Flag] = []
    if "quick" in run.stamp:
        found.append(Flag(code="quick"))
    windows = [trial.train for trial in trials if trial.train is not None]
    blind = [window for window in windows if not any(energy.measured for energy in window.energy)]
    if blind:
        models = sorted({e.source for window in blind for e in window.energy if e.energy_j is not None})
        found.append(Flag(code="modelled_energy", detail=", ".join(models) or "no figure at all"))
    return found
