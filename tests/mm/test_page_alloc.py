from __future__ import annotations

from math import isqrt

import pytest

from shadowvm.errors import ConfigError, ModelBug
from shadowvm.events import attached, mm_page_alloc, mm_page_free
from shadowvm.mm.page_alloc import Zone, get_page, put_page
from shadowvm.phys import POISON_PAGE, ZERO_PAGE, Ram
from tests.mm.helpers import MIB, audit


@pytest.mark.parametrize("mib", [2, 4, 64, 1024])
def test_watermarks_follow_the_kernels_formula(mib):
    zone = Zone(Ram(mib * MIB))
    assert zone.min == isqrt(zone.managed * 4 * 16) // 4
    assert zone.low - zone.min == zone.high - zone.low == max(zone.min // 4, zone.managed // 1000)


def test_a_zone_that_is_all_watermark_is_refused():
    with pytest.raises(ConfigError, match="too small"):
        Zone(Ram(64 << 12))


def test_no_frame_is_handed_out_twice_and_frame_0_and_the_zero_page_never(host):
    pages = []
    while (page := host.alloc_page()) is not None:
        pages.append(page)
    assert len({page.pfn for page in pages}) == len(pages)
    assert min(page.pfn for page in pages) > host.zone.zero_page.pfn > 0
    assert host.zone.nr_free == host.zone.min
    assert host.vmstat.oom_kill == 1


def test_nowait_fails_at_the_min_watermark_without_reclaim(host):
    while host.alloc_page_nowait() is not None:
        pass
    assert host.zone.nr_free == host.zone.min
    assert host.vmstat.allocstall_normal == 0


def test_whoever_frees_memory_may_use_the_reserve(host):
    while host.alloc_page_nowait() is not None:
        pass
    host.memalloc.add(host.sched.current)
    assert host.alloc_page() is not None


def test_a_freed_frame_is_poisoned_and_comes_back_clean(host):
    page = host.alloc_page(zeroed=True)
    pfn = page.pfn
    page.dirty = page.referenced = page.active = True
    page.private = "owner's"
    host.ram.write_page(pfn, b"x" * 4096)
    put_page(host, page)
    assert host.ram.read_page(pfn) == POISON_PAGE
    again = host.alloc_page(zeroed=True)
    assert again.pfn == pfn
    assert host.ram.read_page(pfn) == ZERO_PAGE
    assert (again.dirty, again.referenced, again.active, again.private) == (False, False, False, None)


def test_the_frame_lives_until_the_last_reference_is_dropped(host):
    page = host.alloc_page()
    get_page(page)
    put_page(host, page)
    assert host.zone.nr_free == host.zone.managed - 1
    put_page(host, page)
    assert host.zone.nr_free == host.zone.managed
    audit(host)


def test_code_caches_hear_of_every_freed_frame(host):
    dropped = []
    host.ram.code_caches.append(dropped.append)
    page = host.alloc_page()
    put_page(host, page)
    assert dropped == [page.pfn]


def test_tracepoints_see_the_frame_as_it_was(host):
    page = host.alloc_page()
    host.ram.write_page(page.pfn, b"x" * 4096)
    seen = []
    with attached(
        lambda tp, args: seen.append((tp.name, host.ram.read_page(args[0])[:1])), (mm_page_free, mm_page_alloc)
    ):
        put_page(host, page)
        host.alloc_page(zeroed=True)
    assert seen == [("mm_page_free", b"x"), ("mm_page_alloc", b"\xaa")]


def test_a_page_put_too_often_is_a_bug(host):
    page = host.alloc_page()
    put_page(host, page)
    with pytest.raises(ModelBug):
        put_page(host, page)
    with pytest.raises(ModelBug):
        get_page(page)


def test_freeing_a_mapped_page_is_a_bug(host):
    mapped = host.alloc_page_nowait()
    mapped.mapcount = 1
    with pytest.raises(ModelBug, match="in use"):
        put_page(host, mapped)
