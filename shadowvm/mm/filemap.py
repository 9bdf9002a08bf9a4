"""The folio lock (mm/filemap.c): whoever reads, writes or frees a swap cache page holds it.

It may be held across I/O. Rank: LockRank.FOLIO_LOCK, below mmap_lock and above every spinlock. Reclaim only tries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelBug

if TYPE_CHECKING:
    from .host import Host
    from .page_alloc import Page


def folio_trylock(page: Page) -> bool:
    """Take the lock if it is free."""
    if page.locked:
        return False
    page.locked = True
    return True


def folio_lock(host: Host, page: Page) -> None:
    """Take the lock, sleeping while somebody else has it. The caller holds a reference."""
    while page.locked:
        host.folio_waiters.setdefault(page.pfn, []).append(host.sched.current)
        host.sched.wait(page)
    page.locked = True


def folio_unlock(host: Host, page: Page) -> None:
    """Let go and wake whoever waits for this page."""
    if not page.locked:
        raise ModelBug(f"{page} is not locked")
    page.locked = False
    if host.folio_waiters:
        for task in host.folio_waiters.pop(page.pfn, ()):
            host.sched.wake(task)
