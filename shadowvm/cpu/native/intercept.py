"""VM exits at an instruction: what QEMU's SVM intercepts find, and CR3 values that the CPU must refuse.

The intercept comes before the instruction has done anything; RIP is at it. CLTS and LMSW, which need no look by the
hypervisor, are done here.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from .. import svm
from ..engine import CpuExit
from .blocks import cut, last_start, leave, linear_rip
from .decode import LOW32, MAX_LENGTH, REX_B, REX_R, is_code64, memory_operand, prefixes
from .iret import interrupt_return
from .memory import bump, call2, call4, get, get_env, inline, ld32, ld64, put, st32, st64
from .translate import code_byte, is_canonical

CR_WRITE, MSR_READ, MSR_WRITE = int(CpuExit.CR_WRITE), int(CpuExit.MSR_READ), int(CpuExit.MSR_WRITE)
CPUID, INVLPG, SHUTDOWN = int(CpuExit.CPUID), int(CpuExit.INVLPG), int(CpuExit.SHUTDOWN)
CLTS, LMSW, MOV_TO_CR = 0x06, 0x01, 0x22
CR0_TS, LMSW_BITS = 8, 0xE
CR8 = 8
TF = 1 << 8
LA57 = 1 << 16
DR6_BS = 1 << 14


@inline
def retire(box, length):
    """The instruction at RIP has been done here: go past it."""
    env = get_env(box)
    rip = ld64(env + lay.ENV_EIP) + length
    st64(env + lay.ENV_EIP, rip if is_code64(env) else rip & LOW32)
    put(box, mb.BUDGET, get(box, mb.BUDGET) - 1)
    hflags = env + lay.ENV_HFLAGS
    st32(hflags, ld32(hflags) & ~lay.HF_INHIBIT_IRQ_MASK)
    if ld64(env + lay.ENV_EFLAGS) & TF:
        trap_step(box, env)


@inline
def trap_step(box, env):
    """TF was set when an instruction that is done here began: #DB. Does not return."""
    dr6 = env + lay.ENV_DR + 8 * 6
    st64(dr6, ld64(dr6) | DR6_BS)
    call4(get(box, mb.FN_RAISE), env, x86.DB_VECTOR, 0, 0)


@inline
def supervisor_idx(env):
    """mmu_idx of a data access at CPL 0."""
    hflags = ld32(env + lay.ENV_HFLAGS)
    if hflags & lay.HF_SMAP_MASK and not ld64(env + lay.ENV_EFLAGS) & x86.RFLAGS_AC:
        return lay.MMU_KSMAP_IDX
    return lay.MMU_KNOSMAP_IDX


@inline
def load_status_word(box, env, pc, at, rex, segment, has_67):
    """LMSW: the low four bits of CR0, of which PE can be set only."""
    modrm = code_byte(box, at)
    if modrm >> 6 == 3:
        value = ld64(env + lay.ENV_REGS + 8 * (modrm & 7 | (rex & REX_B) << 3))
        end = at + 1
    else:
        va, end = memory_operand(box, at, rex, segment, has_67)
        value = call4(get(box, mb.FN_LOAD16), env, va, supervisor_idx(env), 0)
    cr0 = ld64(env + lay.ENV_CR) & ~LMSW_BITS | value & (LMSW_BITS | x86.CR0_PE)
    call2(get(box, mb.FN_UPDATE_CR0), env, cr0)
    retire(box, end - pc)


@inline
def load_task_register(box, env, pc, at, rex, segment, has_67):
    """LTR: QEMU takes a null selector and aborts the process when it needs a stack from there."""
    modrm = code_byte(box, at)
    if modrm >> 6 == 3:
        selector = ld64(env + lay.ENV_REGS + 8 * (modrm & 7 | (rex & REX_B) << 3)) & 0xFFFF
        end = at + 1
    else:
        va, end = memory_operand(box, at, rex, segment, has_67)
        selector = call4(get(box, mb.FN_LOAD16), env, va, supervisor_idx(env), 0) & 0xFFFF
    if selector & 0xFFFC == 0:
        call4(get(box, mb.FN_RAISE), env, x86.GP_VECTOR, 0, 0)
    call2(get(box, mb.FN_LTR), env, selector)
    retire(box, end - pc)


@inline
def checked_msr(index):
    """Where in env an MSR is that takes canonical addresses only, or 0."""
    if index == 0x175:
        return lay.ENV_SYSENTER_ESP
    if index == 0x176:
        return lay.ENV_SYSENTER_EIP
    if index == 0xC000_0082:
        return lay.ENV_LSTAR
    if index == 0xC000_0083:
        return lay.ENV_CSTAR
    if index == 0xC000_0102:
        return lay.ENV_KERNEL_GS_BASE
    if index == 0xC000_0100:
        return lay.ENV_SEGS + lay.SEG_SIZE * lay.FS + lay.SEG_BASE
    if index == 0xC000_0101:
        return lay.ENV_SEGS + lay.SEG_SIZE * lay.GS + lay.SEG_BASE
    return 0


@inline
def write_checked_msr(box, env, length):
    """WRMSR: what needs a check only is done here, the rest is an exit. Canonical is what the widest paging mode of
    the CPU can translate, whether it is on or not."""
    regs = env + lay.ENV_REGS
    where = checked_msr(ld64(regs + 8 * lay.RCX) & LOW32)
    if where == 0 or get(box, mb.CHECK_MSRS) == 0:
        leave(box, MSR_WRITE)
    value = (ld64(regs + 8 * lay.RDX) << 32) | ld64(regs + 8 * lay.RAX) & LOW32
    leaf7 = ld64(env + lay.ENV_FEATURES + 8 * lay.FEATURE_7_ECX)
    if not is_canonical(value, 5 if leaf7 & LA57 else 4):
        call4(get(box, mb.FN_RAISE), env, x86.GP_VECTOR, 0, 0)
    st64(env + where, value)
    retire(box, length)


@inline
def on_cr_write(box, env, pc):
    """MOV to CR0, CR3, CR4 or CR8 is an exit."""
    at, rex, segment, has_67, has_lock = prefixes(box, pc)
    opcode = code_byte(box, at + 1)
    if opcode == CLTS:
        call2(get(box, mb.FN_UPDATE_CR0), env, ld64(env + lay.ENV_CR) & ~CR0_TS)
        retire(box, at + 2 - pc)
    elif opcode == LMSW:
        load_status_word(box, env, pc, at + 2, rex, segment, has_67)
    else:
        modrm = code_byte(box, at + 2)
        put(box, mb.EXIT_CR, CR8 if has_lock else modrm >> 3 & 7 | (rex & REX_R) << 1)
        put(box, mb.EXIT_GPR, modrm & 7 | (rex & REX_B) << 3)
        put(box, mb.EXIT_INSN_LEN, at + 3 - pc)
        leave(box, CR_WRITE)


@inline
def on_intercept(box, code):
    """UC_HOOK_INTR with 0x100 and an SVM exit code."""
    env = get_env(box)
    pc = linear_rip(env)
    cut(box, pc)
    bump(box, mb.INTERCEPTS)
    if code == svm.EXIT_SHUTDOWN:
        leave(box, SHUTDOWN)
    if svm.EXIT_WRITE_CR0 <= code <= svm.EXIT_WRITE_CR0 + CR8:
        on_cr_write(box, env, pc)
        return
    at, rex, segment, has_67, _has_lock = prefixes(box, pc)
    if code == svm.EXIT_TR_WRITE:
        load_task_register(box, env, pc, at + 2, rex, segment, has_67)
        return
    if code == svm.EXIT_IRET:
        stepped = ld64(env + lay.ENV_EFLAGS) & TF
        interrupt_return(box, env, pc, at, rex)
        if stepped:
            trap_step(box, env)
        return
    put(box, mb.EXIT_INSN_LEN, at + 2 - pc)
    if code == svm.EXIT_MSR:
        if ld32(env + lay.ENV_ERROR_CODE):
            write_checked_msr(box, env, at + 2 - pc)
            return
        leave(box, MSR_READ)
    if code == svm.EXIT_INVLPG:
        va, end = memory_operand(box, at + 2, rex, segment, has_67)
        put(box, mb.EXIT_VA, va)
        put(box, mb.EXIT_INSN_LEN, end - pc)
        leave(box, INVLPG)
    leave(box, CPUID)


@inline
def refuse_cr3(box, env):
    """CR3 has just been written with reserved bits, which Unicorn takes: make it an exit at that MOV.

    The MOV ends its block and empties the TLB, so the next access of any kind comes here with RIP after it.
    """
    value = ld64(env + lay.ENV_CR + 24)
    if value & get(box, mb.CR3_RESERVED) == 0 or get(box, mb.KEY_CR3) < 0:
        return
    pc = linear_rip(env) - 3
    modrm = code_byte(box, pc + 2)
    if code_byte(box, pc) != 0x0F or code_byte(box, pc + 1) != MOV_TO_CR or modrm >> 3 & 7 != 3:
        return
    gpr = modrm & 7
    rex = code_byte(box, pc - 1)
    length = 4 if is_code64(env) and rex & 0xF0 == 0x40 else 3
    tb = get(box, mb.LAST_TB)
    if tb != 0:
        # The byte before may be the end of another instruction; the block knows.
        start = last_start(tb)
        length = pc + 3 - start if 0 <= pc - start <= MAX_LENGTH - 3 else length
    if length > 3 and rex & REX_B and ld64(env + lay.ENV_REGS + 8 * (gpr | 8)) == value:
        gpr |= 8
    st64(env + lay.ENV_EIP, ld64(env + lay.ENV_EIP) - length)
    st64(env + lay.ENV_CR + 24, get(box, mb.KEY_CR3))
    put(box, mb.BUDGET, get(box, mb.BUDGET) + 1)
    put(box, mb.EXIT_CR, 3)
    put(box, mb.EXIT_GPR, gpr)
    put(box, mb.EXIT_INSN_LEN, length)
    leave(box, CR_WRITE)
