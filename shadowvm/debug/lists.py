"""What a machine consists of, as lines: memory map, shadow pages, rmaps, areas, LRU lists, swap, locks and threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn
from ..kvm.memslot import KVM_MEM_READONLY
from ..kvm.mmu.rmap import rmap_sptes
from ..kvm.mmu.role import role_text
from ..mm.lru import LRU_NAMES
from ..sync import RwLock
from .explain import frame_text, spte_lines

if TYPE_CHECKING:
    from ..mm.page_alloc import Page
    from ..sync import Lock, Task
    from .target import Target

MAX_LINES = 512
NEAREST = 8
"""How many pages at each end of an LRU list are named."""


def bounded(lines: Iterable[str], most: int = MAX_LINES) -> list[str]:
    """The first ones, and how many there are besides."""
    rest = iter(lines)
    first = list(islice(rest, most))
    more = sum(1 for _ in rest)
    return [*first, f"... {more} more"] if more else first


def mtree(target: Target) -> list[str]:
    """Guest-physical memory and ports, as QEMU's flat view."""
    machine = target.machine
    lines = ["address-space: memory", f"  {0:016x}-{(1 << 64) - 1:016x} (prio 0, i/o): system"]
    regions = [
        (slot.base_gfn << PAGE_SHIFT, slot.end_gfn << PAGE_SHIFT, "rom" if slot.flags & KVM_MEM_READONLY else "ram", 0)
        for slot in machine.kvm.memslots.slots
    ]
    named = [(each.base, each.end, each.device) for each in machine.mmio.regions]
    rows = [(start, end, f"(prio 0, {kind}): {kind}") for start, end, kind, _ in regions]
    rows += [(start, end, f"(prio 1, i/o): {_name(device)}") for start, end, device in named]
    lapic = machine.pc.lapics[0].base & -PAGE_SIZE
    rows.append((lapic, lapic + PAGE_SIZE, "(prio 4096, i/o): lapic"))
    lines += [f"    {start:016x}-{end - 1:016x} {text}" for start, end, text in sorted(rows)]
    lines += ["", "address-space: I/O", f"  {0:016x}-{0xFFFF:016x} (prio 0, i/o): io"]
    for device, ports in groupby(sorted(machine.bus.devices.items()), key=lambda each: each[1]):
        for first, last in _runs(port for port, _ in ports):
            lines.append(f"    {first:016x}-{last:016x} (prio 0, i/o): {_name(device)}")
    return bounded(lines)


def _name(device: object) -> str:
    return type(device).__name__.lstrip("_").lower()


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = -2
    for number in numbers:
        if number != last + 1:
            if first >= 0:
                yield first, last
            first = number
        last = number
    if first >= 0:
        yield first, last


def memslots(target: Target) -> list[str]:
    """Of each address space that has any."""
    return [
        f"slot {slot.id}: gpa {slot.base_gfn << PAGE_SHIFT:#x}-{(slot.end_gfn << PAGE_SHIFT) - 1:#x} "
        f"hva {slot.userspace_addr:#x} flags {slot.flags:#x} rmap {len(slot.rmap)} tracked {len(slot.gfn_write_track)}"
        + (f" address space {number}" if number else "")
        for number, slots in enumerate(target.machine.kvm.address_spaces)
        for slot in slots.slots
    ]


def shadow_pages(target: Target) -> list[str]:
    """Every one, in the order in which they were made."""
    q = target.machine.kvm.q
    return bounded(
        f"pfn {sp.pfn:#x}: gfn {sp.gfn:#x} {role_text(sp.role)} root {sp.root_count} "
        f"parents {len(sp.parent_ptes)} entries {sum(1 for entry in q[sp.q : sp.q + 512].tolist() if entry)}"
        f"{' unsync' if sp.unsync else ''}{' invalid' if sp.invalid else ''}"
        for sp in target.machine.kvm.sp_by_pfn.values()
    )


def sptes(target: Target, gfn: int) -> list[str]:
    """The leaves that map a guest frame."""
    kvm = target.machine.kvm
    slot = kvm.memslots.find(Gfn(gfn))
    return [f"gfn {gfn:#x}: no memslot"] if slot is None else list(spte_lines(kvm, slot, Gfn(gfn)))


def rmap(target: Target, gfn: int) -> list[str]:
    """The rmap list of a guest frame, as it is."""
    kvm = target.machine.kvm
    slot = kvm.memslots.find(Gfn(gfn))
    if slot is None:
        return [f"gfn {gfn:#x}: no memslot"]
    if kvm.tdp_mmu_enabled:
        return ["the TDP MMU has no rmaps: a frame has one place in each of its roots"]
    large = slot.rmap_large.get(Gfn(gfn & -512), [])
    found = [(f"{PAGE_SIZE >> 10} KiB", each) for each in rmap_sptes(slot, Gfn(gfn))]
    found += [("2 MiB", each) for each in ([large] if isinstance(large, int) else large)]
    return [f"gfn {gfn:#x}: {len(found)} sptes", *(f"  {size}: spte at {sptep * 8:#x}" for size, sptep in found)]


def lru(target: Target) -> list[str]:
    """Both lists: how long they are, and the pages at their ends; reclaim takes the oldest inactive one first."""
    node = target.machine.host
    lines = []
    for name, pages in zip(LRU_NAMES, node.lruvec.lists, strict=True):
        lines.append(f"{name}: {len(pages)} pages, from the oldest")
        values: list[Page] = list(pages.values())
        ends = values if len(values) <= 2 * NEAREST else [*values[:NEAREST], *values[-NEAREST:]]
        for at, page in enumerate(ends):
            if at == NEAREST and len(values) > 2 * NEAREST:
                lines.append(f"  ... {len(values) - 2 * NEAREST} more")
            lines.append(f"  {frame_text(page)}")
    return lines


def vma(target: Target) -> list[str]:
    """The areas of every process."""
    return bounded(
        f"mm {mm.id}: {area}, {(area.end - area.start) >> PAGE_SHIFT} pages"
        for mm in target.machine.host.mms
        for area in mm.vmas.areas
    )


def swap(target: Target) -> list[str]:
    """How full it is, the swap cache, and reads that are on their way."""
    node = target.machine.host
    space = node.swap
    used = space.nr_slots - space.nr_free
    zeros = sum(1 for slot, count in enumerate(space.swap_map) if count and space.zeromap[slot])
    lines = [f"{used} of {space.nr_slots} slots in use, {zeros} of them pages of zeros that are only remembered"]
    cached = (f"  slot {slot}: {frame_text(page)}" for slot, page in space.cache.items())
    return [*lines, f"swap cache: {len(space.cache)} pages", *bounded(cached, 2 * NEAREST)]


def host(target: Target) -> list[str]:
    """Frames, watermarks and lists in numbers."""
    node = target.machine.host
    zone, space = node.zone, node.swap
    return [
        f"frames: {zone.managed} managed, {zone.nr_free} free (min {zone.min}, low {zone.low}, high {zone.high})",
        f"lru: {len(node.lruvec.active)} active_anon, {len(node.lruvec.inactive)} inactive_anon",
        f"swap: {space.nr_slots - space.nr_free} of {space.nr_slots} slots in use, {len(space.cache)} pages cached",
        *tasks(target),
        *locks(target)[:1],
    ]


def tasks(target: Target) -> list[str]:
    """Threads of the host that live: what they do, and which locks they hold."""
    scheduler = target.machine.sched
    return [f"task {task.name}-{task.pid}: {_state(target, task)}" for task in scheduler.tasks if not task.glet.dead]


def _state(target: Target, task: Task) -> str:
    scheduler = target.machine.sched
    waits = task.waiting
    if task is scheduler.current:
        text = "runs"
    elif waits is None:
        text = "is runnable"
    else:
        name = getattr(waits, "name", None)
        text = f"waits for {name}" if isinstance(name, str) else "waits"
    held = ", ".join(lock.name for lock in task.held)
    return f"{text}, holds {held}" if held else text


def locks(target: Target) -> list[str]:
    """The VM's and its process's, and the sequence that guards faults."""
    kvm = target.machine.kvm
    found = (kvm.mmu_lock, kvm.slots_lock, kvm.mm.mmap_lock, kvm.mm.page_table_lock)
    return [f"{lock.name}: {_lock_state(lock)}" for lock in found]


def _lock_state(lock: Lock) -> str:
    waiters = f", {', '.join(task.name for task in lock.waiters)} wait" if lock.waiters else ""
    if lock.owner is not None:
        return f"held by {lock.owner.name}{waiters}"
    if isinstance(lock, RwLock) and lock.readers:
        return f"held for read by {', '.join(task.name for task in lock.readers)}{waiters}"
    return f"free{waiters}"


def notifiers(target: Target) -> list[str]:
    """Open invalidations, the sequence, and who is subscribed to the process."""
    kvm = target.machine.kvm
    open_ones = f"{kvm.mmu_invalidate_in_progress} invalidations in progress"
    if kvm.mmu_invalidate_in_progress:
        open_ones += f", gfns {kvm.mmu_invalidate_range_start:#x}-{kvm.mmu_invalidate_range_end:#x}"
    counts = " ".join(f"{name} {value}" for name, value in kvm.notifier.stat.as_dict().items())
    return [f"mmu_invalidate_seq {kvm.mmu_invalidate_seq}, {open_ones}", counts]


def cpus(target: Target) -> list[str]:
    """Where each vCPU is; the one that runs has a star."""
    machine = target.machine
    running = machine.kvm.loaded or machine.vcpu
    return [
        f"{'*' if vcpu is running else ' '} CPU #{vcpu.id}: rip={vcpu.engine.rip:#018x} ({vcpu.mp_state.name.lower()})"
        for vcpu in machine.vcpus
    ]
