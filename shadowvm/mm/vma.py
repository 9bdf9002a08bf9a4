"""Virtual memory areas of a process: private anonymous memory, sorted, never overlapping (mm/vma.c).

Changes need mmap_lock for writing; lookups need it for reading, or nothing that could be acted upon later without
a second look (rmap).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, Hva
from ..errors import ModelBug

if TYPE_CHECKING:
    from .mm_struct import MmStruct
    from .pfnmap import Device
    from .rmap import AnonVma

VM_READ = 1
VM_WRITE = 2
VM_EXEC = 4
VM_SHARED = 8
VM_HUGEPAGE = 16
VM_NOHUGEPAGE = 32
"""What madvise() said of huge pages."""
VM_IO, VM_PFNMAP = 64, 128
"""Memory of a device, behind which there are frames, but no pages that could be counted (pfnmap.py)."""


class Vma:
    """Addresses [start, end) with one set of rights. `pgoff` is the page index of `start` in its anon_vma or device."""

    __slots__ = ("anon_vma", "device", "end", "flags", "pgoff", "start")

    def __init__(self, start: Hva, end: Hva, flags: int, anon_vma: AnonVma | None = None) -> None:
        self.start = start
        self.end = end
        self.flags = flags
        self.anon_vma = anon_vma
        self.device: Device | None = None
        self.pgoff = start >> PAGE_SHIFT

    def __repr__(self) -> str:
        rights = "".join(name if self.flags & bit else "-" for bit, name in ((1, "r"), (2, "w"), (4, "x"), (8, "s")))
        return f"{self.start:x}-{self.end:x} {rights}" + (" io pf" if self.flags & VM_PFNMAP else "")


class VmaList:
    """The areas of one mm in order of address."""

    __slots__ = ("areas", "last", "starts")

    def __init__(self) -> None:
        self.areas: list[Vma] = []
        self.starts: list[Hva] = []
        self.last: Vma | None = None

    def insert(self, vma: Vma) -> None:
        """Add an area; ModelBug if it overlaps one."""
        at = bisect_left(self.starts, vma.start)
        if (at and self.areas[at - 1].end > vma.start) or (at < len(self.starts) and self.starts[at] < vma.end):
            raise ModelBug(f"area {vma} overlaps another one")
        self.areas.insert(at, vma)
        self.starts.insert(at, vma.start)

    def remove(self, vma: Vma) -> None:
        """Take an area out."""
        at = bisect_left(self.starts, vma.start)
        if self.areas[at] is not vma:
            raise ModelBug(f"area {vma} is not in the list")
        del self.areas[at], self.starts[at]
        if self.last is vma:
            self.last = None

    def overlapping(self, start: Hva, end: Hva) -> list[Vma]:
        """Areas with an address in [start, end)."""
        first = max(bisect_right(self.starts, start) - 1, 0)
        return [vma for vma in self.areas[first : bisect_left(self.starts, end)] if vma.end > start]


def find_vma(mm: MmStruct, address: Hva) -> Vma | None:
    """The area that contains `address`, or None (the kernel's vma_lookup)."""
    vmas = mm.vmas
    vma = vmas.last
    if vma is not None and vma.start <= address < vma.end:
        return vma
    at = bisect_right(vmas.starts, address) - 1
    if at < 0:
        return None
    vma = vmas.areas[at]
    if address >= vma.end:
        return None
    vmas.last = vma
    return vma


def split_vma(mm: MmStruct, vma: Vma, address: Hva) -> Vma:
    """Cut an area at `address`; returns the upper part. Both keep the anon_vma: their pages don't move."""
    upper = Vma(address, vma.end, vma.flags, vma.anon_vma)
    if vma.device is not None:
        upper.device, upper.pgoff = vma.device, vma.pgoff + (address - vma.start >> PAGE_SHIFT)
        vma.device.users += 1
    vma.end = address
    mm.vmas.insert(upper)
    return upper


def isolate_vmas(mm: MmStruct, start: Hva, end: Hva) -> list[Vma]:
    """Areas inside [start, end), after cutting those that stick out."""
    inside = []
    for vma in mm.vmas.overlapping(start, end):
        if vma.start < start:
            vma = split_vma(mm, vma, start)
        if vma.end > end:
            split_vma(mm, vma, end)
        inside.append(vma)
    return inside


def merge_vmas(mm: MmStruct, start: Hva, end: Hva) -> None:
    """vma_merge(): join neighbours at and between `start` and `end` that have become alike."""
    for lower, upper in pairwise(mm.vmas.overlapping(Hva(start - 1), Hva(end + 1))):
        if lower.end == upper.start and _mergeable(lower, upper):
            # The upper one survives, so that it is the lower one of the next pair.
            mm.vmas.remove(upper)
            mm.vmas.remove(lower)
            upper.start, upper.pgoff = lower.start, lower.pgoff
            upper.anon_vma = upper.anon_vma or lower.anon_vma
            mm.vmas.insert(upper)


def _mergeable(lower: Vma, upper: Vma) -> bool:
    if lower.flags != upper.flags or lower.flags & VM_PFNMAP:
        return False
    return lower.anon_vma is upper.anon_vma or lower.anon_vma is None or upper.anon_vma is None


def unmapped_area(mm: MmStruct, length: int, base: Hva, align: int) -> Hva:
    """The lowest aligned address from `base` on with `length` free bytes."""
    address = base
    for vma in mm.vmas.areas:
        if address + length <= vma.start:
            break
        address = Hva(max(address, vma.end + align - 1 & -align))
    return address
