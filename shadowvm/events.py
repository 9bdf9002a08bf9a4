"""Tracepoints: every transition that matters, declared once, under the kernel's name and printk form.

A tracepoint costs one attribute test while nobody listens:

    if kvm_page_fault.on:
        kvm_page_fault(vcpu_id, rip, gva, error_code)

Listeners (trace file, statistics, sanitizer, debugger, scheduler) are called in the order in which they attached,
with the tracepoint and its arguments. They are passive, but for two rights: a scheduler may switch tasks at a
tracepoint marked as a scheduling `point`, and a checker may raise. Tracepoints are global, as the kernel's are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

Sink: TypeAlias = "Callable[[Tracepoint, tuple[Any, ...]], None]"
Text: TypeAlias = "str | Callable[..., str]"

REGISTRY: dict[str, Tracepoint] = {}
"""Every declared tracepoint by its name, in order of declaration."""


class Tracepoint:
    """One named transition. `fields` name the arguments; `text` formats them as the kernel's TP_printk does."""

    __slots__ = ("__call__", "_hits", "fields", "name", "on", "point", "sinks", "system", "text")
    __call__: Callable[..., None]

    def __init__(self, system: str, name: str, fields: str, text: Text, *, point: bool = False) -> None:
        self.system = system
        self.name = name
        self.fields = tuple(fields.split())
        self.text = text
        self.point = point
        self.sinks: list[Sink] = []
        self.on = False
        self._hits: dict[Sink, Callable[..., None]] = {}
        self.__call__ = self._tell
        REGISTRY[name] = self

    def _tell(self, *args: Any) -> None:
        for sink in self.sinks:
            sink(self, args)

    def __repr__(self) -> str:
        return f"<tracepoint {self.system}:{self.name}>"

    def attach(self, sink: Sink, hit: Callable[..., None] | None = None) -> None:
        """Call `sink` at every hit from now on; or `hit` with the arguments alone, while nobody else listens."""
        self.sinks = [*self.sinks, sink]
        if hit is not None:
            self._hits[sink] = hit
        self._choose()

    def detach(self, sink: Sink) -> None:
        """Stop calling `sink`."""
        self.sinks = [other for other in self.sinks if other is not sink]
        self._hits.pop(sink, None)
        self._choose()

    def _choose(self) -> None:
        """What a hit calls: its only listener, if that can be called like that."""
        self.on = bool(self.sinks)
        hit = self._hits.get(self.sinks[0]) if len(self.sinks) == 1 else None
        self.__call__ = self._tell if hit is None else hit

    def format(self, args: tuple[Any, ...]) -> str:
        """The text behind the colon of an ftrace line."""
        return self.text % args if isinstance(self.text, str) else self.text(*args)

    def describe(self, args: tuple[Any, ...]) -> str:
        """A hit as ftrace prints it behind the time: `name: text`."""
        return f"{self.name}: {self.format(args)}"


class TraceClock:
    """`ticks` moves before each entry of a guest and each switch of tasks.

    Between two ticks, and while no guest executes, virtual time stands still and the task is the same: a listener need
    not ask for them again.
    """

    __slots__ = ("ticks",)

    def __init__(self) -> None:
        self.ticks = 0


trace_clock = TraceClock()
"""That of all machines."""


@contextmanager
def attached(sink: Sink, tracepoints: Iterable[Tracepoint]) -> Iterator[None]:
    """`sink` listens to `tracepoints` inside the block."""
    chosen = list(tracepoints)
    for tracepoint in chosen:
        tracepoint.attach(sink)
    try:
        yield
    finally:
        for tracepoint in chosen:
            tracepoint.detach(sink)


def pferr_text(error_code: int) -> str:
    """Page-fault error code as kvm_mmu_trace_pferr_flags prints it, such as `P|W|U`."""
    names = ((1, "P"), (2, "W"), (4, "U"), (8, "RSVD"), (16, "F"), (32, "PK"), (64, "SS"), (0x8000, "SGX"))
    return "|".join(name for bit, name in names if error_code & bit)


def _shadow_page_text(gen: int, gfn: int, role: str, root_count: int, unsync: int) -> str:
    return f"sp gen {gen} gfn {gfn:x} {role} root {root_count} {'unsync' if unsync else 'sync'}"


def _get_page_text(gen: int, gfn: int, role: str, root_count: int, unsync: int, created: int) -> str:
    return _shadow_page_text(gen, gfn, role, root_count, unsync) + (" new" if created else " existing")


def _fast_page_fault_text(
    vcpu_id: int, cr2_or_gpa: int, error_code: int, sptep: int, old_spte: int, new_spte: int, ret: int
) -> str:
    return (
        f"vcpu {vcpu_id} gva {cr2_or_gpa:x} error_code {pferr_text(error_code)} sptep {sptep:x} old {old_spte:#x} "
        f"new {new_spte:x} spurious {ret == 6:d} fixed {ret == 5:d}"
    )


def _set_spte_text(gfn: int, spte: int, sptep: int, level: int) -> str:
    rights = ("r" if spte & 1 else "-") + ("w" if spte & 2 else "-")
    rights += ("-" if spte >> 63 else "x") + ("u" if spte & 4 else "-")
    return f"gfn {gfn:x} spte {spte:x} ({rights}) level {level} at {sptep:x}"


DELIVERY_MODES = ("Fixed", "LowPrio", "SMI", "Res3", "NMI", "INIT", "SIPI", "ExtINT")
"""Names of the APIC's delivery modes, as kvm_deliver_mode prints them."""

_APIC_NAMES = (
    "ID:20 LVR:30 TASKPRI:80 ARBPRI:90 PROCPRI:a0 EOI:b0 LDR:d0 DFR:e0 SPIV:f0 ISR:100 TMR:180 IRR:200 ESR:280 "
    "ICR:300 ICR2:310 LVTT:320 LVTTHMR:330 LVTPC:340 LVT0:350 LVT1:360 LVTERR:370 TMICT:380 TMCCT:390 TDCR:3e0 "
    "SELF_IPI:3f0"
)
APIC_REGISTERS = {int(offset, 16): f"APIC_{name}" for name, offset in (each.split(":") for each in _APIC_NAMES.split())}
"""Names of the local APIC's registers, as kvm_apic prints them."""


def _apic_ipi_text(icr_low: int, dest_id: int) -> str:
    parts = (
        DELIVERY_MODES[icr_low >> 8 & 7],
        "logical" if icr_low & 1 << 11 else "physical",
        "assert" if icr_low & 1 << 14 else "de-assert",
        "level" if icr_low & 1 << 15 else "edge",
    )
    shorthand = ("", "|self", "|all", "|all-but-self")[icr_low >> 18 & 3]
    return f"dst {dest_id:x} vec {icr_low & 0xFF} ({'|'.join(parts)}{shorthand})"


def _pic_set_irq_text(chip: int, pin: int, elcr: int, imr: int, coalesced: int) -> str:
    mode, masked = "level" if elcr >> pin & 1 else "edge", "|masked" if imr >> pin & 1 else ""
    return f"chip {chip} pin {pin} ({mode}{masked}){' (coalesced)' if coalesced else ''}"


def _ioapic_set_irq_text(e: int, pin: int, coalesced: int) -> str:
    parts = (DELIVERY_MODES[e >> 8 & 7], "logical" if e & 1 << 11 else "physical", "level" if e & 1 << 15 else "edge")
    masked = "|masked" if e & 1 << 16 else ""
    text = f"pin {pin} dst {e >> 56:x} vec {e & 0xFF} ({'|'.join(parts)}{masked})"
    return f"{text}{' (coalesced)' if coalesced else ''}"


# arch/x86/kvm/trace.h and virt/kvm trace events
kvm_entry = Tracepoint("kvm", "kvm_entry", "vcpu_id rip", "vcpu %u, rip 0x%x")
kvm_exit = Tracepoint(
    "kvm",
    "kvm_exit",
    "vcpu_id exit_reason guest_rip info1 info2",
    "vcpu %u reason %s rip 0x%x info1 0x%016x info2 0x%016x",
)
kvm_page_fault = Tracepoint(
    "kvm",
    "kvm_page_fault",
    "vcpu_id guest_rip fault_address error_code",
    "vcpu %u rip 0x%x address 0x%016x error_code 0x%x",
    point=True,
)
kvm_inj_exception = Tracepoint("kvm", "kvm_inj_exception", "exception error_code reinjected", "vector %u (0x%x)%s")
kvm_inj_virq = Tracepoint("kvm", "kvm_inj_virq", "irq", "IRQ 0x%x")
kvm_msr = Tracepoint(
    "kvm",
    "kvm_msr",
    "write ecx data exception",
    lambda write, ecx, data, exception: (
        f"msr_{'write' if write else 'read'} {ecx:x} = 0x{data:x}{' (#GP)' if exception else ''}"
    ),
)
kvm_cpuid = Tracepoint(
    "kvm", "kvm_cpuid", "function index rax rbx rcx rdx", "func %x idx %x rax %x rbx %x rcx %x rdx %x"
)
kvm_cr = Tracepoint("kvm", "kvm_cr", "cr val", "cr_write %u = 0x%x")
kvm_pio = Tracepoint(
    "kvm",
    "kvm_pio",
    "rw port size count val",
    lambda rw, port, size, count, val: (
        f"pio_{'write' if rw else 'read'} at 0x{port:x} size {size} count {count} val 0x{val:x}"
    ),
)
kvm_mmio = Tracepoint(
    "kvm",
    "kvm_mmio",
    "type len gpa val",
    lambda kind, size, gpa, val: (
        f"mmio {('unsatisfied-read', 'read', 'write')[kind]} len {size} gpa 0x{gpa:x} val 0x{val:x}"
    ),
)
vcpu_match_mmio = Tracepoint(
    "kvm",
    "vcpu_match_mmio",
    "gva gpa write gpa_match",
    lambda gva, gpa, write, gpa_match: (
        f"gva 0x{gva:x} gpa 0x{gpa:x} {'Write' if write else 'Read'} {'GPA' if gpa_match else 'GVA'}"
    ),
)
kvm_emulate_insn = Tracepoint("kvm", "kvm_emulate_insn", "rip insn failed", "0:%x: %s%s")
kvm_userspace_exit = Tracepoint("kvm", "kvm_userspace_exit", "reason status", "reason %s (%d)")
kvm_unmap_hva_range = Tracepoint(
    "kvm", "kvm_unmap_hva_range", "start end", "mmu notifier unmap range: 0x%016x -- 0x%016x"
)
kvm_age_hva = Tracepoint("kvm", "kvm_age_hva", "start end", "mmu notifier age hva: 0x%016x -- 0x%016x")
kvm_test_age_hva = Tracepoint("kvm", "kvm_test_age_hva", "hva", "mmu notifier test age hva: 0x%016x")
kvm_flush_remote_tlbs = Tracepoint("kvm", "kvm_flush_remote_tlbs", "vcpus", "requested of %u vcpus", point=True)
# No tracepoints of the kernel's: what the ioctls on memory slots do.
kvm_get_dirty_log = Tracepoint(
    "kvm",
    "kvm_get_dirty_log",
    "slot dirty cleared",
    lambda slot, dirty, cleared: f"slot {slot} {len(dirty)} dirty pages{', cleared' if cleared else ''}",
)
kvm_clear_dirty_log = Tracepoint(
    "kvm", "kvm_clear_dirty_log", "slot gfns", lambda slot, gfns: f"slot {slot} {len(gfns)} pages"
)
kvm_dirty_ring_push = Tracepoint(
    "kvm",
    "kvm_dirty_ring_push",
    "index dirty_index reset_index slot offset",
    lambda index, dirty, reset, slot, offset: (
        f"ring {index}: dirty 0x{dirty:x} reset 0x{reset:x} slot {slot} offset 0x{offset:x} (used {dirty - reset})"
    ),
)
kvm_dirty_ring_reset = Tracepoint(
    "kvm",
    "kvm_dirty_ring_reset",
    "index dirty_index reset_index",
    lambda index, dirty, reset: f"ring {index}: dirty 0x{dirty:x} reset 0x{reset:x} (used {dirty - reset})",
)
kvm_dirty_ring_exit = Tracepoint("kvm", "kvm_dirty_ring_exit", "vcpu_id", "vcpu %d")
kvm_set_memslot = Tracepoint(
    "kvm",
    "kvm_set_memslot",
    "slot change flags gpa size hva",
    "slot %d %s flags 0x%x gpa 0x%x size 0x%x hva 0x%x",
    point=True,
)
kvm_mmu_seq_sample = Tracepoint(
    "kvm", "kvm_mmu_seq_sample", "vcpu_id gfn mmu_seq", "vcpu %u gfn %x mmu_seq %u", point=True
)
kvm_faultin_pfn = Tracepoint(
    "kvm", "kvm_faultin_pfn", "vcpu_id gfn pfn write", "vcpu %u gfn %x pfn %x write %d", point=True
)

# include/ras/ras_event.h
memory_failure_event = Tracepoint("ras", "memory_failure_event", "pfn result", "pfn 0x%x: %s", point=True)

# include/trace/events/kvm.h, pages that a vCPU does not wait for
kvm_try_async_get_page = Tracepoint("kvm", "kvm_try_async_get_page", "gva gfn", "gva = 0x%x, gfn = 0x%x")
kvm_async_pf_repeated_fault = Tracepoint("kvm", "kvm_async_pf_repeated_fault", "gva gfn", "gva = 0x%x, gfn = 0x%x")
kvm_async_pf_not_present = Tracepoint(
    "kvm", "kvm_async_pf_not_present", "token gva", "token 0x%x gva 0x%x not present", point=True
)
kvm_async_pf_ready = Tracepoint("kvm", "kvm_async_pf_ready", "token gva", "token 0x%x gva 0x%x ready", point=True)
kvm_async_pf_completed = Tracepoint("kvm", "kvm_async_pf_completed", "address gva", "gva 0x%x address 0x%x")

# arch/x86/kvm/trace.h, the interrupt controllers
kvm_apic = Tracepoint(
    "kvm",
    "kvm_apic",
    "rw reg val",
    lambda rw, reg, val: f"apic_{'write' if rw else 'read'} {APIC_REGISTERS.get(reg, hex(reg))} = 0x{val:x}",
)
kvm_apic_ipi = Tracepoint("kvm", "kvm_apic_ipi", "icr_low dest_id", _apic_ipi_text)
kvm_apic_accept_irq = Tracepoint(
    "kvm",
    "kvm_apic_accept_irq",
    "apicid dm tm vec",
    lambda apicid, dm, tm, vec: f"apicid {apicid:x} vec {vec} ({DELIVERY_MODES[dm]}|{'level' if tm else 'edge'})",
)
kvm_eoi = Tracepoint("kvm", "kvm_eoi", "apicid vector", "apicid %x vector %d")
kvm_pic_set_irq = Tracepoint("kvm", "kvm_pic_set_irq", "chip pin elcr imr coalesced", _pic_set_irq_text)
kvm_ioapic_set_irq = Tracepoint("kvm", "kvm_ioapic_set_irq", "e pin coalesced", _ioapic_set_irq_text)

# arch/x86/kvm/mmu/mmutrace.h
kvm_mmu_pagetable_walk = Tracepoint(
    "kvmmmu",
    "kvm_mmu_pagetable_walk",
    "addr pferr",
    lambda addr, pferr: f"addr {addr:x} pferr {pferr:x} {pferr_text(pferr)}",
)
kvm_mmu_paging_element = Tracepoint("kvmmmu", "kvm_mmu_paging_element", "pte level", "pte %x level %u")
kvm_mmu_set_accessed_bit = Tracepoint("kvmmmu", "kvm_mmu_set_accessed_bit", "gpa", "gpa %x")
kvm_mmu_set_dirty_bit = Tracepoint("kvmmmu", "kvm_mmu_set_dirty_bit", "gpa", "gpa %x")
kvm_mmu_walker_error = Tracepoint(
    "kvmmmu", "kvm_mmu_walker_error", "pferr", lambda pferr: f"pferr {pferr:x} {pferr_text(pferr)}"
)
mark_mmio_spte = Tracepoint("kvmmmu", "mark_mmio_spte", "sptep gfn access gen", "sptep:%x gfn %x access %x gen %x")
handle_mmio_page_fault = Tracepoint("kvmmmu", "handle_mmio_page_fault", "addr gfn access", "addr:%x gfn %x access %x")
check_mmio_spte = Tracepoint(
    "kvmmmu",
    "check_mmio_spte",
    "kvm_gen spte_gen spte",
    lambda kvm_gen, spte_gen, spte: (
        f"spte {spte:x} kvm_gen {kvm_gen:x} spte-gen {spte_gen:x} valid {int(kvm_gen == spte_gen)}"
    ),
)
kvm_mmu_get_page = Tracepoint(
    "kvmmmu", "kvm_mmu_get_page", "mmu_valid_gen gfn role root_count unsync created", _get_page_text
)
kvm_mmu_prepare_zap_page = Tracepoint(
    "kvmmmu", "kvm_mmu_prepare_zap_page", "mmu_valid_gen gfn role root_count unsync", _shadow_page_text
)
kvm_mmu_sync_page = Tracepoint(
    "kvmmmu", "kvm_mmu_sync_page", "mmu_valid_gen gfn role root_count unsync", _shadow_page_text
)
# A scheduling point: where KVM has a barrier, between the mark and the spte that lets the guest write.
kvm_mmu_unsync_page = Tracepoint(
    "kvmmmu", "kvm_mmu_unsync_page", "mmu_valid_gen gfn role root_count unsync", _shadow_page_text, point=True
)
kvm_mmu_spte_requested = Tracepoint("kvmmmu", "kvm_mmu_spte_requested", "gfn pfn level", "gfn %x pfn %x level %d")
kvm_mmu_set_spte = Tracepoint("kvmmmu", "kvm_mmu_set_spte", "gfn spte sptep level", _set_spte_text)
kvm_mmu_split_huge_page = Tracepoint(
    "kvmmmu", "kvm_mmu_split_huge_page", "gfn spte level errno", "gfn %x spte %x level %d errno %d"
)
kvm_mmu_zap_all_fast = Tracepoint(
    "kvmmmu", "kvm_mmu_zap_all_fast", "mmu_valid_gen mmu_used_pages", "mmu_valid_gen %d used_pages %d"
)
fast_page_fault = Tracepoint(
    "kvmmmu", "fast_page_fault", "vcpu_id cr2_or_gpa error_code sptep old_spte new_spte ret", _fast_page_fault_text
)
kvm_tdp_mmu_spte_changed = Tracepoint(
    "kvmmmu",
    "kvm_tdp_mmu_spte_changed",
    "as_id gfn level old_spte new_spte",
    "as id %d gfn %x level %d old_spte %x new_spte %x",
)
# Before each compare-and-exchange of an spte: what was read may have changed by now.
spte_cmpxchg = Tracepoint(
    "kvmmmu", "spte_cmpxchg", "sptep old_spte new_spte", "at %x old_spte %x new_spte %x", point=True
)
# Every store to a shadow table, the seam that checkers listen to; `sptep` is the entry's hpa.
spte_change = Tracepoint("kvmmmu", "spte_change", "sptep old_spte new_spte", "at %x old_spte %x new_spte %x")

# include/trace/events/vmscan.h, kmem.h
mm_vmscan_wakeup_kswapd = Tracepoint("vmscan", "mm_vmscan_wakeup_kswapd", "nid order", "nid=%d order=%d")
mm_vmscan_kswapd_wake = Tracepoint("vmscan", "mm_vmscan_kswapd_wake", "nid order", "nid=%d order=%d")
mm_vmscan_kswapd_sleep = Tracepoint("vmscan", "mm_vmscan_kswapd_sleep", "nid", "nid=%d")
mm_vmscan_direct_reclaim_begin = Tracepoint("vmscan", "mm_vmscan_direct_reclaim_begin", "order", "order=%d")
mm_vmscan_direct_reclaim_end = Tracepoint("vmscan", "mm_vmscan_direct_reclaim_end", "nr_reclaimed", "nr_reclaimed=%u")
mm_vmscan_lru_isolate = Tracepoint(
    "vmscan",
    "mm_vmscan_lru_isolate",
    "nr_requested nr_scanned nr_taken lru",
    "nr_requested=%u nr_scanned=%u nr_taken=%u lru=%s",
)
mm_vmscan_lru_shrink_inactive = Tracepoint(
    "vmscan",
    "mm_vmscan_lru_shrink_inactive",
    "nr_scanned nr_reclaimed nr_dirty nr_activate nr_unmap_fail",
    "nid=0 nr_scanned=%d nr_reclaimed=%d nr_dirty=%d nr_activate=%d nr_unmap_fail=%d",
)
mm_vmscan_lru_shrink_active = Tracepoint(
    "vmscan",
    "mm_vmscan_lru_shrink_active",
    "nr_taken nr_active nr_deactivated nr_referenced",
    "nid=0 nr_taken=%d nr_active=%d nr_deactivated=%d nr_referenced=%d",
)
mm_vmscan_write_folio = Tracepoint(
    "vmscan", "mm_vmscan_write_folio", "pfn swap_slot", "pfn=0x%x swap slot %d", point=True
)
mm_page_alloc = Tracepoint("kmem", "mm_page_alloc", "pfn order", "pfn=0x%x order=%d")
mm_page_free = Tracepoint("kmem", "mm_page_free", "pfn order", "pfn=0x%x order=%d")

# Transitions of the host mm that the kernel does not trace; checkers, the debugger and the explorer need them.
handle_mm_fault = Tracepoint("mm", "handle_mm_fault", "address write", "address 0x%x write %d", point=True)
swap_readpage = Tracepoint("mm", "swap_readpage", "slot pfn", "slot %d pfn=0x%x", point=True)
swap_writepage = Tracepoint("mm", "swap_writepage", "slot pfn", "slot %d pfn=0x%x")
host_pte_change = Tracepoint(
    "mm", "host_pte_change", "mm vpn old_pte new_pte", "mm %d vpn %x old_pte %x new_pte %x", point=True
)
folio_referenced = Tracepoint("mm", "folio_referenced", "pfn referenced", "pfn=0x%x referenced=%d")
get_user_page = Tracepoint("mm", "get_user_page", "mm vpn pfn write", "mm %d vpn %x pfn=0x%x write %d", point=True)
follow_pfnmap = Tracepoint("mm", "follow_pfnmap", "mm vpn pfn write", "mm %d vpn %x pfn=0x%x write %d", point=True)
mmu_notifier_invalidate_range_start = Tracepoint(
    "mm",
    "mmu_notifier_invalidate_range_start",
    "range",
    lambda r: f"0x{r.start:x}-0x{r.end:x} {r.event.name}",
    point=True,
)
mmu_notifier_invalidate_range_end = Tracepoint(
    "mm",
    "mmu_notifier_invalidate_range_end",
    "range",
    lambda r: f"0x{r.start:x}-0x{r.end:x} {r.event.name}",
    point=True,
)
mmu_notifier_invalidate_range_failed = Tracepoint(
    "mm",
    "mmu_notifier_invalidate_range_failed",
    "range",
    lambda r: f"0x{r.start:x}-0x{r.end:x} {r.event.name}",
)
mmu_notifier_release = Tracepoint("mm", "mmu_notifier_release", "mm", "mm %d")

# include/trace/events/lock.h, sched.h
lock_acquire = Tracepoint("lock", "lock_acquire", "lock", lambda lock: f"{lock.name}", point=True)
lock_acquired = Tracepoint("lock", "lock_acquired", "lock", lambda lock: f"{lock.name}")
lock_release = Tracepoint("lock", "lock_release", "lock", lambda lock: f"{lock.name}", point=True)
might_sleep = Tracepoint("sched", "might_sleep", "where", "%s")
sched_switch = Tracepoint("sched", "sched_switch", "prev next", "prev_comm=%s ==> next_comm=%s")
sched_wakeup = Tracepoint("sched", "sched_wakeup", "task", "comm=%s")
