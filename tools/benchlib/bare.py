"""Bare Unicorn: the same guest image without anything that shadowvm adds, as fast as that gets.

Virtual-TLB mode; misses go to a native function that walks the guest's own tables, which map guest-physical memory
that is simply there. It stands in the place of Unicorn's own, which saves a third of the time of a UC_HOOK_TLB_FILL.
No exits, no counting, no A and D bits. Data is mapped RW and code RX, since a page that is both keeps all stores on
Unicorn's slow path.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

import ctypes
import time
from typing import Any

from numba import cfunc, types

from shadowvm.addr import Gva
from shadowvm.boot import pvh
from shadowvm.boot.image import BootOptions, LongModeStart
from shadowvm.boot.load import load_image
from shadowvm.cpu import layout as lay
from shadowvm.cpu.check import class_slot
from shadowvm.cpu.engine import FETCH
from shadowvm.cpu.library import UC_HOOK_INSN, UC_X86_INS_IN, UC_X86_INS_OUT, library
from shadowvm.cpu.native.memory import call6, inline, ld64, st32, st64
from shadowvm.cpu.registers import enter_long_mode
from shadowvm.cpu.setup import open_unicorn
from shadowvm.phys import Ram
from shadowvm.x86 import PT_ADDR_MASK, PT_PAGE_SIZE, PT_PRESENT

from .marks import MARK_PORT, Marks

UC_HOOK_TLB_FILL = 1 << 17
UC_MEM_FETCH = 18
UC_ERR_READ_UNMAPPED, UC_ERR_EXCEPTION = 6, 21
LSR_PORT, LSR_IDLE = 0x3FD, 0x60
DEBUG_EXIT_PORT = 0xF4
ABSENT = Gva(0x7000_0000_0000)
LOAD_FROM_RSI = b"\x8a\x06"
STACK, RSI, RBX, RDI = 4, 6, 3, 7


@inline
def walk(ram, table, va):
    """Host physical page of `va` by the tables of a CR3 value, or -1."""
    for level in range(4, 0, -1):
        shift = 3 + 9 * level
        entry = ld64(ram + (table & PT_ADDR_MASK) + (va >> shift & 511) * 8)
        if not entry & PT_PRESENT:
            return -1
        table = entry & PT_ADDR_MASK
        if level == 1 or entry & PT_PAGE_SIZE:
            inside = (1 << shift) - 4096
            return (table & ~inside) | (va & inside)
    return -1


@cfunc(types.boolean(types.int64, types.int64, types.int32, types.int32, types.int32, types.boolean, types.int64))
def tlb_fill(cpu, va, size, access, idx, probe, retaddr):
    """CPUClass.tlb_fill; the guest's tables lie in memory that `vm_vmcb` of this CPU leads to."""
    env = cpu + lay.CPU_ENV
    where = ld64(env + lay.ENV_VM_VMCB)
    page = walk(ld64(where), ld64(env + lay.ENV_CR + 24), va)
    if page < 0:
        return False
    call6(ld64(where + 8), cpu, va & -4096, page, 5 if access == FETCH else 3, idx, 4096)
    return True


@cfunc(types.boolean(types.int64, types.int64, types.int32, types.int64, types.int64))
def fill_hook(uc, va, kind, result, where):
    """UC_HOOK_TLB_FILL, for the exits."""
    page = walk(ld64(where), ld64(ld64(where + 16)), va)
    if page < 0:
        return False
    st64(result, page)
    st32(result + 8, 5 if kind == UC_MEM_FETCH else 3)
    return True


def _run_hook(result: Any, *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(result, ctypes.c_uint64, *arguments, ctypes.c_uint64)


class BareMachine:
    """A guest image in `memory` bytes on bare Unicorn. `marks` gets the guest's bytes to port 0x80."""

    def __init__(self, image: str, memory: int, append: str, marks: Marks) -> None:
        self.status: int | None = None
        self._marks = marks
        self._lib = library()
        self.ram = Ram(memory)
        self._uc, self._cpu = open_unicorn(self._lib, self.ram)
        self._env = self._cpu + lay.CPU_ENV
        self._where = (ctypes.c_uint64 * 3)(
            self.ram.base, self._lib.address("tlb_set_page"), self._env + lay.ENV_CR + 24
        )
        where = ctypes.addressof(self._where)
        ctypes.c_uint64.from_address(self._env + lay.ENV_VM_VMCB).value = where
        slot = class_slot(self._lib, self._cpu, "unicorn_fill_tlb")
        self._fill = ctypes.c_uint64.from_address(slot)
        self._fill.value = tlb_fill.address or 0
        u32, i32 = ctypes.c_uint32, ctypes.c_int32
        self._callbacks = (_run_hook(u32, u32, i32)(self._in), _run_hook(None, u32, i32, u32)(self._out))
        addresses = [ctypes.cast(each, ctypes.c_void_p).value or 0 for each in self._callbacks]
        self._hook(UC_HOOK_TLB_FILL, fill_hook.address or 0, where, 0)
        self._hook(UC_HOOK_INSN, addresses[0], 0, UC_X86_INS_IN)
        self._hook(UC_HOOK_INSN, addresses[1], 0, UC_X86_INS_OUT)
        self._load(image, memory, append)

    def _hook(self, kind: int, function: int, data: int, insn: int) -> None:
        handle = ctypes.c_size_t()
        words = (ctypes.c_void_p(self._uc), ctypes.byref(handle), ctypes.c_int32(kind), ctypes.c_void_p(function))
        everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0), ctypes.c_int32(insn))
        assert not self._lib.variadic("uc_hook_add", *words, ctypes.c_void_p(data), *everywhere)

    def _load(self, path: str, memory: int, append: str) -> None:
        image = load_image(path, BootOptions(memory, append.encode()))
        assert isinstance(image.start, LongModeStart)
        for gpa, data, _ in image.segments:
            self.ram.b[gpa : gpa + len(data)] = data
        gdt = (Gva(pvh.BOOT_GDT), 8 * len(pvh.GDT_ENTRIES) - 1)
        controls = (pvh.BOOT_CR0, pvh.BOOT_CR4, pvh.BOOT_EFER)
        enter_long_mode(self._lib, self._env, Gva(image.start.entry), pvh.BOOT_PML4, gdt, (Gva(0), 0), *controls)
        self._entry = image.start.entry
        self._set_reg(STACK, pvh.BOOT_STACK)
        for register in (RBX, RDI):
            self._set_reg(register, pvh.BOOT_START_INFO)

    def _set_reg(self, number: int, value: int) -> None:
        ctypes.c_uint64.from_address(self._env + lay.ENV_REGS + 8 * number).value = value

    def _in(self, uc: int, port: int, size: int, data: int) -> int:
        return LSR_IDLE if port == LSR_PORT else 0

    def _out(self, uc: int, port: int, size: int, value: int, data: int) -> None:
        if port == MARK_PORT:
            self._marks.port_write(port, size, value)
        elif port == DEBUG_EXIT_PORT:
            self.status = value

    def run(self) -> None:
        """Until the guest halts, which it does after it has written its status."""
        error = self._lib.uc_emu_start(self._uc, self._entry, 0, 0, 0)
        assert (error, self.status) == (0, 0), f"bare Unicorn: error {error}, status {self.status}"

    def time_exits(self, count: int) -> float:
        """Seconds for one exit: uc_emu_start of a load whose walk fails, and back in Python."""
        self._fill.value = self._lib.address("unicorn_fill_tlb")
        self.ram.b[pvh.BOOT_END : pvh.BOOT_END + 2] = LOAD_FROM_RSI
        self._set_reg(RSI, ABSENT)
        start, uc, entry = self._lib.uc_emu_start, self._uc, pvh.BOOT_END
        error = start(uc, entry, 0, 0, 0)
        assert error in (UC_ERR_READ_UNMAPPED, UC_ERR_EXCEPTION), f"bare Unicorn: error {error}"
        began = time.thread_time()
        for _ in range(count):
            start(uc, entry, 0, 0, 0)
        return (time.thread_time() - began) / count

    def close(self) -> None:
        """Free Unicorn's memory."""
        self._lib.uc_close(self._uc)
