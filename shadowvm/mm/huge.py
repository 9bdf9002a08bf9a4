"""Transparent huge pages of anonymous memory: how they come, split and go (mm/huge_memory.c).

A write to untouched memory gets a page of 2 MiB where the area covers it all, allows it, and a free run is at hand;
else, and for the zero page and copies on write, 4 KiB pages serve. A huge page is mapped by one huge pmd, in one mm,
from its birth until that pmd is split: then it is 512 pages like any others. (In the kernel a huge page can outlive its
pmd, mapped by ptes until reclaim splits it.) Its head alone stands on an LRU list.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from ..addr import HUGE_PAGE_SIZE, PAGE_SHIFT, Hva, Vpn
from ..errors import ModelBug
from ..x86 import PT_ACCESSED, PT_DIRTY, PT_PAGE_SIZE, PT_PRESENT, PT_WRITABLE
from .compound import alloc_compound, compound_pages, put_compound
from .lru import LRU_INACTIVE_ANON, lru_add
from .mmu_notifier import (
    MmuNotifierEvent,
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from .page_alloc import put_page
from .pgtable import PAGE_SHARED_DIRTY, blocks_among, pmd_alloc
from .pmd import (
    HPAGE_PMD_NR,
    pmd_populate_split,
    pmdp_huge_clear_flush,
    pmdp_invalidate,
    pmdp_set_access_flags,
    pmdp_set_wrprotect,
    set_huge_pmd,
)
from .rmap import anon_vma_prepare
from .vma import VM_HUGEPAGE, VM_NOHUGEPAGE, VM_WRITE

if TYPE_CHECKING:
    from .host import Host
    from .mm_struct import MmStruct
    from .page_alloc import Page
    from .vma import Vma


class Thp(Enum):
    """/sys/kernel/mm/transparent_hugepage/enabled: madvise means only where madvise(MADV_HUGEPAGE) was called."""

    NEVER = "never"
    MADVISE = "madvise"
    ALWAYS = "always"


class HugeFault(Enum):
    """What became of a fault where no pte table is."""

    DONE = 0
    FALLBACK = 1
    """Go on with 4 KiB."""


def thp_vma_allowable(host: Host, vma: Vma, block: int) -> bool:
    """Whether faults may map a huge page at a block (vpn >> 9) of the area."""
    if host.thp is Thp.NEVER or vma.flags & VM_NOHUGEPAGE:
        return False
    if host.thp is Thp.MADVISE and not vma.flags & VM_HUGEPAGE:
        return False
    return vma.start <= block << 21 and block + 1 << 21 <= vma.end


def handle_huge_fault(mm: MmStruct, vma: Vma, vpn: Vpn, write: bool) -> HugeFault:
    """A fault at an address without a pte table; mmap_lock is held for reading. May sleep."""
    block = vpn >> 9
    at = mm.huge_pmds.get(block)
    if at is None:
        if write and thp_vma_allowable(mm.host, vma, block):
            return _do_huge_pmd_anonymous_page(mm, vma, block)
        return HugeFault.FALLBACK
    entry = mm.q[at]
    if not entry & PT_PRESENT:
        # It is being split.
        mm.page_table_lock.acquire()
        mm.page_table_lock.release()
    elif write and not entry & PT_WRITABLE:
        return _do_huge_pmd_wp_page(mm, vpn, at, entry)
    return HugeFault.DONE


def _do_huge_pmd_anonymous_page(mm: MmStruct, vma: Vma, block: int) -> HugeFault:
    host = mm.host
    at = pmd_alloc(mm, Vpn(block << 9))
    if at is None:
        return HugeFault.FALLBACK
    head = alloc_compound(host)
    table = None if head is None else host.alloc_page_nowait(True)
    if head is None or table is None:
        host.vmstat.thp_fault_fallback += 1
        if head is not None:
            put_compound(host, head)
        return HugeFault.FALLBACK
    mm.page_table_lock.acquire()
    if mm.q[at]:
        mm.page_table_lock.release()
        put_page(host, table)
        put_compound(host, head)
        return HugeFault.DONE
    host.vmstat.thp_fault_alloc += 1
    host.vmstat.nr_page_table_pages += 1
    table.table = True
    map_huge_page(mm, vma, block, at, head, table)
    mm.page_table_lock.release()
    return HugeFault.DONE


def map_huge_page(mm: MmStruct, vma: Vma, block: int, at: int, head: Page, table: Page) -> None:
    """Map a fresh huge page at the pmd at `at`. It takes over the caller's references. Under page_table_lock."""
    host = mm.host
    anon_vma = anon_vma_prepare(mm, vma)
    for i, page in enumerate(compound_pages(host.zone, head)):
        page.mapping = anon_vma
        page.index = Vpn(block << 9 | i)
        page.swapbacked = True
        page.mapcount = 1
    mm.rss_anon += HPAGE_PMD_NR
    host.vmstat.nr_anon_transparent_hugepages += 1
    lru_add(host.lruvec, head)
    rights = PAGE_SHARED_DIRTY if vma.flags & VM_WRITE else PAGE_SHARED_DIRTY & ~PT_WRITABLE
    set_huge_pmd(mm, block, at, head.pfn << PAGE_SHIFT | rights | PT_PAGE_SIZE, table)


def _do_huge_pmd_wp_page(mm: MmStruct, vpn: Vpn, at: int, entry: int) -> HugeFault:
    """A write to a read-only huge pmd: nobody else uses the page, so that it can be written, or it is split."""
    block = vpn >> 9
    mm.page_table_lock.acquire()
    same = mm.huge_pmds.get(block) == at and mm.q[at] == entry
    pinned = same and any(page.refcount > 1 for page in compound_pages(mm.host.zone, _head(mm, entry)))
    if same and not pinned:
        mm.host.vmstat.pgreuse += 1
        pmdp_set_access_flags(mm, vpn, PT_WRITABLE | PT_DIRTY | PT_ACCESSED)
    mm.page_table_lock.release()
    if pinned:
        split_huge_pmd(mm, block)
    return HugeFault.DONE


def _head(mm: MmStruct, entry: int) -> Page:
    return mm.mem_map[entry >> PAGE_SHIFT]


def split_huge_pmd(mm: MmStruct, block: int, oldest: bool = False) -> bool:
    """Map the 512 pages of a block by ptes instead, and make them pages of their own. False if it was no huge one.

    Secondary MMUs lose the range, and map it anew as it is then. `oldest`: the pages are to be scanned next. The caller
    holds mmap_lock, or the folio lock of the head.
    """
    if block not in mm.huge_pmds:
        return False
    host = mm.host
    start = Hva(block << 21)
    range_ = MmuNotifierRange(mm, start, Hva(start + HUGE_PAGE_SIZE), MmuNotifierEvent.CLEAR)
    mmu_notifier_invalidate_range_start(range_)
    mm.page_table_lock.acquire()
    found = block in mm.huge_pmds
    if found:
        entry = pmdp_invalidate(mm, block)
        _split_page(host, _head(mm, entry), oldest)
        pmd_populate_split(mm, block, entry)
        host.vmstat.thp_split_pmd += 1
    mm.page_table_lock.release()
    mmu_notifier_invalidate_range_end(range_)
    return found


def _split_page(host: Host, head: Page, oldest: bool) -> None:
    """The pages behind the head get what it alone had: its place on a list, and its marks."""
    if not head.order:
        raise ModelBug(f"{head} is not the head of a huge page")
    tail = compound_pages(host.zone, head)[1:]
    head.order = 0
    host.vmstat.thp_split_page += 1
    host.vmstat.nr_anon_transparent_hugepages -= 1
    for page in tail:
        page.active, page.referenced = head.active, head.referenced
        page.dirty = page.dirty or head.dirty
    if oldest:
        inactive = host.lruvec.inactive
        for page in reversed(tail):
            page.active = False
            page.lru = LRU_INACTIVE_ANON
            inactive[page.pfn] = page
            inactive.move_to_end(page.pfn, last=False)
    else:
        for page in tail:
            lru_add(host.lruvec, page)


def split_huge_page(host: Host, head: Page) -> bool:
    """Reclaim wants base pages: split a locked huge page that it has isolated. False if somebody uses one of them."""
    expected = 2
    for page in compound_pages(host.zone, head):
        if page.refcount != expected:
            return False
        expected = 1
    if head.mapping is None:
        raise ModelBug(f"{head} is mapped by nobody known")
    block = head.index >> 9
    for mm in head.mapping.mms:
        at = mm.huge_pmds.get(block)
        if at is not None and mm.q[at] >> PAGE_SHIFT == head.pfn:
            split_huge_pmd(mm, block, oldest=True)
    return not head.order


def split_huge_pmd_address(mm: MmStruct, address: Hva) -> None:
    """vma_adjust_trans_huge(): an area is going to begin or end here. mmap_lock is held."""
    if address % HUGE_PAGE_SIZE and mm.huge_pmds:
        split_huge_pmd(mm, address >> 21)


def zap_huge_pmds(mm: MmStruct, start: Hva, end: Hva) -> None:
    """Unmap and free the huge pages of [start, end), which cuts none in two. Inside a notifier's range."""
    for block in blocks_among(mm.huge_pmds, start, end):
        mm.page_table_lock.acquire()
        # Reclaim may have split it, while we waited.
        if block not in mm.huge_pmds:
            mm.page_table_lock.release()
            continue
        entry, table = pmdp_huge_clear_flush(mm, block)
        host = mm.host
        head = _head(mm, entry)
        for page in compound_pages(host.zone, head):
            if page.mapcount != 1:
                raise ModelBug(f"{page} of a huge page has {page.mapcount} mappings")
            page.mapcount = 0
        mm.rss_anon -= HPAGE_PMD_NR
        host.vmstat.nr_page_table_pages -= 1
        host.vmstat.nr_anon_transparent_hugepages -= 1
        mm.page_table_lock.release()
        put_page(host, table)
        put_compound(host, head)


def change_huge_pmds(mm: MmStruct, start: Hva, end: Hva) -> None:
    """Take the right to write from the huge pmds of [start, end), which cuts none in two."""
    for block in blocks_among(mm.huge_pmds, start, end):
        mm.page_table_lock.acquire()
        if block in mm.huge_pmds and mm.q[mm.huge_pmds[block]] & PT_WRITABLE:
            pmdp_set_wrprotect(mm, block)
        mm.page_table_lock.release()


def host_pfn_mapping_level(mm: MmStruct, vpn: Vpn) -> int:
    """Level of the entry that maps the page: 2 under a huge pmd, else 1. Means something while none can be split."""
    at = mm.huge_pmds.get(vpn >> 9)
    return 2 if at is not None and mm.q[at] & PT_PRESENT else 1
