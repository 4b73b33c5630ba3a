"""Data sets of text: films' reviews, sentences and pairs of sentences with a label; a running text.

Files lie in $ENERGYBENCH_DATA/<name>, or in a folder whose path is given:

    train.jsonl, test.jsonl (or train_5k.jsonl, dev.jsonl, …)   a line each: {"text": "…", "label": 1}
    stsa.binary.train, stsa.binary.test                         SST-2 as sentences: a line each, "1 a stirring …"
    train.txt, test.txt; or one .txt, its last tenth for testing    a running text

Nothing is downloaded, but by `hub_text`, which says so. How a text becomes numbers is in tokens.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from energybench.common import data_folder
from energybench.common.errors import Problem, UsageError, nearest
from energybench.common.safe_read import list_folder
from energybench.workloads.datasets.tokens import encoding_of, rows, stream
from energybench.workloads.text_sets import BPE, CHARACTERS, HELD_OUT, KNOWN, TextOptions

TRAIN_NAMES, TEST_NAMES = ("train",), ("test", "dev", "validation", "val")
JSONL = "train.jsonl and test.jsonl, lines such as {}"
CODE_FREE_DATASETS = 4  # major version from which the library runs no code of a set
INSTALL_DATASETS = f"pip install 'datasets>={CODE_FREE_DATASETS}'"
SST2 = ("stsa.binary.train", "stsa.binary.test")


def imdb(length: int = 128, tokenizer: str = BPE, vocabulary: int | None = None) -> dict[str, Any]:
    """IMDB's reviews of films (Maas et al. 2011), negative or positive: $ENERGYBENCH_DATA/imdb, jsonl.

    length:     tokens of a sample: a longer review is cut, a shorter one padded
    tokenizer:  "bpe", made from the training part; "characters"; or a tokenizer's file or folder
    vocabulary: tokens of "bpe", 8,000 by default
    """
    options = TextOptions(length, tokenizer, vocabulary)
    return _of_jsonl(_needed("imdb"), ("text",), "label", options, KNOWN["imdb"].class_names)


def sst2(length: int = 128, tokenizer: str = BPE, vocabulary: int | None = None) -> dict[str, Any]:
    """Sentences of reviews (SST-2, Socher et al. 2013), negative or positive: $ENERGYBENCH_DATA/sst2, stsa.binary.train
    and .test, or jsonl.

    length:     tokens of a sample: a longer sentence is cut, a shorter one padded
    tokenizer:  "bpe", made from the training part; "characters"; or a tokenizer's file or folder
    vocabulary: tokens of "bpe", 8,000 by default
    """
    options, names = TextOptions(length, tokenizer, vocabulary), KNOWN["sst2"].class_names
    folder = _needed("sst2")
    if not os.path.isfile(folder / SST2[0]):
        return _of_jsonl(folder, ("text",), "label", options, names)
    train, test = (_read_labelled_lines(folder / name) for name in SST2)
    return _classes_of_texts(train, test, options, names)


def rte(length: int = 128, tokenizer: str = BPE, vocabulary: int | None = None) -> dict[str, Any]:
    """Does a sentence follow from another (RTE, as GLUE has it): $ENERGYBENCH_DATA/rte, jsonl of premise, hypothesis.

    length:     tokens of both together: where they are more, the premise is cut
    tokenizer:  "bpe", made from the training part; "characters"; or a tokenizer's file or folder
    vocabulary: tokens of "bpe", 8,000 by default
    """
    options = TextOptions(length, tokenizer, vocabulary)
    return _of_jsonl(_needed("rte"), ("premise", "hypothesis"), "label", options, KNOWN["rte"].class_names)


def jsonl_text(
    folder: str,
    text: str | list[str] = "text",
    label: str = "label",
    length: int = 128,
    tokenizer: str = BPE,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """A folder of labelled texts: train.jsonl and test.jsonl (or dev, validation), a JSON object in each line.

    folder:     in $ENERGYBENCH_DATA by its name, or a path
    text:       key of the text, or of the two texts of a pair
    label:      key of the label: whole numbers from 0, or names
    length:     tokens of a sample: a longer text is cut, a shorter one padded
    tokenizer:  "bpe", made from the training part; "characters"; or a tokenizer's file or folder
    vocabulary: tokens of "bpe", 8,000 by default
    """
    options = TextOptions(length, tokenizer, vocabulary)
    return _of_jsonl(_folder("jsonl_text", folder), _keys(text), label, options, ())


def hub_text(
    name: str,
    configuration: str | None = None,
    text: str | list[str] = "text",
    label: str = "label",
    train: str = "train",
    test: str = "test",
    download: bool = False,
    length: int = 128,
    tokenizer: str = BPE,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """Labelled texts of the Hugging Face hub by their name, through its library `datasets`, over the network.

    name:          as the hub calls the set, such as "stanfordnlp/imdb"
    configuration: of a set that has several, such as "rte" of "nyu-mll/glue"
    text:          column of the text, or of the two texts of a pair
    label:         column of the label
    train, test:   splits that are trained on and tested on
    download:      true allows the network; without it nothing is asked of it, and the set is refused
    length:        tokens of a sample: a longer text is cut, a shorter one padded
    tokenizer:     "bpe", made from the training part; "characters"; or a tokenizer's file or folder
    vocabulary:    tokens of "bpe", 8,000 by default
    """
    options = TextOptions(length, tokenizer, vocabulary)
    if download is not True:
        message = f"'{name}' lies on the Hugging Face hub, and nothing is downloaded here"
        hint = "options = { download = true, … } lets a run do it, check and flops never; or jsonl_text, of a folder"
        raise UsageError(Problem("E402", message, hint=hint))
    library = _hub_library()
    try:
        found = library.load_dataset(name, configuration)
    except Exception as error:  # no network, no such name, a gate: each raises something else
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(Problem("E402", f"'{name}' cannot be had from the hub: {reason}")) from None
    return _of_splits(found, (train, test), _keys(text), label, options)


def _hub_library() -> Any:
    """Hugging Face's `datasets`. Raises UsageError E402 where it is missing, or of a version that runs a set's code."""
    found = importlib.import_module("datasets") if importlib.util.find_spec("datasets") is not None else None
    if not hasattr(found, "load_dataset"):  # nor is a folder of that name, which Python takes for a package
        message = "hub_text needs datasets, which is not installed"
        raise UsageError(Problem("E402", message, hint=INSTALL_DATASETS))
    major = str(getattr(found, "__version__", "")).partition(".")[0]
    if not major.isdecimal() or int(major) < CODE_FREE_DATASETS:
        message = f"datasets {getattr(found, '__version__', 'of no version')} may run code of the set that it downloads"
        raise UsageError(Problem("E402", message, hint=INSTALL_DATASETS))
    return found


def tinyshakespeare(length: int = 64, tokenizer: str = CHARACTERS, vocabulary: int | None = None) -> dict[str, Any]:
    """A million characters of Shakespeare (Karpathy 2015), a running text: $ENERGYBENCH_DATA/tinyshakespeare/input.txt.

    length:     tokens of a sample, each with the one that follows
    tokenizer:  "characters"; "bpe", made from the training part; or a tokenizer's file or folder
    vocabulary: tokens of "bpe", 8,000 by default
    """
    return _running(_needed("tinyshakespeare"), TextOptions(length, tokenizer, vocabulary))


def running_text(
    folder: str, length: int = 64, tokenizer: str = CHARACTERS, vocabulary: int | None = None
) -> dict[str, Any]:
    """A folder with a running text: train.txt and test.txt, or one .txt, of which the last tenth is for testing.

    folder:     in $ENERGYBENCH_DATA by its name, or a path
    length:     tokens of a sample, each with the one that follows
    tokenizer:  "characters"; "bpe", made from the training part; or a tokenizer's file or folder
    vocabulary: tokens of "bpe", 8,000 by default
    """
    return _running(_folder("running_text", folder), TextOptions(length, tokenizer, vocabulary))


# ── where files lie ───────────────────────────────────────────────────────────────────────────────────────────────────


def _needed(name: str) -> Path:
    layout = "input.txt" if name == "tinyshakespeare" else JSONL.format('{"text": "…", "label": 1}')
    return data_folder.needed(name, layout)


def _folder(use: str, folder: str) -> Path:
    """A folder by its path, or by its name in $ENERGYBENCH_DATA. Raises UsageError E402."""
    if not isinstance(folder, str) or not folder:
        message = f"'{use}' reads a folder, and options.folder is {folder!r}"
        raise UsageError(Problem("E402", message, hint='folder = "reviews": in $ENERGYBENCH_DATA; or a path'))
    written = Path(os.path.expanduser(folder))
    place = written if os.path.isdir(written) else data_folder.of(folder)
    if place is None:
        hint = nearest(folder, data_folder.names()) or "a folder of $ENERGYBENCH_DATA by its name, or a path"
        raise UsageError(Problem("E402", f"'{use}': there is no folder '{folder}'", hint=hint))
    return place


def _part(folder: Path, names: Sequence[str], ending: str) -> Path | None:
    """The file of a part: train.jsonl, else train_5k.jsonl. Raises UsageError E402 where several could be meant."""
    files = [path for path in list_folder(folder, ending) if os.path.isfile(path)]
    for name in names:
        exactly = [path for path in files if path.name == f"{name}{ending}"]
        alike = [path for path in files if path.name.startswith((f"{name}_", f"{name}-", f"{name}."))]
        found = exactly or [path for path in alike if path.name != f"{name}{ending}"]
        if len(found) > 1:
            message = f"{folder} has {len(found)} files that could be its {name} part: {found[0].name}, {found[1].name}"
            raise UsageError(Problem("E402", message, hint=f"call the one that is meant {name}{ending}"))
        if found:
            return found[0]
    return None


# ── labelled texts ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts, or pairs of them, with a label each. where: the file or split, for messages.

    The second text of a pair begins with a line break, which keeps the two apart.
    """

    texts: Sequence[tuple[str, ...]]
    labels: Sequence[Any]
    where: str


def _keys(text: str | list[str]) -> tuple[str, ...]:
    keys = (text,) if isinstance(text, str) else tuple(text)
    if len(keys) not in (1, 2) or not all(isinstance(key, str) and key for key in keys):
        message = f"options.text is {text!r}; expected the key of a text, or two of a pair"
        raise UsageError(Problem("E402", message, hint='text = ["premise", "hypothesis"]'))
    return keys


def _of_jsonl(
    folder: Path, keys: tuple[str, ...], label: str, options: TextOptions, names: tuple[str, ...]
) -> dict[str, Any]:
    files = [_part(folder, part, ".jsonl") for part in (TRAIN_NAMES, TEST_NAMES)]
    parts = []
    for file, part in zip(files, ("training", "test"), strict=True):
        if file is None:
            fields = "".join(f'"{key}": "…", ' for key in keys)
            hint = JSONL.format(f'{{{fields}"{label}": 1}}')
            raise UsageError(Problem("E402", f"{folder} has no {part} part", hint=hint))
        parts.append(_read_jsonl(file, keys, label))
    train, test = parts
    return _classes_of_texts(train, test, options, names)


def _read_jsonl(file: Path, keys: tuple[str, ...], label: str) -> Labelled:
    texts, labels = [], []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    text, of = _row(_object(line, file, number), keys, label, f"{file}:{number}")
                    texts.append(text)
                    labels.append(of)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Problem("E402", f"{file} cannot be read: {error}", hint="text in UTF-8")) from None
    return Labelled(texts, labels, str(file))


def _object(line: str, file: Path, number: int) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(Problem("E402", f"{file}:{number} is no JSON: {error}")) from None
    if not isinstance(found, dict):
        raise UsageError(Problem("E402", f"{file}:{number} is no object", hint='{"text": "…", "label": 1}'))
    return found


def _row(row: Mapping[str, Any], keys: tuple[str, ...], label: str, where: str) -> tuple[tuple[str, ...], Any]:
    """Its texts and its label. Raises UsageError E402 where it lacks one."""
    for key in (*keys, label):
        if key not in row:
            raise UsageError(Problem("E402", f"{where} has no '{key}'", hint=nearest(key, row)))
    for key in keys:
        if not isinstance(row[key], str):
            message = f"{where}: '{key}' is of type {type(row[key]).__name__}, and no text"
            raise UsageError(Problem("E402", message))
    return tuple(f"\n{row[key]}" if number else row[key] for number, key in enumerate(keys)), row[label]


def _read_labelled_lines(file: Path) -> Labelled:
    """Lines that begin with the number of their class and a blank."""
    texts, labels = [], []
    for number, line in enumerate(_read(file).removesuffix("\n").split("\n"), 1):
        label, _, text = line.partition(" ")
        if not label.isdecimal():
            message = f"{file}:{number} does not begin with the number of a class"
            raise UsageError(Problem("E402", message, hint='"1 a stirring , funny film"'))
        texts.append((text,))
        labels.append(int(label))
    return Labelled(texts, labels, str(file))


def _of_splits(
    found: Mapping[str, Iterable[Mapping[str, Any]]],
    names: tuple[str, str],
    keys: tuple[str, ...],
    label: str,
    options: TextOptions,
) -> dict[str, Any]:
    """From splits by name, each rows by column, as the library `datasets` has them."""
    parts = []
    for name in names:
        if name not in found:
            message = f"there is no split '{name}'; there are {', '.join(map(str, found))}"
            raise UsageError(Problem("E402", message, hint=nearest(name, found)))
        whole = [_row(row, keys, label, f"{name}:{number}") for number, row in enumerate(found[name], 1)]
        parts.append(Labelled([text for text, _ in whole], [of for _, of in whole], name))
    return _classes_of_texts(parts[0], parts[1], options, ())


def _classes_of_texts(train: Labelled, test: Labelled, options: TextOptions, names: tuple[str, ...]) -> dict[str, Any]:
    """What a data function returns of labelled texts."""
    for part in (train, test):
        if not part.texts:
            raise UsageError(Problem("E402", f"{part.where} holds no text"))
    labels, names = _numbered(train, test, names)
    texts = [[each for text in part.texts for each in text] for part in (train, test)]
    encoding = encoding_of(options, *texts)
    facts = {"targets": "class", "extra": {"vocabulary": encoding.vocabulary}}
    return {
        "train": (rows(encoding, train.texts, options.length), torch.tensor(labels[0])),
        "test": (rows(encoding, test.texts, options.length), torch.tensor(labels[1])),
        "facts": facts | ({"class_names": names} if names else {}),
    }


def _numbered(train: Labelled, test: Labelled, names: tuple[str, ...]) -> tuple[list[list[int]], tuple[str, ...]]:
    """Labels as numbers of classes, and the classes' names where labels are names or they are known.

    Raises UsageError E402 for a label that is none.
    """
    both = (train, test)
    if all(isinstance(label, str) for part in both for label in part.labels):
        names = tuple(sorted(set(train.labels)))
        numbers = {name: number for number, name in enumerate(names)}
        for part in both:
            if unknown := [label for label in part.labels if label not in numbers]:
                message = f"{part.where}: no class is called '{unknown[0]}'; there are {', '.join(names[:20])}"
                raise UsageError(Problem("E402", message, hint=nearest(unknown[0], names)))
        return [[numbers[label] for label in part.labels] for part in both], names
    for part in both:
        for number, label in enumerate(part.labels, 1):
            if isinstance(label, bool) or not isinstance(label, int) or label < 0:
                message = f"{part.where}: the label of text {number:,} is {label!r}; expected whole numbers from 0"
                hint = "-1 stands for no label in GLUE's test parts: use its dev part" if label == -1 else "or names"
                raise UsageError(Problem("E402", message, hint=hint))
            if names and label >= len(names):
                message = f"{part.where}: the label of text {number:,} is {label}, and there are {len(names)} classes"
                raise UsageError(Problem("E402", message, hint=", ".join(names)))
    return [list(part.labels) for part in both], names


# ── a running text ────────────────────────────────────────────────────────────────────────────────────────────────────


def _running(folder: Path, options: TextOptions) -> dict[str, Any]:
    """What a data function returns of one text."""
    train, test = _both_parts(folder)
    encoding = encoding_of(options, [train], [test])
    found: dict[str, Any] = {}
    for part, text in (("train", train), ("test", test)):
        try:
            found[part] = stream(encoding.encode([text])[0], options.length)
        except ValueError as error:
            message = f"the {part} part of {folder} has {error}"
            raise UsageError(Problem("E402", message, hint="a shorter length")) from None
    known = {"vocabulary": encoding.vocabulary}
    return found | {"facts": {"targets": "tokens", "classes": encoding.vocabulary, "extra": known}}


def _both_parts(folder: Path) -> tuple[str, str]:
    files = [_part(folder, names, ".txt") for names in (TRAIN_NAMES, TEST_NAMES)]
    if files[0] is not None and files[1] is not None:
        return _read(files[0]), _read(files[1])
    every = [path for path in list_folder(folder, ".txt") if os.path.isfile(path)]
    if len(every) != 1:
        message = f"{folder} has {len(every)} files of text, and no train.txt beside a test.txt"
        raise UsageError(Problem("E402", message, hint="one .txt, whose last tenth is for testing; or both"))
    text = _read(every[0])
    cut = len(text) - len(text) // HELD_OUT
    return text[:cut], text[cut:]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Problem("E402", f"{file} cannot be read: {error}", hint="text in UTF-8")) from None
