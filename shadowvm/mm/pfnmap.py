"""Memory of a driver that a process maps: areas with VM_IO | VM_PFNMAP (remap_pfn_range and kin of mm/memory.c).

The frames are the driver's, and nobody counts who uses them: of a block that it has allocated only the first one has a
reference, the driver's, all others have none. No page of it has a mapping or is on an LRU list, so that reclaim never
hears of it. The ptes are marked special: get_user_pages finds no page behind them. Who needs the frame all the same
asks follow_pfnmap(), takes no reference, and lets go of the frame when the mmu notifiers say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..addr import PAGE_SHIFT, Pfn, Vpn
from ..errors import ConfigError
from ..events import follow_pfnmap as trace_follow_pfnmap
from ..x86 import PT_ACCESSED, PT_DIRTY, PT_PRESENT, PT_WRITABLE
from .page_alloc import free_pages, get_free_pages
from .pgtable import PAGE_READONLY, PTE_SPECIAL, pte_alloc, pte_index, ptep_set_access_flags, set_pte
from .vma import VM_PFNMAP, VM_WRITE, Vma

if TYPE_CHECKING:
    from .host import Host
    from .mm_struct import MmStruct


class Device:
    """What a driver keeps for those who map its memory. first: its first frame. users: areas that map it.

    The memory is the driver's from open_device() until the last area is gone.
    """

    __slots__ = ("first", "host", "npages", "users")

    def __init__(self, host: Host, first: Pfn, npages: int) -> None:
        self.host = host
        self.first = first
        self.npages = npages
        self.users = 0


class Pfnmap(NamedTuple):
    """Where a pte of a device leads (struct follow_pfnmap_args)."""

    pfn: Pfn
    writable: bool


def open_device(host: Host, npages: int) -> Device:
    """A device with `npages` frames of zeros, which it has for itself. ConfigError: there are not as many in a row."""
    first = get_free_pages(host, npages)
    if first is None:
        raise ConfigError(f"host memory has no {npages} free pages in a row for a device")
    return Device(host, first, npages)


def vma_open(vma: Vma) -> None:
    """One more area maps the device (vm_ops->open); of others nothing is to be done."""
    if vma.device is not None:
        vma.device.users += 1


def vma_close(vma: Vma) -> None:
    """One area less (vm_ops->close); with the last one the driver gives its memory back."""
    device = vma.device
    if device is None:
        return
    device.users -= 1
    if not device.users:
        free_pages(device.host, device.first, device.npages)


def pfnmap_fault(mm: MmStruct, vma: Vma, vpn: Vpn, write: bool) -> bool:
    """The driver enters its frame (vmf_insert_pfn), or an area that was read-only is written. False: out of memory.

    mmap_lock is held for reading, and the area allows the access.
    """
    index = pte_alloc(mm, vpn)
    if index is None:
        return False
    device = vma.device
    assert device is not None, "an area with VM_PFNMAP has one"
    mm.page_table_lock.acquire()
    pte = mm.q[index]
    if not pte:
        pfn = device.first + vma.pgoff + vpn - (vma.start >> PAGE_SHIFT)
        rights = PAGE_READONLY | PT_WRITABLE if vma.flags & VM_WRITE else PAGE_READONLY
        set_pte(mm, vpn, index, pfn << PAGE_SHIFT | PTE_SPECIAL | rights)
    elif write and not pte & PT_WRITABLE:
        ptep_set_access_flags(mm, vpn, index, PT_WRITABLE | PT_DIRTY | PT_ACCESSED)
    mm.page_table_lock.release()
    return True


def follow_pfnmap(mm: MmStruct, vma: Vma, vpn: Vpn) -> Pfnmap | None:
    """What the pte of an address of a device says; None: nothing, it has to be faulted in.

    Good until the next invalidation only. mmap_lock is held for reading.
    """
    if not vma.flags & VM_PFNMAP:
        return None
    index = pte_index(mm, vpn)
    pte = 0 if index is None else mm.q[index]
    if not pte & PT_PRESENT:
        return None
    found = Pfnmap(Pfn(pte >> PAGE_SHIFT), pte & PT_WRITABLE != 0)
    if trace_follow_pfnmap.on:
        trace_follow_pfnmap(mm.id, vpn, found.pfn, found.writable)
    return found


def maps_device_frame(mm: MmStruct, pfn: Pfn) -> bool:
    """Whether a pte of the process leads to a frame of a device. For inspection: it looks at every area."""
    for vma in mm.vmas.areas:
        at = -1 if vma.device is None else pfn - vma.device.first - vma.pgoff
        if 0 <= at < vma.end - vma.start >> PAGE_SHIFT:
            index = pte_index(mm, Vpn((vma.start >> PAGE_SHIFT) + at))
            if index is not None and mm.q[index] & PT_PRESENT and mm.q[index] >> PAGE_SHIFT == pfn:
                return True
    return False
