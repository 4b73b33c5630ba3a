"""The tests that raise flags when records are read: of a trial, a cell, a workload, a run. Codes: flag_codes.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from energybench.flops.unpriced import matrix_operators
from energybench.meter.doubts import doubts, found
from energybench.meter.reading import Reading
from energybench.records.record import CountingRun, Flag, Passes, RunFile, Trial
from energybench.stats.paired import FEWEST_BLOCKS, Paired, differences
from energybench.verdict.card_knobs import cards_before, without_asked_throttling
from energybench.verdict.devices import plural

AA_CHANCE = 0.02  # of striking a run whose plain training repeats itself, over all its workloads
LEDGER_TOLERANCE = 0.001  # plain ledger against counter
DATA_WAIT_LIMIT = 0.05  # of the window
CPU_SHARE = 0.9  # CPU seconds that an undisturbed CPU trial gets per second
WARMER_C = 5.0  # between two trials that are compared
CLOCK_S, CLOCK_REL = 2.0, 0.1  # of a process that its trial's phases do not account for: starting, writing, ending
OUTSIDE_S = 0.1  # and less is what any process does
MOVED_TOLERANCE = 0.02  # of how far weights move, where two equal trainings differ in their last bits
CLIFF = 2.0  # times as much work in each trial before it as in any after it
CLIFF_S = 0.2  # of CPU time, in which less is a matter of caches

Problems = Iterator[tuple[str, str]]  # code, detail


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def check_trial(trial: Trial) -> list[Flag]:
    """The flags of one trial: those it raised itself, then what its record shows; the first of each code.

    Whoever asks for a whole run's trials asks `examination.Examination`, which calls this once for each.
    """
    by_code: dict[str, Flag] = {}
    for code, detail in _trial_problems(trial):
        by_code.setdefault(code, Flag(code=code, detail=detail))
    trial_codes = {flag.code for flag in trial.flags}
    return [*trial.flags, *(flag for code, flag in by_code.items() if code not in trial_codes)]


def _trial_problems(trial: Trial) -> Problems:
    if trial.status == "diverged":
        yield "diverged", trial.reason or ""
    if trial.status == "ok" and trial.process:
        accounted_s = sum(reading.wall_s for reading in trial.phases.values())
        missing_s = trial.process.wall_s - trial.process.rested_s - accounted_s
        if missing_s > CLOCK_S + CLOCK_REL * trial.process.wall_s:
            yield "clock_differs", f"{missing_s:.1f} s of {trial.process.wall_s:.1f} s"
    window, waited_s = trial.train, trial.data_wait_s or 0.0
    if window is None or window.wall_s <= 0:
        return
    yield from found(without_asked_throttling(trial, window), trial.steps)
    if trial.warmup and trial.warmup.settled is False:
        yield "not_settled", f"after {trial.warmup.steps} steps"
    if waited_s > DATA_WAIT_LIMIT * window.wall_s:
        yield "data_wait", f"{_percent(waited_s / window.wall_s)} of the window"
    if trial.device == "cpu" and window.cpu_s is not None:
        share = (window.cpu_s + waited_s) / window.wall_s  # one thread alone, never held up, reaches 1
        if share < CPU_SHARE and "command" not in trial.settings:  # a command may wait for what it likes
            yield "host_contention", f"{share:.2f} CPU seconds per second"


def check_window(window: Reading, steps: int | None = None) -> list[Flag]:
    """What the sensors of one window show, whatever ran in it; the first of each code.

    Args:
        window: what was read of it
        steps: how often what ran in it repeats; None where that is not known
    """
    return [Flag(code=doubt.code, detail=detail) for doubt, detail in doubts(window, steps)]


ALIKE = ("torch", "threads", "metered")  # of a trial's environment
CARDS_ALIKE = ("driver", "power_limit_w", "ecc", "name")


def check_pair(method: Trial, baseline: Trial) -> list[Flag]:
    """What must be alike on both sides: the card's driver and limits, torch, threads, and how warm they began."""
    return [Flag(code=code, detail=detail) for code, detail in (*_unlike(method, baseline), *_warmer(method, baseline))]


def _unlike(method: Trial, baseline: Trial) -> Problems:
    settings = [(key, method.environment.get(key), baseline.environment.get(key)) for key in ALIKE]
    cards, others = map(cards_before, (method, baseline))
    for uuid in [uuid for uuid in cards if uuid in others]:
        settings += [(f"{uuid} {key}", cards[uuid].get(key), others[uuid].get(key)) for key in CARDS_ALIKE]
    for what, of_method, of_baseline in settings:
        if of_method is not None and of_baseline is not None and of_method != of_baseline:
            remedy = "; write a window called 'train' in both scripts, or in neither" if what == "metered" else ""
            yield "unlike", f"{what}: {of_method} against {of_baseline}{remedy}"


def _warmer(method: Trial, baseline: Trial) -> Problems:
    if method.train is None or baseline.train is None:
        return
    for uuid, card in method.train.cards.items():
        other = baseline.train.cards.get(uuid)
        starts_c = [c.temperature_start_c for c in (card, other) if c and c.temperature_start_c is not None]
        if len(starts_c) == 2 and abs(starts_c[0] - starts_c[1]) > WARMER_C:
            yield "temperature", f"{uuid}: {starts_c[0]:.0f} °C against plain training's {starts_c[1]:.0f} °C"


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
    """How the trial's tally differs from that of the counting run with the same seed; None when it does not.

    Another seed may draw other samples, so nothing is compared.
    """
    comparable = counting_run.status == "ok" and trial.seed == counting_run.seed
    if trial.passes is None or counting_run.passes is None or not comparable:
        return None
    metered, counted = _tally(trial.passes), _tally(counting_run.passes)
    for name in dict.fromkeys((*metered, *counted)):
        a, b = metered.get(name, 0), counted.get(name, 0)
        if abs(a - b) > 1e-9 * max(abs(a), abs(b)):
            return f"{name}: {a:g} metered, {b:g} counted"
    return None


def _unpriced_work(counting_run: CountingRun) -> Problems:
    """Operators without a price that may hide products, with their calls in the steps that were counted."""
    calls = counting_run.uncounted_calls
    if counting_run.status == "ok" and (names := matrix_operators(calls)):
        yield "unpriced_work", ", ".join(f"{name} × {calls[name]:,}" for name in names)


def compare_weights(trial: Trial, counting_run: CountingRun, exact: bool) -> str | None:
    """How the trial's samples or weights differ from those of the counting run with the same seed; None where not.

    exact: plain training ended with the same bits in both; then a method does, unless it is compiled, which the
           counting run is not. Else how far the weights have moved is compared, to MOVED_TOLERANCE.
    """
    if counting_run.status != "ok" or trial.status != "ok" or trial.seed != counting_run.seed:
        return None
    both = (trial.weights_sha256, counting_run.weights_sha256)
    if exact and not trial.environment.get("compiled") and None not in both:
        samples = (trial.samples_sha256, counting_run.samples_sha256)
        if None not in samples and samples[0] != samples[1]:
            return "other samples went forward, or in another order"
        return None if both[0] == both[1] else "the weights at the end differ"
    a, b = trial.weights_moved, counting_run.weights_moved
    if a is None or b is None or abs(a - b) <= MOVED_TOLERANCE * max(a, b):
        return None
    return f"the weights at the end differ: they moved by {a:.4g} metered, {b:.4g} counted"


def reproducible(trials: Iterable[Trial], counting_run: CountingRun | None) -> bool:
    """Whether plain training ended with the same bits in a trial and in its counting run."""
    if counting_run is None or counting_run.weights_sha256 is None:
        return False
    return any(t.seed == counting_run.seed and t.weights_sha256 == counting_run.weights_sha256 for t in trials)


def check_outside(
    extras: Mapping[str, Sequence[tuple[float, float]]], margin: float, devices: Sequence[str] | None = None
) -> list[Flag]:
    """Work outside the window beyond plain training's: where the whole 95 % interval lies beyond the margin.

    Args:
        extras: what → of each block (seconds, as a share of plain training's window)
        margin: of the saving
        devices: of each block, where several are counted
    """
    beyond = []
    for what, blocks in extras.items():
        seconds, shares = ([each[place] for each in blocks] for place in (0, 1))
        extra = differences(shares, [0.0] * len(shares), devices=devices)
        if extra.n < FEWEST_BLOCKS or sum(seconds) / len(seconds) < OUTSIDE_S:
            continue
        if extra.interval()[0] > margin:
            beyond.append(f"{what}: {sum(seconds) / len(seconds):.2g} s, {_percent(extra.mean)} of the window")
    return [Flag(code="outside_work", detail="; ".join(beyond))] if beyond else []


def _unpriced(trials: Sequence[Trial], counting_run: CountingRun) -> list[str]:
    """Kinds of steps that a trial took and the counting run never counted."""
    if counting_run.status != "ok":
        return []
    return sorted({key for t in trials if t.passes for key in t.passes.keys} - set(counting_run.keys))


def _gap_explained(trials: Sequence[Trial]) -> str:
    """The methods' own explanation of a gap, if they have one."""
    layers = [layer for trial in trials for layer in trial.diagnostics.values() if isinstance(layer, dict)]
    reasons = dict.fromkeys(str(layer["gap_because"]) for layer in layers if layer.get("gap_because"))
    return f": {'; '.join(reasons)}" if reasons else ""


def check_cell(
    *,
    blocks: int,
    unit: str = "block",
    trials: Sequence[Trial] = (),
    counting_run: CountingRun | None = None,
    gap_rel: float | None = None,
    counted_rel: float | None = None,
    estimate_gap: float | None = None,
    control_differs: str | None = None,
    sensor_error_rel: float | None = None,
    known_error_rel: float | None = None,
    margin: float | None = None,
    exact: bool = False,
    same_weights: int = 0,
    counted_error_rel: float = 0.0,
) -> list[Flag]:
    """What shows only when a cell's trials lie side by side. Where an argument is None its check is left out.

    Args:
        blocks: how many were paired; of devices, where those are counted
        unit: what they are
        trials: of the cell, those that are compared
        counting_run: of the cell
        gap_rel: between the savings of FLOPs that were estimated and counted, of the same training, as fractions
        counted_rel: what was counted
        estimate_gap: what gap_rel may be
        control_differs: how what its matched control trained is another budget than the method's
        sensor_error_rel: the widest error of a trial's sensors, of its energy; None where a part of it is not known
        known_error_rel: the same of those parts that are known: the error is at least as wide
        margin: of the saving
        exact: whether plain training ended with the same bits in a trial and in its counting run
        same_weights: blocks in which the method ended with plain training's very weights
        counted_error_rel: of counted_rel
    """
    problems: list[tuple[str, str]] = []
    if counting_run:
        differing = (
            compare_passes(trial, counting_run) or compare_weights(trial, counting_run, exact) for trial in trials
        )
        differs = next(filter(None, differing), None)
        problems += [("witness_differs", differs)] if differs else []
        kinds = ", ".join(f"'{name}'" for name in _unpriced(trials, counting_run))
        problems += [("uncounted_steps", kinds)] if kinds else []
        problems += _unpriced_work(counting_run)
    if gap_rel is not None and estimate_gap is not None and gap_rel > estimate_gap:
        problems.append(("estimate_gap", f"{100 * gap_rel:.1f} pp apart{_gap_explained(trials)}"))
    if same_weights and counted_rel is not None and margin is not None and counted_rel - counted_error_rel > margin:
        fewer = f"{_percent(counted_rel)} fewer FLOPs counted"
        problems.append(("same_weights", f"in {same_weights} block{'s' * (same_weights != 1)}, {fewer}"))
    if blocks < FEWEST_BLOCKS:
        problems.append(("too_few_blocks", f"{blocks} {unit if blocks == 1 else plural(unit)}"))
    if margin is not None:
        problems += _sensor_error(sensor_error_rel, known_error_rel, margin)
    if control_differs is not None:
        problems.append(("control_differs", control_differs))
    return [Flag(code=code, detail=detail) for code, detail in problems]


def _sensor_error(error_rel: float | None, known_rel: float | None, margin: float) -> Problems:
    """An error that is not wholly known is still too wide where its known parts are."""
    if error_rel is not None and error_rel > margin:
        yield "sensor_error", f"±{_percent(error_rel)}"
    elif error_rel is None and known_rel is not None and known_rel > margin:
        yield "sensor_error", f"{_percent(known_rel)} or more: not every sensor says how far off it may be"


def aa_confidence(workloads: int) -> float:
    """Of each A/A comparison's interval, so that a run of so many errs at most AA_CHANCE of the time."""
    return 1 - AA_CHANCE / max(workloads, 1)


def aa_fails(twin: Paired, margin: float, workloads: int = 1) -> bool:
    """Whether plain training differs from itself: the whole interval lies beyond ±margin.

    workloads: that are compared with themselves in the run, each of which may err with its share of AA_CHANCE
    """
    low, high = twin.saving_interval(aa_confidence(workloads))
    return twin.n >= FEWEST_BLOCKS and (low > margin or high < margin / (margin - 1))


def check_workload(
    *,
    twin: Paired | None,
    margin: float,
    plain_flop: float | None = None,
    counted_flop: float | None = None,
    counted_error_flop: float = 0.0,
    not_in_ledger: Iterable[str] = (),
    mixed: str = "",
    workloads: int = 1,
) -> list[Flag]:
    """The machine against itself: the A/A comparison, and plain training's ledger against the counter.

    not_in_ledger: operators that may hide products and of which the ledger has no FLOPs
    mixed:         why the devices that the blocks ran on are not pooled; empty where they are, or where it was one
    workloads:     of the run, that are compared with themselves
    """
    problems: list[tuple[str, str]] = [("devices_mixed", mixed)] if mixed else []
    if twin is not None and aa_fails(twin, margin, workloads):
        confidence = aa_confidence(workloads)
        low, high = twin.saving_interval(confidence)
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
        problems.append(("aa_failed", f"{_percent(twin.saving)} {interval} at {100 * confidence:.4g} %"))
    if plain_flop and counted_flop:
        apart = abs(plain_flop - counted_flop)
        if apart > LEDGER_TOLERANCE * counted_flop + counted_error_flop:
            lacking = ", ".join(not_in_ledger)
            why = f"; the ledger has no formula for {lacking}" if lacking else ""
            problems.append(("ledger_differs", f"{100 * apart / counted_flop:.2f} % apart{why}"))
    return [Flag(code=code, detail=detail) for code, detail in problems]


def check_cliff(trials: Iterable[Trial]) -> list[Flag]:
    """Commands whose later trials did less than half of the earlier ones' work, as those that go on from a checkpoint.

    Args:
        trials: of one workload, in any order; the plain command and its twin are one and the same
    """
    alike: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.invocation, trial.block, trial.position)):
        if trial.status == "ok" and "command" in trial.settings:
            name = "the plain command" if trial.role in ("baseline", "twin") else f"'{trial.method}'"
            alike.setdefault(name, []).append(trial)
    found = []
    for name, of_it in alike.items():
        whole = [trial.phases.get("command", trial.train) for trial in of_it]
        cpu_s = [reading.cpu_s if reading else None for reading in whole]
        for what, figures, least in (("steps", [trial.steps for trial in of_it], 0.0), ("CPU seconds", cpu_s, CLIFF_S)):
            if fall := _fall([None if figure is None else float(figure) for figure in figures], least):
                found.append(f"{name}: from {fall[0]:.3g} to {fall[1]:.3g} {what}")
    return [Flag(code="cliff", detail="; ".join(found))] if found else []


def _fall(figures: Sequence[float | None], least: float) -> tuple[float, float] | None:
    """(the least before, the most after) at a place where all before is CLIFF times all after; None for no such place.

    least: a smaller difference is none
    """
    known = [figure for figure in figures if figure is not None]
    if len(known) < len(figures):
        return None
    before = accumulate(known, min)
    after = [*accumulate(reversed(known), max)][::-1]
    for least_before, most_after in zip(before, after[1:], strict=False):
        if least_before > CLIFF * most_after and least_before - most_after > least:
            return least_before, most_after
    return None


def check_run(run: RunFile, trials: Iterable[Trial]) -> list[Flag]:
    """What holds for the whole run: a smoke test, a machine without sensors."""
    raised = [Flag(code="quick")] if "quick" in run.stamp else []
    windows = [trial.train for trial in trials if trial.train is not None]
    blind = [window for window in windows if not any(energy.measured for energy in window.energy)]
    if blind:
        models = sorted({e.source for window in blind for e in window.energy if e.energy_j is not None})
        raised.append(Flag(code="modelled_energy", detail=", ".join(models) or "no figure at all"))
    return raised
