"""Reads from swap that take time (mm/page_io.c, swap_read_folio and end_swap_bio_read).

A read is submitted and its pages stay locked, and off the LRU, until the device is done; whoever needs one of them
waits for its lock. Without a SwapReads in `host.swap_reads` a read is done as soon as it is submitted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .filemap import folio_unlock
from .lru import lru_add

if TYPE_CHECKING:
    from .host import Host
    from .page_alloc import Page


class SwapReads:
    """The device. `later(done)` has `done` called when a read that begins now is complete."""

    __slots__ = ("_host", "_in_flight", "_later", "_number")

    def __init__(self, host: Host, later: Callable[[Callable[[], None]], object]) -> None:
        self._host = host
        self._later = later
        self._in_flight: dict[int, list[Page]] = {}
        self._number = 0

    def submit(self, pages: list[Page]) -> None:
        """The data of these locked swap cache pages is on its way."""
        self._number += 1
        self._in_flight[self._number] = pages
        self._later(partial(self._done, self._number))

    def _done(self, number: int) -> None:
        for page in self._in_flight.pop(number, ()):
            end_swap_read(self._host, page)

    def finish(self) -> None:
        """Every read is complete now: nobody is left for whom time could pass."""
        for number in list(self._in_flight):
            self._done(number)


def swap_read_submitted(host: Host, pages: list[Page]) -> None:
    """After swap_read_pages(): the pages become usable, at once or when the device is done.

    Pages of zeros need no device. The host's own accesses outside of any task (pid 0) find no one to wait with them.
    """
    reads = host.swap_reads
    if reads is not None and host.sched.current.pid:
        zeromap = host.swap.zeromap
        slow = [page for page in pages if not zeromap[page.private]]
        if slow:
            reads.submit(slow)
            pages = [page for page in pages if zeromap[page.private]]
    for page in pages:
        end_swap_read(host, page)


def end_swap_read(host: Host, page: Page) -> None:
    """The page holds what its slot holds: put it on the LRU and let those go on who wait for it."""
    page.swapbacked = True
    lru_add(host.lruvec, page)
    folio_unlock(host, page)
