"""What a debugger may ask of a machine that stands still, as text or plain values. Nothing here changes the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..addr import PAGE_SHIFT, Gva
from ..cpu.registers import GENERAL
from ..cpu.segments import CS, FS, GS, SEGMENTS
from ..errors import ConfigError
from ..kvm import stats
from . import lists
from .disassemble import Instruction, body, instruction_text, instructions, leaves
from .explain import explain
from .guest_tables import info_mem, info_tab, info_tlb
from .panes import panes
from .peek import guest_walk, peek_guest, peek_virtual, vcpu_of
from .registers_text import creg, info_registers
from .story import last_fault, open_fault, tell
from .symbols import Symbols, load_symbols
from .threads import threads

if TYPE_CHECKING:
    from ..config import MachineConfig
    from .target import Target


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


def story(target: Target, gva: int | None = None) -> list[str]:
    """story.py, of the last fault, or of the last one on a page."""
    if gva is None:
        return tell(last_fault(list(target.history)))
    page = gva >> PAGE_SHIFT
    return tell(last_fault(list(target.history), lambda fault: fault.args[2] >> PAGE_SHIFT == page))


def faulting(target: Target, vcpu: int | None = None) -> int | None:
    """Which vCPU is in the middle of a fault, `vcpu` first."""
    return open_fault(target.history, vcpu)


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


def symbol_names(target: Target) -> list[str]:
    """All of them."""
    return symbols(target).names


def symbol_text(target: Target, address: int) -> str:
    """` <name+offset>`, or nothing."""
    return symbols(target).text(address)


def counters(target: Target) -> dict[str, int]:
    """KVM's and the host's, by name."""
    machine = target.machine
    return stats.as_dict(machine.kvm.stat, (vcpu.stat for vcpu in machine.vcpus)) | machine.host.vmstat.as_dict()


def image(target: Target) -> str | None:
    """The path of the guest's ELF file, None for another kind."""
    path = target.machine.config.image
    if path is None:
        return None
    with open(path, "rb") as file:
        return os.path.abspath(path) if file.read(4) == b"\x7fELF" else None


def output(target: Target) -> bytes:
    """All that the guest has said."""
    return bytes(target.output)


def config(target: Target) -> MachineConfig:
    """What the machine was made from."""
    return target.machine.config


VIEWS: dict[str, Callable[..., Any]] = {
    "config": config,
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
    "faulting": faulting,
    "disassembly": disassembly,
    "cpus": lists.cpus,
    "host": lists.host,
    "locks": lists.locks,
    "lru": lists.lru,
    "memslots": lists.memslots,
    "mtree": lists.mtree,
    "notifiers": lists.notifiers,
    "rmap": lists.rmap,
    "shadow": lists.shadow_pages,
    "sptes": lists.sptes,
    "swap": lists.swap,
    "tasks": lists.tasks,
    "vma": lists.vma,
    "info_registers": info_registers,
    "creg": creg,
    "tlb": info_tlb,
    "mem": info_mem,
    "tab": info_tab,
    "symbol_names": symbol_names,
    "counters": counters,
    "output": output,
    "panes": panes,
    "threads": threads,
    "image": image,
}
