"""[on] of a suite: what may stand in it, where a mistake is told, and that it is in no digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from energybench.suite.on_tables import TAKEN
from energybench.suite.suite import InvalidSuite, Suite, load

SUITE = """schema = 1
suite = "nap"
[[workload]]
name = "w"
command = "true"
quality = "none"
[[method]]
name = "m"
command = "true"
[on]
"""


def read(tmp_path: Path, on: str) -> Suite:
    (tmp_path / "nap.toml").write_text(SUITE + on)
    return load(tmp_path / "nap.toml")


def test_quantities_are_in_si_units_and_what_is_left_out_is_none(tmp_path: Path) -> None:
    on = read(tmp_path, 'slurm = { partition = "gpu", time = "4 h", at_once = 32 }\nray = { gpus = 1 }').on
    assert on is not None
    assert on.slurm is not None
    assert (on.slurm.partition, on.slurm.time, on.slurm.at_once, on.slurm.gres) == ("gpu", 4 * 3600.0, 32, None)
    assert (on.slurm.blocks_per_job, on.slurm.exclusive, on.slurm.extra) == (1, False, ())
    assert on.ray is not None
    assert (on.ray.gpus, on.ray.cpus, on.ray.retries) == (1, 1, 3)


def test_it_is_no_setting_of_the_run(tmp_path: Path) -> None:
    plain = read(tmp_path, "ray = {}").digest_source()
    assert read(tmp_path, 'slurm = { partition = "gpu" }').digest_source() == plain
    assert "on" not in plain


@pytest.mark.parametrize(
    ("on", "place", "told"),
    [
        ("", "10:", "it names no engine"),
        ("slurm = { partiton = 'gpu' }", "11:11", "did you mean 'partition'?"),
        ("pbs = {}", "11:1", "unknown key 'pbs' in on"),
        ("slurm = { time = 240 }", "11:11", "no unit"),
        ("slurm = { time = '30 s' }", "11:11", "at least 60"),
        ("slurm = { cpus = 0 }", "11:11", "at least 1"),
        ("slurm = { cpus = 2.5 }", "11:11", "a whole number"),
        ("slurm = { exclusive = 1 }", "11:11", "true or false"),
        ("slurm = { at_once = -1 }", "11:11", "at least 1"),
        ("slurm = { blocks_per_job = 0 }", "11:11", "at least 1"),
        ("slurm = { partition = '' }", "11:11", "some text"),
        ("slurm = { partition = 'a b' }", "11:11", "one word"),
        ("slurm = { gres = '--wrap=x' }", "11:11", "one word"),
        ("slurm = { extra = '--account=x' }", "11:11", "an array"),
        ("slurm = { extra = ['account=x'] }", "11:11", "is no option of sbatch"),
        ("slurm = { extra = ['--partition=x'] }", "11:11", "write partition = ... beside it"),
        ("slurm = { extra = ['--array=0-3'] }", "11:11", "set by energybench itself"),
        ("slurm = { extra = ['--arr=0-3'] }", "11:11", "set by energybench itself"),
        ("slurm = { extra = ['-a0-3'] }", "11:11", "set by energybench itself"),
        ("slurm = { extra = ['-o', 'x'] }", "11:11", "set by energybench itself"),
        ("ray = { gpus = 2 }", "11:9", "at most 1"),
        ("ray = { retries = -1 }", "11:9", "at least 0"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_column(tmp_path: Path, on: str, place: str, told: str) -> None:
    with pytest.raises(InvalidSuite) as invalid:
        read(tmp_path, on)
    text = "\n".join(map(str, invalid.value.problems))
    assert f"nap.toml:{place}" in text, text
    assert told in text


@pytest.mark.parametrize(
    "extra", ["--account=physics", "--qos=low", "--constraint=a100|h100", "-A physics", "--mem=8G"]
)
def test_other_options_of_sbatch_are_taken(tmp_path: Path, extra: str) -> None:
    on = read(tmp_path, f"slurm = {{ extra = ['{extra}'] }}").on
    assert on is not None
    assert on.slurm is not None
    assert on.slurm.extra == (extra,)


@pytest.mark.parametrize("option", TAKEN)
def test_no_option_that_a_job_of_ours_needs_can_be_changed(tmp_path: Path, option: str) -> None:
    short = TAKEN[option][0]
    for spelled in (option, f"{option}=x", *([short, f"{short}x"] if short else [])):
        with pytest.raises(InvalidSuite):
            read(tmp_path, f"slurm = {{ extra = ['{spelled}'] }}")
