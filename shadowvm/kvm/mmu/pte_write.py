"""Writes to shadowed guest page tables: zap what stood behind the entries (kvm_mmu_track_write of mmu.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Gpa
from .role import unpack_role
from .shadow import KvmMmuPage, kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page, mmu_page_zap_pte

if TYPE_CHECKING:
    from ..vm import Kvm

WRITE_FLOODING_LIMIT = 3


def kvm_mmu_track_write(kvm: Kvm, gpa: Gpa, length: int) -> None:
    """The guest wrote `length` bytes at `gpa`, inside one page. The caller holds mmu_lock.

    A page that is written often without being walked, or by parts of entries, is probably no page table any more:
    its shadow goes as a whole and the guest may write it freely.
    """
    kvm.stat.mmu_pte_write += 1
    invalid_list: list[KvmMmuPage] = []
    flush = False
    for sp in list(kvm.page_hash.get(Gfn(gpa >> PAGE_SHIFT), ())):
        if sp.direct:
            continue
        if _detect_write_misaligned(sp, gpa, length) or _detect_write_flooding(sp):
            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
            kvm.stat.mmu_flooded += 1
            continue
        for index in _written_sptes(sp, gpa & 0xFFF, length):
            if mmu_page_zap_pte(kvm, sp, index):
                flush = True
                kvm.stat.mmu_pde_zapped += sp.level > 1
    if invalid_list:
        kvm_mmu_commit_zap_page(kvm, invalid_list)
    elif flush:
        kvm.flush_remote_tlbs()


def track_marks32(kvm: Kvm, gpa: Gpa) -> None:
    """KVM has set A or D in the 32-bit entry at `gpa`. May take mmu_lock.

    Of every second entry these are bits of the address to a guest that reads the table as one of 64-bit entries. KVM
    leaves such a guest with what it has shadowed before.
    """
    pages = kvm.page_hash.get(Gfn(gpa >> PAGE_SHIFT), ()) if gpa & 4 else ()
    if any(not sp.direct and not unpack_role(sp.role).has_4_byte_gpte for sp in pages):
        kvm.mmu_lock.acquire()
        kvm_mmu_track_write(kvm, gpa, 4)
        kvm.mmu_lock.release()


def _written_sptes(sp: KvmMmuPage, offset: int, length: int) -> range:
    """Entries of a shadow page behind `length` bytes at `offset` of the guest's table (get_written_sptes).

    A page of 32-bit entries is shadowed by several pages, each one part of it: two entries of level 2 stand for one
    of the guest's, which maps 4 MiB.
    """
    role = unpack_role(sp.role)
    if not role.has_4_byte_gpte:
        return range(offset >> 3, (offset + length - 1 >> 3) + 1)
    first, last = offset >> 2, (offset + length - 1 >> 2) + 1
    if sp.level == 2:
        first, last = 2 * first, 2 * last
    base = 512 * role.quadrant
    return range(max(first - base, 0), min(max(last - base, 0), 512))


def _detect_write_flooding(sp: KvmMmuPage) -> bool:
    if sp.root_count:
        return False
    sp.write_flooding_count += 1
    return sp.write_flooding_count >= WRITE_FLOODING_LIMIT


def _detect_write_misaligned(sp: KvmMmuPage, gpa: Gpa, length: int) -> bool:
    offset = gpa & 0xFFF
    size = 4 if unpack_role(sp.role).has_4_byte_gpte else 8
    if not offset & size - 1 and length == 1:
        return False  # status bits are often set by a byte instruction
    return bool((offset ^ (offset + length - 1)) & -size) or length < 4
