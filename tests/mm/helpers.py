"""What the tests of mm/ share: small hosts, a full audit of a host's books, and a subscriber that watches brackets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shadowvm.addr import PAGE_SHIFT, PAGE_SIZE, Hva, Vpn
from shadowvm.events import (
    Tracepoint,
    attached,
    host_pte_change,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from shadowvm.mm.gup import get_user_page
from shadowvm.mm.host import Host
from shadowvm.mm.huge import Thp
from shadowvm.mm.mm_struct import MmStruct
from shadowvm.mm.mmu_notifier import MmuNotifier, MmuNotifierRange
from shadowvm.mm.page_alloc import Page, put_page
from shadowvm.mm.pgtable import SWP_ENTRY
from shadowvm.mm.swap import SWAP_HAS_CACHE, SwapFile
from shadowvm.phys import Ram
from shadowvm.sync import Scheduler
from shadowvm.x86 import PT_PAGE_SIZE

MIB = 1 << 20


def make_host(memory: int = 2 * MIB, swap: int = 8 * MIB, thp: Thp = Thp.NEVER) -> Host:
    return Host(Ram(memory), SwapFile(swap), Scheduler(), thp)


def vpn_of(start: Hva, page: int = 0) -> Vpn:
    return Vpn((start >> PAGE_SHIFT) + page)


def touch(mm: MmStruct, vpn: Vpn, write: bool = True) -> Page:
    """Fault a page in; the reference is dropped again."""
    page = get_user_page(mm, vpn, write)
    assert isinstance(page, Page), page
    put_page(mm.host, page)
    return page


def put_word(mm: MmStruct, vpn: Vpn, value: int) -> None:
    """Store through get_user_page, as a hypervisor does."""
    page = get_user_page(mm, vpn, True)
    assert isinstance(page, Page), page
    mm.q[page.pfn << 9 | 5] = value
    put_page(mm.host, page)


def get_word(mm: MmStruct, vpn: Vpn) -> int:
    page = get_user_page(mm, vpn, False)
    assert isinstance(page, Page), page
    value = mm.q[page.pfn << 9 | 5]
    put_page(mm.host, page)
    return value


def ptes(mm: MmStruct) -> Iterator[tuple[int, int]]:
    """(vpn, pte) of everything in the host page table, read through the 4-level tree from its root."""

    def walk(table: int, level: int, base: int) -> Iterator[tuple[int, int]]:
        for i in range(512):
            entry = mm.q[table + i]
            vpn = base | i << 9 * (level - 1)
            if entry and level == 1:
                yield vpn, entry
            elif entry & PT_PAGE_SIZE:
                yield from ((vpn | j, entry + (j << 12)) for j in range(512))
            elif entry:
                yield from walk(entry >> 12 << 9, level - 1, vpn)

    return walk(mm.pgd.pfn << 9, 4, 0)


def audit(host: Host, held: dict[Page, int] | None = None, extra: int = 0) -> None:
    """Count everything again and compare with the books; `held` are references of the test, `extra` frames."""
    held = held or {}
    zone, swap = host.zone, host.swap
    maps: Counter[int] = Counter()
    slots: Counter[int] = Counter()
    for mm in host.mms:
        present = [(vpn, pte >> 12) for vpn, pte in ptes(mm) if pte & 1 and pte >> 12 != zone.zero_page.pfn]
        entries = [pte >> 12 for _, pte in ptes(mm) if pte & (1 | SWP_ENTRY) == SWP_ENTRY]
        assert (mm.rss_anon, mm.rss_swap) == (len(present), len(entries))
        maps.update(pfn for _, pfn in present)
        slots.update(entries)
        for vpn, pfn in present:
            page = zone.mem_map[pfn]
            assert page.index == vpn
            assert page.mapping is not None
            assert mm in page.mapping.mms
        assert mm.tlb_w.items() <= mm.tlb.items()
        assert mm.deposited.keys() == mm.huge_pmds.keys()
        assert not mm.huge_pmds.keys() & mm.pte_tables.keys()
        for block, at in mm.huge_pmds.items():
            assert zone.mem_map[mm.q[at] >> 12].order == 9
            assert not any(mm.q[mm.deposited[block].pfn << 9 : mm.deposited[block].pfn + 1 << 9])
    heads = [page for page in zone.mem_map[2 : zone.bump] if page.order]
    assert len(heads) == sum(len(mm.huge_pmds) for mm in host.mms) == host.vmstat.nr_anon_transparent_hugepages
    tails = {pfn for head in heads for pfn in range(head.pfn + 1, head.pfn + 512)}
    runs = {pfn for first in zone.free_runs for pfn in range(first, first + 512)}
    free = {page.pfn for page in zone.free_list} | runs
    assert len(free) == len(zone.free_list) + 512 * len(zone.free_runs)
    assert zone.nr_free == len(free) + host.ram.nr_frames - zone.bump
    tables = 0
    for page in zone.mem_map[2 : zone.bump]:
        if page.hwpoison:
            assert (page.mapcount, page.lru, page.refcount) == (0, None, 1 + page.swapcache)
            continue
        if page.pfn in free:
            assert (page.refcount, page.mapcount, page.lru, page.swapcache) == (0, 0, None, False)
            continue
        assert not page.locked
        tables += page.table
        assert page.mapcount == maps[page.pfn]
        user = page.mapcount + page.swapcache
        assert (page.lru is not None) == (page.swapbacked and page.pfn not in tails)
        assert page.swapbacked >= bool(user)
        if page.swapbacked:
            assert page.refcount == user + held.get(page, 0)
    assert tables == host.vmstat.nr_page_table_pages
    on_lru = len(host.lruvec.inactive) + len(host.lruvec.active) + len(tails)
    others = sum(1 for page in held if not page.swapbacked and page is not zone.zero_page)
    assert zone.managed == zone.nr_free + tables + on_lru + others + extra
    for slot, page in swap.cache.items():
        assert page.swapcache
        assert page.private == slot
    for slot in range(swap.nr_slots):
        assert swap.swap_map[slot] == slots[slot] | (SWAP_HAS_CACHE if slot in swap.cache else 0)
    assert swap.nr_free == swap.swap_map.count(0)


class Mirror(MmuNotifier):
    """A secondary MMU in small: it maps pages, and must have dropped them whenever the host's pte changes."""

    def __init__(self) -> None:
        self.mapped: dict[int, Page] = {}
        self.young: set[int] = set()
        self.open: list[MmuNotifierRange] = []
        self.calls: list[str] = []
        self.released = 0

    def map(self, mm: MmStruct, vpn: Vpn, write: bool) -> Page:
        page = touch(mm, vpn, write)
        assert not any(r.start <= vpn << 12 < r.end for r in self.open)
        self.mapped[vpn] = page
        self.young.add(vpn)
        return page

    def invalidate_range_start(self, range_: MmuNotifierRange) -> bool:
        self.calls.append(f"start {range_.event.name}")
        self.open.append(range_)
        for vpn in [vpn for vpn in self.mapped if range_.start <= vpn << 12 < range_.end]:
            del self.mapped[vpn]
            self.young.discard(vpn)
        return True

    def invalidate_range_end(self, range_: MmuNotifierRange) -> None:
        self.calls.append(f"end {range_.event.name}")
        self.open.remove(range_)

    def clear_flush_young(self, mm: MmStruct, start: Hva, end: Hva) -> bool:
        young = {vpn for vpn in self.young if start <= vpn << 12 < end}
        self.young -= young
        return bool(young)

    def release(self, mm: MmStruct) -> None:
        self.calls.append("release")
        self.released += 1
        self.mapped.clear()


class BracketCheck:
    """Listens: whatever narrows a present host pte does so inside an open range; starts and ends pair up."""

    def __init__(self) -> None:
        self.open: list[MmuNotifierRange] = []
        self.narrowed = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        tracepoints = (mmu_notifier_invalidate_range_start, mmu_notifier_invalidate_range_end, host_pte_change)
        with attached(self._sink, tracepoints):
            yield
        assert not self.open

    def _sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        if tracepoint is mmu_notifier_invalidate_range_start:
            self.open.append(args[0])
        elif tracepoint is mmu_notifier_invalidate_range_end:
            self.open.remove(args[0])
        else:
            mm, vpn, old, new = args
            if old & 1 and (not new & 1 or old >> 12 != new >> 12 or old & 2 > new & 2):
                self.narrowed += 1
                inside = [r for r in self.open if r.mm.id == mm and r.start <= vpn << 12 < r.end]
                assert inside, f"vpn {vpn:x}: {old:x} -> {new:x} outside of any range"


def page_bytes(value: int) -> bytes:
    return value.to_bytes(8, "little") * (PAGE_SIZE // 8)
