"""Which accelerators a machine has, from the files that the kernel shows of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from fakes.hwmon import Machine
from hypothesis import given
from hypothesis import strategies as st

from energybench.meter.accelerators import Accelerator, accelerators

AMD, NVIDIA, INTEL = 0x1002, 0x10DE, 0x8086


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def names(machine: Machine) -> list[str]:
    return [each.name for each in accelerators(machine.root)]


def one(machine: Machine) -> Accelerator:
    (found,) = accelerators(machine.root)
    return found


def test_a_machine_with_nothing_has_none(machine: Machine, tmp_path: Path) -> None:
    assert accelerators(machine.root) == []
    assert accelerators(tmp_path / "no such folder") == []


def test_the_machine_that_tests_see_has_none() -> None:
    assert accelerators() == []


def test_a_card_that_is_listed_in_five_places_is_one(machine: Machine) -> None:
    machine.amdgpu("0000:03:00.0", 100.0, unique_id=0xF00D)
    found = one(machine)
    assert found.name == "AMD GPU 0000:03:00.0 (amdgpu)"
    assert (found.kind, found.integrated, found.device) == ("gpu", False, "0000:03:00.0")
    assert found.unique_id == "000000000000f00d"


@pytest.mark.parametrize("place", ["drm", "kfd", "bus"])
def test_a_container_may_show_only_one_of_the_places(machine: Machine, place: str, tmp_path: Path) -> None:
    machine.amdgpu("0000:c3:00.0", 100.0, device=0x744C)
    keep = {"drm": "class/drm", "kfd": "class/kfd", "bus": "bus/pci/devices"}[place]
    for other in ("class/drm", "class/kfd", "bus/pci/devices"):
        if other != keep:
            (machine.root / other).rename(tmp_path / other.replace("/", "-"))
    assert names(machine) == ["AMD GPU 0000:c3:00.0 (amdgpu)"]


def test_cards_stand_in_the_order_of_the_bus(machine: Machine) -> None:
    for address in ("0000:c3:00.0", "0000:03:00.0", "0001:03:00.0"):
        machine.amdgpu(address, 100.0)
    assert [each.address for each in accelerators(machine.root)] == ["0000:03:00.0", "0000:c3:00.0", "0001:03:00.0"]


@pytest.mark.parametrize(
    ("vendor", "driver"),
    [
        (0x1A03, "ast"),
        (0x102B, "mgag200"),
        (0x1234, "bochs-drm"),
        (0x1AF4, "virtio_gpu"),
        (0x15AD, "vmwgfx"),
        (0x1013, "cirrus-qemu"),
        (0x1B36, "qxl"),
        (0x1A03, ""),
    ],
)
def test_a_display_controller_is_no_accelerator(machine: Machine, vendor: int, driver: str) -> None:
    machine.drm(machine.pci("0000:02:00.0", vendor, 0x2000, driver), render=False)
    assert accelerators(machine.root) == []


@pytest.mark.parametrize("driver", ["simple-framebuffer", "vkms", "hyperv_drm", "udl"])
def test_nor_is_a_display_that_lies_on_no_bus(machine: Machine, driver: str) -> None:
    device = machine._platform("display.0")
    machine._drive(device, f"bus/platform/drivers/{driver}")
    machine.drm(device, render=False)
    assert accelerators(machine.root) == []


@pytest.mark.parametrize(("driver", "said"), [("nvidia", "nvidia"), ("nouveau", "nouveau"), ("", "no driver")])
def test_a_card_of_nvidias_is_there_whatever_drives_it(machine: Machine, driver: str, said: str) -> None:
    machine.pci("0000:65:00.0", NVIDIA, 0x2330, driver, 0x030200)
    machine.pci("0000:65:00.1", NVIDIA, 0x22BA, "snd_hda_intel", 0x040300)  # its sound
    machine.pci("0000:66:00.0", NVIDIA, 0x22A3, "", 0x068000)  # a bridge between cards
    assert names(machine) == [f"NVIDIA GPU 0000:65:00.0 ({said})"]


def test_a_virtual_function_is_no_second_card(machine: Machine) -> None:
    card = machine.pci("0000:65:00.0", NVIDIA, 0x2330, "nvidia", 0x030200)
    function = machine.pci("0000:65:00.4", NVIDIA, 0x2330, "", 0x030200)
    machine._link(function / "physfn", card)
    assert names(machine) == ["NVIDIA GPU 0000:65:00.0 (nvidia)"]


def test_what_is_part_of_the_processor_is_integrated(machine: Machine) -> None:
    machine.drm(machine.pci("0000:00:02.0", INTEL, 0x7D55, "xe"))
    machine.accel(machine.pci("0000:00:0b.0", INTEL, 0x7D1D, "intel_vpu", 0x120000))
    machine.drm(machine.pci("0000:03:00.0", INTEL, 0x56A0, "xe"))
    assert {each.name: each.integrated for each in accelerators(machine.root)} == {
        "Intel GPU 0000:00:02.0 (xe)": True,
        "Intel accelerator 0000:00:0b.0 (intel_vpu)": True,
        "Intel GPU 0000:03:00.0 (xe)": False,
    }


def test_an_amd_processors_own_graphics_are_integrated_by_either_sign(machine: Machine) -> None:
    card = machine.pci("0000:c4:00.0", AMD, 0x15BF, "amdgpu")
    machine.hwmon("amdgpu", card, in1_label="vddnb", power1_input="15000000")
    machine.drm(card)
    machine.kfd("0000:c5:00.0", simd_count=8, cpu_cores=16)
    machine.kfd("0000:c6:00.0", simd_count=0, cpu_cores=16)  # the processor
    assert [(each.address, each.integrated) for each in accelerators(machine.root)] == [
        ("0000:c4:00.0", True),
        ("0000:c5:00.0", True),
    ]


@pytest.mark.parametrize(
    ("vendor", "driver", "kind", "name"),
    [
        (0x1DA3, "habanalabs", "accel", "Habana accelerator 0000:19:00.0 (habanalabs)"),
        (0x1DA3, "habanalabs", "habanalabs", "Habana accelerator 0000:19:00.0 (habanalabs)"),
        (0x17CB, "qaic", "accel", "Qualcomm accelerator 0000:19:00.0 (qaic)"),
        (0x9999, "novel", "accel", "vendor 0x9999 accelerator 0000:19:00.0 (novel)"),
    ],
)
def test_a_training_card_of_another_kind_is_one(
    machine: Machine, vendor: int, driver: str, kind: str, name: str
) -> None:
    machine.accel(machine.pci("0000:19:00.0", vendor, 1, driver, 0x120000), kind)
    assert names(machine) == [name]
    assert not one(machine).integrated


def test_a_training_card_without_a_driver_is_known_by_its_class(machine: Machine) -> None:
    machine.pci("0000:19:00.0", 0x1DA3, 0x1020, "", 0x120000)
    assert names(machine) == ["Habana accelerator 0000:19:00.0 (no driver)"]


@pytest.mark.parametrize("by", ["family", "compatible"])
def test_a_tegra_has_a_gpu_on_no_bus(machine: Machine, by: str) -> None:
    if by == "compatible":
        machine.tegra("NVIDIA Jetson AGX Orin")
    else:
        (machine.root / "devices/soc0").mkdir()
        (machine.root / "devices/soc0/family").write_text("Tegra\n")
    found = one(machine)
    assert (found.vendor, found.kind, found.address, found.integrated) == ("NVIDIA", "gpu", "", False)
    assert found.device


def test_a_board_of_another_family_has_none(machine: Machine) -> None:
    tree = machine.root / "firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert accelerators(machine.root) == []


FILES = ("vendor", "device", "class", "uevent", "driver", "unique_id")
numbers = itertools.count()


@given(st.dictionaries(st.sampled_from(FILES), st.binary(max_size=40), max_size=6))
def test_whatever_the_files_hold_nothing_is_raised(tmp_path: Path, contents: dict[str, bytes]) -> None:
    machine = Machine(tmp_path / str(next(numbers)))
    card = machine.pci("0000:03:00.0", AMD, 0x744C)
    machine.drm(card)
    machine.kfd("0000:03:00.0")
    for name, content in contents.items():
        (card / name).write_bytes(content)
    for properties in machine.root.glob("class/kfd/kfd/topology/nodes/*/properties"):
        properties.write_bytes(b"\n".join(contents.values()))
    assert all(each.device and each.name for each in accelerators(machine.root))


def test_loops_folders_and_dangling_links_raise_nothing(machine: Machine) -> None:
    drm = machine.root / "class/drm"
    for name in ("card0", "card1", "card2"):
        (drm / name).mkdir(parents=True)
    (drm / "card0/device").symlink_to("device")
    (drm / "card1/device").symlink_to("/nonexistent/0000:03:00.0")
    (drm / "card2/device/vendor").mkdir(parents=True)
    (machine.root / "class/accel").write_text("a file")
    assert isinstance(accelerators(machine.root), list)
