"""What of a suite is code: its commands, the files that it names, and methods that a name leads to elsewhere.

A suite is data, and a file that it names is not: it runs with everything that you may do. `--no-user-code` refuses a
suite from a stranger that would run any, before anything runs. Methods, tasks, models, data sets and meters of
installed packages are not refused: whoever installed them has let their code in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from energybench.common.errors import Problem
from energybench.common.hashing import digest
from energybench.common.names import known_as
from energybench.common.shipped import shipped
from energybench.suite.command_tables import CommandMethodTable, CommandWorkloadTable
from energybench.suite.suite import Suite
from energybench.suite.tables import WorkloadTable
from energybench.train import discovery, plugins
from energybench.workloads import catalogue

HINT = "read it, and leave out --no-user-code if you trust it"


def user_code(suite: Suite) -> list[Problem]:
    """Every place of the suite that would run code which did not come with energybench or an installed package."""
    return list(dict.fromkeys([*_workloads(suite), *_methods(suite)]))


def _workloads(suite: Suite) -> Iterator[Problem]:
    for index, workload in enumerate(suite.workloads):
        if isinstance(workload, CommandWorkloadTable):
            yield _command(suite.where(("workload", index, "command")))
            continue
        uses = {("task",): workload.task_use, ("model", "use"): workload.model.use, ("data", "use"): workload.data.use}
        for loc, use in uses.items():
            if discovery.names_file(use):
                message = f"the {loc[0]} is a file, '{use}', and --no-user-code runs none"
                yield Problem("E408", message, suite.where(("workload", index, *loc)), HINT)


def _methods(suite: Suite) -> Iterator[Problem]:
    known, home = discovery.sources(), shipped("methods").resolve()
    for index, method in enumerate(suite.methods):
        if isinstance(method, CommandMethodTable):
            yield _command(suite.where(("method", index, "command")))
            continue
        place = suite.where(("method", index, "use"))
        for use in [method.use] if isinstance(method.use, str) else method.use:
            source = known.get(known_as(use, known))
            if discovery.names_file(use):
                message = f"the method is a file, '{use}', and --no-user-code runs none"
                yield Problem("E306", message, place, HINT)
            elif source is not None and _is_the_users(source, home):
                message = f"the method '{use}' is {source.path}, found in ./methods, and --no-user-code runs none"
                yield Problem("E306", message, place, HINT)


def _command(place: str) -> Problem:
    return Problem("E408", "a command is code, and --no-user-code runs none", place, HINT)


def _is_the_users(source: discovery.Source, home: Path) -> bool:
    """In a checkout ./methods is the folder that is shipped."""
    return source.origin == "./methods" and home not in source.path.parents


def user_files(workload: WorkloadTable, base: Path) -> list[str]:
    """Fingerprints of the user's own files that a workload names, and of installed packages that it names things of."""
    files = [base / use.partition(":")[0] for use in _uses(workload).values() if discovery.names_file(use)]
    return [
        *(digest(file.read_text(encoding="utf-8")) for file in files),
        *(plugins.fingerprint(offer) for offer in _offers(workload).values()),
    ]


def packages_named(workloads: Iterable[WorkloadTable]) -> dict[str, str]:
    """What installed packages offer of them: "task far" → "far-tasks 1.0 (entry point)"."""
    offers = (item for workload in workloads for item in _offers(workload).items())
    return {f"{kind} {offer.name}": f"{offer.package} ({plugins.ORIGIN})" for kind, offer in offers}


def _offers(workload: WorkloadTable) -> dict[str, plugins.Offer]:
    """ "task" | "model" | "data" → what of the workload an installed package offers."""
    found = {kind: catalogue.offer(kind, use) for kind, use in _uses(workload).items() if not discovery.names_file(use)}
    return {kind: offer for kind, offer in found.items() if offer}


def _uses(workload: WorkloadTable) -> dict[str, str]:
    return {"task": workload.task_use, "model": workload.model.use, "data": workload.data.use}
