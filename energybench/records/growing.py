"""The records of a run that is being made, in memory: read once when it begins, then each as it is written.

What a trial or a block costs here does not grow with what is done: nothing is read again, and the folder is listed only
where somebody else put a file into it, which the time of its last change tells. What was changed or taken away behind
the run's back is found before it is closed as finished: then everything is read once more.
"""

from __future__ import annotations

from energybench.common.errors import UsageError
from energybench.records.kept import Shared, Source, keep
from energybench.records.reader import COUNTING_RUNS, RECORDS, read_trials, whole_trial
from energybench.records.record import CountingRun, Trial
from energybench.records.run_folder import Folder


class GrowingRecords:
    """Attributes:
    trials: all that are there, as they are kept, in no order
    names:  of the files of trials and counting runs, from the run's folder
    """

    def __init__(self, folder: Folder) -> None:
        """folder: locked. Raises UsageError E601, E612, E621, E622, E625 for a record that cannot be used."""
        self._folder, self._shared = folder, Shared()
        self.names: set[str] = set()
        self.read_all()

    def read_all(self) -> None:
        """All of them from the disk, whatever is known. Raises as the constructor."""
        self._changed_ns = self._last_change_ns()
        self._touched = False
        self.trials = self._folder.trials()
        self._counted = {(each.workload, each.method): each for each in self._folder.read_counting_runs()}
        self.names = self.listed()
        self._blocks: dict[int, list[Trial]] = {}
        for trial in self.trials:
            self._blocks.setdefault(trial.block, []).append(trial)

    @property
    def counting_runs(self) -> list[CountingRun]:
        return list(self._counted.values())

    def listed(self) -> set[str]:
        """The names of the files that are there now, from the run's folder."""
        held = self._folder.held
        return {*held.names(RECORDS, ".json"), *held.names(COUNTING_RUNS, ".json")}

    def of_block(self, block: int) -> list[Trial]:
        return self._blocks.get(block, [])

    def write(self, name: str, record: Trial | CountingRun) -> None:
        """Into the folder, and here. Raises CannotWrite as `Folder.write_record`; what is finished is written first."""
        self._touched |= self._last_change_ns() != self._changed_ns
        try:
            seal = self._folder.write_record(name, record)
        finally:
            self._changed_ns = self._last_change_ns()
        self.names.add(name)
        if isinstance(record, CountingRun):
            self._counted[record.workload, record.method] = record
            return
        source = Source(whole_trial, self._folder.path.absolute(), record.trial, seal)
        self._add(keep(record, source, self._shared))

    def look_around(self) -> None:
        """Reads what others put there since: a record of another run ends this one. Raises as the constructor."""
        changed_ns = self._last_change_ns()
        if not self._touched and changed_ns == self._changed_ns:
            return
        self._touched, self._changed_ns = False, changed_ns
        held = self._folder.held
        new = [name for name in held.names(RECORDS, ".json") if name not in self.names]
        for trial in read_trials(held, self._folder.run_file(), new):
            self._add(trial)
        self.names.update(new)

    def _add(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._blocks.setdefault(trial.block, []).append(trial)

    def _last_change_ns(self) -> int:
        """Of the folder of trials; 0 where there is none yet."""
        try:
            facts = self._folder.held.facts(RECORDS)
        except UsageError:
            return 0
        return facts.st_mtime_ns if facts else 0
