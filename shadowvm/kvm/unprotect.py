"""Unprotect and retry: a page that is written as data is no page table any more (kvm_mmu_write_protect_fault of mmu.c).

A store to a write-tracked page is emulated. If its instruction is none that page tables are written with, the page is
unshadowed instead, and the instruction run again: this and every later store then go to plain memory. It may have been
a page table all the same: then it is shadowed anew at its next use, and the same instruction at the same address is
emulated the next time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Gva
from ..cpu import segments
from ..cpu.layout import HF_CS64_MASK
from ..cpu.registers import HFLAGS
from ..x86 import PT_ADDR_MASK, PT_PAGE_SIZE
from .mmu.shadow import KvmMmuPage, kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page
from .mmu.spte import SPTE_MMU_PRESENT

if TYPE_CHECKING:
    from .vcpu import Vcpu

MAX_LENGTH = 15
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
_OR, _AND, _XCHG, _MOV = (0x08, 0x09), (0x20, 0x21), (0x86, 0x87), (0x88, 0x89, 0xA2, 0xA3, 0xC6, 0xC7)
_WRITING = frozenset((*_OR, *_AND, *_XCHG, *_MOV))
_WRITING_0F = frozenset((0xAB, 0xB0, 0xB1))
"""BTS, CMPXCHG."""
_GROUPS: dict[int, tuple[int, ...]] = {0x80: (1, 4), 0x81: (1, 4), 0x83: (1, 4)}
"""OR and AND with a constant, by the reg field of ModRM."""
_GROUPS_0F: dict[int, tuple[int, ...]] = {0xBA: (5,), 0xC7: (1,)}
"""BTS with a constant, CMPXCHG8B."""


def kvm_mmu_unprotect_gfn_and_retry(vcpu: Vcpu, gva: Gva) -> bool:
    """After a write-protection fault of an instruction: True if it is to run again, with the page unshadowed.

    Not if that was tried for it before, nor where the access itself is translated by the page.
    """
    rip, kvm, gfn = vcpu.engine.rip, vcpu.kvm, vcpu.walker.gfn
    if vcpu.last_retry == (rip, gva):
        return False
    vcpu.last_retry = None
    if gfn not in kvm.page_hash:
        return False
    code64 = bool(vcpu.engine.env[HFLAGS] & HF_CS64_MASK)
    code = _instruction(vcpu, rip, code64)
    if x86_page_table_writing_insn(code, code64):
        return False
    kvm.mmu_lock.acquire()
    unprotected = not _walk_uses(vcpu, gva, gfn) and _unprotect_gfn(vcpu, gfn)
    kvm.mmu_lock.release()
    if unprotected:
        vcpu.last_retry = rip, gva
    return unprotected


def x86_page_table_writing_insn(code: bytes, code64: bool) -> bool:
    """Whether guests write page tables with an instruction: MOV, XCHG, CMPXCHG, OR, AND, BTS.

    If it is cut off: yes. (The flag PageTable in the opcode tables of emulate.c.)
    """
    opcodes = iter(code)
    byte = next(opcodes, -1)
    while byte in _PREFIXES or (code64 and byte & ~0xF == 0x40):
        byte = next(opcodes, -1)
    writing, groups = _WRITING, _GROUPS
    if byte == 0x0F:
        byte = next(opcodes, -1)
        writing, groups = _WRITING_0F, _GROUPS_0F
    modrm = next(opcodes, -1)
    if modrm < 0 or byte in writing:
        return True
    return (modrm >> 3 & 7) in groups.get(byte, ())


def _instruction(vcpu: Vcpu, rip: int, code64: bool) -> bytes:
    """The bytes at RIP, as far as its page goes; none if they are not mapped any more."""
    va = rip if code64 else rip + vcpu.engine.segment(segments.CS).base & 0xFFFF_FFFF
    path = _path(vcpu, va)
    if not path:
        return b""
    sp = path[-1]
    spte = vcpu.kvm.q[sp.q + (va >> 3 + 9 * sp.level & 511)]
    if not spte & SPTE_MMU_PRESENT:
        return b""
    page = (spte & PT_ADDR_MASK) + (va & (1 << 3 + 9 * sp.level) - 1 & -PAGE_SIZE)
    at = page + va % PAGE_SIZE
    return bytes(vcpu.kvm.mm.host.ram.b[at : min(at + MAX_LENGTH, page + PAGE_SIZE)])


def _path(vcpu: Vcpu, va: int) -> list[KvmMmuPage]:
    """The shadow pages that translate an address, topmost first, down to the leaf's or to where they end."""
    kvm, root = vcpu.kvm, vcpu.root
    if root is None:
        return []
    sp = root.pages[0 if root.pae_page is None else va >> 30 & 3]
    path = []
    while sp is not None:
        path.append(sp)
        spte = kvm.q[sp.q + (va >> 3 + 9 * sp.level & 511)]
        if sp.level == 1 or not spte & SPTE_MMU_PRESENT or spte & PT_PAGE_SIZE:
            break
        sp = kvm.sp_by_pfn[(spte & PT_ADDR_MASK) >> PAGE_SHIFT]
    return path


def _walk_uses(vcpu: Vcpu, gva: Gva, gfn: Gfn) -> bool:
    return any(sp.gfn == gfn and not sp.direct for sp in _path(vcpu, gva))


def _unprotect_gfn(vcpu: Vcpu, gfn: Gfn) -> bool:
    """Zap every shadow of a guest table, unless it is the root of a vCPU: that one is in use."""
    kvm = vcpu.kvm
    pages = [sp for sp in kvm.page_hash.get(gfn, ()) if not sp.direct]
    if not pages or any(sp.root_count for sp in pages):
        return False
    invalid_list: list[KvmMmuPage] = []
    for sp in pages:
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    return True
