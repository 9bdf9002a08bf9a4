"""Bugs of asynchronous page faults."""

from __future__ import annotations

from functools import partial

from ...events import kvm_faultin_pfn
from ...kvm import async_pf
from ...kvm.mmu import async_page_ready, page_fault
from ...machine import Machine
from . import host
from .guest import PAGE, Code
from .mutation import Mutation
from .patch import Edit
from .scenario import Meanwhile, Scenario

TIME = {"swap_latency": 5_000}
WAITED_FOR = Scenario(
    Code().sti().store(PAGE, 7).host(0).load(PAGE).expect(PAGE, 7).exit(),
    config=TIME,
    actions=(partial(host.page_out, gpa=PAGE),),
)
"""A page is on swap, and the CPU halts until it has been read."""


def _comes_back(machine: Machine, vcpu_id: int, gfn: int, pfn: int, write: bool) -> bool:
    return gfn == PAGE >> 12 and machine.host.vmstat.pswpin > 0


TAKEN_AGAIN = Scenario(
    Code().sti().store(PAGE, 7).host(0).load(PAGE).expect(PAGE, 7).exit(),
    config=TIME,
    actions=(partial(host.page_out, gpa=PAGE),),
    actors=(Meanwhile(kvm_faultin_pfn, partial(host.page_out, gpa=PAGE), when=_comes_back),),
)
"""As WAITED_FOR, and it goes out again between look-up and mapping."""

MUTATIONS = (
    Mutation(
        "ready-without-retry-check",
        "",
        "the end of an asynchronous page fault installs what it looked up before the page was taken away again",
        ("I23", "I10"),
        (
            Edit(
                page_fault._map,
                "if is_page_fault_stale(vcpu, fault):",
                "if not fault.prefetch and is_page_fault_stale(vcpu, fault):",
            ),
        ),
        TAKEN_AGAIN,
    ),
    Mutation(
        "ready-before-page",
        "",
        "the worker says that it is done before it has the page",
        ("APF",),
        (
            Edit(
                async_pf.async_pf_execute,
                "    page = get_user_page(",
                "    _done(vcpu, work)\n    page = get_user_page(",
            ),
        ),
        WAITED_FOR,
    ),
    Mutation(
        "token-lost",
        "",
        "a page has come, and the vCPU that waits for it is woken without being asked to look",
        ("APF",),
        (Edit(async_pf._done, "    vcpu.requests |= KVM_REQ_APF_READY\n", ""),),
        WAITED_FOR,
    ),
    Mutation(
        "token-twice",
        "",
        "a page that has come is reported again and again",
        ("APF",),
        (Edit(async_page_ready.kvm_check_async_pf_completion, "apf.done.popleft()", "apf.done[0]"),),
        WAITED_FOR,
    ),
)
