"""All that a full-screen debugger shows of a machine that stands still, as one value: plain rows, no colours.

Nothing here changes the run, and equal states give equal panes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ..cpu.mailbox import EXIT_GPA, EXIT_VA
from ..cpu.segments import CS
from ..events import pferr_text
from .disassemble import instructions, words_text
from .peek import vcpu_of
from .symbols import load_symbols
from .walks import Row, gpa_of, guest_rows, host_rows, shadow_rows

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from .story import Happened
    from .symbols import Symbols
    from .target import Target

CODE_BEFORE, CODE_AFTER = 200, 100
"""Instructions around the next one."""
EVENTS = 400
OUTPUT = 16384
_BAR = 16


class CodeRow(NamedTuple):
    """An instruction. label: `<+4>` in its function, or `<name>` at the start of one."""

    address: int
    label: str
    text: str


class EventRow(NamedTuple):
    """A tracepoint hit. system: the kernel's name for the group that it is of."""

    number: int
    system: str
    task: str
    name: str
    text: str


class Look(NamedTuple):
    """An address that is looked at. kind: gva or gpa, or fault for that of the last fault, if there was one."""

    kind: str = "fault"
    value: int = 0


class Panes(NamedTuple):
    """See the module. why: what the address that is looked at is; function: where rip is; nested: shadow is of
    two-dimensional paging; output: the end of it."""

    vcpu: int
    rip: int
    function: str
    code: list[CodeRow]
    registers: dict[str, int]
    why: str
    guest: list[Row]
    shadow: list[Row]
    nested: bool
    host: list[Row]
    memory: list[Row]
    events: list[EventRow]
    output: bytes


def panes(target: Target, look: Look, number: int | None = None) -> Panes:
    """Of a vCPU, by default the one that runs."""
    from .views import registers  # noqa: PLC0415 - the views are built on this module

    vcpu = vcpu_of(target, number)
    at = vcpu.engine.rip + vcpu.engine.segment(CS).base
    symbols = load_symbols(target.machine.config.image)
    inside = symbols.at(at)
    why, gva, gpa = _address(target, vcpu, look)
    return Panes(
        vcpu.id,
        at,
        inside.name if inside is not None else "",
        code_rows(vcpu, at, symbols),
        registers(target, vcpu.id),
        why,
        list(guest_rows(vcpu, gva, gpa)),
        list(shadow_rows(vcpu, gva, gpa)),
        vcpu.kvm.tdp_enabled,
        list(host_rows(vcpu.kvm, gpa)),
        list(memory_rows(target)),
        list(_events(target.history)),
        bytes(target.output[-OUTPUT:]),
    )


def _address(target: Target, vcpu: Vcpu, look: Look) -> tuple[str, int | None, int | None]:
    """(why, gva, gpa): what is looked at."""
    if look.kind == "gpa":
        return "pinned", None, look.value
    if look.kind == "gva":
        return "pinned", look.value, gpa_of(vcpu, look.value)
    fault = next((each for each in reversed(target.history) if _is_fault_of(each, vcpu)), None)
    if fault is None:
        return "rip", vcpu.engine.rip, gpa_of(vcpu, vcpu.engine.rip)
    _, _, address, error_code = fault.args
    why = f"fault {pferr_text(error_code) or '0'}, event {fault.number}"
    if not vcpu.kvm.tdp_enabled:
        return why, address, gpa_of(vcpu, address)
    box = vcpu.engine.box
    return why, box[EXIT_VA] if box[EXIT_GPA] == address else None, address


def _is_fault_of(event: Happened, vcpu: Vcpu) -> bool:
    return event.tracepoint.name == "kvm_page_fault" and event.vcpu == vcpu.id


def code_rows(vcpu: Vcpu, at: int, symbols: Symbols) -> list[CodeRow]:
    """Instructions from the start of the function on; from `at` itself where no symbol tells where that is."""
    inside = symbols.at(at)
    start = at if inside is None else inside.address
    before = list(instructions(vcpu, start, at - start)) if at - start < 15 * CODE_BEFORE else []
    before = [one for one in before if one.address < at][-CODE_BEFORE:]
    if before and before[-1].address + before[-1].size != at:
        before = []
    rows = [*before, *instructions(vcpu, at, CODE_AFTER)]
    return [CodeRow(one.address, _label(one.address, symbols), words_text(one, symbols)) for one in rows]


def _label(address: int, symbols: Symbols) -> str:
    inside = symbols.at(address)
    if inside is None:
        return ""
    return f"<{inside.name}>" if address == inside.address else f"<+{address - inside.address}>"


def memory_rows(target: Target) -> Iterator[Row]:
    """The host's frames, its lists and its swap; who runs; the locks and the sequence that faults are checked by."""
    host, kvm = target.machine.host, target.machine.kvm
    zone, swap, stat = host.zone, host.swap, host.vmstat
    state = "below min" if zone.nr_free < zone.min else "below low" if zone.nr_free < zone.low else ""
    yield Row(f"frames {zone.managed}: min {zone.min} low {zone.low} high {zone.high}{'  ' + state if state else ''}")
    parts = {
        "free": zone.nr_free,
        "active_anon": len(host.lruvec.active),
        "inactive_anon": len(host.lruvec.inactive),
        "page tables": stat.nr_page_table_pages,
        "shadow tables": stat.nr_sec_page_table_pages,
    }
    for name, count in parts.items():
        yield Row(f"{name:<13}{count:>7} {_bar(count, zone.managed)}")
    yield Row(f"{'swap':<13}{swap.nr_slots - swap.nr_free:>7} {_bar(swap.nr_slots - swap.nr_free, swap.nr_slots)}")
    yield Row(f"  of {swap.nr_slots} slots; {len(swap.cache)} pages cached", detail=True)
    yield from _lock_rows(target)
    invalidations = f"{kvm.mmu_invalidate_in_progress} in progress"
    if kvm.mmu_invalidate_in_progress:
        invalidations += f": gfns {kvm.mmu_invalidate_range_start:#x}-{kvm.mmu_invalidate_range_end:#x}"
    yield Row(f"invalidate_seq {kvm.mmu_invalidate_seq}, {invalidations}")
    for task in host.sched.tasks:
        if not task.glet.dead:
            here = task is host.sched.current
            yield Row(f"{task.name}: {'runs' if here else 'waits' if task.waiting is not None else 'is runnable'}")


def _bar(count: int, whole: int) -> str:
    """At least one mark for what is there at all."""
    return "#" * max(count * _BAR // whole, 1) if whole and count else ""


def _lock_rows(target: Target) -> Iterator[Row]:
    for lock in (target.machine.kvm.mmu_lock, target.machine.mm.mmap_lock):
        readers: Sequence[object] = getattr(lock, "readers", ())
        held = f"held by {lock.owner.name}" if lock.owner is not None else "held for reading" if readers else ""
        yield Row(f"{lock.name}: {held or 'free'}")


def _events(history: Sequence[Happened]) -> Iterator[EventRow]:
    for each in islice(history, max(len(history) - EVENTS, 0), None):
        point = each.tracepoint
        yield EventRow(each.number, point.system, each.task, point.name, point.format(each.args))
