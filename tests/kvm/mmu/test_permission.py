"""Rights, keys and control bits in every combination, beside the sentences of SDM vol. 3, 4.6 one by one."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest

from shadowvm.kvm.mmu.paging_mode import PagingMode
from shadowvm.kvm.mmu.permission import permission_fault
from shadowvm.kvm.mmu.spte import ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK
from shadowvm.x86 import (
    CR0_WP,
    CR4_PKE,
    CR4_SMAP,
    CR4_SMEP,
    PFERR_FETCH,
    PFERR_PK,
    PFERR_PRESENT,
    PFERR_USER,
    PFERR_WRITE,
)


def refused_by_rights(access: int, pferr: int, wp: bool, smep: bool, smap: bool) -> bool:
    user_page, user = bool(access & ACC_USER_MASK), bool(pferr & PFERR_USER)
    if user and not user_page:
        return True
    if pferr & PFERR_FETCH:
        return not access & ACC_EXEC_MASK or (user_page and not user and smep)
    if user_page and not user and smap:
        return True
    return bool(pferr & PFERR_WRITE) and not access & ACC_WRITE_MASK and (user or wp)


def refused_by_key(access: int, pferr: int, wp: bool, rights: int) -> bool:
    if not access & ACC_USER_MASK or pferr & PFERR_FETCH:
        return False
    return bool(rights & 1 or (rights & 2 and pferr & PFERR_WRITE and (pferr & PFERR_USER or wp)))


@pytest.mark.parametrize("mode", [PagingMode.PT32, PagingMode.PAE, PagingMode.PT64, PagingMode.LA57])
def test_every_access_under_every_mode(mode: PagingMode) -> None:
    kinds = [kind | user for kind in (0, PFERR_WRITE, PFERR_FETCH) for user in (0, PFERR_USER)]
    for wp, smep, smap, in_force, pke in product((False, True), repeat=5):
        vcpu = SimpleNamespace(mode=mode, cr0=wp * CR0_WP, smap_active=in_force, engine=SimpleNamespace())
        vcpu.cr4 = smep * CR4_SMEP | smap * CR4_SMAP | pke * CR4_PKE
        for access, pferr, key, rights in product(range(8), kinds, (0, 1, 15), range(4)):
            vcpu.engine.pkru = rights << 2 * key | (3 - rights) * 0x55555555 & ~(3 << 2 * key)
            found = permission_fault(vcpu, access, key << 59, pferr)  # type: ignore[arg-type]
            keys = pke and mode >= PagingMode.PT64
            by_key = keys and refused_by_key(access, pferr, wp, rights)
            refused = by_key or refused_by_rights(access, pferr, wp, smep, smap and in_force)
            assert found == (PFERR_PRESENT * refused | PFERR_PK * by_key)
