"""Kinds of addresses. Each is an int at run time and a distinct type to the type checker.

    gva --guest walk--> gpa --memslot--> hva --host page table--> hpa

Frame and page numbers are the address shifted right by PAGE_SHIFT: gfn of gpa, vpn of hva, pfn of hpa.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NewType

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = ~(PAGE_SIZE - 1)
HUGE_PAGE_SIZE = 2 << 20

if TYPE_CHECKING:
    Gva = NewType("Gva", int)  # guest virtual
    Gpa = NewType("Gpa", int)  # guest physical
    Gfn = NewType("Gfn", int)  # guest frame number: gpa >> PAGE_SHIFT
    Hva = NewType("Hva", int)  # host virtual, of the process that backs the guest
    Vpn = NewType("Vpn", int)  # host virtual page number: hva >> PAGE_SHIFT
    Hpa = NewType("Hpa", int)  # host physical: an offset into host RAM
    Pfn = NewType("Pfn", int)  # host page frame number: hpa >> PAGE_SHIFT
else:
    # NewType's call is a Python frame; int's is C. The fault path converts a handful of times.
    Gva = Gpa = Gfn = Hva = Vpn = Hpa = Pfn = int
