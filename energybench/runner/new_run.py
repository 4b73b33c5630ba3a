"""A run that begins: what its run.json says, and the question before it begins beside one that is unfinished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from energybench.common.errors import Problem, UsageError
from energybench.records.record import Looks, RunFile
from energybench.records.run_folder import Folder, abandoned
from energybench.records.run_identity import new_identity
from energybench.runner import schedule
from energybench.runner.plan_request import Planned
from energybench.runner.progress import Progress
from energybench.suite.suite import Suite
from energybench.trial.spec import MethodSpec, stack_of


def new_run_file(planned: Planned, name: str) -> RunFile:
    """run.json of a run that begins. name: of its folder"""
    suite = planned.suite
    data = {
        name: known.data.for_record()
        | {"parameters": known.parameters}
        | ({"weights": known.weights.model_dump(mode="json")} if known.weights else {})
        for name, known in planned.workloads.items()
    }
    return RunFile(
        suite=suite.suite,
        about=suite.about,
        run=name,
        run_identity=new_identity(),
        digest=planned.digest,
        stamp=suite.stamp,
        suite_path=suite.path.name,
        suite_text=suite.text,
        resolved=suite.digest_source(),
        cells=[
            cell.model_copy(update={"stack": [_portable(each) for each in stack_of(cell.stack)]})
            for cell in planned.cells
        ],
        blocks=planned.spec.blocks,
        looks=Looks(at=list(planned.spec.looks)) if planned.spec.looks else None,
        order_seed=schedule.draw_order_seed(),
        machine=planned.machine,
        data=data,
        metrics=planned.result.metrics,
        sources={
            each.name: f"{Path(each.path).name} ({each.origin})"
            for cell in planned.cells
            for each in stack_of(cell.stack)
        }
        | planned.result.sources,
    )


def _portable(method: MethodSpec) -> dict[str, Any]:
    """A stack's entry for the record, without the folders of this machine."""
    return method.model_copy(update={"path": Path(method.path).name}).model_dump(mode="json")


def ask_about_another(suite: Suite, differs: Callable[[RunFile], str], progress: Progress) -> None:
    """Before a new run begins beside one that the same command would have continued, had nothing changed.

    Who sits at a terminal is asked. A job in a queue has nobody to ask: it goes on in a folder of its own, and says so.
    Raises UsageError E623 when the answer is no.
    """
    unfinished = abandoned(suite.suite, suite.stamp)
    if unfinished is None:
        return
    path, run = unfinished
    progress.say(f"note: the unfinished run in {path} stays as it is. Changed since: {differs(run)}")
    if not progress.confirm("Start a new run beside it?"):
        hint = "put back what changed and run again to continue it, or add --new"
        raise UsageError(Problem("E623", "no new run was started beside this one", str(path), hint))


def refuse_foreign_page(folder: Folder) -> None:
    """Before anything runs. Raises CannotWrite E632 where a page of somebody else's has the name of the report."""
    if folder.held.has(folder.report.name):
        from energybench.report import pages

        pages.refuse_foreign_pages(folder.held)
