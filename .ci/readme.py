"""Run the command blocks of documents, one after the other, each in the checkout's root.

A block is a fence of ```sh. What stands before a fence, in a comment, says more:

    <!-- not run: needs a GPU -->               it cannot run here, and why
    <!-- file: methods/hardest.py -->           not a command: the fence, of any language, is written to that file
    <!-- output -->                             a fence of ```text: lines of what the command before it printed, in
                                                order; … stands for anything, and so does every run of blanks

A document with `<!-- in a folder of its own -->` is run in an empty folder that lasts as long as the document.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(
    r"(?:<!-- (?P<kind>not run|file|output)(?:: (?P<what>[^\n]*?))? -->\s*\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
LIMIT_S = 600


def main(documents: list[str]) -> int:
    root = Path(__file__).resolve().parent.parent
    ran = failed = 0
    for document in documents:
        text = (root / document).read_text(encoding="utf-8")
        if "<!-- in a folder of its own -->" in text:
            with tempfile.TemporaryDirectory() as folder:
                found = run(document, text, root, Path(folder))
        else:
            found = run(document, text, root, root)
        ran, failed = ran + found[0], failed + found[1]
    print(f"{ran - failed} blocks ran, {failed} failed")
    return 1 if failed or not ran else 0


def run(document: str, text: str, root: Path, folder: Path) -> tuple[int, int]:
    """(blocks that ran, of those that failed)"""
    environment = os.environ | {"PATH": f"{root / '.venv' / 'bin'}:{os.environ['PATH']}", "COLUMNS": "100"}
    ran = failed = 0
    printed = ""
    for block in BLOCK.finditer(text):
        if block["kind"] == "file":
            file = folder / block["what"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block["text"], encoding="utf-8")
        elif block["kind"] == "output":
            if missing := absent(block["text"], printed):
                failed += 1
                print(f"{document}: FAILED: the command before did not print: {missing}\n{printed[-3000:]}")
        elif block["language"] == "sh":
            commands = block["text"].strip()
            first = commands.splitlines()[0]
            if block["kind"] == "not run":
                print(f"{document}: not run ({block['what']}): {first}", flush=True)
                continue
            started = time.monotonic()
            bash = ["bash", "-euo", "pipefail", "-c", commands]
            result = subprocess.run(
                bash,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                stdin=subprocess.DEVNULL,
            )
            ran += 1
            printed = f"{result.stdout}\n{result.stderr}"
            print(
                f"{document}: {'ok' if not result.returncode else 'FAILED'} "
                f"in {time.monotonic() - started:.1f} s: {first}",
                flush=True,
            )
            if result.returncode:
                failed += 1
                print(f"{commands}\nexit {result.returncode}", flush=True)
                print(f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}", flush=True)
    return ran, failed


def absent(expected: str, printed: str) -> str:
    """The first expected line that was not printed after those before it; empty if all were."""
    squeezed = re.sub(r"\s+", " ", printed)
    place = 0
    for line in expected.splitlines():
        words = re.sub(r"\s+", " ", line).strip()
        if not words:
            continue
        pattern = ".*?".join(re.escape(part) for part in words.split("…"))
        found = re.compile(pattern).search(squeezed, place)
        if found is None:
            return line
        place = found.end()
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
