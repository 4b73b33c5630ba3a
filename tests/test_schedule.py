"""Order and completeness of a run's slots, for every history that an interruption can leave."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energybench.records.record import Budget, Cell, Role, Trial, Turns
from energybench.runner.schedule import ORDER_SEED, Slot, draw_order_seed, missing, order


def cell(method: str, role: Role = "method", workload: str = "w", **more: object) -> Cell:
    return Cell(workload=workload, method=method, role=role, **more)  # type: ignore[arg-type]


def cells(workloads: int = 1, methods: int = 2) -> list[Cell]:
    return [
        made
        for w in (f"w{i}" for i in range(workloads))
        for made in [
            cell("baseline", "baseline", w),
            cell("twin", "twin", w),
            *(cell(f"m{i}", workload=w) for i in range(methods)),
        ]
    ]


def trial(slot: Slot, status: str = "ok") -> Trial:
    c = slot.cell
    return Trial(
        trial=slot.trial,
        workload=c.workload,
        method=c.method,
        role=c.role,
        of=c.of,
        block=slot.block,
        seed=0,
        invocation=slot.invocation,
        position=slot.position,
        status=status,
        turns=Turns(group=slot.group) if slot.group else None,
        digest="",
        started_at="",
        budget=Budget(steps=6, planned_steps=6 if c.method == "m1" else 12, paid_rel=0.5),
    )  # type: ignore[arg-type]


def run_slots(slots: list[Slot], done: list[Trial]) -> list[Trial]:
    """Trials of these slots, as they are run: a control where its method trained less, in the same invocation."""
    made: list[Trial] = []
    for slot in slots:
        of = [
            t
            for t in [*done, *made]
            if (t.block, t.invocation, t.method) == (slot.block, slot.invocation, slot.cell.of)
        ]
        if slot.cell.of is None or any(t.trained_less for t in of if t.workload == slot.cell.workload):
            made.append(trial(slot))
    return made


def run_to_the_end(planned: list[Cell], blocks: int, seed: int, stops: list[int]) -> list[Trial]:
    """A run interrupted after `stops[i]` slots of its i-th invocation, then continued to its end."""
    done: list[Trial] = []
    for invocation, stop in enumerate([*stops, None]):
        slots = missing(planned, blocks, seed, done, invocation)
        done += run_slots(slots[:stop], done)
    return done


def assert_complete(done: list[Trial], planned: list[Cell], blocks: int) -> None:
    """Every cell of every block stands in one invocation with a baseline of its block and workload."""
    baselines = {(t.block, t.workload, t.invocation) for t in done if t.role == "baseline"}
    paired = {(t.block, t.workload, t.method) for t in done if (t.block, t.workload, t.invocation) in baselines}
    due = [c for c in planned if not c.skipped and c.of != "m1"]  # it did not train less
    wanted = {(b, c.workload, c.method) for b in range(blocks) for c in due}
    assert wanted <= paired


@given(seed=st.integers(0, 2**62), block=st.integers(0, 1000), count=st.integers(0, 8))
def test_a_blocks_order_is_a_permutation_of_its_cells(seed: int, block: int, count: int) -> None:
    planned = cells(1, count)
    ordered = order(planned, block, seed)
    assert sorted(c.method for c in ordered) == sorted(c.method for c in planned)
    assert ordered == order(planned, block, seed)


@given(seed=st.integers(0, 2**62), block=st.integers(0, 50))
def test_a_blocks_order_does_not_depend_on_the_global_random_state_or_other_blocks(seed: int, block: int) -> None:
    planned = cells(2, 3)
    random.seed(1)
    first = order(planned, block, seed)
    random.seed(2)
    order(planned, block + 1, seed)
    assert order(planned, block, seed) == first


@given(seed=st.integers(0, 2**62))
def test_orders_differ_between_blocks(seed: int) -> None:
    # 8! orders: 6 equal ones in a row have a chance below 1e-22.
    assert len({tuple(c.method for c in order(cells(1, 6), block, seed)) for block in range(6)}) > 1


@given(block=st.integers(0, 100), seed=st.integers(0, 2**62), workloads=st.integers(1, 4), methods=st.integers(0, 5))
def test_the_second_of_two_blocks_is_the_reverse_of_the_first(block: int, seed: int, workloads: int, methods: int):
    """So that every cell, and every pair of cells, has the same mean place: steady drift cancels exactly."""
    planned = cells(workloads, methods)
    first, second = order(planned, 2 * block, seed), order(planned, 2 * block + 1, seed)
    assert second == first[::-1]
    places = [first.index(cell) + second.index(cell) for cell in planned]
    assert set(places) == {len(planned) - 1}


@given(block=st.integers(0, 100), seed=st.integers(0, 2**62), workloads=st.integers(1, 5))
def test_the_cells_of_a_workload_stand_together(block: int, seed: int, workloads: int) -> None:
    names = [cell.workload for cell in order(cells(workloads, 3), block, seed)]
    changes = sum(a != b for a, b in itertools.pairwise(names))
    assert changes == workloads - 1


def test_controls_stand_behind_the_other_cells_of_their_workload_whose_order_is_as_without_them() -> None:
    """They wait for their methods' tallies; the second of two blocks still reverses the others."""
    controls = [cell(f"{name} matched", "control", "w0", of=name) for name in ("m1", "m2")]
    planned = cells(2, 3)
    for seed, block in itertools.product(range(10), range(4)):
        names = [c.method for c in order([*controls, *planned], block, seed) if c.workload == "w0"]
        assert {*names[-2:]} == {"m1 matched", "m2 matched"}
    for seed in range(10):
        first, second = ([c for c in order([*planned, *controls], k, seed) if c.role != "control"] for k in (0, 1))
        assert second == first[::-1]


def test_each_run_draws_an_order_of_its_own_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ORDER_SEED, raising=False)
    assert len({draw_order_seed() for _ in range(8)}) > 1  # all equal: 2^-224
    monkeypatch.setenv(ORDER_SEED, "17")
    assert {draw_order_seed() for _ in range(8)} == {17}
    monkeypatch.setenv(ORDER_SEED, "seventeen")
    assert len({draw_order_seed() for _ in range(8)}) > 1


def test_a_baseline_of_another_group_is_no_partner() -> None:
    planned = cells(1, 2)
    slots = missing(planned, 1, 5, [], 0)
    grouped = [replace(slot, group=int(slot.cell.method == "m1")) for slot in slots]
    done = [trial(slot) for slot in grouped]
    assert {slot.cell.name for slot in missing(planned, 1, 5, done, 1)} == {"w0.baseline", "w0.m1"}
    plain = replace(next(slot for slot in slots if slot.cell.role == "baseline"), group=1)
    assert missing(planned, 1, 5, [*done, trial(plain)], 1) == []
    assert plain.trial != slots[0].trial


@given(block=st.integers(0, 100))
def test_orders_differ_between_seeds(block: int) -> None:
    assert len({tuple(c.method for c in order(cells(1, 6), block, seed)) for seed in range(6)}) > 1


def test_every_cell_comes_first_about_equally_often() -> None:
    planned, blocks = cells(1, 2), 4000
    first = Counter(order(planned, block, 11)[0].method for block in range(blocks))
    # Binomial(4000, 1/4): standard deviation 27; five of them.
    assert all(abs(first[c.method] - blocks / 4) < 137 for c in planned)


def test_skipped_cells_are_never_scheduled() -> None:
    planned = [*cells(), cell("left out", skipped="it has no convolutions", workload="w0")]
    assert all(slot.cell.method != "left out" for slot in missing(planned, 3, 0, [], 0))


def test_the_first_invocation_runs_every_cell_once_per_block_block_by_block() -> None:
    planned = cells(2, 2)
    slots = missing(planned, 3, 5, [], 0)
    assert Counter((s.block, s.cell.name) for s in slots) == Counter((b, c.name) for b in range(3) for c in planned)
    assert [s.block for s in slots] == sorted(s.block for s in slots)
    assert [s.cell for s in slots if s.block == 1] == order(planned, 1, 5)


def test_a_finished_run_leaves_nothing_to_do() -> None:
    planned = cells(2, 2)
    done = [trial(slot) for slot in missing(planned, 3, 5, [], 0)]
    assert missing(planned, 3, 5, done, 1) == []


def test_a_failed_trial_is_not_tried_again() -> None:
    planned = cells()
    done = [trial(slot, "failed") for slot in missing(planned, 2, 5, [], 0)]
    assert missing(planned, 2, 5, done, 1) == []


@pytest.mark.parametrize("count", range(13))
def test_a_run_interrupted_anywhere_repeats_no_whole_block_and_one_baseline(count: int) -> None:
    planned = cells(1, 2)  # four a block, three blocks
    seed = 5
    first = [trial(slot) for slot in missing(planned, 3, seed, [], 0)[:count]]
    second = missing(planned, 3, seed, first, 1)
    whole, begun = divmod(count, 4)
    assert {slot.block for slot in second} == set(range(whole, 3))
    untouched = range(whole + 1 if begun else whole, 3)
    for block in untouched:
        assert [s.cell for s in second if s.block == block] == order(planned, block, seed)
    assert_complete([*first, *map(trial, second)], planned, 3)
    if begun:
        here = [s.cell for s in second if s.block == whole]
        assert sum(c.role == "baseline" for c in here) == 1
        had = order(planned, whole, seed)[:begun]
        left = order(planned, whole, seed)[begun:]
        if any(c.role == "baseline" for c in had):  # what paired up stays; its baseline runs again for the rest
            assert sorted(c.name for c in here) == sorted([*(c.name for c in left), "w0.baseline"])
        else:  # nothing there has a partner, nor can get one any more
            assert here == order(planned, whole, seed)


def test_only_the_workload_that_is_resumed_gets_its_baseline_again() -> None:
    planned = cells(2, 1)
    slots = missing(planned, 1, 3, [], 0)
    done = [trial(s) for s in slots if s.cell.name != "w0.m0"]
    again = missing(planned, 1, 3, done, 1)
    assert {s.cell.name for s in again} == {"w0.m0", "w0.baseline"}


def test_any_set_of_done_trials_becomes_complete() -> None:
    planned = cells(1, 1)  # three cells, two blocks: all 2^6 histories of one invocation
    everything = [trial(s) for s in missing(planned, 2, 0, [], 0)]
    for count in range(len(everything) + 1):
        for done in itertools.combinations(everything, count):
            slots = missing(planned, 2, 0, done, 1)
            assert_complete([*done, *map(trial, slots)], planned, 2)
            assert len({(s.block, s.cell.name) for s in slots}) == len(slots)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 1000),
    blocks=st.integers(1, 3),
    workloads=st.integers(1, 2),
    methods=st.integers(0, 3),
    stops=st.lists(st.integers(0, 12), max_size=4),
)
def test_however_often_it_is_interrupted_a_run_ends_complete(
    seed: int, blocks: int, workloads: int, methods: int, stops: list[int]
) -> None:
    planned = cells(workloads, methods)
    done = run_to_the_end(planned, blocks, seed, stops)
    assert_complete(done, planned, blocks)
    assert missing(planned, blocks, seed, done, len(stops) + 1) == []
    names = [t.trial for t in done]
    assert len(set(names)) == len(names)  # no record overwrites another


@settings(max_examples=150)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_any_history_over_several_invocations_becomes_complete(data: st.DataObject, seed: int) -> None:
    planned, blocks = cells(2, 2), 2
    possible = [Slot(c, b, 0, i) for b in range(blocks) for c in planned for i in range(3)]
    done = [trial(s) for s in data.draw(st.lists(st.sampled_from(possible), unique_by=lambda s: s.trial))]
    slots = missing(planned, blocks, seed, done, 3)
    assert_complete([*done, *map(trial, slots)], planned, blocks)


def test_names_of_trials_never_meet() -> None:
    awkward = [cell("a b", workload="w"), cell("a/b", workload="w"), cell("a-b", workload="w"), cell("ä", workload="w")]
    names = {slot.trial for slot in missing([cell("baseline", "baseline"), *awkward], 2, 0, [], 0)}
    assert len(names) == 10
    assert all("/" not in name and " " not in name for name in names)


def test_names_of_trials_do_not_meet_where_a_dot_could_stand_on_either_side() -> None:
    planned = [cell(m, workload=w) for w in ("a", "a.b", "b.c") for m in ("c", "b.c", "b", "c.c", "b.b.c")]
    names = Counter(slot.trial for slot in missing([*planned], 1, 0, [], 0))
    assert max(names.values()) == 1, names
    assert "b0-i0-a.c" in names  # as they were, where nothing could be taken for something else


def controlled() -> list[Cell]:
    """m0 trains less, m1 does not; that is known when they have trained."""
    return [*cells(1, 2), *(cell(f"m{i} matched", "control", "w0", of=f"m{i}", control="possible") for i in range(2))]


@given(seed=st.integers(0, 2**62), block=st.integers(0, 50))
def test_a_control_comes_after_its_method_and_moves_no_other_cell(seed: int, block: int) -> None:
    planned = [*controlled(), *cells(2, 2)[4:], cell("m0 matched", "control", "w1", of="m0", control="possible")]
    ordered = order(planned, block, seed)
    places = {(c.workload, c.method): place for place, c in enumerate(ordered)}
    for each in planned:
        if each.of:
            assert places[each.workload, each.method] > places[each.workload, each.of]
    assert sorted(c.name for c in ordered) == sorted(c.name for c in planned)


def test_a_method_is_as_often_before_plain_training_as_after_it_though_its_control_is_after_both() -> None:
    blocks = 4000
    first = Counter(
        next(c.method for c in order(controlled(), block, 3) if c.method in ("m0", "baseline"))
        for block in range(blocks)
    )
    assert abs(first["m0"] / blocks - 0.5) < 4 * 0.5 / blocks**0.5


@given(seed=st.integers(0, 1000), stops=st.lists(st.integers(0, 9), max_size=5))
def test_however_often_it_is_interrupted_a_method_stands_beside_its_control(seed: int, stops: list[int]) -> None:
    """Without an interruption they share an invocation in every block, and only then are they a pair."""
    planned, blocks = controlled(), 3
    done = run_to_the_end(planned, blocks, seed, stops)
    assert_complete(done, planned, blocks)
    baselines = {(t.block, t.invocation) for t in done if t.role == "baseline"}
    methods = {(t.block, t.invocation) for t in done if t.method == "m0"}
    controls = {(t.block, t.invocation) for t in done if t.method == "m0 matched"}
    assert {block for block, _ in methods & controls & baselines} == set(range(blocks))
    assert missing(planned, blocks, seed, done, len(stops) + 1) == []


@given(data=st.data(), seed=st.integers(0, 1000))
def test_what_has_no_control_is_not_run_again_for_the_sake_of_one(data: st.DataObject, seed: int) -> None:
    planned = controlled()
    slots = missing(planned, 1, seed, [], 0)
    done = run_slots(slots[: data.draw(st.integers(1, len(slots)))], [])
    again = {slot.cell.method for slot in missing(planned, 1, seed, done, 1)}
    had = {t.method for t in done} if any(t.role == "baseline" for t in done) else set()
    assert not again & had - {"baseline", "m0", "m0 matched"}
    whole = {"baseline", "m0", "m0 matched"} <= had
    assert not (whole and again & {"m0", "m0 matched"})


def test_a_method_whose_control_is_missing_runs_again_and_one_that_did_not_train_less_does_not() -> None:
    planned = controlled()
    done = [trial(s) for s in missing(planned, 1, 0, [], 0) if s.cell.role != "control"]
    again = [slot.cell.method for slot in missing(planned, 1, 0, done, 1)]
    assert sorted(again) == ["baseline", "m0", "m0 matched"]
    failed = [t.model_copy(update={"status": "failed"}) if t.method == "m0" else t for t in done]
    assert missing(planned, 1, 0, failed, 1) == []  # nothing to match


def test_a_control_of_records_of_before_is_missing_wherever_it_is_not_there() -> None:
    planned = [*cells(1, 2), cell("m1 matched", "control", "w0", of="m1")]
    done = [trial(s) for s in missing(planned, 1, 0, [], 0) if s.cell.role != "control"]
    assert {slot.cell.method for slot in missing(planned, 1, 0, done, 1)} == {"baseline", "m1", "m1 matched"}
