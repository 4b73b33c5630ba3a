"""gradsamp: which epochs it skips, how it moves the weights in them, and what it leaves alone."""

from __future__ import annotations

import math
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

from energybench import discovery
from energybench.errors import UsageError
from energybench.ggd import fit
from energybench.method import Method
from energybench.seeds import stable_seed
from energybench.work import Line, Work

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


@given(
    epochs=st.integers(1, 60), period=st.integers(2, 12), start=st.integers(2, 20), between=st.integers(0, 15),
    late=st.booleans(),
)  # fmt: skip
def test_the_periodic_rule_holds_for_any_length_start_and_distance(epochs, period, start, between, late):
    made = method(skip=f"{'late-' * late}every:{period}", start_epoch=start, min_real_between=between)
    expected, last = set(), -math.inf
    for e in range(1, epochs + 1):
        if e % period == 0 and e >= start and (not late or 2 * e > epochs) and e - last > between:
            expected.add(e)
            last = e
    assert made.skipped_epochs(planned(epochs)) == expected


@given(
    epochs=st.integers(1, 80), chance=st.floats(0.01, 0.99), between=st.integers(0, 4), late=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
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
    skipped = sum(
        len(method(skip=f"random:{chance}").skipped_epochs(planned(epochs, seed))) for seed in range(count)
    )
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
        {"skip": "every:1"}, {"skip": "every:2.5"}, {"skip": "every"}, {"skip": "random:0"}, {"skip": "random:1"},
        {"skip": "sometimes:3"}, {"skip": "every:nan"}, {"skip": "random:nan"}, {"skip": ""},
        {"location": "mode"}, {"epsilon": -1.0}, {"start_epoch": 1}, {"min_real_between": -1},
    ],
)  # fmt: skip
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
    fitted = fit(real)
    wider = replace(fitted, scale=fitted.scale + epsilon)
    draws = drawn.double().flatten().numpy()
    found = stats.kstest(draws, "gennorm", (wider.shape, wider.location, wider.scale))
    assert found.pvalue > 1e-3
    if epsilon:  # and the test can tell: without ε it is another law
        assert stats.kstest(draws, "gennorm", (fitted.shape, fitted.location, fitted.scale)).pvalue < 1e-6
    correlation = torch.corrcoef(torch.stack([real.flatten(), drawn.flatten()]))[0, 1].item()
    assert abs(correlation) < 5 / math.sqrt(
        real.numel()
    )  # i.i.d.: δ's direction is lost, as the paper has it


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
    real = fit(watching.moved(2, "1.weight"))
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
            self.body(x.flatten(1)) * self.one * (1 + self.common.sum())
            + self.rare[:3].square().sum()
            + self.rare[0]
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
    _, watching, made = diary(
        "every:2", 2, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    )
    scale = fit(watching.moved(1, "1.weight")).scale
    (log,) = made.diagnostics()["fits"]
    assert log["noise_ratio_median"] == pytest.approx(1 + made.epsilon / scale, rel=1e-4)
    assert log["epoch"] == 2


@pytest.mark.parametrize(
    ("skip", "promise"),
    [("every:5", 0.2), ("random:0.7", 0.7), ("late-every:10", 0.05), ("late-random:0.5", 0.25)],
)
def test_it_claims_the_nominal_share_as_table_2_prints_it(skip, promise):
    saving, of, _ = method(skip=skip).claims()
    assert (saving, of) == (pytest.approx(promise), "training")


@pytest.mark.parametrize("location", ["median", "mean", "zero"])
def test_every_location_trains(location):
    run, _, _ = diary("every:2", 4, location=location)
    assert 0 <= run.evaluate(digits(32, test=True))["accuracy"] <= 1
