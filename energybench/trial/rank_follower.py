"""What every rank but the first does in a trial: the same in the same order, without meters and without a judge.

Each call that waits for the others stands in `trial.py` at the same place.
"""

from __future__ import annotations

from functools import partial

from energybench.meter import devices
from energybench.process import heap_layout
from energybench.train.data import Data
from energybench.train.ranks import Ranks
from energybench.train.run import Run
from energybench.trial.build import build
from energybench.trial.on_ranks import FollowedWindow, report_of
from energybench.trial.spec import TrialSpec
from energybench.trial.warmup import warm_up
from energybench.workloads import datasets


def follow_trial(spec: TrialSpec, ranks: Ranks) -> None:
    """All of it, up to the end of `finish`."""
    synchronise = partial(devices.synchronise, ranks.device)
    train = datasets.open_part(spec.data, spec.workload.data, ranks.device, "train")
    warming = _built(spec, train, ranks)
    warm_up(warming, spec.warmup, synchronise, ranks.agree)
    del warming
    heap_layout.draw()
    run = _built(spec, train, ranks)
    heap_layout.draw()
    window, asked = FollowedWindow(synchronise, ranks), looks_between(spec)

    def after_epoch(run: Run) -> None:
        if not asked or not ranks.agree(False):
            return
        window.stop()
        if run.continues:
            window.start()

    window.start()
    run.train(after_epoch)
    window.stop()
    ranks.gather(report_of(run))
    ranks.barrier()
    run.finish()
    ranks.barrier()


def looks_between(spec: TrialSpec) -> bool:
    """Whether the first rank may look at the test set between two epochs: then it says after each whether it does."""
    return spec.workload.train.evaluate == "every epoch" or spec.workload.target is not None


def _built(spec: TrialSpec, train: Data, ranks: Ranks) -> Run:
    """As the first rank does it, whose meters see it."""
    ranks.barrier()
    run = build(spec, train, ranks.device, ranks=ranks)
    ranks.barrier()
    return run
