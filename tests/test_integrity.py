"""What measures and judges is not called replaced because an honest method trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from command_line import PATIENCE_S

EVERY_METHOD = """
import energybench.cli.preload
from support import digits, make_run
from energybench.train import discovery
from energybench.trial.integrity import Picture
def run(*methods):
    return make_run(methods, data=digits(32))
plain = run()
for name, source in discovery.sources().items():
    picture = Picture(plain.task, plain.recipe)  # in a trial, before any method is loaded
    kind = discovery.load(source)
    try:
        trained = run(discovery.build(kind, name, dict(kind.example)))
        trained.train()
    except Exception as error:
        print(name, "was not trained:", error)
    print(name, *picture.replaced())
"""


def test_no_shipped_method_is_said_to_have_replaced_what_measures() -> None:
    """In an interpreter of its own: torch changes a kind of optimizer once, when the first of it is made."""
    done = subprocess.run(
        [sys.executable, "-c", EVERY_METHOD],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        cwd=Path(__file__).parents[1],
        check=True,
    )
    told = done.stdout.splitlines()
    assert [line for line in told if " " in line] == []
    assert {"ultimate", "scotti", "gradsamp", "importance"} <= set(told)
