"""A run for other tools: every trial as CSV or Parquet, codecarbon's emissions.csv, a model card's block, an SCI score.

Only measured energy becomes emissions: where none was measured, cells stay empty and a card or score is refused with
the reason. Modelled joules are exported as what they are, in columns that say so. Imports no torch.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from energybench.common.errors import EnergybenchError, Problem, UsageError, typed
from energybench.common.outputs import Kind, json_kind
from energybench.common.version import __version__
from energybench.meter import combine
from energybench.meter.grid import J_PER_KWH
from energybench.records.curve import OWN, metrics_of
from energybench.records.record import CountingRun, RunFile, Trial
from energybench.report.emissions import EMISSIONS, emission
from energybench.verdict import devices, interim, pairing, run_parts, wording
from energybench.verdict.carbon import CarbonReport, Use, Zone, carbon_report
from energybench.verdict.devices import Pooling
from energybench.verdict.examination import Examination, ExaminedTrial
from energybench.verdict.run_parts import Part

HOURS_PER_YEAR = 365.25 * 24
UNITS = {"run": "one training run", "epoch": "one epoch of it", "sample": "one sample of one epoch"}
Exported = tuple[bytes, list[str]]  # the file, and notes for whoever asked


class ExportedRun:
    """The records of one run, and what the carbon report says of them."""

    def __init__(self, records: tuple[RunFile, list[Trial], list[CountingRun]], pooling: Pooling | None = None) -> None:
        self.run, trials, self.counting_runs = records
        self.pooling = pooling or devices.pooling(self.run, trials)
        self.trials: list[Trial] = sorted(trials, key=lambda t: (t.block, t.invocation, t.position, t.trial))

    @cached_property
    def examination(self) -> Examination:
        return Examination(self.trials)

    @cached_property
    def carbon(self) -> CarbonReport:
        return carbon_report(self.run, self.trials, self.counting_runs, pooling=self.pooling)

    @property
    def zone(self) -> Zone:
        """Raises UsageError E610 where the suite names no country."""
        zones = self.carbon.zones
        if not zones:
            hint = 'name one in the suite: [measure] carbon = { country = "FR" }, and run again'
            raise UsageError(Problem("E610", "the suite names no country, so there is no CO2e", hint=hint))
        return zones[0]


def export(folders: Path | Sequence[Path], form: str, **options: Any) -> Exported:
    """The bytes of one export and notes on it.

    Args:
        folders: one run's, or several of one suite: tables have the trials of all, what is of one device is refused
        form: of KINDS

    Raises:
        UsageError: E610 where nothing was measured; E609 where one run on one device is needed.
    """
    parts = run_parts.read([folders] if isinstance(folders, Path) else folders)
    runs = [ExportedRun(part.records, part.pooling) for part in parts]
    tables: dict[str, Callable[..., Exported]] = {
        "csv": trials_csv,
        "curves": curves_csv,
        "parquet": trials_parquet,
        "emissions": emissions_csv,
    }
    if form in tables:
        return tables[form](*runs, **options)
    if len(parts) > 1 or runs[0].pooling.several:
        _refuse_several(parts, form)
    return {"model-card": model_card, "sci": sci}[form](runs[0], **options)


def _refuse_several(parts: Sequence[Part], form: str) -> NoReturn:
    """Joules are of one device. Raises UsageError E609 with what to type for one."""
    what = "these are of " + "; ".join(part.device for part in parts[:2]) + (" …" if len(parts) > 2 else "")
    several = len({folder for part in parts for folder in part.folders}) > 1
    of_one = f"{typed('energybench', 'export', parts[0].folders[-1], '--to', form)}; " if several else ""
    hint = f"{of_one}--to csv has every trial of all"
    raise UsageError(Problem("E609", f"--to {form} is about joules of one device, and {what}", hint=hint))


# ── every trial ───────────────────────────────────────────────────────────────────────────────────────────


def rows(*exported: ExportedRun) -> list[dict[str, Any]]:
    """One row per trial; columns that only some trials have are None elsewhere. SI units in the names."""
    columns = _columns({metric for each in exported for trial in each.trials for metric in trial.quality})
    by_trial = [_row(each.run, each.examination[trial], columns) for each in exported for trial in each.trials]
    names = dict.fromkeys(name for row in by_trial for name in row)
    return [{name: row.get(name) for name in names} for row in by_trial]


def _row(run: RunFile, examined: ExaminedTrial, columns: dict[str, str]) -> dict[str, Any]:
    trial = examined.trial
    train, metered = trial.train, combine.metered(trial.train)
    lost = any(energy.lost for energy in train.energy) if train else True
    whole = bool(metered.sensors) and not lost
    row: dict[str, Any] = {
        "suite": run.suite,
        "run": run.run,
        "trial": trial.trial,
        "workload": trial.workload,
        "method": trial.method,
        "role": trial.role,
        "block": trial.block,
        "exploratory": run.finished and trial.block >= run.verdict_blocks,
        "seed": trial.seed,
        "invocation": trial.invocation,
        "position": trial.position,
        "status": trial.status,
        "reason": trial.reason,
        "usable": examined.reason_unusable is None,
        "flags": " ".join(flag.code for flag in examined.flags),
        "device": trial.device,
        "started_at": trial.started_at,
        "epochs": trial.epochs,
        "steps": trial.steps,
        "samples": trial.samples,
        "train_s": train.wall_s if train else None,
        "train_cpu_s": train.cpu_s if train else None,
        "data_wait_s": trial.data_wait_s,
        "memory_device_b": trial.memory_device_b,
        "memory_resident_b": trial.memory_resident_b,
        "measured_j": metered.joules if whole else None,
        "measured_error_j": metered.error_j if whole else None,
        "measured_by": " ".join(f"{scope}:{source}" for source, scope in sorted(metered.sensors)),
        "plain_flop": trial.estimate.plain_flop if trial.estimate else None,
        "estimated_flop": trial.estimate.estimated_flop if trial.estimate else None,
        "epochs_trained": trial.passes.epochs_trained if trial.passes else None,
        "digest": trial.digest,
    }
    return row | _by_source(trial) | {columns[metric]: value for metric, value in sorted(trial.quality.items())}


def _by_source(trial: Trial) -> dict[str, float]:
    """Column → joules of each source by itself, measured or modelled; none for a source without a figure."""
    return {
        f"{'measured' if figure.measured else 'modelled'}_{_name(figure.scope)}_{_name(figure.source)}_j": mean.mean
        for figure in pairing.energies([trial])
        if (mean := figure.energy_j)
    }


def _columns(metrics: set[str]) -> dict[str, str]:
    """Metric → column, for all trials the same; where two would share one, both keep their own names."""
    shared = Counter(map(_name, metrics))
    return {m: f"quality_{_name(m) if shared[_name(m)] == 1 else m}" for m in sorted(metrics)}


def _name(text: str) -> str:
    """A name for a column."""
    return re.sub(r"\W+", "_", text).strip("_")


def _safe(value: Any) -> Any:
    """Text that no spreadsheet takes for a formula; names come from files that others wrote."""
    if not isinstance(value, str):
        return value
    text = wording.clean(value)
    return f"'{text}" if re.match(r"\s*[=+\-@]", text) else text


def _csv(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writerow({name: _safe(name) for name in names})
    writer.writerows({name: _safe(row.get(name)) for name in names} for row in rows)
    return file.getvalue().encode()


def trials_csv(*exported: ExportedRun, **_: Any) -> Exported:
    by_trial = rows(*exported)
    return _csv(list(by_trial[0]) if by_trial else ["trial"], by_trial), []


def curves_csv(*exported: ExportedRun, **_: Any) -> Exported:
    """One row per trial and epoch: the training loss, seconds of the window so far, and the task's metrics on the test
    set where they were looked at."""
    trials = [(each.run, trial) for each in exported for trial in each.trials]
    metrics = {metric for _, trial in trials for point in trial.curve for metric in metrics_of(point)}
    columns = _columns(metrics)
    of_trial = ("trial", "workload", "method", "role", "block", "seed", "status")
    by_epoch: list[dict[str, Any]] = []
    for run, trial in trials:
        facts = {"suite": run.suite, "run": run.run} | {key: getattr(trial, key) for key in of_trial}
        for point in trial.curve:
            figures = {columns[metric]: value for metric, value in metrics_of(point).items()}
            own = dict(zip(("epoch", "training_loss", "wall_s"), map(point.get, OWN), strict=True))
            by_epoch.append(facts | own | figures)
    names = ["suite", "run", *of_trial, "epoch", "training_loss", "wall_s", *sorted(columns.values())]
    return _csv(names, by_epoch), []


def trials_parquet(*exported: ExportedRun, **_: Any) -> Exported:
    """The same with types. Needs pyarrow, an extra. Raises UsageError E611 without it."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        hint = "pip install 'energybench[parquet]', or --to csv"
        raise UsageError(Problem("E611", "Parquet needs pyarrow, which is not installed", hint=hint)) from None
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows(*exported)), file)
    return file.getvalue(), []


# ── emissions.csv ─────────────────────────────────────────────────────────────────────────────────────────


def emissions_csv(*exported: ExportedRun, **_: Any) -> Exported:
    """One row per finished trial, as codecarbon writes one per tracked run; energies include the PUE, as there."""
    zones = [_zone(each) for each in exported]
    emissions = [
        emission(each.run, trial, zone)
        for each, zone in zip(exported, zones, strict=True)
        for trial in each.examination.usable(each.trials)
    ]
    blind = sum(row["energy_consumed"] is None for row in emissions)
    notes = []
    if blind:
        notes.append(
            f"note: {blind} of {len(emissions)} trials have no measured energy: their cells are empty; modelled energy "
            "is in --to csv, labelled"
        )
    if None in zones:
        notes.append("note: the suite names no country, so emissions are empty")
    return _csv(EMISSIONS, emissions), notes


def _zone(exported: ExportedRun) -> Zone | None:
    try:
        return exported.zone
    except EnergybenchError:
        return None


# ── a model card ──────────────────────────────────────────────────────────────────────────────────────────


def model_card(exported: ExportedRun, *, workload: str | None = None, method: str | None = None, **_: Any) -> Exported:
    """`co2_eq_emissions` of Hugging Face's model cards, in grams: one training run of one cell, mean over the blocks.

    Strings are written as JSON, which is YAML too, so that no name can add a key.
    """
    zone, use = exported.zone, _chosen(exported, workload, method)
    assert use.measured_j is not None
    grams = zone.kg(use.measured_j).times(1000)
    run, cards = exported.run, _cards(exported.trials)
    hardware = (
        ", ".join(cards) or f"{run.machine.get('cpu', 'unknown processor')}, {run.machine.get('cores', '?')} cores"
    )
    where = ", ".join(part for part in (zone.place, zone.country) if part)
    source = (
        f"energybench {run.machine.get('energybench', __version__)}: measured, {use.sensors}; "
        f"one training run, mean of {use.n}; {zone.zone} {zone.intensity_kg_j * J_PER_KWH * 1000:.1f} g/kWh"
        f"{f', {zone.basis},' if zone.basis else ''}{f' in {zone.year}' if zone.year else ''} "
        f"by {zone.source or 'an unnamed source'}; PUE {zone.pue:g}"
    )
    lines = [
        "co2_eq_emissions:",
        f"  emissions: {grams.mean:.6g}",
        f"  source: {_quoted(source)}",
        '  training_type: "pre-training"',  # every workload starts from random weights
        *([f"  geographical_location: {_quoted(where)}"] if where else []),
        f"  hardware_used: {_quoted(hardware)}",
    ]
    note = f"note: {use.workload}, {use.method}: one training run; tuning and failed runs are not in it"
    return ("\n".join(["---", *lines, "---"]) + "\n").encode(), [note]


def _quoted(text: str) -> str:
    return json.dumps(wording.plain(wording.clean(text)), ensure_ascii=False)


def _cards(trials: Sequence[Trial]) -> list[str]:
    names = [card.get("name") for t in trials for card in (t.environment.get("gpus") or {}).values()]
    return sorted({str(name) for name in names if name})


def _chosen(exported: ExportedRun, workload: str | None, method: str | None) -> Use:
    """The one cell that is meant, with measured energy."""
    known = exported.carbon.uses
    chosen = [use for use in known if workload in (None, use.workload) and method in (None, use.label)]
    if len(chosen) != 1:
        what = "nothing fits" if not chosen else f"{len(chosen)} cells fit, and a card is of one model"
        hint = "one of: " + "; ".join(f"--workload {u.workload} --method {u.label}" for u in chosen or known)
        raise UsageError(Problem("E610", what, hint=wording.clean(hint)))
    (use,) = chosen
    if use.measured_j is None:
        hint = "a modelled figure is no measurement; energybench doctor says what this machine could measure"
        raise UsageError(Problem("E610", f"energy of {use.workload}, {use.method}: {use.reason}", hint=hint))
    return use


# ── Software Carbon Intensity ─────────────────────────────────────────────────────────────────────────────


def sci(
    exported: ExportedRun, *, per: str = "run", embodied: float | None = None, lifespan: float | None = None, **_: Any
) -> Exported:
    """SCI = (E · I + M) per R (ISO/IEC 21031:2024), in grams, for each cell with measured energy.

    E holds the PUE. M = embodied · (seconds of the run / lifespan), the whole machine being reserved; without it there
    is no score, only its operational part. R: one training run, epoch or sample.
    """
    if (embodied is None) != (lifespan is None):
        hint = "--embodied 150 --lifespan 4: 150 kg CO2e over 4 years"
        raise UsageError(Problem("E610", "embodied emissions need both their mass and a lifespan", hint=hint))
    zone = exported.zone
    cells = [_score(exported, use, zone, per, embodied, lifespan) for use in exported.carbon.uses]
    if all(cell["E_kwh"] is None for cell in cells):
        reasons = "; ".join(dict.fromkeys(use.reason for use in exported.carbon.uses))
        raise UsageError(Problem("E610", f"no cell has measured energy: {reasons}", hint="energybench doctor"))
    missing = embodied is None
    facts = {
        "specification": "Software Carbon Intensity, ISO/IEC 21031:2024: SCI = (E * I + M) per R",
        "suite": exported.run.suite,
        "run": exported.run.run,
        "tool": f"energybench {__version__}",
        "functional_unit": UNITS[per],
        "boundary": "the training window, by the sensors named; see not_in_it of report --carbon --json",
        "I_g_per_kwh": float(f"{zone.intensity_kg_j * J_PER_KWH * 1000:.6g}"),
        "zone": zone.zone,
        "basis": zone.basis,
        "year": zone.year,
        "pue": zone.pue,
        "source": zone.source,
        "M": "missing: give --embodied KG and --lifespan YEARS; without it the figures are operational only, no SCI"
        if missing
        else f"{embodied:g} kg CO2e over {lifespan:g} years, the whole machine for the seconds of a run",
        "cells": cells,
    }
    notes = ["note: M is missing, so there is no SCI score, only its operational part"] if missing else []
    return (json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(), notes


def _score(
    exported: ExportedRun, use: Use, zone: Zone, per: str, embodied: float | None, lifespan: float | None
) -> dict[str, Any]:
    of_cell = [t for t in exported.trials if t.workload == use.workload and t.method == use.label]
    blocks = interim.current_look(exported.run, exported.trials).blocks  # the energy's, of the carbon report
    trials = pairing.newest((t for t in of_cell if t.block < blocks), exported.examination.reason_unusable)
    units = _units(trials, per)
    cell: dict[str, Any] = {
        "workload": use.workload,
        "method": use.label,
        "trials": use.n,
        "sensors": use.sensors,
        "R": units,
        "E_kwh": None,
        "operational_g": None,
        "M_g": None,
        "sci_g": None,
    }
    if use.measured_j is None or not units:
        return cell | {"reason": use.reason or f"the records do not say how many {per}s there were"}
    energy, grams = (use.measured_j.times(zone.pue / J_PER_KWH / units), zone.kg(use.measured_j).times(1000 / units))
    cell |= {"E_kwh": energy.mean, "operational_g": grams.mean, "operational_g_95": [grams.low, grams.high]}
    if embodied is not None and lifespan is not None:
        seconds = sum(pairing.seconds(t) for t in trials) / len(trials)
        made = 1000 * embodied * seconds / (3600 * HOURS_PER_YEAR * lifespan) / units
        cell |= {"M_g": made, "sci_g": grams.mean + made}
    return cell


def _units(trials: Sequence[Trial], per: str) -> float | None:
    """How many functional units a training run holds, by its recipe: whoever skips epochs does not get more of them."""
    if per == "run":
        return 1.0
    counts = [t.epochs * (t.samples if per == "sample" else 1) for t in trials if t.epochs and t.samples]
    return sum(counts) / len(counts) if counts and len(counts) == len(trials) else None


# ── an earlier export, which another of the same form may replace ─────────────────────────────────────────────────────


def _is_table_of_trials(content: bytes) -> bool:
    return content.startswith(b"suite,run,trial,workload,method,role,block,") or content == b"trial\n"


def _is_our_emissions(content: bytes) -> bool:
    """codecarbon's own file has the same head: the ids of its runs are others."""
    head, *lines = content.decode("utf-8", "replace").splitlines() or [""]
    if head != ",".join(EMISSIONS):
        return False
    try:
        first = next(csv.DictReader([head, *lines[:1]]), None)
    except csv.Error:
        return False
    return first is not None and re.match(r"b\d+-i\d+-", first["run_id"] or "") is not None


def _is_model_card(content: bytes) -> bool:
    """Our block alone: in a card of somebody's there is more."""
    text = content.decode("utf-8", "replace")
    return bool(re.fullmatch(r'---\nco2_eq_emissions:\n(  .*\n)*  source: "energybench .*\n(  .*\n)*---\n', text))


def _is_table_of_epochs(content: bytes) -> bool:
    return content.startswith(b"suite,run,trial,workload,method,role,block,seed,status,epoch,training_loss,wall_s")


KINDS = {
    "curves": Kind("a table of trials' epochs", _is_table_of_epochs),
    "csv": Kind("a table of trials", _is_table_of_trials),
    "parquet": Kind("a table of trials", lambda found: found.startswith(b"PAR1") and b"measured_error_j" in found),
    "emissions": Kind("an emissions.csv", _is_our_emissions),
    "model-card": Kind("a model card's block", _is_model_card),
    "sci": json_kind("an SCI score", lambda found: bool(found["functional_unit"] and "energybench" in found["tool"])),
}

__all__ = ["EMISSIONS", "KINDS", "ExportedRun", "export", "rows"]
