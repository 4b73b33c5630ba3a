"""`run --on ENGINE` as it is typed: what is refused before anything is submitted, and what a run here leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import energybench

SUITE = """schema = 1
suite = "nap"
[[workload]]
name = "w"
command = "true"
quality = "none"
[[method]]
name = "m"
command = "true"
"""


@pytest.mark.parametrize(
    ("words", "on", "told"),
    [
        (["--on", "slurm"], "", "error[E685]: nap.toml: the suite does not say what to ask of Slurm"),
        (
            ["--on", "slurm"],
            "[on]\nray = {}\n",
            "error[E685]: nap.toml:10:2: the suite does not say what to ask of Slurm",
        ),
        (
            ["--on", "ray"],
            "[on]\nslurm = {}\n",
            "error[E685]: nap.toml:10:2: the suite does not say what to ask of Ray",
        ),
        (["--on", "slurm"], "[on]\nslurm = {}\n", "error[E680]: Slurm's sbatch is not found on this machine"),
        (["--on", "slurm", "--max-time", "4h"], "", "so it takes no --max-time"),
        (["--on", "slurm", "--block", "3"], "", "so it takes no --block"),
        (["--on", "slurm", "--until-decided"], "", "so it takes no --until-decided"),
        (["--on", "ray", "--submit-only"], "", "--submit-only is about --on slurm"),
        (["--blocks-per-job", "2"], "", "--blocks-per-job is about --on slurm"),
        (["--on", "pbs"], "", "'pbs' is not one of 'slurm', 'ray'"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_anything_is(
    tmp_path: Path, words: list[str], on: str, told: str
) -> None:
    (tmp_path / "nap.toml").write_text(SUITE + on)
    (tmp_path / "bin").mkdir()
    done = energybench("run", "nap.toml", *words, cwd=tmp_path, PATH=str(tmp_path / "bin"))
    assert done.returncode == 2, done.stderr
    assert told in done.stderr.replace(str(tmp_path) + "/", "")
    assert not (tmp_path / "reports").exists()
