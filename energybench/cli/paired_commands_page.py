"""What `energybench measure` prints: one line for one command, a few for two."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from energybench.cli.paired_commands import NAME, CommandComparison
from energybench.common.outputs import json_kind
from energybench.common.renamed import as_data
from energybench.common.units import format_bytes
from energybench.meter.combine import added_error
from energybench.meter.combine import in_short as in_short_device
from energybench.meter.modelled import MODEL, loads_of, whole_machine
from energybench.meter.not_seen import in_short, not_seen
from energybench.meter.reading import Energy, Reading
from energybench.records.record import Trial
from energybench.report.terminal import STYLES, wrap
from energybench.runner.progress import redraws
from energybench.verdict import wording
from energybench.verdict.figures import Measured, Row, Summary
from energybench.verdict.pairing import energies, mean_of, seconds
from energybench.verdict.summary import plain_data
from energybench.windows.file import doubtful_words

# Of `-o`; a record of a suite's trial looks alike and is no measurement of this verb's.
RECORD_KIND = json_kind(
    "a record of a measured command",
    lambda found: found["workload"] == NAME and found["trial"] == "b0-baseline" and not found.get("run_identity"),
)
COMPARISON_KIND = json_kind(
    "a comparison of two commands", lambda found: {"command", "vs", "pairs", "trials"} <= set(found)
)


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str], None]]:
    """One line that says what runs, on a terminal; nothing moves while it runs, for it is being metered."""
    live = redraws(console)

    def clear() -> None:
        if live:
            console.file.write("\r\x1b[2K")
            console.file.flush()

    def say(text: str) -> None:
        clear()
        if live:
            console.print(Text(text, "dim", no_wrap=True), end="")

    try:
        yield say
    finally:
        clear()


def line(trial: Trial) -> str:
    """ "energybench: 1.2 s, 372 J ± 1 J gpu by the card's energy counter; status 0": the whole command."""
    reading = trial.train
    if reading is None:
        return f"energybench: {trial.reason}"
    parts = [wording.duration(reading.wall_s)]
    if reading.cpu_s is not None:
        parts.append(f"{wording.duration(reading.cpu_s)} CPU")
    parts += _joules(reading)
    unseen = not_seen(reading)
    if trial.memory_resident_b:
        parts.append(f"{format_bytes(trial.memory_resident_b)} at most")
    reason = "" if trial.status == "ok" else f"; {trial.reason}"
    left_behind = "".join(
        f"; {flag.detail} left behind and ended" for flag in trial.flags if flag.code == "left_behind"
    )
    doubtful = "".join(f"\n! {doubtful_words(flag)}." for flag in trial.flags if flag.code != "left_behind")
    beside = f"; not seen: {', '.join(unseen)}" if unseen else ""
    return wording.plain(f"energybench: {', '.join(parts)}{beside}{reason}{left_behind}{doubtful}")


def _several(reading: Reading) -> dict[tuple[str, str], list[Energy]]:
    """(source, scope) → the figures of its devices, where it has more than one and each of them a figure."""
    found: dict[tuple[str, str], list[Energy]] = {}
    for energy in reading.energy:
        if energy.measured and energy.device:
            found.setdefault((energy.source, energy.scope), []).append(energy)
    return {source: parts for source, parts in found.items() if len(parts) > 1}


def _joules(reading: Reading) -> list[str]:
    """Every source apart, each with where it comes from; a missing part of the machine with its reason."""
    figures = []
    several = _several(reading)
    for (source, scope), parts in several.items():
        joules, error_j = sum(e.energy_j or 0.0 for e in parts), added_error(e.error_j for e in parts)
        each = ", ".join(f"{in_short_device(e.device)} {wording.si(e.energy_j or 0.0, 'J')}" for e in parts)
        error = "" if error_j is None else f" ± {wording.si(error_j, 'J')}"
        figures.append(f"{wording.si(joules, 'J')}{error} {scope} measured by {wording.sensor(source)} ({each})")
    for energy in reading.energy:
        if energy in several.get((energy.source, energy.scope), ()):
            continue
        if energy.energy_j is None and energy.device:
            continue  # told beside all figures, once, and only where the device has no other figure
        if energy.energy_j is None:
            figures.append(f"no {energy.scope} energy ({in_short(energy)})")
            continue
        error = "" if energy.error_j is None else f" ± {wording.si(energy.error_j, 'J')}"
        how = "measured by" if energy.measured else "modelled by"
        of_what = f", {whole_machine(loads_of([energy]))}" if energy.source.startswith(MODEL) else ""
        by = f"{how} {wording.sensor(energy.source)}{of_what}"
        figures.append(f"{wording.si(energy.energy_j, 'J')}{error} {energy.scope} {by}")
    return figures


def facts(versus: CommandComparison, summary: Summary) -> dict[str, Any]:
    """For `--json` and `-o`: the comparison as in a report, and every trial."""
    row = next((row for workload in summary.workloads for row in workload.rows), None)
    return {
        "schema": 1,
        "command": versus.method_command,
        "vs": versus.baseline_command,
        "pairs": versus.pairs,
        "interrupted": versus.interrupted is not None,
        "energy_note": summary.energy_note,
        "comparison": None if row is None else plain_data(as_data(row)),
        "trials": [trial.model_dump(mode="json", by_alias=True) for trial in versus.trials],
    }


def print_versus(versus: CommandComparison, summary: Summary, console: Console) -> None:
    row = summary.workloads[0].rows[0]
    for role, name, command in (("method", "A", versus.method_command), ("baseline", "B", versus.baseline_command)):
        _side(f"{name}  {shlex.join(command)}", [t for t in versus.trials if t.role == role], console)
    if row.measured is None:
        _say(console, "No pair is finished, so there is nothing to compare.", "yellow")
        return
    for text in _sentences(row):
        _say(console, text, "bold" if text.startswith("A ") else "")
    verdict = Text("Verdict: ").append(row.verdict, STYLES.get(row.verdict, "bold"))
    because = wording.plain(row.reason).replace("block", "pair")
    console.print(verdict.append(f": {because}." if because else "."))
    if row.detectable_rel is not None:
        pairs = wording.blocks(row.n).replace("block", "pair")
        least = wording.percent(row.detectable_rel)
        _say(console, f"{pairs} see savings from {least}; what they compute is not compared.")
    if summary.energy_note:
        _say(console, summary.energy_note, "yellow")
    raised = {flag.code: flag for flag in (*summary.workloads[0].flags, *row.flags)}
    for flag in raised.values():
        detail = f" ({flag.detail})" if flag.detail else ""
        if flag.code != "too_few_blocks":  # the verdict says it
            _say(console, f"! {flag.severity}: {flag.sentence}{detail}", "yellow")


def _side(title: str, trials: Sequence[Trial], console: Console) -> None:
    _say(console, title, "bold")
    times = [seconds(trial) for trial in trials]
    time = mean_of(times)
    if time is None:
        return
    spread = "" if time.sd is None else f" ± {wording.duration(time.sd)}"
    runs = f"{time.n} run{'s' * (time.n != 1)}"
    between = f"{wording.duration(min(times))} … {wording.duration(max(times))}"
    _say(console, f"time    {wording.duration(time.mean)}{spread}   ({between}, {runs})", indent="   ")
    for energy in energies(trials):
        if energy.energy_j is not None:
            how = "measured by" if energy.measured else "modelled by"
            spread = "" if energy.energy_j.sd is None else f" ± {wording.si(energy.energy_j.sd, 'J')}"
            of_what = f", {scope}" if (scope := wording.modelled_of(energy)) else ""
            source = f"{energy.scope}, {how} {wording.sensor(energy.source)}{of_what}"
            _say(console, f"energy  {wording.si(energy.energy_j.mean, 'J')}{spread}   {source}", indent="   ")


def _sentences(row: Row) -> list[str]:
    figures = [(row.measured, False), (row.time, True)]
    return [
        _sentence(each)
        for each, again in figures
        if each and not (again and row.measured and row.measured.quantity == "time")
    ]


def _sentence(comparison: Measured) -> str:
    """The ratio and its interval, then the same as a saving."""
    what = wording.what(comparison.quantity, comparison.scope)
    verb = "takes" if comparison.quantity == "time" else "uses"
    ratio = wording.number(1 - comparison.saving_rel, 3)
    if comparison.low_rel is not None and comparison.high_rel is not None:
        low, high = (wording.number(1 - bound, 3) for bound in (comparison.high_rel, comparison.low_rel))
        ratio += f" [{low}, {high}]"
    less = "less" if comparison.saving_rel >= 0 else "more"
    share = wording.percent(abs(comparison.saving_rel)) if math.isfinite(comparison.saving_rel) else "any amount"
    return (
        f"A {verb} {ratio} times the {what} of B: {share} {less}{'' if comparison.quantity == 'energy' else ' time'}."
    )


def _say(console: Console, text: str, style: str = "", indent: str = "") -> None:
    lines = wrap(wording.clean(text), max(console.width, 20), indent + "   " * bool(indent), indent)
    console.print(Text(wording.plain("\n".join(lines)), style), soft_wrap=True)
