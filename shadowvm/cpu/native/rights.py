"""Rights of a translation against an access, for both kinds of page walk, and marking entries."""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from ..engine import WalkFault
from .memory import get, get_env, inline, ld32, ld64, st64

NOT_PRESENT, NO_WRITE, NO_USER, NO_EXEC, SMEP, SMAP, BAD_FRAME, PROTECTION_KEY = (int(why) for why in WalkFault)
P, W, U = x86.PT_PRESENT, x86.PT_WRITABLE, x86.PT_USER
READ, WRITE, FETCH = 0, 1, 2
PKRU_AD, PKRU_WD = 1, 2


@inline
def why_refused(box, rights, nx, access, idx):
    """-1 if the accumulated rights allow the access, else why not."""
    if access == FETCH:
        if nx:
            return NO_EXEC
        if idx == lay.MMU_USER_IDX:
            return -1 if rights & U else NO_USER
        return SMEP if rights & U and get(box, mb.CHECKS) & x86.CR4_SMEP else -1
    if idx == lay.MMU_USER_IDX and not rights & U:
        return NO_USER
    if idx == lay.MMU_KSMAP_IDX and rights & U and get(box, mb.CHECKS) & x86.CR4_SMAP:
        return SMAP
    return NO_WRITE if access == WRITE and not rights & W else -1


@inline
def key_rights(box, entry, idx):
    """What the protection key of a leaf allows of data accesses: P any, W stores (SDM vol. 3, 4.6.2)."""
    pkru = ld32(get_env(box) + lay.ENV_PKRU) >> (entry >> 59 & 15) * 2
    if pkru & PKRU_AD:
        return 0
    is_checked = idx == lay.MMU_USER_IDX or get(box, mb.KEY_CR0) & x86.CR0_WP
    return P if pkru & PKRU_WD and is_checked else P | W


@inline
def mark(at, bits):
    if at != 0:
        entry = ld64(at)
        if entry & bits != bits:
            st64(at, entry | bits)
