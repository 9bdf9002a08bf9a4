"""From a host address to a frame for the guest, be there a page behind it or a device (virt/kvm/kvm_main.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, Hva, Vpn
from ..mm.fault import VmFault
from ..mm.gup import fixup_user_fault, get_user_page
from ..mm.page_alloc import Page
from ..mm.pfnmap import follow_pfnmap
from ..mm.vma import VM_IO, VM_PFNMAP, find_vma

if TYPE_CHECKING:
    from ..mm.mm_struct import MmStruct
    from ..mm.pfnmap import Pfnmap


def hva_to_page(mm: MmStruct, vpn: Vpn, write: bool) -> Page | VmFault:
    """As get_user_page(), for a page to be written by emulation: a device's frame comes as a Page that nobody else has.

    put_page() of that frees nothing. SIGSEGV for a store that a device's pte does not allow.
    """
    page = get_user_page(mm, vpn, write)
    if page is not VmFault.SIGSEGV:
        return page
    found = hva_to_pfn_remapped(mm, vpn, write)
    if isinstance(found, VmFault):
        return found
    return VmFault.SIGSEGV if write and not found.writable else page_of_nobody(found)


def page_of_nobody(found: Pfnmap) -> Page:
    """Stands for a frame without struct page: a reference is the driver's, for good, and another one the caller's."""
    page = Page(found.pfn)
    page.refcount = 2
    return page


def hva_to_pfn_remapped(mm: MmStruct, vpn: Vpn, write: bool) -> Pfnmap | VmFault:
    """The frame of a device and whether its pte allows stores, faulted in as needed. No reference. May sleep.

    SIGSEGV if no device is there, or none that could be written.
    """
    hva = Hva(vpn << PAGE_SHIFT)
    while True:
        mm.mmap_lock.acquire_read()
        vma = find_vma(mm, hva)
        found = None if vma is None else follow_pfnmap(mm, vma, vpn)
        mm.mmap_lock.release_read()
        if found is not None:
            return found
        if vma is None or not vma.flags & (VM_IO | VM_PFNMAP):
            return VmFault.SIGSEGV
        fault = fixup_user_fault(mm, hva, write)
        if fault is not VmFault.NONE:
            return fault
