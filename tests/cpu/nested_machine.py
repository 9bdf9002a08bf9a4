"""Machines whose CPU walks two tables: the guest's own, and a nested one under it."""

from __future__ import annotations

from shadowvm.addr import Hpa
from shadowvm.cpu import layout as lay
from shadowvm.cpu import mailbox as mb
from tests.cpu.machine import PS, A, D, FlatMachine, Machine, P, U, W

ADDR = 0xFFFFFFFFFF000
GIB_SHIFT, FRAME_SHIFT = 30, 12
FULL = P | W | U


class NestedMachine(Machine):
    """Guest-physical addresses are host-physical ones, 4 KiB at a time: `nested_at` says by which entry. The guest's
    tables are those of Machine."""

    def __init__(self, frames: int = 1024, *, counting: bool = True) -> None:
        self.nested_root = 0
        super().__init__(frames, counting=counting)

    def load(self) -> None:
        if not self.nested_root:
            self.nested_root = identity(self, self.ram.nr_frames)
        self.engine.load_nested_root(Hpa(self.nested_root))
        self.engine.flush_tlb()

    def nested_at(self, gpa: int, level: int = 1) -> int:
        """Index in ram.q of the nested entry of `level` for a guest-physical address."""
        return entry_at(self, self.nested_root, gpa, level, 4)

    def guest_at(self, va: int, level: int = 1) -> int:
        """Index in ram.q of the guest's entry of `level`."""
        return entry_at(self, self.root, va, level, 4)

    @property
    def ept(self) -> tuple[int, int, int, int]:
        """(gpa, gva, access, final) of the last nested exit."""
        box = self.engine.box
        return box[mb.EXIT_GPA], box[mb.EXIT_VA], box[mb.EXIT_ACCESS], box[mb.EXIT_FINAL]


class FlatNestedMachine(FlatMachine):
    """A CPU outside of long mode over a nested table of 1 MiB."""

    def __init__(self, *, counting: bool = True) -> None:
        super().__init__(counting=counting)
        self.nested_root = identity(self, self.ram.nr_frames)

    def load(self) -> None:
        self.engine.load_nested_root(Hpa(self.nested_root))
        self.engine.flush_tlb()

    def nested_at(self, gpa: int, level: int = 1) -> int:
        return entry_at(self, self.nested_root, gpa, level, 4)


def identity(machine: Machine, frames: int) -> int:
    """A new table of 4 levels that maps the first `frames` frames 1:1; its hpa."""
    q = machine.ram.q
    root, third, second = machine.new_table(), machine.new_table(), machine.new_table()
    q[root >> 3], q[third >> 3] = third | FULL, second | FULL
    for first in range(0, frames, 512):
        table = machine.new_table()
        q[(second >> 3) + first // 512] = table | FULL
        for pfn in range(first, min(first + 512, frames)):
            q[(table >> 3) + pfn - first] = pfn << FRAME_SHIFT | FULL
    return root


def entry_at(machine: Machine, root: int, address: int, level: int, top: int) -> int:
    table = root
    for n in range(top, level, -1):
        table = machine.ram.q[(table >> 3) + (address >> (3 + 9 * n) & 511)] & ADDR
    return (table >> 3) + (address >> (3 + 9 * level) & 511)


def load_under_identity(machine: Machine) -> None:
    """As Machine.load, but the machine's table is the nested one; the guest's maps 512 GiB 1:1 by pages of 1 GiB."""
    engine = machine.engine
    top = getattr(machine, "guest_root", 0)
    if not top:
        top, third = machine.new_table(), machine.new_table()
        machine.ram.q[top >> 3] = third | FULL | A
        for i in range(512):
            machine.ram.q[(third >> 3) + i] = i << GIB_SHIFT | FULL | A | D | PS
        for table in (top, third):
            machine.map(table, table, FULL)
        machine.guest_root = top  # type: ignore[attr-defined]
    engine.env[lay.ENV_CR // 8 + 3] = top
    engine.load_nested_root(Hpa(machine.root))
    engine.flush_tlb()


def load_flat_under_nothing(machine: FlatMachine) -> None:
    """As FlatMachine.load, with the machine's PAE table below a nested one of four levels."""
    top = getattr(machine, "nested_root", 0)
    if not top:
        top = machine.nested_root = machine.new_table()  # type: ignore[attr-defined]
        machine.ram.q[top >> 3] = machine.root | FULL
    machine.engine.load_nested_root(Hpa(top))
    machine.engine.flush_tlb()
