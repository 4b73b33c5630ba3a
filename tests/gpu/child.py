"""A process of its own for each part: `python -m gpu.child NAME FOLDER LIMIT_S real|fake short|long`."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from pathlib import Path

from gpu.card import Card
from gpu.parts import PARTS
from gpu.results import Results


def main(name: str, folder: str, limit_s: str, kind: str, length: str) -> int:
    card = Card(fake=kind == "fake", long=length == "long")
    signal.alarm(int(float(limit_s)) + 30)  # whoever started this may have been killed, and its limit with it
    part = next(part for part in PARTS if part.name == name)
    results = Results(Path(folder) / part.file, name, part.title, float(limit_s), fake=card.fake)
    try:
        results.machine(**card.facts())
        import_module(f"gpu.{part.module}").measure(card, results)
    except Exception as error:  # what was found before stands, and says how it ended
        results.end("failed", f"{type(error).__name__}: {error}")
        raise
    results.end("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
