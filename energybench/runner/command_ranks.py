"""How many ranks a command starts, as far as its words say: launchers of distributed trainings and their options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "torchrun": ("--nproc_per_node", "--nproc-per-node"),
    "torch.distributed.run": ("--nproc_per_node", "--nproc-per-node"),
    "torch.distributed.launch": ("--nproc_per_node", "--nproc-per-node"),
    "accelerate": ("--num_processes", "--num-processes"),
    "deepspeed": ("--num_gpus", "--num-gpus"),
    "mpirun": ("-n", "-np", "--np", "-c"),
    "mpiexec": ("-n", "-np", "--np"),
    "horovodrun": ("-np", "--num-proc"),
    "srun": ("-n", "--ntasks"),
}


def ranks_of(words: Sequence[str]) -> int | None:
    """The number of processes that train together; None where no launcher is named, or it decides itself."""
    words = [part for word in words for part in (word.split() if " " in word else [word])]
    launcher = next((name for word in words if (name := Path(word).name) in _OPTIONS), None)
    if launcher is None:
        return None
    options = _OPTIONS[launcher]
    given = [value for option, value in pairwise(words) if option in options]
    given += [
        value for option, is_set, value in (word.partition("=") for word in words) if is_set and option in options
    ]
    number = next((value for value in given if re.fullmatch(r"[1-9]\d{0,5}", value)), None)
    return None if number is None else int(number)
