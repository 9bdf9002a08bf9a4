"""-bios: the reset vector, what firmware learns of a kernel, and our own image from its sources to a guest's output."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shadowvm.addr import Gpa
from shadowvm.boot.firmware import load_firmware
from shadowvm.boot.image import BootOptions, ResetStart
from shadowvm.boot.memmap import memory_map
from shadowvm.errors import ConfigError

from .images import MIB, PT_NOTE, Load, elf64, multiboot_elf, qemu

ROOT = Path(__file__).resolve().parents[2]
FIRMWARE = ROOT / "firmware/shadowvm-fw.bin"
HELLO = ROOT / "guests/hello/hello.elf"
STEPS = ["real mode", "A20", "protected mode", "page tables", "EFER.LME", "compatibility mode", "long mode"]

DUMP = bytes.fromhex(
    "4889de b938000000 e823000000"  # send 56 bytes of the start info at RBX
    "488b7328 6b4b3018 e816000000"  # send its memory map
    "488b7310 488b4e08 488b36 e806000000"  # send its first module
    "31c0 e7f4 ebfe"  # leave
    "66baf803 ac ee e2fc c3"  # RCX bytes at RSI to COM1
)
PVH_NOTE = struct.pack("<3I4sQ", 4, 8, 18, b"Xen", MIB)
"""QEMU takes no ELF64 without one."""


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A firmware of 192 KiB whose every word tells its place."""
    path = tmp_path / "big.bin"
    path.write_bytes(struct.pack("<49152I", *range(49152)))
    return path


def test_image_ends_at_4_gib_and_its_end_also_at_1_mib(big: Path) -> None:
    image = load_firmware(str(big), None, BootOptions(64 * MIB))
    data = big.read_bytes()
    assert image.start == ResetStart()
    assert image.roms == (((4 << 30) - len(data), data, len(data)),)
    assert image.segments == [(0xE0000, data[-0x20000:], 0x20000)]
    assert not image.fw_cfg


def test_memory_is_empty_but_for_the_firmware_and_the_kernel(tmp_path: Path) -> None:
    extra = ((Gpa(0xE0000), b"a table"), (Gpa(MIB), b"where the kernel goes"))
    kernel = tmp_path / "kernel"
    kernel.write_bytes(elf64([Load(MIB, b"code")], MIB))
    image = load_firmware(str(FIRMWARE), str(kernel), BootOptions(64 * MIB, extra=extra))
    assert [each.gpa for each in image.segments] == [0xF0000, MIB]


def test_a_kernel_lies_in_memory_and_fw_cfg_tells_of_it(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    code = elf64([Load(MIB, b"code", 0x5000), Load(2 * MIB, b"data")], MIB + 2)
    kernel.write_bytes(code)
    initrd.write_bytes(b"12345")
    options = BootOptions(64 * MIB, b"a b", str(initrd))
    image = load_firmware(str(FIRMWARE), str(kernel), options)
    assert [(each.gpa, each.data) for each in image.segments[1:]] == [(MIB, b"code"), (2 * MIB, b"data")]
    wanted = {0x07: MIB, 0x08: MIB + 4, 0x10: MIB + 2, 0x14: 4, 0x17: 8192, 0x0A: 64 * MIB - 0x28000 - 4096, 0x0B: 5}
    assert {key: int.from_bytes(image.fw_cfg[key], "little") for key in wanted} == wanted
    assert (image.fw_cfg[0x15], image.fw_cfg[0x12]) == (b"a b\0", b"12345")
    assert image.fw_cfg[0x18] == code.ljust(8192, b"\0")


@pytest.mark.parametrize("size", [0, 65535, 65537, (16 << 20) + 65536])
def test_files_of_no_firmware_size_are_refused(tmp_path: Path, size: int) -> None:
    file = tmp_path / "fw.bin"
    with file.open("wb") as out:
        out.truncate(size)
    with pytest.raises(ConfigError, match=r"^-bios: .*fw.bin: "):
        load_firmware(str(file), None, BootOptions(64 * MIB))


def test_kernels_that_firmware_cannot_be_handed_are_refused(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"

    def refusal(data: bytes, memory: int = 64 * MIB, **options: str) -> str:
        kernel.write_bytes(data)
        with pytest.raises(ConfigError) as caught:
            load_firmware(str(FIRMWARE), str(kernel), BootOptions(memory, **options))
        return str(caught.value)

    assert "only these can be handed to the firmware" in refusal(multiboot_elf())
    assert "overlaps the firmware at 0xf0000-0x100000" in refusal(elf64([Load(0xFFFFF, b"12")], 0xFFFFF))
    assert "overlaps the boot data" in refusal(elf64([Load(0x8000, b"12")], 0x8000))
    assert "below 4 GiB" in refusal(elf64([Load(4 << 30, b"12")], 4 << 30), 5 << 30)
    assert "no room behind the kernel" in refusal(elf64([Load(MIB, b"", MIB)], MIB), 2 * MIB, initrd=str(FIRMWARE))
    kernel.write_bytes(elf64([Load(MIB, b"x")], MIB).ljust(65536))
    with pytest.raises(ConfigError, match="an ELF image, not firmware"):
        load_firmware(str(kernel), None, BootOptions(64 * MIB))


def test_our_firmware_is_found_by_its_name_alone() -> None:
    image = load_firmware("shadowvm-fw.bin", None, BootOptions(64 * MIB))
    assert image.roms[0].data == FIRMWARE.read_bytes()
    with pytest.raises(ConfigError, match=r"^-bios: README.txt: "):
        load_firmware("README.txt", None, BootOptions(64 * MIB))


def builder(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no compiler: ziglang is not installed")
    command = [sys.executable, str(ROOT / "tools/build_firmware"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_image_is_what_the_sources_give(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "firmware", tmp_path / "copy")
    done = builder("--check", "--firmware", tmp_path / "copy")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    source = tmp_path / "copy/handover.c"
    source.write_text(source.read_text().replace("fw: kernel at ", "fw: Kernel at "))
    done = builder("--check", "--firmware", tmp_path / "copy")
    assert done.returncode == 1
    assert done.stdout.startswith("shadowvm-fw.bin is not what its sources give")


def steps_of(output: bytes) -> list[str]:
    lines = output.decode().split("\r\n")
    for step, line in zip(STEPS, lines, strict=False):
        assert line.startswith("fw: ")
        assert step in line
    return lines[len(STEPS) :]


def test_firmware_alone_goes_to_long_mode_and_misses_a_kernel_under_qemu() -> None:
    status, output = qemu("-bios", FIRMWARE)
    assert (status, steps_of(output)) == (2, ["fw: no kernel", ""])


def test_firmware_enters_a_guest_under_qemu() -> None:
    status, output = qemu("-bios", FIRMWARE, "-kernel", HELLO, "-append", "one two", memory="5G")
    assert status == 0
    entry, rest = steps_of(output)
    assert entry.startswith("fw: kernel at 0x10")
    assert (0, rest.encode()) == qemu("-kernel", HELLO, "-append", "one two")
    assert "two" in rest


def test_guest_gets_memory_map_and_initrd_from_firmware_under_qemu(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(elf64([Load(MIB, DUMP), Load(2 * MIB, PVH_NOTE, kind=PT_NOTE)], MIB))
    initrd.write_bytes(b"initrd " * 1000)
    status, output = qemu("-bios", FIRMWARE, "-kernel", kernel, "-initrd", initrd, memory="5G")
    assert status == 0
    output = output[output.index(b"fw: kernel at 0x100000\r\n") + 24 :]
    magic, version, _, modules, _, _, _, _, entries, _ = struct.unpack_from("<IIIIQQQQII", output)
    assert (magic, version, modules) == (0x336EC578, 1, 1)
    found = [struct.unpack_from("<QQI", output, 56 + 24 * n) for n in range(entries)]
    # QEMU's AMD CPU has one range more.
    assert [entry for entry in found if entry[0] < 1 << 36] == memory_map(5 << 30)
    assert output[56 + 24 * entries :] == initrd.read_bytes()


def test_firmware_refuses_what_is_no_elf64_under_qemu(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(multiboot_elf())
    status, output = qemu("-bios", FIRMWARE, "-kernel", tmp_path / "image")
    assert (status, steps_of(output)) == (2, ["fw: the kernel is not an ELF64", ""])
