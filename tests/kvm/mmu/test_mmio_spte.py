"""What an MMIO spte holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shadowvm.addr import Gfn
from shadowvm.kvm.mmu.mmio_spte import (
    MMIO_SPTE_GEN_MASK,
    get_mmio_spte_access,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    is_mmio_spte,
    make_mmio_spte,
)
from shadowvm.kvm.mmu.spte import FROZEN_SPTE, SPTE_HOST_WRITABLE, SPTE_MMU_WRITABLE, is_shadow_present
from shadowvm.x86 import PT_PKEY_MASK


@given(st.integers(0, (1 << 28) - 1), st.integers(0, 7), st.integers(0, 1 << 40), st.integers(0, 15))
def test_an_entry_holds_frame_rights_generation_and_key(gfn: int, access: int, generation: int, key: int) -> None:
    spte = make_mmio_spte(Gfn(gfn), access, generation, key << 59)
    assert get_mmio_spte_gfn(spte) == gfn
    assert get_mmio_spte_access(spte) == access
    assert get_mmio_spte_generation(spte) == generation & MMIO_SPTE_GEN_MASK
    assert spte & PT_PKEY_MASK == key << 59
    assert is_mmio_spte(spte)
    assert not is_shadow_present(spte)
    assert not spte & (SPTE_HOST_WRITABLE | SPTE_MMU_WRITABLE)


def test_other_entries_are_not_taken_for_one() -> None:
    assert not any(map(is_mmio_spte, (0, FROZEN_SPTE, 0x12345E67, (1 << 52) - 1)))
