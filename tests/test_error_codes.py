"""An error code means one thing, so that whoever looks one up finds one place."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "energybench"
# The same mistake, told from more than one room.
SHARED = {
    "E101",
    "E102",
    "E201",
    "E202",
    "E203",
    "E204",
    "E205",
    "E206",
    "E207",
    "E312",
    "E401",
    "E403",
    "E404",
    "E421",
    "E422",
    "E501",
    "E503",
    "E601",
    "E603",
    "E605",
    "E608",
    "E609",
    "E620",
    "E625",
    "E632",
}


def rooms() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and re.fullmatch(r"E[1-6]\d\d", str(node.value)):
                found[str(node.value)].add(str(file.relative_to(PACKAGE)))
    return found


def test_a_code_is_given_in_one_room_unless_it_is_the_same_mistake() -> None:
    twice = {code: sorted(files) for code, files in rooms().items() if len(files) > 1 and code not in SHARED}
    together = (  # one verb, and one function of the API, in several files
        {"gate/golden_counts.py", "gate/compare_runs.py", "cli/gating.py", "cli/reading.py"},
        {"windows/measure.py", "windows/window.py"},
        {str(file.relative_to(PACKAGE)) for file in (PACKAGE / "workloads" / "datasets").glob("*.py")}
        | {"workloads/text_sets.py", "workloads/domain_sets.py", "workloads/stand_in.py", "common/data_folder.py"}
        | {"workloads/tasks/regression.py"},  # whose data say how large their numbers are
        {"train/discovery.py", "algorithms/update_fits.py"},  # a value that a method cannot take
        {"train/plain_epochs.py", "train/results.py"},
        {"common/sealed_files.py", "records/kept.py"},  # a record that is not what it was
        # Each engine's way of one mistake.
        {str(file.relative_to(PACKAGE)) for file in (PACKAGE / "cluster").glob("*.py")},
    )
    assert {code: files for code, files in twice.items() if not any(set(files) <= each for each in together)} == {}
