"""What lies behind one address, in rows that are short enough for a pane: both walks, and the host's side of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ..addr import PAGE_SHIFT, Gfn, Gpa, Gva, Hva, Pfn, Vpn
from ..cpu.mailbox import ROOT, ROOT_LEVEL
from ..kvm.mmu.mmio_spte import get_mmio_spte_generation, get_mmio_spte_gfn, is_mmio_spte
from ..kvm.mmu.paging_mode import paging_mode
from ..kvm.mmu.role import unpack_role
from ..kvm.mmu.spte import FROZEN_SPTE, SPTE_HOST_WRITABLE, SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE, spte_pfn
from ..mm.gup import host_pte
from ..mm.lru import LRU_NAMES
from ..mm.pgtable import SWP_ENTRY
from ..x86 import PT_ADDR_MASK, PT_PAGE_SIZE, PT_PRESENT
from .explain import MODE_NAMES, entry_text, sptes_of, tlbs
from .peek import guest_walk

if TYPE_CHECKING:
    from ..kvm.memslot import MemSlot
    from ..kvm.vcpu import Vcpu
    from ..kvm.vm import Kvm
    from ..mm.mm_struct import MmStruct
    from ..mm.page_alloc import Page

PAE_ROOT_LEVEL = 3
LRU_COUNTED = 100_000
"""So far into a list a page's place is told."""
_PAGE_FLAGS = ("active", "dirty", "referenced", "locked", "swapbacked", "swapcache", "readahead", "table", "hwpoison")


class Row(NamedTuple):
    """detail: a pane that has little room may leave it out."""

    text: str
    detail: bool = False


def guest_rows(vcpu: Vcpu, gva: int | None, gpa: int | None) -> Iterator[Row]:
    """The guest's own tables, from CR3 to the page."""
    engine = vcpu.engine
    if gva is None:
        yield Row(f"gpa {gpa:#x}: no gva is known for it")
        return
    mode = paging_mode(engine.cr0, engine.cr4, engine.efer)
    yield Row(f"gva {gva:#x}, cr3 {engine.cr3:#x}")
    yield Row(f"  {MODE_NAMES[mode]}", detail=True)
    walk = guest_walk(vcpu, Gva(gva))
    for step in walk.steps:
        entry = "no memory is there" if step.entry is None else entry_text(step.entry)
        swapped = " in swap" * _is_swapped_out(vcpu.kvm, step.table)
        yield Row(f"L{step.level}[{step.at:3}] {entry}{swapped}")
        yield Row(f"     at gpa {step.table + step.at * step.size:#x}", detail=True)
    if walk.gpa is None:
        yield Row("-> not present: #PF for the guest")
    else:
        size = f", a page of {walk.page_size >> 20} MiB" if walk.page_size > 4096 else ""
        yield Row(f"-> gpa {walk.gpa:#x}{size}")


def _is_swapped_out(kvm: Kvm, gpa: int) -> bool:
    """Whether KVM will have to wait for a page of the guest, such as one of its tables."""
    slot = kvm.memslots.find(Gfn(gpa >> PAGE_SHIFT))
    pte = host_pte(kvm.mm, slot.vpn(Gfn(gpa >> PAGE_SHIFT))) if slot is not None else 0
    return bool(pte & SWP_ENTRY) and not pte & PT_PRESENT


def shadow_rows(vcpu: Vcpu, gva: int | None, gpa: int | None) -> Iterator[Row]:
    """The tables that the CPU walks: shadow ones by gva, or nested ones by gpa."""
    kvm, box = vcpu.kvm, vcpu.engine.box
    root, level = (box[ROOT] if vcpu.root is not None else 0), box[ROOT_LEVEL]
    address = gpa if kvm.tdp_enabled else gva
    if address is None:
        yield Row("no gpa, so no walk" if kvm.tdp_enabled else "shadow tables are walked by gva")
    elif not root:
        yield Row("no root is loaded: the next entry makes one")
    else:
        yield Row(f"{'gpa' if kvm.tdp_enabled else 'gva'} {address:#x}, root {root:#x}")
        yield from _sptes(kvm, root >> 3, level, address)


def _sptes(kvm: Kvm, table: int, root_level: int, address: int) -> Iterator[Row]:
    if root_level == PAE_ROOT_LEVEL:
        address &= 0xFFFF_FFFF
    for level in range(root_level, 0, -1):
        sptep = table + (address >> 3 + 9 * level & 511)
        spte = kvm.q[sptep]
        yield Row(f"L{level}[{sptep & 511:3}] {short_spte(spte)}")
        yield Row(f"     at {sptep * 8:#x}{_page_text(kvm, sptep)}", detail=True)
        if not spte & PT_PRESENT or is_mmio_spte(spte):
            yield Row("-> " + ("a device: emulated" if spte else "nothing: the next access faults"))
            return
        if level == 1 or spte & PT_PAGE_SIZE:
            yield Row(f"-> pfn {spte_pfn(spte):#x}{', a large page' if level > 1 else ''}")
            return
        table = (spte & PT_ADDR_MASK) >> 3


def _page_text(kvm: Kvm, sptep: int) -> str:
    """Which shadow page an entry is in, with the part of its role that says what it may be used for."""
    sp = kvm.sp_by_pfn.get(Pfn(sptep >> 9))
    if sp is None:
        return ""
    role = unpack_role(sp.role)
    words = [f"gfn {sp.gfn:#x}", "direct"] if sp.direct else [f"gfn {sp.gfn:#x}"]
    words += [("w" if role.access & 2 else "-") + ("u" if role.access & 4 else "-") + "-x"[role.access & 1]]
    words += [f"q{role.quadrant}"] if role.has_4_byte_gpte else []
    return " ".join([":", *words, *(["unsync"] if getattr(sp, "unsync", False) else [])])


def short_spte(spte: int) -> str:
    """`0x11e63 P W A D host-w mmu-w`."""
    if is_mmio_spte(spte):
        return f"{spte:#x} MMIO gfn {get_mmio_spte_gfn(spte):#x} generation {get_mmio_spte_generation(spte)}"
    if spte == FROZEN_SPTE:
        return f"{spte:#x} frozen"
    if not spte & (SPTE_MMU_PRESENT | PT_PRESENT):
        return f"{spte:#x} not present"
    names = ((SPTE_HOST_WRITABLE, "host-w"), (SPTE_MMU_WRITABLE, "mmu-w"))
    return " ".join([entry_text(spte), *(name for bit, name in names if spte & bit)])


def host_rows(kvm: Kvm, gpa: int | None) -> Iterator[Row]:
    """memslot -> hva, VMA, host pte -> frame or swap slot, and back: sptes and TLBs that map it."""
    if gpa is None:
        yield Row("the guest maps nothing there")
        return
    gfn = Gfn(gpa >> PAGE_SHIFT)
    slot = kvm.memslots.find(gfn)
    if slot is None:
        yield Row(f"gfn {gfn:#x}: no memslot, so a device or nothing")
        return
    hva = slot.vpn(gfn) << PAGE_SHIFT
    yield Row(f"gfn {gfn:#x} -> hva {hva:#x}")
    yield Row(f"memslot {slot.id}: gfns {slot.base_gfn:#x}-{slot.end_gfn - 1:#x}", detail=True)
    areas = kvm.mm.vmas.overlapping(Hva(hva), Hva(hva + 1))
    yield Row(f"VMA {areas[0] if areas else 'none'}", detail=True)
    yield from _pte_rows(kvm.mm, slot.vpn(gfn))
    yield from _reverse_rows(kvm, slot, gfn)


def _pte_rows(mm: MmStruct, vpn: Vpn) -> Iterator[Row]:
    pte, swap = host_pte(mm, vpn), mm.host.swap
    if pte & PT_PRESENT:
        yield Row(f"host pte {entry_text(pte)}")
        yield from _frame_rows(mm, mm.mem_map[(pte & PT_ADDR_MASK) >> PAGE_SHIFT])
    elif pte & SWP_ENTRY:
        number = pte >> PAGE_SHIFT
        yield Row(f"host pte {pte:#x} -> swap slot {number}")
        cached = swap.cache.get(number)
        yield Row("  a page of zeros, only remembered" if swap.zeromap[number] else "  in the swap file")
        if cached is not None:
            yield Row("and in the swap cache:")
            yield from _frame_rows(mm, cached)
    else:
        yield Row(f"host pte {pte:#x}: never touched" if not pte else f"host pte {entry_text(pte)}")


def _frame_rows(mm: MmStruct, page: Page) -> Iterator[Row]:
    if page.pfn == mm.host.zone.zero_page.pfn:
        yield Row(f"pfn {page.pfn:#x}: the page of zeros")
        return
    yield Row(f"pfn {page.pfn:#x}: refcount {page.refcount}, mapcount {page.mapcount}")
    yield Row(f"  {lru_place(mm, page)}")
    yield Row("  reclaim takes number 1", detail=True)
    flags = [name for name in _PAGE_FLAGS if getattr(page, name)]
    yield Row(f"  flags: {' '.join(flags) or 'none'}")


def lru_place(mm: MmStruct, page: Page) -> str:
    """`LRU inactive_anon: 12 of 340`, counted from the oldest."""
    if page.lru is None:
        return "on no LRU list"
    pages = mm.host.lruvec.lists[page.lru]
    before = next((at for at, pfn in enumerate(islice(pages, LRU_COUNTED), 1) if pfn == page.pfn), None)
    place = f"behind the {LRU_COUNTED}" if before is None else str(before)
    return f"LRU {LRU_NAMES[page.lru]}: {place} of {len(pages)}"


def _reverse_rows(kvm: Kvm, slot: MemSlot, gfn: Gfn) -> Iterator[Row]:
    found = sptes_of(kvm, slot, gfn)
    if not found:
        yield Row("no spte maps it")
    for sptep in found:
        yield Row(f"spte at {sptep * 8:#x}: {short_spte(kvm.q[sptep])}")
    for text in tlbs(kvm, slot, gfn):
        yield Row(text.replace("the TLB of vCPU", "TLB of vCPU").replace(" may map", ":"))


def gpa_of(vcpu: Vcpu, gva: int) -> Gpa | None:
    """Through the guest's tables."""
    return guest_walk(vcpu, Gva(gva)).gpa
