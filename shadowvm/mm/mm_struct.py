"""The address space of a process on the host: areas, page table, subscribers, and the calls that change it.

Functions take mmap_lock themselves. Whatever they do to present ptes is bracketed by mmu notifiers, and pages are
freed only after the start of the bracket returned and page_table_lock was dropped (mm/mmap.c, mprotect.c,
madvise.c, memory.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE, Hva, Vpn
from ..errors import ConfigError, ModelBug
from ..sync import Lock, LockRank, RwSemaphore
from ..x86 import PT_PRESENT, PT_WRITABLE
from .huge import change_huge_pmds, split_huge_pmd, split_huge_pmd_address, zap_huge_pmds
from .lru import isolate_lru_folio
from .mmu_notifier import (
    NO_SUBSCRIPTIONS,
    MmuNotifierEvent,
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_release,
)
from .page_alloc import Page, put_page
from .pfnmap import Device, vma_close, vma_open
from .pgtable import (
    HWPOISON_ENTRY,
    PTE_SPECIAL,
    blocks_among,
    free_pgtables,
    populated_tables,
    ptep_clear_flush,
    ptep_set_wrprotect,
)
from .rmap import page_remove_rmap
from .swap_state import free_swap_and_cache, free_swap_cache
from .uaccess import cmpxchg_user_u64, copy_from_user, copy_to_user, read_user_u64, write_user_u64
from .vma import (
    VM_HUGEPAGE,
    VM_IO,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Vma,
    VmaList,
    isolate_vmas,
    merge_vmas,
    unmapped_area,
)
from .vmscan import reclaim_pages

if TYPE_CHECKING:
    from ..sync import Task
    from .host import Host

__all__ = [
    "MmStruct",
    "cmpxchg_user_u64",
    "copy_from_user",
    "copy_to_user",
    "exit_mmap",
    "madvise_dontneed",
    "madvise_hugepage",
    "madvise_pageout",
    "mmap",
    "mprotect",
    "munmap",
    "read_user_u64",
    "write_user_u64",
]

MMAP_BASE = Hva(0x7F00_0000_0000)
TASK_SIZE = Hva(0x7FFF_FFFF_F000)


class MmStruct:
    """One address space.

    `pte_tables[vpn >> 9]` is the place in `ram.q` of a pte table, so that a walk is one lookup. Where a huge page is
    mapped, `huge_pmds` has the place of its pmd instead, and `deposited` a table for its split (pmd.py); `huge_gibs`
    are the numbers of the pmd tables (address >> 30) that ever had one. `tlb` and `tlb_w` are the host CPU's TLB for
    the kernel's own accesses (uaccess.py). `mmap_lock` protects the areas and keeps page tables from being freed;
    `page_table_lock` is held across every decision about a pte.
    """

    __slots__ = (
        "deposited",
        "host",
        "huge_gibs",
        "huge_pmds",
        "id",
        "mem_map",
        "mmap_lock",
        "name",
        "notifier_readers",
        "notifier_waiters",
        "notifiers",
        "page_table_lock",
        "pgd",
        "pte_tables",
        "q",
        "rss_anon",
        "rss_swap",
        "tlb",
        "tlb_w",
        "vmas",
    )

    def __init__(self, host: Host, name: str) -> None:
        pgd = host.alloc_page(True)
        if pgd is None:
            raise ConfigError(f"host memory is used up: no page table for {name}")
        pgd.table = True
        host.vmstat.nr_page_table_pages += 1
        self.host = host
        self.name = name
        self.id = host.next_mm_id
        host.next_mm_id += 1
        host.mms.append(self)
        self.pgd = pgd
        self.q = host.ram.q
        self.mem_map = host.zone.mem_map
        self.mmap_lock = RwSemaphore(host.sched, "mmap_lock", LockRank.MMAP_LOCK)
        self.page_table_lock = Lock(host.sched, "page_table_lock", LockRank.PAGE_TABLE_LOCK)
        self.vmas = VmaList()
        self.pte_tables: dict[int, int] = {}
        self.huge_pmds: dict[int, int] = {}
        self.deposited: dict[int, Page] = {}
        self.huge_gibs: set[int] = set()
        self.tlb: dict[int, int] = {}
        self.tlb_w: dict[int, int] = {}
        self.rss_anon = 0
        self.rss_swap = 0
        self.notifiers = NO_SUBSCRIPTIONS
        self.notifier_readers = 0
        self.notifier_waiters: list[Task] = []


def mmap(
    mm: MmStruct, length: int, writable: bool = True, align: int = HUGE_PAGE_SIZE, device: Device | None = None
) -> Hva:
    """Map `length` bytes (rounded up to pages) of anonymous memory, or of a device, at the lowest free address."""
    if length <= 0:
        raise ModelBug(f"mmap of {length} bytes")
    length = length + PAGE_SIZE - 1 & -PAGE_SIZE
    mm.mmap_lock.acquire()
    start = unmapped_area(mm, length, MMAP_BASE, align)
    end = Hva(start + length)
    if end > TASK_SIZE:
        mm.mmap_lock.release()
        raise ConfigError(f"no room for {length} bytes in the address space of {mm.name}")
    vma = Vma(start, end, VM_READ | VM_WRITE if writable else VM_READ)
    if device is not None:
        vma.flags |= VM_IO | VM_PFNMAP | VM_SHARED
        vma.device, vma.pgoff = device, 0
        vma_open(vma)
    mm.vmas.insert(vma)
    merge_vmas(mm, start, end)
    mm.mmap_lock.release()
    return start


def munmap(mm: MmStruct, start: Hva, length: int) -> None:
    """Unmap a range, which may hold any number of areas and holes."""
    end = _check_range(start, length)
    mm.mmap_lock.acquire()
    split_huge_pmd_address(mm, start)
    split_huge_pmd_address(mm, end)
    areas = isolate_vmas(mm, start, end)
    for vma in areas:
        _zap(mm, vma.start, vma.end, MmuNotifierEvent.UNMAP)
    # Detached only now: a reverse map walk finds the area as long as a page of it may be mapped.
    for vma in areas:
        mm.vmas.remove(vma)
        vma_close(vma)
    free_pgtables(mm, start, end)
    mm.mmap_lock.release()


def mprotect(mm: MmStruct, start: Hva, length: int, writable: bool) -> None:
    """Make a range read-only or writable. Ptes become writable later, by a write fault."""
    end = _check_range(start, length)
    mm.mmap_lock.acquire()
    split_huge_pmd_address(mm, start)
    split_huge_pmd_address(mm, end)
    for vma in isolate_vmas(mm, start, end):
        vma.flags = vma.flags | VM_WRITE if writable else vma.flags & ~VM_WRITE
        range_ = MmuNotifierRange(mm, vma.start, vma.end, MmuNotifierEvent.PROTECTION_VMA)
        mmu_notifier_invalidate_range_start(range_)
        if not writable:
            _change_protection(mm, vma.start, vma.end)
        mmu_notifier_invalidate_range_end(range_)
    merge_vmas(mm, start, end)
    mm.mmap_lock.release()


def madvise_dontneed(mm: MmStruct, start: Hva, length: int) -> None:
    """MADV_DONTNEED: throw the contents away; the next access finds zeros."""
    end = _check_range(start, length)
    _refuse_devices(mm, start, end)
    mm.mmap_lock.acquire_read()
    split_huge_pmd_address(mm, start)
    split_huge_pmd_address(mm, end)
    for vma in mm.vmas.overlapping(start, end):
        _zap(mm, max(start, vma.start), min(end, vma.end), MmuNotifierEvent.CLEAR)
    mm.mmap_lock.release_read()


def madvise_hugepage(mm: MmStruct, start: Hva, length: int, wanted: bool = True) -> None:
    """MADV_HUGEPAGE, MADV_NOHUGEPAGE: what faults may do from now on; pages that are there stay as they are."""
    end = _check_range(start, length)
    _refuse_devices(mm, start, end)
    mm.mmap_lock.acquire()
    split_huge_pmd_address(mm, start)
    split_huge_pmd_address(mm, end)
    for vma in isolate_vmas(mm, start, end):
        vma.flags = vma.flags & ~(VM_HUGEPAGE | VM_NOHUGEPAGE) | (VM_HUGEPAGE if wanted else VM_NOHUGEPAGE)
    merge_vmas(mm, start, end)
    mm.mmap_lock.release()


def madvise_pageout(mm: MmStruct, start: Hva, length: int) -> int:
    """MADV_PAGEOUT: reclaim the pages of a range now; returns how many were freed. Raises SwapIOError."""
    end = _check_range(start, length)
    _refuse_devices(mm, start, end)
    host = mm.host
    mm.mmap_lock.acquire_read()
    try:
        for block in blocks_among(mm.huge_pmds, start, end):
            split_huge_pmd(mm, block)
        pages = []
        for vpn, index in _populated(mm, start, end):
            pte = mm.q[index]
            if not pte & PT_PRESENT:
                continue
            page = mm.mem_map[pte >> PAGE_SHIFT]
            if page.mapcount == 1 and page.index == vpn and isolate_lru_folio(host.lruvec, page):
                pages.append(page)
        return reclaim_pages(host, pages)
    finally:
        mm.mmap_lock.release_read()


def exit_mmap(mm: MmStruct) -> None:
    """The process ends: subscribers let go first, then everything is unmapped and freed."""
    host = mm.host
    mmu_notifier_release(mm)
    mm.mmap_lock.acquire()
    areas = list(mm.vmas.areas)
    for vma in areas:
        _zap(mm, vma.start, vma.end, MmuNotifierEvent.UNMAP)
    for vma in areas:
        mm.vmas.remove(vma)
        vma_close(vma)
    free_pgtables(mm, MMAP_BASE, TASK_SIZE)
    host.vmstat.nr_page_table_pages -= 1
    put_page(host, mm.pgd)
    host.mms.remove(mm)
    mm.mmap_lock.release()


def _check_range(start: Hva, length: int) -> Hva:
    if start % PAGE_SIZE or length <= 0 or length % PAGE_SIZE:
        raise ModelBug(f"range {start:#x} + {length:#x} is not a number of pages")
    return Hva(start + length)


def _refuse_devices(mm: MmStruct, start: Hva, end: Hva) -> None:
    """can_madv_lru_vma(): there is nothing to reclaim, to throw away or to make huge."""
    for vma in mm.vmas.overlapping(start, end):
        if vma.flags & VM_PFNMAP:
            raise ConfigError(f"madvise: {vma} maps a device, whose memory is not the process's to give up")


def _populated(mm: MmStruct, start: Hva, end: Hva) -> list[tuple[Vpn, int]]:
    """(vpn, index) of each pte in [start, end) that is not none."""
    found = []
    for block in populated_tables(mm, start, end):
        table = mm.pte_tables[block]
        first, last = max(start >> PAGE_SHIFT, block << 9), min(end >> PAGE_SHIFT, block + 1 << 9)
        index = table + (first & 511)
        found += [(Vpn(vpn), index + i) for i, vpn in enumerate(range(first, last)) if mm.q[index + i]]
    return found


def _within(block: int, start: Hva, end: Hva) -> tuple[Hva, Hva]:
    """The part of [start, end) that one pte table covers."""
    return Hva(max(start, block << 21)), Hva(min(end, block + 1 << 21))


def _zap(mm: MmStruct, start: Hva, end: Hva, event: MmuNotifierEvent) -> None:
    """zap_page_range_single(): clear every pte of the range and free what it held."""
    range_ = MmuNotifierRange(mm, start, end, event)
    mmu_notifier_invalidate_range_start(range_)
    if mm.huge_pmds:
        zap_huge_pmds(mm, start, end)
    for block in populated_tables(mm, start, end):
        _zap_pte_range(mm, *_within(block, start, end))
    mmu_notifier_invalidate_range_end(range_)


def _zap_pte_range(mm: MmStruct, start: Hva, end: Hva) -> None:
    """Clear the ptes of one table; pages are freed after the lock is dropped (struct mmu_gather)."""
    host = mm.host
    zero_pfn = host.zone.zero_page.pfn
    gather: list[Page] = []
    slots: list[int] = []
    mm.page_table_lock.acquire()
    for vpn, index in _populated(mm, start, end):
        pte = ptep_clear_flush(mm, vpn, index)
        pfn = pte >> PAGE_SHIFT
        if not pte & PT_PRESENT:
            if not pte & HWPOISON_ENTRY:
                slots.append(pfn)
                mm.rss_swap -= 1
        elif pfn != zero_pfn and not pte & PTE_SPECIAL:
            page = mm.mem_map[pfn]
            page_remove_rmap(mm, page)
            gather.append(page)
    mm.page_table_lock.release()
    for slot in slots:
        free_swap_and_cache(host, slot)
    for page in gather:
        free_swap_cache(host, page)
        put_page(host, page)


def _change_protection(mm: MmStruct, start: Hva, end: Hva) -> None:
    """Take the right to write from every present pte of the range."""
    if mm.huge_pmds:
        change_huge_pmds(mm, start, end)
    for block in populated_tables(mm, start, end):
        mm.page_table_lock.acquire()
        for vpn, index in _populated(mm, *_within(block, start, end)):
            if mm.q[index] & PT_PRESENT and mm.q[index] & PT_WRITABLE:
                ptep_set_wrprotect(mm, vpn, index)
        mm.page_table_lock.release()
