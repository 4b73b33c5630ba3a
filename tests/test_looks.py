"""Looks: declared before the first block, and what they may spend adds up to what was promised. Simulated truth."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energybench.common.errors import UsageError
from energybench.records.record import Cell, Looks, RunFile, Trial
from energybench.stats import paired
from energybench.stats.interim import declared
from energybench.suite.suite import Suite, load
from energybench.verdict.interim import current_look, whole_blocks

CELLS = [
    Cell(workload="w", method="baseline", role="baseline"),
    Cell(workload="w", method="m", role="method"),
    Cell(workload="w", method="not here", role="method", skipped="it has no convolutions"),
]
DESIGNS = [(5, 10, 20), (3, 6, 12), (3, 4, 5, 6, 7, 8, 9, 10), (4, 20), (3, 6, 12, 30)]


def run(blocks: int = 20, at: list[int] | None = None, taken: tuple[int, ...] = (), **more: object) -> RunFile:
    looks = None if at is None else Looks(at=at, taken=list(taken))
    return RunFile(
        suite="s",
        run="r",
        digest="d",
        suite_path="s.toml",
        suite_text="",
        resolved={},
        blocks=blocks,
        looks=looks,
        cells=CELLS,
        **more,
    )  # type: ignore[arg-type]


def trials(blocks: int, status: str = "ok") -> list[Trial]:
    return [
        Trial(
            schema=1,
            trial=f"b{block}.{c.method}",
            workload="w",
            method=c.method,
            role=c.role,
            block=block,
            seed=0,
            invocation=0,
            position=0,
            status=status,
            digest="d",
            started_at="",
        )  # type: ignore[arg-type]
        for block in range(blocks)
        for c in CELLS
        if c.skipped is None
    ]


# ── declaring ─────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 200), st.integers(3, 500))
def test_looks_rise_from_three_blocks_at_least_to_the_most_and_are_few(blocks: int, more: int) -> None:
    most = max(blocks, more)
    looks = declared(blocks, most)
    assert list(looks) == sorted(set(looks))
    assert looks[0] == min(max(blocks, 3), most)
    assert looks[-1] == most
    assert len(looks) <= 2 + math.log2(most / looks[0])


def test_looks_double() -> None:
    assert declared(5, 20) == (5, 10, 20)
    assert declared(3, 30) == (3, 6, 12, 30)
    assert declared(5, 7) == (5, 7)
    assert declared(1, 10) == (3, 6, 10)
    assert declared(5, 5) == (5,)


@given(st.lists(st.integers(3, 100), min_size=1, max_size=8, unique=True), st.data())
def test_the_shares_of_all_looks_add_up_to_one_whatever_the_end_of_a_time_puts_in(
    at: list[int], data: st.DataObject
) -> None:
    at = sorted(at)
    taken = sorted(data.draw(st.sets(st.integers(3, at[-1]), max_size=3)))
    known = sorted({*at, *taken})
    found = [current_look(run(at[-1], at, tuple(taken)), trials(n)) for n in known]
    assert [look.blocks for look in found] == known
    assert [look.number for look in found] == list(range(1, len(known) + 1))
    assert sum(Fraction(look.alpha_fraction).limit_denominator(10_000) for look in found) == 1


# ── where a run stands ────────────────────────────────────────────────────────────────────────────────────


def test_before_the_first_look_there_is_none() -> None:
    look = current_look(run(20, [5, 10, 20]), trials(4))
    assert (look.open, look.number, look.next) == (False, 0, 5)


@pytest.mark.parametrize("there", [5, 6, 9])
def test_between_two_looks_the_first_one_stands(there: int) -> None:
    look = current_look(run(20, [5, 10, 20]), trials(there))
    assert (look.open, look.number, look.of, look.blocks, look.next) == (True, 1, 3, 5, 10)
    assert look.alpha_fraction == 0.25


def test_a_run_that_declared_no_looks_is_looked_at_when_all_blocks_are_there_with_everything_to_spend() -> None:
    assert not current_look(run(5), trials(4)).open
    look = current_look(run(5), trials(5))
    assert (look.open, look.blocks, look.alpha_fraction, look.of) == (True, 5, 1.0, 1)


def test_a_finished_run_is_at_its_end_whatever_is_missing_in_it() -> None:
    look = current_look(run(5, finished=True), trials(2))
    assert (look.open, look.blocks, look.alpha_fraction) == (True, 5, 1.0)


def test_a_run_that_was_decided_early_stays_at_that_look_whatever_is_added() -> None:
    closed = run(20, [5, 10, 20], (5,), closed=5, finished=True, added=3)
    look = current_look(closed, trials(8))
    assert (look.blocks, look.number, look.alpha_fraction, look.next) == (5, 1, 0.25, None)


def test_a_block_counts_once_every_cell_has_a_trial_in_it_good_or_failed() -> None:
    assert whole_blocks(run(5), trials(3, status="failed")) == 3
    assert whole_blocks(run(5), trials(3)[:-1]) == 2
    assert whole_blocks(run(5), [t for t in trials(3) if t.block != 0]) == 0
    assert whole_blocks(run(5), trials(9)) == 5


# ── what is spent: simulated ──────────────────────────────────────────────────────────────────────────────


def looked(d: np.ndarray, design: tuple[int, ...], noise: float, spend: bool = True) -> dict[str, np.ndarray]:
    """At each look of each experiment: below, above, inside and covers(0) as `stats.verdict` has them."""
    h, before = -math.log1p(-noise), 0
    found: dict[str, list[np.ndarray]] = {"saves": [], "costs": [], "same": [], "covers": []}
    for n in design:
        alpha_fraction = (n - before) / design[-1] if spend else 1.0
        mean, se = d[:, :n].mean(1), d[:, :n].std(1, ddof=1) / math.sqrt(n)
        claim = paired.student(paired.adjusted_confidence(paired.CLAIM, alpha_fraction), n - 1) * se
        side = paired.student(paired.adjusted_confidence((1 + paired.INTERVAL) / 2, alpha_fraction), n - 1) * se
        found["saves"].append(mean + claim < -h)
        found["costs"].append(mean - claim > h)
        found["same"].append((mean - side > -h) & (mean + side < h))
        found["covers"].append(abs(mean) <= side)
        before = n
    return {name: np.column_stack(each) for name, each in found.items()}


def experiments(mean: float, most: int, repeats: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 0.05, (repeats, most))


def test_the_simulation_judges_as_the_verdict_does() -> None:
    design, noise = (3, 6, 12), 0.01
    for mean in (-0.12, 0.0, 0.12):
        d = experiments(mean, 12, 60, 1)
        found = looked(d, design, noise)
        for row, values in enumerate(d):
            before = 0
            for k, n in enumerate(design):
                change = paired.paired(np.exp(values[:n]), np.ones(n), alpha_fraction=(n - before) / 12)  # type: ignore[arg-type]
                word = paired.verdict(change, noise, "energy", paired.differences([1.0] * n, [1.0] * n), 0.01)
                expected = {"saves": found["saves"], "costs more": found["costs"], "no saving": found["same"]}
                assert {name for name, value in expected.items() if value[row, k]} <= {word}
                before = n


@pytest.mark.parametrize("design", DESIGNS)
def test_over_all_looks_nothing_saved_is_called_saved_at_most_once_in_100(design: tuple[int, ...]) -> None:
    h, repeats = -math.log1p(-0.01), 200_000
    assert looked(experiments(0.0, design[-1], repeats, 2), design, 0.01)["saves"].any(1).mean() <= 0.01
    most = 0.01 + 3 * math.sqrt(0.01 / repeats)  # at the very margin, the worst case, and its sampling error
    assert looked(experiments(-h, design[-1], repeats, 3), design, 0.01)["saves"].any(1).mean() <= most
    assert looked(experiments(h, design[-1], repeats, 4), design, 0.01)["costs"].any(1).mean() <= most


@pytest.mark.parametrize("design", DESIGNS)
def test_the_intervals_of_all_looks_cover_the_truth_together(design: tuple[int, ...]) -> None:
    covers = looked(experiments(0.0, design[-1], 100_000, 5), design, 0.01)["covers"]
    assert covers.all(1).mean() >= 0.95 - 0.002  # its own sampling error, 3 sigma


def test_no_difference_is_claimed_at_most_as_often_as_promised_where_there_is_one() -> None:
    h = -math.log1p(-0.05)
    d = np.random.default_rng(6).normal(h, 0.02, (200_000, 20))
    assert looked(d, (5, 10, 20), 0.05)["same"].any(1).mean() <= 0.025


def test_peeking_after_every_block_without_spending_would_not_do() -> None:
    every = tuple(range(3, 31))
    found = looked(experiments(0.0, 30, 50_000, 7), every, 0.0, spend=False)["saves"].any(1).mean()
    assert found > 0.05
    assert looked(experiments(0.0, 30, 50_000, 7), every, 0.0)["saves"].any(1).mean() <= 0.01


def test_looking_early_ends_early_and_finds_nearly_as_much() -> None:
    """A saving that 20 blocks find 9 times in 10: three looks find it nearly as often, and in fewer blocks."""
    design, noise, repeats = (5, 10, 20), 0.01, 40_000
    h = -math.log1p(-noise)
    d = experiments(-h - 0.05 * 0.88, 20, repeats, 8)
    at_once = looked(d, (20,), noise)["saves"][:, 0].mean()
    saves = looked(d, design, noise)["saves"]
    first = np.where(saves.any(1), np.array(design)[saves.argmax(1)], 20)
    assert 0.85 < at_once < 0.95
    assert saves.any(1).mean() > at_once - 0.07
    assert first.mean() < 0.85 * 20


# ── in a suite ────────────────────────────────────────────────────────────────────────────────────────────

WORKLOAD = """
[[workload]]
name = "w"
model = { use = "cnn" }
data = { use = "digits", batch = 8 }
train = { epochs = 1, lr = 0.1 }
[[method]]
use = "dropout"
tuned = { trials = 7 }
"""


def suite(folder: Path, trials: str) -> Suite:
    path = folder / "s.toml"
    path.write_text(f'schema = 1\nsuite = "s"\n[trials]\n{trials}\n{WORKLOAD}')
    return load(path)


def test_a_suite_declares_the_most_blocks_and_when_to_look(tmp_path: Path) -> None:
    assert suite(tmp_path, "blocks = 5").trials.declared_looks == ()
    assert suite(tmp_path, "blocks = 5\nblocks_max = 20").trials.declared_looks == (5, 10, 20)
    assert suite(tmp_path, "blocks_max = 20\nlooks = [4, 20]").trials.declared_looks == (4, 20)


@pytest.mark.parametrize(
    ("trials", "word"),
    [
        ("blocks = 5\nblocks_max = 4", "blocks_max"),
        ("blocks = 1\nblocks_max = 2", "blocks_max"),
        ("looks = [3, 6]", "most blocks"),
        ("blocks_max = 9\nlooks = [3, 6]", "rise"),
        ("blocks_max = 9\nlooks = [2, 9]", "rise"),
        ("blocks_max = 9\nlooks = [6, 3, 9]", "rise"),
    ],
)
def test_looks_that_make_no_sense_are_refused_with_their_line(tmp_path: Path, trials: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        suite(tmp_path, trials)
    (problem,) = caught.value.problems
    assert word in problem.message
    assert problem.hint or "expected at least" in problem.message
    assert ".toml:" in problem.where


def test_until_decided_without_the_most_blocks_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    from energybench.runner import runner

    with pytest.raises(UsageError) as caught:
        runner.run(suite(tmp_path, "blocks = 5"), progress=None, until_decided=True)  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert (problem.code, "blocks_max = 20" in problem.hint) == ("E203", True)


def test_a_method_can_say_what_its_tuning_took(tmp_path: Path) -> None:
    (variant,) = suite(tmp_path, "blocks = 5").variants()
    assert (variant.tuned, variant.stack[0].parameters) == (7, {})


def test_looks_change_what_is_planned_and_added_blocks_do_not_change_what_it_is(tmp_path: Path) -> None:
    from energybench.runner.plan_request import spec_of

    declared_suite = suite(tmp_path, "blocks = 5\nblocks_max = 20")
    plain = spec_of(declared_suite, tmp_path, device=None, download=False)
    looked = spec_of(declared_suite, tmp_path, device=None, download=False, until_decided=True)
    assert (plain.blocks, plain.looks) == (5, ())
    assert (looked.blocks, looked.looks) == (20, (5, 10, 20))
