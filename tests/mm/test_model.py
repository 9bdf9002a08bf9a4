"""Random calls on a small host against a dictionary: contents, books and brackets must agree after every one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from shadowvm.addr import Hva, Vpn
from shadowvm.events import attached, swap_readpage, swap_writepage
from shadowvm.mm.fault import VmFault
from shadowvm.mm.gup import get_user_page, host_pte
from shadowvm.mm.host import Host
from shadowvm.mm.mm_struct import (
    MmStruct,
    copy_from_user,
    copy_to_user,
    exit_mmap,
    madvise_dontneed,
    madvise_pageout,
    mmap,
    mprotect,
    munmap,
    read_user_u64,
    write_user_u64,
)
from shadowvm.mm.mmu_notifier import mmu_notifier_register
from shadowvm.mm.page_alloc import Page, put_page
from shadowvm.mm.vmscan import ScanControl, shrink_lruvec
from tests.mm.helpers import BracketCheck, Mirror, audit, make_host

AREA = 400
"""Pages of one mapping at most; the host has 510."""


class HostMemory:
    """What was done, what it must have led to, and one method for each thing that can be done."""

    def __init__(self, random: Random, swap_pages: int, host: Host | None = None, area: int = AREA) -> None:
        self.random = random
        self.host = host or make_host(swap=swap_pages << 12)
        self.area = area
        self.swap_pages = swap_pages
        self.mm = MmStruct(self.host, "vmm")
        self.mirror = Mirror()
        mmu_notifier_register(self.mirror, self.mm)
        self.sums: dict[int, bytes] = {}
        self.areas: dict[int, bool] = {}  # vpn -> writable
        self.words: dict[int, int] = {}  # vpn -> what was written
        self.held: dict[Page, int] = {}
        self.serial = 0

    def io(self, tracepoint, args):
        slot, pfn = args
        content = self.host.ram.read_page(pfn)
        if tracepoint is swap_writepage:
            self.sums[slot] = content
        else:
            assert self.sums[slot] == content

    def room(self, pages):
        """Whether so many more pages fit, so that running out of memory never hides a lost page."""
        usable = self.host.zone.managed - self.host.zone.high - 30 + self.swap_pages
        return len(self.words) + 2 * len(self.held) + pages < usable

    def pick(self, most):
        """A run of mapped pages."""
        run = [self.random.choice(sorted(self.areas))]
        while len(run) < most and run[-1] + 1 in self.areas:
            run.append(run[-1] + 1)
        return run[: self.random.randint(1, len(run))]

    def map(self):
        if len(self.areas) > 3 * self.area:
            return
        pages, writable = self.random.randint(self.area // 4, self.area), self.random.random() < 0.9
        start = mmap(self.mm, pages << 12, writable)
        for vpn in range(start >> 12, (start >> 12) + pages):
            assert vpn not in self.areas
            self.areas[vpn] = writable

    def unmap(self):
        run = self.pick(100)
        munmap(self.mm, Hva(run[0] << 12), len(run) << 12)
        for vpn in run:
            del self.areas[vpn]
            self.words.pop(vpn, None)

    def protect(self):
        writable = self.random.random() < 0.7
        run = self.pick(100)
        mprotect(self.mm, Hva(run[0] << 12), len(run) << 12, writable)
        self.areas.update(dict.fromkeys(run, writable))

    def write(self):
        how = self.random.choice(["gup", "word", "copy", "mirror"])
        run = self.pick(self.area)
        if not self.room(len(run)):
            return
        for vpn in run:
            self.serial += 1
            self.write_one(Vpn(vpn), self.serial if self.serial % 7 else 0, how)

    def write_one(self, vpn, value, how):
        hva = Hva(vpn << 12 | 40)
        if not self.areas[vpn]:
            assert get_user_page(self.mm, vpn, True) is VmFault.SIGSEGV
            assert write_user_u64(self.mm, hva, 1) is VmFault.SIGSEGV
            return
        if how == "word":
            assert write_user_u64(self.mm, hva, value) is None
        elif how == "copy":
            assert copy_to_user(self.mm, hva, value.to_bytes(8, "little")) is None
        else:
            page = get_user_page(self.mm, vpn, True)
            assert isinstance(page, Page)
            self.mm.q[page.pfn << 9 | 5] = value
            put_page(self.host, page)
            if how == "mirror":
                self.mirror.mapped[vpn] = page
                self.mirror.young.add(vpn)
        self.words[vpn] = value

    def read(self):
        how = self.random.choice(["gup", "word", "copy"])
        for vpn in self.pick(self.area):
            hva = Hva(vpn << 12 | 40)
            if how == "word":
                value = read_user_u64(self.mm, hva)
            elif how == "copy":
                value = int.from_bytes(copy_from_user(self.mm, hva, 8), "little")
            else:
                page = get_user_page(self.mm, Vpn(vpn), False)
                assert isinstance(page, Page)
                value = self.mm.q[page.pfn << 9 | 5]
                put_page(self.host, page)
            assert value == self.words.get(vpn, 0)

    def write_through_the_mirror(self):
        """A secondary MMU may write for as long as it was told nothing, if it made the host pte dirty."""
        value = self.random.randint(1, 99)
        for vpn, page in list(self.mirror.mapped.items())[:50]:
            assert host_pte(self.mm, Vpn(vpn)) >> 12 == page.pfn
            page.dirty = True
            self.mirror.young.add(vpn)
            self.mm.q[page.pfn << 9 | 5] = self.words[vpn] = value

    def dontneed(self):
        run = self.pick(64)
        madvise_dontneed(self.mm, Hva(run[0] << 12), len(run) << 12)
        for vpn in run:
            self.words.pop(vpn, None)

    def pageout(self):
        run = self.pick(200)
        madvise_pageout(self.mm, Hva(run[0] << 12), len(run) << 12)

    def reclaim(self):
        sc = ScanControl(1 << 20)
        sc.priority = self.random.randint(0, 4)
        shrink_lruvec(self.host, sc)

    def hold(self):
        for vpn in self.pick(8):
            if not self.room(1) or len(self.held) > 40:
                return
            page = get_user_page(self.mm, Vpn(vpn), False)
            assert isinstance(page, Page)
            self.held[page] = self.held.get(page, 0) + 1

    def let_go(self):
        for page, count in self.held.items():
            for _ in range(count):
                put_page(self.host, page)
        self.held.clear()

    def finish(self):
        self.let_go()
        exit_mmap(self.mm)
        assert self.host.zone.nr_free == self.host.zone.managed
        assert self.host.swap.nr_free == self.host.swap.nr_slots
        audit(self.host)

    def calls(self) -> list[Callable[[], None]]:
        if not self.areas:
            return [self.map]
        often = [self.write, self.read] * 4 + [self.map, self.write_through_the_mirror] * 2
        rarely = [self.unmap, self.protect, self.dontneed, self.pageout, self.reclaim, self.hold, self.let_go]
        return often + rarely


@pytest.mark.parametrize("swap_pages", [300, 1000, 4096])
@pytest.mark.parametrize("seed", range(4))
def test_random_calls_agree_with_the_model(seed, swap_pages):
    random = Random(seed)
    model = HostMemory(random, swap_pages)
    check = BracketCheck()
    with check.watching(), attached(model.io, (swap_writepage, swap_readpage)):
        for _ in range(200):
            random.choice(model.calls())()
            assert not model.mirror.open
            assert not check.open
            audit(model.host, model.held)
        vmstat = model.host.vmstat
        assert min(vmstat.pswpin, vmstat.pswpout, vmstat.swpin_zero, vmstat.pgactivate, vmstat.swap_ra_hit) > 0
        assert vmstat.oom_kill == 0
        model.finish()
    model.host.close()
