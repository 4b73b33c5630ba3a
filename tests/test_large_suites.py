"""What a suite may ask for has bounds that are seen from its text, before any work is done for it."""

from __future__ import annotations

import itertools
from collections import deque
from pathlib import Path

import pytest
from faults import fault
from support import data_settings
from torch import nn

from energybench.common.errors import UsageError
from energybench.common.limits import MOST_LAYERS, MOST_PARAMETERS
from energybench.suite.suite import InvalidSuite, load
from energybench.suite.tables import WorkloadTable
from energybench.trial.build import build_model
from energybench.workloads.datasets import prepare
from energybench.workloads.models.bounds import bounded_models

SUITE = """schema = 1
suite = "s"
{head}
[trials]
{trials}
[[workload]]
name = "w"
model = {{ {model} }}
data = {{ use = "digits", batch = 8 }}
train = {{ epochs = {epochs}, lr = 0.1 }}
[[method]]
use = "gradsamp"
"""


def refused(path: Path, **parts: object) -> InvalidSuite:
    given = {"head": "", "trials": "", "model": 'use = "mlp"', "epochs": 2} | parts
    path.write_text(SUITE.format(**given), encoding="utf-8")
    with pytest.raises(InvalidSuite) as error:
        load(str(path))
    return error.value


@fault("endless suite")
@pytest.mark.parametrize("head", ["", "typo = 1"], ids=["all else is right", "beside another mistake"])
@pytest.mark.parametrize(
    "parts",
    [
        {"trials": "blocks = 1000000000"},
        {"trials": "blocks = 3\nblocks_max = 1000000000"},
        {"trials": "blocks = 1000", "epochs": 1_000_000},
        {"model": 'use = "mlp", hidden = [' + "8, " * (MOST_LAYERS + 1) + "]"},
        {"model": 'use = "cnn", channels = [' + "8, " * 3000 + "]"},
        {"model": 'use = "vit_tiny", layers = 1000000000'},
    ],
    ids=["blocks", "most blocks", "epochs", "listed layers", "listed channels", "counted layers"],
)
def test_what_nobody_can_mean_is_refused_from_the_text_and_nothing_is_built(
    tmp_path: Path, parts: dict[str, object], head: str
) -> None:
    error = refused(tmp_path / "s.toml", head=head, **parts)
    assert "E207" in [problem.code for problem in error.problems]
    assert ("E201" in [problem.code for problem in error.problems]) == bool(head)
    assert error.rest is None  # what is left of a suite is planned, to find more mistakes


@pytest.mark.parametrize(
    "parts", [{"trials": "blocks = 1000"}, {"epochs": 1_000_000}, {"model": 'use = "mlp", hidden = [8, 8]'}]
)
def test_what_is_only_long_is_not(tmp_path: Path, parts: dict[str, object]) -> None:
    given = {"head": "", "trials": "", "model": 'use = "mlp"', "epochs": 2} | parts
    (tmp_path / "s.toml").write_text(SUITE.format(**given), encoding="utf-8")
    load(str(tmp_path / "s.toml"))


def test_a_model_of_any_number_of_layers_is_refused_as_it_is_built() -> None:
    """A function of the user's, whose layers no suite lists. Unbounded, this would never end."""
    built = itertools.count()
    with bounded_models("deep.py:deep"), pytest.raises(UsageError) as error:
        deque(nn.Linear(1, 1) for _ in built)
    assert next(built) == MOST_PARAMETERS // 2 + 1  # each has a weight and a bias; the last was refused
    assert error.value.problems[0].code == "E207"
    with bounded_models("next"):  # and the next model is counted anew
        nn.Linear(1, 1)
    nn.Linear(1, 1)


def test_weights_beyond_the_machines_memory_are_refused_before_they_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.__getitem__)
    with bounded_models("narrow"):
        nn.Linear(100, 100, bias=False)  # 40,000 of 40,960 bytes
    with pytest.raises(UsageError, match=r"take 0\.0 GB or more"), bounded_models("wide"):
        nn.Linear(100, 200)


def test_copies_of_layers_count_too(tmp_path: Path) -> None:
    """A copy is registered nowhere: the finished model is counted once more."""
    text = (
        "import copy\nfrom torch import nn\n\n\ndef deep(copies):\n    layer = nn.PReLU()\n"
        "    return nn.Sequential(*(copy.deepcopy(layer) for _ in range(copies)))\n"
    )
    (tmp_path / "deep.py").write_text(text, encoding="utf-8")
    data = prepare(data_settings({"use": "digits"}), tmp_path)
    for copies in (MOST_PARAMETERS, MOST_PARAMETERS + 1):
        model = f'use = "deep.py:deep", copies = {copies}'
        path = tmp_path / "s.toml"
        path.write_text(SUITE.format(head="", trials="", model=model, epochs=2), encoding="utf-8")
        (workload,) = load(str(path)).workloads
        assert isinstance(workload, WorkloadTable)
        if copies > MOST_PARAMETERS:
            with pytest.raises(UsageError, match="E207"):
                build_model(workload, data, tmp_path, 0)
        else:
            assert len(list(build_model(workload, data, tmp_path, 0).parameters())) == copies


@pytest.mark.parametrize("schema", ["1.0", "1e0", "true", '"1"', "[1]", "2", "0", "-1"])
def test_the_schema_is_the_whole_number_1(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "s.toml"
    given = {"head": "", "trials": "", "model": 'use = "mlp"', "epochs": 2}
    path.write_text(SUITE.format(**given).replace("schema = 1", f"schema = {schema}"), encoding="utf-8")
    with pytest.raises(InvalidSuite) as error:
        load(str(path))
    (problem,) = error.value.problems
    assert problem.where.endswith("s.toml:1:1")


@pytest.mark.parametrize("sign", ["\u202e", "\u2066", "\u200b", "\u200f", "\ufeff", "\u00ad", "\u2028", "\u0085"])
def test_a_name_with_a_character_that_is_not_shown_is_refused_with_its_number(tmp_path: Path, sign: str) -> None:
    """U+202E turns the rest of a line around, so that a name reads as another."""
    path = tmp_path / "s.toml"
    given = {"head": "", "trials": "", "model": 'use = "mlp"', "epochs": 2}
    path.write_text(SUITE.format(**given).replace('name = "w"', f'name = "a{sign}b"'), encoding="utf-8")
    with pytest.raises(InvalidSuite, match=f"U\\+{ord(sign):04X}"):
        load(str(path))
    path.write_text(SUITE.format(**given).replace('name = "w"', 'name = "a\u00a0ü 漢"'), encoding="utf-8")
    load(str(path))
