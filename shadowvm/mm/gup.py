"""get_user_pages: a reference to the page behind an address of a process (mm/gup.c).

The reference keeps the frame from being freed, not from being unmapped: who maps it elsewhere listens to the mmu
notifiers. Drop it with put_page().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, Hva, Vpn
from ..events import get_user_page as trace_get_user_page
from ..x86 import PT_ACCESSED, PT_DIRTY, PT_PRESENT, PT_WRITABLE
from .fault import MAJOR, NONE, VmFault, handle_mm_fault
from .page_alloc import Page
from .pgtable import PTE_SPECIAL, ptep_set_access_flags
from .pmd import huge_pte, pmdp_set_access_flags
from .vma import VM_PFNMAP, VM_WRITE, find_vma

if TYPE_CHECKING:
    from .mm_struct import MmStruct

_MAY_WRITE = PT_PRESENT | PT_WRITABLE
_WRITTEN = PT_ACCESSED | PT_DIRTY
_READ_MASK, _WRITE_MASK = PT_PRESENT | PTE_SPECIAL, _MAY_WRITE | PTE_SPECIAL
"""Behind a special pte there is no page to be had."""


def get_user_page_fast(mm: MmStruct, vpn: Vpn, write: bool) -> Page | None:
    """The page if its pte allows the access now, with a reference; None needs the slow way. Takes no lock.

    The pte becomes accessed; for a write, the pte and the page become dirty.
    """
    table = mm.pte_tables.get(vpn >> 9)
    if table is None:
        return _get_huge_page_fast(mm, vpn, write) if mm.huge_pmds else None
    index = table + (vpn & 511)
    pte = mm.q[index]
    if write:
        if pte & _WRITE_MASK != _MAY_WRITE:
            return None
        page = mm.mem_map[pte >> PAGE_SHIFT]
        page.refcount += 1
        page.dirty = True
        # Before the trace: at a scheduling point the page may be unmapped, and the pte be a swap entry.
        if pte & _WRITTEN != _WRITTEN:
            ptep_set_access_flags(mm, vpn, index, _WRITTEN)
        if trace_get_user_page.on:
            trace_get_user_page(mm.id, vpn, page.pfn, write)
        return page
    if pte & _READ_MASK != PT_PRESENT:
        return None
    page = mm.mem_map[pte >> PAGE_SHIFT]
    page.refcount += 1
    if not pte & PT_ACCESSED:
        ptep_set_access_flags(mm, vpn, index, PT_ACCESSED)
    if trace_get_user_page.on:
        trace_get_user_page(mm.id, vpn, page.pfn, write)
    return page


def _get_huge_page_fast(mm: MmStruct, vpn: Vpn, write: bool) -> Page | None:
    """gup_fast_pmd_leaf(): a reference to the one page, though a huge pmd maps it."""
    pte = huge_pte(mm, vpn)
    need, bits = (_MAY_WRITE, _WRITTEN) if write else (PT_PRESENT, PT_ACCESSED)
    if pte & need != need:
        return None
    page = mm.mem_map[pte >> PAGE_SHIFT]
    page.refcount += 1
    page.dirty = page.dirty or write
    if pte & bits != bits:
        pmdp_set_access_flags(mm, vpn, bits)
    if trace_get_user_page.on:
        trace_get_user_page(mm.id, vpn, page.pfn, write)
    return page


def get_user_page(mm: MmStruct, vpn: Vpn, write: bool, nowait: bool = False) -> Page | VmFault:
    """The page with a reference, faulted in as needed; a VmFault (SIGSEGV, OOM) if that is not possible. May sleep.

    SIGSEGV too where a device is, whose frames are no pages that could be referred to (pfnmap.py).
    With nowait (FOLL_NOWAIT) it does not wait for I/O: RETRY when that has been started or goes on already.
    """
    page = get_user_page_fast(mm, vpn, write)
    while page is None:
        fault = fixup_user_fault(mm, Hva(vpn << PAGE_SHIFT), write, nowait, refused=VM_PFNMAP)
        if fault is not NONE and fault is not MAJOR:
            return fault
        page = get_user_page_fast(mm, vpn, write)
    return page


def fixup_user_fault(mm: MmStruct, hva: Hva, write: bool, nowait: bool = False, refused: int = 0) -> VmFault:
    """Take mmap_lock, find the area, and fault: NONE or MAJOR, or SIGSEGV, OOM, or with nowait RETRY.

    refused: flags of areas that will not do.
    """
    lock = mm.mmap_lock
    lock.acquire_read()
    try:
        vma = find_vma(mm, hva)
        if vma is None or vma.flags & refused or (write and not vma.flags & VM_WRITE):
            return VmFault.SIGSEGV
        return handle_mm_fault(mm, vma, hva, write, nowait)
    finally:
        lock.release_read()


def host_pte(mm: MmStruct, vpn: Vpn) -> int:
    """The raw pte of a page, 0 if there is none; of a huge page see huge_pte(). For inspection: no side effects."""
    table = mm.pte_tables.get(vpn >> 9)
    return huge_pte(mm, vpn) if table is None else mm.q[table + (vpn & 511)]
