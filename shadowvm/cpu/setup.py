"""Makes and patches one Unicorn: CPU model, RAM, TLB mode, native callbacks, features that are not deterministic."""

from __future__ import annotations

import ctypes
import struct

from ..addr import Hpa
from ..errors import ConfigError
from ..phys import Ram
from . import layout as lay
from . import mailbox as mb
from .arena import Arena
from .check import check_layout, class_slot
from .engine import EngineError
from .library import (
    CTL_CPU_MODEL,
    CTL_TCG_BUFFER_SIZE,
    CTL_TLB_TYPE,
    CTL_UC_USE_EXITS,
    CTL_WRITE,
    TLB_VIRTUAL,
    UC_ARCH_X86,
    UC_CPU_X86_ICELAKE_SERVER,
    UC_HOOK_BLOCK,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_MODE_64,
    UC_PROT_ALL,
    UC_X86_INS_IN,
    UC_X86_INS_OUT,
    UC_X86_INS_RDTSC,
    UC_X86_INS_RDTSCP,
    UC_X86_INS_SYSCALL,
    UC_X86_INS_SYSENTER,
    Library,
)

NATIVE_CALLS = {
    mb.FN_SET_PAGE: "tlb_set_page",
    mb.FN_FLUSH: "tlb_flush",
    mb.FN_RESTORE: "cpu_restore_state",
    mb.FN_LOOP_EXIT: "cpu_loop_exit",
    mb.FN_LOOP_EXIT_NOEXC: "cpu_loop_exit_noexc",
    mb.FN_DO_INTERRUPT: "x86_cpu_do_interrupt",
    mb.FN_HARD_IRQ: "do_interrupt_x86_hardirq",
    mb.FN_RAISE: "raise_exception_err_ra",
    mb.FN_READ_EFLAGS: "helper_read_eflags",
    mb.FN_WRITE_EFLAGS: "helper_write_eflags",
    mb.FN_UPDATE_HFLAGS: "x86_update_hflags",
    mb.FN_TB_LOOKUP: "tcg_tb_lookup",
    mb.FN_UPDATE_CR0: "cpu_x86_update_cr0",
    mb.FN_LTR: "helper_ltr",
    mb.FN_IRET: "helper_iret_protected",
    mb.FN_LJMP: "helper_ljmp_protected",
    mb.FN_LOAD32: "cpu_ldl_mmuidx_ra",
    mb.FN_STORE16: "cpu_stw_mmuidx_ra",
    mb.FN_STORE32: "cpu_stl_mmuidx_ra",
    mb.FN_SET_DR: "helper_set_dr",
    mb.FN_LOAD16: "cpu_lduw_mmuidx_ra",
}
OWN_CALLS = {
    mb.FN_BLOCK_SLOW: "block_slow",
    mb.FN_LEAVE: "leave_run",
    mb.FN_OTHER_ROOT: "find_root",
    mb.FN_REFUSE: "refuse_walk",
    mb.FN_NESTED_WALK: "walk_both",
    mb.FN_READ_CODE: "code_at",
    mb.FN_WRITABLE_CODE: "writable_code",
    mb.FN_WATCHED_ACCESS: "watched_access",
    mb.FN_MARKED: "watch_marked",
    mb.FN_FILLED: "watch_filled",
    mb.FN_UNMARK: "watch_unmark",
}
"""Native functions of ours that others call when things get slow."""
HOOKS = (
    (UC_HOOK_INTR, "exception", 0),
    (UC_HOOK_INSN_INVALID, "invalid", 0),
    (UC_HOOK_INSN, "syscall", UC_X86_INS_SYSCALL),
    (UC_HOOK_INSN, "sysenter", UC_X86_INS_SYSENTER),
    (UC_HOOK_INSN, "rdtsc", UC_X86_INS_RDTSC),
    (UC_HOOK_INSN, "rdtscp", UC_X86_INS_RDTSCP),
    (UC_HOOK_INSN, "port_in", UC_X86_INS_IN),
    (UC_HOOK_INSN, "port_out", UC_X86_INS_OUT),
)
TCG_BUFFER = 32 << 20
"""Bytes for translated code. What does not fit is translated again, so the size is a matter of speed only."""

HIDDEN_FEATURES = ((1, 0, 2, 30), (7, 0, 1, 18))
"""RDRAND, RDSEED: CPUID leaf, subleaf, register (eax 0, ebx 1, ecx 2, edx 3), bit. Their values are the host's."""
FEATURES_FROM, FEATURES_TO = 0x15C0, 0x1C00
"""Where in env FeatureWordArray is looked for."""


def _check(lib: Library, error: int) -> None:
    if error:
        raise EngineError(f"unicorn: {lib.uc_strerror(error).decode()}")


def control(lib: Library, uc: int, code: int, *arguments: int) -> None:
    """uc_ctl with 32-bit arguments, written."""
    word = code | len(arguments) << 26 | CTL_WRITE << 30
    typed = [ctypes.c_uint32(a) for a in arguments]
    _check(lib, lib.variadic("uc_ctl", ctypes.c_void_p(uc), ctypes.c_uint32(word), *typed))


def open_unicorn(lib: Library, ram: Ram) -> tuple[int, int]:
    """A new Unicorn over `ram` in virtual-TLB mode: (uc, CPUState)."""
    handle = ctypes.c_uint64()
    _check(lib, lib.uc_open(UC_ARCH_X86, UC_MODE_64, ctypes.byref(handle)))
    uc = handle.value
    control(lib, uc, CTL_CPU_MODEL, UC_CPU_X86_ICELAKE_SERVER)
    control(lib, uc, CTL_TCG_BUFFER_SIZE, TCG_BUFFER)
    # Without EXEC for the region Unicorn does not notice self-modifying code.
    _check(lib, lib.uc_mem_map_ptr(uc, 0, ram.size, UC_PROT_ALL, ram.base))
    control(lib, uc, CTL_TLB_TYPE, TLB_VIRTUAL)
    # No `until` address: it would be fetched at the end of every run.
    control(lib, uc, CTL_UC_USE_EXITS, 1)
    cpu = lib.qemu_get_cpu(uc, -1)
    if not cpu:
        raise ConfigError("this build of Unicorn 2.1.4 is not known: no CPU object")
    check_layout(lib, uc, cpu)
    return uc, cpu


def map_hidden(lib: Library, uc: int, ram: Ram, hidden: Arena) -> Hpa:
    """Give Unicorn memory above host RAM, which no table can name; its physical address."""
    _check(lib, lib.uc_mem_map_ptr(uc, ram.size, len(hidden.b), UC_PROT_ALL, hidden.address))
    return Hpa(ram.size)


def patch(lib: Library, uc: int, cpu: int, native: dict[str, int], box: int, counting: bool) -> None:
    """Put the native callbacks in place; `box` is the mailbox's address."""
    ctypes.c_uint64.from_address(cpu + lay.CPU_ENV + lay.ENV_MAILBOX).value = box
    fill, interrupt = (class_slot(lib, cpu, name) for name in ("unicorn_fill_tlb", "x86_cpu_exec_interrupt"))
    ctypes.c_uint64.from_address(fill).value = native["fill"]
    ctypes.c_uint64.from_address(interrupt).value = native["interrupt"]
    for kind, name, insn in HOOKS:
        _hook(lib, uc, kind, native[name], box, insn)
    if counting:
        _hook(lib, uc, UC_HOOK_BLOCK, native["block"], box, 0)


def _hook(lib: Library, uc: int, kind: int, function: int, box: int, insn: int) -> None:
    handle = ctypes.c_size_t()
    everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
    arguments = (
        ctypes.c_int32(kind),
        ctypes.c_void_p(function),
        ctypes.c_void_p(box),
        *everywhere,
        ctypes.c_int32(insn),
    )
    _check(lib, lib.variadic("uc_hook_add", ctypes.c_void_p(uc), ctypes.byref(handle), *arguments))


def cpuid(lib: Library, env: int, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """What CPUID answers."""
    out = (ctypes.c_uint32 * 4)()
    at = ctypes.addressof(out)
    lib.cpu_x86_cpuid(env, leaf, subleaf, at, at + 4, at + 8, at + 12)
    return out[0], out[1], out[2], out[3]


def hide_features(lib: Library, env: int) -> None:
    """Clear HIDDEN_FEATURES from the CPU's feature words, so that CPUID denies them and the instructions are #UD.

    Raises:
        ConfigError: no word of env answers for the feature.
    """
    for leaf, subleaf, register, bit in HIDDEN_FEATURES:
        word = cpuid(lib, env, leaf, subleaf)[register]
        if word >> bit & 1 and not _clear(lib, env, (leaf, subleaf), register, bit):
            raise ConfigError(f"this build of Unicorn 2.1.4 is not known: no feature word for CPUID leaf {leaf}")


def _clear(lib: Library, env: int, leaf: tuple[int, int], register: int, bit: int) -> bool:
    want = cpuid(lib, env, *leaf)[register]
    raw = ctypes.string_at(env + FEATURES_FROM, FEATURES_TO - FEATURES_FROM)
    words = struct.unpack(f"<{len(raw) // 4}I", raw)
    for i, word in enumerate(words):
        if word >> bit & 1 and (word ^ want) & ~0x0800_0001 == 0:
            field = ctypes.c_uint32.from_address(env + FEATURES_FROM + 4 * i)
            field.value = word & ~(1 << bit)
            if not cpuid(lib, env, *leaf)[register] >> bit & 1:
                return True
            field.value = word
    return False


def limit_features(env: int, low: tuple[int, ...], extended: tuple[int, int]) -> None:
    """Clear the bits of env's feature words that are not in `low` (1.edx, 1.ecx, 7.ebx, 7.ecx) and `extended`
    (0x80000001 edx, ecx), as QEMU orders them in FeatureWord."""
    for first, masks in ((lay.FEATURES_LOW, low), (lay.FEATURES_EXTENDED, extended)):
        for i, mask in enumerate(masks):
            field = ctypes.c_uint64.from_address(env + lay.ENV_FEATURES + 8 * (first + i))
            field.value &= mask
