"""From text to whole numbers: by characters, by a byte-pair encoding made from the training part, or by a given one.

A text is cut to `length` tokens and a shorter one goes on with −1, which is no token: whatever an encoding uses as
padding, it is never taken for a word, nor a word for padding. The arrays are kept in a run's cache and mapped into
memory by its trials, so that a text is tokenised once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from energybench.common import data_folder
from energybench.common.errors import Problem, UsageError, nearest
from energybench.workloads.text_sets import BPE, CHARACTERS, TextOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NONE = -1  # behind the end of a text
END = "<|endoftext|>"  # stands for a text without a token
PARALLEL = "TOKENIZERS_PARALLELISM"
AT_ONCE = 1_000  # texts that are held as tokens and not yet as an array
# Files of a folder that holds an encoding: one, or a table of tokens and the order of merges.
ONE_FILE, PAIRS = "tokenizer.json", (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
LAYOUT = f"a {ONE_FILE}; or a folder with one, or with vocab.json and merges.txt, or encoder.json and vocab.bpe"


class Encoding(Protocol):
    """vocabulary: how many tokens there are; end: the token of an empty text, None where there is none."""

    vocabulary: int
    end: int | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text its tokens."""


class Characters:
    """Each character that occurs is a token, in the order of Unicode."""

    def __init__(self, texts: Iterable[str]) -> None:
        alphabet: set[str] = set()
        for text in texts:
            alphabet.update(text)
        self._numbers = {character: number for number, character in enumerate(sorted(alphabet))}
        self.vocabulary = len(alphabet)
        self.end: int | None = None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        numbers = self._numbers
        return [[numbers[character] for character in text] for text in texts]


class Subwords:
    """An encoding of the library `tokenizers`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()  # a file may say both
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.end = tokenizer.token_to_id(END)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        with _one_thread():
            return [each.ids for each in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def encoding_of(options: TextOptions, train: Sequence[str], test: Sequence[str]) -> Encoding:
    """What `options.tokenizer` means.

    Args:
        train: texts that an encoding of its own is made from; characters are those of both parts

    Raises UsageError E402 where there is none, or `tokenizers` is not installed.
    """
    if options.tokenizer == CHARACTERS:
        return Characters([*train, *test])
    if importlib.util.find_spec("tokenizers") is None:
        message = f'tokenizer = "{options.tokenizer}" needs tokenizers, which is not installed'
        raise UsageError(Problem("E402", message, hint="pip install 'energybench[text]'"))
    if options.tokenizer == BPE:
        return Subwords(made_from(train, options.asked_vocabulary))
    return Subwords(_given(options.tokenizer))


def made_from(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-pair encoding of bytes, as GPT-2's, of the pairs that are most frequent in these texts.

    Fewer than `vocabulary` tokens where the texts have no more pairs. The same texts make the same encoding.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte, so that no text is unknown
        show_progress=False,
    )
    with _one_thread():
        tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _given(name: str) -> Tokenizer:
    """From a file or a folder. Raises UsageError E402."""
    place = _place(name)
    from tokenizers import Tokenizer

    try:
        if not place.is_dir():
            return Tokenizer.from_file(str(place))
        if (place / ONE_FILE).is_file():
            return Tokenizer.from_file(str(place / ONE_FILE))
        for table, merges in PAIRS:
            if (place / table).is_file() and (place / merges).is_file():
                return _of_pairs(place / table, place / merges)
    except Exception as error:  # the library raises no class of its own
        message = f"the tokenizer '{name}' cannot be read: {str(error).splitlines()[0]}"
        raise UsageError(Problem("E402", message, hint=f"looked at {place}: {LAYOUT}")) from None
    raise UsageError(Problem("E402", f"the folder of the tokenizer '{name}' holds none", hint=f"{place}: {LAYOUT}"))


def _of_pairs(table: Path, merges: Path) -> Tokenizer:
    """GPT-2's: a table of tokens and its merges, in their order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    numbers = json.loads(table.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=pairs))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _place(name: str) -> Path:
    """A path, or the name of a folder in $ENERGYBENCH_DATA. Raises UsageError E402 where there is nothing."""
    written = Path(os.path.expanduser(name))
    kept = data_folder.of(name)
    if kept is not None or os.path.exists(written):
        return kept or written
    words = nearest(name, [BPE, CHARACTERS, *data_folder.names()])
    hint = f'{words}; "{BPE}", "{CHARACTERS}", or {LAYOUT}, by its path or by its name in $ENERGYBENCH_DATA'
    raise UsageError(Problem("E402", f"there is no tokenizer '{name}'", hint=f"looked at {written}; {hint}"))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Without the library's threads, which do not survive a fork and leave a warning in every child."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLEL]
        else:
            os.environ[PARALLEL] = before


# ── arrays ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(encoding: Encoding, texts: Sequence[tuple[str, ...]], length: int) -> Tensor:
    """A row of tokens for each text, (N, length) int64, −1 behind its end.

    Of a pair of texts the first is cut for the second to fit, as whoever asks whether the second follows from the first
    must see it.

    Raises:
        UsageError: E402 for a text without a token, where the encoding has none for the end of a text.
    """
    found = np.full((len(texts), length), NONE, dtype=np.int64)
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        parts = [encoding.encode(list(each)) for each in zip(*some, strict=True)]
        for number, tokens in enumerate(zip(*parts, strict=True), start):
            row = tokens[0][:length] if len(tokens) == 1 else _fitted(tokens[0], tokens[1], length)
            if not row:
                row = [_end(encoding, number)]
            found[number, : len(row)] = row
    return torch.from_numpy(found)


def _fitted(first: list[int], second: list[int], length: int) -> list[int]:
    second = second[:length]
    return first[: length - len(second)] + second


def _end(encoding: Encoding, number: int) -> int:
    if encoding.end is None:
        message = f"text {number + 1:,} of a part has no token, and the tokenizer none for the end of a text"
        raise UsageError(Problem("E402", message, hint=f'take it out, or tokenizer = "{BPE}"'))
    return encoding.end


def stream(tokens: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """One running text cut into samples without overlap: tokens (N, length), and those that follow each.

    Raises:
        ValueError: for a text that is shorter than a sample
    """
    count = max(0, len(tokens) - 1) // length
    if not count:
        raise ValueError(f"{len(tokens):,} tokens, and a sample is {length:,} and the one that follows")
    whole = torch.tensor(tokens[: count * length + 1], dtype=torch.int64)
    return whole[:-1].view(count, length).clone(), whole[1:].view(count, length).clone()
