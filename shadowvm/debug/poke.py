"""What a debugger writes: registers of a vCPU and guest memory. The only part of it that changes a machine.

A write is an input of the run, made by a vCPU's own thread between two instructions. A run that is repeated gets the
same inputs at the same places (Input), so that going back works over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, Gva
from ..cpu.registers import GENERAL
from ..cpu.segments import FS, GS, SEGMENTS, Segment
from ..errors import ConfigError, KvmError
from ..kvm.guest_memory import kvm_write_guest
from ..kvm.intercept import kvm_set_cr
from ..kvm.memslot import KVM_MEM_READONLY
from ..kvm.msr import IA32_EFER, kvm_set_msr
from ..kvm.vm import KVM_REQ_MMU_RELOAD, KVM_REQ_TLB_FLUSH
from ..x86 import CR0_PE
from .peek import guest_walk, vcpu_of
from .views import registers

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from .target import Target

WRITABLE_FLAGS = 0x24_7FD5
"""CF to NT, AC, ID: not VM, RF and the like."""
CONTROL = {"cr0": 0, "cr3": 3, "cr4": 4, "cr8": 8}
MAX_BYTES = 1 << 16


class Unmapped(ConfigError):
    """No memory is there, or none that can be written."""


class Input(NamedTuple):
    """One write: before which instruction of which vCPU it was made, pc being linear, and what."""

    instructions: int
    events: int
    vcpu: int
    pc: int
    method: str
    arguments: tuple[Any, ...]

    def is_due(self, instructions: int, events: int, vcpu: Vcpu) -> bool:
        """Is the run there?"""
        there = instructions == self.instructions and events >= self.events
        return there and vcpu.id == self.vcpu and vcpu.engine.linear_rip == self.pc


def write_register(target: Target, number: int | None, name: str, value: int) -> None:
    """Set a register of a vCPU. ConfigError: it has none such, or not one that can be written from outside."""
    vcpu = vcpu_of(target, number)
    engine = vcpu.engine
    if name in GENERAL:
        engine.set_reg(GENERAL[name], value)
    elif name == "rip":
        engine.rip = value
    elif name == "rflags":
        engine.rflags = engine.rflags & ~WRITABLE_FLAGS | value & WRITABLE_FLAGS
    elif name in ("fs_base", "gs_base"):
        index = FS if name == "fs_base" else GS
        old = engine.segment(index)
        engine.set_segment(index, Segment(old.selector, value, old.limit, old.flags))
    elif name == "cr2":
        engine.cr2 = value
    elif registers(target, number).get(name) != value:
        _write_system(target, vcpu, name, value)


def _write_system(target: Target, vcpu: Vcpu, name: str, value: int) -> None:
    """What decides about addresses: of the vCPU that stands here alone, since another may be amid a fault."""
    if vcpu is not target.machine.kvm.loaded:
        raise ConfigError(f"{name} of vCPU {vcpu.id} can be written where that one is next to run: step it first")
    if name in SEGMENTS:
        _write_selector(vcpu, name, value)
        return
    if name == "efer":
        done = kvm_set_msr(vcpu, IA32_EFER, value)
    elif name in CONTROL:
        done = kvm_set_cr(vcpu, CONTROL[name], value)
    else:
        raise ConfigError(f"{name} is not written from outside")
    if not done:
        raise ConfigError(f"{name} does not take {value:#x}: to the guest it would be #GP")
    if name != "cr8":  # __set_sregs(): the MMU is set up anew before the entry
        vcpu.requests |= KVM_REQ_MMU_RELOAD | KVM_REQ_TLB_FLUSH


def _write_selector(vcpu: Vcpu, name: str, value: int) -> None:
    """In real mode, where it is the base; else it takes a descriptor, which only the guest loads."""
    engine = vcpu.engine
    if engine.cr0 & CR0_PE:
        raise ConfigError(f"{name} is not written from outside in protected mode, only by the guest")
    if value >> 16:
        raise ConfigError(f"{name} has 16 bits")
    old = engine.segment(SEGMENTS[name])
    engine.set_segment(SEGMENTS[name], Segment(value, value << 4, old.limit, old.flags))


def write_virtual(target: Target, number: int | None, gva: int, data: str) -> None:
    """Store bytes, in hex, in the address space of a vCPU; all of them or none.

    Raises:
        Unmapped: part of it is not mapped, or to no memory that can be written.
    """
    vcpu = vcpu_of(target, number)
    parts, rest = [], bytes.fromhex(data)
    while rest:
        gpa = guest_walk(vcpu, Gva(gva)).gpa
        count = min(len(rest), PAGE_SIZE - gva % PAGE_SIZE)
        slot = None if gpa is None else vcpu.kvm.memslots.find(Gfn(gpa >> PAGE_SHIFT))
        if gpa is None or slot is None or slot.flags & KVM_MEM_READONLY:
            raise Unmapped(f"{gva:#x}: no memory is there that can be written")
        parts.append((gpa, rest[:count]))
        gva, rest = gva + count, rest[count:]
    for at, part in parts:
        kvm_write_guest(vcpu.kvm, Gpa(at), part)


METHODS: dict[str, Callable[..., None]] = {"register": write_register, "memory": write_virtual}
_NUMBER = (int, type(None))
_FORMS: dict[str, tuple[Any, ...]] = {"register": (_NUMBER, str, int), "memory": (_NUMBER, int, str)}


def perform(target: Target, method: str, arguments: tuple[Any, ...]) -> ConfigError | None:
    """Do it, in the thread of a vCPU; why it cannot be done. Memory that runs out amid it is no error."""
    try:
        METHODS[method](target, *arguments)
    except ConfigError as error:
        return error
    except KvmError:
        pass
    return None


def parse_inputs(values: Sequence[Any]) -> list[Input] | None:
    """Inputs as they are in a file; None if that is what they are not."""
    inputs = []
    for each in values:
        if not isinstance(each, list) or len(each) != len(Input._fields) or not isinstance(each[5], list):
            return None
        *numbers, method, arguments = each
        forms = _FORMS.get(method) if isinstance(method, str) else None
        if forms is None or len(forms) != len(arguments) or not all(type(number) is int for number in numbers):
            return None
        if not all(isinstance(value, form) for value, form in zip(arguments, forms, strict=True)):
            return None
        instructions, events, vcpu, pc = numbers
        inputs.append(Input(instructions, events, vcpu, pc, method, tuple(arguments)))
    return inputs
