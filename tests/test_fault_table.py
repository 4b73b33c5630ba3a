"""Every row of the table of faults has a test, every test a row, and the page is what the table prints."""

from __future__ import annotations

import re
from pathlib import Path

import sensor_faults
from faults import FAULTS, SECTIONS, page

ROOT = Path(__file__).resolve().parents[1]


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    held = re.findall(r'^@fault\("([^"]+)"\)\n', text, re.MULTILINE)
    assert sorted(set(held)) == sorted(FAULTS)


def test_no_row_stands_twice() -> None:
    rows = [row for rows in SECTIONS.values() for row in rows]
    assert len(rows) == len(FAULTS)


def test_the_page_is_what_the_table_prints() -> None:
    assert (ROOT / "docs" / "what-happens-when.md").read_text(encoding="utf-8") == page()


def test_every_error_code_of_the_table_is_raised_by_the_code_of_energybench() -> None:
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "energybench").rglob("*.py"))
    codes = {code for row in FAULTS.values() for code in re.findall(r"E\d{3}", row.ends)}
    assert codes
    assert {code for code in codes if f'"{code}"' not in source} == set()


def test_at_least_forty_sensor_faults_are_injected_and_the_page_is_what_they_print() -> None:
    faults = sensor_faults.every_fault()
    assert len(faults) >= 40
    assert len({(fault.sensor, fault.name) for fault in faults}) == len(faults)
    assert (ROOT / "docs" / "sensor-faults.md").read_text(encoding="utf-8") == sensor_faults.page()
