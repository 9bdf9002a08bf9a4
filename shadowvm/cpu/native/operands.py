"""What an instruction does with its memory operand: whether it reads it to write it, and whether it is on the stack.

Unicorn reads the operand of a read-modify-write instruction first and writes it then, so that an absent page is
missed by a read. The CPU checks for a write at once (SDM vol. 3, 4.7: W/R of the error code).
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from .. import layout as lay
from .blocks import linear_rip
from .decode import REX_B, prefixes
from .memory import get_env, inline, ld64
from .translate import code_byte

ESCAPE = 0x0F
CMP = 7
STACK_REACH = 256


@inline
def is_rmw_one_byte(opcode, digit):
    """ADD OR ADC SBB AND SUB XOR, XCHG, shifts, NOT, NEG, INC and DEC of a ModRM operand; `digit` is ModRM 5:3."""
    if opcode < 0x38:
        return opcode & 7 < 2
    if opcode in (0x80, 0x81, 0x83):
        return digit != CMP
    if opcode in (0x86, 0x87, 0xC0, 0xC1) or 0xD0 <= opcode <= 0xD3:
        return True
    if opcode in (0xF6, 0xF7):
        return digit in (2, 3)
    return opcode >= 0xFE and digit < 2


@inline
def is_rmw_two_bytes(opcode, digit):
    """BTS BTR BTC, SHLD SHRD, CMPXCHG, XADD, CMPXCHG8B: opcodes after 0f."""
    if opcode == 0xBA:
        return digit > 4
    if opcode == 0xC7:
        return digit == 1
    return opcode in (0xA4, 0xA5, 0xAB, 0xAC, 0xAD, 0xB0, 0xB1, 0xB3, 0xBB, 0xC0, 0xC1)


@inline
def reads_to_write(box):
    """Does the instruction at RIP write the operand that it is reading?"""
    at, _rex, _segment, _has_67, _has_lock = prefixes(box, linear_rip(get_env(box)))
    opcode = code_byte(box, at)
    if opcode == ESCAPE:
        return is_rmw_two_bytes(code_byte(box, at + 1), code_byte(box, at + 2) >> 3 & 7)
    return is_rmw_one_byte(opcode, code_byte(box, at + 1) >> 3 & 7)


@inline
def is_stack_opcode(opcode, digit):
    """PUSH POP, PUSHA POPA, PUSHF POPF, CALL RET, ENTER LEAVE, IRET."""
    if 0x50 <= opcode <= 0x61 or opcode in (0x68, 0x6A, 0x8F, 0x9A, 0x9C, 0x9D, 0xC2, 0xC3, 0xE8, 0xCF):
        return True
    return 0xC8 <= opcode <= 0xCB or (opcode == 0xFF and digit in (2, 3, 6))


@inline
def has_modrm(opcode):
    """Has a one-byte opcode a ModRM byte?"""
    if opcode < 0x40:
        return opcode & 7 < 4
    if 0x80 <= opcode <= 0x8F or 0xD0 <= opcode <= 0xD3 or 0xD8 <= opcode <= 0xDF:
        return True
    return opcode in (0x62, 0x63, 0x69, 0x6B, 0xC0, 0xC1, 0xC6, 0xC7, 0xF6, 0xF7, 0xFE, 0xFF)


@inline
def base_is_stack(box, at, rex):
    """Is the base register of the ModRM operand at `at` RSP or RBP (64-bit mode)?"""
    modrm = code_byte(box, at)
    mod, rm = modrm >> 6, modrm & 7
    if mod == 3 or rex & REX_B:
        return False
    if rm == lay.RSP:
        base = code_byte(box, at + 1) & 7
        return base == lay.RSP or (base == lay.RBP and mod != 0)
    return rm == lay.RBP and mod != 0


@inline
def is_stack_access(box, va):
    """Does the 64-bit instruction at RIP access `va` through SS? What has no ModRM byte is judged by its distance."""
    env = get_env(box)
    at, rex, segment, _has_67, _has_lock = prefixes(box, linear_rip(env))
    opcode = code_byte(box, at)
    distance = va - ld64(env + lay.ENV_REGS + 8 * lay.RSP)
    near = -STACK_REACH <= distance <= STACK_REACH
    if opcode == ESCAPE:
        opcode = code_byte(box, at + 1)
        if opcode in (0xA0, 0xA1, 0xA8, 0xA9):
            return True
        return segment < lay.FS and base_is_stack(box, at + 2, rex)
    if is_stack_opcode(opcode, code_byte(box, at + 1) >> 3 & 7) and near:
        return True
    return segment < lay.FS and has_modrm(opcode) and base_is_stack(box, at + 1, rex)
