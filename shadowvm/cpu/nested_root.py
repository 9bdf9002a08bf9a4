"""Two-dimensional paging: the nested root, and what the walk of the guest's own tables has to know of the CPU model.

    engine.load_nested_root(hpa)

From then on the walker (native/nested.py) reads the guest's CR0, CR3, CR4 and EFER at each TLB miss, so that the guest
may change them and its tables without an exit. Its own page faults reach it without one too. The exits are

- EPT_VIOLATION and EPT_MISCONFIG: the nested table at box[ROOT] refuses;
- CR_ACCESS: there is no root, or CR3 in PAE mode is not the one that the pointers of `load_pdptrs` were loaded at;
- NON_CANONICAL, and CR_WRITE for reserved bits of CR3 (controls.cr), as without it.

Nested entries have the layout of the guest's. U must be set, and NX refuses fetches. A and D bits are set in them
unless `has_ad` is off. `drop_all_roots` and `load_root` end it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import x86
from ..addr import PAGE_SHIFT, PAGE_SIZE, Gva, Hpa
from ..errors import ModelBug
from ..phys import Ram
from . import mailbox as mb
from .nested import GuestPaging, Mapped, NestedTable, walk
from .registers import Registers
from .roots import NO_CR3, forget_kept

MASK64 = (1 << 64) - 1
MOST_ADDRESS_BITS = 48
"""What four nested levels reach."""
RSVD_1G_BITS, RSVD_4M_PSE36, RSVD_4M = 0x3FFF_E000, 1 << 21, 0x3F_E000
DEFAULT_MAXPHYADDR = 40


def defaults() -> dict[int, int]:
    """Words of a new mailbox."""
    words = {mb.NESTED_AD: 1, mb.GPA_MASK: MASK64, mb.PDPTRS_CR3: NO_CR3}
    return words | reserved_words(DEFAULT_MAXPHYADDR, gigabyte=True, pse36=True)


def reserved_words(maxphyaddr: int, *, gigabyte: bool, pse36: bool) -> dict[int, int]:
    """Which bits are reserved in the guest's entries (SDM vol. 3, 4.1.4 and tables 4-4 to 4-19)."""
    if not 32 <= maxphyaddr <= MOST_ADDRESS_BITS:
        raise ModelBug(f"guest-physical addresses of {maxphyaddr} bits")
    return {
        mb.RSVD_ADDR: x86.PT_ADDR_MASK & ~((1 << maxphyaddr) - 1),
        mb.RSVD_1G: RSVD_1G_BITS if gigabyte else x86.PT_PAGE_SIZE,
        mb.RSVD_4M: RSVD_4M_PSE36 if pse36 else RSVD_4M,
    }


class NestedPaging:
    """The settings of one engine. A change of them wants a flush of the TLB."""

    __slots__ = ("_box", "_features")

    def __init__(self, box: memoryview[int]) -> None:
        self._box = box
        self._features = (DEFAULT_MAXPHYADDR, True, True)

    @property
    def on(self) -> bool:
        """Is box[ROOT] a nested root?"""
        return bool(self._box[mb.NESTED])

    def load_root(self, root: Hpa, level: int) -> None:
        """Make the nested table of `level` levels at hpa `root` current.

        Raises:
            ModelBug: no such level.
        """
        if level not in (4, 5):
            raise ModelBug(f"a nested root of {level} levels")
        box = self._box
        if not box[mb.NESTED]:
            box[mb.KEY_CR3] = NO_CR3
            forget_kept(box)
        box[mb.NESTED], box[mb.ROOT], box[mb.ROOT_LEVEL] = 1, root, level

    def load_pdptrs(self, cr3: int, pdptrs: Sequence[int]) -> None:
        """The PAE pointers as MOV to `cr3` has loaded them (SDM vol. 3, 4.4.1): the walk does not read them itself."""
        box = self._box
        box[mb.PDPTRS_CR3] = cr3
        for i in range(4):
            box[mb.PDPTRS + i] = pdptrs[i]

    def set_features(self, maxphyaddr: int, *, gigabyte: bool = True, pse36: bool = True) -> None:
        """The CPU model's address bits, and whether it has 1 GiB pages and PSE-36. At first 40, yes and yes."""
        self._features = (maxphyaddr, gigabyte, pse36)
        for word, value in reserved_words(maxphyaddr, gigabyte=gigabyte, pse36=pse36).items():
            self._box[word] = value

    @property
    def has_ad(self) -> bool:
        """Does the walk set A and D bits in nested entries? If not, a writable entry is mapped writable at once."""
        return bool(self._box[mb.NESTED_AD])

    @has_ad.setter
    def has_ad(self, on: bool) -> None:
        self._box[mb.NESTED_AD] = on

    @property
    def gpa_mask(self) -> int:
        """Is put over every guest-physical address: all ones, but bit 20 with the A20 gate closed."""
        return self._box[mb.GPA_MASK]

    @gpa_mask.setter
    def gpa_mask(self, mask: int) -> None:
        self._box[mb.GPA_MASK] = mask & MASK64

    @property
    def rom(self) -> tuple[int, int]:
        """Guest-physical addresses [start, end) where walks leave the guest's tables unmarked; at first none."""
        return self._box[mb.ROM_START], self._box[mb.ROM_END]

    @rom.setter
    def rom(self, addresses: tuple[int, int]) -> None:
        self._box[mb.ROM_START], self._box[mb.ROM_END] = addresses

    def look(self, cpu: Registers, ram: Ram, va: Gva) -> Hpa | None:
        """Where a data access to `va` goes, whatever the rights; None if nowhere. Marks nothing."""
        box = self._box
        pointers = tuple(box[mb.PDPTRS : mb.PDPTRS + 4])
        guest = GuestPaging(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, 0, pointers, *self._features, self.gpa_mask)
        found = walk(NestedTable(ram, box[mb.ROOT], box[mb.ROOT_LEVEL], mark=False), guest, va)
        return Hpa(found.pfn << PAGE_SHIFT | va & PAGE_SIZE - 1) if isinstance(found, Mapped) else None

    @property
    def guest_faults(self) -> int:
        """Page faults that the guest got from its own tables, without an exit."""
        return self._box[mb.GUEST_FAULTS]
