"""Seeds that do not depend on the process, the order of calls or each other. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def stable_seed(*key: Any) -> int:
    """A 63-bit seed from a key of strings and integers; unlike `hash()` the same in every process."""
    digest = hashlib.blake2b(json.dumps(key, separators=(",", ":")).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def digest(value: Any) -> str:
    """A checksum of anything that JSON can hold: BLAKE2b, 96 bits, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
