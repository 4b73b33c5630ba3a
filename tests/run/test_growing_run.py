"""What a run does after each block does not grow with what is done: counted, whatever a clock says.

A command that does nothing is run for many blocks in this process; what its parent reads, parses, lists and examines is
counted between one block and the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from energybench.common import held_folder, safe_read
from energybench.records import reader
from energybench.records.record import Trial
from energybench.records.run_folder import Folder
from energybench.runner import runner
from energybench.runner.progress import Progress
from energybench.suite.suite import load
from energybench.verdict import examination, summary

BLOCKS = 7
SUITE = """schema = 1
suite = "growing"
[trials]
blocks = {blocks}
warmup = "0 s"
[measure]
energy = "off"
[[workload]]
name = "w"
command = "true"
quality = "none"
[[method]]
name = "same"
command = "true"
"""
Counts = Counter[str]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """What was done so far, by kind: records of the run's folder that were read, files opened below it for reading,
    names listed in it, trials examined, summaries made."""
    found: Counts = Counter()

    def counting(module: Any, name: str, what: str, of: Callable[[Any, tuple[Any, ...]], int]) -> None:
        known = getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            result = known(*arguments, **options)
            found[what] += of(result, arguments)
            return result

        monkeypatch.setattr(module, name, counted)

    counting(reader, "_read", "records read", lambda result, _: isinstance(result[0], Trial))
    counting(held_folder, "read_regular", "files opened", lambda *_: 1)
    counting(safe_read, "read_regular", "files opened", lambda *_: 1)
    counting(held_folder.HeldFolder, "names", "names listed", lambda result, _: len(result))
    counting(examination, "examine", "trials examined", lambda *_: 1)
    counting(summary, "summarise", "summaries", lambda *_: 1)
    return found


class Heard(Progress):
    """Progress that keeps the counts at the end of each block. quiet: what it says goes nowhere"""

    def __init__(self, like: Progress, counts: Counts) -> None:
        super().__init__(like.console, like.tables)
        self.counts, self.after = counts, list[Counts]()

    def block(self, glance: Any, blocks: int) -> None:
        super().block(glance, blocks)
        self.after.append(self.counts.copy())


def done_in(folder: Path, counts: Counts, quiet: Callable[[], Progress], **options: Any) -> tuple[Heard, int]:
    (folder / "growing.toml").write_text(SUITE.format(blocks=BLOCKS), encoding="utf-8")
    heard = Heard(quiet(), counts)
    code, _ = runner.run(load(folder / "growing.toml"), out=folder / "out", progress=heard, **options)
    return heard, code


def test_what_a_block_costs_does_not_grow(tmp_path: Path, counts: Counts, quiet: Callable[[], Progress]) -> None:
    heard, code = done_in(tmp_path, counts, quiet)
    assert code == 0
    each = [after - before for before, after in zip(heard.after, heard.after[1:], strict=False)]
    assert len(each) == BLOCKS - 2
    assert all(of_block == each[0] for of_block in each), each
    assert each[0]["summaries"] == each[0]["names listed"] == 0
    assert each[0]["trials examined"] == each[0]["records read"] == 3  # its own: each is read where it was written
    whole = counts - heard.after[-1]
    trials = 3 * BLOCKS
    assert whole["records read"] <= trials + 3  # the last block's, and all of them once, before the run is closed


def test_a_run_that_is_continued_reads_what_is_there_once(
    tmp_path: Path, counts: Counts, quiet: Callable[[], Progress]
) -> None:
    assert done_in(tmp_path, counts, quiet, max_s=0.0)[1] == 0
    there = len(list((tmp_path / "out" / "records").iterdir()))
    assert 0 < there < 3 * BLOCKS
    counts.clear()
    heard, _ = done_in(tmp_path, counts, quiet)
    before_its_first_block = heard.after[0]["records read"] - 3
    assert before_its_first_block == there
    assert len({tuple(sorted((b - a).items())) for a, b in zip(heard.after, heard.after[1:], strict=False)}) == 1


def test_a_record_that_was_edited_meanwhile_is_found_before_the_run_is_closed(
    tmp_path: Path, counts: Counts, quiet: Callable[[], Progress]
) -> None:
    from energybench.common.errors import UsageError

    class Editing(Heard):
        def block(self, glance: Any, blocks: int) -> None:
            path = sorted((tmp_path / "out" / "records").iterdir())[0]
            path.write_text(path.read_text(encoding="utf-8").replace('"ok"', '"failed"', 1), encoding="utf-8")

    (tmp_path / "growing.toml").write_text(SUITE.format(blocks=3), encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        runner.run(load(tmp_path / "growing.toml"), out=tmp_path / "out", progress=Editing(quiet(), counts))
    assert refused.value.problems[0].code == "E621"
    run = Folder(tmp_path / "out").run_file()
    assert run is not None
    assert not run.finished
