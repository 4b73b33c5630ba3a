"""A remedy is told only where it can help: by a fake /proc/cpuinfo, a fake uname and both ways of reading."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes.powercap import Powercap, without_energy_pkg
from test_perf_events import Described

from energybench.meter import rapl
from energybench.meter.rapl import open_rapl, survey
from energybench.meter.rapl_remedies import Processor, this_processor
from energybench.meter.unavailable import Unavailable

INTEL = Processor(kernel=(6, 1), vendor="GenuineIntel", family=6, virtual=False)
AMD = Processor(kernel=(6, 1), vendor="AuthenticAMD", family=25, virtual=False)
CPUINFO = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model name\t: A processor
flags\t\t: fpu vme {flags}

processor\t: 1
vendor_id\t: another
"""


def uname(machine: str = "x86_64", release: str = "6.1.0-13-amd64", system: str = "Linux") -> os.uname_result:
    return os.uname_result((system, "node", release, "#1 SMP", machine))


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO.format(vendor="AuthenticAMD", family=25, flags="hypervisor"), encoding="ascii")
    return path


def test_the_facts_of_a_processor_are_those_of_its_first_core(cpuinfo: Path) -> None:
    assert this_processor(cpuinfo, uname) == Processor("Linux", "x86_64", (6, 1), "AuthenticAMD", 25, True)
    cpuinfo.write_text(CPUINFO.format(vendor="GenuineIntel", family=6, flags="hypervisors"), encoding="ascii")
    assert this_processor(cpuinfo, uname) == Processor("Linux", "x86_64", (6, 1), "GenuineIntel", 6, False)


def test_facts_that_are_not_told_are_unknown(tmp_path: Path) -> None:
    arm = this_processor(tmp_path / "none", partial(uname, "aarch64", "unknown"))
    assert arm == Processor("Linux", "aarch64", None, "", None, None)


def remedies(tmp_path: Path, processor: Processor) -> dict[str, str]:
    """Of a machine that lists nothing, way by way; and that of opening it is one of them."""
    rows = survey(tmp_path / "powercap", system=tmp_path, processor=lambda: processor)
    with pytest.raises(Unavailable) as caught:
        open_rapl(root=tmp_path / "powercap", system=tmp_path, processor=lambda: processor)
    assert caught.value.kind == "absent"
    assert caught.value.remedy in {row["remedy"] for row in rows}
    assert [row["kind"] for row in rows] == ["absent", "absent"]
    return {row["way"]: row["remedy"] for row in rows}


NO_RAPL = "no command mends it"


@pytest.mark.parametrize(
    ("processor", "powercap", "perf_events"),
    [
        (INTEL, "sudo modprobe intel_rapl_msr", "sudo modprobe rapl"),
        (AMD, "sudo modprobe intel_rapl_msr", "sudo modprobe rapl"),
        (
            Processor(vendor="GenuineIntel", kernel=(4, 19), virtual=False),
            "sudo modprobe intel_rapl",
            "sudo modprobe intel_rapl_perf",
        ),
        (
            Processor(vendor="GenuineIntel", kernel=(3, 10), virtual=False),
            "update the kernel: Linux reads RAPL by powercap since 3.13, and this is 3.10",
            "update the kernel: Linux reads RAPL by perf_events since 4.7, and this is 3.10",
        ),
        (
            Processor(vendor="AuthenticAMD", family=23, kernel=(5, 4), virtual=False),
            "update the kernel: Linux reads AMD's RAPL by powercap since 5.11, and this is 5.4",
            "update the kernel: Linux reads AMD's RAPL by perf_events since 5.8, and this is 5.4",
        ),
        (
            Processor(vendor="HygonGenuine", family=24, kernel=(5, 10), virtual=False),
            "update the kernel: Linux reads AMD's RAPL by powercap since 5.11, and this is 5.10",
            "sudo modprobe rapl",
        ),
        # What is not known is not held against the machine; then the doubt is told.
        (
            Processor(),
            "sudo modprobe intel_rapl_msr  (a virtual machine has none: run on the machine itself)",
            "sudo modprobe rapl  (a virtual machine has none: run on the machine itself)",
        ),
    ],
)
def test_a_command_is_told_that_fits_processor_and_kernel(
    tmp_path: Path, processor: Processor, powercap: str, perf_events: str
) -> None:
    assert remedies(tmp_path, processor) == {"powercap": powercap, "perf_events": perf_events}


@pytest.mark.parametrize(
    ("processor", "because"),
    [
        (Processor(vendor="GenuineIntel", family=6, kernel=(6, 1), virtual=True), "a virtual machine is shown no RAPL"),
        (
            Processor(vendor="AuthenticAMD", family=25, kernel=(5, 4), virtual=True),
            "a virtual machine is shown no RAPL",
        ),
        (Processor(machine="aarch64", kernel=(6, 1)), "and this is Linux on aarch64"),
        (Processor(machine="riscv64", kernel=(6, 1)), "and this is Linux on riscv64"),
        (Processor(system="Darwin", kernel=(23, 1)), "and this is Darwin on x86_64"),
        (Processor(vendor="CentaurHauls", kernel=(6, 1), virtual=False), "Linux reads no RAPL of CentaurHauls"),
        (Processor(vendor="AuthenticAMD", family=21, kernel=(6, 1), virtual=False), "have RAPL from Zen on"),
    ],
)
def test_no_command_is_told_where_none_helps(tmp_path: Path, processor: Processor, because: str) -> None:
    for remedy in remedies(tmp_path, processor).values():
        assert remedy.startswith(NO_RAPL)
        assert because in remedy
        assert "modprobe" not in remedy


def test_a_module_that_is_loaded_is_not_to_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "module/intel_rapl_msr").mkdir(parents=True)
    found = remedies(tmp_path, INTEL)
    assert found["powercap"].startswith(f"{NO_RAPL}: intel_rapl_msr is loaded and has found no counter")
    assert found["perf_events"] == "sudo modprobe rapl"


# ── one way says what helps by the other ───────────────────────────────────────────────────────────────────────


def rows(machine: Powercap | None, folder: Path, processor: Processor, **more: Any) -> dict[str, dict[str, Any]]:
    root = machine.flat if machine else folder / "no powercap"
    options: dict[str, Any] = {"system": without_energy_pkg(folder), **more}
    if machine:
        options["time"] = machine.time
    return {row["way"]: row for row in survey(root, processor=lambda: processor, **options)}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Powercap:
    made = Powercap(tmp_path)
    monkeypatch.setattr(rapl, "read_text", made.read_text)
    return made


def test_unsupported_events_do_not_send_to_a_powercap_that_is_not_there(tmp_path: Path) -> None:
    virtual = Processor(vendor="GenuineIntel", kernel=(6, 1), virtual=True)
    perf = rows(None, tmp_path, virtual)["perf_events"]
    assert perf["kind"] == "unsupported"
    assert (
        perf["remedy"] == "no command mends it: the processor keeps no such count; use another machine or a wall meter"
    )


def test_unsupported_events_say_how_powercap_is_to_be_had(tmp_path: Path) -> None:
    perf = rows(None, tmp_path, INTEL)["perf_events"]
    assert perf["remedy"] == "read it by powercap: sudo modprobe intel_rapl_msr"


def test_unsupported_events_say_how_powercap_is_to_be_opened(tmp_path: Path, machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    machine.errors["intel-rapl:0"] = errno.EACCES
    found = rows(machine, tmp_path, INTEL)
    assert found["powercap"]["remedy"].startswith("sudo chmod a+r ")
    assert found["perf_events"]["remedy"] == f"read it by powercap: {found['powercap']['remedy']}"


def test_unsupported_events_beside_a_powercap_that_works_need_nothing(tmp_path: Path, machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    found = rows(machine, tmp_path, INTEL)
    assert found["powercap"]["usable"]
    assert found["perf_events"]["remedy"] == "nothing to do: it is read by powercap"


def test_a_powercap_that_stands_still_sends_to_events_that_may_be_opened(tmp_path: Path, machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0, still=True)
    events = Described(tmp_path / "events")
    events.errors[0x02] = errno.EACCES
    found = rows(machine, tmp_path, INTEL, system=events.system, opener=events.opener)
    assert found["powercap"]["kind"] == "unsupported"
    assert found["powercap"]["remedy"].startswith("read it by perf_events: sudo sysctl kernel.perf_event_paranoid=0")


def test_what_neither_way_counts_no_command_mends(tmp_path: Path, machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0, still=True)
    for row in rows(machine, tmp_path, INTEL).values():
        assert (row["kind"], row["remedy"].partition(":")[0]) == ("unsupported", NO_RAPL)
    with pytest.raises(Unavailable, match="no command mends it"):
        open_rapl(machine.time, machine.flat, system=machine.system / "none", processor=lambda: AMD_IN_A_VM)


AMD_IN_A_VM = Processor(vendor="AuthenticAMD", family=25, kernel=(6, 1), virtual=True)


def test_the_rows_of_a_survey_have_the_same_keys_whatever_they_say(tmp_path: Path, machine: Powercap) -> None:
    machine.add("intel-rapl:0", "package-0", 100.0)
    keys = {"way", "usable", "kind", "reason", "remedy", "domains", "left_out"}
    assert [set(row) for row in rows(machine, tmp_path, INTEL).values()] == [keys, keys]
