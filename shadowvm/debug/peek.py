"""Memory and translations as they are: nothing here faults, marks, counts or moves a page.

A page that is in swap is read from there and stays there. The guest's walk is made of what its registers say now, for
every mode; entries of tables that no memory is behind read as not present.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, Gva, Hva, Pfn, Vpn
from ..errors import ConfigError
from ..kvm.mmu.paging_mode import TRAITS, PagingMode, paging_mode, root_gfn
from ..mm.gup import host_pte
from ..mm.pgtable import SWP_ENTRY
from ..x86 import CR4_PSE, PT_ADDR_MASK, PT_PAGE_SIZE, PT_PRESENT

if TYPE_CHECKING:
    from ..kvm.memslot import MemSlot
    from ..kvm.vcpu import Vcpu
    from ..kvm.vm import Kvm
    from ..mm.mm_struct import MmStruct
    from .target import Target


def vcpu_of(target: Target, number: int | None) -> Vcpu:
    """A vCPU by number; by default the one that runs, or ran last."""
    machine = target.machine
    if number is None:
        return machine.kvm.loaded or machine.vcpu
    if not 0 <= number < len(machine.vcpus):
        raise ConfigError(f"there is no vCPU {number}")
    return machine.vcpus[number]


class Step(NamedTuple):
    """One entry of a guest walk: number `at` of the table at `table`, of `size` bytes. None: no memory is there."""

    level: int
    table: Gpa
    at: int
    size: int
    entry: int | None


class Walk(NamedTuple):
    """What a gva leads to: gpa, or None at the last step if that is not present."""

    steps: tuple[Step, ...]
    gpa: Gpa | None
    page_size: int


def peek_page(mm: MmStruct, vpn: Vpn) -> bytes | None:
    """The 4096 bytes of a page of a process, wherever they are; None where nothing is mapped. Zeros: never touched."""
    pte = host_pte(mm, vpn)
    host = mm.host
    if pte & PT_PRESENT:
        return host.ram.read_page(Pfn((pte & PT_ADDR_MASK) >> PAGE_SHIFT))
    if pte & SWP_ENTRY:
        slot = pte >> PAGE_SHIFT
        cached = host.swap.cache.get(slot)
        if cached is not None and not cached.locked:
            return host.ram.read_page(cached.pfn)
        return host.swap.read_slot(slot)
    start = Hva(vpn << PAGE_SHIFT)
    return bytes(PAGE_SIZE) if mm.vmas.overlapping(start, Hva(start + PAGE_SIZE)) else None


def peek_guest(kvm: Kvm, gpa: int, size: int) -> bytes | None:
    """Guest memory; None if part of it is behind no slot."""
    parts = []
    while size > 0:
        page = _guest_page(kvm, Gfn(gpa >> PAGE_SHIFT))
        if page is None:
            return None
        start = gpa & PAGE_SIZE - 1
        parts.append(page[start : start + size])
        size -= len(parts[-1])
        gpa += len(parts[-1])
    return b"".join(parts)


def _guest_page(kvm: Kvm, gfn: Gfn) -> bytes | None:
    slot: MemSlot | None = kvm.memslots.find(gfn)
    return None if slot is None else peek_page(kvm.mm, slot.vpn(gfn))


def peek_virtual(vcpu: Vcpu, gva: int, size: int) -> bytes | None:
    """Memory of the current address space; None if part of it is not mapped."""
    parts = []
    while size > 0:
        gpa = guest_walk(vcpu, Gva(gva)).gpa
        count = min(size, PAGE_SIZE - (gva & PAGE_SIZE - 1))
        part = None if gpa is None else peek_guest(vcpu.kvm, gpa, count)
        if part is None:
            return None
        parts.append(part)
        size -= count
        gva += count
    return b"".join(parts)


def guest_walk(vcpu: Vcpu, gva: Gva) -> Walk:
    """Through the guest's own tables, rights aside."""
    engine = vcpu.engine
    mode = paging_mode(engine.cr0, engine.cr4, engine.efer)
    if mode is PagingMode.NONPAGING:
        return Walk((), Gpa(gva & 0xFFFF_FFFF), PAGE_SIZE)
    steps = tuple(_steps(vcpu.kvm, mode, engine.cr3, engine.cr4, gva))
    last = steps[-1]
    if last.entry is None or not last.entry & PT_PRESENT:
        return Walk(steps, None, PAGE_SIZE)
    bits = page_bits(mode, last.level)
    page = last.entry & PT_ADDR_MASK & -1 << bits
    if bits == 22:
        page = last.entry & 0xFFC0_0000 | (last.entry >> 13 & 0xFF) << 32
    return Walk(steps, Gpa(page | gva & (1 << bits) - 1), 1 << bits)


def page_bits(mode: PagingMode, level: int) -> int:
    """Of the part of an address that an entry of a level leaves alone."""
    return PAGE_SHIFT + (10 if mode is PagingMode.PT32 else 9) * (level - 1)


def _steps(kvm: Kvm, mode: PagingMode, cr3: int, cr4: int, gva: int) -> Iterator[Step]:
    """Entries from the top to the one that maps a page, or is not present."""
    size, width = (4, 10) if mode is PagingMode.PT32 else (8, 9)
    table = Gpa(root_gfn(mode, cr3) << PAGE_SHIFT)
    levels = TRAITS[mode].levels
    if mode is PagingMode.PAE:
        gva &= 0xFFFF_FFFF
        table = Gpa(cr3 & 0xFFFF_FFE0)
        levels = (3, *levels)
    for level in levels:
        bits = 2 if mode is PagingMode.PAE and level == 3 else width
        index = gva >> PAGE_SHIFT + width * (level - 1) & (1 << bits) - 1
        data = peek_guest(kvm, table + size * index, size)
        entry = None if data is None else int.from_bytes(data, "little")
        yield Step(level, table, index, size, entry)
        if entry is None or not entry & PT_PRESENT:
            return
        may_be_large = cr4 & CR4_PSE if mode is PagingMode.PT32 else bits == width
        if level > 1 and entry & PT_PAGE_SIZE and may_be_large:
            return
        table = Gpa(entry & PT_ADDR_MASK)
