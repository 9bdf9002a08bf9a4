"""Whether the rights of a translation allow an access under the CPU's mode (kvm/mmu.h; SDM vol. 3, 4.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...x86 import (
    CR0_WP,
    CR4_PKE,
    CR4_SMAP,
    CR4_SMEP,
    PFERR_FETCH,
    PFERR_PK,
    PFERR_PRESENT,
    PFERR_USER,
    PFERR_WRITE,
    PT_PKEY_SHIFT,
)
from .paging_mode import PT64
from .spte import ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK

if TYPE_CHECKING:
    from ..vcpu import Vcpu

PKRU_AD, PKRU_WD = 1, 2
"""Access and write disable of one key in PKRU."""


def permission_fault(vcpu: Vcpu, access: int, pkey: int, pferr: int) -> int:
    """0, or why the rights that all levels leave refuse this access: P, and PK if the protection key refuses it too.

    `pkey`: PT_PKEY_MASK bits of the leaf. By the CPU's mode (update_permission_bitmask, update_pkru_bitmask).
    """
    if access & ACC_USER_MASK and vcpu.cr4 & CR4_PKE and _key_refuses(vcpu, pkey, pferr):
        return PFERR_PRESENT | PFERR_PK
    return PFERR_PRESENT if _rights_refuse(vcpu, access, pferr) else 0


def _rights_refuse(vcpu: Vcpu, access: int, pferr: int) -> bool:
    if pferr & PFERR_FETCH:
        if not access & ACC_EXEC_MASK:
            return True
        smep = vcpu.cr4 & CR4_SMEP and not pferr & PFERR_USER
        return bool(smep and access & ACC_USER_MASK) or bool(pferr & PFERR_USER and not access & ACC_USER_MASK)
    if pferr & PFERR_USER:
        return not access & ACC_USER_MASK or (pferr & PFERR_WRITE != 0 and not access & ACC_WRITE_MASK)
    if access & ACC_USER_MASK and vcpu.cr4 & CR4_SMAP and vcpu.smap_active:
        return True
    return pferr & PFERR_WRITE != 0 and not access & ACC_WRITE_MASK and vcpu.cr0 & CR0_WP != 0


def _key_refuses(vcpu: Vcpu, pkey: int, pferr: int) -> bool:
    """PKRU on a data access to a user page in long mode (SDM vol. 3, 4.6.2)."""
    if pferr & PFERR_FETCH or vcpu.mode < PT64:
        return False
    rights = vcpu.engine.pkru >> 2 * (pkey >> PT_PKEY_SHIFT)
    if rights & PKRU_AD:
        return True
    return bool(rights & PKRU_WD and pferr & PFERR_WRITE and (pferr & PFERR_USER or vcpu.cr0 & CR0_WP))
