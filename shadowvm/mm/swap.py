"""The swap area: a real file of fixed size, its slots and its I/O (mm/swapfile.c, mm/page_io.c).

Slots of one reclaim batch are consecutive as far as possible (clusters of 256), so that a batch is one write.
`swap_map[slot]` is the number of ptes with that entry, with SWAP_HAS_CACHE while a page of it is in `cache`; 0 is
free. Pages of zeros are only remembered. A failed or short transfer raises SwapIOError, nothing is retried.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE
from ..errors import ConfigError, ModelBug, SwapIOError
from ..events import mm_vmscan_write_folio, swap_readpage, swap_writepage
from ..phys import ZERO_PAGE, private_map

if TYPE_CHECKING:
    from .host import Host
    from .page_alloc import Page

SWAPFILE_CLUSTER = 256
SWAP_HAS_CACHE = 0x40
SWAP_MAP_MAX = 0x3F

_SLOT = attrgetter("private")
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class SwapFile:
    """`size` bytes of swap at `path`: a new or empty file, or a directory for an unnamed one; None is $TMPDIR.

    Raises ConfigError when the place does not exist, is not writable, holds data, or lacks the space.
    """

    __slots__ = (
        "_cluster_free",
        "_created",
        "_current",
        "_free_clusters",
        "_next",
        "_nonfull",
        "cache",
        "cache_only",
        "fd",
        "hits",
        "memory",
        "name",
        "nr_free",
        "nr_slots",
        "prev_slot",
        "prev_window",
        "swap_map",
        "zeromap",
    )

    def __init__(self, size: int, path: str | os.PathLike[str] | None = None) -> None:
        if size < 0 or size % PAGE_SIZE:
            raise ConfigError(f"swap size {size} is not a whole number of pages")
        self.nr_slots = self.nr_free = size >> PAGE_SHIFT
        self.swap_map = bytearray(self.nr_slots)
        self.zeromap = bytearray(self.nr_slots)
        self.memory: memoryview | None = None
        self.cache: dict[int, Page] = {}
        # False once a search found no slot that only the cache needs, until there can be one again.
        self.cache_only = False
        self.prev_slot = self.prev_window = self.hits = 0
        clusters = -(-self.nr_slots // SWAPFILE_CLUSTER)
        self._cluster_free = [
            min(SWAPFILE_CLUSTER, self.nr_slots - number * SWAPFILE_CLUSTER) for number in range(clusters)
        ]
        # OrderedDicts as ordered sets: both ends and any member go out in constant time. The cluster that became
        # free last is taken first: the real machine still has its part of the file in memory.
        self._free_clusters = OrderedDict.fromkeys(reversed(range(clusters)))
        self._nonfull: OrderedDict[int, None] = OrderedDict()
        self._current = -1
        self._next = 0
        self._created: str | None = None
        self.fd, self.name = -1, "none"
        if size:
            self._open(size, path)

    def _open(self, size: int, path: str | os.PathLike[str] | None) -> None:
        where = _default_directory() if path is None else os.fspath(path)
        try:
            if os.path.isdir(where):
                self.fd, name = tempfile.mkstemp(prefix="shadowvm-swap-", dir=where)
                os.unlink(name)
                self.name = f"{where}/(unnamed)"
            else:
                self._open_file(where)
        except OSError as error:
            raise ConfigError(f"swap file {where}: {error.strerror}") from None
        try:
            _reserve(self.fd, size, self.name)
        except ConfigError:
            self.close()
            raise

    def _open_file(self, where: str) -> None:
        self.name = where
        try:
            self.fd = os.open(where, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._created = os.path.abspath(where)
        except FileExistsError:
            if not stat.S_ISREG(os.stat(where).st_mode):
                raise ConfigError(f"swap file {where}: neither a regular file nor a directory") from None
            self.fd = os.open(where, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(self.fd).st_size:
                os.close(self.fd)
                self.fd = -1
                raise ConfigError(f"swap file {where}: holds data; give an empty or a new file") from None

    def close(self) -> None:
        """Give the space back: remove the file that we made, empty the one that we were given."""
        if self.fd < 0:
            return
        if self._created is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._created)
        else:
            os.ftruncate(self.fd, 0)
        os.close(self.fd)
        self.fd = -1

    def move_to_memory(self) -> None:
        """Before anything is swapped out: keep pages in memory of this process, of which a fork has its own copy."""
        self.close()
        self.memory = memoryview(private_map(max(self.nr_slots << PAGE_SHIFT, 1)))

    def read_slot(self, slot: int) -> bytes:
        """The page in a slot, for who looks from outside: no counter or event knows of it."""
        if self.zeromap[slot]:
            return ZERO_PAGE
        start = slot << PAGE_SHIFT
        if self.memory is not None:
            return bytes(self.memory[start : start + PAGE_SIZE])
        return os.pread(self.fd, PAGE_SIZE, start)

    def alloc_slot(self) -> int | None:
        """folio_alloc_swap(): a slot for the swap cache, next to the last one if that is free. None: swap is full."""
        if not self.nr_free:
            return None
        slot = -1
        for _ in range(len(self._cluster_free) + 2):
            if self._current >= 0:
                end = (self._current + 1) * SWAPFILE_CLUSTER
                slot = self.swap_map.find(0, self._next, end)
            if slot >= 0:
                break
            self._next_cluster()
        else:
            raise ModelBug(f"{self.nr_free} swap slots are free by count, none by the map")
        self.swap_map[slot] = SWAP_HAS_CACHE
        self.cache_only = True
        self._next = slot + 1
        self._cluster_free[self._current] -= 1
        self.nr_free -= 1
        return slot

    def _next_cluster(self) -> None:
        """Leave the current cluster for an empty one, else for the one that has had free slots for longest."""
        if self._current >= 0 and self._cluster_free[self._current]:
            self._nonfull[self._current] = None
        if self._free_clusters:
            self._current = self._free_clusters.popitem()[0]
        else:
            self._current = self._nonfull.popitem(last=False)[0]
        self._next = self._current * SWAPFILE_CLUSTER

    def _free_slot(self, slot: int) -> None:
        self.nr_free += 1
        cluster = slot // SWAPFILE_CLUSTER
        free = self._cluster_free[cluster] = self._cluster_free[cluster] + 1
        if cluster == self._current:
            return
        if free == SWAPFILE_CLUSTER:
            self._nonfull.pop(cluster, None)
            self._free_clusters[cluster] = None
        elif free == 1:
            self._nonfull[cluster] = None

    def duplicate(self, slot: int) -> None:
        """swap_duplicate(): one more pte refers to the slot."""
        count = self.swap_map[slot]
        if not count or count & SWAP_MAP_MAX == SWAP_MAP_MAX:
            raise ModelBug(f"swap slot {slot} with count {count:#x} gets another reference")
        self.swap_map[slot] = count + 1

    def count(self, slot: int) -> int:
        """How many ptes refer to the slot."""
        return self.swap_map[slot] & SWAP_MAP_MAX

    def put(self, slot: int) -> None:
        """swap_free(): a pte that referred to the slot is gone."""
        count = self.swap_map[slot]
        if not count & SWAP_MAP_MAX:
            raise ModelBug(f"swap slot {slot} has no reference to give back")
        self.swap_map[slot] = count - 1
        if count == 1:
            self._free_slot(slot)
        elif count == SWAP_HAS_CACHE | 1:
            self.cache_only = True

    def cache_add(self, slot: int, page: Page) -> None:
        """The page and the slot hold the same; the cache has a reference to the page."""
        self.swap_map[slot] |= SWAP_HAS_CACHE
        self.cache[slot] = page
        page.swapcache = True
        page.private = slot
        page.refcount += 1

    def cache_del(self, page: Page) -> None:
        """delete_from_swap_cache(), without dropping the cache's reference: the caller puts the page."""
        slot = page.private
        del self.cache[slot]
        page.swapcache = False
        page.private = None
        count = self.swap_map[slot] = self.swap_map[slot] & ~SWAP_HAS_CACHE
        if not count:
            self._free_slot(slot)

    def full(self) -> bool:
        """vm_swap_full(): more than half is used, so slots of pages in memory should not be kept."""
        return self.nr_free * 2 < self.nr_slots


def _default_directory() -> str:
    """$TMPDIR if it is set, and then it must work; else what the platform uses."""
    where = os.environ.get("TMPDIR")
    if not where:
        try:
            return tempfile.gettempdir()
        except FileNotFoundError as error:
            raise ConfigError(f"swap file: {error.strerror}") from None
    if not os.path.isdir(where):
        raise ConfigError(f"swap file: TMPDIR={where} is not a directory")
    return where


def _reserve(fd: int, size: int, name: str) -> None:
    """Make sure that the file system has the space now, not when the guest needs it."""
    try:
        os.posix_fallocate(fd, 0, size)
        return
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise ConfigError(f"swap file {name}: no space for {size >> 20} MiB: {error.strerror}") from None
    free = os.fstatvfs(fd)
    if free.f_bavail * free.f_frsize < size:
        raise ConfigError(f"swap file {name}: no space for {size >> 20} MiB")
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        raise ConfigError(f"swap file {name}: no space for {size >> 20} MiB: {error.strerror}") from None


def swap_write_pages(host: Host, pages: list[Page]) -> None:
    """swap_writepage() for a batch of locked swap cache pages: one pwritev for each run of slots.

    A page that could not be written stays dirty. Raises SwapIOError.
    """
    swap, b, q = host.swap, host.ram.b, host.ram.q
    run: list[memoryview] = []
    first = 0
    for page in sorted(pages, key=_SLOT):
        slot = page.private
        if swap_writepage.on:
            swap_writepage(slot, page.pfn)
        start = page.pfn << PAGE_SHIFT
        frame = b[start : start + PAGE_SIZE]
        # One word decides for nearly every page that holds anything.
        if not q[start + PAGE_SIZE - 8 >> 3] and not q[start >> 3] and bytes(frame) == ZERO_PAGE:
            swap.zeromap[slot] = 1
            host.vmstat.swpout_zero += 1
            continue
        swap.zeromap[slot] = 0
        if run and slot != first + len(run):
            _transfer(swap, os.pwritev, "write", run, first)
            run = []
        if not run:
            first = slot
        run.append(frame)
        host.vmstat.pswpout += 1
    if run:
        _transfer(swap, os.pwritev, "write", run, first)
    host.vmstat.nr_vmscan_write += len(pages)
    for page in pages:
        page.dirty = False
        if mm_vmscan_write_folio.on:
            mm_vmscan_write_folio(page.pfn, page.private)


def swap_read_pages(host: Host, pages: list[Page]) -> None:
    """swap_readpage() for locked swap cache pages in order of slot: one preadv for each run. Raises SwapIOError."""
    swap, b = host.swap, host.ram.b
    run: list[memoryview] = []
    first = 0
    for page in pages:
        slot = page.private
        if swap.zeromap[slot]:
            host.ram.zero_page(page.pfn)
            host.vmstat.swpin_zero += 1
            continue
        if run and slot != first + len(run):
            _transfer(swap, os.preadv, "read", run, first)
            run = []
        if not run:
            first = slot
        start = page.pfn << PAGE_SHIFT
        run.append(b[start : start + PAGE_SIZE])
        host.vmstat.pswpin += 1
    if run:
        _transfer(swap, os.preadv, "read", run, first)
    if swap_readpage.on:
        for page in pages:
            swap_readpage(page.private, page.pfn)


def _transfer(
    swap: SwapFile, call: Callable[[int, list[memoryview], int], int], what: str, run: list[memoryview], first: int
) -> None:
    """One transfer of consecutive slots."""
    if swap.memory is not None:
        _copy(swap.memory, what, run, first)
        return
    try:
        done = call(swap.fd, run, first << PAGE_SHIFT)
    except OSError as error:
        raise SwapIOError(f"swap file {swap.name}: {what} of slot {first}: {error}") from error
    if done != len(run) << PAGE_SHIFT:
        slot = first + (done >> PAGE_SHIFT)
        raise SwapIOError(f"swap file {swap.name}: {what} of slot {slot}: short by {(len(run) << 12) - done} bytes")


def _copy(memory: memoryview, what: str, run: list[memoryview], first: int) -> None:
    for slot, frame in enumerate(run, first):
        page = memory[slot << PAGE_SHIFT : slot + 1 << PAGE_SHIFT]
        if what == "read":
            frame[:] = page
        else:
            page[:] = frame
