"""What a trial's record says of its machine: enough to tell hosts apart and to know those of one kind."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from energybench.common import machine

DIMM, BOARD = 17, 2


def structure(kind: int, body: bytes, strings: bytes = b"a name\0\0") -> bytes:
    """One structure of a firmware's table: its type, its length, a handle, its fields, its strings."""
    return bytes([kind, 4 + len(body)]) + b"\1\0" + body + strings


def dimm(size: int, rated: int, configured: int | None) -> bytes:
    """A memory device of SMBIOS: size at 0x0C, speed at 0x15, configured speed at 0x20; None: of before SMBIOS 2.7."""
    body = bytearray(0x22 - 4 if configured is not None else 0x17 - 4)
    struct.pack_into("<H", body, 0x0C - 4, size)
    struct.pack_into("<H", body, 0x15 - 4, rated)
    if configured is not None:
        struct.pack_into("<H", body, 0x20 - 4, configured)
    return structure(DIMM, bytes(body))


END = structure(127, b"", b"\0\0")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (dimm(8192, 3200, 2933) + dimm(8192, 3200, 2933) + END, 2933),
        (dimm(8192, 3200, 0) + END, 3200),  # what it is configured to is not known
        (dimm(8192, 2133, None) + END, 2133),
        (structure(BOARD, b"\1\2\3") + dimm(8192, 4800, 4800) + dimm(0, 0, 0) + END, 4800),  # an empty slot
        (dimm(8192, 3200, 2933) + dimm(8192, 3200, 2666) + END, None),  # modules that differ
        (dimm(8192, 0, 0) + END, None),
        (dimm(8192, 0xFFFF, 0xFFFF) + END, None),
        (END, None),
        (b"", None),
        (dimm(8192, 3200, 2933)[:20], None),  # cut short
        (bytes([17, 0, 0, 0, 0, 0]), None),  # a length that leads nowhere
    ],
)
def test_the_speed_of_the_memory_is_read_where_all_modules_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: bytes, expected: int | None
) -> None:
    file = tmp_path / "DMI"
    file.write_bytes(table)
    monkeypatch.setattr(machine, "MEMORY_TABLE", file)
    assert machine.memory_mt_s() == expected


def test_where_the_table_cannot_be_read_the_speed_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MEMORY_TABLE", tmp_path / "none")
    assert machine.memory_mt_s() is None


def test_a_host_keeps_its_mark_over_a_restart_and_its_containers_share_its_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def marks(machine_id: str, boot: str | None) -> tuple[str, str | None]:
        (tmp_path / "machine-id").write_text(machine_id + "\n", encoding="ascii")
        monkeypatch.setattr(machine, "MACHINE_ID", tmp_path / "machine-id")
        monkeypatch.setattr(machine, "BOOT_ID", tmp_path / "boot")
        (tmp_path / "boot").unlink(missing_ok=True)
        if boot is not None:
            (tmp_path / "boot").write_text(boot + "\n", encoding="ascii")
        facts = machine.of_trial()
        return facts["host"], facts["boot"]

    first, again, container, other = marks("m1", "b1"), marks("m1", "b2"), marks("m2", "b1"), marks("m3", "b3")
    assert first[0] == again[0] != container[0]
    assert first[1] == container[1] != again[1]
    assert {*other} & {*first, *again, *container} == set()
    assert marks("m1", None) == (first[0], None)
    assert all(len(mark or "") == machine.MARK for mark in first)


def test_no_mark_can_be_read_back() -> None:
    facts = machine.of_trial()
    assert os.uname().nodename not in str(facts["host"])
