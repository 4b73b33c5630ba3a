"""A suite handed to the child that checks it, and what comes back: everything its trials need. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from energybench.common.errors import CannotMeasure, CannotWrite, Problem, UsageError, in_order
from energybench.common.hashing import digest
from energybench.process import subprocess_call
from energybench.process.forkserver import ChildOutcome, Launcher
from energybench.records.record import Cell
from energybench.runner.plan_spec import PairSpec, PlannedWorkload, PlanResult, PlanSpec, Purpose
from energybench.suite.suite import Suite
from energybench.suite.tables import WorkloadTable
from energybench.trial.spec import CellHeader, CountingSpec, MeasureSpec, stack_of

WARMER_C = 10.0  # than at the start of the run, a card may be when a trial begins


def is_counted_on(cell: Cell) -> bool:
    """Whether a cell is planned for sure: one that is not skipped, nor the control of a method that may train less."""
    return not cell.skipped and cell.control not in ("possible", "unlikely")


class Planned:
    """A suite that has passed every check, with what its trials need."""

    def __init__(self, suite: Suite, result: PlanResult, spec: PlanSpec) -> None:
        self.suite, self.spec, self.result = suite, spec, result
        self.workloads = result.workloads
        self.cells, self.notes = list(result.cells), list(result.notes)
        self.machine = result.machine
        self.device, self.device_name = result.device, result.device_name
        self.digest = result.digest
        self.threads = result.threads  # of trainings

    def workload(self, name: str) -> tuple[WorkloadTable, PlannedWorkload]:
        """A workload that is trained, as the suite has it, and what is known of it."""
        return next(each for _, each in self.spec.trainings if each.name == name), self.workloads[name]

    @property
    def measure(self) -> MeasureSpec:
        """The suite's [measure] with what a trial must know of this machine's sensors."""
        cards, cooldown = self.machine.get("gpus", []), self.suite.trials.cooldown
        ticks = [card["tick"]["seconds"] for card in cards if card.get("tick")]
        starts = {card["uuid"]: card["temperature_c"] for card in cards if card.get("temperature_c") is not None}
        measure = self.suite.measure
        return MeasureSpec(
            energy=measure.energy,
            gpus=measure.gpus,
            meters=measure.meters,
            carbon=measure.carbon,
            model=self.machine.get("energy_model"),
            tick_s=max(ticks, default=0.0),
            below_c={uuid: cooldown.below_c or heat + WARMER_C for uuid, heat in starts.items()},
            cooldown_s=cooldown.longest,
        )

    @property
    def measure_commands(self) -> MeasureSpec:
        """The same for a trial that is a command: which cards it uses is its own affair."""
        return self.measure.model_copy(update={"gpus": self.result.cards, "of_children": True})

    @property
    def trials(self) -> int:
        return self.spec.blocks * sum(map(is_counted_on, self.cells))

    @property
    def possible_controls(self) -> int:
        """Trials beyond those: controls of methods of which nobody can tell before whether they train less."""
        return self.spec.blocks * sum(cell.control == "possible" for cell in self.cells)

    @property
    def counting_runs(self) -> list[Cell]:
        """One per cell whose steps are its own; twins and controls take the baseline's steps."""
        distinct = [cell for cell in self.cells if cell.role in ("baseline", "method") and not cell.command]
        return [cell for cell in distinct if not cell.skipped]

    def counting_spec(self, cell: Cell) -> CountingSpec:
        """What the counting run of a cell is handed."""
        workload, known = self.workload(cell.workload)
        seed = self.suite.trials.seed
        return CountingSpec(
            header=CellHeader(
                workload=cell.workload, method=cell.method, role=cell.role, digest=cell.digest, seed=seed
            ),
            base=self.spec.base,
            workload=workload,
            data=known.data,
            stack=stack_of(cell.stack),
            seed=seed,
            weights=known.weights,
            ledger=known.ledger,
            balance_flop_b=known.balance_flop_b,
            threads=self.threads,
            device=self.device,
        )


def spec_of(
    suite: Suite,
    place: Path,
    *,
    device: str | None,
    download: bool,
    purpose: Purpose | None = None,
    until_decided: bool = False,
    added: int = 0,
    metered_elsewhere: bool = False,
) -> PlanSpec:
    """What the check of a suite is handed.

    Args:
        place:         folder for decoded data
        device:        as torch names it; None: the first card, else the processor
        download:      whether data may be fetched
        purpose:       what the plan is for; by default a run, or a check where nothing may be downloaded
        until_decided: as many blocks as the suite declares at most, with its looks
        added:         blocks beyond the declared ones, which change no digest
        metered_elsewhere: no trial runs on this machine
    """
    looks = suite.trials.declared_looks if until_decided else ()
    return PlanSpec(
        purpose=purpose or ("run" if download else "check"),
        base=suite.path.parent,
        cache=place / "data",
        suite=suite,
        variants=tuple(suite.variants()),
        pairs=tuple(PairSpec(workload=w.name, variant=v.label, skipped=reason) for w, v, reason in suite.pairs()),
        places=tuple(suite.places()),
        stamp=tuple(suite.stamp),
        blocks=looks[-1] if looks else suite.trials.blocks,
        looks=looks,
        added=added,
        device=device,
        download=download,
        metered_elsewhere=metered_elsewhere,
    )


def plan(
    suite: Suite,
    launcher: Launcher,
    place: Path,
    *,
    device: str | None = None,
    download: bool = True,
    purpose: Purpose | None = None,
    until_decided: bool = False,
    added: int = 0,
    metered_elsewhere: bool = False,
) -> Planned:
    """Check everything that can be checked without training, in a child. Arguments: as `spec_of` takes them.

    Raises UsageError with every mistake; CannotMeasure where a required sensor is all that is missing.
    """
    spec = spec_of(
        suite,
        place,
        device=device,
        download=download,
        purpose=purpose,
        until_decided=until_decided,
        added=added,
        metered_elsewhere=metered_elsewhere,
    )
    parts = []
    if spec.trainings:
        parts.append(_ask(partial(launcher.call, "energybench.runner.planner:main"), spec, place))
    if spec.commands:
        parts.append(_ask(partial(subprocess_call.call, "energybench.runner.command_plan"), spec, place))
    if problems := in_order(suite.of_one(problem for part in parts for problem in part.problems)):
        raise (CannotMeasure if all(p.code == "E501" for p in problems) else UsageError)(problems)
    return Planned(suite, _together(parts, spec), spec)


def _together(parts: list[PlanResult], spec: PlanSpec) -> PlanResult:
    """Trainings and commands of one suite as one plan, in the order of the file."""
    if not spec.commands:
        return parts[0]
    first, commands = parts[0], parts[-1]
    names = [workload.name for workload in spec.suite.workloads]
    cards = {card["uuid"]: card for part in parts for card in part.machine.get("gpus", [])}
    return PlanResult(
        device=first.device,
        device_name=first.device_name,
        command_device=commands.device_name,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        workloads={name: known for part in parts for name, known in part.workloads.items()},
        threads=first.threads,
        cells=tuple(
            sorted((cell for part in parts for cell in part.cells), key=lambda cell: names.index(cell.workload))
        ),
        machine={**commands.machine, **first.machine} | ({"gpus": list(cards.values())} if cards else {}),
        sources={**first.sources, **commands.sources},
        metrics={name: known for part in parts for name, known in part.metrics.items()},
        cards=commands.cards,
        digest=digest([[part.digest for part in parts], *spec.declared()]),
    )


def _ask(call: Callable[[Path, Path], ChildOutcome], spec: PlanSpec, place: Path) -> PlanResult:
    """What a child makes of the suite. Raises UsageError E606 where it ends without an answer."""
    in_path, out_path = place / "plan.in.json", place / "plan.out.json"
    spec.write(in_path)
    out_path.unlink(missing_ok=True)
    outcome = call(in_path, out_path)
    if outcome.unwritten:
        raise CannotWrite.of(OSError(None, "the process that checks the suite found the disk full"), out_path)
    if not out_path.exists():
        hint = "a file of yours that it loads may end the process; if not, this is a bug of energybench"
        message = f"checking the suite ended early: {outcome.reason or 'it ended with status 0'}"
        raise UsageError(Problem("E606", message, str(spec.suite.path), hint))
    return PlanResult.read(out_path)
