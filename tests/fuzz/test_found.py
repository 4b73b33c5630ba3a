"""Cases that hunts found, smallest first, each as it was printed: what `make soak` finds is added here.

What a name of 300 characters is to every verb stands in test_paths.py, what a figure cannot be in test_measurable.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import Raw
from test_fuzz_command_line import a_command_line, here  # noqa: F401  (a fixture)
from test_fuzz_counts import a_file_of_counts
from test_fuzz_records import a_changed_file_of_a_run


def test_check_of_a_name_of_300_characters_is_told(here: Path) -> None:  # noqa: F811
    """Seed 3618641656: it ended in a bare OSError."""
    a_command_line(here, "check", "x" * 300, "missing.toml")


@pytest.mark.parametrize("key", ["quality", "curve"])
@pytest.mark.parametrize("name", ["tick_s", "energy_j", "mass_kg", "plain_flop", "clock_mhz"])
def test_a_unit_below_zero_is_refused_in_tables_whose_keys_others_choose_too(
    tmp_path: Path, key: str, name: str
) -> None:
    """Seed 3618641656: a record with `tick_s: -1` was accepted."""
    value = {name: -1.0}
    a_changed_file_of_a_run(tmp_path, 0, 1, [((key,), "set", [value] if key == "curve" else value)])


def test_looks_that_are_none_are_refused(tmp_path: Path) -> None:
    """A TypeError, where the last of no looks was asked for."""
    a_changed_file_of_a_run(tmp_path, 0, 0, [(("looks",), "set", {"at": []})])
    a_changed_file_of_a_run(tmp_path, 0, 0, [(("looks",), "set", {"at": Raw("[3, 1]")})])


def test_golden_counts_of_a_workload_that_has_no_name_are_refused(tmp_path: Path) -> None:
    """Seed 3618641656: they were compared, and the cell was called 0."""
    a_file_of_counts(tmp_path, 0, [(("cells", 8, "workload"), "set", 0)])
