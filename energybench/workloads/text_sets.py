"""Data sets of text by name: what their options mean, and what is known of them where their files are not.

Imports no torch and no tokenizer: a suite is checked by it where neither is, nor the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from energybench.common.errors import Problem, UsageError
from energybench.train.facts import Targets
from energybench.workloads.description import DataDescription

BPE, CHARACTERS = "bpe", "characters"
OWN_VOCABULARY = 8_000  # tokens of a byte-pair encoding that is made from the training part
LEAST_VOCABULARY = 257  # every byte, and the end of a text
GPT2, GPT2_VOCABULARY = "gpt2-bpe", 50_257  # the folder of GPT-2's own encoding; 256 bytes, 50,000 merges and the end
HELD_OUT = 10  # of a text without a test part, the last tenth is for testing
MOST_TOKENS = 1 << 20  # of a sample
DEFAULT_LENGTHS: Mapping[str, int] = {"class": 128, "tokens": 64}


@dataclass(frozen=True, slots=True)
class KnownText:
    """What is published of a set.

    train, test: numbers of texts; of one running text its characters, and `symbols` different ones
    """

    targets: Targets
    train: int
    test: int
    class_names: tuple[str, ...] = ()
    symbols: int | None = None


SENTIMENT = ("negative", "positive")
TINY_SHAKESPEARE = 1_115_394
KNOWN: Mapping[str, KnownText] = {
    "imdb": KnownText("class", 25_000, 25_000, SENTIMENT),
    "sst2": KnownText("class", 6_920, 1_821, SENTIMENT),  # whole sentences
    "rte": KnownText("class", 2_490, 277, ("entailment", "not entailment")),
    "tinyshakespeare": KnownText(
        "tokens", TINY_SHAKESPEARE - TINY_SHAKESPEARE // HELD_OUT, TINY_SHAKESPEARE // HELD_OUT, symbols=65
    ),
}


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a text becomes numbers.

    length:     tokens of a sample: a longer text is cut, a shorter one padded
    tokenizer:  "bpe", a byte-pair encoding made from the training part; "characters"; or a tokenizer's file or folder
    vocabulary: tokens of "bpe"; else as many as there are

    Raises UsageError E402 for what is none.
    """

    length: int
    tokenizer: str
    vocabulary: int | None

    def __post_init__(self) -> None:
        if not _whole(self.length) or not 1 <= self.length <= MOST_TOKENS:
            _refuse("length", self.length, f"a whole number of tokens, 1 to {MOST_TOKENS:,}", "length = 128")
        if not isinstance(self.tokenizer, str) or not self.tokenizer:
            hint = f'tokenizer = "{BPE}", "{CHARACTERS}", or a file tokenizer.json'
            _refuse("tokenizer", self.tokenizer, "the name of one", hint)
        if self.vocabulary is None:
            return
        if not _whole(self.vocabulary) or not LEAST_VOCABULARY <= self.vocabulary <= MOST_TOKENS:
            expected = f"a whole number of tokens, {LEAST_VOCABULARY} at least: the bytes and the end of a text"
            _refuse("vocabulary", self.vocabulary, expected, f"vocabulary = {OWN_VOCABULARY}")
        if self.tokenizer != BPE:
            message = f"options.vocabulary is of tokenizer = \"{BPE}\", and '{self.tokenizer}' has its own"
            raise UsageError(Problem("E402", message, hint="take one of them out"))

    @property
    def asked_vocabulary(self) -> int:
        """Tokens that an encoding of its own is made with, at most."""
        return OWN_VOCABULARY if self.vocabulary is None else self.vocabulary


def options_of(targets: Targets, options: Mapping[str, Any]) -> TextOptions:
    """Of a known set, with the defaults of its kind. Raises UsageError E402."""
    tokenizer = options.get("tokenizer", CHARACTERS if targets == "tokens" else BPE)
    return TextOptions(options.get("length", DEFAULT_LENGTHS[targets]), tokenizer, options.get("vocabulary"))


def describe(
    use: str, options: Mapping[str, Any], subset: int | None, test_subset: int | None
) -> DataDescription | None:
    """What `datasets.prepare` would say of a set that is known by its name, but for the content.

    None where that depends on the text itself: how many tokens one running text has under an encoding of its own.

    Raises UsageError E402 for options that are none.
    """
    known = KNOWN[use]
    asked = options_of(known.targets, options)
    vocabulary = _known_vocabulary(known, asked)
    if vocabulary is None:
        return None
    train, test = known.train, known.test
    if known.targets == "tokens":
        if asked.tokenizer != CHARACTERS:
            return None
        train, test = (samples_of(characters, asked.length) for characters in (train, test))
    return DataDescription(
        source=f"{use}, known by its name: the files are not on this machine",
        kind="stand-in",
        stored=(asked.length,),
        shape=(asked.length,),
        classes=len(known.class_names) if known.targets == "class" else vocabulary,
        targets=known.targets,
        class_names=known.class_names,
        extra={"vocabulary": vocabulary},
        train=min(train, subset or train),
        test=min(test, test_subset or test),
        sha256="unknown",
    )


def samples_of(tokens: int, length: int) -> int:
    """How many samples of so many tokens, each with the token that follows, one running text has without overlap."""
    return max(0, tokens - 1) // length


def _known_vocabulary(known: KnownText, asked: TextOptions) -> int | None:
    if asked.tokenizer == BPE:
        return asked.asked_vocabulary
    if asked.tokenizer == CHARACTERS:
        return known.symbols
    return GPT2_VOCABULARY if PurePath(asked.tokenizer).name.casefold() == GPT2 else None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(key: str, value: Any, expected: str, hint: str) -> None:
    raise UsageError(Problem("E402", f"options.{key} is {value!r}; expected {expected}", hint=hint))
