"""The kernel's own accesses to a process's memory: copy_from_user and its kin (arch/x86/lib/usercopy.c).

They go through the host CPU's TLB: `mm.tlb` for reads, `mm.tlb_w` for writes, from vpn to the frame's place in
`ram.q`. A miss walks the page table, sets A (and D for a write), and faults as the process itself would. Results
are values: a VmFault says that the address can't be accessed, or that memory ran out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Hva, Pfn, Vpn
from ..x86 import PT_ACCESSED, PT_DIRTY, PT_PAGE_SIZE, PT_PRESENT, PT_WRITABLE
from .fault import MAJOR, NONE, VmFault
from .gup import fixup_user_fault, host_pte
from .pgtable import ptep_set_access_flags
from .pmd import pmdp_set_access_flags

if TYPE_CHECKING:
    from .mm_struct import MmStruct


def read_user_u64(mm: MmStruct, hva: Hva) -> int | VmFault:
    """The aligned 64-bit word at `hva`."""
    base = mm.tlb.get(hva >> PAGE_SHIFT)
    if base is None:
        base = _tlb_miss(mm, hva, False)
        if type(base) is VmFault:
            return base
    return mm.q[base + (hva >> 3 & 511)]


def write_user_u64(mm: MmStruct, hva: Hva, value: int) -> VmFault | None:
    """Store an aligned 64-bit word."""
    base = mm.tlb_w.get(hva >> PAGE_SHIFT)
    if base is None:
        base = _tlb_miss(mm, hva, True)
        if type(base) is VmFault:
            return base
    mm.q[base + (hva >> 3 & 511)] = value
    mm.host.ram.code_changed(Pfn(base >> 9))
    return None


def cmpxchg_user_u64(mm: MmStruct, hva: Hva, old: int, new: int) -> bool | VmFault:
    """Store `new` if the aligned word is `old`: whether it was. A VmFault is not a bool: test for it first."""
    base = mm.tlb_w.get(hva >> PAGE_SHIFT)
    if base is None:
        base = _tlb_miss(mm, hva, True)
        if type(base) is VmFault:
            return base
    at = base + (hva >> 3 & 511)
    if mm.q[at] != old:
        return False
    mm.q[at] = new
    mm.host.ram.code_changed(Pfn(base >> 9))
    return True


def copy_from_user(mm: MmStruct, hva: Hva, n: int) -> bytes | VmFault:
    """`n` bytes from `hva` on."""
    parts = []
    b = mm.host.ram.b
    while n:
        base = mm.tlb.get(hva >> PAGE_SHIFT)
        if base is None:
            base = _tlb_miss(mm, hva, False)
            if type(base) is VmFault:
                return base
        size = min(n, PAGE_SIZE - (hva & PAGE_SIZE - 1))
        start = (base << 3) + (hva & PAGE_SIZE - 1)
        parts.append(bytes(b[start : start + size]))
        hva = Hva(hva + size)
        n -= size
    return b"".join(parts)


def copy_to_user(mm: MmStruct, hva: Hva, data: bytes | memoryview) -> VmFault | None:
    """Store `data` from `hva` on. Pages before one that faults keep what they got."""
    done = 0
    while done < len(data):
        base = mm.tlb_w.get(hva >> PAGE_SHIFT)
        if base is None:
            base = _tlb_miss(mm, hva, True)
            if type(base) is VmFault:
                return base
        size = min(len(data) - done, PAGE_SIZE - (hva & PAGE_SIZE - 1))
        start = (base << 3) + (hva & PAGE_SIZE - 1)
        mm.host.ram.b[start : start + size] = data[done : done + size]
        mm.host.ram.code_changed(Pfn(base >> 9))
        hva = Hva(hva + size)
        done += size
    return None


def _tlb_miss(mm: MmStruct, hva: Hva, write: bool) -> int | VmFault:
    """Walk, fault if need be, and fill the TLB: the frame's place in `ram.q`.

    Setting A or D is a scheduling point, at which the page may be taken away: the pte is looked at again after it.
    """
    vpn = Vpn(hva >> PAGE_SHIFT)
    need = PT_PRESENT | PT_WRITABLE if write else PT_PRESENT
    bits = PT_ACCESSED | PT_DIRTY if write else PT_ACCESSED
    while (pte := host_pte(mm, vpn)) & (need | bits) != need | bits:
        if pte & need == need:
            if pte & PT_PAGE_SIZE:
                pmdp_set_access_flags(mm, vpn, bits)
            else:
                ptep_set_access_flags(mm, vpn, mm.pte_tables[vpn >> 9] + (vpn & 511), bits)
            continue
        fault = fixup_user_fault(mm, hva, write)
        if fault is not NONE and fault is not MAJOR:
            return fault
    base = pte >> PAGE_SHIFT << 9
    mm.tlb[vpn] = base
    if write:
        mm.tlb_w[vpn] = base
    return base
