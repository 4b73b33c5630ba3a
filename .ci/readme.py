"""Run the command blocks of documents, each in the checkout's root.

The blocks of a document run one after the other, and two documents run beside each other, since most blocks wait for a
single training. README.md and those that say `<!-- shares reports/ -->` write or read that folder: they are run in the
order given.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = re.compile(
    r"(?:<!-- (?P<kind>not run|file|output)(?:: (?P<what>[^\n]*?))? -->\s*\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
LIMIT_S = 600


def main(documents: list[str]) -> int:
    root = Path(__file__).resolve().parent.parent
    texts = {document: (root / document).read_text(encoding="utf-8") for document in documents}
    with ThreadPoolExecutor(2) as lanes:
        found = [each.result() for each in [lanes.submit(run_all, documents, root) for documents in in_turns(texts)]]
    ran, failed = (sum(each) for each in zip(*found, strict=True))
    print(f"{ran - failed} blocks ran, {failed} failed")
    return 1 if failed or not ran else 0


def in_turns(texts: dict[str, str]) -> list[dict[str, str]]:
    """Documents that are run one after the other, and those that may run beside them."""
    mark = "<!-- shares reports/ -->"
    sharing = {name: text for name, text in texts.items() if name == "README.md" or mark in text}
    return [sharing, {name: text for name, text in texts.items() if name not in sharing}]


def run_all(texts: dict[str, str], root: Path) -> tuple[int, int]:
    """(blocks that ran, of those that failed)"""
    found = [(0, 0)]
    for document, text in texts.items():
        if "<!-- in a folder of its own -->" in text:
            with tempfile.TemporaryDirectory() as folder:
                found.append(run(document, text, root, Path(folder)))
        else:
            found.append(run(document, text, root, root))
    return sum(ran for ran, _ in found), sum(failed for _, failed in found)


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
                told = f"{commands}\nexit {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
                print(f"{document}:\n{told}", flush=True)
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
