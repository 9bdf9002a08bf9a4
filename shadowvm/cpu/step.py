"""One instruction at a time: by the block hook where instructions are counted, by the trap flag where they are not.

The trap flag's step of MOV SS and POP SS takes the next instruction along, as on real hardware.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gva
from ..errors import ModelBug
from . import layout as lay
from . import mailbox as mb
from . import segments as seg
from .engine import CpuExit
from .registers import DR6, HFLAGS, MASK64, RFLAGS_TF, RIP
from .walker import Walked, walk

if TYPE_CHECKING:
    from .unicorn_engine import UnicornEngine

OPCODE_PUSHF = 0x9C
PUSHF_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3))
REX_PREFIXES = frozenset(range(0x40, 0x50))
FETCH_EXITS = (
    CpuExit.WALK_FAULT,
    CpuExit.CR_ACCESS,
    CpuExit.NON_CANONICAL,
    CpuExit.EPT_VIOLATION,
    CpuExit.EPT_MISCONFIG,
)


def unkick(box: memoryview[int]) -> None:
    """The run is over before the block hook has looked up: give the budget back, as native code's `unkick`."""
    if box[mb.KICK]:
        box[mb.BUDGET] = box[mb.BUDGET] + box[mb.STOLEN] & MASK64
        box[mb.STOLEN] = box[mb.KICK] = 0


def step(engine: UnicornEngine) -> int:
    """See UnicornEngine.step."""
    box = engine.box
    if box[mb.EVENT_KIND]:
        raise ModelBug(f"a step with event {box[mb.EVENT_VECTOR]} queued")
    held = box[mb.IRQ_PENDING], box[mb.NMI_PENDING]
    box[mb.IRQ_PENDING] = box[mb.NMI_PENDING] = 0
    try:
        return _counted(engine) if engine.counting else _trapped(engine)
    finally:
        box[mb.STEP] = 0
        if any(held):
            box[mb.IRQ_PENDING], box[mb.NMI_PENDING] = held
            engine._kick()


def _counted(engine: UnicornEngine) -> int:
    """With no budget every block comes to the hook's slow path, which ends the run at the second."""
    box = engine.box
    saved = box[mb.BUDGET]
    box[mb.GRANTED] = box[mb.GRANTED] - saved & MASK64
    box[mb.BUDGET] = 0
    box[mb.STEP], box[mb.ASKED] = mb.STEP_ONE, 1
    engine._cflags_next.value = 1
    try:
        code = engine.enter()
    finally:
        box[mb.GRANTED] = box[mb.GRANTED] + saved & MASK64
        box[mb.BUDGET] = box[mb.BUDGET] + saved & MASK64
    return _stepped(engine, code, box[mb.STEP] == mb.STEP_DONE)


def _trapped(engine: UnicornEngine) -> int:
    """Without the block hook: by the trap flag, which must not stay in what a PUSHF stores."""
    env, box = engine.env, engine.box
    dr6, flags, start = env[DR6], engine.rflags, env[RIP]
    pushf = not flags & RFLAGS_TF and _at_pushf(engine, start)
    engine.rflags = flags | RFLAGS_TF
    box[mb.STEP] = mb.STEP_TRAP
    code = engine.enter()
    env[DR6] = dr6
    if not flags & RFLAGS_TF:
        engine.rflags &= ~RFLAGS_TF
    if pushf and env[RIP] != start:
        engine.ram.b[_hpa(engine, _stack_top(engine) + 1)] &= ~(RFLAGS_TF >> 8)
    return _stepped(engine, code, bool(box[mb.STEP]) and env[RIP] != start)


def _at_pushf(engine: UnicornEngine, rip: int) -> bool:
    """Is the instruction at `rip` PUSHF? False if it cannot be fetched: then it does not run."""
    code64 = bool(engine.env[HFLAGS] & lay.HF_CS64_MASK)
    start = rip if code64 else rip + engine.segment(seg.CS).base
    for va in range(start, start + 15):
        hpa = _hpa(engine, va)
        byte = engine.ram.b[hpa] if hpa >= 0 else 0
        if byte not in PUSHF_PREFIXES and not (code64 and byte in REX_PREFIXES):
            return byte == OPCODE_PUSHF
    return False


def _stack_top(engine: UnicornEngine) -> int:
    """Linear address that the stack pointer names."""
    rsp = engine.env[lay.RSP]
    if engine.env[HFLAGS] & lay.HF_CS64_MASK:
        return rsp
    stack = engine.segment(seg.SS)
    return stack.base + (rsp & (0xFFFF_FFFF if stack.flags & seg.DB else 0xFFFF))


def _hpa(engine: UnicornEngine, va: int) -> int:
    """Where data accesses to `va` go, by the windows and the current root, whatever the rights; -1 if nowhere."""
    box = engine.box
    for word in (mb.WINDOW_VA, mb.WINDOW1_VA):
        if box[word] == va & ~(PAGE_SIZE - 1):
            return box[word + 1] << PAGE_SHIFT | va & PAGE_SIZE - 1
    if box[mb.NESTED]:
        looked = engine.nested.look(engine, engine.ram, Gva(va))
        return -1 if looked is None else looked
    found = walk(engine.ram, box[mb.ROOT], va, level=box[mb.ROOT_LEVEL], mark=False)
    return found.pfn << PAGE_SHIFT | va & PAGE_SIZE - 1 if isinstance(found, Walked) else -1


def _stepped(engine: UnicornEngine, code: int, retired: bool) -> int:
    """The instruction is done even if the next one cannot be fetched."""
    next_absent = code in FETCH_EXITS and engine.box[mb.EXIT_FETCH]
    return CpuExit.QUANTUM if retired and next_absent else code
