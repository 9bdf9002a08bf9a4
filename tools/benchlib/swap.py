"""What a page through swap costs, against file I/O of the same pages without any of it."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator

from shadowvm.addr import PAGE_SHIFT, PAGE_SIZE
from shadowvm.config import MIB, MachineConfig
from shadowvm.guests import find_image
from shadowvm.machine import Machine
from shadowvm.mm.gup import get_user_page
from shadowvm.mm.host import Host
from shadowvm.mm.mm_struct import MmStruct, madvise_pageout, mmap
from shadowvm.mm.mmu_notifier import MmuNotifier, MmuNotifierRange, mmu_notifier_register
from shadowvm.mm.page_alloc import Page, put_page
from shadowvm.mm.swap import SwapFile, swap_read_pages, swap_write_pages
from shadowvm.mm.swap_state import add_to_swap
from shadowvm.phys import Ram
from shadowvm.sync import Scheduler

from .marks import MARK_PORT, WITHOUT_EVENTS, StopMarks
from .table import Row

NAMES = ("swap-file", "swap", "swap-guest")
GOAL = 5
BATCH = 32


def raw_io(pages: int) -> float:
    """Seconds to write a page to a file and read it back: 32 pages a call, from all over memory as in reclaim."""
    memory = memoryview(bytearray(pages * PAGE_SIZE))
    order = list(range(0, pages * PAGE_SIZE, PAGE_SIZE))
    random.Random(1).shuffle(order)
    frames = [memory[at : at + PAGE_SIZE] for at in order]
    times = []
    with tempfile.TemporaryFile() as file:
        for call in (os.pwritev, os.pwritev, os.preadv):
            began = time.thread_time()
            for first in range(0, pages, BATCH):
                call(file.fileno(), frames[first : first + BATCH], first * PAGE_SIZE)
            times.append(time.thread_time() - began)
    return (times[1] + times[2]) / pages


def _swap_once(size: int, host_memory: int) -> float:
    """Seconds per page of the guest's rounds through more memory than there is: each page goes out and comes in."""
    append = f"size={size} rounds=4 touch=1 mixed=0 copy=0 chase=0 switches=0 faults=0 {WITHOUT_EVENTS}"
    name, image = find_image("bench")
    config = MachineConfig(image, name, memory=2 * size, host_memory=host_memory, append=append)
    machine = Machine(config, lambda byte: None)
    marks = StopMarks(machine)
    machine.bus.register(marks, MARK_PORT, 1)
    machine.run()
    vmstat, costs = machine.host.vmstat, []
    for _ in range(4):
        pages = vmstat.pswpin + vmstat.pswpout
        marks.resume()
        machine.run()
        costs.append(marks.rounds["t"][-1] / ((vmstat.pswpin + vmstat.pswpout - pages) / 2))
    assert machine.run().status == 0
    machine.close()
    return min(costs)


class _Subscriber(MmuNotifier):
    """A secondary MMU that maps nothing: what the notifiers alone cost is part of every page's way."""

    def clear_flush_young(self, mm: MmStruct, start: int, end: int) -> bool:
        return False

    def invalidate_range_start(self, range_: MmuNotifierRange) -> bool:
        return True

    def invalidate_range_end(self, range_: MmuNotifierRange) -> None:
        pass


def _swap_mm_once(pages: int) -> float:
    """Seconds per page of the host's mm: dirty pages of a process are reclaimed, then accessed again."""
    sched = Scheduler()
    host = Host(Ram(2 * pages * PAGE_SIZE), SwapFile(2 * pages * PAGE_SIZE), sched)
    mm = MmStruct(host, "bench")
    mmu_notifier_register(_Subscriber(), mm)
    start = mmap(mm, pages * PAGE_SIZE)
    costs: list[float] = []

    def work() -> None:
        for _ in range(3):
            for vpn in range(start >> PAGE_SHIFT, (start >> PAGE_SHIFT) + pages):
                _touch(mm, vpn)
            began = time.thread_time()
            assert madvise_pageout(mm, start, pages * PAGE_SIZE) == pages
            for vpn in range(start >> PAGE_SHIFT, (start >> PAGE_SHIFT) + pages):
                page = get_user_page(mm, vpn, False)
                assert isinstance(page, Page)
                put_page(host, page)
            costs.append((time.thread_time() - began) / pages)

    sched.spawn("bench", work)
    sched.run()
    host.close()
    return min(costs)


def _touch(mm: MmStruct, vpn: int) -> None:
    page = get_user_page(mm, vpn, True)
    assert isinstance(page, Page)
    mm.q[page.pfn << 9] += 1
    put_page(mm.host, page)


def _swap_file_once(pages: int) -> float:
    """Seconds per page of the swap file alone, in batches: a slot, the way out, the way in."""
    host = Host(Ram(2 * pages * PAGE_SIZE), SwapFile(2 * pages * PAGE_SIZE), Scheduler())
    found = [host.alloc_page() for _ in range(pages)]
    random.Random(1).shuffle(found)
    frames = [page for page in found if page is not None]
    for page in frames:
        host.ram.write_page(page.pfn, b"\1" * PAGE_SIZE)
    batches = [frames[first : first + BATCH] for first in range(0, pages, BATCH)]
    times = []
    for call in (_write_batch, swap_write_pages, swap_read_pages):
        began = time.thread_time()
        for batch in batches:
            call(host, batch)
        times.append(time.thread_time() - began)
    host.close()
    return (times[1] + times[2]) / pages


def _write_batch(host: Host, batch: list[Page]) -> None:
    for page in batch:
        assert add_to_swap(host, page)
    swap_write_pages(host, batch)


def rows(names: set[str], repeat: int, quick: bool) -> Iterator[Row]:
    """The rows among `names`: the swap file alone; swap-out and swap-in by the mm; all that a guest's page takes."""
    if not names & set(NAMES):
        return
    size, host_memory = (8 * MIB, 4 * MIB) if quick else (16 * MIB, 8 * MIB)
    raw, layer, mm, whole = [], [], [], []
    for _ in range(repeat):
        raw.append(raw_io(size // PAGE_SIZE))
        layer.append(_swap_file_once(size // PAGE_SIZE))
        mm.append(_swap_mm_once(size // PAGE_SIZE))
        if "swap-guest" in names:
            whole.append(_swap_once(size, host_memory))
    if "swap-file" in names:
        yield Row("swap-file", "raw file I/O", "us/page", min(raw) * 1e6, min(layer) * 1e6, GOAL)
    if "swap" in names:
        yield Row("swap", "raw file I/O", "us/page", min(raw) * 1e6, min(mm) * 1e6, GOAL)
    if "swap-guest" in names:
        yield Row("swap-guest", "raw file I/O", "us/page", min(raw) * 1e6, min(whole) * 1e6, None)
