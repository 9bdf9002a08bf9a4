"""Exceptions and interrupts: delivery through the guest's IDT inside the run, and the INT hooks.

QEMU's own x86_cpu_do_interrupt does the work. Around it: which event is being delivered (so that a page fault on the
IDT, the TSS or the stack becomes an exit and the event can be queued again), and the flaws of QEMU 5 put right.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from .. import svm
from ..engine import CpuExit, EventKind
from .blocks import cut, leave, linear_rip, settle_self_modified
from .debug import clear_general_detect, detect_access, has_code_breakpoint, on_write_dr, resume, take_hits
from .decode import is_code64, prefixes
from .intercept import on_intercept, refuse_cr3
from .iret import watch_iret
from .memory import bump, call1, call3, get, get_env, inline, ld32, ld64, put, st32, st64
from .task_switch import finish_switch, forget_switch
from .translate import code_byte

STOPPED, QUANTUM = int(CpuExit.STOPPED), int(CpuExit.QUANTUM)
EXCEPTION, SOFTWARE, INTERRUPT, NMI = (int(kind) for kind in EventKind)
SEGMENT_FLAGS_TSS = 0x8900
UNSET = 0xFFFF_FFFF
ERROR_EXT = 1
OPCODE_INT3, OPCODE_INT, OPCODE_INTO, OPCODE_INT1 = 0xCC, 0xCD, 0xCE, 0xF1
RF = 1 << 16
ACCESS_BYTE, ABSENT_BITS, ABSENT_WRITABLE = 5, 0x9A, 0x12
"""Where a descriptor says P, S, code and writable."""


@inline
def remember(box, kind, vector, error, next_rip):
    """What `vectoring` will report if the delivery does not get through."""
    put(box, mb.DELIVERING, kind)
    put(box, mb.VEC_VECTOR, vector)
    put(box, mb.VEC_ERROR, error)
    put(box, mb.VEC_NEXT_RIP, next_rip)


@inline
def prepare_tss(env):
    """QEMU aborts the process when it needs a stack from a null TR; a present TSS of length 0 gives #TS."""
    flags = ld32(env + lay.ENV_TR + lay.SEG_FLAGS)
    if not flags & lay.DESC_P_MASK:
        st64(env + lay.ENV_TR + lay.SEG_BASE, 0)
        st32(env + lay.ENV_TR + lay.SEG_LIMIT, 0)
        st32(env + lay.ENV_TR + lay.SEG_FLAGS, SEGMENT_FLAGS_TSS)


@inline
def set_resume_flag(env, vector):
    """A fault pushes RF set, for its instruction to be done again past a breakpoint on it (SDM vol. 3, 17.3.1.1)."""
    if vector not in (x86.DB_VECTOR, x86.BP_VECTOR, x86.OF_VECTOR):
        st64(env + lay.ENV_EFLAGS, ld64(env + lay.ENV_EFLAGS) | RF)


@inline
def charge(box):
    """A delivery takes one from the budget, or exceptions whose handlers fault at once would go on for ever."""
    put(box, mb.GRANTED, get(box, mb.GRANTED) - 1)
    word = mb.STOLEN if get(box, mb.KICK) != 0 else mb.BUDGET
    put(box, word, get(box, word) - 1)


@inline
def end_quantum(box):
    """Deliver nothing with an empty budget: what is queued stays queued."""
    if get(box, mb.COUNTING) != 0 and get(box, mb.STEP) == 0 and get(box, mb.BUDGET) + get(box, mb.STOLEN) <= 0:
        leave(box, QUANTUM)


@inline
def deliver(box, vector):
    """Let QEMU deliver cpu->exception_index; comes back only if it got through."""
    charge(box)
    env = get_env(box)
    put(box, mb.TASK_FROM, ld32(env + lay.ENV_TR))
    prepare_tss(env)
    if vector == x86.DB_VECTOR:
        clear_general_detect(env)
    hflags = env + lay.ENV_HFLAGS
    # With HF_GUEST QEMU would note the event in the VMCB, which costs more than the delivery.
    st32(hflags, ld32(hflags) & ~(lay.HF_GUEST_MASK | lay.HF_INHIBIT_IRQ_MASK))
    call1(get(box, mb.FN_DO_INTERRUPT), get(box, mb.CPU))
    # Unicorn moves EIP to the end of the last INT for whatever ends a block while this is set.
    st32(env + lay.ENV_EXCEPTION_IS_INT, 0)
    st32(hflags, ld32(hflags) | lay.HF_GUEST_MASK)
    watch_iret(env)
    put(box, mb.DELIVERING, 0)
    bump(box, mb.VECTOR_COUNTS + vector)


@inline
def int_length(box, next_rip, vector):
    """Length of the INT before `next_rip`: INT3 or INT n. Redundant prefixes are not seen."""
    one = code_byte(box, next_rip - 1)
    two = code_byte(box, next_rip - 2)
    if vector == x86.OF_VECTOR and one == OPCODE_INTO:
        return 1
    return 1 if vector == x86.BP_VECTOR and one == OPCODE_INT3 and two != OPCODE_INT else 2


@inline
def stop_at_handler(box):
    """The event of UnicornEngine.deliver has got through."""
    if get(box, mb.STEP) == mb.STEP_DELIVERY:
        put(box, mb.STEP, 0)
        leave(box, QUANTUM)


@inline
def is_absent_stack(box, env, error):
    """#TS for a stack segment to which nothing is wrong but that it is absent: that is #SS (SDM vol. 3, 6.12.1)."""
    table = env + (lay.ENV_LDT if error & 4 else lay.ENV_GDT)
    at = ld64(table + lay.SEG_BASE) + (error & 0xFFF8)
    if error & 0xFFFC == 0 or error & 0xFFF8 | 7 > ld32(table + lay.SEG_LIMIT) or is_code64(env):
        return False
    return code_byte(box, at + ACCESS_BYTE) & ABSENT_BITS == ABSENT_WRITABLE


@inline
def on_exception(box, vector):
    """UC_HOOK_INTR: an exception of the current instruction, or INT n."""
    env = get_env(box)
    hflags = env + lay.ENV_HFLAGS
    st32(hflags, ld32(hflags) | lay.HF_GUEST_MASK)
    if svm.EXIT_READ_DR0 <= vector - svm.EXIT_BASE <= svm.EXIT_WRITE_DR0 + 7:
        cut(box, linear_rip(env))
        detect_access(box, env)
        on_write_dr(box, env, linear_rip(env))
        return
    if vector >= svm.EXIT_BASE:
        on_intercept(box, vector - svm.EXIT_BASE)
        return
    if ld32(env + lay.ENV_EXCEPTION_IS_INT):
        next_rip = ld64(env + lay.ENV_EXCEPTION_NEXT_EIP)
        base = linear_rip(env) - ld64(env + lay.ENV_EIP)
        st64(env + lay.ENV_EIP, next_rip - int_length(box, base + next_rip, vector))
        put(box, mb.LAST_TB, 0)
        put(box, mb.BUDGET, get(box, mb.BUDGET) + 1)
        remember(box, SOFTWARE, vector, 0, next_rip)
        deliver(box, vector)
        put(box, mb.BUDGET, get(box, mb.BUDGET) - 1)
        return
    if vector == x86.DB_VECTOR:
        refuse_cr3(box, env)
        take_hits(box, env)
        if get(box, mb.STEP) == mb.STEP_TRAP:
            put(box, mb.STEP, 0)
            leave(box, QUANTUM)
    else:
        put(box, mb.WATCHPOINT_HITS, 0)
    put(box, mb.WATCH_HITS, 0)
    put(box, mb.WATCH_ALONE, -1)
    forget_switch(box)
    cut(box, linear_rip(env))
    error = ld32(env + lay.ENV_ERROR_CODE)
    if vector in (x86.GP_VECTOR, x86.NP_VECTOR) and error & 2 and ld32(env + lay.ENV_HFLAGS) & lay.HF_LMA_MASK:
        # QEMU 5 computes IDT error codes of long mode as vector * 16 + 2.
        error = (error >> 4 << 3) | (error & 3)
        st32(env + lay.ENV_ERROR_CODE, error)
    if get(box, mb.DELIVERING) not in (0, SOFTWARE) and x86.TS_VECTOR <= vector <= x86.GP_VECTOR:
        error |= ERROR_EXT
        st32(env + lay.ENV_ERROR_CODE, error)
    if vector == x86.TS_VECTOR and is_absent_stack(box, env, error):
        vector = x86.SS_VECTOR
        st32(get(box, mb.CPU) + lay.CPU_EXCEPTION_INDEX, vector)
    remember(box, EXCEPTION, vector, error, 0)
    set_resume_flag(env, vector)
    deliver(box, vector)
    stop_at_handler(box)


@inline
def on_invalid(box):
    """UC_HOOK_INSN_INVALID: #UD, or INT1, which Unicorn does not know: a trap-like #DB that leaves DR6 alone."""
    env = get_env(box)
    pc = linear_rip(env)
    at, _rex, _segment, _has_67, _has_lock = prefixes(box, pc)
    if code_byte(box, at) != OPCODE_INT1:
        on_exception(box, x86.UD_VECTOR)
        return
    cut(box, pc)
    st64(env + lay.ENV_EIP, ld64(env + lay.ENV_EIP) + at + 1 - pc)
    put(box, mb.BUDGET, get(box, mb.BUDGET) - 1)
    st32(env + lay.ENV_EXCEPTION_IS_INT, 0)
    st32(get(box, mb.CPU) + lay.CPU_EXCEPTION_INDEX, x86.DB_VECTOR)
    remember(box, EXCEPTION, x86.DB_VECTOR, 0, 0)
    deliver(box, x86.DB_VECTOR)
    stop_at_handler(box)


@inline
def deliver_queued(box, cpu, env):
    """The event that the hypervisor queued."""
    kind, vector = get(box, mb.EVENT_KIND), get(box, mb.EVENT_VECTOR)
    error, next_rip = get(box, mb.EVENT_ERROR), get(box, mb.EVENT_NEXT_RIP)
    put(box, mb.EVENT_KIND, 0)
    remember(box, kind, vector, error, next_rip)
    if kind in (INTERRUPT, NMI):
        deliver_hard(box, env, kind, vector)
        return
    st32(cpu + lay.CPU_EXCEPTION_INDEX, vector)
    st32(env + lay.ENV_ERROR_CODE, error)
    st32(env + lay.ENV_EXCEPTION_IS_INT, 1 if kind == SOFTWARE else 0)
    st64(env + lay.ENV_EXCEPTION_NEXT_EIP, next_rip)
    contributory = vector in (x86.DE_VECTOR, x86.DF_VECTOR, x86.PF_VECTOR) or 10 <= vector <= 13
    st32(env + lay.ENV_OLD_EXCEPTION, vector if contributory and kind == EXCEPTION else UNSET)
    if kind == EXCEPTION:
        set_resume_flag(env, vector)
    deliver(box, vector)
    if kind == SOFTWARE:
        put(box, mb.BUDGET, get(box, mb.BUDGET) - 1)


@inline
def deliver_hard(box, env, kind, vector):
    """An interrupt or NMI: no error code whatever the vector. NMIs are then blocked until an IRET."""
    charge(box)
    put(box, mb.TASK_FROM, ld32(env + lay.ENV_TR))
    prepare_tss(env)
    st32(env + lay.ENV_OLD_EXCEPTION, UNSET)
    hflags = env + lay.ENV_HFLAGS
    st32(hflags, ld32(hflags) & ~(lay.HF_GUEST_MASK | lay.HF_INHIBIT_IRQ_MASK))
    call3(get(box, mb.FN_HARD_IRQ), env, vector, 1)
    st32(hflags, ld32(hflags) | lay.HF_GUEST_MASK)
    watch_iret(env)
    if kind == NMI:
        hflags2 = env + lay.ENV_HFLAGS2
        st32(hflags2, ld32(hflags2) | lay.HF2_NMI_MASK)
    put(box, mb.DELIVERING, 0)
    bump(box, mb.VECTOR_COUNTS + vector)


@inline
def hard_event(box, cpu, env):
    """NMI or INTERRUPT if one waits and may be delivered now, else 0."""
    if get(box, mb.IRQ_PENDING) == 0 and get(box, mb.NMI_PENDING) == 0:
        if not has_code_breakpoint(env):
            st32(cpu + lay.CPU_INTERRUPT_REQUEST, 0)
        return 0
    if ld32(env + lay.ENV_HFLAGS) & lay.HF_INHIBIT_IRQ_MASK or get(box, mb.STEP) != 0:
        return 0
    if get(box, mb.NMI_PENDING) != 0 and not ld32(env + lay.ENV_HFLAGS2) & lay.HF2_NMI_MASK:
        return NMI
    return INTERRUPT if get(box, mb.IRQ_PENDING) != 0 and ld64(env + lay.ENV_EFLAGS) & x86.RFLAGS_IF else 0


@inline
def on_interrupt(cpu):
    """CPUClass.cpu_exec_interrupt, called between blocks while interrupt_request is set."""
    env = cpu + lay.CPU_ENV
    box = ld64(env + lay.ENV_MAILBOX)
    settle_self_modified(box, cpu)
    if get(box, mb.STOP) != 0:
        put(box, mb.STOP, 0)
        leave(box, STOPPED)
    if get(box, mb.WATCH_HITS) != 0 and take_hits(box, env):
        put(box, mb.LAST_TB, 0)
        st32(cpu + lay.CPU_EXCEPTION_INDEX, x86.DB_VECTOR)
        st32(env + lay.ENV_EXCEPTION_IS_INT, 0)
        remember(box, EXCEPTION, x86.DB_VECTOR, 0, 0)
        deliver(box, x86.DB_VECTOR)
        return True
    if get(box, mb.TASK_PENDING) != 0 and get(box, mb.EVENT_KIND) == 0:
        finish_switch(box, env)
        return True
    if get(box, mb.EVENT_KIND) != 0:
        forget_switch(box)
        end_quantum(box)
        put(box, mb.LAST_TB, 0)
        deliver_queued(box, cpu, env)
        stop_at_handler(box)
        return True
    kind = hard_event(box, cpu, env)
    if kind == 0:
        resume(box, cpu, env)
        return False
    vector = x86.NMI_VECTOR if kind == NMI else get(box, mb.IRQ_VECTOR)
    refuse_cr3(box, env)
    end_quantum(box)
    put(box, mb.NMI_PENDING if kind == NMI else mb.IRQ_PENDING, 0)
    put(box, mb.LAST_TB, 0)
    remember(box, kind, vector, 0, 0)
    deliver_hard(box, env, kind, vector)
    return True
