"""Saving and restoring a CPU: Unicorn's register file and the architectural words of the mailbox."""

from __future__ import annotations

import ctypes
import struct

from ..errors import ConfigError
from ..events import trace_clock
from . import layout as lay
from . import mailbox as mb

MAGIC = b"shadowvm cpu 1\n\0"
WORDS = (
    mb.BUDGET,
    mb.GRANTED,
    mb.TSC_OFFSET,
    mb.TIME_BASE,
    mb.TSC_READS,
    mb.EVENT_KIND,
    mb.EVENT_VECTOR,
    mb.EVENT_ERROR,
    mb.EVENT_NEXT_RIP,
    mb.IRQ_PENDING,
    mb.IRQ_VECTOR,
    mb.NMI_PENDING,
    mb.WATCH_HITS,
    mb.CR3_RESERVED,
    mb.PDPTRS_CR3,
    *range(mb.PDPTRS, mb.PDPTRS + 4),
    mb.VECTORING,
    mb.VEC_VECTOR,
    mb.VEC_ERROR,
    mb.VEC_NEXT_RIP,
    mb.TASK_PENDING,
    mb.TASK_NESTED,
    mb.TASK_ERROR,
    *range(mb.VECTOR_COUNTS, mb.VECTOR_COUNTS + 256),
)
LAYOUT = struct.Struct(f"<{len(MAGIC)}s{len(WORDS)}Q{lay.ENV_SAVED}s{lay.MTRR_SIZE}s")


def save(env: int, box: memoryview[int]) -> bytes:
    """The CPU whose registers are at address `env`, as bytes. Same state, same bytes: no address is in them."""
    registers = bytearray(ctypes.string_at(env, lay.ENV_SAVED))
    registers[lay.ENV_VM_VMCB : lay.ENV_MAILBOX + 8] = bytes(16)
    registers[lay.ENV_BREAKPOINTS : lay.ENV_BREAKPOINTS + 32] = bytes(32)
    mtrrs = ctypes.string_at(env + lay.ENV_MTRR, lay.MTRR_SIZE)
    return LAYOUT.pack(MAGIC, *(box[word] for word in WORDS), bytes(registers), mtrrs)


def restore(env: int, box: memoryview[int], state: bytes) -> None:
    """Put a saved CPU back over one without breakpoints; the caller repairs what points into this process.

    Raises:
        ConfigError: not a saved CPU of this version.
    """
    if len(state) != LAYOUT.size or not state.startswith(MAGIC):
        raise ConfigError("the saved CPU is damaged or of another version")
    _, *values, registers, mtrrs = LAYOUT.unpack(state)
    for word, value in zip(WORDS, values, strict=True):
        box[word] = value
    trace_clock.ticks += 1
    ctypes.memmove(env, registers, lay.ENV_SAVED)
    ctypes.memmove(env + lay.ENV_MTRR, mtrrs, lay.MTRR_SIZE)


def without_history(state: bytes) -> bytes:
    """A saved CPU without what equal states may differ in: EFLAGS and the operands that it is computed from, and how
    the instructions so far were granted."""
    start = len(state) - lay.MTRR_SIZE - lay.ENV_SAVED
    words = len(MAGIC) + 8 * 2
    return state[words : start + lay.ENV_EFLAGS] + state[start + lay.ENV_HFLAGS :]
