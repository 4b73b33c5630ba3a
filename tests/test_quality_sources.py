"""Where a command's quality is read: streams, which of several figures, several metrics, and scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from energybench.common.metrics import Metric
from energybench.suite.messages import KeyedError
from energybench.suite.quality_source import QualitySourceTable, from_word
from energybench.trial.command_quality import NoQuality, QualityReaders
from energybench.trial.command_scale import DeclaredScale

FINITE = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))
PATTERN = r"acc=(\S+)"


def table(**given: Any) -> QualitySourceTable:
    return QualitySourceTable.model_validate(given)


def readers(source: QualitySourceTable, metrics: dict[str, Metric] | None = None, *also: str) -> QualityReaders:
    return QualityReaders.of(source.sources("acc", also), Path("/nowhere"), {}, metrics or {})


def heard(source: QualitySourceTable, *lines: tuple[str, str], better: Any = "higher") -> dict[str, float]:
    made = readers(source, {"acc": Metric(better=better)})
    for stream, line in lines:
        made.hear(stream, line)
    return made.result([])


@given(st.lists(FINITE, min_size=1, max_size=6), st.sampled_from(["higher", "lower"]))
def test_of_several_figures_the_one_that_is_asked_for(figures: list[float], better: str) -> None:
    lines = [("stdout", f"epoch acc={figure!r}") for figure in figures]
    best = max(figures) if better == "higher" else min(figures)
    for which, wanted in (("first", figures[0]), ("last", figures[-1]), ("best", best)):
        found = heard(table(**{"from": "regex"}, pattern=PATTERN, which=which), *lines, better=better)
        assert found == {"acc": wanted}


def test_a_best_figure_beside_one_that_cannot_be_read_is_none() -> None:
    """What could not be read may have been the best; the first and the last are not touched by what lies between."""
    lines = [("stdout", f"acc={text}") for text in ("0.5", "0,9", "0.7")]
    with pytest.raises(NoQuality, match="decimal point"):
        heard(table(**{"from": "regex"}, pattern=PATTERN, which="best"), *lines)
    for which, wanted in (("first", 0.5), ("last", 0.7)):
        assert heard(table(**{"from": "regex"}, pattern=PATTERN, which=which), *lines) == {"acc": wanted}


def test_which_output_is_read_is_never_a_matter_of_chance() -> None:
    both = [("stdout", "acc=0.5"), ("stderr", "acc=0.9")]
    for lines in (both, both[::-1]):
        with pytest.raises(NoQuality, match='add stream = "stdout"'):
            heard(table(**{"from": "regex"}, pattern=PATTERN), *lines)
        assert heard(table(**{"from": "regex"}, pattern=PATTERN, stream="stdout"), *lines) == {"acc": 0.5}
        assert heard(table(**{"from": "regex"}, pattern=PATTERN, stream="stderr"), *lines) == {"acc": 0.9}
    assert heard(table(**{"from": "regex"}, pattern=PATTERN), both[1]) == {"acc": 0.9}
    with pytest.raises(NoQuality, match='there is one on stderr: stream = "stderr"'):
        heard(table(**{"from": "json"}, key="acc"), ("stderr", '{"acc": 0.9}'))
    assert heard(table(**{"from": "json"}, key="acc", stream="stderr"), ("stderr", '{"acc": 0.9}')) == {"acc": 0.9}


def test_several_metrics_of_one_line_and_one_that_is_missing_beside_the_deciding_one() -> None:
    source = table(
        **{"from": "regex"},
        pattern=PATTERN,
        also=[
            {"metric": "loss", "from": "regex", "pattern": r"loss=(\S+)"},
            {"metric": "f1", "from": "json", "key": "scores.f1"},
        ],
    )
    made = readers(source)
    made.hear("stdout", "acc=0.5 loss=2.5")
    assert made.result([]) == {"acc": 0.5, "loss": 2.5}
    assert list(made.missing) == ["f1"]
    made.hear("stdout", "{'scores': {'f1': 0.25}}")
    assert made.result([]) == {"acc": 0.5, "loss": 2.5, "f1": 0.25}


def test_further_names_of_the_suite_are_read_where_the_deciding_one_is() -> None:
    made = readers(table(**{"from": "json"}, key="eval.acc"), None, "loss")
    made.hear("stdout", '{"eval": {"acc": 0.5}, "loss": 2.5}')
    assert made.result([]) == {"acc": 0.5, "loss": 2.5}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"from": "json", "pattern": "x(.)"}, "has no pattern"),
        ({"from": "file", "path": "a.json", "stream": "stdout"}, "has no stream"),
        ({"from": "window", "which": "best"}, "has no which"),
        ({"from": "regex", "pattern": "acc="}, "no group"),
        ({"from": "regex", "pattern": "acc=("}, "not a regular expression"),
        ({"from": "json", "also": [{"from": "json"}]}, "needs its name"),
        ({"from": "none", "also": [{"metric": "f1", "from": "json"}]}, "has no also"),
        ({"from": "json", "metric": "f1", "also": [{"metric": "f1", "from": "json"}]}, "is read twice"),
        ({"from": "json", "also": [{"metric": "f1", "from": "none"}]}, "cannot be read so"),
        ({"from": "json", "range": [1, 0]}, "a range rises"),
    ],
)
def test_what_makes_no_sense_is_told(given: dict[str, Any], words: str) -> None:
    with pytest.raises((ValidationError, KeyedError), match=words):
        table(**given)


def test_a_word_stands_for_no_quality_and_for_nothing_else() -> None:
    assert from_word("none") == {"from": "none"}
    with pytest.raises(KeyedError, match="or 'none'"):
        from_word("json")


def test_what_a_source_declares_stands_over_what_the_name_says() -> None:
    assert table(**{"from": "json"}).declared("accuracy") == Metric(better="higher", scale="fraction", least=0, most=1)
    assert table(**{"from": "json"}, scale="percent").declared("accuracy") == Metric(
        better="higher", scale="percent", least=0, most=100
    )
    assert table(**{"from": "json"}).declared("mystery") is None
    assert table(**{"from": "json"}, better="lower", unit="dB").declared("mystery") == Metric(better="lower", unit="dB")


# ── percent against points ────────────────────────────────────────────────────────────────────────────────────

FRACTION = Metric(better="higher", scale="fraction", least=0, most=1)
PERCENT = Metric(better="higher", scale="percent", least=0, most=100)


@given(st.floats(1.0001, 1000))
def test_what_is_beyond_one_is_no_fraction(value: float) -> None:
    doubt = DeclaredScale(FRACTION).doubt("accuracy", value, sign=False) or ""
    assert 'scale = "percent" beside metric = "accuracy"' in doubt
    assert DeclaredScale(Metric(better="higher")).doubt("psnr", value, sign=False) is None
    assert DeclaredScale(PERCENT).doubt("accuracy", value, sign=False) is None
    assert DeclaredScale(None).doubt("accuracy", value, sign=False) is None


@given(st.floats(0.0001, 1))
def test_a_share_is_taken_as_it_is_declared_unless_it_can_hardly_be_that(value: float) -> None:
    assert DeclaredScale(FRACTION).doubt("accuracy", value, sign=False) is None
    assert "percent" in (DeclaredScale(FRACTION).doubt("accuracy", value, sign=True) or "")  # 0.9 %
    assert "fraction" in (DeclaredScale(PERCENT).doubt("accuracy", value, sign=False) or "")  # 0.948
    assert DeclaredScale(PERCENT).doubt("accuracy", value, sign=True) is None
    assert DeclaredScale(PERCENT, range_declared=True).doubt("accuracy", value, sign=False) is None
    errors = Metric(better="lower", scale="percent", least=0, most=100)
    assert DeclaredScale(errors).doubt("error_rate", value, sign=False) is None  # such small errors there are


def test_a_range_that_the_suite_declares_says_that_a_fraction_beyond_one_is_meant() -> None:
    wer = Metric(better="lower", scale="fraction", least=0, most=2)
    assert DeclaredScale(wer, range_declared=True).doubt("wer", 1.2, sign=False) is None
    assert "range = [0, 2]" in (DeclaredScale(wer, range_declared=False).doubt("wer", 1.2, sign=False) or "")
    assert DeclaredScale(wer, range_declared=True).doubt("wer", 12.5, sign=False) is not None
