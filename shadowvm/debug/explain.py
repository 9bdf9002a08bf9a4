"""Everything about an address of any kind, from the guest's tables to what the TLBs may hold, as lines of text.

gva -> the guest's entries -> gpa, gfn -> memslot -> hva, VMA, host pte -> frame or swap slot -> sptes -> TLBs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, Gfn, Gva, Hva, Pfn, Vpn
from ..kvm.mmu.paging_mode import PagingMode, paging_mode
from ..kvm.mmu.rmap import rmap_sptes
from ..kvm.mmu.role import role_text
from ..kvm.mmu.spte import SPTE_HOST_WRITABLE, SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE, spte_pfn
from ..kvm.mmu.tdp_iter import tdp_leaf
from ..mm.gup import host_pte
from ..mm.lru import LRU_NAMES
from ..mm.pgtable import SWP_ENTRY
from ..x86 import (
    PT_ACCESSED,
    PT_ADDR_MASK,
    PT_DIRTY,
    PT_NX,
    PT_PAGE_SIZE,
    PT_PRESENT,
    PT_USER,
    PT_WRITABLE,
)
from .peek import guest_walk

if TYPE_CHECKING:
    from ..kvm.memslot import MemSlot
    from ..kvm.vcpu import Vcpu
    from ..kvm.vm import Kvm
    from ..machine import Machine
    from ..mm.mm_struct import MmStruct
    from ..mm.page_alloc import Page
    from ..mm.swap import SwapFile

KINDS = ("gva", "gpa", "gfn", "hva", "pfn", "spte", "sptep", "swap")
MODE_NAMES = {
    PagingMode.NONPAGING: "no paging",
    PagingMode.PT32: "32-bit paging",
    PagingMode.PAE: "PAE paging",
    PagingMode.PT64: "4-level paging",
    PagingMode.LA57: "5-level paging",
}
_BITS = (
    (PT_PRESENT, "P"),
    (PT_WRITABLE, "W"),
    (PT_USER, "U"),
    (PT_ACCESSED, "A"),
    (PT_DIRTY, "D"),
    (PT_PAGE_SIZE, "PS"),
    (PT_NX, "NX"),
)
SPTE_BITS = (
    (SPTE_HOST_WRITABLE, "host-writable"),
    (SPTE_MMU_WRITABLE, "mmu-writable"),
)


def entry_text(entry: int) -> str:
    """A page table entry with its bits by name: `0xa023 P W A`."""
    return " ".join([f"{entry:#x}", *(name for bit, name in _BITS if entry & bit)])


def explain(machine: Machine, vcpu: Vcpu, kind: str, value: int) -> list[str]:
    """The lines for an address of one of KINDS."""
    return list(_EXPLAINERS[kind](machine, vcpu, value))


def _gva(machine: Machine, vcpu: Vcpu, gva: int) -> Iterator[str]:
    engine = vcpu.engine
    mode = paging_mode(engine.cr0, engine.cr4, engine.efer)
    yield f"gva {gva:#x}: vCPU {vcpu.id}, {MODE_NAMES[mode]}, cr3 {engine.cr3:#x}"
    walk = guest_walk(vcpu, Gva(gva))
    for step in walk.steps:
        entry = "no memory is there" if step.entry is None else entry_text(step.entry)
        yield f"  level {step.level}: table gpa {step.table:#x}, entry {step.at}: {entry}"
    if walk.gpa is None:
        yield "  the guest maps nothing there"
        return
    if walk.page_size > 4096:
        yield f"  a page of {walk.page_size >> 20} MiB"
    yield from _gpa(machine, vcpu, walk.gpa)


def _gpa(machine: Machine, vcpu: Vcpu, gpa: int) -> Iterator[str]:
    yield f"gpa {gpa:#x}: gfn {gpa >> PAGE_SHIFT:#x}"
    yield from _gfn(machine, vcpu, gpa >> PAGE_SHIFT)


def _gfn(machine: Machine, vcpu: Vcpu, number: int) -> Iterator[str]:
    kvm, gfn = machine.kvm, Gfn(number)
    slot = kvm.memslots.find(gfn)
    if slot is None:
        yield f"gfn {gfn:#x}: no memslot, so a device or nothing"
        return
    yield _slot_text(slot)
    if gfn in slot.gfn_write_track:
        yield f"  {slot.gfn_write_track[gfn]} shadow pages shadow gfn {gfn:#x}, which is write-protected"
    if slot.dirty_bitmap is not None:
        yield f"  dirty log: gfn {gfn:#x} is {'dirty' if gfn in slot.dirty_bitmap else 'clean'}"
    yield from _host_side(kvm.mm, slot.vpn(gfn))
    yield from spte_lines(kvm, slot, gfn)
    yield from tlbs(kvm, slot, gfn)


def _slot_text(slot: MemSlot) -> str:
    flags = f", flags {slot.flags:#x}" if slot.flags else ""
    return f"memslot {slot.id}: gfns {slot.base_gfn:#x}-{slot.end_gfn - 1:#x} at hva {slot.userspace_addr:#x}{flags}"


def _hva(machine: Machine, vcpu: Vcpu, value: int) -> Iterator[str]:
    ranges = machine.kvm.memslots.gfn_ranges(Hva(value), Hva(value + 1))
    if not ranges:
        yield from _host_side(machine.mm, Vpn(value >> PAGE_SHIFT))
        yield f"hva {value:#x}: in no memslot"
    for _, first, _ in ranges:
        yield f"hva {value:#x}: gfn {first:#x}"
        yield from _gfn(machine, vcpu, first)


def _pfn(machine: Machine, vcpu: Vcpu, value: int) -> Iterator[str]:
    page = machine.host.zone.mem_map[value] if 0 <= value < machine.ram.nr_frames else None
    if page is None:
        yield f"pfn {value:#x}: {'never used' if 0 <= value < machine.ram.nr_frames else 'the host has no such frame'}"
        return
    yield frame_text(page)
    sp = machine.kvm.sp_by_pfn.get(page.pfn)
    if sp is not None:
        yield f"  shadow page of gfn {sp.gfn:#x}, {role_text(sp.role)}, {len(sp.parent_ptes)} links to it"
    elif page.mapping is not None and page.mapcount:
        yield from _hva(machine, vcpu, page.index << PAGE_SHIFT)


def _sptep(machine: Machine, vcpu: Vcpu, value: int) -> Iterator[str]:
    sp = machine.kvm.sp_by_pfn.get(Pfn(value >> PAGE_SHIFT))
    if sp is None:
        yield f"sptep {value:#x}: no shadow page is there"
        return
    spte = machine.kvm.q[value >> 3]
    where = f"entry {value >> 3 & 511} of the page of gfn {sp.gfn:#x}, {role_text(sp.role)}"
    yield f"sptep {value:#x}: {spte_text(spte)}, {where}"
    if spte & SPTE_MMU_PRESENT and (sp.level == 1 or spte & PT_PAGE_SIZE):
        yield from _gfn(machine, vcpu, sp.gfn_of(value >> 3 & 511))


def _host_side(mm: MmStruct, vpn: Vpn) -> Iterator[str]:
    start = Hva(vpn << PAGE_SHIFT)
    areas = mm.vmas.overlapping(start, Hva(start + 1))
    pte = host_pte(mm, vpn)
    yield f"hva {start:#x}: VMA {areas[0] if areas else 'none'}, host pte {entry_text(pte)}"
    if pte & PT_PRESENT:
        page = mm.mem_map[(pte & PT_ADDR_MASK) >> PAGE_SHIFT]
        yield f"  {frame_text(page)}{_age(mm, page)}"
    elif pte & SWP_ENTRY:
        yield f"  {_slot_of_swap(mm.host.swap, pte >> PAGE_SHIFT)}"
    else:
        yield "  never touched"


def _slot_of_swap(swap: SwapFile, slot: int) -> str:
    where = "a page of zeros, only remembered" if swap.zeromap[slot] else "in the swap file"
    cached = swap.cache.get(slot)
    return f"swap slot {slot}: {where}" + ("" if cached is None else f", and in the swap cache: {frame_text(cached)}")


def _swap(machine: Machine, vcpu: Vcpu, slot: int) -> Iterator[str]:
    """A slot, and whose page is there."""
    swap = machine.host.swap
    if not 0 <= slot < swap.nr_slots or not swap.swap_map[slot]:
        yield f"swap slot {slot}: " + ("free" if 0 <= slot < swap.nr_slots else f"there are {swap.nr_slots} slots")
        return
    wanted = slot << PAGE_SHIFT | SWP_ENTRY
    for number, table in machine.mm.pte_tables.items():
        for index, pte in enumerate(machine.kvm.q[table : table + 512].tolist()):
            if pte & SWP_ENTRY and not pte & PT_PRESENT and pte >> PAGE_SHIFT == wanted >> PAGE_SHIFT:
                yield from _hva(machine, vcpu, (number << 9 | index) << PAGE_SHIFT)
                return
    yield f"{_slot_of_swap(swap, slot)}; no host pte names it"


def _age(mm: MmStruct, page: Page) -> str:
    """Where on its LRU list, and what the next scan will find."""
    if page.lru is None:
        return ""
    pages = mm.host.lruvec.lists[page.lru]
    place = next(place for place, pfn in enumerate(pages, 1) if pfn == page.pfn)
    return f", {place} of {len(pages)} from the oldest"


def frame_text(page: Page) -> str:
    """A frame: who holds it, and where it stands."""
    words = [
        f"pfn {page.pfn:#x}: refcount {page.refcount}, mapcount {page.mapcount}",
        f"on {LRU_NAMES[page.lru]}" if page.lru is not None else "on no LRU list",
    ]
    words += [name for name in ("dirty", "referenced", "locked", "swapcache", "table") if getattr(page, name)]
    return ", ".join(words) if page.refcount else f"pfn {page.pfn:#x}: free"


def spte_text(spte: int) -> str:
    """An spte with its bits by name."""
    if not spte & SPTE_MMU_PRESENT:
        return f"{spte:#x} not present"
    return " ".join([entry_text(spte), *(name for bit, name in SPTE_BITS if spte & bit)])


def sptes_of(kvm: Kvm, slot: MemSlot, gfn: Gfn) -> list[int]:
    """Where in ram.q the leaf sptes of a guest frame are, of every root."""
    if kvm.tdp_mmu_enabled:
        roots = [sp for sp in kvm.sp_by_pfn.values() if sp.root_count and sp.level >= 4]
        found = [tdp_leaf(kvm, root, gfn) for root in roots]
        return [sptep for sptep in found if sptep >= 0 and kvm.q[sptep] & SPTE_MMU_PRESENT]
    large = slot.rmap_large.get(Gfn(gfn & -512), [])
    return [*rmap_sptes(slot, gfn), *([large] if isinstance(large, int) else large)]


def spte_lines(kvm: Kvm, slot: MemSlot, gfn: Gfn) -> Iterator[str]:
    """Two lines for each leaf that maps a guest frame."""
    found = sptes_of(kvm, slot, gfn)
    if not found:
        yield f"no spte maps gfn {gfn:#x}: the next access faults"
    for sptep in found:
        sp = kvm.sp_by_pfn[Pfn(sptep >> 9)]
        state = ", unsync" if getattr(sp, "unsync", False) else ""
        yield f"spte at {sptep * 8:#x}: {spte_text(kvm.q[sptep])}"
        yield f"  in the shadow page of gfn {sp.gfn:#x}, {role_text(sp.role)}{state}"


def tlbs(kvm: Kvm, slot: MemSlot, gfn: Gfn) -> Iterator[str]:
    """Which TLBs may hold a translation to the frame of a gfn."""
    pte = host_pte(kvm.mm, slot.vpn(gfn))
    if not pte & PT_PRESENT:
        return
    pfn = Pfn((pte & PT_ADDR_MASK) >> PAGE_SHIFT)
    for vcpu in kvm.vcpus:
        if vcpu.engine.may_cache_writable(pfn):
            yield f"the TLB of vCPU {vcpu.id} may map pfn {pfn:#x}, writable"
        elif vcpu.engine.may_cache(pfn):
            yield f"the TLB of vCPU {vcpu.id} may map pfn {pfn:#x}"
    frames = {spte_pfn(kvm.q[sptep]) for sptep in sptes_of(kvm, slot, gfn) if not kvm.q[sptep] & PT_PAGE_SIZE}
    if frames - {pfn}:
        yield f"BROKEN: an spte maps another frame than the host pte does: {sorted(frames)}"


_EXPLAINERS = {
    "gva": _gva,
    "gpa": _gpa,
    "gfn": _gfn,
    "hva": _hva,
    "pfn": _pfn,
    "spte": _sptep,
    "sptep": _sptep,
    "swap": _swap,
}
