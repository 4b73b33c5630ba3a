"""One workload: methods held against plain training, block by block, and what each comparison is worth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import partial

from energybench.records.record import SCHEMA, CountingRun, Flag, RunFile, Trial
from energybench.stats import paired
from energybench.suite.command_tables import written
from energybench.verdict import (
    cell_records,
    controls,
    explanations,
    flag_codes,
    flags,
    interim_notes,
    judgement,
    outside,
    pairing,
    quality,
    sentences,
    wording,
)
from energybench.verdict.absolute import absolute
from energybench.verdict.accept import Accept
from energybench.verdict.cell_records import CellRecords, NominalSavings
from energybench.verdict.devices import Pooling
from energybench.verdict.examination import Examination
from energybench.verdict.figures import Baseline, Control, Measured, Quality, RaisedFlag, Row, ToTarget, Workload
from energybench.verdict.interim import Look
from energybench.verdict.next_steps import more_blocks
from energybench.verdict.pairing import Pair
from energybench.verdict.target import to_target

OUTSIDE = "the command runs outside energybench's loop and reports no FLOPs of its own"
REALISED_FROM = 3  # margins: an estimate of fewer is too small to divide by


def raised(flagged: Iterable[Flag], where: str, schema: int = SCHEMA) -> tuple[RaisedFlag, ...]:
    """One entry per code, its first detail standing for all; severities as records of this schema have them."""
    first: dict[str, Flag] = {}
    for flag in flagged:
        first.setdefault(flag.code, flag)
    kinds = ((flag_codes.kind(code), flag) for code, flag in first.items())
    return tuple(
        RaisedFlag(kind.code, kind.of_schema(schema), kind.said_of(schema), flag.detail, where) for kind, flag in kinds
    )


class WorkloadComparison:
    """One workload's records up to a look, sorted into roles, and the comparisons between them.

    Args:
        name: of the workload
        run: with the suite as it was resolved, and the cells that were planned
        trials: any of the run's, of this workload or not
        counting_runs: likewise
        look: the verdicts are of; trials of later blocks enter nothing
        examination: of all these trials
        pooling: of their devices
    """

    def __init__(
        self,
        name: str,
        run: RunFile,
        trials: Sequence[Trial],
        counting_runs: Sequence[CountingRun],
        look: Look,
        examination: Examination,
        pooling: Pooling,
    ) -> None:
        self.pooling = pooling
        self.name, self.run, self.accept, self.look = name, run, Accept.of(run, name), look
        self.examination = examination
        self.trials = [t for t in trials if t.workload == name and t.block < look.blocks]
        self.schema = max((t.schema_ for t in self.trials), default=SCHEMA)
        self.unjudged = cell_records.is_unjudged(run, name)
        self.counting_run = {w.method: w for w in counting_runs if w.workload == name}
        self.cells = {c.method: c for c in run.cells if c.workload == name}
        self.outside = any(cell.command for cell in self.cells.values())  # of our loop
        self.baselines = self._of_role("baseline")
        self.partners = pairing.partners_of(self.baselines, examination.reason_unusable)
        self.baseline_counting_run = next((w for w in self.counting_run.values() if w.role == "baseline"), None)
        planned = [c.method for c in self.cells.values() if c.role == "method" and c.skipped is None]
        self.methods = list(dict.fromkeys([*planned, *(t.method for t in self._of_role("method"))]))
        self.compared = {label: self.pairs([t for t in self.trials if t.method == label]) for label in self.methods}
        twins = self.pairs(self._of_role("twin"))
        self.pooled = pairing.pooled([twins, *self.compared.values()], pooling)
        self.twin = self.compare(twins) if twins else None

    def _of_role(self, role: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.role == role]

    def pairs(self, trials: Sequence[Trial]) -> list[Pair]:
        """These trials, each with plain training of its block."""
        return pairing.pairs(trials, self.partners, self.examination.reason_unusable)

    def compare(self, pairs: Sequence[Pair], pooled: bool = True) -> tuple[paired.Paired, paired.Quantity, str]:
        """The change, what it is of, and the scope of its sensors: energy where all were measured alike, else time."""
        sensors = pairing.sensors_of(pairs)
        quantity: paired.Quantity = "energy" if sensors else "time"
        spread = self.pooled[quantity] if pooled else None
        change = pairing.change(pairs, quantity, spread, self.look.alpha_fraction, self.pooling)
        return change, quantity, " + ".join(sorted({scope for _, scope in sensors}))

    def measured(self, change: paired.Paired, quantity: paired.Quantity, scope: str = "") -> Measured:
        """As the report has it."""
        return Measured.of(change, quantity, scope, self.pooling.counts)

    def workload(self) -> Workload:
        """Everything about this workload."""
        workload_flags = raised(self._flags(), self.name, self.schema)
        forbidding = [flag for flag in workload_flags if flag.severity == "struck"]
        metric = None if self.unjudged else self.accept.metric or quality.main_metric(self.baselines)
        known = quality.known(self.run, self.name, metric) if metric else None
        return Workload(
            self.name,
            metric=metric,
            baseline=self._baseline(),
            twin=self.measured(*self.twin) if self.twin else None,
            rows=tuple(self._row(label, forbidding) for label in self.methods),
            flags=workload_flags,
            baseline_name="the plain command" if self.outside else "plain training",
            command=self._command("baseline"),
            percent=known is not None and known.metric.scale == "percent",
            data_notes=notes_of(self.run, self.name),
        )

    def _command(self, label: str) -> str:
        """What a cell runs, as one would type it; empty where it is trained in our loop."""
        cell = self.cells.get(label)
        return written(cell.command) if cell else ""

    # ── plain training ────────────────────────────────────────────────────────────────────────────────────────

    def _baseline(self) -> Baseline:
        trials = pairing.newest(self.baselines, self.examination.reason_unusable)
        metrics = sorted({name for trial in trials for name in trial.quality})
        quality = {name: pairing.mean_of(t.quality.get(name) for t in trials) for name in metrics}
        estimate = next((t.estimate for t in trials if t.estimate), None)
        waits = [t.data_wait_s / pairing.seconds(t) for t in trials if t.data_wait_s is not None]
        return Baseline(
            n=len(trials),
            **absolute(trials, self.pooling),
            quality={name: mean for name, mean in quality.items() if mean},
            data_wait_rel=pairing.mean_of(waits),
            memory_device_b=pairing.most_of(t.memory_device_b for t in trials),
            memory_resident_b=pairing.most_of(t.memory_resident_b for t in trials),
            counted_flop=self.baseline_counting_run.counted_flop if self.baseline_counting_run else None,
            plain_flop=estimate.plain_flop if estimate else None,
        )

    def _flags(self) -> list[Flag]:
        """Of plain training, its trials and its twin: what they raise concerns every row."""
        counted = self.baseline_counting_run
        estimate = next((t.estimate for t in self.baselines if t.estimate), counted.estimate if counted else None)
        trials = pairing.newest(self.baselines, self.examination.reason_unusable)
        return [
            *flags.check_workload(
                twin=self.twin[0] if self.twin else None,
                margin=self.accept.margin,
                plain_flop=estimate.plain_flop if estimate else None,
                counted_flop=counted.counted_flop if counted else None,
                counted_error_flop=counted.counted_error_flop if counted else 0.0,
                not_in_ledger=[name for cell in self.cells.values() for name in cell.not_in_ledger],
                mixed=self.pooling.mixed,
                workloads=len({cell.workload for cell in self.run.cells if cell.role == "twin" and not cell.skipped}),
            ),
            *flags.check_cliff(self.trials),
            *(flag for trial in trials for flag in self.examination.flags(trial)),
            *flags.check_cell(
                blocks=paired.FEWEST_BLOCKS,
                trials=trials,
                counting_run=counted,
                exact=flags.reproducible(trials, counted),
            ),
        ]

    # ── one method ────────────────────────────────────────────────────────────────────────────────────────────

    def _row(self, label: str, forbidding: Sequence[RaisedFlag]) -> Row:
        """One method; `forbidding`: the workload's flags that forbid a verdict."""
        records = CellRecords(
            label,
            pairs=self.compared[label],
            trials=[t for t in self.trials if t.method == label],
            counting_run=self.counting_run.get(label),
            cell=self.cells.get(label),
        )
        row = self._unmeasured(records, forbidding)
        if records.pairs:
            row = self._judge(row, records.pairs)
            row = dataclasses.replace(row, to_target=self._to_target(row, records))
        command = None if self.look.next else partial(more_blocks, self.run)
        row = dataclasses.replace(row, quality_reason=sentences.quality_reason(row, command))
        return dataclasses.replace(row, reason=self._reason(row, forbidding, command))

    def _unmeasured(self, records: CellRecords, forbidding: Sequence[RaisedFlag]) -> Row:
        """A row before its measured side: what was promised and counted, how trials ended, what was raised."""
        nominal = cell_records.nominal_savings(records, self.baseline_counting_run)
        control = self._control(records)
        row_flags = self._row_flags(records, nominal)
        raised_flags = raised(row_flags, f"{self.name}: {records.label}", self.schema)
        claim, ends, baseline_ends = records.claim, cell_records.lost(records.trials), cell_records.lost(self.baselines)
        estimates, trials = records.estimates(), records.paired_trials
        uncountable = self.outside and nominal.estimated_rel is None and nominal.counted_rel is None
        row = Row(
            method=records.label,
            role="method",
            stack=records.stack,
            n=len(records.pairs),
            blocks=tuple(t.block for t in trials),
            records=tuple(t.trial for t in trials),
            claimed_rel=nominal.claimed_rel,
            claim_rel=claim.saving_rel if claim else None,
            claim_of=claim.of if claim else None,
            claim_source=claim.source if claim else "",
            estimated_rel=nominal.estimated_rel,
            counted_rel=nominal.counted_rel,
            counted_error_rel=nominal.counted_error_rel,
            measured=None,
            time=None,
            realised_rel=None,
            quality=None,
            diverged=cell_records.count(ends, "diverged"),
            verdict_forbidden=bool(forbidding) or flag_codes.worst(row_flags, self.schema) == "struck",
            verdict="no verdict",
            reason="",
            detectable_rel=None,
            blocks_needed=None,
            explanation="",
            bytes_note=explanations.bytes_note(estimates),
            roofline=cell_records.roofline(estimates),
            phases=cell_records.phases(records.counting_run),
            untimed_reason=cell_records.unprofiled_reason(records.counting_run),
            to_target=None,
            flags=raised_flags,
            control=control,
            control_note=controls.why_none(records, self.cells.values()),
            **absolute(trials, self.pooling),
            command=self._command(records.label),
            unjudged=self.unjudged,
            unavailable=OUTSIDE if uncountable else "",
            quality_forbidden=any(map(flag_codes.concerns_training, (*forbidding, *raised_flags))),
            unit=self.pooling.counts,
            units=self._units(records.pairs),
            timed_out=cell_records.count(ends, "timeout"),
            baseline_timed_out=cell_records.count(baseline_ends, "timeout"),
        )
        row = judgement.of_how_it_ended(row, self.look)
        unsound = row.verdict_forbidden or row.diverged or row.timed_out
        if control and unsound and records.pairs:
            row = dataclasses.replace(row, control=dataclasses.replace(control, better=False))
        return row

    def _units(self, pairs: Sequence[Pair]) -> int:
        """How many of what verdicts count have a pair."""
        devices = pairing.devices_of(pairs, self.pooling)
        return len(pairs) if devices is None else len(set(devices))

    def _row_flags(self, records: CellRecords, nominal: NominalSavings) -> list[Flag]:
        pairs, trials = records.pairs, records.paired_trials
        measured = bool(pairing.sensors_of(pairs))
        return [
            *(flag for trial in trials for flag in self.examination.flags(trial)),
            *(flag for pair in pairs for flag in flags.check_pair(pair.method, pair.baseline)),
            *flags.check_cell(
                blocks=self._units(pairs),
                unit=self.pooling.counts,
                trials=trials,
                counting_run=records.counting_run,
                gap_rel=cell_records.estimate_gap(records, self.baseline_counting_run),
                counted_rel=nominal.counted_rel,
                estimate_gap=self.accept.estimate_gap,
                control_differs=controls.differs(self._control_pairs(records)),
                sensor_error_rel=pairing.error_rel(pairs) if measured else None,
                known_error_rel=pairing.known_error_rel(pairs) if measured else None,
                margin=self.accept.margin,
                exact=flags.reproducible(self.baselines, self.baseline_counting_run),
                same_weights=cell_records.same_weights(records, self.baseline_counting_run, self.accept.margin),
                counted_error_rel=nominal.counted_error_rel,
            ),
            *flags.check_outside(outside.extras(pairs), self.accept.margin, pairing.devices_of(pairs, self.pooling)),
        ]

    def _control(self, records: CellRecords) -> Control | None:
        """The comparison with the matched control. A block in which the method did not train less has none: where
        others have, plain training itself stands for it, so that no block is left out for what it is."""
        pairs = self._control_pairs(records)
        if not pairs:
            return None
        change, quantity, scope = self.compare(pairs, pooled=False)
        margin = self.accept.margin
        change, _ = outside.this_run(pairs, change, quantity, margin, None, self.pooling)  # proxies are not free here
        of_quality, difference = self._quality(pairs)
        better = self._sound(pairs) and difference is not None and self._better(change, quantity, difference)
        label = next(pair.baseline.method for pair in pairs if pair.baseline.role == "control")
        budgets = controls.budgets(pairs)
        return Control(
            label,
            self.measured(change, quantity, scope),
            of_quality,
            better,
            steps=pairing.mean_of(each.steps for each in budgets),
            planned_steps=budgets[0].planned_steps if budgets else None,
        )

    def _control_pairs(self, records: CellRecords) -> list[Pair]:
        return controls.pairs(self.trials, records, self.partners, self.examination.reason_unusable)

    def _sound(self, pairs: Sequence[Pair]) -> bool:
        """Whether the comparison with a control may show anything."""
        control_flags = [flag for pair in pairs for flag in self.examination.flags(pair.baseline)]
        control_flags += [flag for pair in pairs for flag in flags.check_pair(pair.method, pair.baseline)]
        return self.look.open and flag_codes.worst(control_flags) != "struck"

    def _better(self, change: paired.Paired, quantity: paired.Quantity, difference: paired.Mean) -> bool:
        """Costs less at no less quality, or gains quality at no more cost."""
        if change.n < paired.FEWEST_BLOCKS:
            return False
        margin = self.accept.margin
        if paired.verdict(change, margin, quantity, difference, self.accept.loses_at_most) in wording.BETTER:
            return True
        return difference.lower(paired.QUALITY) > 0 and change.upper(paired.QUALITY) < -math.log1p(-margin)

    # ── the measured side ─────────────────────────────────────────────────────────────────────────────────────

    def _judge(self, row: Row, pairs: Sequence[Pair]) -> Row:
        """The measured side of a row, and its verdict."""
        change, quantity, scope = self.compare(pairs)
        time = pairing.change(pairs, "time", self.pooled["time"], self.look.alpha_fraction, self.pooling)
        change, once = outside.this_run(pairs, change, quantity, self.accept.margin, self._epochs(), self.pooling)
        if once is not None:  # seconds of whole runs beside joules of whole runs
            time, _ = outside.this_run(pairs, time, "time", -math.inf, None, self.pooling)
            once = dataclasses.replace(once, steady=dataclasses.replace(once.steady, scope=scope))
        of_quality, difference = self._quality(pairs)
        row = judgement.with_verdicts(row, change, quantity, difference, self.accept, self.look)
        return dataclasses.replace(
            row,
            measured=self.measured(change, quantity, scope),
            once=once,
            time=self.measured(time, "time"),
            realised_rel=self._realised_rel(row.estimated_rel, change),
            quality=of_quality,
            also=quality.further(self.run, self.name, pairs, self.accept, self.look.alpha_fraction, self.pooling),
            detectable_rel=judgement.detectable_rel(change, self.pooled[quantity], self.accept),
            blocks_needed=judgement.blocks_needed(row, change, difference, self.accept),
            quality_blocks_needed=judgement.quality_blocks_needed(row, difference, self.accept),
            explanation=explanations.explain(
                row.method,
                None if row.counted_rel is None else 1 - row.counted_rel,
                math.exp(time.mean),
                math.exp(change.mean) if quantity == "energy" else None,
                scope,
            ),
        )

    def _epochs(self) -> float | None:
        """That plain training takes."""
        return next((float(t.epochs) for t in self.baselines if t.epochs), None)

    def _quality(self, pairs: Sequence[Pair]) -> tuple[Quality | None, paired.Mean | None]:
        """Of the metric that decides; one and the same result where the suite says that there is none to lose."""
        if self.unjudged:
            return None, paired.Mean(self._units(pairs), 0.0, 0.0, 1.0)
        return quality.compare(self.run, self.name, pairs, self.accept, self.look.alpha_fraction, self.pooling)

    def _realised_rel(self, estimated_rel: float | None, change: paired.Paired) -> float | None:
        """Measured / estimated; None where the estimate is too small to divide by."""
        if not estimated_rel or abs(estimated_rel) < REALISED_FROM * self.accept.margin:
            return None
        return change.saving / estimated_rel

    def _to_target(self, row: Row, records: CellRecords) -> ToTarget | None:
        lost_blocks = {*cell_records.lost(records.trials), *cell_records.lost(self.baselines)} - set(row.blocks)
        return to_target(
            records.pairs,
            self.accept.margin,
            verdict_forbidden=row.verdict_forbidden,
            alpha_fraction=self.look.alpha_fraction,
            waiting_reason=self._waiting_reason(row),
            lost_blocks=len(lost_blocks),
            pooling=self.pooling,
        )

    def _reason(self, row: Row, forbidding: Sequence[RaisedFlag], command: sentences.Command | None) -> str:
        """For the verdict, and what would change it."""
        struck = [flag.sentence for flag in (*forbidding, *row.flags) if flag.severity == "struck"]
        if struck and row.verdict == "no verdict":
            return struck[0]
        return self._waiting_reason(row) or sentences.verdict_reason(row, self.accept.margin, command)

    def _waiting_reason(self, row: Row) -> str:
        """Why there is no verdict yet; empty once a look was reached."""
        return "" if self.look.open else interim_notes.waiting(self.look, row.n)


def notes_of(run: RunFile, workload: str) -> tuple[str, ...]:
    """What a record says of how a workload's data were made."""
    return tuple((run.data.get(workload) or {}).get("notes") or ())
