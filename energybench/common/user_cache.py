"""The user's cache, $XDG_CACHE_HOME/energybench or ~/.cache/energybench: what may be removed at any time."""

from __future__ import annotations

import os
from pathlib import Path


def place(*names: str) -> Path:
    """A file or a folder in it, whether or not it is there."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache, "energybench", *names)
