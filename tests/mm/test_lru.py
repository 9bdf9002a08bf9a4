from __future__ import annotations

import pytest

from shadowvm.errors import ModelBug
from shadowvm.mm.lru import (
    LRU_ACTIVE_ANON,
    LRU_INACTIVE_ANON,
    Lruvec,
    inactive_is_low,
    isolate_lru_folio,
    isolate_lru_folios,
    lru_add,
    lru_del,
)
from shadowvm.mm.page_alloc import Page
from shadowvm.mm.vmstat import VmStat


def pages(n):
    made = [Page(pfn) for pfn in range(2, 2 + n)]
    for page in made:
        page.refcount = 1
    return made


def test_isolation_takes_the_oldest_first_and_holds_a_reference():
    lruvec = Lruvec()
    made = pages(5)
    for page in made:
        lru_add(lruvec, page)
    assert isolate_lru_folios(lruvec, LRU_INACTIVE_ANON, 3) == made[:3]
    assert [page.refcount for page in made] == [2, 2, 2, 1, 1]
    assert [page.lru for page in made] == [None] * 3 + [LRU_INACTIVE_ANON] * 2
    assert isolate_lru_folios(lruvec, LRU_INACTIVE_ANON, 9) == made[3:]


def test_active_pages_go_to_the_active_list():
    lruvec = Lruvec()
    (page,) = pages(1)
    page.active = True
    lru_add(lruvec, page)
    assert page.lru == LRU_ACTIVE_ANON
    assert list(lruvec.active) == [page.pfn]
    lru_del(lruvec, page)
    assert not lruvec.active


def test_a_page_is_on_one_list_at_most():
    lruvec = Lruvec()
    (page,) = pages(1)
    lru_add(lruvec, page)
    with pytest.raises(ModelBug):
        lru_add(lruvec, page)
    assert isolate_lru_folio(lruvec, page)
    assert not isolate_lru_folio(lruvec, page)
    with pytest.raises(ModelBug):
        lru_del(lruvec, page)


@pytest.mark.parametrize(("inactive", "active", "low"), [(10, 10, False), (10, 11, True), (0, 0, False), (0, 1, True)])
def test_below_a_gigabyte_the_lists_should_be_equally_long(inactive, active, low):
    lruvec = Lruvec()
    for i, page in enumerate(pages(inactive + active)):
        page.active = i >= inactive
        lru_add(lruvec, page)
    assert inactive_is_low(lruvec) is low


def test_with_a_gigabyte_the_active_list_may_be_three_times_as_long():
    class Length:
        def __init__(self, n):
            self.n = n

        def __len__(self):
            return self.n

    lruvec = Lruvec()
    lruvec.inactive, lruvec.active = Length(1 << 16), Length(3 << 16)
    assert not inactive_is_low(lruvec)
    lruvec.active = Length((3 << 16) + 1)
    assert inactive_is_low(lruvec)


def test_gauges_count_the_lists(host):
    page = host.alloc_page()
    lru_add(host.lruvec, page)
    stat = VmStat.as_dict(host.vmstat)
    assert (stat["nr_inactive_anon"], stat["nr_active_anon"]) == (1, 0)
