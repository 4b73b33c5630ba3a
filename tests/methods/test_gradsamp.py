"""gradsamp: which epochs it skips, how it moves the weights in them, and what it leaves alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support import assert_same_state, digits, make_run, state
from torch import nn

from energybench.algorithms.generalized_gaussian import GGD, fit
from energybench.algorithms.gradsamp_bound import bound, contraction, fixed_point, printed_contraction
from energybench.common.errors import UsageError
from energybench.common.hashing import stable_seed
from energybench.flops.work import Line, Work
from energybench.train import discovery
from energybench.train.method import Method

KIND: Any = discovery.load(discovery.sources()["gradsamp"])


def method(**parameters: Any) -> Any:
    return discovery.build(KIND, "gradsamp", parameters)


def planned(epochs: int, seed: int = 0) -> Any:
    """What `kept_epochs` may use of a run."""
    rng = lambda *key: torch.Generator().manual_seed(stable_seed(seed, *key))  # noqa: E731
    return SimpleNamespace(epochs=epochs, rng=rng)


# ── which epochs ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        ("every:5", list(range(5, 201, 5))),  # 40 by the literal rule, where Table 2 prints 33
        ("every:10", list(range(10, 201, 10))),
        ("late-every:5", list(range(105, 201, 5))),
        ("late-every:10", list(range(110, 201, 10))),
    ],
)
def test_of_200_epochs_the_periodic_rules_skip_the_literal_ones(skip, expected):
    assert sorted(method(skip=skip).skipped_epochs(planned(200))) == expected


def test_the_papers_own_periodic_counts_come_from_a_later_start():
    """The paper's Table 2: Pe = 5 and 10 keep 167 and 183 only from epoch 36..40, DP 190 and 195 from 151..155."""
    for skip, kept in (("every:5", 167), ("every:10", 183)):
        assert method(skip=skip, start_epoch=40).kept_epochs(planned(200)) == kept
    for skip, kept in (("late-every:5", 190), ("late-every:10", 195)):
        assert method(skip=skip, start_epoch=155).kept_epochs(planned(200)) == kept


TABLE_2 = [  # epochs kept of 200, and the nominal saving
    ("Pe=5", 167, 0.2),
    ("Pe=10", 183, 0.1),
    ("Pr=0.2", 176, 0.2),
    ("Pr=0.5", 135, 0.5),
    ("Pr=0.7", 119, 0.7),
    ("DP=5", 190, 0.1),
    ("DP=10", 195, 0.05),
    ("DR=0.2", 190, 0.1),
    ("DR=0.5", 175, 0.25),
    ("DR=0.7", 165, 0.35),
]


@pytest.mark.parametrize(("row", "kept", "promise"), TABLE_2)
def test_a_row_of_table_2_keeps_the_tables_count_and_claims_the_tables_percentage(row, kept, promise):
    made = method(skip=f"table2:{row}")
    for seed in range(3):
        skipped = made.skipped_epochs(planned(200, seed))
        assert made.kept_epochs(planned(200, seed)) == 200 - len(skipped) == kept
        assert min(skipped) >= {"Pe": 40, "Pr": 2, "DP": 155, "DR": 101}[row[:2]]
        assert max(skipped) <= 200
    assert made.claims()[0] == pytest.approx(promise)


@given(
    row=st.sampled_from([row for row, _, _ in TABLE_2]),
    epochs=st.integers(1, 300),
    between=st.integers(0, 5),
    start=st.integers(2, 30),
    seed=st.integers(0, 9),
)
def test_a_row_of_table_2_is_in_proportion_for_another_length_and_keeps_the_required_distance(
    row, epochs, between, start, seed
):
    made = method(skip=f"table2:{row}", min_real_between=between, start_epoch=start)
    skipped = sorted(made.skipped_epochs(planned(epochs, seed)))
    assert all(b - a > between for a, b in pairwise(skipped))
    assert all(max(2, start) <= e <= epochs for e in skipped)
    kept = next(kept for known, kept, _ in TABLE_2 if known == row)
    if between == 0 and start == 2 and row[:2] in ("Pr", "DR") and epochs >= 10:
        assert len(skipped) == round((200 - kept) * epochs / 200)


def test_every_set_of_drawn_epochs_that_keeps_its_distance_is_as_likely_as_another():
    """3 of 7 epochs, never two in a row: C(5, 3) = 10 sets."""
    made = method(skip="table2:Pr=0.7", min_real_between=1)
    generator = torch.Generator().manual_seed(0)
    sets = Counter(tuple(sorted(made._drawn(range(2, 9), 3, generator))) for _ in range(2000))
    assert len(sets) == math.comb(5, 3)
    assert stats.chisquare(list(sets.values())).pvalue > 1e-3


@given(
    epochs=st.integers(1, 60),
    period=st.integers(2, 12),
    start=st.integers(2, 20),
    between=st.integers(0, 15),
    late=st.booleans(),
)
def test_the_periodic_rule_holds_for_any_length_start_and_distance(epochs, period, start, between, late):
    made = method(skip=f"{'late-' * late}every:{period}", start_epoch=start, min_real_between=between)
    expected, last = set(), -math.inf
    for e in range(1, epochs + 1):
        if e % period == 0 and e >= start and (not late or 2 * e > epochs) and e - last > between:
            expected.add(e)
            last = e
    assert made.skipped_epochs(planned(epochs)) == expected


@given(
    epochs=st.integers(1, 80),
    chance=st.floats(0.01, 0.99),
    between=st.integers(0, 4),
    late=st.booleans(),
    seed=st.integers(0, 99),
)
def test_drawn_epochs_keep_their_distance_their_half_and_the_first_epoch(epochs, chance, between, late, seed):
    made = method(skip=f"{'late-' * late}random:{chance!r}", min_real_between=between)
    skipped = sorted(made.skipped_epochs(planned(epochs, seed)))
    assert 1 not in skipped
    assert all(2 <= e <= epochs for e in skipped)
    assert all(b - a > between for a, b in pairwise(skipped))
    assert not late or all(e > epochs // 2 for e in skipped)
    assert made.kept_epochs(planned(epochs, seed)) == epochs - len(skipped)


@pytest.mark.parametrize("chance", [0.2, 0.5, 0.7])
def test_epochs_are_skipped_as_often_as_asked(chance):
    count, epochs = 40, 201
    skipped = sum(len(method(skip=f"random:{chance}").skipped_epochs(planned(epochs, seed))) for seed in range(count))
    trials = count * (epochs - 1)  # epoch 1 is never drawn
    assert abs(skipped / trials - chance) < 4 * math.sqrt(chance * (1 - chance) / trials)
    spaced = sum(
        len(method(skip=f"random:{chance}", min_real_between=1).skipped_epochs(planned(epochs, seed)))
        for seed in range(count)
    )
    # a draw after every real epoch alone: a renewal every 1 + 1/ρ epochs
    assert spaced / trials == pytest.approx(chance / (1 + chance), rel=0.05)


def test_the_draw_belongs_to_the_seed_and_not_to_who_asks():
    made = method(skip="random:0.5")
    assert made.skipped_epochs(planned(50)) == made.skipped_epochs(planned(50))
    assert made.skipped_epochs(planned(50)) != made.skipped_epochs(planned(50, seed=1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"skip": "every:1"},
        {"skip": "every:2.5"},
        {"skip": "every"},
        {"skip": "random:0"},
        {"skip": "random:1"},
        {"skip": "sometimes:3"},
        {"skip": "every:nan"},
        {"skip": "random:nan"},
        {"skip": ""},
        {"skip": "table2:Pe=7"},
        {"skip": "table2:Px=5"},
        {"skip": "table2"},
        {"skip": "table2:Pr"},
        {"least_shape": -0.1},
        {"location": "mode"},
        {"epsilon": -1.0},
        {"start_epoch": 1},
        {"min_real_between": -1},
        {"fit_layers": ["a"]},
        {"fit_epochs": [3]},
        {"fit_layers": ["a"], "fit_epochs": [0]},
        {"fit_layers": ["a"], "fit_epochs": [3, 3]},
    ],
)
def test_parameters_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError) as refused:
        method(**wrong)
    assert refused.value.problems[0].code == "E304"


# ── what a skipped epoch does ─────────────────────────────────────────────────────────────────────────────────────


class Diary(Method):
    """State and passes before and after each epoch."""

    name = "diary"

    def setup(self, run):
        self.days: dict[int, SimpleNamespace] = {}

    def epoch(self, run, data, inner):
        before, passes, optimizer = state(run.model), run.tally.passes(), momenta(run)
        inner(data)
        self.days[run.epoch_number] = SimpleNamespace(
            before=before,
            after=state(run.model),
            passes=(passes, run.tally.passes()),
            momenta=(optimizer, momenta(run)),
        )

    def moved(self, epoch: int, name: str) -> torch.Tensor:
        return self.days[epoch].after[name] - self.days[epoch].before[name]


def momenta(run) -> list[torch.Tensor]:
    return [value["momentum_buffer"].clone() for value in run.optimizer().state.values()]


def diary(skip: str, epochs: int, model=None, **parameters: Any) -> tuple[Any, Diary, Any]:
    made, watching = method(skip=skip, **parameters), Diary()
    run = make_run([watching, made], **({"model": model} if model else {}), epochs=epochs)
    run.train()
    return run, watching, made


def wide() -> nn.Module:
    """One large weight, so that the law of its draws can be tested."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_the_weights_move_by_draws_from_the_fitted_law_widened_by_epsilon(epsilon):
    _, watching, _ = diary("every:3", 3, wide, epsilon=epsilon)
    real, drawn = watching.moved(2, "1.weight"), watching.moved(3, "1.weight")
    fitted = fit(real, "median")
    wider = replace(fitted, scale=fitted.scale + epsilon)
    draws = drawn.double().flatten().numpy()
    found = stats.kstest(draws, "gennorm", (wider.shape, wider.location, wider.scale))
    assert found.pvalue > 1e-3
    if epsilon:  # and the test can tell: without ε it is another law
        assert stats.kstest(draws, "gennorm", (fitted.shape, fitted.location, fitted.scale)).pvalue < 1e-6
    correlation = torch.corrcoef(torch.stack([real.flatten(), drawn.flatten()]))[0, 1].item()
    assert abs(correlation) < 5 / math.sqrt(real.numel())  # i.i.d.: δ's direction is lost, as the paper has it


def test_a_skipped_epoch_has_no_pass_and_leaves_statistics_and_optimizer_alone():
    run, watching, _ = diary("every:2", 4)
    for epoch in (2, 4):
        day = watching.days[epoch]
        assert day.passes[0] == day.passes[1]
        parameters = {name for name, _ in run.model.named_parameters()}
        buffers = day.before.keys() - parameters
        assert any("running_mean" in name for name in buffers)
        assert_same_state({n: day.before[n] for n in buffers}, {n: day.after[n] for n in buffers})
        moving = parameters - {"0.bias"}  # in front of BatchNorm: it has no gradient
        assert all(not torch.equal(day.before[name], day.after[name]) for name in moving)
        assert all(torch.equal(a, b) for a, b in zip(*day.momenta, strict=True))
        assert day.momenta[0]


def test_epochs_trained_are_the_kept_epochs_and_the_estimate_is_their_share():
    run, _, made = diary("random:0.4", 9)
    skipped = made.skipped_epochs(run)
    assert skipped
    assert run.tally.passes().epochs_trained == made.kept_epochs(run) == 9 - len(skipped)
    assert [p["epoch"] for p in run.curve if p["loss"] is None] == sorted(skipped)
    work = Work((Line("forward", "a", "linear", 100.0),), epochs=9, samples=10)
    assert made.estimate(work).flop == pytest.approx(work.flop * (9 - len(skipped)) / 9)
    assert made.diagnostics()["skipped_epochs"] == sorted(skipped)


def test_a_second_skipped_epoch_in_a_row_reuses_the_fit_of_the_last_real_one():
    made, watching = method(), Diary()
    made.skipped_epochs = lambda run: {3, 4}
    run = make_run([watching, made], wide, epochs=4, batch=32)
    run.train()
    real = fit(watching.moved(2, "1.weight"), "median")
    for epoch in (3, 4):
        drawn = watching.moved(epoch, "1.weight").double().flatten().numpy()
        law = (real.shape, real.location, real.scale + made.epsilon)
        assert stats.kstest(drawn, "gennorm", law).pvalue > 1e-3
    assert not torch.equal(watching.moved(3, "1.weight"), watching.moved(4, "1.weight"))


class Odd(nn.Module):
    """Besides a trained layer: one number, one unused tensor, one whose update has no spread and one mostly at rest."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 10)
        self.one = nn.Parameter(torch.ones(1))
        self.unused = nn.Parameter(torch.ones(5))
        self.common = nn.Parameter(torch.zeros(1, 8))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.rare = nn.Parameter(torch.zeros(1000))

    def forward(self, x):
        return (
            self.body(x.flatten(1)) * self.one * (1 + self.common.sum()) + self.rare[:3].square().sum() + self.rare[0]
        )


def test_a_tensor_without_a_fit_repeats_its_update():
    _, watching, made = diary("every:3", 3, Odd)
    for name in ("one", "common", "unused"):
        torch.testing.assert_close(watching.moved(3, name), watching.moved(2, name), rtol=1e-3, atol=1e-7)
    assert watching.moved(2, "one").abs() > 0
    assert len(set(watching.moved(2, "common").flatten().tolist())) == 1
    assert torch.equal(watching.days[3].after["frozen"], torch.ones(3))
    assert not torch.allclose(watching.moved(3, "body.weight"), watching.moved(2, "body.weight"))
    (log,) = made.diagnostics()["fits"]
    assert (log["tensors_fitted"], log["tensors_repeated"]) == (2, 4)


def test_a_tensor_mostly_at_rest_repeats_its_update_too_since_epsilon_would_blow_up_its_draws():
    """β → 0 there, and the draws' deviation, (σ + ε)·√(Γ(3/β)/Γ(1/β)), passes 10²⁸ at β = 0.05."""
    _, watching, _ = diary("every:3", 3, Odd)
    torch.testing.assert_close(watching.moved(3, "rare"), watching.moved(2, "rare"), rtol=1e-3, atol=1e-6)
    assert (watching.moved(3, "rare")[3:] == 0).all()


def test_the_log_has_the_noise_over_the_real_update():
    _, watching, made = diary("every:2", 2, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)))
    scale = fit(watching.moved(1, "1.weight"), "median").scale
    (log,) = made.diagnostics()["fits"]
    assert log["noise_ratio_median"] == pytest.approx(1 + made.epsilon / scale, rel=1e-4)
    assert log["epoch"] == 2


# ── what the record keeps ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_record_has_the_last_fits_parameters_and_its_goodness_tensor_by_tensor():
    _, watching, made = diary("every:3", 3, Odd)
    last = made.diagnostics()["last_fit"]
    rows = {row["name"]: row for row in last["tensors"]}
    assert set(rows) == {"body.weight", "body.bias", "one", "unused", "common", "rare"}
    assert {name for name, row in rows.items() if row["repeated"]} == {"one", "unused", "common", "rare"}
    real = watching.moved(2, "body.weight")
    expected, row = fit(real, "median"), rows["body.weight"]
    found = (row["location"], row["scale"], row["shape"])
    assert found == pytest.approx((expected.location, expected.scale, expected.shape), rel=1e-3)
    assert row["noise_ratio"] == pytest.approx(1 + made.epsilon / expected.scale, rel=1e-3)
    law = (expected.shape, expected.location, expected.scale)
    by_scipy = stats.kstest(real.double().flatten().numpy(), "gennorm", law)
    assert row["ks"] == pytest.approx(by_scipy.statistic, rel=1e-3)
    assert (row["n"], row["ks_n"]) == (640, 640)
    assert row["ks_passes"] == (by_scipy.pvalue >= 0.05)
    passes = [row["ks_passes"] for row in rows.values() if not row["repeated"]]
    assert last["ks_pass_rate"] == sum(passes) / len(passes)


def test_noise_over_update_is_the_root_mean_square_of_the_draws_over_that_of_the_update():
    _, watching, made = diary("every:3", 3, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 900, bias=False)))
    real, drawn = watching.moved(2, "1.weight"), watching.moved(3, "1.weight")
    found = made.diagnostics()
    assert found["last_fit"]["noise_over_update"] == pytest.approx((drawn.norm() / real.norm()).item(), rel=0.05)
    assert found["fits"][0]["draw_square"] == pytest.approx(drawn.square().sum().item(), rel=0.1)


def test_a_picture_is_a_density_of_the_update_beside_the_fitted_one_and_there_are_three_at_most():
    _, watching, made = diary("every:3", 3)
    pictures = made.diagnostics()["last_fit"]["histograms"]
    assert [picture["name"] for picture in pictures] == ["0.weight", "4.weight", "9.weight"]  # the largest
    for picture in pictures:
        width = (picture["to"] - picture["from"]) / 41
        assert len(picture["density"]) == len(picture["fitted"]) == 41
        assert sum(picture["density"]) * width == pytest.approx(0.99, abs=0.011)
        assert 0.9 < sum(picture["fitted"]) * width <= 1
        real = watching.moved(2, picture["name"]).double()
        first = (real >= picture["from"]) & (real < picture["from"] + width)
        assert picture["density"][0] * width == pytest.approx(first.double().mean().item(), abs=2 / real.numel())


def test_the_fits_that_a_suite_names_are_kept_epoch_by_epoch_and_change_nothing():
    """Epochs 3 and 6 are sampled, and 2 precedes one; 4 is neither, and 9 never comes."""
    made, watching = method(skip="every:3", fit_layers=["*.weight"], fit_epochs=[2, 3, 4, 9]), Diary()
    run = make_run([watching, made], wide, epochs=6)
    run.train()
    found = made.diagnostics()["chosen_fits"]
    layers = ["1.weight", "3.weight"]
    assert [row["name"] for row in found["tensors"]] == [f"epoch {e}: {name}" for e in (2, 3, 4) for name in layers]
    assert [row["update_of_epoch"] for row in found["tensors"]] == [2, 2, 2, 2, 4, 4]
    assert found["epochs_without"] == [9]
    assert [picture["name"] for picture in found["histograms"]] == [row["name"] for row in found["tensors"]]
    for row, (epoch, name) in zip(found["tensors"], [(e, n) for e in (2, 2, 4) for n in layers], strict=True):
        expected = fit(watching.moved(epoch, name), "median")
        assert (row["location"], row["scale"], row["shape"]) == pytest.approx(
            (expected.location, expected.scale, expected.shape), rel=1e-2, abs=1e-9
        )
    plain = make_run([method(skip="every:3")], wide, epochs=6)
    plain.train()
    assert_same_state(state(plain.model), state(run.model))
    assert "chosen_fits" not in plain.methods[0].diagnostics()


def test_an_update_without_spread_has_its_reason_in_place_of_a_fit():
    _, _, made = diary("every:3", 3, Odd, fit_layers=["body.*", "common", "unused"], fit_epochs=[1])
    found = made.diagnostics()["chosen_fits"]
    assert {row["name"] for row in found["tensors"] if "reason" in row} == {"epoch 1: common", "epoch 1: unused"}
    assert {picture["name"] for picture in found["histograms"]} == {"epoch 1: body.weight", "epoch 1: body.bias"}


@pytest.mark.parametrize(
    ("layers", "epochs", "says"),
    [
        (["1.wieght"], [2], "did you mean '1.weight'"),
        (["1"], [2], 'did you mean "1.*"'),
        (["*"], list(range(1, 8)), "28 updates; at most 24"),
    ],
)
def test_fits_of_no_layer_and_of_too_many_are_refused_before_it_trains(layers, epochs, says):
    with pytest.raises(UsageError, match="fit_layers") as refused:
        make_run([method(fit_layers=layers, fit_epochs=epochs)], wide)
    assert says in str(refused.value)


def test_a_large_model_does_not_make_a_large_record():
    _, _, made = diary("every:2", 6, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1100), nn.Linear(1100, 10)))
    found = made.diagnostics()
    assert len(json.dumps(found)) < 8000
    assert max(row["n"] for row in found["last_fit"]["tensors"]) == 70_400
    assert max(row["ks_n"] for row in found["last_fit"]["tensors"]) <= 65_536


def test_a_run_that_skipped_nothing_or_fitted_nothing_has_diagnostics_too():
    for skip, model in (("every:9", None), ("every:2", lambda: AllAtRest())):
        _, _, made = diary(skip, 4, model)
        assert made.diagnostics()["last_fit"] == {}
        assert made.diagnostics()["fits"] == []


class AllAtRest(nn.Module):
    """Nothing but one number, which has no distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.flatten(1)[:, :10] * self.one


@pytest.mark.parametrize(
    ("skip", "promise"), [("every:5", 0.2), ("random:0.7", 0.7), ("late-every:10", 0.05), ("late-random:0.5", 0.25)]
)
def test_it_claims_the_nominal_share_as_table_2_prints_it(skip, promise):
    saving, of, _ = method(skip=skip).claims()
    assert (saving, of) == (pytest.approx(promise), "training")


@pytest.mark.parametrize("location", ["free", "median", "mean", "zero"])
def test_every_location_trains(location):
    run, _, _ = diary("every:2", 4, location=location)
    assert 0 <= run.evaluate(digits(32, test=True))["accuracy"] <= 1


def test_under_a_forward_only_method_a_skipped_epoch_saves_its_forwards():
    forward_only = discovery.build(discovery.load(discovery.sources()["mezo"]), "mezo", {})
    made = method(skip="every:2")
    for stack in ([made, forward_only], [forward_only, made]):
        run = make_run(stack, epochs=4)
        run.train()
        steps = run.data.steps(32)
        assert (run.tally.forwards, run.tally.backwards) == (2 * 2 * steps, 0)
    work = Work((Line("forward", "a", "linear", 1.0), Line("weight_gradient", "a", "linear", 2.0)), 4, 10)
    assert made.estimate(forward_only.estimate(work)).flop == pytest.approx(2 / 3 * work.flop / 2)


# ── Theorem 3.1 ───────────────────────────────────────────────────────────────────────────────────────────────────


def mean_gap(curvatures: torch.Tensor, start: float, step: float, sampled: float, draw_square: float, steps: int):
    """E Δ_k of f = ½Σ hᵢθᵢ², exactly: E θᵢ² contracts by (1 − η·hᵢ)² in a real step and gains its share of the draw's
    square in a sampled one, whose mean is zero."""
    squares = torch.full_like(curvatures, start**2)
    gaps = []
    for _ in range(steps + 1):
        gaps.append((curvatures * squares).sum().item() / 2)
        real = (1 - step * curvatures) ** 2 * squares
        squares = (1 - sampled) * real + sampled * (squares + draw_square / len(curvatures))
    return gaps


@given(
    low=st.floats(0.1, 1),
    ratio=st.floats(1, 20),
    share=st.floats(0.05, 0.95),
    sampled=st.floats(0, 0.9),
    draw=st.floats(0, 10),
)
def test_the_gap_of_a_quadratic_stays_below_the_bound_and_meets_it_where_all_curvatures_are_equal(
    low, ratio, share, sampled, draw
):
    high = low * ratio
    step = share * 2 / high
    curvatures = torch.linspace(low, high, 5, dtype=torch.float64)
    factor = contraction(low, high, step, sampled)
    fixed = fixed_point(factor, high, sampled, draw)
    gaps = mean_gap(curvatures, 3.0, step, sampled, draw, 30)
    for number, gap in enumerate(gaps):
        assert gap <= bound(number, gaps[0], factor, fixed) * (1 + 1e-9) + 1e-12
    equal = mean_gap(torch.full((5,), high, dtype=torch.float64), 3.0, step, sampled, draw, 30)
    factor = contraction(high, high, step, sampled)
    fixed = fixed_point(factor, high, sampled, draw)
    expected = [bound(number, equal[0], factor, fixed) for number in range(31)]
    assert equal == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_printed_factor_is_broken_by_that_quadratic():
    curvatures, step, sampled, draw = torch.ones(4, dtype=torch.float64), 0.3, 0.2, 0.01
    gaps = mean_gap(curvatures, 2.0, step, sampled, draw, 5)
    factor = printed_contraction(1.0, step, sampled)
    fixed = fixed_point(factor, 1.0, sampled, draw)
    assert fixed == pytest.approx(sampled * draw / (4 * step * (1 - sampled)))  # ρLσ²/(4μη(1−ρ)), as printed
    assert gaps[1] > bound(1, gaps[0], factor, fixed)
    assert contraction(1.0, 1.0, step, sampled) > factor


def test_a_simulated_run_comes_to_rest_at_the_fixed_point():
    """θ ← θ − ηθ, or with chance ρ θ + a draw of the family: Δ* is where the mean loss stays."""
    step, sampled, count, size = 0.4, 0.3, 4000, 8
    ggd = GGD(0.0, 0.05, 1.3)
    generator = torch.Generator().manual_seed(1)
    theta = torch.ones(count, size)
    for _ in range(60):
        drawn = torch.rand(count, 1, generator=generator) < sampled
        theta = torch.where(drawn, theta + ggd.sample((count, size), generator), (1 - step) * theta)
    gaps = theta.double().square().sum(1) / 2
    fixed = fixed_point(contraction(1.0, 1.0, step, sampled), 1.0, sampled, size * ggd.variance)
    assert abs(gaps.mean().item() - fixed) < 4 * gaps.std().item() / math.sqrt(count)


def test_what_the_theorem_does_not_cover_is_refused():
    for wrong in ((0.0, 1.0, 0.1), (2.0, 1.0, 0.1), (1.0, 1.0, 2.0), (1.0, 1.0, 0.0)):
        with pytest.raises(ValueError, match="is not in"):
            contraction(*wrong, 0.2)
    with pytest.raises(ValueError, match="no contraction"):
        fixed_point(1.0, 1.0, 0.2, 1.0)
