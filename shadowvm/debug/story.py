"""The last spte fault as a story: its events in plain sentences, with why each decision fell.

The events come from the target's history; what another thread does in the middle of a fault (kswapd, another vCPU) is
told too, with its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..addr import PAGE_SHIFT
from ..events import pferr_text
from .explain import entry_text, spte_text

if TYPE_CHECKING:
    from ..events import Tracepoint

ALIKE, END = 2, 12
"""How many events of a kind are told in the middle of a fault; how many of any kind at its beginning and end."""


class Happened(NamedTuple):
    """One event: its number, when, in which thread."""

    number: int
    instructions: int
    task: str
    vcpu: int | None
    tracepoint: Tracepoint
    args: tuple[Any, ...]


def last_fault(history: Sequence[Happened], matches: Callable[[Happened], bool] = lambda _: True) -> list[Happened]:
    """From the last kvm_page_fault that matches to the entry of the vCPU that ends it, or to now."""
    for start in range(len(history) - 1, -1, -1):
        if history[start].tracepoint.name == "kvm_page_fault" and matches(history[start]):
            break
    else:
        return []
    vcpu = history[start].vcpu
    for end in range(start + 1, len(history)):
        if history[end].tracepoint.name == "kvm_entry" and history[end].vcpu == vcpu:
            return list(history[start : end + 1])
    return list(history[start:])


def open_fault(history: Sequence[Happened], vcpu: int | None = None) -> int | None:
    """The vCPU that is in the middle of a fault: `vcpu` if it is, else the one whose fault began last; None if none."""
    open_ones: dict[int, bool] = {}
    for each in history:
        if each.vcpu is not None and each.tracepoint.name in ("kvm_page_fault", "kvm_entry"):
            open_ones.pop(each.vcpu, None)
            if each.tracepoint.name == "kvm_page_fault":
                open_ones[each.vcpu] = True
    return vcpu if vcpu in open_ones else next(reversed(open_ones), None)


def tell(fault: Sequence[Happened]) -> list[str]:
    """A line for each event that matters, of many alike in its middle for the first ones only."""
    if not fault:
        return ["no fault is in the history"]
    stale = _found_stale(fault)
    told = [each for each in fault if each.tracepoint.name in _SENTENCES or each.number in stale]
    lines: list[str] = []
    seen: Counter[str] = Counter()
    skipped = 0
    for at, each in enumerate(told):
        name = each.tracepoint.name
        seen[name] += 1
        if each.number not in stale and seen[name] > ALIKE and END <= at < len(told) - END:
            skipped += 1
            continue
        if skipped:
            lines.append(f"          ... {skipped} more like these")
            skipped = 0
        thread = "" if each.task == fault[0].task else f"({each.task}) "
        lines.append(f"{each.number:>8}  {thread}{stale.get(each.number) or _SENTENCES[name](*each.args)}")
    inside = fault[-1].number - fault[0].number
    done = "" if fault[-1].tracepoint.name == "kvm_entry" else ", and it is not over"
    return [*lines, f"{inside} events{done}"]


def _found_stale(fault: Sequence[Happened]) -> dict[int, str]:
    """By number of the event: where the fault dropped mmu_lock again without having asked for an spte, because what
    it had read of the host may not hold any more (is_page_fault_stale)."""
    found: dict[int, str] = {}
    sampled = ended = 0
    has_pfn = False
    for each in fault:
        name = each.tracepoint.name
        ended += name == "mmu_notifier_invalidate_range_end"
        if each.task != fault[0].task:
            continue
        if name == "kvm_mmu_seq_sample":
            sampled, ended = each.args[2], 0
        elif name in ("kvm_faultin_pfn", "kvm_mmu_spte_requested"):
            has_pfn = name == "kvm_faultin_pfn"
        elif name == "lock_release" and each.args[0].name == "mmu_lock" and has_pfn:
            why = f"mmu_invalidate_seq is {sampled + ended} by now, not {sampled}: the frame may be another's"
            found[each.number] = (why if ended else "an invalidation is under way") + "; the fault starts over"
            has_pfn = False
    return found


def _page_fault(_vcpu: int, rip: int, gva: int, error_code: int) -> str:
    kind = "a fetch" if error_code & 16 else "a store" if error_code & 2 else "a load"
    mode = "user" if error_code & 4 else "supervisor"
    why = "the spte that is there does not allow it" if error_code & 1 else "no spte is there"
    text = pferr_text(error_code) or "0"
    return f"{kind} by {mode} code at rip {rip:#x} to {gva:#x} left the guest: {why} (error code {text})"


def _element(pte: int, level: int) -> str:
    return f"the guest's entry of level {level} is {entry_text(pte)}"


def _faultin(_vcpu: int, gfn: int, pfn: int, write: int) -> str:
    return f"gfn {gfn:#x} is pfn {pfn:#x}, referenced {'for writing' if write else 'for reading'} so that it stays"


def _seq(_vcpu: int, gfn: int, seq: int) -> str:
    return f"mmu_invalidate_seq is {seq}: sampled before the host page table of gfn {gfn:#x} is read"


def _spte_change(sptep: int, old: int, new: int) -> str:
    if not new:
        return f"the spte at {sptep:#x} was zapped (it was {spte_text(old)})"
    return f"the spte at {sptep:#x} becomes {spte_text(new)}"


def _host_pte(_mm: int, vpn: int, old: int, new: int) -> str:
    return f"the host pte of hva {vpn << PAGE_SHIFT:#x} goes from {entry_text(old)} to {entry_text(new)}"


_SENTENCES: dict[str, Callable[..., str]] = {
    "kvm_page_fault": _page_fault,
    "kvm_mmu_pagetable_walk": lambda addr, _pferr: f"KVM walks the guest's tables for {addr:#x}",
    "kvm_mmu_paging_element": _element,
    "kvm_mmu_walker_error": lambda pferr: (
        f"the guest's own tables refuse: #PF for the guest, {pferr_text(pferr) or '0'}"
    ),
    "kvm_mmu_set_accessed_bit": lambda gpa: f"the guest's Accessed bit is set at gpa {gpa:#x}",
    "kvm_mmu_set_dirty_bit": lambda gpa: f"the guest's Dirty bit is set at gpa {gpa:#x}",
    "kvm_mmu_seq_sample": _seq,
    "handle_mm_fault": lambda address, write: (
        f"the process has no page for {'a store' if write else 'a load'} at hva {address:#x}: its fault handler runs"
    ),
    "mm_page_alloc": lambda pfn, _order: f"frame {pfn:#x} is allocated",
    "mm_page_free": lambda pfn, _order: f"frame {pfn:#x} is free",
    "swap_readpage": lambda slot, pfn: f"swap slot {slot} is read into frame {pfn:#x}",
    "mm_vmscan_write_folio": lambda pfn, slot: f"frame {pfn:#x} is written to swap slot {slot}",
    "mm_vmscan_direct_reclaim_begin": lambda _order: "no frame is free enough: direct reclaim begins",
    "mm_vmscan_direct_reclaim_end": lambda number: f"direct reclaim ends with {number} pages",
    "mm_vmscan_wakeup_kswapd": lambda _nid, _order: "free memory is below the low watermark: kswapd is woken",
    "mmu_notifier_invalidate_range_start": lambda r: (
        f"hva {r.start:#x}-{r.end:#x} is about to be unmapped ({r.event.name}): the mmu notifiers are told"
    ),
    "mmu_notifier_invalidate_range_end": lambda r: f"hva {r.start:#x}-{r.end:#x} is unmapped: faults on it may go on",
    "kvm_flush_remote_tlbs": lambda vcpus: f"{vcpus} vCPUs have to flush their TLBs before they run on",
    "host_pte_change": _host_pte,
    "kvm_faultin_pfn": _faultin,
    "kvm_mmu_get_page": lambda _gen, gfn, role, _roots, _unsync, new: (
        f"{'a new' if new else 'the'} shadow page of gfn {gfn:#x}, {role}"
    ),
    "spte_change": _spte_change,
    "fast_page_fault": lambda _vcpu, gpa, _code, _sptep, _old, new, _ret: (
        f"no lock is needed: the spte of {gpa:#x} becomes {spte_text(new)}"
    ),
    "kvm_emulate_insn": lambda rip, insn, failed: f"the instruction at {rip:#x} is emulated: {insn}{failed}",
    "kvm_inj_exception": lambda vector, code, _re: f"vector {vector} (error code {code:#x}) is queued for the guest",
    "kvm_entry": lambda _vcpu, rip: f"the guest goes on at rip {rip:#x}",
}
