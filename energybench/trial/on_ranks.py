"""What a trial on several ranks does that one on a single device need not: a window around all of them, one record.

    window:  every rank is ready ┄ the meters are read ┄ all begin … all are done ┄ the meters are read

So the seconds are those of the slowest rank, no rank computes outside, and the node is read once.
"""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import torch

from energybench.meter import Meter
from energybench.meter.window import Window
from energybench.records.record import Passes
from energybench.train.fingerprint import parameters_fingerprint
from energybench.train.ranks import Ranks
from energybench.train.run import Run
from energybench.train.tally import RankTally
from energybench.trial.record_draft import TrialDraft


class SharedWindow(Window):
    """The first rank's."""

    def __init__(self, meters: Sequence[Meter], synchronise: Callable[[], None], ranks: Ranks) -> None:
        self._ranks = ranks

        def meet() -> None:
            synchronise()
            ranks.barrier()

        super().__init__(meters, meet)

    def start(self) -> None:
        super().start()
        self._ranks.barrier()  # only now the others begin


class FollowedWindow:
    """The same as another rank sees it: it starts and stops where the first one's does, and reads nothing."""

    def __init__(self, synchronise: Callable[[], None], ranks: Ranks) -> None:
        self._synchronise, self._ranks = synchronise, ranks
        self._open = False

    def start(self) -> None:
        """Returns when the first one's window is open."""
        self._synchronise()
        self._ranks.barrier()
        self._ranks.barrier()
        self._open = True

    def stop(self) -> None:
        """Done: the first one's window closes when all are. One that is closed already stays so, as the first one's."""
        if self._open:
            self._open = False
            self._synchronise()
            self._ranks.barrier()


class RankReport(TypedDict):
    """What one rank tells the first when training is over.

    parameters_sha256: of the model's parameters, which must be the same on all; buffers such as running statistics of
                       BatchNorm are each rank's own, and the first one's are judged
    """

    tally: RankTally
    samples_sha256: str
    parameters_sha256: str
    own_samples: int
    memory_resident_b: int
    memory_device_b: int | None


def report_of(run: Run) -> RankReport:
    return RankReport(
        tally=run.tally.as_rank(),
        samples_sha256=run.samples_sha256(),
        parameters_sha256=parameters_fingerprint(run.model),
        own_samples=run.tally.samples_forward,
        memory_resident_b=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        memory_device_b=torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None,
    )


def samples_of(reports: Sequence[RankReport]) -> str:
    """One hash of what went forward on all ranks."""
    return hashlib.sha256("".join(report["samples_sha256"] for report in reports).encode()).hexdigest()


def apart(reports: Sequence[RankReport]) -> list[int]:
    """Numbers of the ranks whose weights are not the first one's."""
    first = reports[0]["parameters_sha256"]
    return [number for number, report in enumerate(reports) if report["parameters_sha256"] != first]


def keep(reports: Sequence[RankReport], run: Run, record: TrialDraft) -> None:
    """Make the first rank's record that of all of them: passes and memory add up.

    Ranks that did not train one model are no training: the record is then invalid.
    """
    run.tally.add_ranks(report["tally"] for report in reports[1:])
    record.passes = Passes(**asdict(run.tally.passes()))
    record.samples_sha256 = samples_of(reports)
    record.diagnostics["ranks"] = facts(reports, run)
    if others := apart(reports):
        named = ", ".join(map(str, others))
        record.status = "invalid"
        record.reason = f"the ranks ended with different weights: {named} with others than the first"


def facts(reports: Sequence[RankReport], run: Run) -> dict[str, Any]:
    """For the record: what each rank sent forward, and what methods do otherwise than on one device."""
    differs = {method.name: method.differs_on_devices for method in run.methods if method.differs_on_devices}
    return {
        "world": len(reports),
        "samples_forward": [report["own_samples"] for report in reports],
        "memory_resident_b": [report["memory_resident_b"] for report in reports],
        **({"differs": differs} if differs else {}),
    }
