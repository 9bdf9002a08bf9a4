from __future__ import annotations

import pytest

from shadowvm.addr import HUGE_PAGE_SIZE, Vpn
from shadowvm.errors import ConfigError, ModelBug, SwapIOError
from shadowvm.mm.gup import host_pte
from shadowvm.mm.mm_struct import (
    MMAP_BASE,
    MmStruct,
    exit_mmap,
    madvise_dontneed,
    madvise_pageout,
    mmap,
    mprotect,
    munmap,
)
from shadowvm.mm.mmu_notifier import mmu_notifier_register
from shadowvm.x86 import PT_WRITABLE
from tests.mm.helpers import BracketCheck, Mirror, audit, get_word, put_word, touch, vpn_of


def test_mappings_are_aligned_and_apart(mm):
    first, second = mmap(mm, 5000), mmap(mm, 3 << 20)
    assert (first, second) == (MMAP_BASE, MMAP_BASE + HUGE_PAGE_SIZE)
    assert mm.vmas.areas[0].end == first + 8192
    munmap(mm, first, 8192)
    assert mmap(mm, 4096) == first
    assert mmap(mm, 4096, align=4096) == first + 4096
    assert (mm.vmas.areas[0].start, mm.vmas.areas[0].end) == (first, first + 8192)


def test_nonsense_is_refused(mm):
    with pytest.raises(ModelBug):
        mmap(mm, 0)
    with pytest.raises(ModelBug):
        munmap(mm, MMAP_BASE + 1, 4096)
    with pytest.raises(ConfigError, match="no room"):
        mmap(mm, 1 << 47)
    assert mm.mmap_lock.owner is None


def test_no_room_for_the_first_table(host):
    while host.alloc_page_nowait() is not None:
        pass
    with pytest.raises(ConfigError):
        MmStruct(host, "late")
    assert host.mms == []


def test_unmapping_a_part_frees_just_that(mm):
    start = mmap(mm, 16 << 12)
    for i in range(16):
        put_word(mm, vpn_of(start, i), i + 1)
    mirror, check = Mirror(), BracketCheck()
    mmu_notifier_register(mirror, mm)
    for i in range(16):
        mirror.map(mm, vpn_of(start, i), True)
    free = mm.host.zone.nr_free
    with check.watching():
        munmap(mm, start + (4 << 12), 3 << 12)
    assert mirror.calls == ["start UNMAP", "end UNMAP"]
    assert check.narrowed == 3
    assert len(mirror.mapped) == 13
    assert mm.host.zone.nr_free == free + 3
    assert [get_word(mm, vpn_of(start, i)) for i in (0, 3, 7, 15)] == [1, 4, 8, 16]
    audit(mm.host)


def test_unmapping_reaches_over_holes_and_areas(mm):
    starts = [mmap(mm, 4096) for _ in range(3)]
    for start in starts:
        put_word(mm, vpn_of(start), 1)
    mprotect(mm, starts[1], 4096, writable=False)
    munmap(mm, starts[0], starts[2] + 4096 - starts[0])
    assert mm.vmas.areas == []
    assert mm.host.vmstat.nr_page_table_pages == 1
    audit(mm.host)


def test_unmapped_memory_is_gone_from_swap_too(mm):
    start = mmap(mm, 64 << 12)
    for i in range(64):
        put_word(mm, vpn_of(start, i), i + 1)
    assert madvise_pageout(mm, start, 64 << 12) == 64
    for i in range(0, 64, 3):
        get_word(mm, vpn_of(start, i))
    assert mm.host.swap.cache
    munmap(mm, start, 64 << 12)
    assert mm.host.swap.nr_free == mm.host.swap.nr_slots
    assert not mm.host.swap.cache
    audit(mm.host)


def test_read_only_means_read_only_for_secondary_mmus_too(mm):
    start = mmap(mm, 4 << 12)
    mirror, check = Mirror(), BracketCheck()
    mmu_notifier_register(mirror, mm)
    for i in range(4):
        mirror.map(mm, vpn_of(start, i), True)
    with check.watching():
        mprotect(mm, start + 4096, 2 << 12, writable=False)
    assert mirror.calls == ["start PROTECTION_VMA", "end PROTECTION_VMA"]
    assert check.narrowed == 2
    assert sorted(mirror.mapped) == [vpn_of(start, 0), vpn_of(start, 3)]
    writable = [bool(host_pte(mm, vpn_of(start, i)) & PT_WRITABLE) for i in range(4)]
    assert writable == [True, False, False, True]
    mprotect(mm, start, 4 << 12, writable=True)
    assert len(mm.vmas.areas) == 1


def test_dontneed_throws_away(mm):
    start = mmap(mm, 4 << 12)
    for i in range(4):
        put_word(mm, vpn_of(start, i), 7)
    madvise_pageout(mm, start + 4096, 4096)
    check, mirror = BracketCheck(), Mirror()
    mmu_notifier_register(mirror, mm)
    with check.watching():
        madvise_dontneed(mm, start, 2 << 12)
    assert mirror.calls == ["start CLEAR", "end CLEAR"]
    assert [get_word(mm, vpn_of(start, i)) for i in range(4)] == [0, 0, 7, 7]
    audit(mm.host)


def test_pageout_ignores_accessed_marks_and_leaves_the_zero_page(mm):
    start = mmap(mm, 4 << 12)
    touch(mm, vpn_of(start), write=False)
    put_word(mm, vpn_of(start, 1), 7)
    with BracketCheck().watching():
        assert madvise_pageout(mm, start, 4 << 12) == 1
    assert host_pte(mm, vpn_of(start)) & 1
    assert not host_pte(mm, vpn_of(start, 1)) & 1


def test_pageout_that_fails_loses_no_page(mm, monkeypatch):
    start = mmap(mm, 80 << 12)
    for i in range(80):
        put_word(mm, vpn_of(start, i), i + 1)

    def fails(_fd, _buffers, _offset):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwritev", fails)
        with pytest.raises(SwapIOError):
            madvise_pageout(mm, start, 80 << 12)
    assert not mm.mmap_lock.readers
    audit(mm.host)
    assert [get_word(mm, vpn_of(start, i)) for i in range(80)] == list(range(1, 81))


def test_exit_gives_everything_back(host):
    free = host.zone.nr_free
    mms = [MmStruct(host, name) for name in ("one", "two")]
    assert [mm.id for mm in mms] == [1, 2]
    for mm in mms:
        start = mmap(mm, 4 << 20)
        for i in range(400):
            put_word(mm, vpn_of(start, i), i + 1)
        touch(mm, Vpn(vpn_of(start) + 900), write=False)
    assert host.vmstat.pswpout > 0
    with BracketCheck().watching():
        exit_mmap(mms[0])
    audit(host)
    assert get_word(mms[1], vpn_of(mms[1].vmas.areas[0].start, 399)) == 400
    exit_mmap(mms[1])
    assert host.zone.nr_free == free == host.zone.managed
    assert host.swap.nr_free == host.swap.nr_slots
    assert host.mms == []
    assert not host.lruvec.inactive
    assert host.vmstat.nr_page_table_pages == 0
    audit(host)
