"""What is kept of a trial in memory says what the record says: of every member, on every record of every schema."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from large_runs import made

from energybench.common.errors import UsageError
from energybench.common.sealed_files import with_seal
from energybench.meter.reading import Energy, Reading
from energybench.records import reader
from energybench.records.kept import KeptTrial, Shared, Source, at_hand, keep, whole
from energybench.records.reader import read, read_folder
from energybench.records.record import Estimate, Placement, Trial
from energybench.verdict import devices

OLD = Path(__file__).parent / "old_records"
RUNS = sorted(path.parent for path in OLD.glob("schema-*/*/run.json"))


def members(model: type[Any]) -> list[str]:
    """Fields and properties."""
    properties = [name for name, value in vars(model).items() if isinstance(value, property)]
    return [*model.model_fields, *(name for name in properties if not name.startswith(("_", "model_")))]


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_every_member_of_what_is_kept_is_the_records_own(folder: Path) -> None:
    kept = read_folder(folder)[1]
    for mine in kept:
        record = read(folder / "records" / f"{mine.trial}.json", Trial)
        with at_hand([mine]):
            _hold(mine, record)


def _hold(mine: Trial, record: Trial) -> None:
    for name in members(Trial):
        if name not in ("phases", "train", "estimate", "process", "warmup"):
            assert getattr(mine, name) == getattr(record, name), name
    for part in ("process", "warmup"):
        assert (getattr(mine, part) is None) == (getattr(record, part) is None)
        for name in type(getattr(record, part)).model_fields if getattr(record, part) else ():
            assert getattr(getattr(mine, part), name) == getattr(getattr(record, part), name)
    if record.estimate is not None:
        for name in members(Estimate):
            assert getattr(mine.estimate, name) == getattr(record.estimate, name), name
    assert [*mine.phases] == [*record.phases]
    assert mine.train is mine.phases.get("train")
    for phase, reading in record.phases.items():
        for name in members(Reading):
            if name != "energy":
                assert getattr(mine.phases[phase], name) == getattr(reading, name), (phase, name)
        for one, other in zip(mine.phases[phase].energy, reading.energy, strict=True):
            for name in members(Energy):
                assert getattr(one, name) == getattr(other, name), (phase, name)
    assert mine.model_dump_json(by_alias=True) == record.model_dump_json(by_alias=True)
    with pytest.raises(AttributeError):
        mine.no_such_member  # type: ignore[attr-defined]  # noqa: B018


def test_where_a_trial_ran_is_kept_and_no_file_is_read_for_it() -> None:
    """Every verdict asks for it, of every trial."""
    (old, *_) = (whole(trial) for trial in read_folder(OLD / "schema-3" / "trained")[1])
    placed = old.model_copy(update={"placement": Placement(host="a1", job="slurm 7_1", restarts=2), "world": 2})

    def never(folder: Path, stem: str) -> tuple[Trial, bytes]:
        raise AssertionError(f"{folder}/{stem} was read")

    kept = keep(placed, Source(never, OLD, "t", b""), Shared())
    for name in ("device", "placement", "world", "made_on", "environment"):
        assert getattr(kept, name) == getattr(placed, name), name
    assert devices.marks(kept) == devices.marks(placed)


def test_it_is_equal_to_a_trial_that_says_the_same_and_to_no_other() -> None:
    folder = OLD / "schema-3" / "trained"
    one, other = (read_folder(folder)[1] for _ in range(2))
    assert one == other
    assert one[0] == whole(other[0])
    assert whole(other[0]) == one[0]
    assert one[0] != other[1]
    assert whole(other[0]).model_copy(update={"block": 7}) != one[0]
    assert one[0] != "a trial"
    assert copy.copy(one[0]) == one[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "schema-3" / "trained", tmp_path / "run"))


def changed(path: Path) -> None:
    """Another whole record, with a seal that holds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("seal", None)
    content["curve"][-1]["loss"] = 0.0
    path.write_text(json.dumps(with_seal(content)), encoding="utf-8")


@pytest.mark.parametrize("sealed", [True, False])
def test_a_record_that_was_changed_after_it_was_read_is_not_mixed_with_what_it_was(run: Path, sealed: bool) -> None:
    path = next((run / "records").iterdir())
    if not sealed:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("seal")
        path.write_text(json.dumps(content), encoding="utf-8")
    trial = next(trial for trial in read_folder(run)[1] if trial.trial == path.stem)
    assert trial.curve
    changed(path)
    with pytest.raises(UsageError) as refused:
        trial.curve  # noqa: B018
    assert (refused.value.problems[0].code, refused.value.problems[0].where) == ("E621", str(path))
    path.unlink()
    with pytest.raises(UsageError) as refused:
        trial.diagnostics_of_another_name  # type: ignore[attr-defined]  # noqa: B018
    assert refused.value.problems[0].code == "E601"


def test_a_record_behind_a_link_is_not_read_when_the_rest_is_asked_for(run: Path) -> None:
    path = next((run / "records").iterdir())
    trial = next(trial for trial in read_folder(run)[1] if trial.trial == path.stem)
    path.rename(run / "moved.json")
    path.symlink_to(run / "moved.json")
    with pytest.raises(UsageError) as refused:
        trial.curve  # noqa: B018
    assert refused.value.problems[0].code == "E612"
    with pytest.raises(UsageError) as refused:
        read_folder(run)
    assert refused.value.problems[0].code == "E612"


def test_a_picture_that_lacks_its_record_is_no_picture_left_out(run: Path) -> None:
    from energybench.report.figures import album
    from energybench.verdict.summary import summarise

    records = read_folder(run)
    changed(next((run / "records").iterdir()))
    with pytest.raises(UsageError, match="changed while"):
        album(summarise(*records), records[1], run)


def test_what_is_at_hand_is_read_once_and_only_then(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read_one = reader._read

    def counted(path: Path, *rest: Any) -> Any:
        reads.append(path)
        return read_one(path, *rest)

    monkeypatch.setattr(reader, "_read", counted)
    trials = read_folder(run)[1]
    reads.clear()
    for trial in trials:
        assert trial.quality
        assert trial.phases["train"].energy == trial.train.energy
    assert reads == []
    with at_hand(trials), at_hand(trials[:1]):
        for _ in range(3):
            assert all(trial.curve for trial in trials)
    assert len(reads) == len(trials)
    assert trials[0].curve
    assert len(reads) == len(trials) + 1


def test_what_trials_of_a_cell_say_in_the_same_words_is_held_once(tmp_path: Path) -> None:
    """Their settings, and of sensors that are not there the reason: these make a record large."""
    made(tmp_path / "run", workloads=1, blocks=6)
    trials = read_folder(tmp_path / "run")[1]
    plain = [trial for trial in trials if trial.role == "baseline"]
    assert len({id(trial.settings) for trial in plain}) == 1
    assert len({id(key) for trial in trials for key in trial.phases}) == len(plain[0].phases)
    every = [energy for trial in trials for reading in trial.phases.values() for energy in reading.energy]
    silent = [energy for energy in every if energy.energy_j is None and not energy.detail]
    assert len({id(each) for each in silent}) <= len({(e.source, e.scope, e.device, e.reason) for e in silent})
    assert all(isinstance(trial, KeptTrial) and not hasattr(trial, "__dict__") for trial in trials)
