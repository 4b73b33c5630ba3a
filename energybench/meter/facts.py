"""What is asked of meters beside their figures: what they sampled, and which cards they watch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energybench.common.sealed_files import write_bytes
from energybench.meter import Meter
from energybench.meter.trace import pack
from energybench.meter.window import Window


def keep_trace(window: Window, path: Path | None) -> str | None:
    """Write what the meters sampled beside the record; its place in the run's folder, or None where nothing was."""
    samples = window.samples()
    if path is None or not samples:
        return None
    write_bytes(path, pack(samples, window.start_ns))
    return f"{path.parent.name}/{path.name}"


def gpu_facts(meters: Sequence[Meter]) -> dict[str, Any]:
    """UUID → driver, power limit, ECC: what two trials must share to be compared."""
    return {uuid: facts for meter in meters for uuid, facts in getattr(meter, "facts", dict)().items()}
