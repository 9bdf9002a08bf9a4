"""A bare machine for engine tests: RAM, hand-built page tables, GDT, IDT and TSS, no hypervisor.

Guest addresses below 1 MiB are mapped to the same host addresses. Layout: code 0x1000, stack 0x8000, GDT 0x2000,
IDT 0x3000, TSS 0x4000, RSP0 stack 0x9000, IST stacks 0xb000 + n * 0x1000, user code 0x10000, handlers 0x11000 on.
"""

from __future__ import annotations

import struct

from shadowvm.addr import Gva, Hpa, Pfn
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.segments import CODE16_FLAGS, CS, Segment, TableRegister
from shadowvm.cpu.unicorn_engine import UnicornEngine
from shadowvm.phys import Ram
from tests.cpu.asm import asm

P, W, U, A, D, PS, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
CODE, USER_CODE, STACK, USER_STACK, HANDLERS = 0x1000, 0x10000, 0x8000, 0x7000, 0x11000
GDT, IDT, TSS = 0x2000, 0x3000, 0x4000
LOW = 1 << 20
RESET_FRAME = 0x30000
GDT_ENTRIES = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
FLAT_GDT = (
    *(0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00CFFB000000FFFF),
    *(0x67 | TSS << 16 | 0x8B << 40, 0x00009B000000FFFF, 0x000093000000FFFF, 0x0000F3000000FFFF),
)
"""0x08 code, 0x10 data, 0x18 user data, 0x20 user code, 0x28 TSS; of 16 bits: 0x30 code, 0x38 data."""
TO_USER32 = f"push 0x1b\n push {USER_STACK:#x}\n push 0x202\n push 0x23\n push {USER_CODE:#x}\n iret"
TO_USER = f"push 0x1b\n push {USER_STACK:#x}\n push 0x202\n push 0x23\n push {USER_CODE:#x}\n iretq"
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)


class Machine:
    """One engine over `frames` frames; tables are taken from the top of RAM downwards."""

    def __init__(self, frames: int = 1024, *, counting: bool = True, tables: bool = True) -> None:
        self.ram = Ram(frames << 12)
        self._next_table = frames
        self.root = self.new_table()
        self.engine = UnicornEngine(self.ram, counting=counting)
        self.faults: list[tuple[int, int, int]] = []
        if tables:
            for page in range(0, LOW, 4096):
                self.map(page, page, P | W | U)
            self.system_tables()
            self.reset()

    def new_table(self) -> int:
        self._next_table -= 1
        self.ram.zero_page(Pfn(self._next_table))
        return self._next_table << 12

    def map(self, va: int, hpa: int, flags: int, level: int = 1) -> int:
        """Map one page; the index of its entry in ram.q."""
        table = self.root
        for n in range(4, level, -1):
            at = (table >> 3) + (va >> (3 + 9 * n) & 511)
            if not self.ram.q[at] & P:
                self.ram.q[at] = self.new_table() | P | W | U
            table = self.ram.q[at] & 0xFFFFFFFFFF000
        at = (table >> 3) + (va >> (3 + 9 * level) & 511)
        self.ram.q[at] = hpa | flags
        return at

    def write(self, hpa: int, data: bytes) -> None:
        self.ram.b[hpa : hpa + len(data)] = data

    def code(self, at: int, source: str, bits: int = 64, org: int | None = None) -> int:
        """Assemble to host address `at`, for guest address or offset `org`; the length."""
        data = asm(source, at if org is None else org, bits)
        self.write(at, data)
        for pfn in range(at >> 12, (at + len(data) >> 12) + 1):
            self.engine.drop_code(Pfn(pfn))
        return len(data)

    def system_tables(self) -> None:
        tss = (0x67 | TSS << 16 | 0x89 << 40, 0)
        self.write(GDT, struct.pack("<7Q", *GDT_ENTRIES, *tss))
        self.write(TSS + 0x66, b"\x68\0")
        self.write(TSS + 4, struct.pack("<Q", 0x9000))
        self.write(TSS + 0x24, struct.pack("<7Q", *(0xB000 + n * 0x1000 for n in range(7))))

    def gate(self, vector: int, handler: int, *, ist: int = 0, dpl: int = 0, kind: int = 14) -> None:
        low = handler & 0xFFFF, 8, ist, 0x80 | dpl << 5 | kind, handler >> 16 & 0xFFFF, handler >> 32, 0
        self.write(IDT + 16 * vector, struct.pack("<HHBBHII", *low))

    def reset(self, entry: int = CODE) -> None:
        """Back to CPL 0 with the machine's tables and no pending event."""
        e = self.engine
        e.init_long_mode(Gva(entry), self.root, Gva(GDT), 55, Gva(STACK), idt_base=Gva(IDT), idt_limit=0xFFF)
        e.tr = Segment(0x28, TSS, 0x67, 0x8B00)
        self.load()

    def load(self) -> None:
        e = self.engine
        e.load_root(Hpa(self.root), e.cr3, e.cr0, e.cr4, e.efer)
        e.flush_tlb()

    def run(self, source: str | None = None, entry: int = CODE) -> int:
        """Reset, assemble at `entry` if given, enter."""
        if source is not None:
            self.code(entry, source)
        self.reset(entry)
        return self.engine.enter()

    def reg(self, i: int) -> int:
        return self.engine.get_reg(i)

    @property
    def exit(self) -> tuple[int, int, int]:
        """(address, access, level) of the last walk fault."""
        box = self.engine.box
        return box[mb.EXIT_VA], box[mb.EXIT_ACCESS], box[mb.EXIT_LEVEL]


class FlatMachine(Machine):
    """A CPU outside of long mode: a root of 3 levels maps the low megabyte 1:1, and 0xfffff000 to RESET_FRAME."""

    def __init__(self, *, counting: bool = True) -> None:
        super().__init__(counting=counting, tables=False)
        directory, table, top = self.new_table(), self.new_table(), self.new_table()
        self.ram.q[self.root >> 3] = directory | P | W | U
        self.ram.q[directory >> 3] = table | P | W | U
        for page in range(0, LOW, 4096):
            self.ram.q[(table + (page >> 9)) >> 3] = page | P | W | U
        last = self.new_table()
        self.ram.q[(self.root >> 3) + 3] = top | P | W | U
        self.ram.q[(top >> 3) + 511] = last | P | W | U
        self.ram.q[(last >> 3) + 511] = RESET_FRAME | P | W | U

    def load(self) -> None:
        e = self.engine
        e.load_root(Hpa(self.root), e.cr3, e.cr0, e.cr4, e.efer, 3)
        e.flush_tlb()

    def real(self, source: str, at: int = CODE) -> int:
        """Run 16-bit code at 0:`at` with the stack below it."""
        self.code(at, source, 16)
        self.engine.init_reset()
        self.engine.set_segment(CS, Segment(0, 0, 0xFFFF, CODE16_FLAGS))
        self.engine.rip, self.engine.env[RSP] = at, at
        self.load()
        return self.engine.enter()

    def protected(self, source: str, at: int = CODE) -> int:
        """Run flat 32-bit code at `at` with the machine's GDT, IDT and TSS."""
        self.code(at, source, 32)
        self.reset(at)
        return self.engine.enter()

    def reset(self, entry: int = CODE) -> None:
        """To CPL 0 of 32-bit code, without paging."""
        self.write(GDT, struct.pack("<9Q", *FLAT_GDT))
        self.write(TSS + 4, struct.pack("<II", 0x9000, 0x10))
        self.write(TSS + 0x66, b"\x68\0")
        e = self.engine
        e.init_protected_mode(entry, 0, 0, GDT, 0x47)
        e.idtr, e.tr = TableRegister(IDT, 0x7FF), Segment(0x28, TSS, 0x67, 0x8B00)
        e.env[RSP] = STACK
        self.load()

    def gate(self, vector: int, handler: int, *, ist: int = 0, dpl: int = 0, kind: int = 14) -> None:
        selector = 0x30 if kind in (6, 7) else 8
        low = handler & 0xFFFF, selector, 0, 0x80 | dpl << 5 | kind, handler >> 16
        self.write(IDT + 8 * vector, struct.pack("<HHBBH", *low))

    def vector(self, number: int, handler: int) -> None:
        """A real-mode interrupt vector to 0:`handler`."""
        self.write(4 * number, struct.pack("<HH", handler, 0))
