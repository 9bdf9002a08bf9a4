"""The root table that the walker starts at, the registers it was loaded for, and the roots kept for other CR3 values.

A root of 4 or 5 levels serves long mode. One of 3 levels serves all else, with 32-bit addresses: a PAE table whose
four entries have the layout of the other levels; without paging CR3 does not select it.

As KVM does (cached_root_find_and_keep_current in arch/x86/kvm/mmu/mmu.c), a CR3 write back to a recent value swaps
roots without an exit; the native walker does that swap.
"""

from __future__ import annotations

from .. import x86
from ..addr import Hpa
from ..errors import ModelBug
from . import mailbox as mb

NO_ROOT = 1 << 62
"""No table: a walk from here fails as BAD_FRAME."""
ANY_CR3 = NO_CR3 = (1 << 64) - 1
"""As mask: all of CR3, so that one with reserved bits matches no root and is found out (refuse_cr3 of
native/intercept.py). As value: no CR3 that may be loaded, so that every use of the current root exits.
"""

KEY_MASKS = {
    mb.MASK_CR0: x86.CR0_PE | x86.CR0_WP | x86.CR0_PG,
    mb.MASK_CR3: ANY_CR3,
    mb.MASK_CR4: x86.CR4_PSE | x86.CR4_PAE | x86.CR4_SMEP | x86.CR4_SMAP | x86.CR4_LA57 | x86.CR4_PKE,
    mb.MASK_EFER: x86.EFER_LME | x86.EFER_LMA | x86.EFER_NX,
}
"""Which bits of the control registers select a root; the guest may change others without an exit."""


def load(box: memoryview[int], root: Hpa, cr3: int, cr0: int, cr4: int, efer: int, level: int) -> None:
    """Make `root` current. The former one is kept if only CR3 differs, except of 3 levels: a CR3 write loads the four
    PAE entries anew. Otherwise all kept ones are forgotten.

    Raises:
        ModelBug: no such level.
    """
    if not 3 <= level <= 5:
        raise ModelBug(f"a root of {level} levels")
    box[mb.MASK_CR3] = ANY_CR3 if cr0 & x86.CR0_PG else 0
    cr3 &= box[mb.MASK_CR3]
    if level > 3 and level == box[mb.ROOT_LEVEL] and _same_mode(box, cr0, cr4, efer):
        others = [pair for pair in kept(box) if pair[0] != cr3]
        if box[mb.KEY_CR3] not in (cr3, NO_CR3):
            others.insert(0, (box[mb.KEY_CR3], box[mb.ROOT]))
        _write_kept(box, others)
    else:
        _write_kept(box, [])
    box[mb.NESTED], box[mb.ROOT], box[mb.ROOT_LEVEL] = 0, root, level
    box[mb.CHECKS] = _checks(cr0, cr4, efer)
    box[mb.KEY_CR0], box[mb.KEY_CR3], box[mb.KEY_CR4], box[mb.KEY_EFER] = cr0, cr3, cr4, efer


def _checks(cr0: int, cr4: int, efer: int) -> int:
    """SMEP and SMAP need paging, protection keys need long mode (SDM vol. 3, 4.6)."""
    if not cr0 & x86.CR0_PG:
        return 0
    return cr4 & (x86.CR4_SMEP | x86.CR4_SMAP | (x86.CR4_PKE if efer & x86.EFER_LMA else 0))


def _same_mode(box: memoryview[int], cr0: int, cr4: int, efer: int) -> bool:
    pairs = ((cr0, mb.KEY_CR0, mb.MASK_CR0), (cr4, mb.KEY_CR4, mb.MASK_CR4), (efer, mb.KEY_EFER, mb.MASK_EFER))
    return not any((value ^ box[key]) & box[mask] for value, key, mask in pairs)


def kept(box: memoryview[int]) -> list[tuple[int, int]]:
    """(cr3, root) of each kept root, latest first."""
    flat = box[mb.PREV_ROOTS : mb.PREV_ROOTS + 2 * mb.NR_PREV_ROOTS].tolist()
    return [(cr3, root) for cr3, root in zip(flat[::2], flat[1::2], strict=True) if root]


def _write_kept(box: memoryview[int], pairs: list[tuple[int, int]]) -> None:
    for i in range(mb.NR_PREV_ROOTS):
        pair = pairs[i] if i < len(pairs) else (0, 0)
        box[mb.PREV_ROOTS + 2 * i], box[mb.PREV_ROOTS + 2 * i + 1] = pair


def drop(box: memoryview[int], cr3: int) -> None:
    """Forget the root of one CR3, current or kept."""
    _write_kept(box, [pair for pair in kept(box) if pair[0] != cr3])
    if box[mb.KEY_CR3] == cr3:
        box[mb.KEY_CR3], box[mb.ROOT] = NO_CR3, NO_ROOT


def forget_kept(box: memoryview[int]) -> None:
    """Forget all but the current root."""
    _write_kept(box, [])


def drop_all(box: memoryview[int]) -> None:
    """Forget every root."""
    forget_kept(box)
    box[mb.KEY_CR3], box[mb.ROOT] = NO_CR3, NO_ROOT
