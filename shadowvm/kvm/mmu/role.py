"""Page roles: what, besides the gfn, tells shadow pages apart (union kvm_mmu_page_role).

A role is an int of packed fields, so that it compares and hashes at once. The CPU's part (`cpu_role`) holds the
control bits that change what a guest entry means.
"""

from __future__ import annotations

from typing import NamedTuple

from ...x86 import CR0_PG, CR0_WP, CR4_PAE, CR4_PKE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NX, PT_PKEY_SHIFT
from .spte import ACC_ALL

_LEVEL, _DIRECT, _ACCESS = 0, 4, 5
_EFER_NX, _CR0_WP, _SMEP_ANDNOT_WP, _SMAP_ANDNOT_WP = 8, 9, 10, 11
_HAS_4_BYTE_GPTE, _QUADRANT, _CR4_PSE, _PKE_ANDNOT_WP = 12, 13, 15, 16
_PKEY, _A20_CLOSED, _PAE, _AD_DISABLED, _SMM = 17, 21, 22, 23, 24

ROLE_LEVEL = 15 << _LEVEL
ROLE_CR0_WP, ROLE_A20_CLOSED = 1 << _CR0_WP, 1 << _A20_CLOSED
ROLE_SMM_SHIFT = _SMM
"""Nothing lies above: a role shifted by this is the address space that it belongs to."""
CPU_ROLE_MASK = (
    1 << _EFER_NX
    | 1 << _CR0_WP
    | 1 << _SMEP_ANDNOT_WP
    | 1 << _SMAP_ANDNOT_WP
    | 1 << _HAS_4_BYTE_GPTE
    | 1 << _CR4_PSE
    | 1 << _PKE_ANDNOT_WP
    | 1 << _A20_CLOSED
    | 1 << _SMM
)
"""What a role has from the CPU."""
A20_GFN_MASK = ~(1 << 8)
"""What the closed A20 gate leaves of a guest frame number."""


class Role(NamedTuple):
    """The fields of a packed role."""

    level: int
    direct: bool
    access: int
    efer_nx: bool
    cr0_wp: bool
    smep_andnot_wp: bool
    smap_andnot_wp: bool
    has_4_byte_gpte: bool
    quadrant: int
    cr4_pse: bool
    pke_andnot_wp: bool
    pkey: int
    """As PT_PKEY_MASK bits."""
    a20_closed: bool
    pae: bool
    ad_disabled: bool
    smm: bool
    """Made in address space 1."""


def kvm_calc_cpu_role(cr0: int, cr4: int, efer: int, a20_closed: bool = False, smm: bool = False) -> int:
    """The CPU's part of a role. Without paging, when every page is direct, only the A20 gate counts.

    With paging the gate is taken for open: nobody turns paging on without it.
    """
    role = smm << _SMM
    if not cr0 & CR0_PG:
        return role | a20_closed << _A20_CLOSED
    if not cr4 & CR4_PAE:
        # KVM has CR4.PSE in the extended role only; here the links of a shadow page depend on it.
        role |= 1 << _HAS_4_BYTE_GPTE | (1 << _CR4_PSE if cr4 & CR4_PSE else 0)
    elif not efer & EFER_LMA:
        # KVM lets a PAE guest and a 64-bit one share pages, though bits 62:52 are reserved for the former alone.
        role |= 1 << _PAE
    if efer & EFER_NX:
        role |= 1 << _EFER_NX
    if cr0 & CR0_WP:
        return role | 1 << _CR0_WP
    if cr4 & CR4_SMEP:
        role |= 1 << _SMEP_ANDNOT_WP
    if cr4 & CR4_SMAP:
        role |= 1 << _SMAP_ANDNOT_WP
    if cr4 & CR4_PKE:
        role |= 1 << _PKE_ANDNOT_WP
    return role


def kvm_calc_tdp_mmu_root_page_role(ad_disabled: bool, smm: bool) -> int:
    """The CPU's part of the role of every page of two-dimensional tables: the guest's registers do not matter."""
    return 1 << _EFER_NX | 1 << _CR0_WP | ad_disabled << _AD_DISABLED | smm << _SMM


def pack_role(
    cpu_role: int, level: int, access: int = ACC_ALL, direct: bool = False, quadrant: int = 0, pkey: int = 0
) -> int:
    """The role of a shadow page of `level` reached with `access`.

    A table of 32-bit entries has twice as many of them as a shadow page; `quadrant` says which part is shadowed.
    `pkey` is the protection key of the large page that a direct page is a piece of, as PT_PKEY_MASK bits: KVM, which
    has no protection keys under shadow paging, has no such field.
    """
    if direct:
        cpu_role &= ~(1 << _HAS_4_BYTE_GPTE | 1 << _CR4_PSE)
    role = cpu_role | level << _LEVEL | access << _ACCESS | direct << _DIRECT | quadrant << _QUADRANT
    return role | pkey >> PT_PKEY_SHIFT - _PKEY if pkey else role


def split_role(role: int, access: int, pkey: int) -> int:
    """Of the direct page of level 1 that takes the place of a large spte in a shadow page of `role`."""
    cpu_role = role & ~(15 << _LEVEL | 1 << _DIRECT | 7 << _ACCESS | 3 << _QUADRANT | 15 << _PKEY)
    return pack_role(cpu_role, 1, access, True, 0, pkey)


def unpack_role(role: int) -> Role:
    """The fields of `role`."""
    return Role(
        role >> _LEVEL & 15,
        bool(role >> _DIRECT & 1),
        role >> _ACCESS & 7,
        bool(role >> _EFER_NX & 1),
        bool(role >> _CR0_WP & 1),
        bool(role >> _SMEP_ANDNOT_WP & 1),
        bool(role >> _SMAP_ANDNOT_WP & 1),
        bool(role >> _HAS_4_BYTE_GPTE & 1),
        role >> _QUADRANT & 3,
        bool(role >> _CR4_PSE & 1),
        bool(role >> _PKE_ANDNOT_WP & 1),
        (role >> _PKEY & 15) << PT_PKEY_SHIFT,
        bool(role >> _A20_CLOSED & 1),
        bool(role >> _PAE & 1),
        bool(role >> _AD_DISABLED & 1),
        bool(role >> _SMM & 1),
    )


def role_level(role: int) -> int:
    """The level in a packed role."""
    return role >> _LEVEL & 15


def role_text(role: int) -> str:
    """A role as the kvm_mmu_get_page tracepoint prints it, such as `l1 8-byte q0 wux nxe ad`."""
    fields = unpack_role(role)
    rights = ("w" if fields.access & 2 else "-") + ("u" if fields.access & 4 else "-") + "-x"[fields.access & 1]
    direct = " direct" if fields.direct else ""
    size, smm = 4 if fields.has_4_byte_gpte else 8, " smm" if fields.smm else ""
    nxe, ad = "" if fields.efer_nx else "!", "!" if fields.ad_disabled else ""
    return f"l{fields.level} {size}-byte q{fields.quadrant}{direct} {rights} {nxe}nxe {ad}ad{smm}"
