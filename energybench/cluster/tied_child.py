"""A program that ends with the process that asked for it: the kernel sends it SIGTERM when that dies, by force too.

    python -m energybench.cluster.tied_child PARENT WORD...

Ray ends a worker by SIGKILL when a task is cancelled by force, or when its memory runs short; what the worker had
started would go on beside the retry. The tie outlives `exec`, so that this is the program itself from then on.
"""

from __future__ import annotations

import os
import signal
import sys

from energybench.common.processes import die_with, restore_child_signals


def main(words: list[str]) -> None:
    parent, *program = words
    restore_child_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's reaches everything; the driver decides
    die_with(int(parent), signal.SIGTERM)
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
