"""What a debugger may ask of a machine that stands still, as text or plain values. Nothing here changes the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..addr import PAGE_SHIFT, Gva
from ..cpu.registers import GENERAL
from ..cpu.segments import CS, FS, GS, SEGMENTS
from ..errors import ConfigError
from ..kvm import stats
from ..kvm.mmu.role import role_text
from .disassemble import Instruction, body, instruction_text, instructions, leaves
from .explain import explain
from .peek import guest_walk, peek_guest, peek_virtual
from .story import last_fault, tell
from .symbols import Symbols, load_symbols

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from .target import Target


def vcpu_of(target: Target, number: int | None) -> Vcpu:
    """A vCPU by number; by default the one that runs, or ran last."""
    machine = target.machine
    if number is None:
        return machine.kvm.loaded or machine.vcpu
    if not 0 <= number < len(machine.vcpus):
        raise ConfigError(f"there is no vCPU {number}")
    return machine.vcpus[number]


def registers(target: Target, number: int | None = None) -> dict[str, int]:
    """All registers by name."""
    engine = vcpu_of(target, number).engine
    values = {name: engine.get_reg(number) for name, number in GENERAL.items()}
    values |= {"rip": engine.rip, "rflags": engine.rflags}
    values |= {name: engine.segment(index).selector for name, index in SEGMENTS.items()}
    values |= {"fs_base": engine.segment(FS).base, "gs_base": engine.segment(GS).base}
    values |= {"cr0": engine.cr0, "cr2": engine.cr2, "cr3": engine.cr3, "cr4": engine.cr4, "cr8": engine.cr8}
    return values | {"efer": engine.efer}


def memory(target: Target, address: int, size: int, number: int | None = None) -> bytes | None:
    """Of the vCPU's address space; None if part of it is not mapped."""
    return peek_virtual(vcpu_of(target, number), address, size)


def physical(target: Target, gpa: int, size: int) -> bytes | None:
    """Guest-physical memory; None where no slot is."""
    return peek_guest(target.machine.kvm, gpa, size)


def gva2gpa(target: Target, gva: int, number: int | None = None) -> int | None:
    """Through the guest's tables."""
    return guest_walk(vcpu_of(target, number), Gva(gva)).gpa


def gpa2hva(target: Target, gpa: int) -> int | None:
    """Through the memslots."""
    slot = target.machine.kvm.memslots.find(gpa >> PAGE_SHIFT)  # type: ignore[arg-type]
    return None if slot is None else slot.userspace_addr + gpa - (slot.base_gfn << PAGE_SHIFT)


def explained(target: Target, kind: str, value: int, number: int | None = None) -> list[str]:
    """explain.py."""
    return explain(target.machine, vcpu_of(target, number), kind, value)


def story(target: Target) -> list[str]:
    """story.py, of the last fault."""
    return tell(last_fault(list(target.history)))


def disassembly(target: Target, count: int, address: int | None = None, number: int | None = None) -> list[str]:
    """`count` instructions from an address, by default the next ones, with the guest's symbols."""
    vcpu = vcpu_of(target, number)
    at = vcpu.engine.rip + vcpu.engine.segment(CS).base if address is None else address
    known = symbols(target)
    return [instruction_text(each, known) for each in instructions(vcpu, at, count)] or [f"{at:#x}:  (not mapped)"]


def code(target: Target, number: int | None = None) -> Instruction | None:
    """The next instruction of a vCPU; None where no memory is."""
    vcpu = vcpu_of(target, number)
    return next(instructions(vcpu, vcpu.engine.rip + vcpu.engine.segment(CS).base, 1), None)


def ways_out(target: Target, number: int | None = None) -> list[int]:
    """Where the function that a vCPU is in returns, or jumps into another; ConfigError: no symbol says where it is."""
    vcpu = vcpu_of(target, number)
    at = vcpu.engine.rip + vcpu.engine.segment(CS).base
    inside = symbols(target).at(at)
    if inside is None:
        raise ConfigError(f"{at:#x} is in no function with a symbol")
    return [one.address for one in body(vcpu, inside) if leaves(one, inside)]


def symbols(target: Target) -> Symbols:
    """Of the guest's image."""
    return load_symbols(target.machine.config.image)


def symbol(target: Target, name: str) -> int | None:
    """The address of one."""
    found = symbols(target).find(name)
    return None if found is None else found.address


def symbol_text(target: Target, address: int) -> str:
    """` <name+offset>`, or nothing."""
    return symbols(target).text(address)


def cpus(target: Target) -> list[str]:
    """info cpus."""
    machine = target.machine
    lines = []
    for vcpu in machine.vcpus:
        mark = "*" if vcpu is vcpu_of(target, None) else " "
        lines.append(f"{mark} CPU #{vcpu.id}: rip={vcpu.engine.rip:#018x} ({vcpu.mp_state.name.lower()})")
    return lines


def memslots(target: Target) -> list[str]:
    """info memslots."""
    return [
        f"slot {slot.id}: gpa {slot.base_gfn << PAGE_SHIFT:#x}-{(slot.end_gfn << PAGE_SHIFT) - 1:#x} "
        f"hva {slot.userspace_addr:#x} flags {slot.flags:#x} rmap {len(slot.rmap)} tracked {len(slot.gfn_write_track)}"
        for slot in target.machine.kvm.memslots.slots
    ]


def shadow_pages(target: Target) -> list[str]:
    """info shadow."""
    q = target.machine.kvm.q
    return [
        f"pfn {sp.pfn:#x}: gfn {sp.gfn:#x} {role_text(sp.role)} root {sp.root_count} "
        f"parents {len(sp.parent_ptes)} entries {sum(1 for entry in q[sp.q : sp.q + 512].tolist() if entry)}"
        for sp in target.machine.kvm.sp_by_pfn.values()
    ]


def host(target: Target) -> list[str]:
    """info host: frames, lists, swap, tasks and locks."""
    node = target.machine.host
    zone, swap = node.zone, node.swap
    lines = [
        f"frames: {zone.managed} managed, {zone.nr_free} free (min {zone.min}, low {zone.low}, high {zone.high})",
        f"lru: {len(node.lruvec.active)} active_anon, {len(node.lruvec.inactive)} inactive_anon",
        f"swap: {swap.nr_slots - swap.nr_free} of {swap.nr_slots} slots in use, {len(swap.cache)} pages in the cache",
    ]
    for task in node.sched.tasks:
        if task.glet.dead:
            continue
        state = "runs" if task is node.sched.current else "waits" if task.waiting is not None else "is runnable"
        lines.append(f"task {task.name}-{task.pid}: {state}")
    kvm = target.machine.kvm
    owner = kvm.mmu_lock.owner
    lines.append(f"mmu_lock: {'free' if owner is None else f'held by {owner.name}'}")
    return lines


def notifiers(target: Target) -> list[str]:
    """info notifiers."""
    kvm = target.machine.kvm
    open_ones = f"{kvm.mmu_invalidate_in_progress} invalidations in progress"
    if kvm.mmu_invalidate_in_progress:
        open_ones += f", gfns {kvm.mmu_invalidate_range_start:#x}-{kvm.mmu_invalidate_range_end:#x}"
    counts = " ".join(f"{name} {value}" for name, value in kvm.notifier.stat.as_dict().items())
    return [f"mmu_invalidate_seq {kvm.mmu_invalidate_seq}, {open_ones}", counts]


def counters(target: Target) -> dict[str, int]:
    """KVM's and the host's, by name."""
    machine = target.machine
    return stats.as_dict(machine.kvm.stat, (vcpu.stat for vcpu in machine.vcpus)) | machine.host.vmstat.as_dict()


def output(target: Target) -> bytes:
    """All that the guest has said."""
    return bytes(target.output)


VIEWS: dict[str, Callable[..., Any]] = {
    "symbol": symbol,
    "code": code,
    "ways_out": ways_out,
    "symbol_text": symbol_text,
    "registers": registers,
    "memory": memory,
    "physical": physical,
    "gva2gpa": gva2gpa,
    "gpa2hva": gpa2hva,
    "explain": explained,
    "story": story,
    "disassembly": disassembly,
    "cpus": cpus,
    "memslots": memslots,
    "shadow": shadow_pages,
    "host": host,
    "notifiers": notifiers,
    "counters": counters,
    "output": output,
}
