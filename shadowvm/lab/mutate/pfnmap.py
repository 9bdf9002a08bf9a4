"""Bugs of guest memory that is a device's on the host: frames of which nobody counts the users."""

from __future__ import annotations

from ...addr import PAGE_SIZE
from ...kvm.mmu import page_fault
from ...machine import Machine
from ...mm.mm_struct import mmap
from ...mm.pfnmap import open_device
from . import host
from .guest import Code
from .mutation import Mutation
from .patch import Edit
from .scenario import Action, Scenario

PAGES = 4
TAIL = host.EXTRA + PAGE_SIZE
"""A frame that has no reference at all: the driver's one is to the first of its block."""


def add_device(*, writable: bool) -> Action:
    """The VMM maps a device, and gives it to the guest at EXTRA."""

    def action(machine: Machine) -> None:
        hva = mmap(machine.mm, PAGES * PAGE_SIZE, writable, device=open_device(machine.host, PAGES))
        machine.kvm.set_user_memory_region(host.EXTRA_SLOT, host.EXTRA, PAGES * PAGE_SIZE, hva)

    return action


MUTATIONS = (
    Mutation(
        "device-frame-put",
        "f8be156be163",
        "a fault takes a reference to a frame that has none and drops it again, which frees memory of a driver",
        ("I4", "FRAME"),
        (
            Edit(
                page_fault._faultin_remapped,
                "    fault.page = page_of_nobody(found)\n",
                "    fault.page = vcpu.kvm.mm.mem_map[found.pfn]\n    fault.page.refcount += 1\n",
            ),
        ),
        Scenario(
            Code().store(TAIL, 7).store(host.EXTRA, 8).expect(TAIL, 7).expect(host.EXTRA, 8).exit(),
            prepare=add_device(writable=True),
        ),
    ),
    Mutation(
        "device-pte-assumed-writable",
        "bd2fae8da794",
        "an spte of a device is writable whatever the host pte says",
        ("I23",),
        (Edit(page_fault._faultin_remapped, "fault.map_writable = found.writable", "fault.map_writable = True"),),
        Scenario(
            Code().load(TAIL).store(TAIL, 7).expect(TAIL, 0).exit(),
            prepare=add_device(writable=False),
        ),
    ),
)
