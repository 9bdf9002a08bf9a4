"""Just enough decoding: prefixes, and the address of a memory operand (SDM vol. 2, chapter 2).

Bytes are read through `code_byte`, so the TLB is left alone; the instruction has just been fetched and is mapped.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from .. import layout as lay
from .memory import get_env, inline, ld32, ld64
from .translate import code_byte

REX_B, REX_X, REX_R, REX_W = 1, 2, 4, 8
NO_SEGMENT = -1
MAX_LENGTH = 15
LOW16, LOW32 = 0xFFFF, 0xFFFF_FFFF


@inline
def is_code64(env):
    return ld32(env + lay.ENV_HFLAGS) & lay.HF_CS64_MASK != 0


@inline
def address_bits(env, has_67):
    """Address size of the current instruction: 16, 32 or 64."""
    hflags = ld32(env + lay.ENV_HFLAGS)
    if hflags & lay.HF_CS64_MASK:
        return 32 if has_67 else 64
    return 32 if (hflags & lay.HF_CS32_MASK != 0) != has_67 else 16


@inline
def prefixes(box, pc):
    """(address of the opcode, REX or 0, segment override or NO_SEGMENT, has 0x67, has LOCK)."""
    rex, segment, has_67, has_lock = 0, NO_SEGMENT, False, False
    code64 = is_code64(get_env(box))
    at = pc
    while at - pc < MAX_LENGTH:
        byte = code_byte(box, at)
        if code64 and byte & 0xF0 == 0x40:
            rex = byte
        elif byte in (0x66, 0xF2, 0xF3, 0x67, 0xF0) or byte & 0xE7 == 0x26 or byte in (0x64, 0x65):
            rex = 0
            has_67 |= byte == 0x67
            has_lock |= byte == 0xF0
            if byte & 0xE7 == 0x26:
                segment = byte >> 3 & 3
            elif byte in (0x64, 0x65):
                segment = byte - 0x60
        else:
            break
        at += 1
    return at, rex, segment, has_67, has_lock


@inline
def displacement(box, at, size):
    """A signed little-endian number of `size` bytes in the code."""
    value = 0
    for i in range(size):
        value |= (code_byte(box, at + i) & 0xFF) << 8 * i
    sign = 1 << (8 * size - 1)
    return (value ^ sign) - sign if size > 0 else 0


@inline
def reg(env, i):
    return ld64(env + lay.ENV_REGS + 8 * i)


@inline
def operand16(box, env, at, modrm):
    """16-bit addressing: (offset, default segment, end of the operand's encoding)."""
    mod, rm = modrm >> 6, modrm & 7
    size = 2 if mod == 2 or (mod == 0 and rm == 6) else mod
    offset = displacement(box, at + 1, size)
    if rm in (0, 1, 7):
        offset += reg(env, lay.RBX)
    if rm in (2, 3) or (rm == 6 and mod != 0):
        offset += reg(env, lay.RBP)
    if rm in (0, 2, 4):
        offset += reg(env, lay.RSI)
    if rm in (1, 3, 5):
        offset += reg(env, lay.RDI)
    segment = lay.SS if rm in (2, 3) or (rm == 6 and mod != 0) else lay.DS
    return offset & LOW16, segment, at + 1 + size


@inline
def operand(box, env, at, modrm, rex, bits):
    """32- and 64-bit addressing: (offset, default segment, end of the operand's encoding)."""
    mod, rm = modrm >> 6, modrm & 7
    end = at + 1
    offset = 0
    base = rm
    if rm == 4:
        sib = code_byte(box, end)
        end += 1
        base = sib & 7
        index = sib >> 3 & 7 | (rex & REX_X) << 2
        if index != lay.RSP:
            offset = reg(env, index) << (sib >> 6)
    size = 1 if mod == 1 else 4 if mod == 2 or (mod == 0 and base == 5) else 0
    offset += displacement(box, end, size)
    end += size
    segment = lay.DS
    if mod == 0 and base == 5:
        if rm == 5 and is_code64(env):
            offset += end - ld64(env + lay.ENV_SEGS + lay.SEG_SIZE * lay.CS + lay.SEG_BASE)
    else:
        offset += reg(env, base | (rex & REX_B) << 3)
        if base in (lay.RSP, lay.RBP) and not rex & REX_B:
            segment = lay.SS
    return offset if bits == 64 else offset & LOW32, segment, end


@inline
def memory_operand(box, at, rex, override, has_67):
    """(linear address, end of the encoding) of the memory operand whose ModRM byte is at `at`."""
    env = get_env(box)
    modrm = code_byte(box, at)
    bits = address_bits(env, has_67)
    if bits == 16:
        offset, segment, end = operand16(box, env, at, modrm)
    else:
        offset, segment, end = operand(box, env, at, modrm, rex, bits)
    segment = override if override != NO_SEGMENT else segment
    code64 = is_code64(env)
    if not code64 or segment >= lay.FS:
        offset += ld64(env + lay.ENV_SEGS + lay.SEG_SIZE * segment + lay.SEG_BASE)
    return offset if code64 else offset & LOW32, end
