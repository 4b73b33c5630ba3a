"""Language: rows of tokens, two tasks on them, GPT-2. Expectations come from definitions and by hand."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CPU, data_settings, make_run
from torch import Tensor, nn

from energybench.algorithms.sample_scores import parameter_gradient
from energybench.common.errors import UsageError
from energybench.runner import planner
from energybench.runner.plan_request import spec_of
from energybench.runner.tracing import trace_task
from energybench.suite.suite import load
from energybench.suite.tables import ModelTable
from energybench.train import discovery
from energybench.train.batch import Batch
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.train.method import Task
from energybench.train.stack_check import check_stack
from energybench.trial.build import build, recipe_of
from energybench.trial.counting_layer import StepCounter
from energybench.trial.integrity import Picture
from energybench.trial.spec import MethodSpec, TrainingSpec
from energybench.workloads import datasets, models, text_sets
from energybench.workloads.datasets import text
from energybench.workloads.datasets.tokens import Characters, rows, stream
from energybench.workloads.metrics.text import perplexity
from energybench.workloads.start_weights import load_start
from energybench.workloads.tasks.text import LanguageModel, TextClassification

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, LENGTH = 13, 6
MAPS = Path("/proc/self/maps")  # files that are mapped into memory
METHODS = {name: s for name, s in discovery.sources().items() if s.path.parent.name == "methods"}


def needs_transformers() -> None:
    pytest.importorskip("transformers", reason="pip install 'energybench[text]'")


def needs_tokenizers() -> None:
    pytest.importorskip("tokenizers", reason="pip install 'energybench[text]'")


def refused(code: str, call: Callable[[], Any]) -> str:
    """What a refusal says, and its hint."""
    with pytest.raises(UsageError) as caught:
        call()
    (problem,) = caught.value.problems
    assert problem.code == code
    return f"{problem.message} | {problem.hint}"


# ── a text as a row of tokens ─────────────────────────────────────────────────────────────────────────────────────────


class Words:
    """An encoding for tests: each letter is a token, a = 0."""

    vocabulary = 26
    end: int | None = 25

    def encode(self, texts: Any) -> list[list[int]]:
        return [[ord(letter) - ord("a") for letter in each if letter.isalpha()] for each in texts]


def test_a_text_is_cut_or_goes_on_with_what_is_no_token():
    found = rows(Words(), [("abc",), ("abcdef",), ("a",)], 4)
    assert found.dtype == torch.int64
    assert found.tolist() == [[0, 1, 2, -1], [0, 1, 2, 3], [0, -1, -1, -1]]


def test_of_a_pair_the_first_text_is_cut_for_the_second_to_fit():
    found = rows(Words(), [("abc", "xyz"), ("a", "bcdefg"), ("a", "b")], 4)
    assert found.tolist() == [[0, 23, 24, 25], [1, 2, 3, 4], [0, 1, -1, -1]]


def test_a_text_without_a_token_is_the_end_of_a_text_or_refused():
    assert rows(Words(), [("...",)], 2).tolist() == [[25, -1]]
    told = refused("E402", lambda: rows(Characters(["ab"]), [("ab",), ("",)], 2))
    assert "text 2" in told


@given(st.integers(0, 40), st.integers(1, 9))
def test_a_running_text_is_cut_so_that_each_token_but_the_first_is_foretold_once(count, length):
    tokens = list(range(count))
    if text_sets.samples_of(count, length) == 0:
        with pytest.raises(ValueError, match="tokens"):
            stream(tokens, length)
        return
    inputs, targets = stream(tokens, length)
    assert inputs.shape == targets.shape == (text_sets.samples_of(count, length), length)
    assert torch.equal(targets, inputs + 1)
    assert inputs.flatten().tolist() == tokens[: inputs.numel()]
    assert count - 1 - targets.numel() < length


def test_characters_are_numbered_by_unicode():
    encoding = Characters(["banana", "ö"])
    assert encoding.vocabulary == 4
    assert encoding.encode(["bö", ""]) == [[1, 3], []]


SENTENCES = [("the film is good " * 3,), ("the film is bad " * 3,), ("a film",)] * 4


@cache
def own_encoding() -> Any:
    needs_tokenizers()
    from energybench.workloads.datasets.tokens import made_from

    return made_from([each[0] for each in SENTENCES], 300)


@settings(max_examples=30)
@given(st.text(max_size=30))
def test_an_encoding_of_its_own_knows_every_text_there_is(some):
    encoded = own_encoding().encode(some, add_special_tokens=False)
    assert own_encoding().decode(encoded.ids) == some


def test_the_same_texts_make_the_same_encoding_and_frequent_words_become_tokens():
    from energybench.workloads.datasets.tokens import made_from

    assert own_encoding().get_vocab() == made_from([each[0] for each in SENTENCES], 300).get_vocab()
    assert own_encoding().get_vocab_size() <= 300
    assert len(own_encoding().encode(" film").ids) == 1


def test_an_encoding_is_made_from_the_training_part_alone():
    needs_tokenizers()
    from energybench.workloads.datasets.tokens import encoding_of

    options = text_sets.TextOptions(8, "bpe", 300)
    alone = encoding_of(options, ["good film"] * 9, [])
    beside = encoding_of(options, ["good film"] * 9, ["unheard unheard unheard"] * 99)
    assert alone.vocabulary == beside.vocabulary
    assert alone.encode(["unheard film"]) == beside.encode(["unheard film"])


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2s_files_are_read_merge_by_merge(names, tmp_path):
    needs_tokenizers()
    from energybench.workloads.datasets.tokens import encoding_of

    table = {token: number for number, token in enumerate(["a", "b", "Ġ", "ab", "Ġab", "<|endoftext|>"])}
    (tmp_path / names[0]).write_text(json.dumps(table), encoding="utf-8")
    (tmp_path / names[1]).write_text("#version: 0.2\na b\nĠ ab\n", encoding="utf-8")
    encoding = encoding_of(text_sets.TextOptions(8, str(tmp_path), None), [], [])
    assert (encoding.vocabulary, encoding.end) == (6, 5)
    assert encoding.encode(["abab ab", "ba", ""]) == [[3, 3, 4], [1, 0], []]


def test_a_tokenizer_file_adds_nothing_cuts_nothing_and_pads_nothing(tmp_path):
    needs_tokenizers()
    from tokenizers import processors

    from energybench.workloads.datasets.tokens import encoding_of, made_from

    tokenizer = made_from(["good film"] * 9, 300)
    plain = tokenizer.encode("good film ok", add_special_tokens=False).ids
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(2)
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for given_as in (tmp_path, tmp_path / "tokenizer.json"):
        encoding = encoding_of(text_sets.TextOptions(8, str(given_as), None), [], [])
        assert encoding.encode(["good film ok"]) == [plain]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"length": 0}, "length is 0"),
        ({"length": True}, "length is True"),
        ({"length": "128"}, "length is '128'"),
        ({"tokenizer": ""}, "tokenizer is ''"),
        ({"vocabulary": 256}, "257 at least"),
        ({"vocabulary": 9000, "tokenizer": "characters"}, "has its own"),
    ],
)
def test_what_is_no_option_is_refused_with_and_without_the_text(options, told):
    assert told in refused("E402", lambda: text.imdb(**options))
    assert told in refused("E402", lambda: text_sets.describe("imdb", options, None, None))


def test_a_tokenizer_that_is_nowhere_or_none_is_refused_with_what_would_be_one(tmp_path):
    needs_tokenizers()
    from energybench.workloads.datasets.tokens import encoding_of

    def of(name: str) -> Callable[[], Any]:
        return lambda: encoding_of(text_sets.TextOptions(8, name, None), [], [])

    assert "did you mean 'characters'" in refused("E402", of("charcters"))
    (tmp_path / "empty").mkdir()
    assert "holds none" in refused("E402", of(str(tmp_path / "empty")))
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in refused("E402", of(str(tmp_path / "broken.json")))


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_lines(file: Path, items: list[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(item, ensure_ascii=False)}\n" for item in items), encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENERGYBENCH_DATA", str(tmp_path))
    return tmp_path


BY_LETTER: dict[str, Any] = {"tokenizer": "characters", "length": 4}


def test_reviews_are_read_with_their_labels_in_the_files_order(place):
    write_lines(place / "imdb" / "train_5k.jsonl", [{"text": "ab", "label": 1, "id": "7"}, {"text": "b", "label": 0}])
    write_lines(place / "imdb" / "test_5k.jsonl", [{"text": "abba\u2028b", "label": 1}])
    found = text.imdb(**BY_LETTER)
    assert found["train"][0].tolist() == [[0, 1, -1, -1], [1, -1, -1, -1]]
    assert found["train"][1].tolist() == [1, 0]
    assert found["test"][0].tolist() == [[0, 1, 1, 0]]
    assert found["facts"]["class_names"] == ("negative", "positive")
    assert found["facts"]["extra"] == {"vocabulary": 3}


def test_sentences_are_read_as_sst2_has_them_or_as_jsonl(place):
    (place / "sst2").mkdir()
    (place / "sst2" / "stsa.binary.train").write_text("1 a b\x85c\n0 b\n", encoding="utf-8")
    (place / "sst2" / "stsa.binary.test").write_text("0 a\n", encoding="utf-8")
    found = text.sst2(**BY_LETTER)
    assert found["train"][1].tolist() == [1, 0]
    assert (found["train"][0] >= 0).sum(1).tolist() == [4, 1]
    (place / "sst2" / "stsa.binary.train").write_text("good film\n", encoding="utf-8")
    assert "train:1 does not begin" in refused("E402", lambda: text.sst2(**BY_LETTER))
    (place / "sst2" / "stsa.binary.train").unlink()
    write_lines(place / "sst2" / "train.jsonl", [{"text": "a", "label": 1}])
    write_lines(place / "sst2" / "dev.jsonl", [{"text": "a", "label": 0}])
    assert text.sst2(**BY_LETTER)["test"][1].tolist() == [0]


def test_pairs_are_one_row_with_a_line_break_between(place):
    row = {"premise": "ab", "hypothesis": "b", "label": 0}
    write_lines(place / "rte" / "train.jsonl", [row, {**row, "premise": "aaaaa"}])
    write_lines(place / "rte" / "dev.jsonl", [row])
    line, a, b = 0, 1, 2
    found = text.rte(**BY_LETTER | {"length": 5})["train"][0]
    assert found.tolist() == [[a, b, line, b, -1], [a, a, a, line, b]]


def test_labels_may_be_names_which_are_numbered_by_the_alphabet(place):
    write_lines(place / "news" / "train.jsonl", [{"t": "a", "l": "sport"}, {"t": "b", "l": "art"}])
    write_lines(place / "news" / "test.jsonl", [{"t": "a", "l": "art"}])
    found = text.jsonl_text("news", "t", "l", **BY_LETTER)
    assert found["train"][1].tolist() == [1, 0]
    assert found["facts"]["class_names"] == ("art", "sport")
    write_lines(place / "news" / "test.jsonl", [{"t": "a", "l": "sprot"}])
    assert "did you mean 'sport'" in refused("E402", lambda: text.jsonl_text("news", "t", "l", **BY_LETTER))


GOOD = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"train.jsonl": GOOD}, "has no test part"),
        ({"test.jsonl": GOOD}, "has no training part"),
        ({"train_1k.jsonl": GOOD, "train_5k.jsonl": GOOD, "test.jsonl": GOOD}, "2 files that could be its train part"),
        ({"train.jsonl": [*GOOD, {"text": "a", "lable": 1}], "test.jsonl": GOOD}, "train.jsonl:3 has no 'label'"),
        ({"train.jsonl": [*GOOD, {"text": 7, "label": 1}], "test.jsonl": GOOD}, "train.jsonl:3: 'text' is of type int"),
        ({"train.jsonl": [*GOOD, [1]], "test.jsonl": GOOD}, "train.jsonl:3 is no object"),
        ({"train.jsonl": GOOD, "test.jsonl": [{"text": "a", "label": -1}]}, "-1 stands for no label"),
        ({"train.jsonl": GOOD, "test.jsonl": [{"text": "a", "label": True}]}, "is True"),
        ({"train.jsonl": GOOD, "test.jsonl": [{"text": "a", "label": 1.0}]}, "is 1.0"),
        ({"train.jsonl": GOOD, "test.jsonl": [{"text": "a", "label": 2}]}, "there are 2 classes"),
        ({"train.jsonl": GOOD, "test.jsonl": []}, "holds no text"),
    ],
)
def test_what_is_no_labelled_text_is_refused_with_its_place(place, files, told):
    for name, items in files.items():
        write_lines(place / "imdb" / name, items)
    assert told in refused("E402", lambda: text.imdb(**BY_LETTER))


def test_a_line_that_is_no_json_is_told_by_its_number(place):
    write_lines(place / "imdb" / "test.jsonl", GOOD)
    (place / "imdb" / "train.jsonl").write_text('{"text": "a", "label": 0}\n\n{"text": "a"\n', encoding="utf-8")
    assert "train.jsonl:3 is no JSON" in refused("E402", lambda: text.imdb(**BY_LETTER))
    (place / "imdb" / "train.jsonl").write_bytes(b'{"text": "\xff", "label": 0}\n')
    assert "UTF-8" in refused("E402", lambda: text.imdb(**BY_LETTER))


def test_the_last_tenth_of_one_running_text_is_for_testing_unless_there_is_a_test_part(place):
    (place / "book").mkdir()
    (place / "book" / "all.txt").write_text("abcdefghij" * 3, encoding="utf-8")
    found = text.running_text("book", length=2)
    assert found["train"][0].shape == (13, 2)  # 27 letters
    assert found["test"][0].tolist() == [[7, 8]]
    assert found["test"][1].tolist() == [[8, 9]]
    assert found["facts"]["targets"] == "tokens"
    (place / "book" / "train.txt").write_text("abc", encoding="utf-8")
    (place / "book" / "test.txt").write_text("ca", encoding="utf-8")
    assert "test part" in refused("E402", lambda: text.running_text("book", length=2))
    assert text.running_text("book", length=1)["test"][1].tolist() == [[0]]


def test_the_hub_is_asked_nothing_unless_a_download_is_asked_for(monkeypatch, tmp_path):
    assert "download = true" in refused("E402", lambda: text.hub_text("stanfordnlp/imdb"))
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'datasets" in refused("E402", lambda: text.hub_text("stanfordnlp/imdb", download=True))
    asked = {"use": "hub_text", "batch": 2, "options": {"name": "stanfordnlp/imdb", "download": True}}
    told = refused("E402", lambda: datasets.prepare(data_settings(asked), tmp_path, download=False, known=True))
    assert "check and flops never" in told


HUB = """__version__ = "4.1.0"
def load_dataset(name, configuration):
    assert (name, configuration) == ("glue", "sst2")
    rows = [{"sentence": "ab", "label": 1, "idx": 0}, {"sentence": "a", "label": 0, "idx": 1}]
    return {"train": rows, "validation": rows[:1]}
"""
OFFLINE = """__version__ = "4.1.0"
def load_dataset(name, configuration):
    raise ConnectionError("Couldn't reach the hub\\nTraceback: ...")
"""
OLD = HUB.replace("4.1.0", "3.6.0")


def library_datasets(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Reading "glue" by a package `datasets` of this code, which stands before any that is installed."""
    (folder / "datasets").mkdir()
    (folder / "datasets" / "__init__.py").write_text(code, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "datasets", None)  # so that it is gone again when the test ends
    for name in [name for name in sys.modules if name.partition(".")[0] == "datasets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))
    asked = {"name": "glue", "configuration": "sst2", "text": "sentence", "test": "validation", "download": True}
    return partial(text.hub_text, **asked, **BY_LETTER)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (OFFLINE, "'glue' cannot be had from the hub: Couldn't reach the hub |"),
        (OLD, "datasets 3.6.0 may run code of the set that it downloads | pip install 'datasets>=4'"),
        (HUB.replace('"4.1.0"', "None"), "may run code"),
        ("", "needs datasets, which is not installed | pip install 'datasets>=4'"),  # a folder of that name
    ],
)
def test_a_hub_that_is_not_reached_or_not_safely_is_refused_in_one_line(code, told, tmp_path, monkeypatch):
    assert told in refused("E402", library_datasets(code, tmp_path, monkeypatch))


def test_a_set_of_the_hub_is_read_by_its_columns(tmp_path, monkeypatch):
    found = library_datasets(HUB, tmp_path, monkeypatch)()
    assert found["train"][0].tolist() == [[0, 1, -1, -1], [0, -1, -1, -1]]
    assert (found["train"][1].tolist(), found["test"][1].tolist()) == ([1, 0], [1])


def test_splits_of_the_hub_are_rows_by_column():
    splits = {"train": [{"s": "ab", "label": 1}, {"s": "a", "label": 0}], "validation": [{"s": "b", "label": 1}]}
    options = text_sets.TextOptions(4, "characters", None)
    found = text._of_splits(splits, ("train", "validation"), ("s",), "label", options)
    assert found["train"][0].tolist() == [[0, 1, -1, -1], [0, -1, -1, -1]]
    assert found["test"][1].tolist() == [1]
    told = refused("E402", lambda: text._of_splits(splits, ("train", "valid"), ("s",), "label", options))
    assert "there is no split 'valid'" in told


def test_a_prepared_set_says_what_it_holds_and_its_rows_are_mapped_into_memory(place, tmp_path):
    write_lines(place / "imdb" / "train.jsonl", GOOD * 4)
    write_lines(place / "imdb" / "test.jsonl", GOOD)
    spec = data_settings({"use": "imdb", "batch": 2, "options": BY_LETTER})
    described = datasets.prepare(spec, tmp_path / "cache")
    assert (described.shape, described.classes, described.mean) == ((4,), 2, None)
    assert (described.extra, described.class_names) == ({"vocabulary": 2}, ("negative", "positive"))
    train, test = datasets.open_data(described, spec, CPU)
    assert (len(train), len(test), train.facts.extra["vocabulary"]) == (8, 2, 2)
    batch = next(train.load([torch.tensor([1, 0])]))
    assert batch.inputs.tolist() == [[1, -1, -1, -1], [0, -1, -1, -1]]
    assert batch.targets.tolist() == [1, 0]


def test_a_text_is_tokenised_once_and_a_trial_maps_what_that_left(place, tmp_path, monkeypatch):
    write_lines(place / "imdb" / "train.jsonl", GOOD * 40)
    write_lines(place / "imdb" / "test.jsonl", GOOD)
    spec = data_settings({"use": "imdb", "batch": 2, "options": BY_LETTER})
    described = datasets.prepare(spec, tmp_path / "cache")
    kept = Path(described.file)
    written = kept.stat().st_mtime_ns
    assert datasets.prepare(spec, tmp_path / "cache").file == described.file
    assert kept.stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [kept.name]
    monkeypatch.setattr(text, "encoding_of", lambda *_: pytest.fail("a trial tokenises"))
    (place / "imdb" / "train.jsonl").unlink()
    train, _ = datasets.open_data(described, spec, CPU)
    assert next(train.load([torch.tensor([78, 79])])).targets.tolist() == [0, 1]
    if MAPS.is_file():
        assert str(kept.resolve()) in MAPS.read_text(encoding="utf-8")


# ── without the text ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENERGYBENCH_DATA", raising=False)


@pytest.mark.parametrize(
    ("use", "options", "shape", "classes", "vocabulary", "train", "test"),
    [
        ("imdb", {}, (128,), 2, 8_000, 25_000, 25_000),
        ("sst2", {"length": 48, "vocabulary": 500}, (48,), 2, 500, 6_920, 1_821),
        ("rte", {"tokenizer": "gpt2-bpe"}, (128,), 2, 50_257, 2_490, 277),
        ("tinyshakespeare", {}, (64,), 65, 65, 1_003_855 // 64, 111_539 // 64),
    ],
)
def test_a_known_set_stands_in_for_its_text(nowhere, tmp_path, use, options, shape, classes, vocabulary, train, test):
    spec = data_settings({"use": use, "batch": 4, "options": options})
    described = datasets.prepare(spec, tmp_path, download=False, known=True)
    assert (described.kind, described.shape, described.classes) == ("stand-in", shape, classes)
    assert (described.extra["vocabulary"], described.train, described.test) == (vocabulary, train, test)
    data, _ = datasets.open_data(described, spec, CPU)
    batch = next(data.load([torch.arange(3)]))
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.shape == (3, *shape)
    assert batch.targets.shape == ((3, *shape) if use == "tinyshakespeare" else (3,))
    assert int(batch.inputs.max()) < vocabulary


@pytest.mark.parametrize("options", [{"tokenizer": "bpe"}, {"tokenizer": "mine.json"}])
def test_nothing_stands_in_where_the_text_itself_decides_how_much_there_is(nowhere, tmp_path, options):
    spec = data_settings({"use": "tinyshakespeare", "batch": 4, "options": options})
    told = refused("E402", lambda: datasets.prepare(spec, tmp_path, download=False, known=True))
    assert "not on this machine" in told


# ── the tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Table(nn.Module):
    """Gives the logits that were laid down for each text, which its first token numbers."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits[tokens[:, 0]]


def judged(predicted: list[int], true: list[int], classes: int) -> dict[str, float]:
    """A task's word on a model that predicts these, each with 10 in its logit."""
    numbers = torch.arange(len(true))[:, None]
    data = Data(Resident(numbers, torch.tensor(true), CPU))
    model = Table(10 * torch.eye(classes)[predicted])
    return make_run(model=lambda: model, data=data, task=TextClassification(), batch=2).evaluate(data)


def test_a_perfect_prediction_has_every_share():
    found = judged([0, 1, 1, 0], [0, 1, 1, 0], 2)
    assert [found[name] for name in ("accuracy", "precision", "recall", "f1", "mean_of_four")] == [1.0] * 5
    assert found["loss"] == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)


def test_a_constant_prediction_has_the_shares_of_its_class():
    always = judged([1] * 5, [1, 1, 0, 0, 0], 2)
    assert [always[name] for name in ("accuracy", "precision", "recall", "f1")] == pytest.approx([0.4, 0.4, 1, 4 / 7])
    never = judged([0] * 5, [1, 1, 0, 0, 0], 2)
    assert [never[name] for name in ("accuracy", "precision", "recall", "f1")] == [0.6, 0, 0, 0]
    assert never["mean_of_four"] == pytest.approx(0.15)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12), st.sampled_from([2, 3]))
def test_shares_are_those_that_one_counts_by_hand(pairs, classes):
    predicted, true = ([min(number, classes - 1) for number in each] for each in zip(*pairs, strict=True))
    shares = []
    for c in range(classes) if classes > 2 else [1]:
        right = sum(p == t == c for p, t in zip(predicted, true, strict=True))
        said, there = predicted.count(c), true.count(c)
        if classes == 2 or said + there:
            shares.append((right / max(said, 1), right / max(there, 1), 2 * right / max(said + there, 1)))
    found = judged(predicted, true, classes)
    wanted = [sum(each) / len(shares) for each in zip(*shares, strict=True)]
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(wanted)
    assert found["mean_of_four"] == pytest.approx((found["accuracy"] + sum(wanted)) / 4)


def some_text(seed: int = 0, samples: int = 5) -> Batch:
    """Inputs, and targets of which some are none; the first sample has all, the last has one."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randint(VOCABULARY, (samples, LENGTH), generator=random)
    targets = torch.randint(VOCABULARY, (samples, LENGTH), generator=random)
    for number in range(samples):
        targets[number, LENGTH - number * (LENGTH - 1) // max(1, samples - 1) :] = -1
    return Batch(inputs, targets, torch.arange(samples))


class Next(nn.Module):
    """Logits of the next token by the token alone: a bigram table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.table(tokens.clamp(min=0))
        return logits


class Mean(nn.Module):
    """Of each text."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.mean(1)


def language_data(samples: int = 5) -> Data:
    batch = some_text(samples=samples)
    facts = Facts("tokens", VOCABULARY, extra={"vocabulary": VOCABULARY})
    return Data(Resident(batch.inputs, batch.targets, CPU), facts=facts)


def test_a_samples_loss_is_the_mean_over_its_tokens_and_evaluation_counts_every_token_alike():
    run = make_run(model=Next, data=language_data(), task=LanguageModel())
    batch = some_text()
    forward = run.forward(batch)
    logs = run.model(batch.inputs).log_softmax(-1)
    by_hand = [
        [-logs[i, j, batch.targets[i, j]].item() for j in range(LENGTH) if batch.targets[i, j] >= 0] for i in range(5)
    ]
    assert forward.each.tolist() == pytest.approx([sum(each) / len(each) for each in by_hand])
    assert forward.value.item() == pytest.approx(forward.each.mean().item())
    found = run.evaluate(run.data)
    every = [loss for each in by_hand for loss in each]
    assert found["loss"] == pytest.approx(sum(every) / len(every))
    assert found["perplexity"] == pytest.approx(math.exp(sum(every) / len(every)))
    assert found["loss"] != pytest.approx(forward.value.item(), rel=1e-3)  # samples are of different lengths


def test_who_knows_nothing_is_as_perplexed_as_there_are_tokens():
    run = make_run(model=Next, data=language_data(), task=LanguageModel())
    with torch.no_grad():
        run.model.table.weight.zero_()
    found = run.evaluate(run.data)
    assert found == {"loss": pytest.approx(math.log(VOCABULARY)), "perplexity": pytest.approx(VOCABULARY)}
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == math.inf


def test_what_is_no_text_of_its_kind_is_told_in_words():
    language, labels = language_data(), torch.zeros(5, dtype=torch.long)
    texts = Data(Resident(next(language.in_order()).inputs, labels, CPU), facts=Facts("class", VOCABULARY))
    pairs: list[tuple[Task, Any, Data, str]] = [
        (LanguageModel(), Next, texts, r"the token that follows each.*targets are \(5,\)"),
        (LanguageModel(), lambda: nn.Sequential(Next(), Mean()), language, r"returns \(5, 13\); language_model needs"),
        (TextClassification(), Next, language, r"the class of each text.*targets are \(5, 6\)"),
        (TextClassification(), Next, texts, r"returns \(5, 6, 13\); text_classification needs"),
    ]
    for task, model, data, told in pairs:
        run = make_run(model=model, data=data, task=task, batch=5)
        with pytest.raises(TypeError, match=told):
            run.train()


def test_evaluation_in_small_pieces_is_the_same(monkeypatch):
    run = make_run(model=Next, data=language_data(), task=LanguageModel())
    whole = run.evaluate(run.data)
    monkeypatch.setattr("energybench.workloads.tasks.text.LOGITS_AT_ONCE", VOCABULARY * LENGTH)
    assert run.evaluate(run.data) == pytest.approx(whole)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_closed_gradient_at_the_outputs_is_that_of_the_losses(smoothing):
    run = make_run(model=Next, data=language_data(), task=LanguageModel(), label_smoothing=smoothing)
    batch = some_text()
    outputs = torch.randn(5, LENGTH, VOCABULARY, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(run.task.losses(run, outputs, batch).sum(), outputs)
    found = run.task.output_gradient(run, outputs.detach().clone(), batch)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert not found[batch.targets < 0].any()


def test_a_sample_without_a_target_has_no_loss_and_no_gradient():
    run = make_run(model=Next, data=language_data(), task=LanguageModel())
    batch = replace(some_text(), targets=torch.full((5, LENGTH), -1))
    outputs = torch.randn(5, LENGTH, VOCABULARY)
    assert not run.task.losses(run, outputs, batch).any()
    assert not run.task.output_gradient(run, outputs, batch).any()


# ── GPT-2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

TINY = {"layers": 2, "heads": 2, "width": 8}


def gpt2(kind: str, dropout: float = 0.0, **sizes: Any) -> nn.Module:
    needs_transformers()
    classes = 3 if kind == "gpt2_classifier" else VOCABULARY
    sizes = {**TINY, "dropout": dropout, **sizes}
    return models.build(kind, (LENGTH,), classes, sizes, {"vocabulary": VOCABULARY})


def original_forward(model: nn.Module) -> Callable[..., Any]:
    """transformers' own of the class that the model's is made from."""
    return next(kind.forward for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))


def padded(lengths: list[int]) -> Tensor:
    tokens = torch.randint(VOCABULARY - 1, (len(lengths), LENGTH), generator=torch.Generator().manual_seed(5))
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = -1
    return tokens


def test_a_texts_logits_are_those_of_the_text_alone_and_those_of_transformers_with_its_mask():
    model = gpt2("gpt2_classifier").double().eval()
    lengths = [1, 2, 5, LENGTH]
    tokens = padded(lengths)
    found = model(tokens)
    for row, length, logits in zip(tokens, lengths, found, strict=True):
        assert torch.allclose(model(row[None, :length])[0], logits, atol=1e-12)
    model.config.pad_token_id = VOCABULARY - 1
    original = original_forward(model)
    there = tokens >= 0
    masked = original(model, tokens.where(there, VOCABULARY - 1), attention_mask=there.long()).logits
    assert torch.allclose(masked, found, atol=1e-12)


def test_nothing_is_learned_from_padding():
    model = gpt2("gpt2_classifier").double()
    gradients = []
    for tokens in (padded([2] * 3), padded([2] * 3)[:, :2]):
        model.zero_grad()
        model(tokens).square().sum().backward()
        gradients.append([p.grad.clone() for name, p in model.named_parameters() if "wpe" not in name])
        assert not model.transformer.wpe.weight.grad[2:].any()
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(*gradients, strict=True))


def test_a_language_model_sees_nothing_of_what_follows_and_its_head_is_its_embedding():
    model = gpt2("gpt2_language_model").double().eval()
    tokens = padded([LENGTH, LENGTH])
    other = tokens.clone()
    other[:, 3:] = (other[:, 3:] + 1) % VOCABULARY
    one, two = model(tokens), model(other)
    assert one.shape == (2, LENGTH, VOCABULARY)
    assert torch.allclose(one[:, :3], two[:, :3], atol=1e-12)
    assert not torch.allclose(one[:, 3:], two[:, 3:])
    assert model.lm_head.weight is model.transformer.wte.weight
    original = original_forward(model)
    assert torch.allclose(original(model, tokens).logits, one, atol=1e-12)


def test_gpt2_has_the_size_that_is_published():
    needs_transformers()
    with torch.device("meta"):
        model = models.build("gpt2_language_model", (1024,), None, {}, {"vocabulary": 50_257})
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"width": 9}, "no multiple of heads"),
        ({"layers": 0}, "layers is 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"positions": LENGTH - 1}, "positions"),
        ({"depth": 3}, "takes no parameter 'depth'"),
    ],
)
def test_a_size_that_makes_no_model_is_refused(sizes, told):
    assert told in refused("E401", partial(gpt2, "gpt2_classifier", **sizes))


def test_images_are_no_text():
    needs_transformers()
    build = partial(models.build, "gpt2_classifier", (1, 8, 8), 10, dict(TINY), {"vocabulary": 5})
    assert "a row of tokens" in refused("E401", build)
    build = partial(models.build, "gpt2_classifier", (8,), 10, dict(TINY))
    assert "do not say how many tokens" in refused("E401", build)
    build = partial(models.build, "gpt2_classifier", (8,), None, dict(TINY), {"vocabulary": 5})
    assert "no classes" in refused("E401", build)


@pytest.mark.parametrize("kind", ["gpt2_classifier", "gpt2_language_model"])
def test_weights_fit_under_the_names_of_gpt2s_files_and_of_transformers(kind):
    torch.manual_seed(1)
    source = gpt2("gpt2_language_model")
    body = {name: value.clone() for name, value in source.transformer.state_dict().items()}
    published = {**body, **{f"h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in range(2)}}
    prefixed = {f"transformer.{name}": value for name, value in published.items()}
    fresh = ["score.weight"] if kind == "gpt2_classifier" else []
    for state in (published, prefixed):
        torch.manual_seed(2)
        model = gpt2(kind)
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert (list(missing), list(unexpected)) == (fresh, [])
        loaded = model.transformer.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in body.items())
    assert {"wte.weight", "h.0.attn.bias"} <= set(published)  # what was given is left as it was


@pytest.mark.parametrize("kind", ["gpt2_classifier", "gpt2_language_model"])
def test_a_local_checkpoint_fills_what_it_has_and_the_record_says_what_starts_afresh(kind, tmp_path):
    source = gpt2("gpt2_language_model")
    published = {name: value + 1 for name, value in source.transformer.state_dict().items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in range(TINY["layers"])}
    torch.save(published | masks, tmp_path / "gpt2.pt")
    model, table = gpt2(kind), {"use": kind, "weights": "gpt2.pt"}
    if kind == "gpt2_classifier":
        fill = partial(load_start, model, ModelTable.model_validate(table), tmp_path)
        assert "lacks score.weight" in refused("E401", fill)
        table |= {"weights_strict": False}
    found = load_start(model, ModelTable.model_validate(table), tmp_path)
    assert found.fresh == (("score.weight",) if kind == "gpt2_classifier" else ())
    tied = 1 if kind == "gpt2_language_model" else 0  # its head, which is its embedding
    assert (found.tensors, found.unused) == (len(published) + tied, ())
    loaded = model.transformer.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in published.items())


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────

TASKS: dict[str, type[Task]] = {"gpt2_classifier": TextClassification, "gpt2_language_model": LanguageModel}
each_kind = pytest.mark.parametrize("kind", TASKS)


def training_data(kind: str, samples: int = 24) -> Data:
    """Of the classifier, the class is the first token's; of the language model, a token follows by one rule."""
    random = torch.Generator().manual_seed(9)
    inputs = torch.randint(VOCABULARY, (samples, LENGTH), generator=random)
    facts = Facts("tokens", VOCABULARY, extra={"vocabulary": VOCABULARY})
    if kind == "gpt2_language_model":
        return Data(Resident(inputs, (inputs * 5 + 1) % VOCABULARY, CPU), facts=facts)
    targets = inputs[:, 0] % 3
    lengths = torch.randint(1, LENGTH + 1, (samples, 1), generator=random)
    inputs[torch.arange(LENGTH) >= lengths] = -1
    return Data(Resident(inputs, targets, CPU), facts=replace(facts, targets="class", classes=3))


def training(kind: str, methods: Any = (), *, dropout: float = 0.0, **recipe: Any) -> Any:
    given = {"epochs": 2, "batch": 8, "optimizer": "adam", "lr": 5e-3, "momentum": 0.0, **recipe}
    model = partial(gpt2, kind, dropout)
    return make_run(methods, model=model, data=training_data(kind), task=TASKS[kind](), **given)


@each_kind
def test_the_loss_falls(kind):
    run = training(kind, epochs=12, lr=2e-2)
    run.train()
    assert run.curve[-1]["loss"] < 0.7 * run.curve[0]["loss"]


@pytest.mark.parametrize(
    ("kind", "dropout"), [("gpt2_classifier", 0.0), ("gpt2_language_model", 0.0), ("gpt2_classifier", 0.1)]
)
def test_the_ledger_is_what_the_counter_counts_and_its_forward_pass_the_matrix_products(kind, dropout):
    """Per block and token 24·W² of the four products and 4·L·W of attention; a head on one token, or on each."""
    counter = StepCounter(10**9)
    run = training(kind, dropout=dropout, counter=counter)
    run.train()
    batch = next(iter(run.data.in_order(4)))
    lines = trace_task(TASKS[kind](), gpt2(kind, dropout), run.recipe, batch, CPU).lines
    samples = run.data.samples(run.recipe.batch) * run.recipe.epochs
    assert sum(line.flop for line in lines) * samples == pytest.approx(counter.result(run).counted_flop, rel=1e-3)
    width, blocks = TINY["width"], TINY["layers"]
    head = 2 * width * 3 if kind == "gpt2_classifier" else LENGTH * 2 * width * VOCABULARY
    wanted = blocks * LENGTH * (24 * width**2 + 4 * LENGTH * width) + head
    assert sum(line.flop for line in lines if line.phase == "forward") == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["tasks-text", "paper-gradsamp-text"])
def test_a_suite_is_traced_where_its_text_is_not(nowhere, tmp_path, name):
    needs_transformers()
    suite = load(ROOT / "suites" / f"{name}.toml", quick=True)
    spec = spec_of(suite, tmp_path, device="cpu", download=False).model_copy(update={"purpose": "trace"})
    found = planner.Plan(spec).result()
    assert not found.problems
    for workload in found.workloads.values():
        assert sum(line.flop for line in workload.ledger) > 0
        assert workload.data.kind == "stand-in"


@each_kind
@pytest.mark.parametrize("recipe", [{"accumulate": 2, "clip": 0.1}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_micro_batches_clipping_and_half_precision_train(kind, recipe):
    run = training(kind, **recipe)
    run.train()
    assert all(math.isfinite(point["loss"]) for point in run.curve)
    assert run.tally.updates == 6


@each_kind
def test_micro_batches_give_the_gradients_of_the_whole_batch(kind):
    found = []
    for accumulate in (1, 4):
        run = training(kind, accumulate=accumulate)
        run.model.double()
        run.gradients(next(iter(run.load(run.data, [torch.arange(8)]))))
        found.append([parameter.grad.clone() for parameter in run.model.parameters()])
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(*found, strict=True))


# What looks for convolutions, or for hidden linear layers of torch, finds none: transformers writes its own.
WITHOUT_EFFECT = {"ssprop", "gni"}


@pytest.mark.parametrize("name", METHODS)
@each_kind
def test_every_method_trains_it_or_is_refused_in_words(kind, name):
    method_kind = discovery.load(METHODS[name])
    method = discovery.build(method_kind, name, dict(method_kind.example))
    if problems := check_stack([method], TASKS[kind]()):
        assert all(problem.message for problem in problems)
        return
    try:
        run = training(kind, [method], epochs=6, optimizer="sgd", lr=0.05)
    except UsageError:  # says why, or it is no refusal: its message stands in `problems`
        return
    run.train()
    assert run.uncalled_overrides() == []
    assert (method.acted is False) == (name in WITHOUT_EFFECT)
    losses = [point["loss"] for point in run.curve if point["loss"] is not None]
    assert all(map(math.isfinite, losses))
    run.finish()
    plain = {n: type(module) for n, module in gpt2(kind).named_modules()}
    assert {n: type(module) for n, module in run.model.named_modules()} == plain


@each_kind
def test_gradsamp_over_mezo_trains_by_forward_passes_alone(kind):
    methods = [
        discovery.build(discovery.load(METHODS[name]), name, settings)
        for name, settings in (("gradsamp", {"skip": "every:2"}), ("mezo", {"lr": 1e-4}))
    ]
    assert check_stack(methods, TASKS[kind]()) == []
    run = training(kind, methods, epochs=4, dropout=0.1)
    run.train()
    passes = run.tally.passes()
    assert passes.epochs_trained == 2
    assert run.tally.backwards == 0
    assert run.tally.forwards == 2 * 3 * 2  # two for each of three steps of two epochs


def test_the_example_of_mezo_runs_from_its_start_file_to_its_end(place, tmp_path):
    """On a few sentences: `start.py` writes the body, and both of its methods train a fresh head on it."""
    needs_transformers()
    needs_tokenizers()
    (place / "sst2").mkdir()
    lines = [f"{number % 2} a {('dull', 'fine')[number % 2]} film about {number}\n" for number in range(64)]
    for file in ("stsa.binary.train", "stsa.binary.test"):
        (place / "sst2" / file).write_text("".join(lines), encoding="utf-8")
    folder = tmp_path / "example"
    folder.mkdir()
    for file in ("start.py", "suite.toml"):
        shutil.copy(ROOT / "examples" / "mezo_text" / file, folder)
    runpy.run_path(str(folder / "start.py"))
    body = torch.load(folder / "start.pt", weights_only=True)
    suite = load(folder / "suite.toml")
    spec = spec_of(suite, tmp_path / "cache", device="cpu", download=False, purpose="trace")
    found = planner.Plan(spec).result()
    assert not found.problems
    (workload,) = suite.workloads
    (known,) = found.workloads.values()
    train, test = datasets.open_data(known.data, workload.data, CPU)
    epochs = {}
    for cell in (cell for cell in found.cells if cell.role == "method"):
        stack = tuple(map(MethodSpec.model_validate, cell.stack))
        trial = TrainingSpec(
            base=folder, workload=workload, data=known.data, stack=stack, seed=1, weights=known.weights
        )
        picture = Picture(TextClassification(), recipe_of(workload))
        run = build(trial, train, CPU)
        loaded = run.model.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in body.items())
        assert {*loaded} - {*body} == {"score.weight"}
        run.train()
        assert run.tally.backwards == 0
        assert math.isfinite(run.evaluate(test)["loss"])
        assert list(picture.replaced()) == []  # transformers adds to torch's own classes as it makes a model
        epochs[cell.method] = run.tally.passes().epochs_trained
    assert epochs == {"mezo": 5, "gradsamp+mezo": 4}


@each_kind
def test_scores_by_the_gradient_of_all_parameters_are_those_of_one_text_at_a_time(kind):
    run = training(kind)
    run.model.double()
    batch = next(iter(run.data.in_order(3)))
    found = []
    for number in range(3):
        one = Batch(batch.inputs[number : number + 1], batch.targets[number : number + 1], torch.zeros(1))
        run.model.zero_grad()
        run.backward(run.forward(one, "eval").value)
        found.append(math.sqrt(sum(p.grad.square().sum().item() for p in run.model.parameters())))
    assert parameter_gradient(run, batch).tolist() == pytest.approx(found, rel=1e-9)
