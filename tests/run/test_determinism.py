"""The same suite gives the same weights; a method never moves what the baseline sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_runs import contents, write_suite

from energybench.records.record import Trial
from energybench.runner import runner
from energybench.runner.progress import Progress
from energybench.suite.suite import load

pytestmark = pytest.mark.slow

GRADSAMP = '\n[[method]]\nuse = "gradsamp"\nskip = "every:2"\n'
SSPROP = '\n[[method]]\nuse = "ssprop"\ndrop = 0.5\nschedule = "constant"\n'
DROPOUT = '\n[[method]]\nuse = "dropout"\np = 0.3\n'
NOTHING = '\n[[method]]\nuse = "nothing"\n'
WORKLOAD = """[[workload]]
name = "w"
model = { use = "cnn", channels = [2, 2] }
data = { use = "digits", batch = 16, subset = 64, test_subset = 32, augment = ["crop1"] }
train = { epochs = 3, lr = 0.1, momentum = 0.9, schedule = "cosine" }
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, quiet: Callable[[], Progress]) -> Any:
    """methods → the trials of one run with them, by (block, cell); each combination is run once."""
    home, known = (tmp_path_factory.mktemp("determinism"), dict[tuple[str, int], dict[tuple[int, str], Trial]]())

    def train(methods: str, again: int = 0, **options: Any) -> dict[tuple[int, str], Trial]:
        key = (methods + repr(options), again)
        if key not in known:
            folder = home / str(len(known))
            suite = write_suite(folder, methods, **{"workload": WORKLOAD, "blocks": 2, **options})
            code, out = runner.run(load(suite), out=folder / "out", progress=quiet())
            assert code == 0
            known[key] = {(t.block, t.method): t for t in contents(out)[1].values()}
        return known[key]

    return train


def weights(trials: dict[tuple[int, str], Trial]) -> dict[tuple[int, str], str | None]:
    return {key: trial.weights_sha256 for key, trial in trials.items()}


def losses(trial: Trial) -> list[dict[str, float | None]]:
    """The curve without its seconds, which no run repeats."""
    return [{key: value for key, value in point.items() if key != "wall_s"} for point in trial.curve]


def test_two_runs_of_a_suite_end_with_equal_weights_and_losses_in_every_cell(trained: Any) -> None:
    first, second = trained(GRADSAMP + DROPOUT), trained(GRADSAMP + DROPOUT, again=1)
    assert weights(first) == weights(second)
    assert all(weights(first).values())
    assert {k: losses(t) for k, t in first.items()} == {k: losses(t) for k, t in second.items()}
    assert {k: t.quality for k, t in first.items()} == {k: t.quality for k, t in second.items()}
    assert {k: t.passes for k, t in first.items()} == {k: t.passes for k, t in second.items()}


@pytest.mark.parametrize("other", [DROPOUT + GRADSAMP, DROPOUT, GRADSAMP + SSPROP + DROPOUT, ""])
def test_adding_removing_or_moving_a_method_leaves_every_other_cell_as_it_was(trained: Any, other: str) -> None:
    first, second = trained(GRADSAMP + DROPOUT), trained(other)
    shared = set(first) & set(second)
    assert {(0, "baseline"), (1, "baseline"), (0, "twin"), (1, "twin")} <= shared
    for key in shared:
        assert second[key].weights_sha256 == first[key].weights_sha256, key
        assert losses(second[key]) == losses(first[key]), key


def test_baseline_twin_and_nothing_have_equal_weights(trained: Any) -> None:
    trials = trained(NOTHING)
    for block in range(2):
        assert len({trials[block, m].weights_sha256 for m in ("baseline", "twin", "nothing")}) == 1


def test_every_method_ends_elsewhere_than_the_baseline(trained: Any) -> None:
    trials = trained(GRADSAMP + SSPROP + DROPOUT)
    for block in range(2):
        sha = [trials[block, m].weights_sha256 for m in ("baseline", "gradsamp", "ssprop", "dropout")]
        assert len(set(sha)) == 4


def test_a_block_is_a_seed(trained: Any) -> None:
    """Block b uses seed + b: block 1 of seed 7 is block 0 of seed 8."""
    assert trained("")[1, "baseline"].weights_sha256 == trained("", seed=8)[0, "baseline"].weights_sha256
    assert trained("")[0, "baseline"].weights_sha256 != trained("")[1, "baseline"].weights_sha256
