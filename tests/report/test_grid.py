"""The picture of a sweep over two keys: its cells, the best of them, and what makes none."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from synthetic import Run, merge

from energybench.report import figures_grid
from energybench.report.figures import album
from energybench.report.markdown import markdown
from energybench.verdict.summary import summarise

DEPTHS, RATES = (2, 3, 11), ("0.0002", "0.1")
SVG = "{http://www.w3.org/2000/svg}"


def swept(quality: Any, name: str = "cnn[depth={},lr={}]") -> tuple[Any, Any, Any]:
    """One run of a workload for each cell. quality: (depth, lr, method's label) → of that cell, or None"""
    runs = [
        Run(workload=name.format(depth, rate), blocks=3).method("sparse", time=0.9)
        for depth in DEPTHS
        for rate in RATES
    ]
    meta, trials, counting_runs = merge(*runs)
    cells = {name.format(depth, rate): (depth, float(rate)) for depth in DEPTHS for rate in RATES}
    changed = []
    for trial in trials:
        value = quality(*cells[trial.workload], trial.method)
        changed.append(trial.model_copy(update={"quality": {} if value is None else {"accuracy": value}}))
    return meta, changed, counting_runs


def picture_of(run: tuple[Any, Any, Any], folder: Path) -> Any:
    meta, trials, counting_runs = run
    found = album(summarise(meta, trials, counting_runs), trials, folder, ["grid"])
    assert not found.left_out, found.left_out
    return found.pictures


def test_both_grids_stand_side_by_side_and_say_where_each_is_best(tmp_path: Path) -> None:
    """Dense is best at depth 3, lr 0.1; sparse at depth 11, lr 0.0002: depth and rate enter as numbers."""
    best = {"sparse": (11, 0.0002)}
    run = swept(lambda depth, rate, label: 0.75 if (depth, rate) == best.get(label, (3, 0.1)) else 0.25)
    (picture,) = picture_of(run, tmp_path)
    assert picture.workload == "cnn"
    assert "plain training 0.750 at depth 3, lr 0.1; sparse 0.750 at depth 11, lr 0.0002" in picture.alt
    assert "The best cell differs." in picture.alt
    texts = [element.text for element in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")]
    assert texts.count(".25") == 2 * (len(DEPTHS) * len(RATES) - 1)
    assert {"2", "3", "11", "0.0002", "0.1", "plain training: best at depth 3, lr 0.1"} <= set(texts)
    assert "<image" not in picture.svg
    page = markdown(summarise(*run), album(summarise(*run), run[1], tmp_path))
    assert f"## Grids\n\n![{picture.alt.split(';')[0]}" in page.replace("\\", "")


def test_the_same_best_cell_is_said_to_be_the_same(tmp_path: Path) -> None:
    (picture,) = picture_of(swept(lambda depth, rate, label: depth * rate), tmp_path)
    assert "The best cell is the same." in picture.alt


def test_a_cell_that_was_not_run_is_empty_and_no_zero(tmp_path: Path) -> None:
    (picture,) = picture_of(swept(lambda depth, rate, label: None if depth == 2 else 0.5), tmp_path)
    texts = [element.text for element in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")]
    assert texts.count(".5") == 2 * 4


@pytest.mark.parametrize("name", ["cnn[depth={},use=a{}]", "cnn {} {}", "cnn[depth=2{},lr=0.1,seed={}]"])
def test_what_is_no_sweep_over_two_numbers_is_no_grid(name: str) -> None:
    summary = summarise(*swept(lambda *_: 0.5, name))
    assert figures_grid.grids(summary.workloads) == []


def test_a_line_of_cells_is_no_grid() -> None:
    runs = [Run(workload=f"cnn[depth={depth},lr=0.1]").method("sparse") for depth in DEPTHS]
    assert figures_grid.grids(summarise(*merge(*runs)).workloads) == []
