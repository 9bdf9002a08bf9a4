from __future__ import annotations

import pytest

from shadowvm.errors import ModelBug
from shadowvm.mm.filemap import folio_lock, folio_unlock
from shadowvm.mm.gup import get_user_page_fast, host_pte
from shadowvm.mm.mm_struct import mmap, munmap
from shadowvm.mm.mmu_notifier import mmu_notifier_register
from shadowvm.mm.page_alloc import put_page
from shadowvm.mm.pgtable import SWP_ENTRY
from shadowvm.mm.rmap import folio_referenced, page_remove_rmap, rmap_walk, try_to_unmap
from shadowvm.mm.swap_state import add_to_swap
from shadowvm.mm.vma import find_vma
from shadowvm.x86 import PT_ACCESSED, PT_DIRTY
from tests.mm.helpers import BracketCheck, Mirror, audit, touch, vpn_of


@pytest.fixture
def vpn(mm):
    return vpn_of(mmap(mm, 1 << 20), 3)


def test_a_page_knows_where_it_is_mapped(mm, vpn):
    page = touch(mm, vpn)
    assert rmap_walk(page) == [(mm, find_vma(mm, vpn << 12), vpn)]
    assert (page.mapcount, page.refcount) == (1, 1)


def test_a_page_is_not_found_through_a_new_area_at_the_old_address(mm, vpn):
    page = touch(mm, vpn)
    page.refcount += 1
    munmap(mm, vpn - 3 << 12, 1 << 20)
    assert mmap(mm, 1 << 20) == vpn - 3 << 12
    other = touch(mm, vpn)
    assert other is not page
    assert rmap_walk(page) == []
    put_page(mm.host, page)


def test_a_mapping_that_is_not_there_cant_be_removed(mm, vpn):
    page = touch(mm, vpn)
    page_remove_rmap(mm, page)
    with pytest.raises(ModelBug):
        page_remove_rmap(mm, page)


def test_accessed_marks_are_read_once(mm, vpn):
    page = touch(mm, vpn)
    assert folio_referenced(page) == 1
    assert not host_pte(mm, vpn) & PT_ACCESSED
    assert folio_referenced(page) == 0
    put_page(mm.host, get_user_page_fast(mm, vpn, False))
    assert folio_referenced(page) == 1


@pytest.mark.parametrize("primary", [False, True])
@pytest.mark.parametrize("secondary", [False, True])
def test_either_side_makes_a_page_referenced_and_both_marks_are_cleared(mm, vpn, primary, secondary):
    mirror = Mirror()
    mmu_notifier_register(mirror, mm)
    page = touch(mm, vpn)
    folio_referenced(page)
    if primary:
        touch(mm, vpn)
    if secondary:
        mirror.young.add(vpn)
    assert folio_referenced(page) == (primary or secondary)
    assert not mirror.young
    assert folio_referenced(page) == 0


def test_unmapping_leaves_a_swap_entry_and_carries_dirty(mm, vpn):
    host = mm.host
    page = touch(mm, vpn)
    page.refcount += 1
    folio_lock(host, page)
    assert add_to_swap(host, page)
    slot = page.private
    page.dirty = False
    check, mirror = BracketCheck(), Mirror()
    mmu_notifier_register(mirror, mm)
    mirror.mapped[vpn] = page
    with check.watching():
        assert try_to_unmap(host, page)
    assert check.narrowed == 1
    assert mirror.calls == ["start CLEAR", "end CLEAR"]
    assert not mirror.mapped
    assert page.dirty
    assert host_pte(mm, vpn) == slot << 12 | SWP_ENTRY
    assert (page.mapcount, page.refcount, host.swap.count(slot)) == (0, 2, 1)
    assert (mm.rss_anon, mm.rss_swap) == (0, 1)
    folio_unlock(host, page)
    audit(host, {page: 1})


def test_a_page_written_by_nobody_stays_clean_when_unmapped(mm, vpn):
    host = mm.host
    page = touch(mm, vpn)
    page.refcount += 1
    page.locked = True
    add_to_swap(host, page)
    page.dirty = False
    index = mm.pte_tables[vpn >> 9] + (vpn & 511)
    mm.q[index] &= ~PT_DIRTY
    assert try_to_unmap(host, page)
    assert not page.dirty
