"""Axes: whole epochs, logarithms over decades, outliers in a strip of their own; and names that are told apart."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Run
from traced import example, traced

from energybench.report import axes, canvas, figures_trials
from energybench.report.figures import album
from energybench.verdict.summary import summarise

finite = st.floats(-1e6, 1e6)
SVG = "{http://www.w3.org/2000/svg}"


# ── logarithms ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1.4, 0.014], True),  # two decades
        ([1.0, 10.0], False),  # one
        ([1.0, 10.01], True),
        ([0.0, 1e6], False),  # zero has no logarithm
        ([-1.0, 1e6], False),
        ([], False),
        ([5.0], False),
    ],
)
def test_an_axis_is_logarithmic_over_more_than_one_decade_and_never_of_what_is_not_above_0(
    values: list[float], log: bool
) -> None:
    assert axes.spans_decades(values) == log


def test_a_curve_that_takes_long_in_itself_is_no_reason_for_a_logarithm_of_seconds() -> None:
    slow = ([0.1, 5.0, 10.0], [2.0, 1.0, 0.5])
    fast = ([0.01, 0.1, 0.2], [2.0, 1.0, 0.001])
    assert axes.logarithms([slow, slow]) == (False, False)
    assert axes.logarithms([slow, fast]) == (True, True)


@given(st.floats(1e-6, 1e6), st.floats(1.5, 9), st.integers(4, 9))
@settings(max_examples=20, deadline=None)
def test_a_logarithmic_axis_has_ticks_inside_and_no_crowd_of_them(low: float, decades: float, most: int) -> None:
    values = [low, low * 10**decades]
    with canvas.sheet(2.0) as page:
        drawn = page.axes(1, 0.5, 5, 1)
        drawn.plot([1, 2], values)
        axes.log_axis(drawn, "y", values, most)
        bottom, top = drawn.get_ylim()
        inside = [tick for tick in drawn.get_yticks() if bottom <= tick <= top]
    assert 1 <= len(inside) <= most + 1


def curves(run: Run, folder: Path, losses: dict[str, list[float]], epoch_s: float | None = None) -> str:
    meta, trials, counting_runs = run.records()
    curve = {
        method: [
            {"epoch": float(e), "loss": y} | ({} if epoch_s is None else {"wall_s": epoch_s * e})
            for e, y in enumerate(of_method, 1)
        ]
        for method, of_method in losses.items()
    }
    trials = [t.model_copy(update={"curve": curve[t.method]}) for t in trials]
    found = album(summarise(meta, trials, counting_runs), trials, folder, ["curves"])
    (picture,) = found.pictures
    return picture.svg


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_losses_over_two_decades_are_drawn_on_a_logarithm_that_says_so_and_epochs_are_whole(tmp_path: Path) -> None:
    run = Run().method("m")
    wide = texts(curves(run, tmp_path, {key: [1.0, 0.1, 0.01] for key in ("baseline", "twin", "m")}))
    narrow = texts(curves(run, tmp_path, {key: [1.0, 0.9, 0.8] for key in ("baseline", "twin", "m")}))
    assert any("log scale" in text for text in wide)
    assert not any("log scale" in text for text in narrow)
    for shown in (wide, narrow):
        assert {"1", "2", "3"} <= set(shown)
        assert not {"1.5", "2.5", "1.25"} & set(shown)


@pytest.mark.parametrize("losses", [[1.0, 0.1, 0.001], [1.0, 0.8, 0.7]])
def test_a_loss_stands_as_high_over_seconds_as_over_epochs(tmp_path: Path, losses: list[float]) -> None:
    every = dict.fromkeys(("baseline", "twin", "m"), losses)
    picture = ElementTree.fromstring(curves(Run().method("m"), tmp_path, every, epoch_s=0.2))
    paths = [element.get("d", "") for element in picture.iter(f"{SVG}path")]
    lines = [re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path) for path in paths if re.search("[zC]", path) is None]
    heights = [tuple(round(float(y), 2) for _, y in line) for line in lines if len(line) == 3]
    heights = [line for line in heights if len(set(line)) > 1]  # less the legend's
    assert len(heights) == 6  # three cells over epochs and over seconds
    assert len(set(heights)) == 1, "all of them lost the same"


@pytest.mark.parametrize(
    ("shared", "x", "y"), [([3.0], (1.0, 16.5, 20.0), (1.0, 1 / 3, 1 / 2)), ([3.0, 4.0], (16.5, 22.0), (1 / 3, 1 / 4))]
)
def test_a_curve_over_seconds_is_of_the_epochs_that_all_blocks_have_or_else_in_the_order_of_time(
    shared: list[float], x: tuple[float, ...], y: tuple[float, ...]
) -> None:
    trials = Run(blocks=2).method("m").records()[1]
    epoch_s = {0: 1.0, 1: 10.0}
    epochs = {0: [1.0, *shared], 1: [2.0, *shared]}
    trials = [
        t.model_copy(
            update={"curve": [{"epoch": e, "wall_s": epoch_s[t.block] * e, "loss": 1 / e} for e in epochs[t.block]]}
        )
        for t in trials
        if t.method == "m"
    ]
    (curve,) = figures_trials.curves(trials, "wall_s")
    assert curve.x == pytest.approx(x)
    assert curve.y == pytest.approx(y)


def test_savings_whose_axis_is_a_logarithm_of_the_cost_say_so(tmp_path: Path) -> None:
    meta, trials, counting_runs = traced(example(), tmp_path)
    for picture in album(summarise(meta, trials, counting_runs), trials, tmp_path).pictures:
        if picture.kind in ("ladder", "where", "trade-off"):
            assert any("log scale" in text for text in texts(picture.svg)), picture.kind


# ── outliers ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_of_many_that_lie_far_below_are_apart_and_the_rest_keeps_its_axis() -> None:
    found = axes.outliers([0.1, 0.0, -0.2, -0.7, -0.3, 0.2, -83.8, -83.9], [0.0, -1.0])
    assert found == axes.Apart(below=(-83.9, -83.8), rest=(-1.0, 0.2), above=None)


def test_outliers_on_both_sides_are_each_apart() -> None:
    found = axes.outliers([1.0, 1.1, 1.2, 1.3, 1.15, 1.25, -50.0, 90.0])
    assert found == axes.Apart(below=(-50.0, -50.0), rest=(1.0, 1.3), above=(90.0, 90.0))


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, 3.0, 4.0, 5.0],  # evenly
        [0.0, 0.0, 100.0, 100.0],  # two groups, none of them the rest
        [1.0, 1.1, 3.0],  # too few to know
        [2.0, 2.0, 2.0, 2.0],
    ],
)
def test_where_nothing_lies_far_out_there_is_no_strip(values: list[float]) -> None:
    assert axes.outliers(values) is None


@given(st.lists(finite, max_size=40), st.lists(finite, max_size=3))
def test_each_value_is_in_exactly_one_part_and_most_are_in_the_rest(values: list[float], always: list[float]) -> None:
    found = axes.outliers(values, always)
    if found is None:
        return
    low, high = found.rest
    inside = [value for value in values if low <= value <= high]
    assert len(inside) >= len(values) * 2 / 3
    assert all(low <= value <= high for value in always)
    gap = axes.FAR * (high - low)
    for value in set(values) - set(inside):
        assert value < low - gap or value > high + gap
        part = found.below if value < low else found.above
        assert part is not None
        assert part[0] <= value <= part[1]


@given(
    st.lists(st.floats(-1, 1), min_size=6, max_size=20, unique=True),
    st.lists(st.floats(50, 1e4), max_size=2),
    st.lists(st.floats(-1e4, -50), max_size=2),
    st.sampled_from(["x", "y"]),
)
@settings(max_examples=40, deadline=None)
def test_a_strip_keeps_the_order_of_all_values_and_gives_the_rest_most_of_the_axis(
    rest: list[float], above: list[float], below: list[float], which: str
) -> None:
    values = [*rest, *above, *below]
    apart = axes.outliers(values, [-1.0, 1.0])
    assert (apart is None) == (not above and not below)
    if apart is None:
        return
    with canvas.sheet(2.0) as page:
        drawn = page.axes(1, 0.5, 5, 1)
        axes.strip(drawn, which, apart, (min(values), max(values)))

        def at(value: float) -> float:
            """From 0 to 1 on the axis."""
            point: Any = (value, 0) if which == "x" else (0, value)
            return float(drawn.transAxes.inverted().transform(drawn.transData.transform(point))[int(which == "y")])

        places = [at(value) for value in sorted(values)]
        assert all(0 <= place <= 1 for place in places)
        assert all(a <= b for a, b in itertools.pairwise(places))
        assert at(1.0) - at(-1.0) > 0.5
        ticks = getattr(drawn, f"get_{which}ticks")()
        assert all(0 <= at(tick) <= 1 for tick in ticks)


def test_a_method_that_ruins_the_quality_does_not_flatten_the_others_in_the_picture(tmp_path: Path) -> None:
    run = Run(noise=0.02, quality_noise=0.0002)
    for number in range(5):
        run.method(f"m{number}", time=0.9, quality=-0.001 * number)
    ruined = run.method("ruined", time=1.1, quality=-0.8).records()
    meta, trials, counting_runs = ruined
    (picture,) = album(summarise(meta, trials, counting_runs), trials, tmp_path, ["trade-off"]).pictures
    assert any(axes.NOTE in text for text in texts(picture.svg))
    marks = [float(y) for y in re.findall(r'<use [^>]*y="([\d.]+)"', picture.svg)]
    assert marks
    shown = texts(picture.svg)
    assert any(text.startswith(("−80", "−79.9")) for text in shown)  # the outlier's own tick


def test_a_trial_that_took_a_hundred_times_as_long_stands_in_a_strip(tmp_path: Path) -> None:
    run = Run(noise=0.02, blocks=5).method("m", time=0.8)
    calm = album(summarise(*run.records()), run.records()[1], tmp_path, ["blocks"]).pictures[0].svg
    meta, trials, counting_runs = run.records()
    slow = trials[-1].train.model_copy(update={"wall_s": 1000.0})
    trials[-1] = trials[-1].model_copy(update={"phases": {"train": slow}})
    stormy = album(summarise(meta, trials, counting_runs), trials, tmp_path, ["blocks"]).pictures[0].svg
    assert not any(axes.NOTE in text for text in texts(calm))
    assert any(axes.NOTE in text for text in texts(stormy))
    assert "1e+03" in texts(stormy) or "1000" in texts(stormy)


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.text(max_size=60), max_size=30), st.integers(8, 40))
def test_names_in_a_legend_are_all_different_and_none_is_too_long(names: list[str], most: int) -> None:
    shown = canvas.distinct(names, most)
    assert len(shown) == len(names)
    assert len(set(shown)) == len(shown)
    assert all(len(name) <= most for name in shown)


def test_long_names_lose_what_they_share_and_keep_what_tells_them_apart() -> None:
    names = [f"gradsamp[skip=late-random:0.{digit}] matched" for digit in (2, 5, 7)]
    shown = canvas.distinct([*names, "mezo"], 26)
    assert shown[-1] == "mezo"
    assert all(name.endswith(f"0.{digit}] matched") for name, digit in zip(shown[:3], (2, 5, 7), strict=True))
    keyed = [f"gradsamp[skip=random:0.{digit},epsilon=0.0001]" for digit in (2, 5)]
    assert canvas.distinct(keyed, 30) == ["gradsamp[random:0.2,0.0001]", "gradsamp[random:0.5,0.0001]"]
    of_keys = [f"m[{key}={'1' * 30}]" for key in ("alpha", "beta")]  # which differ in nothing but a key
    assert all(key in name for key, name in zip(("alpha", "beta"), canvas.distinct(of_keys, 45), strict=True))
    heads = canvas.distinct(["alpha" + "x" * 50, "beta" + "x" * 50], 26)
    assert heads[0].startswith("alpha")
    assert heads[1].startswith("beta")


def test_the_legends_of_pictures_tell_any_two_cells_apart(tmp_path: Path) -> None:
    run = Run(noise=0.02)
    names = [f"gradsamp[skip=late-random:0.{digit},epsilon=0.00{digit}]" for digit in range(1, 6)]
    for name in names:
        run.method(name, time=0.9).control(name, time=0.91)
    meta, trials, counting_runs = traced(run, tmp_path)
    for picture in album(summarise(meta, trials, counting_runs), trials, tmp_path).pictures:
        shown = [text for text in texts(picture.svg) if "epsilon=0.00" in text or "…" in text]
        assert len(set(shown)) == len(shown), picture.kind
