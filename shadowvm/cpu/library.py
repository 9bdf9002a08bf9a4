"""libunicorn through ctypes: the public functions, and QEMU's own that this build of the library exports by accident.

The Python binding is not imported (it costs 30 ms); only its shared library is used.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfigError

VERSION = (2, 1, 4)
UC_ARCH_X86, UC_MODE_64 = 4, 8
UC_PROT_ALL = 7
UC_CPU_X86_ICELAKE_SERVER = 26
UC_HOOK_INTR, UC_HOOK_INSN, UC_HOOK_BLOCK, UC_HOOK_INSN_INVALID = 1, 2, 8, 1 << 14
UC_X86_INS_IN, UC_X86_INS_OUT = 218, 500
UC_X86_INS_RDTSC, UC_X86_INS_RDTSCP, UC_X86_INS_SYSCALL = 608, 609, 699
UC_X86_INS_SYSENTER = 700
CTL_WRITE = 1
CTL_UC_USE_EXITS, CTL_CPU_MODEL, CTL_TB_FLUSH, CTL_TLB_TYPE, CTL_TCG_BUFFER_SIZE = 4, 7, 10, 12, 13
TLB_VIRTUAL = 1

u64, u32, i32, ptr = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int32, ctypes.c_void_p

# name: (result, arguments). A name without uc_ is exported as name_x86_64.
PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "uc_version": (u32, [ptr, ptr]),
    "uc_open": (i32, [i32, i32, ptr]),
    "uc_close": (i32, [u64]),
    "uc_strerror": (ctypes.c_char_p, [i32]),
    "uc_mem_map_ptr": (i32, [u64, u64, u64, u32, u64]),
    "uc_mmio_map": (i32, [u64, u64, u64, u64, u64, u64, u64]),
    "uc_emu_start": (i32, [u64, u64, u64, u64, u64]),
    "uc_reg_read": (i32, [u64, i32, ptr]),
    "uc_reg_write": (i32, [u64, i32, ptr]),
    "qemu_get_cpu": (u64, [u64, i32]),
    "tlb_set_page": (None, [u64, u64, u64, i32, i32, u64]),
    "tlb_flush": (None, [u64]),
    "tlb_flush_page": (None, [u64, u64]),
    "tb_invalidate_phys_range": (None, [u64, u64, u64]),
    "tcg_tb_lookup": (u64, [u64, u64]),
    "cpu_restore_state": (ctypes.c_bool, [u64, u64, ctypes.c_bool]),
    "cpu_loop_exit": (None, [u64]),
    "cpu_loop_exit_noexc": (None, [u64]),
    "x86_cpu_do_interrupt": (None, [u64]),
    "do_interrupt_x86_hardirq": (None, [u64, i32, i32]),
    "x86_cpu_exec_interrupt": (ctypes.c_bool, [u64, i32]),
    "unicorn_fill_tlb": (ctypes.c_bool, [u64, u64, i32, i32, i32, ctypes.c_bool, u64]),
    "raise_exception_err_ra": (None, [u64, i32, i32, u64]),
    "helper_read_eflags": (u64, [u64]),
    "helper_write_eflags": (None, [u64, u64, u32]),
    "x86_update_hflags": (None, [u64]),
    "cpu_x86_update_cr0": (None, [u64, u32]),
    "cpu_x86_update_cr3": (None, [u64, u64]),
    "cpu_x86_update_cr4": (None, [u64, u32]),
    "helper_ltr": (None, [u64, i32]),
    "helper_iret_protected": (None, [u64, i32, i32]),
    "helper_ljmp_protected": (None, [u64, i32, u64, u64]),
    "helper_set_dr": (None, [u64, i32, u64]),
    "cpu_lduw_mmuidx_ra": (u32, [u64, u64, i32, u64]),
    "cpu_ldl_mmuidx_ra": (u32, [u64, u64, i32, u64]),
    "cpu_stw_mmuidx_ra": (None, [u64, u64, u32, i32, u64]),
    "cpu_stl_mmuidx_ra": (None, [u64, u64, u32, i32, u64]),
    "cpu_x86_update_dr7": (None, [u64, u32]),
    "helper_fninit": (None, [u64]),
    "helper_ldmxcsr": (None, [u64, u32]),
    "cpu_x86_cpuid": (None, [u64, u32, u32, ptr, ptr, ptr, ptr]),
}


class Library:
    """The functions of PROTOTYPES as attributes, and `address(name)` for native code."""

    def __init__(self, path: Path) -> None:
        self._dll = ctypes.CDLL(str(path))
        for name, (result, arguments) in PROTOTYPES.items():
            function = self._function(name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def _function(self, name: str) -> ctypes._NamedFuncPointer:
        symbol = name if name.startswith("uc_") else f"{name}_x86_64"
        try:
            return getattr(self._dll, symbol)  # type: ignore[no-any-return]
        except AttributeError:
            raise ConfigError(
                f"this build of Unicorn does not export {symbol}: install the Linux x86-64 wheel"
            ) from None

    def address(self, name: str) -> int:
        """Where the function is, for calls from native code."""
        return ctypes.cast(getattr(self, name), ctypes.c_void_p).value or 0

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)

    def variadic(self, name: str, *arguments: object) -> int:
        """Call one of the variadic functions (uc_ctl, uc_hook_add) with ready-made ctypes arguments."""
        return int(getattr(self._dll, name)(*arguments))


@cache
def library() -> Library:
    """Load libunicorn.

    Raises:
        ConfigError: not Linux on x86-64, or not the version that `layout` describes.
    """
    if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise ConfigError("running guests needs Linux on x86-64")
    spec = find_spec("unicorn")
    places = [Path(p) for p in spec.submodule_search_locations or []] if spec else []
    found = [path for place in places for path in place.glob("lib/libunicorn.so*")]
    if not found:
        raise ConfigError("unicorn==2.1.4 is not installed")
    lib = Library(found[0])
    version = lib.uc_version(None, None)
    if (version >> 24, version >> 16 & 255, version >> 8 & 255) != VERSION:
        raise ConfigError(f"unicorn==2.1.4 is needed, not {version >> 24}.{version >> 16 & 255}.{version >> 8 & 255}")
    return lib
