"""Guest frames of all address spaces in one row: the books' gfn has the number of its address space above its bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...addr import Gfn
from ...kvm.mmu.role import ROLE_SMM_SHIFT

if TYPE_CHECKING:
    from ...kvm.memslot import MemSlot
    from ...kvm.mmu.shadow import KvmMmuPage
    from ...kvm.vm import Kvm

_SHIFT = 40
_MASK = (1 << _SHIFT) - 1


def booked(gfn: int, as_id: int) -> Gfn:
    """The books' number of a frame."""
    return Gfn(gfn | as_id << _SHIFT)


def booked_of(sp: KvmMmuPage, gfn: int) -> Gfn:
    """The books' number of a frame that a shadow page maps or shadows."""
    return Gfn(gfn | sp.role >> ROLE_SMM_SHIFT << _SHIFT)


def plain(gfn: int) -> Gfn:
    """The frame's number in its address space."""
    return Gfn(gfn & _MASK)


def space_of(gfn: int) -> int:
    """The address space of the books' number of a frame."""
    return gfn >> _SHIFT


def find_slot(kvm: Kvm, gfn: int) -> MemSlot | None:
    """The slot of a frame by the books' number."""
    return kvm.address_spaces[gfn >> _SHIFT].find(plain(gfn))


def all_slots(kvm: Kvm) -> Iterator[MemSlot]:
    """Every slot of every address space."""
    for slots in kvm.address_spaces:
        yield from slots.slots
