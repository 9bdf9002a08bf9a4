from __future__ import annotations

from itertools import product

from shadowvm.addr import Gfn, Hva, Pfn
from shadowvm.kvm.memslot import MemSlot
from shadowvm.kvm.mmu.access_track import (
    SPTE_TDP_AD_DISABLED,
    is_access_track_spte,
    mark_spte_for_access_track,
    mark_spte_old,
    restore_acc_track_spte,
    spte_ad_enabled,
)
from shadowvm.kvm.mmu.spte import FROZEN_SPTE, SPTE_MMU_PRESENT, is_shadow_present, make_spte, spte_pfn
from shadowvm.x86 import PT_ACCESSED, PT_PRESENT, PT_WRITABLE


def sptes(extra: int) -> list[int]:
    slot = MemSlot(0, Gfn(0), 16, Hva(0))
    return [make_spte(slot, access, Gfn(1), Pfn(7), host) | extra for access, host in product(range(8), (False, True))]


def test_with_an_a_bit_an_old_spte_keeps_its_rights() -> None:
    for spte in sptes(0):
        assert spte_ad_enabled(spte)
        assert mark_spte_old(spte) == spte & ~PT_ACCESSED
        assert not is_access_track_spte(mark_spte_old(spte))


def test_without_one_it_is_not_present_for_the_cpu_but_for_kvm() -> None:
    for spte in sptes(SPTE_TDP_AD_DISABLED):
        old = mark_spte_old(spte)
        assert not spte_ad_enabled(spte)
        assert is_access_track_spte(old)
        assert is_shadow_present(old)
        assert not old & (PT_PRESENT | PT_ACCESSED)
        assert spte_pfn(old) == spte_pfn(spte)
        assert mark_spte_for_access_track(old) == old


def test_what_is_restored_is_all_but_w() -> None:
    for spte in sptes(SPTE_TDP_AD_DISABLED):
        assert restore_acc_track_spte(mark_spte_old(spte)) == spte & ~PT_WRITABLE


def test_nothing_of_this_is_a_frozen_entry() -> None:
    assert not FROZEN_SPTE & (PT_PRESENT | SPTE_MMU_PRESENT)
    assert not is_access_track_spte(FROZEN_SPTE)
    assert not is_access_track_spte(0)
