"""Where modules lie that stood elsewhere before the rooms: scripts and plug-ins that import them still find them.

A module imported by its old name has the names of the new one, with a DeprecationWarning that names it. Nothing inside
energybench uses the old names; this finder is asked last, for names that nobody else knows.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# old=new, or old=new+another where its names went to several; all below energybench.
_TABLE = """
    drop_in=algorithms.drop_in_layers equilibrium=algorithms.equilibrium freezing=algorithms.neuron_freezing
    frozen=algorithms.frozen_layers ggd=algorithms.generalized_gaussian hypergradient=algorithms.hypergradient_sgd
    neurons=algorithms.neurons sampling=algorithms.weighted_sampling scores=algorithms.sample_scores
    sparse=algorithms.sparse_layers sparse_backward=algorithms.channel_sparse
    theorem=algorithms.gradsamp_bound+train.convexity
    cost_page=cli.flops_page doctor=cli.doctor listing=cli.listing
    preload=cli.preload printable=cli.terminal_encoding show=cli.show versus=cli.paired_commands
    versus_page=cli.paired_commands_page
    bounds=common.limits files=common.safe_read fingerprint=common.fingerprint
    inert=common.escaping kept=common.sealed_files known=common.open_tables machine=common.machine
    measurable=common.quantities processes=common.processes seeds=common.hashing
    torchvision_shim=common.torchvision_shim units=common.units
    work=flops.work
    alike=gate.comparable ci_formats=gate.ci_formats golden=gate.golden_counts history=gate.history
    report.gate_page=gate.gate_page report.history_page=gate.history_page two_runs=gate.compare_runs
    kit=meter.pool used=meter.devices
    overhead_probe=overhead.probe
    claims_page=papers.page flops.calflops=papers.calflops flops.claims=papers.counting_rules
    flops.given=papers.arguments flops.paper_tables=papers.published_tables flops.rehearsal=papers.shape_trace
    captured=process.output_log guard=process.reaper launch=process.forkserver light=process.subprocess_call
    supervise=process.supervise
    benchmark=pytest_energy.fixture billing=pytest_energy.metered_calls budget=pytest_energy.budget
    energy_table=pytest_energy.energy_table
    folder=records.run_folder record=records.record+meter.reading+records.reader strangers=records.reader
    export=report.export
    changed=runner.what_changed command_plan=runner.command_plan plan=runner.planner planned=runner.plan_request
    planned_energy=runner.plan_energy progress=runner.progress schedule=runner.schedule tracing=runner.tracing
    user_code=runner.user_code
    command_pairs=suite.command_pairing command_tables=suite.command_tables explain=suite.messages
    resolve=suite.overlays+suite.node tables=suite.tables variants=suite.variants where=suite.toml_positions
    context=train.run discovery=train.discovery+common.shipped+workloads.tasks loop=train.run
    method=train.method+train.batch+train.stack_check recipe=train.recipe tally=train.tally
    workloads.data=train.data workloads.images=train.images
    workloads.classification=workloads.tasks.classification workloads.ridge=workloads.tasks.ridge
    workloads.paper_models=workloads.models.paper workloads.model_bounds=workloads.models.bounds
    workloads.image_folders=workloads.datasets.image_folders
    calibrate=trial.calibrate cell=trial.trial+trial.build command_cell=trial.command_trial
    command_quality=trial.command_quality counting=trial.count_cell phases=trial.phases+meter.facts+meter.sensors
    stopwatch=trial.phase_profile warmup=trial.warmup witness=trial.counting_layer
    flags=verdict.flags+verdict.flag_codes looks=verdict.interim+stats.interim report.compare=verdict.workload
    report.carbon=verdict.carbon report.evidence=verdict.pairing+meter.combine report.headline=verdict.headline
    report.looked=verdict.interim_notes+report.markdown_sections
    report.overall=verdict.overall+report.markdown_sections
    report.required=verdict.requirements+report.markdown_sections report.shapes=verdict.figures
    report.summary=verdict.summary report.target=verdict.target report.words=verdict.wording
    measuring=windows.measure+windows.window
"""
HOMES: dict[str, list[str]] = {
    f"energybench.{old}": [f"energybench.{home}" for home in homes.split("+")]
    for old, _, homes in (entry.partition("=") for entry in _TABLE.split())
}
# Old module: old=new, for names that changed since; all others are what they were.
_NAMES_TABLE = """
    command_tables: CommandMethod=CommandMethodTable CommandWorkload=CommandWorkloadTable Source=QualitySourceTable
    files: why_not=unreadable_reason listed=list_folder
    files: too_long=name_too_long NotPlain=NotRegularFile
    inert: inert=printable
    kept: sealed=with_seal unsealed=read_sealed HALF=PART_SUFFIX
    processes: hear_of_children=restore_child_signals deaf_to_interrupts=ignoring_interrupts
    processes: make_room_for_sockets=shorten_socket_folder
    resolve: lay=merge grow=build_tree planted=single_place quicken=apply_quick
    tables: Accept=AcceptTable Carbon=CarbonTable Claims=ClaimsTable Cooldown=CooldownTable Data=DataTable
    tables: Measure=MeasureTable Method=MethodTable Model=ModelTable Open=OpenTable Quality=QualityTable
    tables: Require=RequireTable Skip=SkipTable Table=SuiteTable Target=TargetTable Train=TrainTable
    tables: Trials=TrialsTable Tuned=TunedTable Workload=WorkloadTable
    units: Warmup=WarmupAmount
    variants: Layer=StackItem
    versus: Bench=CommandMeters Versus=CommandComparison
"""
NEW_NAMES: dict[tuple[str, str], str] = {
    (f"energybench.{module}", old): new
    for module, _, entries in (line.strip().partition(": ") for line in _NAMES_TABLE.strip().splitlines())
    for old, _, new in (entry.partition("=") for entry in entries.split())
}


class MovedFinder:
    """Makes a module of an old name whose attributes are those of the new modules. Finder and loader by their methods:
    importlib.abc would cost every start 5 ms."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in HOMES else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary one."""

    def exec_module(self, module: ModuleType) -> None:
        homes = HOMES[module.__name__]
        message = f"{module.__name__} has moved: import {' or '.join(homes)}"
        from energybench.common.renamed import RenamedNameWarning

        warnings.warn(message, RenamedNameWarning, stacklevel=2)

        def look_up(name: str) -> Any:
            current = NEW_NAMES.get((module.__name__, name), name)
            if not name.startswith("__"):  # what the import system asks of a module is its own
                for home in homes:
                    with contextlib.suppress(AttributeError):
                        return getattr(importlib.import_module(home), current)
            raise AttributeError(f"{message}; there is no '{name}'")

        module.__getattr__ = look_up  # type: ignore[method-assign]


def install() -> None:
    """Once, however often it is called."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
