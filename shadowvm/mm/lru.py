"""The LRU lists of anonymous pages (include/linux/mm_inline.h, mm/swap.c).

A list runs from oldest (the kernel's tail, where reclaim takes) to newest. A page on a list holds no reference for
that; `page.lru` says which list. Lists are OrderedDicts by pfn: a plain dict would walk over the holes that
earlier pops left in its front.
"""

from __future__ import annotations

from collections import OrderedDict
from math import isqrt
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT
from ..errors import ModelBug

if TYPE_CHECKING:
    from .page_alloc import Page

LRU_INACTIVE_ANON = 0
LRU_ACTIVE_ANON = 1
LRU_NAMES = ("inactive_anon", "active_anon")

_GIB_SHIFT = 30 - PAGE_SHIFT


class Lruvec:
    """The node's lists."""

    __slots__ = ("active", "inactive", "lists")

    def __init__(self) -> None:
        self.inactive: OrderedDict[int, Page] = OrderedDict()
        self.active: OrderedDict[int, Page] = OrderedDict()
        self.lists = (self.inactive, self.active)


def lru_add(lruvec: Lruvec, page: Page) -> None:
    """Put a page on the newest end of the list that its `active` flag names."""
    if page.lru is not None:
        raise ModelBug(f"pfn {page.pfn:x} is on {LRU_NAMES[page.lru]} already")
    lru = LRU_ACTIVE_ANON if page.active else LRU_INACTIVE_ANON
    page.lru = lru
    lruvec.lists[lru][page.pfn] = page


def lru_del(lruvec: Lruvec, page: Page) -> None:
    """Take a page off its list."""
    if page.lru is None:
        raise ModelBug(f"pfn {page.pfn:x} is on no list")
    del lruvec.lists[page.lru][page.pfn]
    page.lru = None


def isolate_lru_folio(lruvec: Lruvec, page: Page) -> bool:
    """folio_isolate_lru(): take one page for oneself, with a reference. False if it is on no list."""
    if page.lru is None:
        return False
    lru_del(lruvec, page)
    page.refcount += 1
    return True


def isolate_lru_folios(lruvec: Lruvec, lru: int, nr: int) -> list[Page]:
    """Take up to `nr` of the oldest pages off a list, with a reference to each."""
    pages = lruvec.lists[lru]
    take = pages.popitem
    taken = []
    for _ in range(min(nr, len(pages))):
        page = take(last=False)[1]
        page.lru = None
        page.refcount += 1
        taken.append(page)
    return taken


def inactive_is_low(lruvec: Lruvec) -> bool:
    """mm/vmscan.c: is the inactive list too short for a fair second chance?

    The wanted ratio active:inactive is 1 below 1 GiB of pages, then sqrt(10 * GiB).
    """
    inactive, active = len(lruvec.inactive), len(lruvec.active)
    gib = (inactive + active) >> _GIB_SHIFT
    return inactive * (isqrt(10 * gib) if gib else 1) < active
