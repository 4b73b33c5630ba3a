"""Every reason a number may not be trusted, in one list.

Severity says what happens to the number:
    invalid   it is not printed and enters no comparison
    struck    it is printed struck through and gets no verdict
    marked    it is printed with a mark, and the sentence stands below the table

A flag is raised by the trial itself while it runs, or by a test here when the records are read; `raised`
says by which. A code that this list does not know (a newer record) is marked and never dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from energybench.record import Flag, Passes, RunFile, Trial, Witness
from energybench.stats import FEWEST_BLOCKS, Paired

Severity = Literal["invalid", "struck", "marked"]
Scope = Literal["trial", "cell", "workload", "run"]

LEDGER_TOLERANCE = 0.001  # plain ledger against counter
DATA_WAIT_LIMIT = 0.05  # of the window
CPU_SHARE = 0.9  # CPU seconds that an undisturbed CPU trial gets per second
UNAVAILABLE = "unavailable"  # the source of a sensor that was never there; any other that is null was lost
EPOCH_TOLERANCE = 0.5  # epochs between a method and its control: a control trains whole epochs


@dataclass(frozen=True, slots=True)
class Kind:
    """One reason: what it is about, what it does to the number, how it is told."""

    code: str
    severity: Severity
    of: Scope
    raised: str  # "in the trial" or the test's name in this file
    sentence: str


IN_TRIAL = "in the trial"

REGISTRY: tuple[Kind, ...] = (
    Kind("dead_layer", "invalid", "trial", IN_TRIAL,
         "A method's override was never entered: what ran was not the method."),
    Kind("sensor_lost", "invalid", "trial", "check_trial",
         "An energy sensor died inside the window; a partial total would be a wrong one."),
    Kind("diverged", "invalid", "trial", "check_trial",
         "Training diverged: there is no trained model to compare."),
    Kind("witness_differs", "struck", "cell", "check_cell",
         "The metered trial did not do the work that the counted run did."),
    Kind("aa_failed", "struck", "workload", "check_workload",
         "Plain training differs from itself by more than the noise: a biased harness, so no verdict."),
    Kind("too_few_blocks", "marked", "cell", "check_cell",
         "Fewer than 3 blocks: an interval needs at least 3, so there is no verdict."),
    Kind("inert", "marked", "trial", IN_TRIAL,
         "The method never acted: nothing was skipped, dropped or changed."),
    Kind("estimate_gap", "marked", "cell", "check_cell",
         "The method's own formula and the independent counter disagree by more than the suite allows."),
    Kind("uncounted_steps", "marked", "cell", "check_cell",
         "Some kinds of steps were never met by the counted run, so their FLOPs are not known."),
    Kind("ledger_differs", "marked", "workload", "check_workload",
         "On plain training the ledger and the independent counter differ by more than 0.1 %."),
    Kind("data_wait", "marked", "trial", "check_trial",
         "More than 5 % of the time was spent waiting for data: the model was not what was measured."),
    Kind("window_short", "struck", "trial", IN_TRIAL,
         "The window is shorter than 50 ticks of the energy counter, so its ends weigh too much."),
    Kind("host_contention", "marked", "trial", "check_trial",
         "Other work on this machine took the processor away."),
    Kind("control_differs", "marked", "cell", "check_cell",
         "The control did not train the epochs that the method kept, so they are not at one budget."),
    Kind("quick", "marked", "run", "check_run",
         "A smoke test: small data, few epochs. It shows that everything works, not what a method saves."),
    Kind("modelled_energy", "marked", "run", "check_run",
         "No energy sensor: energy is modelled from time and load, and is never a saving."),
)  # fmt: skip
KINDS: dict[str, Kind] = {kind.code: kind for kind in REGISTRY}


def kind(code: str) -> Kind:
    """The kind of a code; one unknown to this version is marked, so that it is seen."""
    return KINDS.get(code) or Kind(
        code, "marked", "trial", IN_TRIAL, f"Flagged '{code}' by another version of energybench."
    )


def worst(flags: Iterable[Flag]) -> Severity | None:
    """The gravest severity among the flags."""
    found = {kind(flag.code).severity for flag in flags}
    return next((each for each in ("invalid", "struck", "marked") if each in found), None)


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
    for energy in window.energy:
        if energy.energy_j is None and energy.source != UNAVAILABLE:
            raise_("sensor_lost", f"{energy.source} {energy.scope}: {energy.reason or 'no reason given'}")
    if waited > DATA_WAIT_LIMIT * window.wall_s:
        raise_("data_wait", f"{_percent(waited / window.wall_s)} of the window")
    if trial.device == "cpu" and window.cpu_s is not None:
        share = (window.cpu_s + waited) / window.wall_s  # one thread alone, never held up, reaches 1
        if share < CPU_SHARE:
            raise_("host_contention", f"{share:.2f} CPU seconds per second")
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


def compare_passes(trial: Trial, witness: Witness) -> str | None:
    """How the trial's tally differs from that of the witness with the same seed; None when it does not.

    Another seed may draw other samples, so nothing is compared.
    """
    if trial.passes is None or witness.passes is None or witness.status != "ok" or trial.seed != witness.seed:
        return None
    ours, theirs = _tally(trial.passes), _tally(witness.passes)
    for name in (*ours, *(name for name in theirs if name not in ours)):
        a, b = ours.get(name, 0), theirs.get(name, 0)
        if abs(a - b) > 1e-9 * max(abs(a), abs(b)):
            return f"{name}: {a:g} metered, {b:g} counted"
    return None


def _unpriced(trials: Sequence[Trial], witness: Witness) -> list[str]:
    """Kinds of steps that a trial took and the witness never counted."""
    if witness.status != "ok":
        return []
    return sorted({key for t in trials if t.passes for key in t.passes.keys} - set(witness.keys))


def _gap_because(trials: Sequence[Trial]) -> str:
    """The methods' own explanation, if they have one."""
    told = [
        found.get("gap_because")
        for t in trials
        for found in t.diagnostics.values()
        if isinstance(found, dict)
    ]
    reasons = dict.fromkeys(str(reason) for reason in told if reason)
    return f": {'; '.join(reasons)}" if reasons else ""


def check_cell(
    *,
    blocks: int,
    trials: Sequence[Trial] = (),
    witness: Witness | None = None,
    estimated_rel: float | None = None,
    counted_rel: float | None = None,
    estimate_gap: float | None = None,
    epochs_kept: float | None = None,
    epochs_control: float | None = None,
) -> list[Flag]:
    """What shows only when a cell's trials lie side by side. Figures are savings; `blocks` were paired."""
    found: list[Flag] = []
    differs = [compare_passes(trial, witness) for trial in trials] if witness else []
    if any(differs):
        found.append(Flag(code="witness_differs", detail=next(filter(None, differs))))
    if witness and (kinds := _unpriced(trials, witness)):
        found.append(Flag(code="uncounted_steps", detail=", ".join(f"'{name}'" for name in kinds)))
    if estimated_rel is not None and counted_rel is not None and estimate_gap is not None:
        gap = abs(estimated_rel - counted_rel)
        if gap > estimate_gap:
            found.append(Flag(code="estimate_gap", detail=f"{100 * gap:.1f} pp apart{_gap_because(trials)}"))
    if blocks < FEWEST_BLOCKS:
        found.append(Flag(code="too_few_blocks", detail=f"{blocks} block{'s' * (blocks != 1)}"))
    if epochs_kept is not None and epochs_control is not None:
        apart = abs(epochs_kept - epochs_control)
        if apart > EPOCH_TOLERANCE:
            found.append(
                Flag(
                    code="control_differs", detail=f"{epochs_kept:g} epochs kept, {epochs_control:g} trained"
                )
            )
    return found


def aa_fails(twin: Paired, noise: float) -> bool:
    """Whether plain training differs from itself: the whole 95 % interval lies beyond ±noise."""
    low, high = twin.saving_interval()
    return twin.n >= FEWEST_BLOCKS and (low > noise or high < noise / (noise - 1))


def check_workload(
    *,
    twin: Paired | None,
    noise: float,
    plain_flop: float | None = None,
    counted_flop: float | None = None,
    counted_error_flop: float = 0.0,
) -> list[Flag]:
    """The harness against itself: the A/A comparison, and plain training's ledger against the counter."""
    found: list[Flag] = []
    if twin is not None and aa_fails(twin, noise):
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
