"""Memory of a driver in a process: no page of it is counted or reclaimed, and it goes with its last area."""

from __future__ import annotations

import pytest

from shadowvm.addr import HUGE_PAGE_SIZE, PAGE_SIZE, Hva, Pfn
from shadowvm.errors import ConfigError
from shadowvm.mm.fault import VmFault
from shadowvm.mm.gup import get_user_page, get_user_page_fast, host_pte
from shadowvm.mm.khugepaged import ScanResult, collapse_huge_page
from shadowvm.mm.memory_failure import MfResult, memory_failure
from shadowvm.mm.mm_struct import (
    MmStruct,
    exit_mmap,
    madvise_dontneed,
    madvise_hugepage,
    madvise_pageout,
    mmap,
    mprotect,
    munmap,
    read_user_u64,
    write_user_u64,
)
from shadowvm.mm.pfnmap import Pfnmap, follow_pfnmap, maps_device_frame, open_device
from shadowvm.mm.pgtable import PTE_SPECIAL
from shadowvm.mm.vma import find_vma
from shadowvm.x86 import PT_WRITABLE
from tests.mm.helpers import vpn_of

PAGES = 6


@pytest.fixture
def device(host):
    return open_device(host, PAGES)


@pytest.fixture
def start(mm, device):
    return mmap(mm, PAGES * PAGE_SIZE, device=device)


def counts(host, device):
    return [(page.refcount, page.mapcount) for page in host.zone.mem_map[device.first : device.first + PAGES]]


def test_the_process_reads_and_writes_the_frames_of_the_device(mm, device, start):
    assert read_user_u64(mm, Hva(start + 2 * PAGE_SIZE)) == 0
    assert write_user_u64(mm, Hva(start + 2 * PAGE_SIZE), 7) is None
    assert mm.q[device.first + 2 << 9] == 7
    assert host_pte(mm, vpn_of(start, 2)) & PTE_SPECIAL
    assert counts(mm.host, device) == [(1, 0)] + [(0, 0)] * (PAGES - 1)
    assert mm.rss_anon == 0


@pytest.mark.parametrize("touched", [False, True])
def test_get_user_pages_finds_no_page(mm, device, start, touched):
    if touched:
        write_user_u64(mm, start, 7)
    for write in (False, True):
        assert get_user_page_fast(mm, vpn_of(start), write) is None
        assert get_user_page(mm, vpn_of(start), write) is VmFault.SIGSEGV
    assert counts(mm.host, device)[0] == (1, 0)


def test_who_asks_for_the_frame_hears_whether_it_may_be_written(mm, device, start):
    vma = find_vma(mm, start)
    assert follow_pfnmap(mm, vma, vpn_of(start, 1)) is None
    write_user_u64(mm, Hva(start + PAGE_SIZE), 7)
    assert follow_pfnmap(mm, vma, vpn_of(start, 1)) == Pfnmap(Pfn(device.first + 1), True)
    mprotect(mm, start, PAGES * PAGE_SIZE, False)
    assert follow_pfnmap(mm, vma, vpn_of(start, 1)) == Pfnmap(Pfn(device.first + 1), False)
    assert write_user_u64(mm, Hva(start + PAGE_SIZE), 8) is VmFault.SIGSEGV
    mprotect(mm, start, PAGES * PAGE_SIZE, True)
    assert write_user_u64(mm, Hva(start + PAGE_SIZE), 8) is None
    assert host_pte(mm, vpn_of(start, 1)) & PT_WRITABLE
    anonymous = mmap(mm, PAGE_SIZE)
    write_user_u64(mm, anonymous, 1)
    assert follow_pfnmap(mm, find_vma(mm, anonymous), vpn_of(anonymous)) is None


def test_its_memory_is_given_back_with_the_last_part_of_the_last_area(mm, host, device, start):
    free = host.zone.nr_free
    write_user_u64(mm, Hva(start + 4 * PAGE_SIZE), 7)
    other = mmap(mm, PAGE_SIZE, device=device)
    assert read_user_u64(mm, other) == 0
    munmap(mm, Hva(start + PAGE_SIZE), 2 * PAGE_SIZE)
    assert read_user_u64(mm, Hva(start + 4 * PAGE_SIZE)) == 7
    assert read_user_u64(mm, Hva(start + 5 * PAGE_SIZE)) == 0
    assert maps_device_frame(mm, Pfn(device.first + 5))
    assert not maps_device_frame(mm, Pfn(device.first + 3))
    munmap(mm, start, PAGES * PAGE_SIZE)
    assert device.users == 1
    munmap(mm, other, PAGE_SIZE)
    assert (device.users, counts(host, device)) == (0, [(0, 0)] * PAGES)
    assert host.zone.nr_free == free + PAGES


def test_a_process_that_ends_gives_it_back(mm, host, device, start):
    write_user_u64(mm, start, 7)
    exit_mmap(mm)
    assert host.zone.nr_free == host.zone.managed


@pytest.mark.parametrize("advice", [madvise_dontneed, madvise_pageout, madvise_hugepage])
def test_no_advice_is_taken_of_it(mm, device, start, advice):
    write_user_u64(mm, start, 7)
    with pytest.raises(ConfigError, match="maps a device"):
        advice(mm, start, PAGE_SIZE)
    assert read_user_u64(mm, start) == 7


def test_nothing_is_made_huge(new_host):
    mm = MmStruct(new_host(8 << 20), "vmm")
    start = mmap(mm, HUGE_PAGE_SIZE, device=open_device(mm.host, 512))
    write_user_u64(mm, start, 7)
    assert collapse_huge_page(mm, vpn_of(start)) is ScanResult.VMA_CHECK


def test_nothing_is_taken_out_of_service(mm, host, device, start):
    for pfn in (device.first, device.first + 1):
        assert memory_failure(host, Pfn(pfn)) is MfResult.IGNORED


def test_areas_of_devices_are_never_joined(mm, host, device):
    starts = [mmap(mm, PAGE_SIZE, align=PAGE_SIZE, device=device) for _ in range(2)]
    assert starts[1] - starts[0] == PAGE_SIZE
    assert len(mm.vmas.areas) == 2


def test_too_large_a_device_is_refused(host):
    with pytest.raises(ConfigError, match="no 100000 free pages in a row"):
        open_device(host, 100000)
