"""Which page size a fault may map: the smallest of what the guest, the host and KVM itself allow (mmu.c).

KVM forbids a large spte where it must tell 4 KiB pages apart: `slot.disallow_lpage` counts the reasons for each block
of 2 MiB (gfn >> 9), 0 being absent. A shadow page of a guest table in the block is one; that the slot does not reach
to the block's end is another. Nor has a slot large sptes whose gfns and hvas are not alike modulo 2 MiB, or one with a
dirty log. All of this is under mmu_lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import Gfn
from ...errors import InvariantViolation, ModelBug
from ...mm.huge import host_pfn_mapping_level
from ...x86 import PFERR_FETCH, PT_PAGE_SIZE
from ..memslot import KVM_MEM_LOG_DIRTY_PAGES
from .spte import SPTE_MMU_PRESENT, spte_pfn

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vcpu import Vcpu
    from ..vm import Kvm
    from .page_fault import KvmPageFault

PG_LEVEL_4K, PG_LEVEL_2M = 1, 2
PAGES_PER_2M = 512


def kvm_mmu_gfn_disallow_lpage(slot: MemSlot, gfn: Gfn) -> None:
    """One more reason against a large spte over `gfn`."""
    counts = slot.disallow_lpage
    counts[gfn >> 9] = counts.get(gfn >> 9, 0) + 1


def kvm_mmu_gfn_allow_lpage(slot: MemSlot, gfn: Gfn) -> None:
    """One reason less."""
    left = slot.disallow_lpage.get(gfn >> 9, 0) - 1
    if left < 0:
        raise ModelBug(f"disallow_lpage of gfn {gfn:#x} falls below 0")
    if left:
        slot.disallow_lpage[gfn >> 9] = left
    else:
        del slot.disallow_lpage[gfn >> 9]


def is_lpage_disallowed(slot: MemSlot, gfn: Gfn) -> bool:
    """Whether the slot, in which `gfn` is, has a reason against a large spte over it."""
    if not slot.base_gfn <= gfn < slot.end_gfn:
        text = f"lpage_info of memory slot {slot.id} is read for gfn {gfn:#x}, which is outside of it"
        raise InvariantViolation(text, "I29")
    return not slot.is_congruent or gfn >> 9 in slot.disallow_lpage


def kvm_mmu_max_mapping_level(kvm: Kvm, slot: MemSlot, gfn: Gfn, max_level: int = PG_LEVEL_2M) -> int:
    """The largest level, up to `max_level`, at which host and slot let `gfn` be mapped."""
    if max_level == PG_LEVEL_4K or not kvm.mm.huge_pmds or is_lpage_disallowed(slot, gfn):
        return PG_LEVEL_4K
    return host_pfn_mapping_level(kvm.mm, slot.vpn(gfn))


def is_lpage_possible(kvm: Kvm, slot: MemSlot, gfn: Gfn) -> bool:
    """Whether a guest page that is large enough gets a large spte."""
    if not kvm.mm.huge_pmds or not kvm.params.large_pages or slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        return False
    return kvm_mmu_max_mapping_level(kvm, slot, gfn) == PG_LEVEL_2M


def kvm_mmu_hugepage_adjust(vcpu: Vcpu, fault: KvmPageFault) -> None:
    """Set req_level, goal_level and huge_page_disallowed of a fault whose max_level says what the guest allows.

    After the guest's tables have got their shadow pages, which may forbid what was allowed before.
    """
    kvm = vcpu.kvm
    fault.huge_page_disallowed = fault.error_code & PFERR_FETCH != 0 and kvm.params.nx_huge_pages != 0
    fault.req_level = fault.goal_level = PG_LEVEL_4K
    if fault.page.pfn < 0 or fault.max_level == PG_LEVEL_4K or not kvm.params.large_pages:
        return
    if fault.slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        return
    fault.req_level = kvm_mmu_max_mapping_level(kvm, fault.slot, fault.gfn)
    if not fault.huge_page_disallowed:
        fault.goal_level = fault.req_level


def disallowed_hugepage_adjust(kvm: Kvm, fault: KvmPageFault, spte: int, level: int) -> None:
    """Keep the small pages of an entry at `level` that were made because the guest executes there.

    Another access there would ask for a large spte, which the next fetch would split again.
    """
    if level == fault.goal_level == PG_LEVEL_2M and spte & (SPTE_MMU_PRESENT | PT_PAGE_SIZE) == SPTE_MMU_PRESENT:
        child = kvm.sp_by_pfn.get(spte_pfn(spte))
        if child is not None and child.nx_huge_page_disallowed:
            fault.goal_level = PG_LEVEL_4K
