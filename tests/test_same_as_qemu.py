"""The same image prints the same and leaves with the same status under QEMU's TCG and here.

Every bundled guest takes part, those named smp-* with two CPUs. Parameters that make a run short stand in `quick` of
its guest.toml, or below.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from shadowvm.boot.bios import BDA, BDA_SIZE
from shadowvm.config import MIB, MachineConfig
from shadowvm.guests import bundled_guests, guests_directory
from shadowvm.machine import Machine
from tests.boot.images import (
    LEAVE,
    ONE_THREAD,
    PT_NOTE,
    Load,
    elf32,
    elf64,
    multiboot_elf,
    multiboot_header,
    note,
    qemu,
    send,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FIRMWARE = guests_directory().parent / "firmware/shadowvm-fw.bin"
QUICK = {
    "access64": "step=499",
    "bench": "rounds=1 mixed=1k touch=1 faults=16",
    "chase": "nodes=4k steps=1000",
    "demand": "size=1M shared=256k",
    "matmul": "n=64 k=8",
    "memtouch": "size=2M",
    "ptchurn": "pages=256 rounds=1",
    "qsort": "keys=8k",
    "sieve": "limit=200k",
    "smc": "pages=64 rounds=1",
    "smp-smc": "pages=16 turns=2 patches=1",
}
GUESTS = {guest.name: guest for guest in bundled_guests()}


def quick(name: str) -> str:
    """A command line for a short run."""
    toml = tomllib.loads((guests_directory() / name / "guest.toml").read_text())
    return str(toml.get("quick", QUICK.get(name, "")))


def here(image: str | Path, append: str = "", **more: object) -> tuple[int, bytes]:
    """Status and output of a run in this process."""
    output = bytearray()
    config = MachineConfig(image=str(image), append=append, host_memory=64 * MIB, **more)  # type: ignore[arg-type]
    machine = Machine(config, output.append)
    try:
        outcome = machine.run()
    finally:
        machine.close()
    assert outcome.reason.value == "debug-exit", outcome
    return outcome.status, bytes(output)


@pytest.mark.parametrize("name", sorted(GUESTS))
def test_guest_prints_and_ends_as_under_qemu(name: str) -> None:
    smp: dict[str, object] = {"smp": 2} if name.startswith("smp-") else {}
    image, append = GUESTS[name].image, quick(name)
    flags, accel = ["-smp", "2"] if smp else [], ONE_THREAD if name == "smp-smc" else "tcg"
    theirs = qemu("-cpu", "max", "-device", "pc-testdev", *flags, "-kernel", image, "-append", append, accel=accel)
    assert here(image, append, **smp) == theirs
    assert theirs[1]


@pytest.mark.parametrize("name", ["hello", "demand"])
def test_firmware_and_its_guest_print_as_under_qemu(name: str) -> None:
    image, append = GUESTS[name].image, quick(name)
    theirs = qemu("-cpu", "max", "-bios", FIRMWARE, "-kernel", image, "-append", append, memory="5G")
    assert here(image, append, bios=str(FIRMWARE), memory=5 << 30) == theirs
    assert theirs[1].count(b"fw: ") == 8


@pytest.mark.parametrize("name", ["hello", "demand", "ptchurn"])
def test_guest_comes_through_its_pvh_entry_too(name: str, tmp_path: Path) -> None:
    data = Path(GUESTS[name].image).read_bytes()
    assert data.count(b"shadowvm\0") == 1
    image = tmp_path / name
    image.write_bytes(data.replace(b"shadowvm\0", b"somebody\0"))
    assert here(image, quick(name)) == here(GUESTS[name].image, quick(name))


SAVE = bytes.fromhex(
    "e800000000"  # call 1f
    "60"  # 1: pusha, and with it ESP and the return address
    "9c"  # pushf
    "0f20c0 50 0f20d8 50 0f20e0 50"  # CR0, CR3, CR4
    "8cc8 50 8cd0 50 8cd8 50 8cc0 50 8ce0 50 8ce8 50"  # CS SS DS ES FS GS
    "b9800000c0 0f32 50"  # EFER
    "b977020000 0f32 50 52"  # PAT
    "6a00 9bd93c24"  # x87 control word
    "6a00 e421 880424"  # mask of the first PIC
    "6a00 e4a1 880424"  # and of the second
    "6a00 e492 880424"  # system control port A
)
"""32-bit code that pushes what a kernel can know of its start."""
NAMES = (
    *("port92", "pic1", "pic0", "fcw", "pat_high", "pat_low", "efer", "gs", "fs", "es", "ds", "ss", "cs"),
    *("cr4", "cr3", "cr0", "eflags", "edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax", "eip"),
)
DEAD = ("ebp", "ecx", "edx", "esi", "edi")
"""No protocol says what these hold, and neither loader does anything sensible with them."""
SEND_STACK = bytes.fromhex("89e6 b9") + struct.pack("<I", 4 * len(NAMES)) + bytes.fromhex("66baf803 ac ee e2fc")
"""mov esi, esp; mov ecx, size; and out with it."""
BASE = 4 * MIB


def start_state(output: bytes) -> dict[str, int]:
    """The registers by name, without the flags that arithmetic sets."""
    state = dict(zip(NAMES, struct.unpack_from(f"<{len(NAMES)}I", output), strict=True))
    state["eflags"] &= ~0x8D5
    return {name: value for name, value in state.items() if name not in DEAD}


@pytest.mark.parametrize("kind", ["multiboot", "pvh"])
def test_kernel_starts_in_the_state_of_qemu_s_loader(kind: str, tmp_path: Path) -> None:
    code = SAVE + SEND_STACK + send(BDA, BDA_SIZE) + LEAVE
    image = tmp_path / kind
    if kind == "multiboot":
        image.write_bytes(multiboot_elf(code))
    else:
        start = Load(8 * MIB, note(18, struct.pack("<I", BASE)), kind=PT_NOTE, align=4)
        image.write_bytes(elf32([Load(BASE, code), start], BASE))
    status, theirs = qemu("-kernel", image)
    assert status == 0
    status, ours = here(image)
    assert status == 0
    assert start_state(ours) == start_state(theirs)
    state = start_state(ours)
    assert (state["cr0"], state["cs"], state["fcw"]) == (0x11, 8, 0x37F)


CODE = send(BASE, 32) + LEAVE
ADDRESSES = multiboot_header(1 << 16, [BASE, BASE, 0, 0, BASE + 32])
PVH = Load(8 * MIB, note(18, struct.pack("<Q", BASE)), kind=PT_NOTE, align=4)
IMAGES = {
    "multiboot, elf": multiboot_elf(CODE, flags=3),
    "multiboot, with a video mode": multiboot_elf(CODE, flags=7),
    "multiboot, position-independent": elf32([Load(BASE, multiboot_header() + CODE)], BASE + 12, kind=3),
    "multiboot, a gap between segments": elf32([Load(MIB, multiboot_header()), Load(BASE, CODE)], BASE),
    "multiboot, linked high": elf32([Load(BASE, multiboot_header() + CODE, vaddr=0xC0000000)], 0xC000000C),
    "multiboot, flat": ADDRESSES + CODE,
    "multiboot, flat in the middle of a file": b"junk" * 1000 + ADDRESSES + CODE,
    "multiboot, addresses in an elf64": elf64([Load(MIB, ADDRESSES + CODE), PVH], 0),
    "multiboot, addresses in a file for another machine": elf32([Load(MIB, ADDRESSES + CODE)], 0, machine=40),
    "multiboot and pvh": elf32([Load(BASE, multiboot_header() + CODE), PVH], BASE + 12),
    "pvh, elf64": elf64([Load(BASE, CODE), PVH], 0),
    "pvh, elf32": elf32([Load(BASE, CODE), PVH], 0),
    "pvh, position-independent": elf64([Load(BASE, CODE), PVH], 0, kind=3),
    "pvh, linked high": elf64([Load(BASE, CODE, vaddr=0xFFFFFFFF80000000), PVH], 0xFFFFFFFF80000000),
    "pvh, below 1 MiB": elf64([Load(BASE, CODE), Load(0x10000, b"data"), Load(0x90000, b"more"), PVH], 0),
    "pvh, the second note": elf64([Load(BASE, CODE), PVH._replace(data=note(7, b"12345") + PVH.data)], 0),
}


@pytest.mark.parametrize("kind", sorted(IMAGES))
def test_image_that_boots_under_qemu_boots_here(kind: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(IMAGES[kind])
    theirs = qemu("-kernel", image)
    assert len(theirs[1]) == 32
    assert here(image) == theirs
