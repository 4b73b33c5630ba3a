"""Power traces that were edited, cut or made up: refused, or read as an independent reader reads them."""

from __future__ import annotations

import csv
import gzip
import io
import math
import random
from pathlib import Path
from typing import Any

import pytest
from fuzzing import TEXTS, hunt
from hypothesis import strategies as st

from energybench.meter.trace import HEADER, Sample, integrate, pack, read


def example() -> str:
    """Two cards, a reading every 0.1 s, one that failed."""
    draw = random.Random(1)
    samples = [
        Sample(i * 50_000_000, f"GPU-{i % 2}", None if i == 7 else draw.uniform(50, 300), 40.0 + i, 1500.0)
        for i in range(24)
    ]
    return gzip.decompress(pack(samples, 0)).decode()


TEXT = example()
FIELDS = ("", "0", "-1", "1e400", "nan", "inf", "1_000", " 1", "٣", "0x10", "1e9", "9" * 400, "1,5", '"1"', *TEXTS)
edits = st.lists(
    st.tuples(
        st.sampled_from(["field", "line", "double", "drop", "swap", "bytes"]),
        st.integers(0, 2**16),
        st.integers(0, 5),
        st.sampled_from(FIELDS),
        st.binary(max_size=4),
    ),
    max_size=3,
)


def edited(text: str, how: str, at: int, field: int, new: str) -> str:
    lines = text.split("\n")
    row = at % len(lines)
    if how == "field":
        cells = lines[row].split(",")
        cells[field % len(cells)] = new
        lines[row] = ",".join(cells)
    elif how == "line":
        lines[row] = new
    elif how == "double":
        lines.insert(row, lines[row])
    elif how == "drop":
        del lines[row]
    elif how == "swap":
        other = (row + field) % len(lines)
        lines[row], lines[other] = lines[other], lines[row]
    return "\n".join(lines)


def independent(content: bytes) -> list[tuple[int, str, list[float | None]]]:
    rows = csv.DictReader(io.StringIO(gzip.decompress(content).decode(), newline=""))
    return [
        (round(float(r["time_s"]) * 1e9), r["device"], [float(r[k]) if r[k] else None for k in HEADER[2:]])
        for r in rows
    ]


def a_trace(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(content)
    try:
        samples = read(path)
    except ValueError:
        return
    found = [(s.time_ns, s.device, [s.power_w, s.temperature_c, s.sm_clock_mhz]) for s in samples]
    assert found == independent(content)
    powers = [(s.time_ns / 1e9, s.power_w) for s in samples if s.power_w is not None]
    assert all(math.isfinite(watts) and watts >= 0 for _, watts in powers)
    if powers:
        times, watts = [t for t, _ in powers], [w for _, w in powers]
        joules, error = integrate(times, watts, times[0], times[-1])
        span = times[-1] - times[0]
        assert span * min(watts) - 1e-6 <= joules <= span * max(watts) * (1 + 1e-9) + 1e-6
        assert error >= 0
        assert math.isfinite(error)


@pytest.mark.soak
def test_a_trace_is_refused_or_read_as_it_is_written(tmp_path: Path) -> None:
    def plain(drawn: Any) -> tuple[bytes]:
        changes, packed, cut = drawn
        text = TEXT
        for how, at, field, new, _ in changes:
            text = edited(text, how, at, field, new)
        content = gzip.compress(text.encode("utf-8", "replace"), mtime=0)
        for _, at, length, _, new in changes if packed else []:
            content = content[: at % len(content)] + new + content[at % len(content) + length :]
        return (content[: int(cut * len(content))],)

    drawn = st.tuples(edits, st.booleans(), st.just(1.0) | st.floats(0, 1))
    hunt("traces", drawn, a_trace, plain, tmp_path=tmp_path)
