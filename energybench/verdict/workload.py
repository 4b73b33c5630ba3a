"""One workload: methods held against plain training, block by block, and what each comparison is worth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from energybench.flops.work import BACKWARD
from energybench.records.record import Claim, CountingRun, Estimate, Flag, RunFile, Trial
from energybench.stats import paired
from energybench.suite.command_tables import written
from energybench.verdict import flag_codes, flags, interim_notes, pairing, wording
from energybench.verdict.figures import (
    Accept,
    Baseline,
    Control,
    Measured,
    Phase,
    Quality,
    Raised,
    Roofline,
    Row,
    Workload,
)
from energybench.verdict.interim import Look
from energybench.verdict.pairing import Pair
from energybench.verdict.target import to_target

OUTSIDE = "the command runs outside energybench's loop and reports no FLOPs of its own"
# Of a profiling run, in the order of a step; "own" is method_overhead in records of before.
PHASES = ("forward", "backward", "update", "data", "method_overhead", "own", "loop")


def raised(found: Iterable[Flag], where: str) -> tuple[Raised, ...]:
    """One entry per code, its first detail standing for all."""
    first: dict[str, Flag] = {}
    for flag in found:
        first.setdefault(flag.code, flag)
    kinds = ((flag_codes.kind(code), flag) for code, flag in first.items())
    return tuple(Raised(kind.code, kind.severity, kind.sentence, flag.detail, where) for kind, flag in kinds)


def _quality(found: Sequence[Pair], accept: Accept, alpha_fraction: float) -> tuple[Quality | None, paired.Mean | None]:
    metric = accept.metric or _metric(pair.plain for pair in found)
    if metric is None:
        return None, None
    both = [(pair.ours.quality.get(metric), pair.plain.quality.get(metric)) for pair in found]
    known = [(a, b) for a, b in both if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)]
    if not known:
        return None, None
    ours, plain = [a for a, _ in known], [b for _, b in known]
    higher = pairing.higher_is_better(metric)
    sign = 1 if higher else -1
    difference = paired.differences(ours, plain, higher, alpha_fraction)
    bound = sign * difference.lower(paired.QUALITY) if difference.df > 0 else None
    limit = None if accept.loses_at_most is None else -sign * accept.loses_at_most
    fraction = higher and all(0 <= value <= 1 for value in (*ours, *plain))
    mean_ours, mean_plain = math.fsum(ours) / len(ours), math.fsum(plain) / len(plain)
    sd = difference.sd if difference.df > 0 else None
    quality = Quality(metric, mean_plain, mean_ours, sign * difference.mean, bound, limit, fraction, sd, len(known))
    return quality, difference if len(known) == len(found) else None  # a block without quality proves nothing


def _metric(trials: Iterable[Trial]) -> str | None:
    names = sorted({name for trial in trials for name in trial.quality})
    return "accuracy" if "accuracy" in names else next(iter(names), None)


def _claim(claim: Claim | None, trials: Sequence[Trial], counting_run: CountingRun | None) -> float | None:
    """A claim on the backward pass is worth its share of plain training's FLOPs."""
    if claim is None or claim.of == "training":
        return None if claim is None else claim.saving_rel
    estimates = [t.estimate for t in trials if t.estimate] + (
        [counting_run.estimate] if counting_run and counting_run.estimate else []
    )
    phases = estimates[0].plain_by_phase if estimates else {}
    total = math.fsum(phases.values())
    backward = math.fsum(flop for phase, flop in phases.items() if phase in BACKWARD)
    return claim.saving_rel * backward / total if total > 0 else None


def _roofline(estimates: Sequence[Estimate]) -> Roofline | None:
    """Means over trials: a machine is timed anew by each invocation."""
    known = [
        (e.balance_flop_b, e.memory_bound_rel, e.roofline_saved_rel)
        for e in estimates
        if e.balance_flop_b and e.memory_bound_rel is not None and e.roofline_saved_rel is not None
    ]
    if not known:
        return None
    return Roofline(*(math.fsum(figures) / len(known) for figures in zip(*known, strict=True)))


def _phases(counting_run: CountingRun | None) -> tuple[Phase, ...]:
    profiling_run = counting_run.profiling_run if counting_run else None
    plain_s = math.fsum(profiling_run.plain_s.values()) if profiling_run else 0.0
    if profiling_run is None or plain_s <= 0:
        return ()
    names = [name for name in PHASES if name in profiling_run.plain_s or name in profiling_run.method_s]
    names += sorted({*profiling_run.plain_s, *profiling_run.method_s} - set(names))
    return tuple(
        Phase(name, profiling_run.plain_s.get(name, 0.0) / plain_s, profiling_run.method_s.get(name, 0.0) / plain_s)
        for name in names
    )


def _ended(trials: Iterable[Trial]) -> dict[int, str]:
    """Block → how its newest trial ended, of those that diverged or ran past the limit: lost by what they are."""
    latest = {t.block: t.status for t in pairing.order(trials)}
    return {block: status for block, status in latest.items() if status in ("diverged", "timeout")}


def _censored(verdict: paired.Verdict, row: Row) -> paired.Verdict:
    """A side that ran past its limit costs more than anyone knows: nothing is concluded that this could turn round."""
    ours = row.timed_out and verdict in (*wording.BETTER, *wording.SAME, "quality unproven")
    plain = row.plain_timed_out and verdict in (*wording.WORSE, *wording.SAME)
    return "inconclusive" if ours or plain else verdict


class WorkloadComparison:
    """One workload's records up to a look, sorted into roles, and the comparisons between them."""

    def __init__(
        self, name: str, run: RunFile, trials: Sequence[Trial], counting_runs: Sequence[CountingRun], look: Look
    ) -> None:
        self.name, self.run, self.accept, self.look = name, run, Accept.of(run), look
        self.trials = [t for t in trials if t.workload == name and t.block < look.blocks]
        settings: dict[str, Any] = next((w for w in run.resolved.get("workload") or () if w.get("name") == name), {})
        self.unjudged = (settings.get("quality") or {}).get("from") == "none"
        self.counting_run = {w.method: w for w in counting_runs if w.workload == name}
        self.cells = {c.method: c for c in run.cells if c.workload == name}
        self.outside = any(cell.command for cell in self.cells.values())  # of our loop
        self.plain = [t for t in self.trials if t.role == "baseline"]
        self.partners = pairing.partners_of(self.plain)
        self.baseline_counting_run = next((w for w in self.counting_run.values() if w.role == "baseline"), None)
        labels = [c.method for c in self.cells.values() if c.role == "method" and c.skipped is None]
        labels += [t.method for t in self.trials if t.role == "method"]
        self.methods = list(dict.fromkeys(labels))
        against = {label: self.pairs(label) for label in self.methods}
        twin = pairing.pairs([t for t in self.trials if t.role == "twin"], self.partners)
        groups = [found for found in (twin, *against.values()) if len(found) > 1]
        self.pooled = {"time": self._pool(groups, "time")}
        metered = [found for found in groups if pairing.sensors_of(found)]
        self.pooled["energy"] = self._pool(metered, "energy")
        self.against = against
        self.twin = self.compare(twin) if twin else None

    def pairs(self, label: str) -> list[Pair]:
        return pairing.pairs([t for t in self.trials if t.method == label], self.partners)

    @staticmethod
    def _pool(groups: Sequence[Sequence[Pair]], quantity: paired.Quantity) -> paired.Spread | None:
        return paired.pool([pairing.change(found, quantity).residuals for found in groups])

    def compare(self, found: Sequence[Pair], pooled: bool = True) -> tuple[paired.Paired, paired.Quantity, str]:
        sensors = pairing.sensors_of(found)
        quantity: paired.Quantity = "energy" if sensors else "time"
        spread = self.pooled[quantity] if pooled else None
        change = pairing.change(found, quantity, spread, self.look.alpha_fraction)
        return change, quantity, " + ".join(sorted({s for _, s in sensors}))

    def flags(self) -> list[Flag]:
        counted = self.baseline_counting_run
        estimate = next((t.estimate for t in self.plain if t.estimate), counted.estimate if counted else None)
        return flags.check_workload(
            twin=self.twin[0] if self.twin else None,
            margin=self.accept.margin,
            plain_flop=estimate.plain_flop if estimate else None,
            counted_flop=counted.counted_flop if counted else None,
            counted_error_flop=counted.counted_error_flop if counted else 0.0,
            devices=[trial.device for trial in pairing.newest(self.plain)],
        )

    def control(self, label: str) -> tuple[Control | None, float | None, float | None]:
        """The comparison with the matched control, and the two budgets where they lie furthest apart."""
        ours = [t for t in self.trials if t.method == label]
        found = pairing.pairs(ours, [t for t in self.trials if t.role == "control" and t.of == label])
        if not found:
            return None, None, None
        change, quantity, scope = self.compare(found, pooled=False)
        quality, difference = _quality(found, self.accept, self.look.alpha_fraction)
        better = False
        here = [flag for p in found for flag in (*flags.check_trial(p.plain), *flags.check_pair(p.ours, p.plain))]
        sound = self.look.open and flag_codes.worst(here) != "struck"
        if sound and difference is not None and change.n >= paired.FEWEST_BLOCKS:
            word = paired.verdict(change, self.accept.margin, quantity, difference, self.accept.loses_at_most)
            gains = difference.lower(paired.QUALITY) > 0
            better = word in wording.BETTER or (
                gains and change.upper(paired.QUALITY) < -math.log1p(-self.accept.margin)
            )
        budgets = [
            (p.ours.passes.epochs_trained, p.plain.passes.epochs_trained)
            for p in found
            if p.ours.passes and p.plain.passes
        ]
        apart = max(budgets, key=lambda both: abs(both[0] - both[1]), default=(None, None))
        return Control(found[0].plain.method, Measured.of(change, quantity, scope), quality, better), *apart

    def row(self, label: str, struck: Sequence[Raised] = ()) -> Row:
        """One method; `struck` are the workload's flags that forbid a verdict."""
        found, counting_run, accept = self.against[label], self.counting_run.get(label), self.accept
        own = [t for t in self.trials if t.method == label]
        used, plain = [p.ours for p in found], [p.plain for p in found]
        cell = self.cells.get(label)
        claim = (cell.claim if cell else None) or next((t.claim for t in own if t.claim), None)
        estimated = pairing.estimated_rel(used, counting_run)
        estimated = pairing.reported_rel(found, "estimated") if estimated is None else estimated
        counted = pairing.counted_flop(used, counting_run)
        reference = pairing.counted_flop(plain, self.baseline_counting_run)
        counted_rel = 1 - counted / reference if counted is not None and reference else None
        counted_rel = pairing.reported_rel(found, "counted") if counted_rel is None else counted_rel
        error = counting_run.counted_error_flop / reference if counting_run and reference else 0.0
        control, kept_epochs, control_epochs = self.control(label)
        here = [flag for trial in used for flag in flags.check_trial(trial)]
        here += [flag for pair in found for flag in flags.check_pair(pair.ours, pair.plain)]
        here += flags.check_cell(
            blocks=len(found),
            trials=used,
            counting_run=counting_run,
            estimated_rel=estimated,
            counted_rel=counted_rel,
            estimate_gap=accept.estimate_gap,
            epochs_kept=kept_epochs,
            epochs_control=control_epochs,
            sensor_error_rel=pairing.error_rel(found) if pairing.sensors_of(found) else None,
            margin=accept.margin,
        )
        ended, plain_ended = _ended(own), _ended(self.plain)
        row = Row(
            method=label,
            role="method",
            stack=tuple(str(layer.get("use", "")) for layer in cell.stack) if cell else (),
            n=len(found),
            blocks=tuple(t.block for t in used),
            records=tuple(t.trial for t in used),
            claimed_rel=_claim(claim, used or own, counting_run),
            claim_rel=claim.saving_rel if claim else None,
            claim_of=claim.of if claim else None,
            claim_source=claim.source if claim else "",
            estimated_rel=estimated,
            counted_rel=counted_rel,
            counted_error_rel=error,
            measured=None,
            time=None,
            realised_rel=None,
            quality=None,
            diverged=sum(status == "diverged" for status in ended.values()),
            struck=bool(struck) or flag_codes.worst(here) == "struck",
            verdict="no verdict",
            because="",
            detectable_rel=None,
            blocks_needed=None,
            explanation="",
            moved=wording.moved(pairing.estimates(used, counting_run)),
            roofline=_roofline(pairing.estimates(used, counting_run)),
            phases=_phases(counting_run),
            untimed=(counting_run.profiling_run.reason if counting_run and counting_run.profiling_run else None) or "",
            to_target=None,
            flags=raised(here, f"{self.name}: {label}"),
            control=control,
            seconds=pairing.figure(pairing.seconds(t) for t in used),
            energies=pairing.energies(used),
            command=self.command(label),
            unjudged=self.unjudged,
            unavailable=OUTSIDE if self.outside and estimated is counted_rel is None else "",
            timed_out=sum(status == "timeout" for status in ended.values()),
            plain_timed_out=sum(status == "timeout" for status in plain_ended.values()),
        )
        if found:
            row = self._judge(row, found)
            if control and (row.struck or row.diverged or row.timed_out):
                row = dataclasses.replace(row, control=dataclasses.replace(control, better=False))
            way = to_target(
                found,
                accept.margin,
                struck=row.struck,
                alpha_fraction=self.look.alpha_fraction,
                waits=self._waits(row),
                ended=len({*ended, *plain_ended} - set(row.blocks)),
            )
            row = dataclasses.replace(row, to_target=way)
        reasons = [flag.sentence for flag in (*struck, *row.flags) if flag.severity == "struck"]
        if not (reasons and row.verdict == "no verdict"):
            reasons = [self._waits(row) or wording.because(row, accept.margin)]
        return dataclasses.replace(row, because=reasons[0])

    def _waits(self, row: Row) -> str:
        """Why there is no verdict yet; empty once a look was reached."""
        return "" if self.look.open else interim_notes.waiting(self.look, row.n)

    def _judge(self, row: Row, found: Sequence[Pair]) -> Row:
        """The measured side of a row, and its verdict."""
        accept, margin = self.accept, self.accept.margin
        change, quantity, scope = self.compare(found)
        time = pairing.change(found, "time", self.pooled["time"], self.look.alpha_fraction)
        quality, difference = _quality(found, accept, self.look.alpha_fraction)
        quality_margin = accept.loses_at_most
        if self.unjudged:  # one and the same result, by the suite's own word
            quality, difference, quality_margin = None, paired.Mean(change.n, 0.0, 0.0, 1.0), 0.0
        verdict: paired.Verdict = "no verdict"
        if self.look.open and not row.struck:
            verdict = paired.verdict(change, margin, quantity, difference, quality_margin)
            if row.diverged and verdict in (*wording.BETTER, "quality unproven"):
                verdict = "quality lost"  # what diverged has no quality, whatever the other blocks reached
            verdict = _censored(verdict, row)
        needed = None
        if wording.past_limit(row):
            pass  # no number of blocks tells what those cost
        elif verdict == "inconclusive" or (verdict == "no verdict" and not row.struck):
            needed = paired.blocks_needed(change.mean, change.sd, margin, alpha_fraction=self.look.alpha_fraction)
        elif verdict == "quality unproven" and difference is not None and accept.loses_at_most is not None:
            needed = paired.quality_blocks_needed(difference, accept.loses_at_most)
        estimated, enough = row.estimated_rel, change.n >= paired.FEWEST_BLOCKS
        keeps = estimated is not None and abs(estimated) >= 3 * margin
        return dataclasses.replace(
            row,
            measured=Measured.of(change, quantity, scope),
            time=Measured.of(time, "time"),
            realised_rel=change.saving / estimated if keeps and estimated else None,
            quality=quality,
            verdict=verdict,
            detectable_rel=paired.detectable(
                change.sd, change.n, margin, df=change.df, alpha_fraction=self.look.alpha_fraction
            )
            if enough
            else None,
            blocks_needed=None if needed is None else max(needed, change.n + 1),
            explanation=wording.explain(
                row.method,
                None if row.counted_rel is None else 1 - row.counted_rel,
                math.exp(time.mean),
                math.exp(change.mean) if quantity == "energy" else None,
                scope,
            ),
        )

    def baseline(self) -> Baseline:
        used = pairing.newest(self.plain)
        metrics = sorted({name for trial in used for name in trial.quality})
        quality = {name: pairing.figure(t.quality.get(name) for t in used) for name in metrics}
        estimate = next((t.estimate for t in used if t.estimate), None)
        waits = [t.data_wait_s / pairing.seconds(t) for t in used if t.data_wait_s is not None]
        return Baseline(
            n=len(used),
            seconds=pairing.figure(pairing.seconds(t) for t in used),
            energies=pairing.energies(used),
            quality={name: figure for name, figure in quality.items() if figure},
            data_wait_rel=pairing.figure(waits),
            memory_device_b=max((t.memory_device_b for t in used if t.memory_device_b is not None), default=None),
            memory_resident_b=max((t.memory_resident_b for t in used if t.memory_resident_b is not None), default=None),
            counted_flop=self.baseline_counting_run.counted_flop if self.baseline_counting_run else None,
            plain_flop=estimate.plain_flop if estimate else None,
        )

    def workload(self) -> Workload:
        """Everything about this workload."""
        used, found = pairing.newest(self.plain), self.flags()
        found += [flag for trial in used for flag in flags.check_trial(trial)]
        found += flags.check_cell(blocks=paired.FEWEST_BLOCKS, trials=used, counting_run=self.baseline_counting_run)
        here = raised(found, self.name)
        struck = [flag for flag in here if flag.severity == "struck"]
        rows = tuple(self.row(label, struck) for label in self.methods)
        twin = Measured.of(*self.twin) if self.twin else None
        metric = None if self.unjudged else self.accept.metric or _metric(self.plain)
        plain = "the plain command" if self.outside else "plain training"
        command = self.command("baseline")
        return Workload(self.name, metric, self.baseline(), twin, rows, here, plain, command)

    def command(self, label: str) -> str:
        """What a cell runs, as one would type it; empty where it is trained in our loop."""
        cell = self.cells.get(label)
        return written(cell.command) if cell else ""
