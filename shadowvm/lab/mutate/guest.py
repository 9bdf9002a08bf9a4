"""Tiny guests for scenarios: a few kinds of instructions, encoded here, in an ELF image of one segment.

The code starts at 1 MiB in long mode, over an identity map of 2 MiB pages whose tables are at PML4, PDPT and PD; all
addresses are below 2 GiB. `host(n)` leaves the guest so that the scenario's n-th host action can run.
"""

from __future__ import annotations

import struct

from ...devices.debug_exit import DEBUG_EXIT_PORT

ORIGIN = 0x100000
PML4, PDPT, PD = 0x9000, 0xA000, 0xB000
TABLE = 0x300000
"""A frame to make a page table in."""
PAGE = 0x400000
"""The page that most scenarios are about. Its large page is entry 2 of the page directory."""
PAGE_PDE = PD + 16
HOST_PORT = 0x5648

P, W, U, A, D, PS = 1, 2, 4, 0x20, 0x40, 0x80
NX = -1 << 63
RET = 0xC3
"""The instruction."""
KERNEL = P | W | A
"""Rights of a link."""
DATA = P | W | A | D
"""Rights of a mapping that has been written."""
CR0_WP, CR4_SMEP = 1 << 16, 1 << 20
MSR_EFER, EFER_NX = 0xC0000080, 1 << 11


class Code:
    """Machine code that grows. Every method returns the code itself."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def _add(self, hexadecimal: str, *words: int) -> Code:
        self.bytes += bytes.fromhex(hexadecimal)
        for word in words:
            self.bytes += struct.pack("<I", word & 0xFFFF_FFFF)
        return self

    def store(self, address: int, value: int) -> Code:
        """mov qword [address], value; RAX is lost if the value needs it."""
        if -1 << 31 <= value < 1 << 31:
            return self._add("48c70425", address, value)
        self._add("48b8", value, value >> 32)
        return self._add("48890425", address)

    def load(self, address: int) -> Code:
        """mov rax, [address]."""
        return self._add("488b0425", address)

    def far_load(self, address: int) -> Code:
        """mov rdi, address; mov rax, [rdi]."""
        return self._add("48bf", address, address >> 32)._add("488b07")

    def call(self, address: int) -> Code:
        """mov eax, address; call rax."""
        return self._add("b8", address)._add("ffd0")

    def reload_cr3(self) -> Code:
        """mov rax, cr3; mov cr3, rax."""
        return self._add("0f20d80f22d8")

    def invlpg(self, address: int) -> Code:
        """invlpg [address]."""
        return self._add("0f013c25", address)

    def cr0(self, *, clear: int = 0, put: int = 0) -> Code:
        """Bits of CR0."""
        return self._add("0f20c025", ~clear)._add("0d", put)._add("0f22c0")

    def cr4(self, put: int) -> Code:
        """Bits of CR4."""
        return self._add("0f20e00d", put)._add("0f22e0")

    def efer(self, put: int) -> Code:
        """Bits of EFER."""
        return self._add("b9", MSR_EFER)._add("0f320d", put)._add("0f30")

    def fill(self, start: int, pages: int) -> Code:
        """Store its address into each page."""
        self._add("bf", start)._add("b9", pages)
        return self._add("48893f4881c7", 4096)._add("ffc975f2")

    def sti(self) -> Code:
        """sti; nop."""
        return self._add("fb90")

    def host(self, action: int) -> Code:
        """Let the host do something before the next instruction."""
        return self._add("b8", action)._add("ba", HOST_PORT)._add("ef")

    def expect(self, address: int, value: int) -> Code:
        """End the run with status 1 unless the quadword is `value`."""
        ending = Code().exit(1).bytes
        self._add("48813c25", address, value)._add(f"74{len(ending):02x}")
        self.bytes += ending
        return self

    def exit(self, status: int = 0) -> Code:
        """End the run."""
        return self._add("b8", status)._add(f"e7{DEBUG_EXIT_PORT:02x}f4")

    def image(self) -> bytes:
        """The ELF."""
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, ORIGIN, 64, 0, 0, 64, 56, 1, 64, 0, 0)
        size = len(self.bytes)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 120, ORIGIN, ORIGIN, size, size, 4096)
        return ident + header + segment + bytes(self.bytes)
