"""Guests of a few instructions, and ELF images with anything in them.

`tiny(source)` is an ELF64 of NASM code at 0x100000, entered in long mode over an identity map of 2 MiB pages whose
tables are at 0x9000 (PML4), 0xa000 (PDPT) and 0xb000 on (page directories). Assembled code is kept in tiny.json;
with NASM on the machine and SHADOWVM_ASSEMBLE=1 what is missing there is added.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import tempfile
from pathlib import Path

ORIGIN = 0x100000
EM_X86_64 = 62
TABLE = Path(__file__).with_name("tiny.json")
EXIT = "out 0xf4, eax\nhlt\n"
"""End the run with the status in eax."""


def assemble(source: str) -> bytes:
    """The bytes of 64-bit code at ORIGIN."""
    return _assembled(f"bits 64\norg {ORIGIN}\ndefault abs\n{source}\n", source)


def assemble16(source: str, origin: int = 0x1000) -> bytes:
    """The bytes of 16-bit code."""
    text = f"bits 16\norg {origin}\n{source}\n"
    return _assembled(text, text)


def _assembled(text: str, source: str) -> bytes:
    known: dict[str, str] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    key = hashlib.sha256(source.encode()).hexdigest()[:20]
    if key not in known:
        if not os.environ.get("SHADOWVM_ASSEMBLE"):
            raise LookupError(f"not assembled: {source!r}")
        known[key] = _nasm(text).hex()
        TABLE.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n")
    return bytes.fromhex(known[key])


def _nasm(source: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        text, out = Path(directory, "a.s"), Path(directory, "a.bin")
        text.write_text(source)
        subprocess.run(["nasm", "-f", "bin", "-o", out, text], check=True)
        return out.read_bytes()


def elf(
    *segments: tuple[int, bytes, int],
    entry: int = ORIGIN,
    elf_class: int = 2,
    machine: int = EM_X86_64,
    elf_type: int = 2,
    phentsize: int = 56,
) -> bytes:
    """An image with `segments` (physical address, bytes, size in memory)."""
    offset = 64 + 56 * len(segments)
    headers, bodies = b"", b""
    for paddr, data, memsz in segments:
        where = offset + len(bodies)
        headers += struct.pack("<IIQQQQQQ", 1, 7, where, paddr, paddr, len(data), memsz, 4096)
        bodies += data
    ident = b"\x7fELF" + bytes((elf_class, 1, 1)) + bytes(9)
    rest = (elf_type, machine, 1, entry, 64, 0, 0, 64, phentsize, len(segments), 64, 0, 0)
    return ident + struct.pack("<HHIQQQIHHHHHH", *rest) + headers + bodies


def tiny(source: str) -> bytes:
    """An image of NASM code."""
    code = assemble(source)
    return elf((ORIGIN, code, len(code)))


def write_tiny(directory: Path, source: str) -> str:
    """The path of an image of NASM code."""
    path = directory / "tiny.elf"
    path.write_bytes(tiny(source))
    return str(path)


def gate(vector: int) -> str:
    """Code that makes `handler` the interrupt gate of a vector, in an IDT at 2 MiB."""
    return f"""
mov rdi, {0x200000 + 16 * vector:#x}
mov rax, handler
mov [rdi], ax
mov word [rdi + 2], 8
mov word [rdi + 4], 0x8e00
shr rax, 16
mov [rdi + 6], ax
mov qword [rdi + 8], 0
mov word [0x200ff0], 0xfff
mov qword [0x200ff2], 0x200000
lidt [0x200ff0]
xor r14d, r14d
"""


READ_THEN_WRITE = f"""
mov edi, 0x400000
mov ecx, 640
read: mov rax, [rdi]
test rax, rax
jnz bad
add rdi, 4096
dec ecx
jnz read
mov edi, 0x400000
mov ecx, 640
write: mov [rdi], rdi
add rdi, 4096
dec ecx
jnz write
mov edi, 0x400000
mov ecx, 640
check: cmp [rdi], rdi
jne bad
add rdi, 4096
dec ecx
jnz check
xor eax, eax
{EXIT}
bad: mov eax, 1
{EXIT}
"""
"""Read 640 untouched pages from 4 MiB on, write them, verify. Exits with 0, or 1 when the memory is wrong."""

CLEAN_LARGE_PAGE = f"""
mov qword [0xb010], 0x4000a3
mov rax, cr3
mov cr3, rax
mov rax, [0x400000]
mov qword [0x400000], 7
mov eax, [0x400000]
sub eax, 7
{EXIT}
"""
"""Make the large page at 4 MiB clean (D = 0), read it and then write it."""

ODD_STORE_TO_ROOT = f"""
mov word [0x9802], 0x102
mov rax, [0x400000]
xor eax, eax
{EXIT}
"""
"""A store to the PML4 in use that is no store of an entry, so that its shadow is given up."""

REMAPPED_PAGE = f"""
mov qword [0x300000], 0x400023
mov qword [0xb010], 0x300023
mov rax, cr3
mov cr3, rax
mov rax, [0x400000]
mov qword [0x300000], 0x401023
invlpg [0x400000]
mov qword [0x400000], 7
xor eax, eax
{EXIT}
"""
"""Map 4 MiB by a clean 4 KiB entry, read it, point the entry at the next frame and write it."""

TWO_FRAMES = """
mov qword [0x400000], 4
mov qword [0x401000], 5
mov qword [0x300000], 0x400063
mov qword [0xb018], 0x300063
mov rax, cr3
mov cr3, rax
mov rbx, [0x600000]
"""
"""Map 6 MiB by a 4 KiB entry to the frame at 4 MiB, which holds 4, and read it. The next frame holds 5."""

REDIRECT = "mov qword [0x300000], 0x401063\n"
"""Point that entry at the next frame."""

IS_FIVE = f"mov rbx, [rdi]\nlea eax, [rbx - 5]\n{EXIT}"
"""End with status 0 if RDI points to 5."""

REDIRECTED_THEN_LINKED = f"""{TWO_FRAMES}{REDIRECT}
mov qword [0xb020], 0x300063
mov edi, 0x800000
{IS_FIVE}"""
"""Link the table once more before the flush that it needs where it is: a new link needs none."""

REDIRECTED_THEN_LINKED_ABOVE = f"""{TWO_FRAMES}{REDIRECT}
mov rax, [0xa000]
mov [0xa040], rax
mov rdi, 0x200600000
{IS_FIVE}"""
"""As before, but link the page directory above the table."""

REDIRECTED_CR3 = f"""{TWO_FRAMES}{REDIRECT}
mov rax, cr3
mov cr3, rax
mov edi, 0x600000
{IS_FIVE}"""
"""Load CR3 with the value that it has."""

REDIRECTED_INVLPG = f"""{TWO_FRAMES}{REDIRECT}
mov edi, 0x600000
invlpg [rdi]
{IS_FIVE}"""

REDIRECTED_PGE = f"""{TWO_FRAMES}{REDIRECT}
mov rax, cr4
xor eax, 0x80
mov cr4, rax
mov edi, 0x600000
{IS_FIVE}"""
"""Flush everything by CR4.PGE."""

ALIASED_TABLE = f"""
mov qword [0x300000], 0x400063
mov qword [0xb018], 0x300023
mov rax, cr3
mov cr3, rax
mov qword [0x600000], 0x500063
mov qword [0x400008], 0
mov qword [0xb020], 0x400023
mov rax, cr3
mov cr3, rax
mov rax, [0x800000]
xor eax, eax
{EXIT}
"""
"""Write the frame at 4 MiB through two mappings, and then make it the page table of 8 MiB."""
