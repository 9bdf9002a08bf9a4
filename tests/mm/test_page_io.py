from __future__ import annotations

from collections.abc import Callable

import pytest

from shadowvm.addr import PAGE_SIZE, Hva, Vpn
from shadowvm.events import attached, sched_switch
from shadowvm.mm.fault import VmFault
from shadowvm.mm.gup import get_user_page, host_pte
from shadowvm.mm.mm_struct import MmStruct, exit_mmap, madvise_dontneed, madvise_pageout, mmap
from shadowvm.mm.page_alloc import put_page
from shadowvm.mm.page_io import SwapReads
from tests.mm.helpers import audit, get_word, put_word, vpn_of


class Device:
    """Reads end in the order in which they began, one whenever nobody can run."""

    def __init__(self, mm: MmStruct) -> None:
        self.queue: list[Callable[[], None]] = []
        self.sched = mm.host.sched
        self.sched.idle = self._idle
        mm.host.swap_reads = SwapReads(mm.host, self.queue.append)

    def _idle(self) -> bool:
        while self.queue and not self.sched.runnable:
            self.queue.pop(0)()
        return bool(self.sched.runnable)


@pytest.fixture
def swapped(mm: MmStruct) -> Vpn:
    """Sixteen pages on swap; page i holds i + 1, the last one zeros."""
    start = mmap(mm, 16 * PAGE_SIZE)
    for i in range(16):
        put_word(mm, vpn_of(start, i), i + 1 if i < 15 else 0)
    assert madvise_pageout(mm, start, 16 * PAGE_SIZE) == 16
    return vpn_of(start)


def test_a_task_sleeps_until_the_device_is_done_and_another_runs_meanwhile(mm: MmStruct, swapped: Vpn) -> None:
    device = Device(mm)
    done: list[object] = []
    mm.host.sched.spawn("reader", lambda: done.append(get_word(mm, swapped)))
    mm.host.sched.spawn("other", lambda: done.append(f"{len(device.queue)} read in flight"))
    mm.host.sched.run()
    assert done == ["1 read in flight", 1]
    audit(mm.host)


def test_two_tasks_wait_for_one_read(mm: MmStruct, swapped: Vpn) -> None:
    Device(mm)
    done: list[int] = []
    for _ in range(2):
        mm.host.sched.spawn("reader", lambda: done.append(get_word(mm, Vpn(swapped + 5))))
    mm.host.sched.run()
    assert done == [6, 6]
    assert mm.host.vmstat.pswpin == 1
    assert mm.host.vmstat.pgmajfault == 1
    audit(mm.host)


def test_nowait_starts_the_read_and_does_not_wait(mm: MmStruct, swapped: Vpn) -> None:
    device = Device(mm)
    answers: list[object] = []
    switches: list[object] = []

    def ask() -> None:
        with attached(lambda _, args: switches.append(args), [sched_switch]):
            answers.append(get_user_page(mm, swapped, False, nowait=True))
            answers.append(get_user_page(mm, swapped, False, nowait=True))
        device.queue.pop()()
        page = get_user_page(mm, swapped, False, nowait=True)
        assert not isinstance(page, VmFault)
        answers.append(mm.q[page.pfn << 9 | 5])
        put_page(mm.host, page)

    mm.host.sched.spawn("reader", ask)
    mm.host.sched.run()
    assert answers == [VmFault.RETRY, VmFault.RETRY, 1]
    assert switches == []
    assert mm.host.vmstat.pswpin == 1
    audit(mm.host)


def test_zeros_and_resident_pages_need_no_device(mm: MmStruct, swapped: Vpn) -> None:
    device = Device(mm)
    mm.host.sched.spawn("reader", lambda: put_word(mm, Vpn(swapped + 15), 3))
    mm.host.sched.run()
    assert device.queue == []
    assert host_pte(mm, Vpn(swapped + 15)) & 1


def test_an_access_outside_of_any_task_is_complete_at_once(mm: MmStruct, swapped: Vpn) -> None:
    device = Device(mm)
    assert get_word(mm, swapped) == 1
    assert device.queue == []


def test_an_area_may_go_while_its_pages_are_being_read(mm: MmStruct, swapped: Vpn) -> None:
    """The pages are nobody's when the read ends: only the cache has them, and reclaim takes them."""
    device = Device(mm)
    start = Hva(swapped << 12)

    def ask() -> None:
        assert get_user_page(mm, swapped, False, nowait=True) is VmFault.RETRY
        madvise_dontneed(mm, start, 16 * PAGE_SIZE)
        assert get_word(mm, swapped) == 0

    mm.host.sched.spawn("reader", ask)
    mm.host.sched.run()
    assert len(device.queue) == 1
    assert mm.host.swap_reads is not None
    mm.host.swap_reads.finish()
    device.queue.pop()()
    page = next(iter(mm.host.swap.cache.values()))
    assert not page.locked
    assert page.lru is not None
    assert mm.host.try_to_free_pages() > 0
    assert mm.host.swap.cache == {}
    exit_mmap(mm)
    audit(mm.host)
