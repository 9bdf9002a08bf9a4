"""All of a guest's page tables, as QEMU's `info tlb` and `info mem` and Bochs' `info tab` show them.

Tables can lead to themselves, or be far more than anybody reads: a walk looks at MAX_TABLES of them at most.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ..addr import PAGE_SHIFT
from ..kvm.mmu.paging_mode import TRAITS, PagingMode, paging_mode, root_gfn
from ..x86 import CR4_PSE, PT_ACCESSED, PT_ADDR_MASK, PT_DIRTY, PT_NX, PT_PAGE_SIZE, PT_PRESENT, PT_USER, PT_WRITABLE
from .peek import page_bits, peek_guest, vcpu_of

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from ..kvm.vm import Kvm
    from .target import Target

MAX_TABLES = 20_000
MAX_LINES = 512
_PWT, _PCD, _GLOBAL = 1 << 3, 1 << 4, 1 << 8
_FLAGS = (
    (PT_NX, "X"),
    (_GLOBAL, "G"),
    (PT_PAGE_SIZE, "P"),
    (PT_DIRTY, "D"),
    (PT_ACCESSED, "A"),
    (_PCD, "C"),
    (_PWT, "T"),
    (PT_USER, "U"),
    (PT_WRITABLE, "W"),
)


class Mapping(NamedTuple):
    """A page of the guest: `size` bytes from gva on are at gpa. rights: the U and W bits of all levels together."""

    gva: int
    size: int
    gpa: int
    entry: int
    rights: int


class _Tables(NamedTuple):
    """How to walk: bytes of an entry; levels from the top, each with the bits of its index."""

    kvm: Kvm
    size: int
    levels: tuple[tuple[int, int], ...]
    pse: bool
    mode: PagingMode
    budget: list[int]


def mappings(vcpu: Vcpu, start: int = 0) -> Iterator[Mapping]:
    """Every present page from an address on, in order."""
    engine = vcpu.engine
    mode = paging_mode(engine.cr0, engine.cr4, engine.efer)
    if mode is PagingMode.NONPAGING:
        return
    size, width = (4, 10) if mode is PagingMode.PT32 else (8, 9)
    levels = tuple((level, width) for level in TRAITS[mode].levels)
    root = root_gfn(mode, engine.cr3) << PAGE_SHIFT
    if mode is PagingMode.PAE:
        levels, root = ((3, 2), *levels), engine.cr3 & 0xFFFF_FFE0
    pse = mode is not PagingMode.PT32 or bool(engine.cr4 & CR4_PSE)
    tables = _Tables(vcpu.kvm, size, levels, pse, mode, [MAX_TABLES])
    bits = PAGE_SHIFT + sum(width for _, width in levels)
    yield from _walk(tables, root, 0, 0, PT_USER | PT_WRITABLE, start & (1 << bits) - 1)


def _walk(tables: _Tables, table: int, depth: int, base: int, rights: int, start: int) -> Iterator[Mapping]:
    level, width = tables.levels[depth]
    data = peek_guest(tables.kvm, table, tables.size << width) if tables.budget[0] else None
    if data is None:
        return
    tables.budget[0] -= 1
    unit = 1 << page_bits(tables.mode, level)
    for index, entry in enumerate(struct.unpack(f"<{1 << width}{'I' if tables.size == 4 else 'Q'}", data)):
        gva = base + index * unit
        if not entry & PT_PRESENT or gva + unit <= start:
            continue
        pointers_only = tables.mode is PagingMode.PAE and level == 3
        allowed = rights if pointers_only else rights & entry
        if level == 1 or (entry & PT_PAGE_SIZE and tables.pse and not pointers_only and level <= 3):
            gpa = entry & PT_ADDR_MASK & -unit
            if unit == 1 << 22:
                gpa = entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
            yield Mapping(_canonical(tables, gva), unit, gpa, entry, allowed)
        else:
            yield from _walk(tables, entry & PT_ADDR_MASK, depth + 1, gva, allowed, start)


def _canonical(tables: _Tables, gva: int) -> int:
    top = {PagingMode.PT64: 47, PagingMode.LA57: 56}.get(tables.mode)
    return gva if top is None or not gva >> top else gva | (1 << 64) - (1 << top)


def info_tlb(target: Target, start: int = 0, number: int | None = None) -> list[str]:
    """Every page with its entry's flags, from an address on; the first MAX_LINES of them."""
    vcpu = vcpu_of(target, number)
    found = mappings(vcpu, start)
    lines = [
        f"{each.gva:016x}: {each.gpa:016x} {''.join(name if each.entry & bit else '-' for bit, name in _FLAGS)}"
        for each in islice(found, MAX_LINES)
    ]
    more = next(found, None)
    if more is not None:
        lines.append(f"... and more: info tlb {more.gva:#x}")
    return lines or ["PG disabled" if _is_flat(vcpu) else "nothing is mapped"]


def _is_flat(vcpu: Vcpu) -> bool:
    engine = vcpu.engine
    return paging_mode(engine.cr0, engine.cr4, engine.efer) is PagingMode.NONPAGING


def info_mem(target: Target, number: int | None = None) -> list[str]:
    """Ranges of equal rights."""
    vcpu = vcpu_of(target, number)
    lines: list[str] = []
    first: Mapping | None = None
    end = 0
    for each in _and_an_end(mappings(vcpu)):
        if first is not None and each is not None and each.gva == end and each.rights == first.rights:
            end += each.size
            continue
        if first is not None:
            rights = f"{'u' if first.rights & PT_USER else '-'}r{'w' if first.rights & PT_WRITABLE else '-'}"
            lines.append(f"{first.gva:016x}-{end:016x} {end - first.gva:016x} {rights}")
        if each is None or len(lines) == MAX_LINES:
            lines += ["..."] if each is not None else []
            break
        first, end = each, each.gva + each.size
    return lines or ["PG disabled" if _is_flat(vcpu) else "nothing is mapped"]


def info_tab(target: Target, number: int | None = None) -> list[str]:
    """Ranges that are mapped in one piece, as Bochs prints them."""
    vcpu = vcpu_of(target, number)
    lines = [f"cr3: {vcpu.engine.cr3:#018x}"]
    first: Mapping | None = None
    end = 0
    for each in _and_an_end(mappings(vcpu)):
        if first is not None and each is not None and each.gva == end and each.gpa - first.gpa == each.gva - first.gva:
            end += each.size
            continue
        if first is not None:
            last = first.gpa + end - first.gva - 1
            lines.append(f"{first.gva:#018x}-{end - 1:#018x} -> {first.gpa:#014x}-{last:#014x}")
        if each is None or len(lines) > MAX_LINES:
            lines += ["..."] if each is not None else []
            break
        first, end = each, each.gva + each.size
    return lines


def _and_an_end(found: Iterator[Mapping]) -> Iterator[Mapping | None]:
    yield from found
    yield None
