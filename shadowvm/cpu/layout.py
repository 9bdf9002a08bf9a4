"""Where Unicorn 2.1.4 keeps things: offsets into its objects, for x86-64 Linux wheels.

Nothing here is public API. check.py compares the offsets with what the public API says and refuses an unknown build.
Names are QEMU's (target/i386/cpu.h, include/hw/core/cpu.h, include/exec/exec-all.h).
"""

from __future__ import annotations

# CPUX86State, from env.
ENV_REGS = 0x0
ENV_EIP = 0x80
ENV_EFLAGS = 0x88
ENV_HFLAGS = 0xB0
ENV_HFLAGS2 = 0xB4
ENV_SEGS = 0xB8
SEG_SIZE = 24
SEG_BASE, SEG_LIMIT, SEG_FLAGS = 8, 16, 20
ENV_LDT = 0x148
ENV_TR = 0x160
ENV_GDT = 0x178
ENV_IDT = 0x190
ENV_CR = 0x1A8
ENV_EFER = 0x250
ENV_FPREGS = 0x270
ENV_XMM_REGS = 0x338
XMM_SIZE = 64
ENV_SYSENTER_CS, ENV_SYSENTER_ESP, ENV_SYSENTER_EIP = 0x12C0, 0x12C8, 0x12D0
ENV_STAR = 0x12D8
ENV_LSTAR = 0x12E8
ENV_CSTAR = 0x12F0
ENV_FMASK = 0x12F8
ENV_KERNEL_GS_BASE = 0x1300
ENV_TSC_AUX = 0x1320
ENV_XCR0 = 0x1328
ENV_MISC_ENABLE = 0x1338
ENV_PAT = 0x14A0
ENV_PKRU = 0x14B8
ENV_ERROR_CODE = 0x1508
ENV_EXCEPTION_IS_INT = 0x150C
ENV_EXCEPTION_NEXT_EIP = 0x1510
ENV_DR = 0x1518
ENV_BREAKPOINTS = 0x1558
ENV_OLD_EXCEPTION = 0x1578
ENV_VM_VMCB = 0x1580
ENV_MAILBOX = 0x1588
"""tsc_offset in QEMU. RDTSC is ours, so the word is free: it holds the mailbox's address."""
ENV_INTERCEPT = 0x1590
ENV_INTERCEPT_CR_WRITE = 0x159A
ENV_INTERCEPT_DR_READ, ENV_INTERCEPT_DR_WRITE = 0x159C, 0x159E
ENV_V_TPR = 0x15B4
ENV_SAVED = 0x15C0
"""Bytes of env that are registers: what uc_context_save copies."""

ENV_MTRR, MTRR_SIZE = 0x18B0, 0xE0
"""mtrr_fixed[11], mtrr_deftype, mtrr_var[8]: registers that lie outside of ENV_SAVED."""

ENV_FEATURES = 0x1600
FEATURES_LOW, FEATURES_EXTENDED = 0, 6
FEATURE_7_ECX = 3
"""Feature words of leaves 1 and 7, and of 0x80000001."""

ES, CS, SS, DS, FS, GS = range(6)
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)

# CPUNegativeOffsetState, which lies before env: CPUTLB, then icount_decr.
TLB_FAST = -0x40
"""CPUTLBDescFast[3]: mask, table."""
TLB_DESC = -0x870
TLB_DESC_SIZE = 0x2B8
TLB_WINDOW_BEGIN = 0x10
TLB_USED_ENTRIES = 0x20
TLB_VICTIMS, TLB_NR_VICTIMS = 0x30, 8
TLB_VICTIM_IOTLB, TLB_IOTLB = 0x230, 0x2B0
ICOUNT_HIGH = -0x0E
TLB_ENTRY_SIZE = 64
TLB_ENTRY_CODE, TLB_ENTRY_PADDR = 16, 24
TLB_INVALID_MASK, TLB_NOTDIRTY = 0x800, 0x400
WINDOW_NEVER_ENDS, WINDOW_HAS_ENDED = 1 << 62, 0

# CPUState.
CPU_EXIT_REQUEST = 0x15
CPU_CFLAGS_NEXT_TB = 0x18
CPU_INTERRUPT_REQUEST = 0x1C
CPU_ENV_PTR = 0x128
CPU_ICOUNT_DECR_PTR = 0x130
CPU_TB_JMP_CACHE = 0x138
CPU_EXCEPTION_INDEX = 0x81A0
CPU_UC = 0x81A8
CPU_CLASS = 0x81B0
CPU_ENV = 0x8A50
UC_TCG_CTX = 0x300
INTERRUPT_HARD = 2
EXCP_HLT = 0x10001

# TranslationBlock.
TB_PC = 0
TB_SIZE_ICOUNT = 16
"""flags:32, size:16, icount:16."""
TB_CFLAGS = 24
TB_TC_PTR = 32
TB_TC_SIZE = 40
CF_COUNT_MASK = 0x7FFF
CF_INVALID = 0x40000

# HF_* of hflags and the like.
HF_CPL_MASK = 3
HF_INHIBIT_IRQ_MASK = 1 << 3
HF_CS32_MASK = 1 << 4
HF_PE_MASK = 1 << 7
HF_LMA_MASK = 1 << 14
HF_CS64_MASK = 1 << 15
HF_OF_EFLAGS = 1 << 8 | 3 << 12 | 1 << 17
"""TF, IOPL, VM: x86_update_hflags copies them into hflags, where they would outlive a change of RFLAGS."""
HF_GUEST_MASK = 1 << 21
HF_SMAP_MASK = 1 << 23
HF2_NMI_MASK = 1 << 2
"""An NMI is being handled: until IRET."""
HF2_VINTR_MASK = 1 << 3
"""CR8 is v_tpr."""
DESC_P_MASK = 1 << 15

MMU_KSMAP_IDX, MMU_USER_IDX, MMU_KNOSMAP_IDX = range(3)
