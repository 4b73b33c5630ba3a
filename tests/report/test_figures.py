"""Pictures: the same bytes for the same records, true to the figures, safe from any name, left out with a reason."""

from __future__ import annotations

import itertools
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import GPU, Run, Truth, merge
from traced import EVIL, WATTS, example, traced

from energybench.common.sealed_files import write_bytes
from energybench.meter.trace import Sample, pack
from energybench.records.record import Claim
from energybench.report import canvas, figures_diagnostics, figures_savings, figures_trials, power_traces
from energybench.report.album import Album
from energybench.report.figures import KINDS, OPTIONAL, album
from energybench.verdict import trade_off
from energybench.verdict.summary import summarise

SVG = "{http://www.w3.org/2000/svg}"


def drawn(run: Run, folder: Path) -> Album:
    meta, trials, counting_runs = traced(run, folder)
    return album(summarise(meta, trials, counting_runs), trials, folder)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def assert_no_mistake(found: Album) -> None:
    assert not [each for each in found.left_out if "our mistake" in each.reason], found.left_out


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_records_in_any_order_give_the_same_bytes_and_every_kind_is_drawn(tmp_path: Path) -> None:
    meta, trials, counting_runs = traced(example(), tmp_path)
    histogram = {"name": "w", "from": -1.0, "to": 1.0, "density": [0.2, 0.6, 0.2], "fitted": [0.3, 0.4, 0.3]}
    trials = [t.model_copy(update={"diagnostics": {"half": {"histograms": [histogram]}}}) for t in trials]
    trials = [t.model_copy(update={"curve": [p | {"accuracy": p["epoch"] / 4} for p in t.curve]}) for t in trials]
    first = album(summarise(meta, trials, counting_runs), trials, tmp_path)
    random.Random(1).shuffle(trials)
    again = album(summarise(meta, trials, counting_runs[::-1]), trials, tmp_path)
    assert first == again
    assert {picture.kind for picture in first.pictures} == set(KINDS)
    assert first.left_out == ()


def test_a_readers_matplotlibrc_changes_nothing(tmp_path: Path) -> None:
    import matplotlib

    expected = drawn(example(), tmp_path)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert drawn(example(), tmp_path) == expected


def test_no_picture_carries_a_date_a_version_a_path_or_a_link(tmp_path: Path) -> None:
    for picture in drawn(example(), tmp_path).pictures:
        assert "Matplotlib" not in picture.svg
        assert "<metadata" not in picture.svg
        assert str(tmp_path) not in picture.svg
        links = set(re.findall(r'(?:href|src)="([^"]*)"', picture.svg))
        assert all(link.startswith("#") for link in links)
        assert not re.search(r"url\((?!#)|@import|<(script|foreignObject|image)", picture.svg)


def test_the_ids_of_two_pictures_never_meet_and_every_reference_is_kept(tmp_path: Path) -> None:
    seen: set[str] = set()
    for picture in drawn(example(), tmp_path).pictures:
        ids = set(re.findall(r'\bid="([^"]+)"', picture.svg))
        assert not ids & seen
        seen |= ids
        wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', picture.svg))
        assert wanted <= ids


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hostile_name_is_text_and_nothing_else(tmp_path: Path) -> None:
    run = example(workload=EVIL).method(EVIL, time=0.9, energy=0.9)
    found = drawn(run, tmp_path)
    assert_no_mistake(found)
    for picture in found.pictures:
        root = ElementTree.fromstring(picture.svg)  # well formed
        assert not list(root.iter(f"{SVG}script"))
        assert re.fullmatch(r"[\w.-]+\.svg", picture.file)
        assert "\x1b" not in picture.svg + picture.alt
        assert "\n" not in picture.alt
    ladder = next(p for p in found.pictures if p.kind == "ladder")
    assert any("a|b`c<script" in text for text in texts(ladder.svg))  # shown as it is


def test_two_workloads_whose_names_differ_only_in_signs_get_files_of_their_own(tmp_path: Path) -> None:
    runs = [Run(workload=name).method("half", time=0.5) for name in ("a/b", "a b", "a+b", "a=b", "a-b")]
    meta, trials, counting_runs = merge(*runs)
    found = album(summarise(meta, trials, counting_runs), trials, tmp_path)
    files = [picture.file for picture in found.pictures]
    assert len(files) == len({file.lower() for file in files})
    assert {picture.workload for picture in found.pictures} == {"a/b", "a b", "a+b", "a=b", "a-b"}


@settings(max_examples=12)
@given(
    st.text(min_size=1, max_size=40),
    st.floats(1e-9, 1e9),
    st.floats(1e-9, 1e9),
    st.floats(1e-6, 3.0),
    st.one_of(st.none(), st.floats(-1e6, 1.0)),  # a claim of more than all is refused with its record
    st.integers(1, 4),
)
def test_any_name_and_any_figures_can_be_drawn(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    time: float,
    energy: float,
    flop: float,
    claimed: float | None,
    blocks: int,
) -> None:
    run = Run(workload=f"w{name}", blocks=blocks, noise=0.5, sensors=(GPU,))
    claim = None if claimed is None else Claim(saving_rel=claimed)
    run.method(f"m{name}", time=time, energy=energy, flop=flop, claim=claim)
    meta, trials, counting_runs = run.records()
    found = album(summarise(meta, trials, counting_runs), trials, tmp_path_factory.getbasetemp())
    assert_no_mistake(found)
    for picture in found.pictures:
        ElementTree.fromstring(picture.svg)
        assert "nan" not in re.sub(r"<(title|text)\b.*?</\1>", "", picture.svg.lower(), flags=re.S)


# ── the axis of savings ───────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(-5, 0.99), st.floats(-5, 0.99))
def test_more_saved_lies_farther_to_the_right(a: float, b: float) -> None:
    apart = math.copysign(max(0.0, abs(a - b) - 1e-9), a - b)  # closer than that is one place
    assert apart == 0 or (canvas.place(a) > canvas.place(b)) == (apart > 0)


@given(st.floats(0.01, 100.0))
def test_a_cost_and_its_inverse_lie_equally_far_from_no_saving(ratio: float) -> None:
    assert canvas.place(1 - ratio) == pytest.approx(-canvas.place(1 - 1 / ratio), abs=1e-9)


@pytest.mark.parametrize("saving", [-math.inf, math.inf, math.nan, 1.0, 2.0, -1e308])
def test_what_has_no_place_lies_at_an_edge_or_at_nothing(saving: float) -> None:
    assert abs(canvas.place(saving)) in (0.0, canvas.FARTHEST)


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=8), st.lists(st.floats(-6.9, 6.9), max_size=8))
@settings(max_examples=15)
def test_every_point_lies_inside_the_limits_and_so_does_no_saving(points: list[float], reaches: list[float]) -> None:
    with canvas.sheet(2.0) as page:
        low, high = canvas.savings_axis(page.axes(1, 0.5, 5, 1), points, reaches, 0.01)
        ticks = page.used[0].get_xticks()
    assert low < min(*points, 0.0)
    assert high > max(*points, 0.0)
    assert all(low <= tick <= high for tick in ticks)
    assert 0.0 in ticks


# ── what the ladder and its companions say ────────────────────────────────────────────────────────────────────


def test_the_ladder_prints_the_figures_and_the_verdict_of_the_table(tmp_path: Path) -> None:
    from energybench.verdict import wording

    meta, trials, counting_runs = example(blocks=5).records()
    summary = summarise(meta, trials, counting_runs)
    found = album(summary, trials, tmp_path)
    ladder = next(p for p in found.pictures if p.kind == "ladder")
    shown = texts(ladder.svg)
    for row in summary.workloads[0].rows:
        assert row.verdict in shown
        for figure in (row.claimed_rel, row.estimated_rel, row.counted_rel):
            assert wording.plain(wording.percent(figure)) in shown
        measured = wording.plain(wording.measured(row.measured))
        assert any(text.startswith(measured) for text in shown)
        assert measured in ladder.alt


def test_below_three_blocks_no_whisker_is_drawn_because_the_table_has_no_interval(tmp_path: Path) -> None:
    few = summarise(*Run(blocks=2, noise=0.1).method("half", time=0.5).records()).workloads[0].rows[0]
    enough = summarise(*Run(blocks=3, noise=0.1).method("half", time=0.5).records()).workloads[0].rows[0]
    assert few.measured.interval is None
    assert enough.measured.interval == (enough.measured.low_rel, enough.measured.high_rel)


def test_a_struck_row_is_crossed_and_has_no_verdict_in_the_picture(tmp_path: Path) -> None:
    run = Run(blocks=5)
    run.truths = [Truth("baseline", "baseline"), Truth("twin", "twin", time=0.9), Truth("half", time=0.5)]
    ladder = next(p for p in drawn(run, tmp_path).pictures if p.kind == "ladder")
    assert "no verdict" in texts(ladder.svg)
    assert "faster" not in ladder.svg


@given(st.floats(0.05, 3), st.floats(0.05, 3), st.floats(0.05, 3))
def test_the_bars_of_where_it_went_end_where_the_measured_ratio_lies(time: float, energy: float, flop: float) -> None:
    run = Run(sensors=(GPU,)).method("m", time=time, energy=energy, flop=flop)
    row = summarise(*run.records()).workloads[0].rows[0]
    parts, joules = figures_savings._ratios(row)
    bars = figures_savings._bars(row, parts)
    assert [what for what, _, _ in bars] == ["FLOPs", "s per FLOP", "watts", "energy"]
    assert all(a[2] == pytest.approx(b[1]) for a, b in itertools.pairwise(bars[:-1]))
    assert bars[-1][1:] == pytest.approx((0.0, math.log(energy)), abs=1e-9)
    assert bars[0][2] == pytest.approx(math.log(flop), abs=1e-9)
    assert joules == pytest.approx(energy)


def test_modelled_energy_is_in_no_picture(tmp_path: Path) -> None:
    meta, trials, counting_runs = Run(noise=0.02).method("half", time=0.7, energy=0.2).records()
    for picture in album(summarise(meta, trials, counting_runs), trials, tmp_path).pictures:
        assert "energy" not in picture.svg.lower()
        assert "joule" not in picture.svg.lower()


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=12))
def test_the_front_holds_exactly_the_points_that_none_beats(points: list[tuple[int, int]]) -> None:
    best = trade_off.front([(float(x), float(y)) for x, y in points])
    for i, (x, y) in enumerate(points):
        beaten = any((a, b) != (x, y) and a >= x and b >= y for a, b in points)
        assert (i in best) != beaten
    assert [points[i][0] for i in best] == sorted(points[i][0] for i in best)


def test_a_metric_where_less_is_better_is_drawn_upside_down(tmp_path: Path) -> None:
    accept = {"quality": {"metric": "loss", "loses_at_most": 0.1}, "noise": 0.01}
    run = Run(accept=accept).method("good", time=0.5).method("bad", time=0.5)
    for block in range(3):
        for label, loss in (("baseline", 1.0), ("twin", 1.0), ("good", 0.9), ("bad", 1.2)):
            run.change(label, block, quality={"loss": loss})
    meta, trials, counting_runs = run.records()
    picture = next(
        p for p in album(summarise(meta, trials, counting_runs), trials, tmp_path).pictures if p.kind == "trade-off"
    )
    assert "good" in picture.alt
    assert "bad" not in picture.alt  # as cheap and worse: never on the front
    assert "plain training" not in picture.alt  # dearer and worse than good


# ── trials ────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.floats(0, 500), min_size=1, max_size=400), st.integers(2, 60))
def test_thinning_keeps_the_extremes_the_order_and_the_limit(values: list[float], most: int) -> None:
    times = [0.1 * i for i in range(len(values))]
    t, v = power_traces.thin(times, values, most)
    assert len(t) <= max(most, 2)
    assert t == sorted(set(t))
    assert (min(v), max(v)) == (min(values), max(values))
    assert set(zip(t, v, strict=True)) <= set(zip(times, values, strict=True))


def test_joules_along_a_constant_power_are_watts_times_seconds(tmp_path: Path) -> None:
    _, trials, _ = traced(example(), tmp_path)
    spent = figures_trials.joules_by(trials[0], tmp_path)
    assert spent is not None
    for seconds in (0.0, 0.05, 1.234, 5.0):
        assert spent(seconds) == pytest.approx(WATTS * seconds, rel=1e-9, abs=1e-9)
    (curve, *_) = figures_trials.curves(trials, "joules", tmp_path)
    assert curve.x[-1] == pytest.approx(WATTS * sum(t.train.wall_s for t in trials if t.role == "baseline") / 3)


def test_a_window_that_was_paused_has_no_joules_along_the_way(tmp_path: Path) -> None:
    _, trials, _ = traced(example(), tmp_path)
    paused = [t.model_copy(update={"phases": {"train": t.train.model_copy(update={"pieces": 2})}}) for t in trials]
    assert figures_trials.curves(paused, "joules", tmp_path) == []
    assert figures_trials.curves(paused, "wall_s", tmp_path) != []


def test_a_metric_has_a_curve_over_epochs_and_seconds_where_every_epoch_was_evaluated(tmp_path: Path) -> None:
    """Block b's epoch e has accuracy (e + b) / 10 after 2 e seconds of its window: the mean over blocks 0, 1, 2."""
    meta, trials, counting_runs = traced(example(), tmp_path)

    def looked_at(t: Any, epochs: int) -> Any:
        points = [{"epoch": float(e), "loss": 1 / e, "wall_s": 2.0 * e} for e in (1, 2, 3)]
        return t.model_copy(
            update={"curve": [p | {"accuracy": (p["epoch"] + t.block) / 10} for p in points[:epochs]] + points[epochs:]}
        )

    trials = [looked_at(t, 2 if t.role == "twin" else 3) for t in trials]
    found = figures_trials.curves(trials, "wall_s", figure="accuracy")
    assert {curve.role for curve in found} == {t.role for t in trials} - {"twin"}  # whose looking ended with a target
    plain = next(curve for curve in found if curve.role == "baseline")
    assert plain.x == (2.0, 4.0, 6.0)
    assert plain.y == pytest.approx((0.2, 0.3, 0.4))
    assert (plain.low[0], plain.high[0]) == (0.1, 0.3)
    drawn_of = album(summarise(meta, trials, counting_runs), trials, tmp_path, ["quality-curves"])
    (picture,) = drawn_of.pictures
    assert picture.caption.startswith("accuracy on the test set over epochs and seconds")
    assert any("up is better" in text for text in texts(picture.svg))
    never = [looked_at(t, 0) for t in trials]
    nothing = album(summarise(meta, never, counting_runs), never, tmp_path, ["quality-curves"])
    assert (nothing.pictures, nothing.left_out) == ((), ())  # no suite need look at every epoch


def test_curves_over_seconds_exist_only_where_an_epoch_has_its_seconds(tmp_path: Path) -> None:
    _, trials, _ = traced(example(), tmp_path)
    bare = [
        t.model_copy(
            update={"curve": [{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": None}, {"epoch": 3.0, "loss": 1.0}]}
        )
        for t in trials
    ]
    assert figures_trials.curves(bare, "wall_s") == []
    (plain, *_) = figures_trials.curves(bare, "epoch")
    assert (plain.x, plain.y) == ((1.0, 3.0), (2.0, 1.0))  # an epoch without a loss is no point


@pytest.mark.parametrize(
    ("trace", "because"),
    [
        (None, "no power trace was kept"),
        ("traces/none.csv.gz", "not beside the records"),
        ("../outside.csv.gz", "outside the run's folder"),
        ("/etc/hostname", "outside the run's folder"),
        ("traces/broken.csv.gz", "cannot be read"),
    ],
)
def test_a_trace_that_is_not_there_leaves_the_picture_out_with_its_reason(
    tmp_path: Path, trace: str | None, because: str
) -> None:
    home = tmp_path / "run"
    write_bytes(home / "traces" / "broken.csv.gz", b"\x1f\x8bno")
    write_bytes(tmp_path / "outside.csv.gz", pack([Sample(0, "GPU-0", 1.0)], 0))
    meta, trials, counting_runs = example().records()
    trials = [t.model_copy(update={"trace": trace}) for t in trials]
    found = album(summarise(meta, trials, counting_runs), trials, home)
    assert because in next(each.reason for each in found.left_out if each.kind == "power")


def test_what_was_set_aside_is_shown_as_such_in_the_blocks(tmp_path: Path) -> None:
    run = example().change("half", 1, status="failed", reason="cable")
    meta, trials, counting_runs = run.records()
    picture = next(
        p for p in album(summarise(meta, trials, counting_runs), trials, tmp_path).pictures if p.kind == "blocks"
    )
    assert "1 set aside" in picture.alt


def test_a_picture_without_data_is_left_out_with_a_reason() -> None:
    meta, _, _ = Run().method("half").records()  # without a claim, which would be a figure
    found = album(summarise(meta, [], []), [], Path("nowhere"))
    assert found.pictures == ()
    assert {each.kind for each in found.left_out} == set(KINDS) - set(OPTIONAL)
    assert all(each.reason for each in found.left_out)


# ── diagnostics by shape ──────────────────────────────────────────────────────────────────────────────────────

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["histograms", "tensors", "name", "from", "to", "density", "fitted", "epoch", "ks", "0.5", "0.8", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(JSON)
@settings(max_examples=150)
def test_any_json_is_either_panels_of_finite_figures_or_nothing(value: Any) -> None:
    for panel in figures_diagnostics.panels({"of": value}):
        figures = (
            panel.density
            if isinstance(panel, figures_diagnostics.Histogram)
            else panel.observed
            if isinstance(panel, figures_diagnostics.Bounded)
            else panel.y
            if isinstance(panel, figures_diagnostics.Scatter)
            else panel.values
        )
        assert len(figures) > 1
        assert all(math.isfinite(figure) for figure in figures)


def test_a_histogram_says_its_goodness_of_fit_from_the_tensor_of_its_name() -> None:
    found = {
        "tensors": [{"name": "w", "ks": 0.04, "ks_n": 144, "ks_passes": False}, {"name": "v"}],
        "histograms": [{"name": n, "from": 0, "to": 1, "density": [1, 1], "fitted": [1]} for n in ("w", "v")],
    }
    w, v = figures_diagnostics.panels(found)
    assert isinstance(w, figures_diagnostics.Histogram)
    assert isinstance(v, figures_diagnostics.Histogram)
    assert w.fit == "KS 0.040, n 144, does not fit"
    assert v.fit == ""
    assert w.fitted == ()  # another length than the density: not drawn


def test_figures_by_number_and_over_epochs_are_found_and_a_constant_is_not() -> None:
    found = list(
        figures_diagnostics.panels(
            {
                "samples_by_drop_rate": {"0.8": 3, "0": 5},
                "layers": {"conv 1": 1, "conv 2": 2},
                "fits": [{"epoch": 4, "shape": 2.0, "n": 8}, {"epoch": 2, "shape": 1.0, "n": 8}],
            }
        )
    )
    assert found == [
        figures_diagnostics.ByNumber("samples by drop rate", ("0", "0.8"), (5.0, 3.0)),
        figures_diagnostics.OverEpochs("shape", (2.0, 4.0), (1.0, 2.0)),
    ]


def test_points_stand_against_each_other_where_there_are_as_many_of_both() -> None:
    entry = {"name": "loss", "against": "norm", "x": [1, 2, 3], "y": [2, 4, 7], "rank_correlation": 1.0}
    (panel,) = figures_diagnostics.panels({"compared": {"scatter": [entry]}})
    assert panel == figures_diagnostics.Scatter("loss", "norm", (1.0, 2.0, 3.0), (2.0, 4.0, 7.0), 1.0)
    for broken in ({"x": [1, 2]}, {"y": [1, 2, None]}, {"x": [1], "y": [1]}, {"x": "123"}):
        assert not list(figures_diagnostics.panels({"compared": {"scatter": [entry | broken]}}))
    (unknown,) = figures_diagnostics.panels({"compared": {"scatter": [entry | {"rank_correlation": None}]}})
    assert unknown.rank_correlation is None  # a constant score has none, and is no 0


def test_points_can_be_drawn_and_say_in_words_how_they_agree(tmp_path: Path) -> None:
    meta, trials, counting_runs = traced(example(), tmp_path)
    scatter = [{"name": "loss", "against": "norm", "x": [1, 2, 3], "y": [2, 7, 4], "rank_correlation": 0.5}]
    trials = [t.model_copy(update={"diagnostics": {"half": {"scatter": scatter}}}) for t in trials]
    found = album(summarise(meta, trials, counting_runs), trials, tmp_path, ["diagnostics"])
    assert_no_mistake(found)
    assert all("loss against norm, rank correlation 0.50" in picture.alt for picture in found.pictures)
    assert any("rank correlation 0.50" in text for text in texts(found.pictures[0].svg))


def test_what_was_observed_stands_with_its_positive_bounds_and_without_them_nowhere() -> None:
    rows = [{"epoch": e, "observed": 2.0 / (e + 1), "printed": 3.0, "lost": -1.0} for e in range(3)]
    (panel,) = figures_diagnostics.panels({"theorem": {"smoothness": 2.0, "bounded": rows}})
    assert panel == figures_diagnostics.Bounded((0.0, 1.0, 2.0), (2.0, 1.0, 2 / 3), (("printed", (3.0,) * 3),))
    for broken in (
        [],
        rows[:1],
        [{**row, "observed": -1.0} for row in rows],
        [{**row, "printed": None} for row in rows],
    ):
        assert not list(figures_diagnostics.panels({"theorem": {"bounded": broken}}))


# ── colours ───────────────────────────────────────────────────────────────────────────────────────────────────


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("paper", [canvas.PAPER, canvas.DARK[canvas.PAPER]])
def test_every_series_is_seen_and_every_word_is_read_on_light_and_on_dark(paper: str) -> None:
    dark = paper != canvas.PAPER
    assert all(contrast(colour, paper) >= 3.0 for colour in canvas.SERIES)  # graphics: WCAG 1.4.11
    for ink in (canvas.INK, canvas.MUTED):
        assert contrast(canvas.DARK[ink] if dark else ink, paper) >= 4.5  # text: WCAG 1.4.3


def test_every_colour_of_ink_and_paper_in_a_picture_turns_on_a_dark_page(tmp_path: Path) -> None:
    for picture in drawn(example(), tmp_path).pictures:
        body = picture.svg.split("</style>", 1)[1]
        known = {*canvas.DARK, *canvas.SERIES, "none"}
        assert {m[1] for m in re.finditer(r"(?:fill|stroke): (#\w+|none)", body)} <= known
