"""Limits on files that others wrote: size, depth, number of entries. Beyond one there is an error with a code."""

from __future__ import annotations

import re

SUITE_B = 250_000
SUITE_VALUES = 10_000  # keys and values of a suite's file
SUITE_ENTRIES = 200  # [[workload]], [[method]] or [[skip]] tables
SKIPPED_PAIRS = 2_000_000  # skips × cells that they are held against
MOST_PROBLEMS = 100  # that are reported of one file
METHOD_B = 1_000_000  # of a method's file that is listed
RECORD_B = 20_000_000
TRACE_B = 200_000_000  # unpacked
DEPTH = 32  # of tables in tables
MOST_EPOCHS = 20_000_000  # of all trials of a suite: methods decide of each, before the run, whether it trains
MOST_LAYERS = 2_500  # of a model: its check takes some 10 ms for each
MOST_PARAMETERS = 2 * MOST_LAYERS  # tensors of weights and biases of a model, which is when its layers are not listed
NAME = 1_000  # characters of a workload's, a method's, a record's name
MOST_TRIALS = 1_000_000  # blocks × cells of a run that is reported: ten times what a suite may ask for


def too_deep(text: str) -> bool:
    """Whether a dotted key may have more than DEPTH parts, which TOML's readers take quadratic time to read."""
    return any(part.count(".") > DEPTH for part in re.split(r"[^\w\-\"'. \t]+", text))
