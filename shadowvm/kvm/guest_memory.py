"""Guest memory as the outside reads and writes it: user space, DMA, a debugger (kvm_read_guest, kvm_write_guest).

A store from outside may hit a page table that is shadowed, code that was translated, or a page whose dirty bit somebody
waits for. KVM leaves the first to whoever stores (CVE-2026-46113 came from that); here it is part of the store.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, Hva
from ..errors import KvmError
from ..mm.fault import VmFault
from ..mm.page_alloc import put_page
from ..mm.uaccess import copy_from_user
from .hva_to_pfn import hva_to_page
from .memslot import KVM_MEMSLOT_INVALID, MemSlot
from .mmu.page_fault import mmu_invalidate_retry_gfn
from .mmu.pte_write import kvm_mmu_track_write

if TYPE_CHECKING:
    from .vm import Kvm


def kvm_read_guest(kvm: Kvm, gpa: Gpa, size: int) -> bytes:
    """`size` bytes from `gpa` on, through the mapping of the VM's process. May sleep.

    Raises:
        KvmError: EFAULT, no memslot is there; ENOMEM, the host cannot give a page.
    """
    parts = []
    for gfn, offset, count in _pages(gpa, size):
        hva = Hva(_slot(kvm, gfn).vpn(gfn) << PAGE_SHIFT | offset)
        data = copy_from_user(kvm.mm, hva, count)
        if isinstance(data, VmFault):
            raise _failed(gfn, data)
        parts.append(data)
    return b"".join(parts)


def kvm_write_guest(kvm: Kvm, gpa: Gpa, data: bytes | memoryview) -> None:
    """Store `data` from `gpa` on; the guest sees it as if another CPU had stored it. May sleep.

    Raises:
        KvmError: as above; pages before the one that failed keep what they got.
    """
    done = 0
    for gfn, offset, count in _pages(gpa, len(data)):
        while not _write_guest_page(kvm, gfn, offset, data[done : done + count]):
            pass
        done += count


def _pages(gpa: Gpa, size: int) -> Iterator[tuple[Gfn, int, int]]:
    """(gfn, offset, bytes) of each page that a range touches."""
    while size > 0:
        offset = gpa & PAGE_SIZE - 1
        count = min(size, PAGE_SIZE - offset)
        yield Gfn(gpa >> PAGE_SHIFT), offset, count
        gpa = Gpa(gpa + count)
        size -= count


def _slot(kvm: Kvm, gfn: Gfn) -> MemSlot:
    slot = kvm.memslots.find(gfn)
    if slot is None or slot.flags & KVM_MEMSLOT_INVALID:
        raise KvmError(errno.EFAULT, f"gpa {gfn << PAGE_SHIFT:#x}: no memory slot is there")
    return slot


def _failed(gfn: Gfn, fault: VmFault) -> KvmError:
    if fault & VmFault.OOM:
        return KvmError(errno.ENOMEM, f"gpa {gfn << PAGE_SHIFT:#x}: host memory and swap are too small")
    return KvmError(errno.EFAULT, f"gpa {gfn << PAGE_SHIFT:#x}: the process has no memory there")


def _write_guest_page(kvm: Kvm, gfn: Gfn, offset: int, data: bytes | memoryview) -> bool:
    """Store inside one page; False if the page was taken away meanwhile.

    Store and zap are one critical section, for which the frame must still be the page's: the protocol of a fault.
    """
    slot = _slot(kvm, gfn)
    mmu_seq = kvm.mmu_invalidate_seq
    page = hva_to_page(kvm.mm, slot.vpn(gfn), True)
    if isinstance(page, VmFault):
        raise _failed(gfn, page)
    host = kvm.mm.host
    kvm.mmu_lock.acquire()
    stale = mmu_invalidate_retry_gfn(kvm, mmu_seq, gfn)
    if not stale:
        start = (page.pfn << PAGE_SHIFT) + offset
        host.ram.b[start : start + len(data)] = data
        host.ram.code_changed(page.pfn)
        page.dirty = True
        if slot.dirty_bitmap is not None:
            slot.dirty_bitmap.add(gfn)
        if gfn in kvm.page_hash:
            kvm_mmu_track_write(kvm, Gpa(gfn << PAGE_SHIFT | offset), len(data))
    kvm.mmu_lock.release()
    put_page(host, page)
    return not stale
