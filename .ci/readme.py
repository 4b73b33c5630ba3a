"""Run the command blocks of documents, one after the other, each in the checkout's root.

A block is a fence of ```sh. One that cannot run here is preceded by a comment that says why:

    <!-- not run: needs a GPU -->
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]*?) -->\s*\n)?```sh\n(?P<commands>.*?)```", re.DOTALL)
LIMIT_S = 600


def main(documents: list[str]) -> int:
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PATH": f"{root / '.venv' / 'bin'}:{os.environ['PATH']}"}
    ran = failed = 0
    for document in documents:
        for block in BLOCK.finditer((root / document).read_text(encoding="utf-8")):
            commands = block["commands"].strip()
            first = commands.splitlines()[0]
            if block["why"]:
                print(f"{document}: not run ({block['why']}): {first}", flush=True)
                continue
            started = time.monotonic()
            bash = ["bash", "-euo", "pipefail", "-c", commands]
            result = subprocess.run(bash, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT_S,
                                    stdin=subprocess.DEVNULL)  # fmt: skip
            ran += 1
            print(f"{document}: {'ok' if not result.returncode else 'FAILED'} "
                  f"in {time.monotonic() - started:.1f} s: {first}", flush=True)  # fmt: skip
            if result.returncode:
                failed += 1
                print(f"{commands}\nexit {result.returncode}", flush=True)
                print(f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}", flush=True)
    print(f"{ran - failed} blocks ran, {failed} failed")
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
