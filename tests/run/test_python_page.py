"""The page on Python does what it says: its blocks run in order in one script, and print what stands below them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d[\d,.]*(e[-+]?\d+)?")
UNIT = re.compile(r"# (ms|s|min|µs|J|kJ|mJ)\b")


def shape(text: str) -> list[str]:
    """Lines without their figures: a time may be in milliseconds or seconds, wherever it was taken."""
    lines = [UNIT.sub("#", NUMBER.sub("#", line.rstrip())) for line in text.splitlines()]
    return [" ".join(line.split()) for line in lines if line.strip()]


@pytest.mark.slow
def test_every_block_runs_and_prints_what_stands_below_it(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert sum(kind == "python" for kind, _ in blocks) >= 9
    script = tmp_path / "page.py"
    shim = "from energybench.common.torchvision_shim import import_torchvision\nimport_torchvision()\n"
    said = 'print("-- %d", flush=True); import sys; print("-- %d", file=sys.stderr, flush=True)\n'
    parts = [shim]
    for number, (kind, text) in enumerate(blocks):
        if kind == "python":
            parts += [text, said % (number, number)]
    script.write_text("".join(parts), encoding="utf-8")
    sensors = {"ENERGYBENCH_POWERCAP": str(tmp_path / "nothing"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(HF_HUB_OFFLINE="1", KERAS_BACKEND="torch", **sensors),
    )
    assert done.returncode == 0, done.stderr
    for number, (kind, text) in enumerate(blocks):
        if kind == "text":
            printed = shape(between(done.stdout, number - 1)) + shape(between(done.stderr, number - 1))
            assert [line for line in shape(text) if line not in printed] == [], printed
    assert (tmp_path / "train.json").exists()


def between(output: str, number: int) -> str:
    """What a block printed: up to its mark, from the mark before it."""
    return re.split(r"-- \d+\n", output.partition(f"-- {number}\n")[0])[-1]
