"""Builders of small images, right by default and wrong where a test says so; and a boot of them under QEMU."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
QEMU = "qemu-system-x86_64"
MACHINE = ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
DEBUG_EXIT = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
MIB = 1 << 20
MAGIC = 0x1BADB002
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4


class Load(NamedTuple):
    """A program header and its bytes. memsz, filesz: None for the bytes' length."""

    paddr: int
    data: bytes = b""
    memsz: int | None = None
    filesz: int | None = None
    vaddr: int | None = None
    kind: int = PT_LOAD
    offset: int | None = None
    align: int = 1


def elf64(loads: Sequence[Load], entry: int, *, machine: int = EM_X86_64, kind: int = 2, phentsize: int = 56) -> bytes:
    """An ELF64 executable."""
    return _elf(2, "<16sHHIQQQIHHHHHH", loads, entry, machine, kind, phentsize)


def elf32(loads: Sequence[Load], entry: int, *, machine: int = EM_386, kind: int = 2, phentsize: int = 32) -> bytes:
    """An ELF32 executable; its segments' bytes begin at 0x100 of the file."""
    return _elf(1, "<16sHHIIIIIHHHHHH", loads, entry, machine, kind, phentsize)


def _elf(elfclass: int, ehdr: str, loads: Sequence[Load], entry: int, machine: int, kind: int, phentsize: int) -> bytes:
    size = struct.calcsize(ehdr)
    ident = b"\x7fELF" + bytes((elfclass, 1, 1)) + bytes(9)
    start = (ident, kind, machine, 1, entry, size, 0, 0, size, phentsize, len(loads), 0, 0, 0)
    header = bytearray(struct.pack(ehdr, *start))
    at = max(0x100, size + phentsize * len(loads))
    body = bytearray()
    for load in loads:
        offset = at + len(body) if load.offset is None else load.offset
        filesz = len(load.data) if load.filesz is None else load.filesz
        memsz = filesz if load.memsz is None else load.memsz
        vaddr = load.paddr if load.vaddr is None else load.vaddr
        if elfclass == 2:
            header += struct.pack("<IIQQQQQQ", load.kind, 7, offset, vaddr, load.paddr, filesz, memsz, load.align)
        else:
            header += struct.pack("<8I", load.kind, offset, vaddr, load.paddr, filesz, memsz, 7, load.align)
        body += load.data
    return bytes(header.ljust(at, b"\0") + body)


def multiboot_header(flags: int = 0, addresses: Sequence[int] = (), *, checksum: int | None = None) -> bytes:
    """A Multiboot 1 header; its checksum is right unless one is given."""
    right = -(MAGIC + flags) & 0xFFFF_FFFF
    return struct.pack(f"<3I{len(addresses)}I", MAGIC, flags, right if checksum is None else checksum, *addresses)


def multiboot_elf(code: bytes = b"\xf4", base: int = 4 * MIB, *, flags: int = 0, bss: int = 0) -> bytes:
    """An ELF32 at `base`: the header, then the entry."""
    body = multiboot_header(flags) + code
    return elf32([Load(base, body, len(body) + bss)], base + 12)


def send(gpa: int, size: int) -> bytes:
    """32-bit code: mov esi, gpa; mov ecx, size; mov dx, 0x3f8; 1: lodsb; out dx, al; loop 1b."""
    return struct.pack("<BIBI", 0xBE, gpa, 0xB9, size) + bytes.fromhex("66baf803 ac ee e2fc")


def note(kind: int, desc: bytes = b"", name: bytes = b"Xen\0", align: int = 4) -> bytes:
    """An ELF note; name and description are padded to `align`."""
    head = struct.pack("<3I", len(name), len(desc), kind) + name
    return head.ljust(-(-len(head) // align) * align, b"\0") + desc.ljust(-(-len(desc) // align) * align, b"\0")


LEAVE = bytes.fromhex("31c0 e7f4 ebfe")
"""xor eax, eax; out 0xf4, eax; jmp $"""


ONE_THREAD = "tcg,thread=single"
"""With a thread for each CPU QEMU 7.2 may execute a translation from before another CPU's store to the code."""


def qemu(*arguments: str | Path, memory: str = "64M", cwd: Path | None = None, accel: str = "tcg") -> tuple[int, bytes]:
    """Exit value and output of a boot; skips where QEMU is missing."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    command = [QEMU, "-accel", accel, *MACHINE, *DEBUG_EXIT, "-m", memory, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, cwd=cwd, timeout=120)
    assert done.returncode & 1, done.stderr
    return done.returncode >> 1, done.stdout
