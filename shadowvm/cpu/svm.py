"""Numbers of AMD's SVM that the exit controls are built on (AMD APM vol. 2, appendix B and C).

QEMU's code for SVM intercepts works in Unicorn without VMRUN: with HF_GUEST in hflags, an intercept in env leaves the
run before the instruction.
"""

from __future__ import annotations

EXIT_BASE = 0x100
"""UC_HOOK_INTR gets this plus the exit code."""
EXIT_WRITE_CR0 = 0x10
EXIT_READ_DR0, EXIT_WRITE_DR0 = 0x20, 0x30
EXIT_INTR = 0x60
"""Bit 0 of the intercept word."""
EXIT_TR_WRITE, EXIT_CPUID, EXIT_IRET, EXIT_INVLPG, EXIT_MSR, EXIT_SHUTDOWN = 0x6D, 0x72, 0x74, 0x79, 0x7C, 0x7F
VMCB_MSRPM_BASE = 0x48
MSRPM_SIZE = 8192
MSRPM_RANGES = ((0, 0), (0xC000_0000, 0x800), (0xC001_0000, 0x1000))
"""(first MSR, byte of the permission map) of the three ranges of 8192 MSRs; two bits each, read and write."""
MSRPM_RANGE = 0x2000


def msrpm_bit(index: int) -> int | None:
    """Number of the read bit of an MSR in the permission map; the write bit follows. None: always intercepted."""
    for first, byte in MSRPM_RANGES:
        if first <= index < first + MSRPM_RANGE:
            return 8 * byte + 2 * (index - first)
    return None
